"""The cache: content-addressed results that are either whole or not there.

Layout below root():

    postgresql.git    every source tree, as commits of one bare mirror
    tree/<key>        patched trees
    server/<key>      PostgreSQL as compiled, without the extension
    prefix/<key>      PostgreSQL with the extension: what is tested and used
    pg-NN             the prefix that was asked for last; pg-NN-<variant> those of other variants
    log/, lock/, memo/, ccache/
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ptrack_build.errors import HostError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This directory is a cache: it can be removed at any time and is rebuilt when needed.
"""
TAG_NAME = "CACHEDIR.TAG"
#: What an empty directory may have in it: the first is of a file system, the other is ours.
OF_NOBODY = {"lost+found", TAG_NAME}
#: What `building`, `link` and `write` call what is not finished.
SCRATCH = re.compile(r"\..+\.([a-z0-9_]{8}|[0-9]+)\.part")
STALE_SECONDS = 24 * 3600
KEEP_SECONDS = 14 * 24 * 3600  # a result that nobody used for so long is dropped
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # see renameat2(2)


def root() -> Path:
    """The cache's directory, made if need be.

    PTRACK_CACHE where set; /var/cache/ptrack for root, so that the servers' unprivileged user can
    read it; else the user's cache directory, or one below /var/tmp where that cannot be written.
    """
    return _root(os.environ.get("PTRACK_CACHE", ""), os.geteuid())


def expanded(named: str, setting: str) -> Path:
    """The path that a setting names, with ~ or ~user in front as a shell takes it.

    Raises UsageError where that is nobody's home.
    """
    try:
        return Path(named).expanduser()
    except RuntimeError:
        what = f"{setting} is {named}, and {named.partition('/')[0]} is no home directory here"
        raise UsageError(what, hint=f"set {setting} to the whole path, from / on") from None


def usual() -> bool:
    """Whether root() is where it is without PTRACK_CACHE: not one for a try, soon removed."""
    if not os.environ.get("PTRACK_CACHE"):
        return True
    try:
        return root() == _root("", os.geteuid())
    except HostError:
        return False


@functools.cache
def _root(named: str, uid: int) -> Path:
    if named:
        return _made(expanded(named, "PTRACK_CACHE").absolute())
    if uid == 0:
        return _made(Path("/var/cache/ptrack"))
    import platformdirs

    try:
        return _made(platformdirs.user_cache_path("ptrack"))
    except HostError:
        fallback = _made(Path(f"/var/tmp/ptrack-{uid}"))
        if fallback.stat().st_uid != uid:
            what = f"{fallback} belongs to somebody else"
            raise HostError(what, hint="set PTRACK_CACHE to a directory of yours") from None
        return fallback


def _made(path: Path) -> Path:
    """The directory, made if need be, and then open to all readers.

    One that was there keeps its mode (whether servers can reach it, host.check_reachable says). One
    with something else in it is refused: it is somebody's, and a cache removes what it finds old.
    Refused, too, is a path that make or a shell take apart, for PostgreSQL is compiled below it.
    """
    if odd := sorted(set(re.findall(r"[\s\"#$%&'()*,:;<=>?\[\\\]^`{|}!]", str(path)))):
        what = (
            f"PostgreSQL cannot be compiled below {str(path)!r}: it has {' '.join(map(repr, odd))}"
        )
        raise HostError(what, hint="set PTRACK_CACHE to a path of plain letters and digits")
    try:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            tagged = (path / TAG_NAME).is_file()
            if not tagged and _of_somebody(path):
                what = f"{path} has something in it and is no cache of this build"
                hint = "set PTRACK_CACHE to a directory that is empty, or not there yet"
                raise HostError(what, hint=hint) from None
            if not tagged:
                (path / TAG_NAME).write_text(TAG)
            elif not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None
        else:
            path.chmod(0o755)
            (path / TAG_NAME).write_text(TAG)
    except OSError as error:
        what = f"the cache {path} cannot be written: {error.strerror}"
        hint = "set PTRACK_CACHE to a directory that can, with a few GB free"
        raise HostError(what, hint=hint) from error
    return path


def _of_somebody(path: Path) -> bool:
    """Whether a directory without a tag has in it what is not a cache's.

    A run that began with this one writes its tag before anything else; so the tag is looked for
    after what is there.
    """
    names = {each.name for each in path.iterdir()}
    return bool(names - OF_NOBODY) and not (path / TAG_NAME).is_file()


