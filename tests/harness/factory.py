"""Making clusters quickly: one initdb per kind, copies of it from then on.

The template has, in the database ``postgres``, the extensions that tests use and a table
``filler`` to push pages out of the buffer pool with; it was stopped cleanly and never had a
map. Workers of one run share it: the first that needs it makes it, under a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import system
from tests.harness.cluster import PTRACK, Cluster, Value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.install import Install

EXTENSIONS = ("pg_prewarm", "pageinspect", "amcheck", "bloom", "pg_buffercache", "pg_visibility")
#: More than twice the buffer pool of a cluster.
FILLER_BYTES = 300 * 8192
#: Pgbench's status where its clients have lost their server, or got errors.
_ABORTED = 2
#: Transactions of pgbench after which there is a load.
_LOAD = 100


def committed(cluster: Cluster) -> int:
    """Transactions of pgbench's in a database."""
    return int(cluster.value("SELECT count(*) FROM pgbench_history"))


class Factory:
    """Makes clusters of one installation below one directory.

    Attributes:
        install: of what.
        shared: a directory that all workers of this run have in common.
        root: a directory of this worker.
        made: clusters that are to be destroyed, newest last.
    """

    def __init__(self, install: Install, shared: Path, root: Path) -> None:
        self.install = install
        self.shared = shared
        self.root = root
        self.made: list[Cluster] = []
        self._count = 0

    def template(self, *, checksums: bool) -> Path:
        """The data directory to copy."""
        home = self.shared / ("checksums" if checksums else "plain")
        with (self.shared / f"{home.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not home.exists():
                making = self.shared / f"{home.name}.making"
                self._make_template(making, checksums=checksums)
                making.rename(home)
        return home / "data"

    def _make_template(self, root: Path, *, checksums: bool) -> None:
        cluster = Cluster(self.install, root, "template")
        try:
            cluster.init(checksums=checksums)
            cluster.adopt()
            if self.install.has_ptrack:
                cluster.configure({**PTRACK, "ptrack.map_size": 0})
            cluster.start()
            names = [name for name in EXTENSIONS if self.install.has_extension(name)]
            if self.install.has_ptrack:
                names.append("ptrack")
            rows = f"generate_series(1, {FILLER_BYTES // cluster.block_size})"
            cluster.script(
                [
                    *(f"CREATE EXTENSION {name}" for name in names),
                    # one row a page
                    "CREATE TABLE filler (x text)",
                    "ALTER TABLE filler ALTER x SET STORAGE PLAIN",
                    f"INSERT INTO filler SELECT repeat('x', {cluster.wide}) FROM {rows}",
                    "VACUUM (FREEZE) filler",
                ]
            )
            cluster.stop()
            (cluster.data / "postmaster.opts").unlink()
        except BaseException:
            cluster.destroy()
            raise

    def empty(self, name: str) -> Cluster:
        """A cluster without a data directory: for pg_basebackup, a restore, an initdb."""
        self._count += 1
        root = self.root / f"{self._count}{name}"
        cluster = Cluster(self.install, system.make_dir(root), name)
        self.made.append(cluster)
        return cluster

    def create(
        self,
        name: str = "primary",
        *,
        checksums: bool = False,
        ptrack: bool = True,
        start: bool = True,
        **settings: Value,
    ) -> Cluster:
        """A fresh cluster from the template.

        Args:
            ptrack: preload it, with a map of 1 MB.
            settings: further ones; ``__`` in a name is a dot.
        """
        template = self.template(checksums=checksums)
        cluster = self.empty(name)
        subprocess.run(["cp", "-a", "--reflink=auto", template, cluster.data], check=True)
        cluster.adopt()
        if ptrack:
            cluster.configure(PTRACK)
        elif self.install.has_ptrack:
            cluster.configure(shared_preload_libraries="")
        cluster.configure(settings)
        if start:
            cluster.start()
        return cluster

    def standby(
        self, primary: Cluster, name: str = "standby", *, start: bool = True, **settings: Value
    ) -> Cluster:
        """A streaming standby made with pg_basebackup -R."""
        standby = self.base_backup(primary, name, "-R")
        standby.configure(settings)
        if start:
            standby.start()
        return standby

    def base_backup(self, source: Cluster, name: str, *args: str) -> Cluster:
        """What pg_basebackup makes; tablespaces are put beside the data directory."""
        target = self.empty(name)
        mapping = [
            f"--tablespace-mapping={location}={target.root / Path(location).name}"
            for (location,) in source.sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace")
            if location.startswith("/")
        ]
        source.run("pg_basebackup", "-D", target.data, "-c", "fast", "--no-sync", *mapping, *args)
        target.adopt()
        return target

    @contextlib.contextmanager
    def pgbench(
        self,
        cluster: Cluster,
        *args: str,
        seconds: int,
        clients: int = 2,
        at_most: bool = False,
        killed: bool = False,
    ) -> Iterator[None]:
        """Run pgbench beside the body, from when it has committed; waits for its end, a good one.

        at_most: it ends with the body, if that is sooner. killed: the body kills the server, and
        its end must be that of a run that was aborted.
        """
        argv: list[str | Path] = [
            cluster.program("pgbench"), "-n", "-T", str(seconds), "-c", str(clients), *args,
            cluster.conninfo(),
        ]  # fmt: skip
        path = cluster.root / "pgbench.log"
        begun = committed(cluster) + _LOAD
        with path.open("wb") as output:
            process = system.popen(argv, output=output, cwd=cluster.root)
        try:
            cluster.wait_for(
                lambda: process.poll() is not None or committed(cluster) > begun, "load"
            )
            assert process.poll() is None, f"it ended before there was load: {path.read_text()}"
            yield
            if at_most and process.poll() is None:
                return
            code = process.wait(seconds + 60)
            assert code == (_ABORTED if killed else 0), path.read_text()
        finally:
            process.kill()
            process.wait()

    def destroy(self, *, since: int = 0, keep: bool = False) -> None:
        """Destroy the clusters made after the first ``since``."""
        with contextlib.ExitStack() as all_of_them:
            for cluster in self.made[since:]:
                all_of_them.callback(cluster.destroy, keep=keep)
            del self.made[since:]

    def destroy_one(self, cluster: Cluster) -> None:
        """Destroy one cluster, wherever it stands."""
        self.made.remove(cluster)
        cluster.destroy()
