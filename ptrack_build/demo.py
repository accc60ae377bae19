"""The demonstration: a small cluster, a full backup's LSN, some changes, and what they cost.

The cluster lives in a temporary directory and is gone at the end, unless it is asked to stay.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptrack_build import cache, host
from ptrack_build.errors import CommandFailed, CompileError, PtrackError
from ptrack_build.progress import say, step
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ptrack_build.compile import Prefix
    from ptrack_build.host import ServerUser

#: Customers; there are half as many orders.
ROWS = 1_000_000
#: What its cluster takes with its WAL, in megabytes: 580 were seen.
ROOM_MB = 800
DATABASE = "shop"
MAP_MB = 16

SETTINGS = """
shared_preload_libraries = 'ptrack'
ptrack.map_size = {map_mb}
listen_addresses = ''
unix_socket_directories = '{sockets}'
unix_socket_permissions = 0700  # any role is trusted: nobody else's affair
max_wal_size = 2GB
fsync = off
"""

FILL = """
CREATE EXTENSION ptrack;
CREATE TABLE customers (id int PRIMARY KEY, name text, balance int DEFAULT 0);
INSERT INTO customers SELECT n, 'customer ' || n, 0 FROM generate_series(1, {rows}) n;
CREATE TABLE orders (id bigint PRIMARY KEY, customer int, placed timestamp, note text);
INSERT INTO orders
    SELECT n, n % 1000, timestamp '2026-01-01' + n * interval '1 minute', repeat('x', 60)
    FROM generate_series(1, {orders}) n;
CREATE TABLE archive AS SELECT * FROM orders;
VACUUM ANALYZE;
"""

CHANGES = (
    (
        "300 customers pay",
        "UPDATE customers SET balance = balance + 1 WHERE id % ({rows} / 300) = 0",
    ),
    (
        "5,000 orders arrive",
        """INSERT INTO orders SELECT n, n % 1000, now(), repeat('y', 60)
        FROM generate_series({orders} + 1, {orders} + 5000) n""",
    ),
    ("100 old orders go", "DELETE FROM orders WHERE id <= 100"),
    ("nobody touches the archive", ""),
)

CHANGED = """
SELECT coalesce(json_agg(r ORDER BY r.path), '[]') FROM (
    SELECT m.path, m.pagecount::int AS changed, coalesce(c.relname::text, '') AS relation,
           coalesce(c.relkind::text, '') AS kind
    FROM ptrack_get_pagemapset('{lsn}') m
    LEFT JOIN pg_class c ON pg_relation_filepath(c.oid)
        = regexp_replace(m.path, '(_(fsm|vm|init))?([.][0-9]+)?$', '')
) r
"""

SIZES = """
SELECT coalesce(json_object_agg(
    relname, pg_table_size(oid) / current_setting('block_size')::int), '{}')
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i')
"""


@dataclass(frozen=True, kw_only=True)
class _Cluster:
    """A server and how to reach it."""

    prefix: Prefix
    home: Path
    user: ServerUser | None

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    def program(self, name: str, *args: str, stdin: str | None = None) -> str:
        """Run a program of the prefix as the servers' user, and return what it prints."""
        cleared = dict.fromkeys(("PGDATABASE", "PGOPTIONS", "PGSERVICE", "PGPORT", "PGPASSWORD"))
        env = {name: "" for name in cleared if name in os.environ} | {
            "PGHOST": str(self.home),
            "PGUSER": "postgres",
            "PGPORT": "5432",
            "LC_ALL": "C",
            "HOME": str(self.home),
        }
        return call(
            [self.prefix.bin / name, *args], capture=True, quiet=True, env=env, stdin=stdin,
            cwd=self.home, user=self.user, timeout=600,
        ).stdout.strip()  # fmt: skip

    def sql(self, text: str, database: str = DATABASE) -> str:
        """Run statements, each its own transaction; the last one's answer without decoration."""
        return self.program(
            "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-", stdin=text
        )


def check_places() -> None:
    """Raise HostError, before anything is built, where the server would have no room or no way in.

    It may not reach the cache, or what it makes would fill the temporary directory.
    """
    user = host.server_user()
    host.check_reachable(cache.root(), user)
    host.scratch_place(user, ROOM_MB)


def show(prefix: Prefix, *, stay: bool = False, rows: int = ROWS) -> None:
    """Run the demonstration on a prefix and print its story; stay leaves the server running.

    rows: of the largest table. Raises CompileError, with the server's log, for what fails.
    """
    user = host.server_user()
    host.check_reachable(prefix.path, user)
    with host.scratch("ptrack-demo-", keep=stay, megabytes=ROOM_MB) as home:
        cluster = _Cluster(prefix=prefix, home=home, user=user)
        try:
            with _running(cluster, stay=stay):
                story = _story(cluster, rows)
        except CommandFailed as error:
            kept = cache.directory("log") / f"demo-{prefix.tree.source.major.name}.log"
            with contextlib.suppress(OSError):
                kept.write_text(cluster.log.read_text(errors="replace"))
            what = f"the demonstration failed: {error.what}"
            log = kept if kept.exists() else None
            raise CompileError(what, log=log, hint="the server's log says more") from error
    _print(cluster, story, stay=stay)


