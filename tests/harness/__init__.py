"""What the suite stands on: servers, the oracle, the reference client, workloads.

==============  ====================================================================
``install``     what the prefix under test is: version, block size, segment size
``system``      running a server's programs as an unprivileged user; processes
``cluster``     one PostgreSQL cluster: configure, start, stop, kill, query
``files``       the relation files of a data directory
``oracle``      did the map report every block that differs, byte for byte
``hints``       what is a hint bit on a page, and masking it
``client``      a reference backup client: full, incremental through the map, restore
``workload``    what is done to a cluster between two looks
==============  ====================================================================
"""
