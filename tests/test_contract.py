"""The interface that ptrack 2.4 had and its clients use: names, types, texts, edges."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.harness import files, lsn, oracle, system
from tests.harness.grown import pages
from tests.harness.oracle import PageMap

if TYPE_CHECKING:
    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory

CURRENT = "3.0"
FUTURE = "FFFFFFFF/FFFFFFF8"


# ---- the extension and its functions


def test_version(cluster: Cluster) -> None:
    assert cluster.value("SELECT ptrack_version()") == CURRENT
    query = "SELECT default_version FROM pg_available_extensions WHERE name = 'ptrack'"
    assert cluster.value(query) == CURRENT


def test_control_file(cluster: Cluster) -> None:
    query = (
        "SELECT relocatable, superuser, requires, schema FROM pg_available_extension_versions "
        "WHERE name = 'ptrack' AND version = %s"
    )
    assert cluster.sql(query, CURRENT) == [(True, True, None, None)]


@pytest.mark.parametrize(
    ("name", "arguments", "result", "volatility", "strict", "returns_set", "parallel"),
    [
        ("ptrack_version", "", "text", "i", False, False, None),
        ("ptrack_init_lsn", "", "pg_lsn", "v", False, False, None),
        (
            "ptrack_get_pagemapset",
            "start_lsn pg_lsn",
            "TABLE(path text, pagecount bigint, pagemap bytea)",
            "v", True, True, "u",
        ),
        (
            "ptrack_get_change_stat",
            "start_lsn pg_lsn",
            'TABLE(files bigint, pages numeric, "size, MB" numeric)',
            "v", False, True, None,
        ),
    ],
)  # fmt: skip
def test_functions(
    cluster: Cluster,
    name: str,
    arguments: str,
    result: str,
    volatility: str,
    *,
    strict: bool,
    returns_set: bool,
    parallel: str | None,
) -> None:
    rows = cluster.sql(
        "SELECT pg_get_function_arguments(oid), pg_get_function_result(oid), "
        "provolatile::text, proisstrict, proretset, proparallel::text, proacl::text "
        "FROM pg_proc WHERE proname = %s",
        name,
    )
    assert len(rows) == 1
    assert rows[0][:5] == (arguments, result, volatility, strict, returns_set)
    assert parallel in (None, rows[0][5])
    assert rows[0][6] is None, "EXECUTE is PUBLIC"


def test_edges_of_the_set(cluster: Cluster) -> None:
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 3000)")
    cluster.checkpoint()
    assert cluster.sql("SELECT * FROM ptrack_get_pagemapset(NULL)") == []
    assert cluster.sql("SELECT * FROM ptrack_get_pagemapset(%s)", FUTURE) == []
    stat = "SELECT * FROM ptrack_get_change_stat(%s)"
    assert cluster.sql(stat, None) == [(0, None, None)]
    assert cluster.sql(stat, FUTURE) == [(0, None, None)]

    before_init = lsn.show(cluster.init_lsn() - 8)
    for since in ("0/0", "0/8", before_init):
        rows = {row.path: row for row in cluster.pagemapset(lsn.parse(since))}
        content = cluster.files()
        for path, data in content.items():
            blocks = len(data) // cluster.block_size
            if blocks:
                assert path in rows, (since, path)
                assert rows[path].blocks()[:blocks] == list(range(blocks)), (since, path)


def test_change_stat_agrees(factory: Factory) -> None:
    cluster = factory.create(shared_buffers="16MB")  # nothing is written between two queries
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 3000)")
    cluster.checkpoint()
    since = cluster.redo()
    cluster.sql("UPDATE t SET generate_series = 0 WHERE generate_series % 500 = 0")
    cluster.checkpoint()
    rows = cluster.pagemapset(since)
    pages = sum(row.pagecount for row in rows)
    got = cluster.sql("SELECT * FROM ptrack_get_change_stat(%s)", lsn.show(since))
    ((found, counted, size),) = got
    assert (found, int(counted)) == (len(rows), pages)
    assert abs(float(size) - pages * cluster.block_size / 1024 / 1024) < 0.02


def test_rows(cluster: Cluster) -> None:
    """A row a segment, in no other form than pg_probackup reads."""
    cluster.script(
        [
            f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'",
            "CREATE TABLE t AS SELECT i, repeat('x', 900) FROM generate_series(1, 1000) i",
            "CREATE TABLE u TABLESPACE ts AS SELECT 1",
            "CREATE UNLOGGED TABLE v AS SELECT 1",
            "CREATE TABLE empty (i int)",
            "VACUUM t",
        ]
    )
    cluster.checkpoint()
    rows = {row.path: row for row in cluster.pagemapset(0)}
    segments = -(-cluster.value("SELECT pg_relation_size('t')") // cluster.block_size)
    segments = -(-segments // cluster.segment_blocks)
    base = cluster.path_of("t")
    expected = [base, *(f"{base}.{number}" for number in range(1, segments))]
    assert [path for path in expected if path in rows] == expected
    assert f"{base}.{segments}" not in rows
    assert f"{base}_vm" in rows
    assert f"{base}_fsm" in rows
    ts = cluster.path_of("u")
    assert ts.startswith("pg_tblspc/") and f"/PG_{cluster.major}_" in ts  # noqa: PT018
    assert ts in rows
    assert cluster.path_of("v") in rows
    assert cluster.path_of("v") + "_init" not in rows, "an empty file has no row"
    assert cluster.path_of("empty") not in rows
    shared = cluster.path_of("pg_database")
    assert shared.startswith("global/")
    assert shared in rows
    for path, row in rows.items():
        assert files.FileName.parse(path.rpartition("/")[2]) is not None, path
        assert row.pagecount == len(row.blocks()) > 0
        assert max(row.blocks()) < cluster.segment_blocks


def test_ordered_as_pg_probackup_asks(cluster: Cluster) -> None:
    query = "SELECT path, pagemap FROM public.ptrack_get_pagemapset('0/0') ORDER BY 1"
    rows = cluster.sql(query)
    assert len(rows) > 100
    assert all(PageMap(path=path, pagecount=0, pagemap=bits).blocks() for path, bits in rows)


def test_bit_order(cluster: Cluster) -> None:
    """Bit n of byte m is block 8m+n."""
    pages(cluster, pages=8, first=0)
    snapshot = oracle.take(cluster)
    # a far-away segment or a lone block: here the first segment, block 2 of 8
    cluster.sql("DELETE FROM t WHERE i = 2")
    cluster.checkpoint()
    query = "SELECT pagemap FROM ptrack_get_pagemapset(%s) WHERE path = %s"
    pagemap = cluster.value(query, lsn.show(snapshot.lsn), cluster.path_of("t"))
    assert pagemap[0] & 0b100
    assert cluster.value("SELECT get_bit(%s::bytea, 2)", pagemap) == 1


def test_limit_and_early_end(cluster: Cluster) -> None:
    """A query that is not read to its end, or cancelled, leaves nothing behind."""
    assert len(cluster.sql("SELECT * FROM ptrack_get_pagemapset('0/0') LIMIT 1")) == 1
    with cluster.connect() as connection:
        connection.execute("SET statement_timeout = '1ms'")
        for _ in range(20):
            with contextlib.suppress(psycopg.errors.QueryCanceled):
                connection.execute("SELECT count(*) FROM ptrack_get_pagemapset('0/0')")
        # which may be cancelled itself
        cluster.wait_for(lambda: bool(connection.execute("RESET statement_timeout")), "a RESET")
        connection.execute("SELECT * FROM ptrack_get_pagemapset('0/0')")


# ---- what pg_probackup sends


def test_queries_of_pg_probackup(cluster: Cluster) -> None:
    query = (
        "SELECT extnamespace::regnamespace, extversion FROM pg_catalog.pg_extension "
        "WHERE extname = 'ptrack'::name"
    )
    ((schema, version),) = cluster.sql(query)
    assert (schema, version) == ("public", CURRENT)
    major, minor = version.split(".")
    assert int(major) * 100 + int(minor) > 200
    query = "SELECT proname FROM pg_catalog.pg_proc WHERE proname='ptrack_version'::name"
    assert cluster.sql(query) == [("ptrack_version",)]
    assert cluster.value("SHOW ptrack.map_size") == "1MB"
    assert lsn.parse(cluster.value("SELECT public.ptrack_init_lsn()")) > 0
    with cluster.connect() as connection:
        cursor = connection.execute(
            "SELECT path, pagemap FROM public.ptrack_get_pagemapset($1) ORDER BY 1".replace(
                "$1", "%s"
            ).encode(),
            (lsn.show(cluster.redo()),),
        )
        assert cursor.description is not None
        assert [column.name for column in cursor.description] == ["path", "pagemap"]


def test_unprivileged(cluster: Cluster) -> None:
    """A role with USAGE on the schema and nothing else, schema outside the search path."""
    cluster.script(
        [
            "CREATE ROLE backup LOGIN",
            "REVOKE ALL ON DATABASE postgres FROM PUBLIC",
            "REVOKE ALL ON SCHEMA public FROM PUBLIC",
            "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC",
            "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pg_catalog FROM PUBLIC",
            "DROP EXTENSION ptrack",
            "CREATE SCHEMA ptrack",
            "CREATE EXTENSION ptrack WITH SCHEMA ptrack",
            "GRANT CONNECT ON DATABASE postgres TO backup",
            "GRANT USAGE ON SCHEMA ptrack TO backup",
            "CREATE TABLE secret AS SELECT generate_series(1, 1000)",
            "CHECKPOINT",
        ]
    )
    redo = lsn.show(cluster.redo())
    cluster.sql("UPDATE secret SET generate_series = 0")
    cluster.checkpoint()
    assert cluster.sql("SHOW ptrack.map_size", user="backup") == [("1MB",)]
    assert cluster.sql("SELECT ptrack.ptrack_version()", user="backup") == [(CURRENT,)]
    ((init,),) = cluster.sql("SELECT ptrack.ptrack_init_lsn()", user="backup")
    assert lsn.parse(init) > 0
    rows = cluster.sql(
        "SELECT path FROM ptrack.ptrack_get_pagemapset(%s) ORDER BY 1", redo, user="backup"
    )
    assert cluster.path_of("secret") in [path for (path,) in rows]


def test_schema_outside_the_search_path(cluster: Cluster) -> None:
    cluster.script(
        [
            "DROP EXTENSION ptrack",
            "CREATE SCHEMA elsewhere",
            "CREATE EXTENSION ptrack WITH SCHEMA elsewhere",
        ]
    )
    with pytest.raises(psycopg.errors.UndefinedFunction):
        cluster.sql("SELECT ptrack_init_lsn()")
    cluster.schema = "elsewhere"
    snapshot = oracle.take(cluster)
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)")
    oracle.check(snapshot, cluster)
    query = "SELECT files, pages FROM elsewhere.ptrack_get_change_stat(%s)"
    ((found, pages),) = cluster.sql(query, lsn.show(snapshot.lsn))
    assert found > 0
    assert pages > 0
    cluster.sql("ALTER EXTENSION ptrack SET SCHEMA public")
    cluster.schema = "public"
    assert cluster.sql("SELECT files FROM ptrack_get_change_stat('0/0')")


# ---- off, not loaded, refused


def test_disabled(factory: Factory) -> None:
    cluster = factory.create(ptrack__map_size=0)
    assert cluster.value("SHOW ptrack.map_size") == "0"
    assert cluster.value("SELECT ptrack_version()") == CURRENT
    notices: list[tuple[str | None, str | None]] = []
    with cluster.connect() as connection:
        connection.add_notice_handler(
            lambda notice: notices.append((notice.severity, notice.message_primary))
        )
        row = connection.execute("SELECT ptrack_init_lsn()").fetchone()
        assert row is not None
        assert lsn.parse(row[0]) == 0
        assert notices == [("WARNING", "ptrack is disabled")]
    for call in (
        "ptrack_get_pagemapset('0/0')",
        "ptrack_get_change_stat('0/0')",
        "ptrack_get_change_relation_stat('0/0')",
    ):
        with pytest.raises(psycopg.Error, match="ptrack is disabled"):
            cluster.sql(f"SELECT * FROM {call}")
    assert cluster.sql("SELECT * FROM ptrack_get_pagemapset(NULL)") == []
    cluster.checkpoint()
    assert not list((cluster.data / "global").glob("ptrack*"))


def test_disabled_removes_the_files(cluster: Cluster) -> None:
    cluster.checkpoint()
    assert cluster.map.exists()
    cluster.stop()
    for name in ("global/ptrack.map.tmp", "global/ptrack.map.mmap"):
        cluster.write(name, "left over")
    cluster.configure(ptrack__map_size=0)
    cluster.start()
    assert not list((cluster.data / "global").glob("ptrack*"))


def test_not_preloaded(factory: Factory) -> None:
    cluster = factory.create(ptrack=False)
    text = (
        "ptrack module must be initialized by Postmaster. "
        "Put the following line to configuration file: shared_preload_libraries='ptrack'"
    )
    for call in (
        "SELECT ptrack_init_lsn()",
        "SELECT * FROM ptrack_get_pagemapset('0/0')",
        "LOAD 'ptrack'",
    ):
        with pytest.raises(psycopg.Error) as caught:
            cluster.sql(call)
        shown = " ".join(
            part
            for part in (caught.value.diag.message_primary, caught.value.diag.message_hint)
            if part
        )
        assert shown == text, call
    cluster.sql("DROP EXTENSION ptrack")
    with pytest.raises(psycopg.Error, match="ptrack module must be initialized by Postmaster"):
        cluster.sql("CREATE EXTENSION ptrack")


def test_wal_level_minimal_is_refused(factory: Factory) -> None:
    cluster = factory.create(start=False, wal_level="minimal", max_wal_senders=0)
    log = cluster.start_fails()
    assert "ptrack" in log
    assert "wal_level" in log
    cluster.configure(ptrack__map_size=0)
    cluster.start()
    cluster.stop()
    cluster.configure(ptrack__map_size=1, wal_level="replica")
    cluster.start()


@pytest.mark.parametrize("value", ["-1", "32769", "'1GB1'", "1kB", "many"])
def test_bad_sizes(factory: Factory, value: str) -> None:
    """PostgreSQL warns of a bad value for a library's setting, and takes the default: off."""
    cluster = factory.create(start=False)
    with (cluster.data / "postgresql.conf").open("a") as conf:
        conf.write(f"ptrack.map_size = {value}\n")
    cluster.start()
    assert cluster.value("SHOW ptrack.map_size") == "0"
    if value != "1kB":  # a unit smaller than the setting's is rounded
        assert 'parameter "ptrack.map_size"' in cluster.log_text()


