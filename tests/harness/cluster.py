"""One PostgreSQL cluster under test.

A cluster lives in a directory of its own (``data``, ``log``, sockets, tablespaces), listens on
a Unix socket there and nowhere else, and is started directly, without ``pg_ctl``, because the
suite starts and kills servers hundreds of times: a start is over when ``postmaster.pid`` says
so, a stop when the process is gone.

Connections are made for each statement and closed after it, so that none stands in the way of
a crash or of a ``DROP DATABASE``; :meth:`Cluster.connect` gives one to keep, and within
:meth:`Cluster.connected` statements share one.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg

from tests.harness import files, lsn, system
from tests.harness.oracle import PageMap

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from tests.harness.install import Install

Value = str | int | float | bool
Row = tuple[Any, ...]

PORT = 5432
MAP = Path("global/ptrack.map")
MAP_TMP = Path("global/ptrack.map.tmp")

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
# Children of a dead postmaster notice at once, but for who wants a checkpoint: PostgreSQL looks for
# the checkpointer for a minute. A signal ends that.
_NOTICE_SECONDS = 5.0
_POLL_SECONDS = 0.004

# Small, quiet and repeatable: nothing is written to a relation but by what a test does.
BASE: Mapping[str, Value] = {
    "listen_addresses": "",
    "port": PORT,
    "unix_socket_permissions": "0700",
    "shared_buffers": "1MB",
    "max_connections": 20,
    "max_worker_processes": 6,
    "max_wal_senders": 4,
    "fsync": False,
    "autovacuum": False,
    "bgwriter_lru_maxpages": 0,
    "wal_level": "replica",
    "wal_retrieve_retry_interval": "50ms",
    "checkpoint_timeout": "1h",
    "max_wal_size": "2GB",
    "min_wal_size": "2MB",
    "log_checkpoints": False,
    "log_line_prefix": "%m [%p] ",
    "dynamic_shared_memory_type": "mmap",
    "huge_pages": False,
    "jit": False,
}

PTRACK: Mapping[str, Value] = {"shared_preload_libraries": "ptrack", "ptrack.map_size": 1}


class StartFailed(AssertionError):
    """A server did not start. Attributes: log, what it wrote meanwhile."""

    def __init__(self, name: str, log: str) -> None:
        super().__init__(f"{name} did not start:\n{log}")
        self.log = log


class NotInTime(AssertionError):
    """What was waited for did not come."""


def setting(value: Value) -> str:
    """A value as it is written in postgresql.conf."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return str(value)
    return "'" + value.replace("'", "''") + "'"


class _Kept(threading.local):
    """The connection that a thread keeps to a cluster for a while."""

    connection: psycopg.Connection[Row] | None = None


