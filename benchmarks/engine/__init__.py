"""What tracking costs, measured on this machine: `./nox -s bench-17`.

    sampling     rounds, medians, intervals
    servers      copies of one cluster with ptrack on and off
    checkpoints, queries, extra, starts, marks, writes      a family of rows each
    results      JSON and the page; plots, in an environment that has matplotlib
    run          the session: builds, measures, writes

Results go to benchmarks/engine-NN.json, .md and -*.svg.
"""