def test_setting(cluster: Cluster) -> None:
    query = (
        "SELECT setting, unit, context, vartype, min_val, max_val, boot_val FROM pg_settings "
        "WHERE name = 'ptrack.map_size'"
    )
    assert cluster.sql(query) == [("1", "MB", "postmaster", "integer", "0", "32768", "0")]
    with pytest.raises(psycopg.errors.CantChangeRuntimeParam):
        cluster.sql("SET ptrack.map_size = 2")


def test_reserved_prefix(cluster: Cluster) -> None:
    if cluster.major < 15:
        pytest.skip("prefixes are reserved from 15 on")
    with pytest.raises(psycopg.errors.InvalidName):
        cluster.sql("SET ptrack.map_sise = 2")


# ---- installing and updating

VERSIONS = ("2.1", "2.2", "2.3", "2.4", "3.0")


@pytest.mark.parametrize("start", VERSIONS)
def test_update_path(cluster: Cluster, start: str) -> None:
    cluster.sql("DROP EXTENSION ptrack")
    cluster.sql(f"CREATE EXTENSION ptrack VERSION '{start}'")
    cluster.checkpoint()
    since = lsn.show(cluster.redo())
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)")
    steps = VERSIONS[VERSIONS.index(start) :]
    for old, new in itertools.pairwise((None, *steps)):
        if old is not None:
            cluster.sql(f"ALTER EXTENSION ptrack UPDATE TO '{new}'")
        assert lsn.parse(cluster.value("SELECT ptrack_init_lsn()")) > 0
        assert cluster.value("SELECT ptrack_version()") == CURRENT
        rows = cluster.sql("SELECT path, pagemap FROM ptrack_get_pagemapset(%s)", since)
        assert cluster.path_of("t") in [path for path, _ in rows], new
        if new != "2.1":
            assert cluster.sql("SELECT pages FROM ptrack_get_change_stat(%s)", since)[0][0] > 0