@contextlib.contextmanager
def _running(cluster: _Cluster, *, stay: bool) -> Iterator[None]:
    with step("making a cluster"):
        cluster.program(
            "initdb", "-D", str(cluster.data), "-A", "trust", "-U", "postgres",
            "--locale=C", "-E", "UTF8", "--no-sync",
        )  # fmt: skip
        with (cluster.data / "postgresql.conf").open("a") as conf:
            conf.write(SETTINGS.format(map_mb=MAP_MB, sockets=cluster.home))
    start = ["start", "-w", "-t", "60", "-D", str(cluster.data), "-l", str(cluster.log)]
    try:
        with step("starting a server"):
            cluster.program("pg_ctl", *start)
        yield
    except BaseException:
        stay = False
        raise
    finally:
        if not stay:
            with contextlib.suppress(PtrackError):
                cluster.program("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(cluster.data))


@dataclass(frozen=True, kw_only=True)
class _Story:
    """What was measured. Sizes are in blocks, those of block, full and other in bytes."""

    lsn: str
    block: int
    full: int
    sizes: dict[str, int]
    changed: list[dict[str, Any]]
    other: int


def _story(cluster: _Cluster, rows: int) -> _Story:
    counts = {"rows": rows, "orders": rows // 2}
    with step(f"filling a database with {rows * 2:,} rows"):
        cluster.sql(f"CREATE DATABASE {DATABASE}", "postgres")
        cluster.sql(FILL.format(**counts))
        cluster.sql("CHECKPOINT")
    # What a backup tool keeps: the redo point of the checkpoint that its full backup begins with.
    # What that checkpoint itself writes counts as changed, so most is written by one before it.
    cluster.sql("CHECKPOINT")
    lsn = cluster.sql("SELECT redo_lsn FROM pg_control_checkpoint()")
    say(f"a full backup is taken here, at LSN {lsn}")
    for what, statement in CHANGES:
        say(f"    then {what}")
        if statement:
            cluster.sql(statement.format(**counts))
    cluster.sql("CHECKPOINT")
    sizes = json.loads(cluster.sql(SIZES))
    changed = json.loads(cluster.sql(CHANGED.format(lsn=lsn)))
    block = int(cluster.sql("SHOW block_size"))
    full, other = _bytes(cluster.data)
    return _Story(lsn=lsn, block=block, full=full, sizes=sizes, changed=changed, other=other)


def _bytes(data: Path) -> tuple[int, int]:
    """Bytes of all relation files, and of whatever else a backup copies except WAL."""
    relations = other = 0
    for file in data.rglob("*"):
        with contextlib.suppress(OSError):
            inside = file.relative_to(data).parts
            if not file.is_file() or inside[0] == "pg_wal" or file.name == "ptrack.map":
                continue
            if inside[0] in {"base", "global"} and file.name[0].isdigit():
                relations += file.stat().st_size
            else:
                other += file.stat().st_size
    return relations, other


def _print(cluster: _Cluster, story: _Story, *, stay: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    prefix, major = cluster.prefix, cluster.prefix.tree.source.major.name
    by_relation: dict[str, int] = {}
    catalogs = 0
    for row in story.changed:
        if row["relation"] in story.sizes:
            by_relation[row["relation"]] = by_relation.get(row["relation"], 0) + row["changed"]
        else:
            catalogs += row["changed"]
    table = Table(title=f"Changed since {story.lsn}, PostgreSQL {prefix.version}", box=None)
    table.add_column("relation")
    for column in ("blocks", "changed", "of it"):
        table.add_column(column, justify="right")
    for name, blocks in sorted(story.sizes.items()):
        count = by_relation.get(name, 0)
        share = f"{count / max(blocks, 1):.1%}"
        table.add_row(name, f"{blocks:,}", f"{count:,}", share)
    table.add_row("catalogs and the rest", "", f"{catalogs:,}", "")
    total = catalogs + sum(by_relation.values())
    read = total * story.block
    console.print()
    console.print(table)
    console.print()
    console.print(
        f"A full backup reads      {_mb(story.full):>9}  in {story.full // story.block:,} blocks"
    )
    console.print(f"An incremental one reads {_mb(read):>9}  in {total:,} blocks")
    console.print(f"                         {read / max(story.full, 1):>9.1%}  of the full one")
    console.print(
        f"(both also copy {_mb(story.other)} of files that have no blocks, and WAL; "
        f"ptrack's map takes {MAP_MB} MB)"
    )
    link = cache.root() / f"pg-{major}"
    console.print("\nHow to go on", style="bold")
    become = f"runuser -u {cluster.user.name} -- " if cluster.user else ""
    if stay:
        console.print(
            f"  the server is running; look around:\n"
            f"    {link}/bin/psql -h {cluster.home} -U postgres {DATABASE}\n"
            f"      SELECT * FROM ptrack_get_change_stat('{story.lsn}');\n"
            f"      SELECT path, pagecount FROM ptrack_get_pagemapset('{story.lsn}');\n"
            f"  stop it, and remove it:\n"
            f"    {become}{link}/bin/pg_ctl stop -D {cluster.data} && rm -r {cluster.home}"
        )
        return
    console.print(
        f"  this server is gone; one that stays, to look around in:\n"
        f"    ./nox -s demo-{major} -- --stay\n"
        f"  a server of your own:\n"
        f"    {become}{link}/bin/initdb -D /tmp/mine\n"
        f"    printf \"shared_preload_libraries = 'ptrack'\\nptrack.map_size = 64\\n\" "
        f">> /tmp/mine/postgresql.conf\n"
        f"    {become}{link}/bin/pg_ctl start -D /tmp/mine -l /tmp/mine.log -o '-k /tmp'\n"
        f"    {become}{link}/bin/psql -h /tmp postgres -c 'CREATE EXTENSION ptrack'\n"
        f"  the proof that no changed block is lost:\n"
        f"    ./nox -s test-{major}"
    )


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
