"""What the sessions of noxfile.py share: options, settings, how they end, what is shown."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import functools
import importlib
import itertools
import logging
import os
import re
import select
import signal
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import nox

from ptrack_build.errors import PtrackError, UsageError
from ptrack_build.run import PATIENCE, terminate_politely

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from types import TracebackType

    from ptrack_build.matrix import Matrix
    from ptrack_build.package.making import Wanted

#: All sessions with their tags, in the order in which nox lists them.
REGISTERED: dict[str, tuple[str, ...]] = {}


def all_tags() -> list[str]:
    """The tags of all sessions, those of majors last."""
    tags = dict.fromkeys(tag for each in REGISTERED.values() for tag in each)
    return sorted(tags, key=lambda tag: tag.startswith("pg"))


def worth_telling(record: logging.LogRecord) -> bool:
    """Drop what does not matter here, and give a mistyped session's name or tag a next step."""
    if record.name.partition(".")[0] != "nox":  # which shows whatever any library logs
        return record.levelno >= logging.WARNING
    if str(record.msg).startswith("Sessions not found"):
        record.msg = f"{record.msg}\nnext: ./nox -l lists the sessions"
    if str(record.msg).startswith("Tag selection caused no sessions"):
        record.msg = f"{record.msg}\nnext: take one of {', '.join(all_tags())}"
    # No session has an environment of nox's, so that there is no uv is nothing to tell.
    return "uv binary" not in str(record.msg)


def filter_log() -> None:
    """Have all that is shown of the log pass worth_telling()."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(worth_telling)


def check_majors(words: Sequence[str], families: Collection[str], matrix: Matrix) -> None:
    """Look for sessions of a major that there is not among nox's own arguments.

    Raises UsageError with the majors that there are: nox names no neighbours of a session that
    does not exist. What stands after -- is the session's.
    """
    for word in itertools.takewhile(lambda word: word != "--", words):
        asked = re.fullmatch(rf"({'|'.join(families)})-([\w.]+)", word)
        if asked and word != "bench-build":
            matrix.major(asked[2])


class Options(argparse.ArgumentParser):
    """What stands after `--`; a mistake there is an error like any other."""

    def __init__(self, session: nox.Session) -> None:
        super().__init__(prog=f"./nox -s {session.name} --", add_help=True, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show tracebacks")
        self.session = session

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise what is reported without a traceback."""
        raise UsageError(message, hint=f"./nox -s {self.session.name} -- --help")

    def path(self, word: str) -> Path:
        """The type of an option that is a path: a relative one is so to where nox was called."""
        return Path(self.session.invoked_from) / word

    def read(self) -> argparse.Namespace:
        """All words must be known."""
        return self.parse_args(self.session.posargs)

    def read_some(self) -> tuple[argparse.Namespace, list[str]]:
        """Unknown words are somebody else's."""
        return self.parse_known_args(self.session.posargs)


def minutes(text: str) -> float:
    """A length of time as the options take it."""
    number = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0
    if number <= 0:
        what = f"{text!r} is no number of minutes above 0"
        raise argparse.ArgumentTypeError(what)
    return number


def day(text: str) -> date:
    """A day as the options take it: 2028-01-31."""
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        what = f"{text!r} is no day: they are written 2028-01-31"
        raise argparse.ArgumentTypeError(what) from error


#: Settings that may be a path; one that is relative is so to where nox was called from.
PLACES = (
    "PTRACK_CACHE", "PTRACK_SOURCE", "PTRACK_PG_GIT", "PTRACK_SIGNING_KEY", "PTRACK_TEST_DIR",
    "PTRACK_VENV",
)  # fmt: skip


def from_where_nox_was_called(session: nox.Session) -> None:
    """Make relative paths in settings absolute: a session runs in the checkout."""
    from ptrack_build import source

    def placed(name: str, word: str) -> str:
        if name == "PTRACK_SOURCE" and source.is_provider(word.partition(":")[0]):
            return word
        path = Path(session.invoked_from) / word
        # the others may be an address or a fingerprint
        sure = name in {"PTRACK_CACHE", "PTRACK_TEST_DIR", "PTRACK_VENV"}
        return str(path) if not word.startswith(("/", "~")) and (sure or path.exists()) else word

    for name in PLACES:
        if value := os.environ.get(name):
            # repositories to be asked in turn
            words = value.split() if name == "PTRACK_PG_GIT" else [value]
            os.environ[name] = " ".join(placed(name, word) for word in words)