#: What of the public 2.4's catalog is not as our script for it makes it: a function in PL/pgSQL.
PUBLIC_STAT = """
CREATE OR REPLACE FUNCTION ptrack_get_change_stat(start_lsn pg_lsn)
RETURNS TABLE (files bigint, pages numeric, "size, MB" numeric) LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    SELECT count(*), sum(pagecount), round(sum(pagecount) * 8192 / 1048576, 2)
    FROM ptrack_get_pagemapset(start_lsn);
END $$
"""


@pytest.mark.parametrize("made_by", ["ours", "the public one"])
def test_updated_is_as_created(cluster: Cluster, made_by: str) -> None:
    """An extension updated from 2.4, whoever installed that, has the same objects as a new one."""
    query = (
        "SELECT pg_get_functiondef(objid) FROM pg_depend JOIN pg_extension e ON e.oid = refobjid "
        "WHERE extname = 'ptrack' AND classid = 'pg_proc'::regclass AND deptype = 'e' ORDER BY 1"
    )
    others = (
        "SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend d "
        "JOIN pg_extension e ON e.oid = refobjid WHERE extname = 'ptrack' AND deptype = 'e' "
        "ORDER BY 1"
    )
    created = (cluster.sql(query), cluster.sql(others))
    cluster.sql("DROP EXTENSION ptrack")
    cluster.sql("CREATE EXTENSION ptrack VERSION '2.4'")
    if made_by == "the public one":
        cluster.sql(PUBLIC_STAT)
        language = (
            "SELECT lanname FROM pg_proc p JOIN pg_language l ON l.oid = prolang "
            "WHERE proname = 'ptrack_get_change_stat'"
        )
        assert cluster.value(language) == "plpgsql"
    cluster.sql("ALTER EXTENSION ptrack UPDATE")
    assert (cluster.sql(query), cluster.sql(others)) == created


