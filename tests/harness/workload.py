"""What is done to a cluster between two looks.

A :class:`Scenario` has statements that run before the snapshot and statements that run after
it. Each runs in a schema of its own, so that scenarios can run alone or all together on one
cluster; those that need databases make them under their own names.

Tables are small but spread over several segment files where these have 8 blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from tests.harness.cluster import Cluster

# about 30 rows a page
_WIDE = "repeat(md5(i::text), 7)"


def _table(name: str = "t", rows: int = 1000, extra: str = "") -> str:
    return (
        f"CREATE TABLE {name} {extra} AS "
        f"SELECT i AS id, {_WIDE} AS filler FROM generate_series(1, {rows}) i"
    )


def _insert(name: str = "t", rows: int = 300, first: int = 100_000) -> str:
    return (
        f"INSERT INTO {name} SELECT i, {_WIDE} FROM generate_series({first}, {first + rows - 1}) i"
    )


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Something that happens to a cluster.

    Attributes:
        name: also the schema's.
        setup: statements before the snapshot.
        change: statements after it.
        written: relations of which the change writes blocks; its table ``t`` if not said. They
            are in its schema unless they name another; ``database: relation`` is in another
            database. Each has to differ on the disk, for catalogs do so whatever happens.
        since: first major that has it.
        in_place: it needs tablespaces in place.
        checkpoints: the change makes checkpoints of its own (whole databases do).
        databases: databases it may leave behind.
    """

    name: str
    setup: Sequence[str] = ()
    change: Sequence[str] = ()
    written: Sequence[str] = ("t",)
    since: int = 12
    in_place: bool = False
    checkpoints: bool = False
    databases: Sequence[str] = ()

    def fits(self, cluster: Cluster) -> bool:
        """Whether the cluster's version can do it."""
        in_place = cluster.install.has_in_place_tablespaces
        return cluster.major >= self.since and (in_place or not self.in_place)