def stopped(session: nox.Session, message: str) -> NoReturn:
    """End a session with a message, whose last line is the next step and may be pasted.

    It is not nox's reason for the end: behind that nox writes a full stop, and how long it took.
    """
    logging.getLogger("nox").error("%s", message)
    session.error()


def nobody_reads() -> bool:
    """Whether who read our output has gone, as `head` has when it has enough."""
    output = select.poll()
    output.register(1, 0)
    return any(events & select.POLLERR for _, events in output.poll(0))


def end_together() -> None:
    """Have SIGTERM and SIGHUP end nox with the sessions that it runs at the same time (-j).

    Each is a process that no signal to nox's group reaches. Nox ends them where it is interrupted,
    and not otherwise; they get the time that they may take to stop their servers.
    """

    def interrupted(_signum: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, interrupted)
    with contextlib.suppress(ImportError):  # it is nox's own affair
        parallel = importlib.import_module("nox._parallel")
        vars(parallel)["_TERMINATE_TIMEOUT"] = 1.5 * PATIENCE  # asked twice, then killed


def discard_output() -> None:
    """Send nowhere what is still to be flushed to standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def leave_quietly() -> None:
    """End without a traceback where nobody reads what nox itself prints, as its listing.

    The status is 141, as of a session, or 0 where all had been printed before that was noticed.
    """
    show = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            discard_output()
            sys.exit(128 + signal.SIGPIPE)  # which Python heeds here, too
        show(kind, error, trace)

    def flush() -> None:
        """What is short meets the closed pipe only here, where no hook is asked."""
        try:
            print(end="", flush=True)
        except OSError as error:
            if isinstance(error, BrokenPipeError):  # the others Python tells, which tries again
                discard_output()

    sys.excepthook = hook
    atexit.register(flush)


def reported(function: Callable[[nox.Session], None]) -> Callable[[nox.Session], None]:
    """Turn what went wrong into one message; --debug and PTRACK_DEBUG=1 show where."""

    @functools.wraps(function)
    def wrapper(session: nox.Session) -> None:
        terminate_politely()
        from_where_nox_was_called(session)
        debug = "--debug" in session.posargs or os.environ.get("PTRACK_DEBUG", "") not in {"", "0"}
        try:
            function(session)
        except PtrackError as error:
            if debug:
                raise
            stopped(session, str(error))
        except OSError as error:
            if isinstance(error, BrokenPipeError) and nobody_reads():
                discard_output()
                sys.exit(128 + signal.SIGPIPE)
            if debug:
                raise
            hint = "-- --debug shows where"
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                hint = "free some space, or set PTRACK_CACHE to where there is more"
            if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                hint = "see whose it is, or set PTRACK_CACHE to a directory of your own"
            stopped(session, f"{error}\nnext: {hint}")

    return wrapper


def session(
    name: str, *tags: str
) -> Callable[[Callable[[nox.Session], None]], Callable[[nox.Session], None]]:
    """Register a session that runs in nox's own Python and may run beside others."""

    def register(function: Callable[[nox.Session], None]) -> Callable[[nox.Session], None]:
        guarded = reported(function)
        registered = nox.session(
            name=name, python=False, tags=list(tags), default=False, allow_parallel=True
        )
        registered(guarded)
        REGISTERED[name] = tags
        return guarded

    return register


def packages_options(session: nox.Session, features: Collection[str]) -> Options:
    """What all sessions take that make packages. features: what they can do without."""
    from ptrack_build.package.making import JIT

    options = Options(session)
    options.add_argument("--locked", action="store_true", help="what matrix.lock records")
    what = "leave it out of the server"
    options.add_argument(
        "--without", action="append", default=[], choices=sorted(features), help=what
    )
    what = f"the same as --without {JIT}"
    options.add_argument("--no-jit", dest="without", action="append_const", const=JIT, help=what)
    return options


def packages_wanted(session: nox.Session, features: Collection[str]) -> Wanted:
    """What is asked of a session whose packages are published, here or in a container."""
    from ptrack_build.package.making import Wanted

    options = packages_options(session, features)
    what = "in a container of it: debian:trixie, fedora:43"
    options.add_argument("--image", default="", help=what)
    what = "end well where there is no such image, or in it not what packages are built with"
    options.add_argument("--may-skip", action="store_true", help=what)
    given = options.read()
    if given.may_skip and not given.image:
        options.error("--may-skip is about an image: it goes with --image")
    without = tuple(sorted(set(given.without)))
    return Wanted(locked=given.locked, without=without, image=given.image, may_skip=given.may_skip)