def test_dump_and_reload(cluster: Cluster) -> None:
    """pg_dump leaves CREATE EXTENSION and nothing of its insides."""
    out = cluster.run("pg_dump", "--schema-only", "--extension=ptrack", check=False)
    dump = out.stdout if out.returncode == 0 else cluster.run("pg_dump", "--schema-only").stdout
    assert "CREATE EXTENSION IF NOT EXISTS ptrack" in dump
    assert "ptrack_get_pagemapset" not in dump


# ---- walking the data directory


def test_unreadable_directory_is_an_error(cluster: Cluster) -> None:
    cluster.sql("CREATE DATABASE d")
    oid = cluster.value("SELECT oid FROM pg_database WHERE datname = 'd'")
    cluster.checkpoint()
    since = cluster.redo()
    directory = cluster.data / "base" / str(oid)
    directory.chmod(0o000)
    try:
        for at in (0, since):
            with pytest.raises(psycopg.Error, match=r"could not open directory.*Permission"):
                cluster.pagemapset(at)
    finally:
        directory.chmod(0o700)
    assert cluster.pagemapset(0)


def test_unreadable_tablespace_is_an_error(cluster: Cluster) -> None:
    location = cluster.tablespace("ts")
    cluster.script(
        [f"CREATE TABLESPACE ts LOCATION '{location}'", "CREATE TABLE t TABLESPACE ts AS SELECT 1"]
    )
    location.chmod(0o000)
    try:
        with pytest.raises(psycopg.Error, match="Permission denied"):
            cluster.pagemapset(0)
    finally:
        location.chmod(0o700)