class Cluster:
    """A cluster: see the module's text.

    Attributes:
        name: for messages.
        root: the directory of everything.
        data: the data directory.
        log: the server's log, appended to over restarts.
        schema: where the extension's functions are.
        env: added to the server's environment.
        block_size: in bytes.
        segment_blocks: blocks in a segment file.
    """

    def __init__(self, install: Install, root: Path, name: str) -> None:
        self.install = install
        self.name = name
        self.root = root
        self.data = root / "data"
        self.log = root / "log"
        self.schema = "public"
        self.env: dict[str, str] = {}
        self._reader = files.Reader()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: dict[str, str] = {}
        self._kept = _Kept()

    # ---- files and settings

    def init(self, *, checksums: bool, segsize_mb: int = 1) -> None:
        """Run initdb."""
        system.make_dir(self.root)
        argv: list[str | Path] = [
            self.program("initdb"), "-D", self.data, "-U", "postgres", "-A", "trust", "-N",
            "-E", "UTF8", "--no-locale", f"--wal-segsize={segsize_mb}",
        ]  # fmt: skip
        if checksums:
            argv.append("--data-checksums")
        elif self.install.major >= 18:
            argv.append("--no-data-checksums")
        system.run(argv, cwd=self.root)
        self.configure(BASE)
        self.configure(self._keep_wal())
        if self.install.has_in_place_tablespaces:
            self.configure(allow_in_place_tablespaces=True)  # for the session and for replay

    def _keep_wal(self) -> dict[str, Value]:
        if self.install.major >= 13:
            return {"wal_keep_size": "1GB"}
        return {"wal_keep_segments": 1024}

    def adopt(self) -> None:
        """Settings that go with this directory, after data came from another cluster."""
        self.configure({"unix_socket_directories": str(self.root), "cluster_name": self.name})

    def configure(self, settings: Mapping[str, Value] | None = None, /, **more: Value) -> None:
        """Append to postgresql.conf; a name's ``__`` stands for a dot (``ptrack__map_size``)."""
        lines = [
            f"{name.replace('__', '.')} = {setting(value)}\n"
            for name, value in {**(settings or {}), **more}.items()
        ]
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(lines)

    def write(self, name: str, text: str) -> None:
        """Write a small file into the data directory, owned by the server."""
        path = self.data / name
        path.write_text(text)
        system.own(path)

    def program(self, name: str) -> Path:
        """Path of a program of this installation."""
        return self.install.program(name)

    def run(
        self,
        name: str,
        *args: str | Path,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the installation as the server's user; output is in stdout.

        env: added to its environment.

        Raises:
            system.ProgramFailed: it failed and ``check`` is set.
        """
        own = {"PGHOST": str(self.root), "PGPORT": str(PORT), "PGUSER": "postgres"}
        return system.run(
            [self.program(name), *args],
            cwd=self.root,
            check=check,
            stdin=stdin,
            env={**own, **(env or {})},
        )

    def tablespace(self, name: str) -> Path:
        """A new empty directory for a tablespace."""
        return system.make_dir(self.root / name)

    @property
    def major(self) -> int:
        """The server's major version."""
        return self.install.major

    @property
    def map(self) -> Path:
        """The map's file."""
        return self.data / MAP

    def control(self) -> dict[str, str]:
        """What pg_controldata prints, by its labels."""
        out = self.run("pg_controldata", "-D", self.data).stdout
        pairs = (line.partition(":") for line in out.splitlines())
        return {label: value.strip() for label, _, value in pairs}

    def _constant(self, label: str) -> int:
        if not self._control:
            self._control = self.control()
        return int(self._control[label])

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return self._constant("Database block size")

    @property
    def wide(self) -> int:
        """Bytes of a text of which, stored plain, a page takes one and not two."""
        return self.block_size // 2 + 4

    @property
    def segment_blocks(self) -> int:
        """Blocks of a segment file."""
        return self._constant("Blocks per segment of large relation")

    # ---- start, stop, kill

    @property
    def running(self) -> bool:
        """Whether the postmaster that we started is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def start(self, *args: str, wait: bool = True) -> None:
        """Start the server and wait until it takes connections.

        Raises:
            StartFailed: it ended.
            NotInTime: it was not ready in time, and is killed.
        """
        assert not self.running, f"{self.name} is running"
        before = self.log_size()
        pidfile = self.data / "postmaster.pid"
        if self._process is None:
            pidfile.unlink(missing_ok=True)  # of the cluster that this is a copy of
        else:
            self._remove_shared_memory()
        with self.log.open("ab") as output:
            self._process = system.popen(
                [self.program("postgres"), "-D", self.data, *args],
                output=output,
                cwd=self.root,
                env=self.env,
            )
        if not wait:
            return
        deadline = time.monotonic() + _START_SECONDS
        while not self.ready():
            if self._process.poll() is not None:
                raise StartFailed(self.name, self.log_text(before))
            if time.monotonic() > deadline:
                self._give_up(f"was not ready in time:\n{self.log_text(before)}")
            time.sleep(_POLL_SECONDS)

    def ready(self) -> bool:
        """Whether a server that was started takes connections."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        if len(lines) < 8 or int(lines[0]) != self.pid:
            return False
        return lines[7].strip() in ("ready", "standby")

    def start_fails(self, *args: str) -> str:
        """Start a server that must not come up; returns what it logged.

        Raises:
            AssertionError: it came up.
            NotInTime: it neither came up nor ended, and is killed.
        """
        try:
            self.start(*args)
        except StartFailed as failed:
            return failed.log
        what = f"{self.name} started"
        raise AssertionError(what)

    def stop(self, mode: str = "fast") -> None:
        """Stop: ``smart``, ``fast`` or ``immediate``."""
        signals = {
            "smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT,
        }  # fmt: skip
        assert self._process is not None
        system.send(self.pid, signals[mode])
        self._wait_end()

    def _wait_end(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._give_up("did not stop")

    def _give_up(self, what: str) -> NoReturn:
        """Kill a server that took too long; raises NotInTime, which says what it did not do."""
        late = NotInTime(f"{self.name} {what}")
        try:
            self.kill_all()
        except (NotInTime, system.NotStopped) as error:
            raise late from error
        raise late

    def restart(self, mode: str = "fast", **settings: Value) -> None:
        """Stop, change settings, start."""
        self.stop(mode)
        self.configure(settings)
        self.start()

    def reload(self, **settings: Value) -> None:
        """Change settings and have them read."""
        self.configure(settings)
        loaded = "SELECT pg_conf_load_time()"
        before = self.value(loaded)
        self.sql("SELECT pg_reload_conf()")
        self.wait_for(lambda: self.value(loaded) != before, "the reload")

    def kill_all(self) -> None:
        """kill -9 every process of the server at once.

        Raises:
            NotInTime: one of them lives on.
            NotStopped: one was killed in a system call, and may have written half a page.
        """
        if self._process is None:
            return
        pids: list[int] = []
        with contextlib.ExitStack() as afterwards:  # last comes first
            afterwards.callback(self._remove_shared_memory)
            afterwards.callback(
                self.wait_for,
                lambda: not any(system.alive(pid) for pid in pids),
                "the end of killed processes",
                _STOP_SECONDS,
            )
            if self._process.poll() is None:
                afterwards.callback(self._kill_late_children, pids)
                afterwards.callback(self._process.wait)
                try:
                    system.stop(self.pid)  # before that it may have another child
                finally:
                    pids.extend(system.children(self.pid))
                    system.kill(*pids, self.pid)

    def _kill_late_children(self, pids: list[int]) -> None:
        """Kill what is left of a server whose postmaster is dead, and has all those killed in pids.

        One that could not be stopped sees a child killed, and may start others before its own turn.
        """
        while late := [pid for pid in system.working_in(self.data) if pid not in pids]:
            pids.extend(late)
            for pid in late:
                system.send(pid, signal.SIGKILL)

    def kill_postmaster(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """kill -9 the postmaster alone, and wait until its children have ended.

        meanwhile: what lets those go on that could not notice.
        """
        system.stop(self.pid)
        pids = system.children(self.pid)
        system.send(self.pid, signal.SIGKILL)
        self._wait_end()
        meanwhile()
        began, asked = time.monotonic(), False
        while left := [pid for pid in pids if system.alive(pid)]:
            lasted = time.monotonic() - began
            assert lasted < _STOP_SECONDS, f"{self.name}: children of a dead postmaster"
            if lasted > _NOTICE_SECONDS and not asked:
                asked = True
                for pid in left:
                    system.send(pid, signal.SIGTERM)
            time.sleep(_POLL_SECONDS)

    def kill_child(self, backend_type: str) -> None:
        """kill -9 one process, and wait until the server came back from the crash.

        Args:
            backend_type: as pg_stat_activity has it; ``client backend`` makes one to kill.
        """
        before = self.log_size()
        self.kill_process(backend_type)

        def back() -> bool:
            text = self.log_text(before)
            _, crashed, after = text.partition("all server processes terminated; reinitializing")
            return bool(crashed) and "database system is ready to accept" in after

        self.wait_for(back, "the restart after a crash")

    def kill_process(self, backend_type: str) -> None:
        """kill -9 one process, as soon as there is one, and wait for nothing."""
        if backend_type == "client backend":
            with contextlib.suppress(psycopg.Error), self.connect() as connection:
                system.kill(connection.info.backend_pid)
                connection.execute("SELECT pg_sleep(60)")
            return
        query = "SELECT pid FROM pg_stat_activity WHERE backend_type = %s"
        found: list[tuple[int]] = []  # there are several io workers

        def there() -> bool:
            found[:] = self.sql(query, backend_type)
            return bool(found)

        self.wait_for(there, f"a {backend_type}")
        system.kill(found[0][0])

    def process(self, backend_type: str) -> int:
        """Process id of a server process, by its type in pg_stat_activity: the only one of it.

        It may still have to come to what a server that has just started answers queries without.
        """
        query = "SELECT pid FROM pg_stat_activity WHERE backend_type = %s"
        self.wait_for(lambda: bool(self.sql(query, backend_type)), f"a {backend_type}")
        pid: int = self.value(query, backend_type)
        return pid

    @contextlib.contextmanager
    def paused(self, *backend_types: str) -> Iterator[None]:
        """SIGSTOP some processes for a while, each when it is idle; they may be dead at its end.

        One that is stopped while it holds a lock would hold up whoever wants that.
        """
        pids: list[int] = []
        try:
            with self.connect() as connection:
                for backend_type in backend_types:
                    pids.append(self.process(backend_type))
                    self.wait_for(lambda: _paused(connection, pids[-1]), f"an idle {backend_type}")
            yield
        finally:
            for pid in pids:
                system.send(pid, signal.SIGCONT)

    def single_user(
        self,
        *statements: str,
        database: str = "postgres",
        killed: bool = False,
        **settings: Value,
    ) -> str:
        """Run statements, one line each, in single-user mode; returns the output.

        killed: the backend has itself killed (-9) after the last of them.
        """
        assert not self.running
        if killed:
            statements = (*statements, "COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'")
        options = [
            word
            for name, value in settings.items()
            for word in ("-c", f"{name.replace('__', '.')}={value}")
        ]
        done = system.run(
            [self.program("postgres"), "--single", "-D", self.data, *options, database],
            cwd=self.root,
            stdin="".join(statement + "\n" for statement in statements),
            check=not killed,
        )
        assert not killed or done.returncode == -signal.SIGKILL, done.stdout
        assert "ERROR:" not in done.stdout, done.stdout
        return done.stdout

    def destroy(self, *, keep: bool = False) -> None:
        """Kill what runs and remove the directory, whatever state it is in."""
        try:
            self.kill_all()
        finally:
            if not keep:
                shutil.rmtree(self.root, ignore_errors=True)

    def _remove_shared_memory(self) -> None:
        """Remove what a killed postmaster left; else a server that looks into it counts as one."""
        try:
            segment = self.shared_memory_id()
        except (OSError, IndexError, ValueError):
            return  # it ended before it had one, or removed its file
        system.remove_shared_memory(segment)

    def shared_memory_id(self) -> int:
        """The id of the SysV segment that postmaster.pid names."""
        lines = (self.data / "postmaster.pid").read_text().splitlines()
        return int(lines[6].split()[1])

    # ---- log

    def log_size(self) -> int:
        """Bytes of log so far, to read on from."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_text(self, since: int = 0) -> str:
        """The log from a position on."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(since)
            return log.read().decode(errors="replace")

    # ---- SQL

    def connect(
        self, database: str = "postgres", *, user: str = "postgres", autocommit: bool = True
    ) -> psycopg.Connection[Row]:
        """A connection to keep; close it, or use it with ``with``."""
        return psycopg.connect(
            host=str(self.root),
            port=PORT,
            user=user,
            dbname=database,
            autocommit=autocommit,
            connect_timeout=30,
            prepare_threshold=None,  # what runs again and again is as new, and may be a script
        )

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Keep one connection meanwhile, for what this thread runs in ``postgres``.

        For a server that stays up: a connection is most of what a small statement costs. What a
        statement sets, or leaves open when it fails, stays for the next ones, but for a script's.
        """
        if self._kept.connection is not None:
            yield
            return
        with self.connect() as self._kept.connection:
            try:
                yield
            finally:
                self._kept.connection = None

    @contextlib.contextmanager
    def _connection(self, database: str, user: str) -> Iterator[psycopg.Connection[Row]]:
        kept = self._kept.connection
        # One that is dead is no way to a server that has come back.
        if kept is not None and not kept.closed and (database, user) == ("postgres", "postgres"):
            yield kept
            return
        with self.connect(database, user=user) as connection:
            yield connection

    def conninfo(self, database: str = "postgres") -> str:
        """A connection string for a program."""
        return f"host={self.root} port={PORT} user=postgres dbname={database}"

    def sql(
        self,
        statement: str,
        *params: object,
        database: str = "postgres",
        user: str = "postgres",
    ) -> list[Row]:
        """Run one statement, or several without parameters; the rows of the last result."""
        with self._connection(database, user) as connection:
            return _execute(connection, statement, params)

    def script(self, statements: Sequence[str], *, database: str = "postgres") -> None:
        """Run statements one by one in one session, each in its own transaction."""
        with self._connection(database, "postgres") as connection:
            for statement in statements:
                _execute(connection, statement, ())
            if connection is self._kept.connection:  # as a session of its own would end
                _execute(connection, "DISCARD ALL", ())

    def value(self, statement: str, *params: object, database: str = "postgres") -> Any:  # noqa: ANN401
        """The only column of the only row."""
        rows = self.sql(statement, *params, database=database)
        assert len(rows) == 1, rows
        assert len(rows[0]) == 1, rows
        return rows[0][0]

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Poll a condition; a connection that is refused meanwhile counts as not yet.

        Raises:
            NotInTime: it did not come to hold.
        """
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                if condition():
                    return
            if time.monotonic() > deadline:
                text = f"{self.name}: waited {seconds:.0f} s for {what}"
                raise NotInTime(text)
            time.sleep(_POLL_SECONDS * 2)

    # ---- positions

    @property
    def in_recovery(self) -> bool:
        """Whether this is a standby now."""
        return bool(self.value("SELECT pg_is_in_recovery()"))

    def checkpoint(self) -> None:
        """A checkpoint, or on a standby a restartpoint."""
        self.sql("CHECKPOINT")

    def restartpoint(self, primary: Cluster) -> None:
        """Bring a standby to a restartpoint at a new checkpoint of its primary."""
        primary.checkpoint()
        self.catch_up(primary)
        self.checkpoint()
        assert self.redo() == primary.redo()

    def redo(self) -> int:
        """The redo point of the last checkpoint, from pg_control."""
        return lsn.parse(self.value("SELECT redo_lsn::text FROM pg_control_checkpoint()"))

    def position(self) -> int:
        """Where WAL is written to; on a standby, where it is replayed to."""
        query = (
            "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() "
            "ELSE pg_current_wal_insert_lsn() END)::text"
        )
        return lsn.parse(self.value(query))

    def records(self, begin: int, end: int, *, timeline: int = 1) -> str:
        """What pg_waldump tells of a stretch of WAL, a line a record; the server may be down.

        It is given the segments' names: it would take their size from any file of the directory,
        and one that is made in advance is all zeros.
        """
        size = self._constant("Bytes per WAL segment")
        first, last = (
            f"{timeline:08X}{at // size * size >> 32:08X}{at % (1 << 32) // size:08X}"
            for at in (begin, end - 1)
        )
        return self.run(
            "pg_waldump", "-p", self.data / "pg_wal", "-s", lsn.show(begin), "-e", lsn.show(end),
            first, last,
        ).stdout  # fmt: skip

    def flush_wal(self) -> int:
        """Have all WAL so far on disk; returns its end."""
        with self.connected():
            self.sql("SELECT pg_logical_emit_message(true, 'suite', '')")  # its commit flushes
            return lsn.parse(self.value("SELECT pg_current_wal_flush_lsn()::text"))

    def promote(self) -> None:
        """Promote a standby and wait until it writes."""
        assert self.value("SELECT pg_promote(true, 60)")

    def catch_up(self, primary: Cluster) -> None:
        """Wait until this standby replayed all that the primary wrote.

        Before 17.6, 16.10 and their like, a standby at a record that the primary's crash has cut
        waits for as much WAL as the whole record had, which an idle primary never writes.
        """
        target = primary.flush_wal()
        what = f"replay of {lsn.show(target)}"
        try:
            self.wait_for(lambda: self.position() >= target, what, seconds=5)
        except NotInTime:
            primary.sql("SELECT pg_logical_emit_message(true, 'suite', repeat('x', 1 << 19))")
            target = primary.flush_wal()
            self.wait_for(lambda: self.position() >= target, what)

    # ---- ptrack

    def init_lsn(self) -> int:
        """ptrack_init_lsn() as an integer."""
        return lsn.parse(self.value(f"SELECT {self.schema}.ptrack_init_lsn()::text"))

    def pagemapset(self, since: int) -> list[PageMap]:
        """ptrack_get_pagemapset() as rows."""
        query = f"SELECT path, pagecount, pagemap FROM {self.schema}.ptrack_get_pagemapset(%s)"
        with self._connection("postgres", "postgres") as connection:
            cursor = connection.cursor(binary=True)
            cursor.execute(query, (lsn.show(since),))
            return [
                PageMap(path=path, pagecount=count, pagemap=bytes(bits))
                for path, count, bits in cursor
            ]

    def relation_names(self) -> dict[str, str]:
        """Paths of first segments to names, of every database that can be asked."""
        query = (
            "SELECT pg_relation_filepath(oid), oid::regclass::text FROM pg_class "
            "WHERE pg_relation_filepath(oid) IS NOT NULL"
        )
        names: dict[str, str] = {}
        databases = self.sql("SELECT datname FROM pg_database WHERE datallowconn")
        for (database,) in databases:
            with contextlib.suppress(psycopg.Error):
                names.update(
                    (path, f"{database}: {name}")
                    for path, name in self.sql(query, database=database)
                )
        return names

    def path_of(self, relation: str, database: str = "postgres") -> str:
        """Path of a relation's first segment, relative to the data directory."""
        path: str = self.value("SELECT pg_relation_filepath(%s)", relation, database=database)
        return path

    def files(self, *, but: Collection[str] = ()) -> dict[str, bytes]:
        """The relation files as they are on disk: see :class:`files.Reader`."""
        return self._reader.read_all(self.data, but=but)

    def relation_bytes(self, relation: str, database: str = "postgres") -> bytes:
        """The main fork as it is on disk, all segments."""
        return self.file_bytes(self.path_of(relation, database))

    def file_bytes(self, path: str) -> bytes:
        """The same, by the path of the first segment; the server may be down."""
        first = self.data / path
        return first.read_bytes() + b"".join(
            segment.read_bytes()
            for segment in sorted(
                first.parent.glob(f"{first.name}.*"), key=lambda p: int(p.suffix[1:])
            )
        )

    def evict(self) -> None:
        """Push everything out of shared buffers: dirty pages get written, WAL before them.

        Reads the template's table ``filler`` through the buffer pool often enough that the
        clock sweep takes every other page; needs the pool to be as small as ``BASE`` has it.
        """
        self.sql("SELECT sum(pg_prewarm('filler')) FROM generate_series(1, 6)")

    def reported(self, relation: str, since: int, database: str = "postgres") -> set[int]:
        """Blocks of a relation's main fork that are in the set, counted over segments."""
        base = self.path_of(relation, database)
        found: set[int] = set()
        for row in self.pagemapset(since):
            path, _, segment = row.path.partition(".")
            if path == base:
                first = int(segment or 0) * self.segment_blocks
                found.update(first + block for block in row.blocks())
        return found


def _execute(
    connection: psycopg.Connection[Row], statement: str, params: Sequence[object]
) -> list[Row]:
    cursor = connection.execute(statement.encode(), params or None)
    rows: list[Row] = []
    while True:
        rows = cursor.fetchall() if cursor.description is not None else []
        if not cursor.nextset():
            return rows


def _paused(connection: psycopg.Connection[tuple[Any, ...]], pid: int) -> bool:
    """Stop a process of the server if it waits for something to do."""

    def idle() -> bool:  # no table is read: the process may have stopped with a lock on its buffer
        query = "SELECT wait_event_type = 'Activity' FROM pg_stat_get_activity(%s)"
        row = connection.execute(query, [pid]).fetchone()
        return bool(row and row[0])

    if not idle():
        return False
    system.send(pid, signal.SIGSTOP)
    if idle():
        return True
    system.send(pid, signal.SIGCONT)
    return False