def directory(*names: str) -> Path:
    """A directory below root(), made if need be, open to all readers."""
    path = root()
    for name in names:
        path = path / name
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
    return path


def private_parents(path: Path) -> list[Path]:
    """The directories above path that keep other users out (no x for others)."""
    return [p for p in path.absolute().parents if not p.stat().st_mode & stat.S_IXOTH]


@contextlib.contextmanager
def lock(name: str, doing: str = "") -> Iterator[None]:
    """Wait for, then keep, the lock of that name; says once for whom it waits.

    doing: what its holder does, in words that follow "another run that"; else it builds the name.

    The lock ends with the process that holds it, however that ends.
    """
    path = directory("lock") / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.lock"
    with locked(path, doing or f"builds {name}"):
        yield


@contextlib.contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """The same with a file of the caller's, for what runs with different caches have in common."""
    import filelock

    handle = filelock.FileLock(path)
    try:
        handle.acquire(timeout=0)
    except filelock.Timeout:
        print(f"waiting for another run that {doing}", flush=True)
        handle.acquire()
    try:
        yield
    finally:
        handle.release()


@contextlib.contextmanager
def building(final: Path, mark: str = "") -> Iterator[Path]:
    """Yield an empty scratch directory beside final, which becomes final by one rename.

    Whatever ends the block early removes it. Scratch left by a killed run is removed a day later.
    Where final is there already at the end, it stays and the scratch is dropped; but where it lacks
    the file mark, it is what is left of one, and is replaced.
    """
    parent = final.parent
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        try:
            scratch.rename(final)
        except OSError:
            if not final.is_dir():
                raise
            if (final / mark).exists():
                remove(scratch)
            else:
                discard(final)
                scratch.rename(final)
    except BaseException:
        remove(scratch)
        raise


def discard(final: Path) -> None:
    """Remove what `building` made: first its name, so that what a killed run leaves is scratch."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent))
    try:
        final.rename(scratch)
    finally:
        remove(scratch)


def exchange(one: Path, two: Path) -> bool:
    """Let two paths trade places, in one step; False where nothing was done.

    Not every file system can (NFS cannot), nor every C library.
    """
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    names = os.fsencode(one), os.fsencode(two)
    status: int = rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return status == 0


def remove(path: Path) -> None:
    """Remove a tree, read-only directories included; what is not there is fine.

    In place, and so not for what another run may take for finished: see discard.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for folder, _dirs, _files in os.walk(path):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o755)
    shutil.rmtree(path, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove what runs that were killed long ago left of their scratch in a directory."""
    limit = time.time() - STALE_SECONDS
    for leftover in parent.glob(".*.part"):
        with contextlib.suppress(OSError):
            if SCRATCH.fullmatch(leftover.name) and leftover.lstat().st_mtime < limit:
                remove(leftover)


def link(name: str, target: Path) -> Path:
    """Point the symbolic link <root>/name at target, in one step."""
    path = root() / name
    temporary = path.with_name(f".{name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, path.parent))
    temporary.replace(path)
    return path


def write(path: Path, text: str) -> None:
    """Replace a file's text in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def digest(*parts: str | bytes | Path) -> str:
    """SHA-256 over the parts, in order, as hex.

    A path stands for the contents of its file, or for the sorted tree of names, modes (executable
    or not) and contents of its directory.
    """
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            _add(total, b"s", part.encode())
        elif isinstance(part, bytes):
            _add(total, b"b", part)
        elif part.is_dir():
            for file in sorted(p for p in part.rglob("*") if p.is_file() or p.is_symlink()):
                _add(total, b"n", file.relative_to(part).as_posix().encode())
                if file.is_symlink():
                    _add(total, b"l", bytes(file.readlink()))
                else:
                    _add(total, b"x" if file.stat().st_mode & 0o100 else b"f", file.read_bytes())
            _add(total, b"d", b"")
        else:
            _add(total, b"f", part.read_bytes())
    return total.hexdigest()


def _add(total: hashlib._Hash, kind: bytes, data: bytes) -> None:
    total.update(kind + str(len(data)).encode() + b":" + data)
