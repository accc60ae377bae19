"""Commands: one function that shows, logs, and never leaves children behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, Self, TypedDict

from ptrack_build.errors import TAIL_LINES, CommandFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

GRACE_SECONDS = 3.0
#: How long a program may take to stop its servers after ctrl-C, in seconds.
PATIENCE = 30.0

#: What threads of `beside` run, by thread.
_thread = threading.local()


class Listener:
    """Takes a command's output line by line: shows, logs and keeps what was asked for."""

    def __init__(self, log: Path | None, on_line: Callable[[str], None] | None) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.out: list[str] = []
        self._log = log
        self._file: IO[str] | None = None
        self._on_line = on_line

    def __enter__(self) -> Self:
        if self._log is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._log.open("a", encoding="utf-8", errors="replace")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def command(self, words: Sequence[str]) -> None:
        """Write into the log what is run."""
        if self._file is not None:
            self._file.write(f"+ {shlex.join(words)}\n")
            self._file.flush()

    def line(self, line: str, *, keep: bool) -> None:
        """Take one line, its end included."""
        self.tail.append(line.rstrip("\n"))
        if keep:
            self.out.append(line)
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk: the command will tell
                self._file.write(line)
                self._file.flush()
        if self._on_line is not None:
            self._on_line(line.rstrip("\n"))


class Account(Protocol):
    """Whom a command runs as."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A command that ended; stdout is empty unless it was captured."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str


class How(TypedDict, total=False):
    """How a command is run wherever it is run, here or in a container: see call."""

    cwd: Path | None
    env: Mapping[str, str] | None
    log: Path | None
    capture: bool
    check: bool
    quiet: bool
    user: Account | None
    on_line: Callable[[str], None] | None


def call(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    inherit: bool = True,
    log: Path | None = None,
    capture: bool = False,
    check: bool = True,
    stdin: str | None = None,
    timeout: float | None = None,
    patience: float = 0.0,
    quiet: bool = False,
    user: Account | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run a command and wait for it.

    env is added to os.environ, or without inherit is all there is. With log, both streams are
    appended to that file; with capture, stdout is returned (and stderr with it where there is a
    log); else they are inherited. stdin is the text to feed, otherwise the command has none.
    timeout is in seconds. user is whom to run as (root only). on_line is called with every line of
    output as it comes.

    The command leads its own session, so a ctrl-C reaches it once, from here: whatever ends this
    call early kills all of its process group. With patience the command alone is asked before, by
    SIGINT, and has so many seconds to end by itself: for what must not be left half-done.

    Raises CommandFailed with the last lines of output when the status is not 0 and check is set,
    and (whatever check says) when the command cannot be started or exceeds the timeout.
    """
    words = tuple(os.fspath(word) for word in argv)
    if not quiet:
        print(f"+ {shlex.join(words)}", flush=True)
    environment = {**(os.environ if inherit else {}), **(env or {})}
    program = shutil.which(words[0], path=environment.get("PATH", os.defpath))
    if program is None:
        raise CommandFailed(
            words, 127, log=log, tail=f"{words[0]}: not found", hint=f"install {words[0]}"
        )

    piped = capture or log is not None or on_line is not None
    account: dict[str, Any] = {}
    if user is not None and os.geteuid() == 0:
        account = {"user": user.uid, "group": user.gid, "extra_groups": []}
    with Listener(log, on_line) as listener:
        listener.command(words)
        separate = capture and log is None
        held = Held()
        try:
            process = subprocess.Popen(
                (program, *words[1:]),
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE if piped else None,
                stderr=(subprocess.PIPE if separate else subprocess.STDOUT) if piped else None,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                **account,
            )
        except OSError as error:
            held.release()
            raise CommandFailed(words, 127, log=log, tail=str(error)) from error

        def drain(stream: IO[str], *, keep: bool) -> None:
            with stream:
                for line in stream:
                    listener.line(line, keep=keep)

        def feed(stream: IO[str], text: str) -> None:
            with contextlib.suppress(BrokenPipeError), stream:
                stream.write(text)

        readers: list[threading.Thread] = []
        if process.stdout is not None:
            readers.append(
                threading.Thread(target=drain, args=(process.stdout,), kwargs={"keep": capture})
            )
        if process.stderr is not None:
            readers.append(
                threading.Thread(target=drain, args=(process.stderr,), kwargs={"keep": False})
            )
        if process.stdin is not None and stdin is not None:
            readers.append(threading.Thread(target=feed, args=(process.stdin, stdin)))
        others: _Others | None = getattr(_thread, "others", None)
        try:
            for reader in readers:
                reader.daemon = True
                reader.start()
            held.release()
            with others.counting(process, patience) if others else contextlib.nullcontext():
                returncode = process.wait(timeout)
            for reader in readers:
                reader.join()
        except subprocess.TimeoutExpired as error:
            _kill(process, patience)
            _join(readers)
            raise CommandFailed(
                words, -signal.SIGKILL, log=log, tail=f"killed after {timeout:g} s"
            ) from error
        except BaseException:
            _kill(process, patience)
            _join(readers)
            raise
    if returncode != 0 and check:
        raise CommandFailed(words, returncode, log=log, tail="\n".join(listener.tail))
    return Completed(argv=words, returncode=returncode, stdout="".join(listener.out))