def test_files_that_are_no_relations(cluster: Cluster) -> None:
    """Strangers in the directories are passed over."""
    for name in ("base/5/notes.txt", "base/5/1_x", "base/5/t9_99", "global/x.1"):
        path = cluster.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cluster.write(name, "x" * 8192)
    oracle_paths = {path for path, data in cluster.files().items() if data}
    assert {row.path for row in cluster.pagemapset(0)} == oracle_paths


def test_more_files_than_descriptors(factory: Factory) -> None:
    """A scan of many directories and files within a small max_files_per_process."""
    cluster = factory.create(max_files_per_process=64)
    cluster.sql(
        "DO $$ BEGIN FOR i IN 1..150 LOOP "
        "EXECUTE format('CREATE TABLE t%s (i int)', i); "
        "EXECUTE format('INSERT INTO t%s VALUES (1)', i); END LOOP; END $$"
    )
    cluster.checkpoint()
    assert {row.path for row in cluster.pagemapset(0)} == {
        path for path, data in cluster.files().items() if data
    }


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit")
def test_no_descriptor_left(cluster: Cluster) -> None:
    """EMFILE during the scan: an error, or the whole answer, and never a short one."""
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 3000)")
    cluster.checkpoint()
    query = "SELECT count(*), sum(pagecount) FROM ptrack_get_pagemapset('0/0')"
    whole = cluster.sql(query)
    errors: list[str] = []
    with cluster.connect() as connection:
        pid = connection.info.backend_pid

        def limit(files: int) -> None:
            system.run(["prlimit", "--pid", str(pid), f"--nofile={files}:"], cwd=cluster.root)

        assert connection.execute(query).fetchall() == whole
        listed = system.run(["ls", f"/proc/{pid}/fd"], cwd=cluster.root).stdout.split()
        used = max(map(int, listed)) + 1
        for files_allowed in range(3, used + 6):
            limit(files_allowed)
            try:
                assert connection.execute(query).fetchall() == whole
            except psycopg.Error as error:
                errors.append(str(error))
        limit(1024)
        assert connection.execute(query).fetchall() == whole
    assert errors, "no limit was tight enough"
    assert all("Too many open files" in error or "out of file desc" in error for error in errors)