def _index(method: str, column: str, value: str, *, rows: int = 2000) -> Scenario:
    """An index of some access method that takes inserts, deletions and a vacuum."""
    insert = "INSERT INTO t SELECT i, {value} FROM generate_series({first}, {last}) i"
    return Scenario(
        name=f"index_{method}",
        setup=(
            f"CREATE TABLE t (id int, v {column})",
            insert.format(value=value, first=1, last=rows),
            f"CREATE INDEX t_v ON t USING {method} (v)",
        ),
        change=(
            insert.format(value=value, first=rows + 1, last=rows * 2),
            "DELETE FROM t WHERE id % 5 = 0",
            "VACUUM t",
            insert.format(value=value, first=rows * 2 + 1, last=rows * 2 + 200),
        ),
        written=("t", "t_v"),
    )


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        name="heap",
        setup=(_table(),),
        change=(
            "UPDATE t SET id = -id WHERE id % 97 = 0",
            "DELETE FROM t WHERE id % 101 = 0",
            _insert(),
        ),
    ),
    Scenario(
        name="heap_hot",
        setup=(_table(extra="WITH (fillfactor = 50)"), "CREATE INDEX ON t (id)"),
        change=(
            "UPDATE t SET filler = 'x' || filler WHERE id % 50 = 0",
            "UPDATE t SET filler = 'y' || filler WHERE id % 50 = 0",
            "SELECT count(*) FROM t",  # prunes
        ),
    ),
    Scenario(
        name="heap_locks",
        setup=(_table(), "ALTER TABLE t ADD PRIMARY KEY (id)"),
        change=(
            "SELECT count(*) FROM (SELECT * FROM t WHERE id % 90 = 0 FOR UPDATE) x",
            "SELECT count(*) FROM (SELECT * FROM t WHERE id % 80 = 0 FOR KEY SHARE) x",
        ),
    ),
    Scenario(
        name="open_and_aborted",
        setup=(_table(),),
        change=(
            """DO $$ BEGIN UPDATE t SET id = -id WHERE id % 70 = 0;
            RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END $$""",
        ),
    ),
    Scenario(
        name="copy_large",
        setup=("CREATE TABLE t (i int, j text DEFAULT repeat('x', 100))",),
        change=("COPY t (i) FROM PROGRAM 'seq 1 20000'",),
    ),
    _index("btree", "text", "md5(i::text)"),
    _index("hash", "text", "md5(i::text)"),
    _index("gist", "point", "point(i * 7919 % 1000, i * 104729 % 1000)"),
    _index("spgist", "text", "md5(i::text)"),
    _index("gin", "int[]", "ARRAY[i % 100, i % 77, i]"),
    _index("brin", "int", "i", rows=4000),
    _index("bloom", "int", "i"),
    Scenario(
        name="hash_growth",
        setup=("CREATE TABLE t (i int)", "CREATE INDEX t_i ON t USING hash (i)"),
        change=("INSERT INTO t SELECT generate_series(1, 12000)",),
        written=("t", "t_i"),
    ),
    Scenario(
        name="gin_pending",
        setup=(
            "CREATE TABLE t (v int[])",
            "CREATE INDEX t_v ON t USING gin (v) WITH (fastupdate = on)",
            "INSERT INTO t SELECT ARRAY[i, i + 1] FROM generate_series(1, 500) i",
        ),
        change=(
            "INSERT INTO t SELECT ARRAY[i, i + 1] FROM generate_series(1, 500) i",
            "SELECT gin_clean_pending_list('t_v')",
        ),
        written=("t", "t_v"),
    ),
    Scenario(
        name="brin_summaries",
        setup=(
            "CREATE TABLE t AS SELECT i, repeat('x', 200) FROM generate_series(1, 3000) i",
            "CREATE INDEX t_i ON t USING brin (i) WITH (pages_per_range = 1)",
        ),
        change=(
            "INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 3000) i",
            "SELECT brin_desummarize_range('t_i', 3)",
            "SELECT brin_summarize_new_values('t_i')",
        ),
        written=("t", "t_i"),
    ),
    Scenario(
        name="sequences",
        setup=("CREATE SEQUENCE a", "CREATE SEQUENCE b CACHE 10", "SELECT nextval('a')"),
        change=(
            "SELECT count(nextval('a')) FROM generate_series(1, 100)",
            "SELECT nextval('b')",
            "SELECT setval('b', 4711)",
            "CREATE SEQUENCE c",
            "SELECT nextval('c')",
            "ALTER SEQUENCE a RESTART",
        ),
        written=("a", "b", "c"),
    ),
    Scenario(
        name="toast",
        setup=(
            "CREATE TABLE t (id int, v text)",
            "ALTER TABLE t ALTER v SET STORAGE EXTERNAL",
            "INSERT INTO t SELECT i, repeat(md5(i::text), 300) FROM generate_series(1, 40) i",
        ),
        change=(
            "UPDATE t SET v = 'x' || v WHERE id % 7 = 0",
            "INSERT INTO t SELECT i, repeat(md5(i::text), 300) FROM generate_series(1, 40) i",
            "DELETE FROM t WHERE id % 11 = 0",
            "VACUUM t",
        ),
        written=("t", "toast of t"),
    ),
    Scenario(
        name="large_objects",
        setup=("SELECT lo_from_bytea(770, decode(repeat('ab', 50000), 'hex'))",),
        change=(
            "SELECT lo_put(770, 30000, decode(repeat('cd', 9000), 'hex'))",
            "SELECT lo_from_bytea(771, decode(repeat('ef', 60000), 'hex'))",
            "SELECT lo_unlink(770)",
            "SELECT lo_unlink(771)",
        ),
        written=("pg_catalog.pg_largeobject",),
    ),
    Scenario(
        name="index_builds",
        setup=(
            """CREATE TABLE t AS SELECT i, md5(i::text) AS s, point(i, -i) AS p,
            ARRAY[i, i % 50] AS a FROM generate_series(1, 3000) i""",
        ),
        change=(
            "CREATE INDEX ON t (s)",
            "CREATE INDEX ON t USING hash (s)",
            "CREATE INDEX ON t USING gist (p)",
            "CREATE INDEX ON t USING spgist (s)",
            "CREATE INDEX ON t USING gin (a)",
            "CREATE INDEX ON t USING brin (i)",
            "CREATE INDEX ON t USING bloom (i)",
            "CREATE INDEX CONCURRENTLY ON t (i)",
        ),
        written=(
            "t_s_idx",
            "t_s_idx1",
            "t_p_idx",
            "t_s_idx2",
            "t_a_idx",
            "t_i_idx",
            "t_i_idx1",
            "t_i_idx2",
        ),
    ),
    Scenario(
        name="empty_indexes",
        change=(
            "CREATE TABLE t (i int, s text, p point, a int[])",
            "CREATE INDEX ON t (s)",
            "CREATE INDEX ON t USING hash (s)",
            "CREATE INDEX ON t USING gist (p)",
            "CREATE INDEX ON t USING spgist (s)",
            "CREATE INDEX ON t USING gin (a)",
            "CREATE INDEX ON t USING brin (i)",
            "CREATE INDEX ON t USING bloom (i)",
        ),
        written=("t_s_idx", "t_s_idx1", "t_p_idx", "t_s_idx2", "t_a_idx", "t_i_idx", "t_i_idx1"),
    ),
    Scenario(
        name="reindex",
        setup=(
            "CREATE TABLE t AS SELECT i, md5(i::text) AS s FROM generate_series(1, 2000) i",
            "CREATE INDEX t_s ON t (s)",
            "CREATE INDEX t_h ON t USING hash (s)",
        ),
        change=("REINDEX TABLE t", "REINDEX INDEX CONCURRENTLY t_s"),
        written=("t_s", "t_h"),
    ),
    Scenario(
        name="cluster",
        setup=(_table(), "CREATE INDEX t_f ON t (filler)"),
        change=("CLUSTER t USING t_f",),
        written=("t", "t_f"),
    ),
    Scenario(
        name="vacuum_full",
        setup=(_table(), "CREATE INDEX ON t (id)", "DELETE FROM t WHERE id % 3 = 0"),
        change=("VACUUM FULL t", "VACUUM FULL pg_catalog.pg_attrdef"),
        written=("t", "t_id_idx"),
    ),
    Scenario(
        name="alter_rewrite",
        setup=(_table(), "CREATE INDEX ON t (id)"),
        change=(
            "ALTER TABLE t ALTER id TYPE bigint",
            "ALTER TABLE t ADD COLUMN r float DEFAULT random()",
        ),
        written=("t", "t_id_idx"),
    ),
    Scenario(
        name="truncate",
        setup=(_table(), "CREATE INDEX ON t (id)", _table("u")),
        change=(
            "TRUNCATE t",
            _insert(rows=200),
            "BEGIN; TRUNCATE u; INSERT INTO u VALUES (1, 'one'); COMMIT",
            "BEGIN; CREATE TABLE v (i int); TRUNCATE v; INSERT INTO v VALUES (1); COMMIT",
        ),
        written=("t", "t_id_idx", "u", "v"),
    ),
    Scenario(
        name="vacuum_truncate",
        setup=(_table(), _table("u")),
        change=(
            "DELETE FROM t WHERE id > 200",
            "VACUUM t",
            "DELETE FROM u",
            "VACUUM u",
            _insert("u", rows=90),
        ),
        written=("t", "u"),
    ),
    Scenario(
        name="truncate_and_grow",
        setup=(_table(),),
        change=("DELETE FROM t WHERE id > 200", "VACUUM t", _insert(rows=600)),
    ),
    Scenario(
        name="visibility_map",
        setup=(_table(), "VACUUM t"),
        change=(
            "DELETE FROM t WHERE id % 200 = 0",
            "VACUUM FREEZE t",
            "SELECT pg_truncate_visibility_map('t')",
            "VACUUM t",
        ),
    ),
    Scenario(
        name="free_space_map",
        setup=(_table(), "VACUUM t"),
        change=("DELETE FROM t WHERE id % 2 = 0", "VACUUM t", _insert(rows=100)),
    ),
    Scenario(
        name="set_tablespace",
        setup=(_table(), "CREATE INDEX t_id ON t (id)", _table("u")),
        change=(
            "ALTER TABLE t SET TABLESPACE ts",
            "ALTER INDEX t_id SET TABLESPACE ts",
            "UPDATE t SET id = -id WHERE id % 50 = 0",
            "ALTER TABLE u SET TABLESPACE ts",
            "ALTER TABLE u SET TABLESPACE pg_default",
        ),
        written=("t", "t_id", "u"),
    ),
    Scenario(
        name="in_place_tablespace",
        in_place=True,
        setup=(
            "CREATE TABLESPACE in_place LOCATION ''",
            _table("t", extra="TABLESPACE in_place"),
            "CREATE INDEX t_id ON t (id) TABLESPACE in_place",
            _table("u"),
        ),
        change=(
            "UPDATE t SET id = -id WHERE id % 50 = 0",
            "ALTER TABLE u SET TABLESPACE in_place",
            _table("v", extra="TABLESPACE in_place"),
        ),
        written=("t", "t_id", "u", "v"),
    ),
    Scenario(
        name="unlogged",
        setup=(
            _table("t").replace("CREATE TABLE", "CREATE UNLOGGED TABLE"),
            "CREATE INDEX t_id ON t (id)",
            "CREATE INDEX t_f ON t USING gist (point(id, id))",
        ),
        change=(
            "UPDATE t SET id = -id WHERE id % 50 = 0",
            _insert(),
            _table("u").replace("CREATE TABLE", "CREATE UNLOGGED TABLE"),
            "CREATE INDEX u_id ON u USING hash (id)",
            # no checkpoint writes them: other pages take their buffers
            "SELECT sum(pg_prewarm('filler')) FROM generate_series(1, 6)",
        ),
        written=("t", "t_id", "t_f", "u", "u_id"),
    ),
    Scenario(
        name="set_logged",
        setup=(
            _table("t"),
            "CREATE INDEX ON t (id)",
            _table("u").replace("CREATE TABLE", "CREATE UNLOGGED TABLE"),
            "CREATE INDEX ON u (id)",
        ),
        change=(
            "ALTER TABLE t SET UNLOGGED",
            "ALTER TABLE u SET LOGGED",
            _insert("t"),
            _insert("u"),
        ),
        written=("u", "u_id_idx"),
    ),
    Scenario(
        name="matview",
        setup=(
            _table(),
            "CREATE MATERIALIZED VIEW m AS SELECT * FROM t WHERE id % 2 = 0",
            "CREATE UNIQUE INDEX ON m (id)",
        ),
        change=(
            "UPDATE t SET filler = 'x' WHERE id % 30 = 0",
            "REFRESH MATERIALIZED VIEW CONCURRENTLY m",
            "REFRESH MATERIALIZED VIEW m",
        ),
        written=("t", "m", "m_id_idx"),
    ),
    Scenario(
        name="catalog",
        setup=("CREATE TABLE keep (i int)",),
        change=(
            """DO $$ BEGIN FOR i IN 1..40 LOOP
            EXECUTE format('CREATE TABLE t%s (i int PRIMARY KEY, s text)', i);
            END LOOP; END $$""",
            """DO $$ BEGIN FOR i IN 1..20 LOOP EXECUTE format('DROP TABLE t%s', i);
            END LOOP; END $$""",
            "ANALYZE pg_catalog.pg_class",
            "VACUUM pg_catalog.pg_attribute",
        ),
        written=("pg_catalog.pg_class", "pg_catalog.pg_attribute", "t40_pkey"),
    ),
    Scenario(
        name="create_database",
        setup=(
            "CREATE DATABASE tmpl_a",
            "\\c tmpl_a",
            _table(),
            "CREATE INDEX ON t (id)",
            "\\c",
        ),
        change=("CREATE DATABASE copy_a TEMPLATE tmpl_a",),
        written=("copy_a: t", "copy_a: t_id_idx"),
        checkpoints=True,
        databases=("copy_a", "tmpl_a"),
    ),
    Scenario(
        name="create_database_file_copy",
        setup=("CREATE DATABASE tmpl_b", "\\c tmpl_b", _table(), "\\c"),
        change=(
            "CREATE DATABASE copy_b TEMPLATE tmpl_b STRATEGY file_copy",
            "CREATE DATABASE copy_b2 TEMPLATE tmpl_b STRATEGY file_copy TABLESPACE ts",
        ),
        written=("copy_b: t", "copy_b2: t"),
        since=15,
        checkpoints=True,
        databases=("copy_b2", "copy_b", "tmpl_b"),
    ),
    Scenario(
        name="create_database_wal_log",
        setup=("CREATE DATABASE tmpl_c", "\\c tmpl_c", _table(), "\\c"),
        change=("CREATE DATABASE copy_c TEMPLATE tmpl_c STRATEGY wal_log",),
        written=("copy_c: t",),
        since=15,
        databases=("copy_c", "tmpl_c"),
    ),
    Scenario(
        name="reused_database_oid",
        setup=(
            "CREATE DATABASE tmpl_d",
            "\\c tmpl_d",
            _table(rows=500),
            "\\c",
            "CREATE DATABASE reused OID 70007 TEMPLATE tmpl_d",
            "\\c tmpl_d",
            "UPDATE t SET id = -id",
            "\\c",
        ),
        change=(
            "DROP DATABASE reused",
            "CREATE DATABASE reused OID 70007 TEMPLATE tmpl_d STRATEGY file_copy",
        ),
        written=("reused: t",),
        since=15,
        checkpoints=True,
        databases=("reused", "tmpl_d"),
    ),
    Scenario(
        name="database_out_and_back",
        setup=(
            "CREATE DATABASE moved",
            "\\c moved",
            _table(),
            "CREATE INDEX ON t (id)",
            "\\c",
        ),
        change=(
            "ALTER DATABASE moved SET TABLESPACE ts",
            "\\c moved",
            "UPDATE t SET id = -id WHERE id % 7 = 0",
            "VACUUM t",
            "\\c",
            "ALTER DATABASE moved SET TABLESPACE pg_default",
        ),
        written=("moved: t", "moved: t_id_idx"),
        checkpoints=True,
        databases=("moved",),
    ),
    Scenario(
        name="database_moved",
        setup=("CREATE DATABASE gone", "\\c gone", _table(), "\\c"),
        change=("ALTER DATABASE gone SET TABLESPACE ts",),
        written=("gone: t",),
        checkpoints=True,
        databases=("gone",),
    ),
    Scenario(
        name="drop_database",
        setup=("CREATE DATABASE dropped", "\\c dropped", _table(), "\\c"),
        change=("DROP DATABASE dropped", "CREATE TABLE after_it AS SELECT 1"),
        written=("after_it",),
        checkpoints=True,
        databases=("dropped",),
    ),
    Scenario(
        name="drop_and_temporary",
        setup=(_table(), _table("u")),
        change=(
            "DROP TABLE t",
            "CREATE TEMPORARY TABLE mine AS SELECT generate_series(1, 5000)",
            "CREATE INDEX ON mine (generate_series)",
            _insert("u"),
        ),
        written=("u",),
    ),
)