class _Others:
    """The commands that run in other threads, to be ended from the main one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[str], float] = {}
        self._over = False

    @contextlib.contextmanager
    def counting(self, process: subprocess.Popen[str], patience: float) -> Iterator[None]:
        """Let this process be ended as well, at once where that has come already."""
        with self._lock:
            self._running[process] = patience
            over = self._over
        try:
            if over:
                _kill(process, patience)
            yield
        finally:
            with self._lock:
                self._running.pop(process, None)

    def end(self) -> None:
        """End what runs, and whatever starts from now on."""
        with self._lock:
            self._over = True
            running = list(self._running.items())
        for process, patience in running:
            _kill(process, patience)


@contextlib.contextmanager
def beside(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that run commands beside each other; what ends the block early ends these as well.

    An interrupt reaches the main thread alone: without this it would wait for the others.
    """
    others = _Others()
    pool = ThreadPoolExecutor(workers, initializer=lambda: setattr(_thread, "others", others))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        others.end()
        raise
    finally:
        pool.shutdown()


class Held:
    """Keeps ctrl-C, SIGTERM and SIGHUP back, as between a child's start and our knowing of it."""

    def __init__(self) -> None:
        self._caught: list[int] = []
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if callable(before := signal.getsignal(number)):
                    self._before[number] = before
                    signal.signal(number, lambda caught, _frame: self._caught.append(caught))

    def release(self) -> None:
        """Let them through again, first of all those that came meanwhile."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()
        while self._caught:
            signal.raise_signal(self._caught.pop())


def _kill(process: subprocess.Popen[str], patience: float = 0.0) -> None:
    """End the process group: asked first, then forced. With patience, its leader is asked first.

    Who interrupts that once more forces it.
    """
    try:
        if patience:
            process.send_signal(signal.SIGINT)
            if not _ends(process, min(patience, GRACE_SECONDS)):
                words = process.args
                program = words[0] if isinstance(words, tuple) else words
                with contextlib.suppress(OSError):
                    print(f"waiting for {Path(str(program)).name} to end by itself", flush=True)
                _ends(process, patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        _ends(process, GRACE_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ends(process: subprocess.Popen[str], seconds: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


def _join(readers: list[threading.Thread]) -> None:
    """Let what was still in the pipes be read; a grandchild that left the group may keep one."""
    for reader in readers:
        reader.join(GRACE_SECONDS)


@contextlib.contextmanager
def deaf_to_hangup() -> Iterator[None]:
    """What is started meanwhile ignores SIGHUP: who started it ends it, in its own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL if before is None else before)


def terminate_politely() -> None:
    """Let SIGTERM unwind like ctrl-C does, so that what runs is ended and scratch is removed.

    SIGHUP as well, which comes when the terminal is closed, unless it is ignored (nohup).
    """

    terminals = [number for number in (1, 2) if os.isatty(number)]  # once closed, none is one

    def handler(signum: int, _frame: object) -> None:
        if signum == signal.SIGHUP and terminals:
            # what is still said on the way out must not end the clean-up
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for number in terminals:
                os.dup2(nowhere, number)
        sys.exit(128 + signum)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, handler)