def available(cluster: Cluster) -> list[Scenario]:
    """The scenarios of this major; those that checkpoint first."""
    mine = [scenario for scenario in SCENARIOS if scenario.fits(cluster)]
    return sorted(mine, key=lambda scenario: not scenario.checkpoints)


def prepare(cluster: Cluster) -> None:
    """What scenarios share: a tablespace ``ts``."""
    cluster.sql(f"CREATE TABLESPACE ts LOCATION '{cluster.tablespace('ts')}'")


def set_up(cluster: Cluster, scenarios: Iterable[Scenario]) -> None:
    """Run what comes before the snapshot."""
    with cluster.connected():
        for scenario in scenarios:
            _run(cluster, scenario, (f"CREATE SCHEMA {scenario.name}", *scenario.setup))


def change(cluster: Cluster, scenarios: Iterable[Scenario]) -> None:
    """Run what comes after it."""
    with cluster.connected():
        for scenario in scenarios:
            _run(cluster, scenario, scenario.change)


def unwritten(
    cluster: Cluster, scenarios: Iterable[Scenario], relations: Collection[str]
) -> list[str]:
    """What the changes should have written and is not among the paths of what differs.

    To be asked after the change: a relation that was rewritten has the path of its new file.
    """
    query = (
        "SELECT pg_relation_filepath(CASE WHEN %s THEN reltoastrelid ELSE oid END) "
        "FROM pg_class WHERE oid = %s::regclass"
    )
    found = []
    with cluster.connected():
        for scenario in scenarios:
            for name in scenario.written:
                database, _, relation = name.rpartition(": ")
                table = relation.removeprefix("toast of ")
                toast = table != relation
                if not database and "." not in table:
                    table = f"{scenario.name}.{table}"
                path = cluster.value(query, toast, table, database=database or "postgres")
                if path not in relations:
                    found.append(f"{scenario.name}: {name}")
    return found


def tear_down(cluster: Cluster, scenarios: Iterable[Scenario]) -> None:
    """Drop what scenarios left, where one cluster serves several in turn."""
    for scenario in scenarios:
        cluster.script(
            [
                f"DROP SCHEMA {scenario.name} CASCADE",
                *(f"DROP DATABASE IF EXISTS {name}" for name in scenario.databases),
            ]
        )
        if scenario.name == "in_place_tablespace":
            cluster.sql("DROP TABLESPACE in_place")


def _run(cluster: Cluster, scenario: Scenario, statements: Sequence[str]) -> None:
    """Run statements; ``\\c name`` goes on in another database, ``\\c`` back home."""
    part: list[str] = []
    database = "postgres"
    for statement in (*statements, "\\c"):
        if not statement.startswith("\\c"):
            part.append(statement)
            continue
        if part:
            path = f"SET search_path = {scenario.name}, public" if database == "postgres" else ""
            cluster.script([*([path] if path else []), *part], database=database)
        part = []
        database = statement[2:].strip() or "postgres"
