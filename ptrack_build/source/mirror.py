"""The bare mirror: every source tree, from whichever provider, is a commit of one git repository.

Protocol: whoever fetches into the mirror holds the lock "postgresql.git", since a shallow fetch
changes what the whole repository knows of its depth. An import of files happens in a repository of
its own, whose finished pack is moved here, and holds a lock of its ref. Readers need none: objects
are there before the ref that names them. A fetch that was killed leaves at most temporary packs and
git's own lock files, which the next one removes: shallow.lock at once, for who holds our lock owns
it; those of refs, which are held for milliseconds, when they are a few seconds old. What is fetched
stays one pack, however small, which git puts in its place when all of it is there: unpacked, the
commit would come first, and its files perhaps not. Whether a commit has all of its files is asked
all the same before it is taken, and refs to those that have not are dropped before a fetch: git
takes what a ref names for whole, and would not ask for the rest.

Depth: branches are fetched with the newest commit only (`--depth 1`, with all of its blobs). The
whole history would be 20 times as much and serves one thing: a 3-way apply needs the blobs that a
diff was rendered against. Where those are in none of the trees at hand, and a hunk does not fit as
it is, the patch is rendered anew from its templates.

Trees that come from tarballs get a commit whose id depends on the contents alone (fixed author
and date), and a ref refs/ptrack/sha256/<digest of the tarball>, so that none is unpacked twice.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from ptrack_build import cache
from ptrack_build.errors import BadSource, CommandFailed, HostError
from ptrack_build.run import Completed, call
from ptrack_build.source.base import check_damage, check_free, check_space

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LOCK = "postgresql.git"
#: Author and date of the commits made from tarballs and directories: 2000-01-01, UTC.
WHEN = 946684800
WHO = f"ptrack <ptrack@localhost> {WHEN} +0000"
TEMPORARY_SECONDS = 3600.0
LOCK_SECONDS = 5.0

# What is read from a tree to know it, all at once.
VERSION_FILES = ("configure.ac", "configure.in", "configure")
PATCHED_FILES = ("src/include/storage/changetrack.h", "src/backend/storage/smgr/md.c")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file of a tree: mode is 0o100644, 0o100755, or 0o120000 for a link whose target is data."""

    path: str
    mode: int
    data: bytes


@functools.cache
def git_program() -> str:
    """Where git is. Raises HostError."""
    found = shutil.which("git")
    if found is None:
        what = "git is not installed"
        raise HostError(what, hint="apt-get install git, or dnf install git")
    return found


def environment(*, config: Path | None = None) -> dict[str, str]:
    """What git is run with: nothing of a surrounding hook, no prompts, English."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith(("GIT_SSL", "GIT_SSH", "GIT_TRACE"))
    }
    return env | settings(config=config)


#: Without anybody to ask, and with an end where the other side falls silent.
_SSH = "ssh -oBatchMode=yes -oConnectTimeout=5 -oServerAliveInterval=10 -oServerAliveCountMax=3"


def settings(*, config: Path | None = None) -> dict[str, str]:
    """The variables that every git command here gets."""
    ssh = os.environ.get("GIT_SSH_COMMAND", _SSH)
    return {
        "GIT_CONFIG_GLOBAL": str(config or global_config()),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "GIT_SSH_COMMAND": ssh,
        "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
        "GIT_HTTP_LOW_SPEED_TIME": "20",
        "GIT_OPTIONAL_LOCKS": "0",
        "LC_ALL": "C.UTF-8",
    }


def global_config() -> Path:
    """A git configuration that includes the user's and adds what an unattended run needs.

    It lets git read repositories of other users (the mirror in a shared cache, a repository that
    was named by the caller), which cannot be said on the command line: git ignores it there for
    the process that serves a local fetch.
    """
    path = cache.directory("source") / f"gitconfig-{os.geteuid()}"
    home = Path(os.environ.get("HOME", "/nonexistent"))
    xdg = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    own = os.environ.get("GIT_CONFIG_GLOBAL")
    included = [own] if own else [str(xdg / "git/config"), str(home / ".gitconfig")]
    lines = [f'[include]\n\tpath = "{name}"' for name in included if name != str(path)]
    lines += [
        "[safe]\n\tdirectory = *",
        "[credential]\n\thelper =",
        "[core]\n\thooksPath = /dev/null\n\tfsmonitor = false",
        "[gc]\n\tauto = 0",
        "[fetch]\n\tunpackLimit = 1\n[transfer]\n\tunpackLimit = 1",
        # a repository on this machine packs for the mirror: new deltas are not worth the time
        "[pack]\n\twindow = 0\n\tcompression = 1",
        "[maintenance]\n\tauto = false",
        "[advice]\n\tdetachedHead = false",
    ]
    text = "\n".join(lines) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        cache.write(path, text)
    return path


def git(
    *arguments: str, cwd: Path | None = None, stdin: bytes | None = None, check: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """Run a quick git command that touches no network. Raises CommandFailed."""
    argv = [git_program(), *arguments]
    done = subprocess.run(
        argv, cwd=cwd, env=environment(), input=stdin, capture_output=True, check=False
    )
    if check and done.returncode != 0:
        raise CommandFailed(
            ["git", *arguments],
            done.returncode,
            tail=done.stderr.decode(errors="replace").strip(),
        )
    return done


def git_remote(*arguments: str, log: Path | None = None, timeout: float | None = None) -> Completed:
    """Run a git command that may wait for another machine; ctrl-C ends it and its children."""
    return call(
        ["git", *arguments], env=settings(), log=log, capture=True, timeout=timeout, quiet=True
    )


@dataclass(frozen=True)
class Mirror:
    """The bare repository at path; made by open_mirror()."""

    path: Path

    def git(
        self, *arguments: str, stdin: bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run git in the mirror. Raises CommandFailed, and HostError for a damaged mirror."""
        try:
            return git(f"--git-dir={self.path}", *arguments, stdin=stdin, check=check)
        except CommandFailed as error:
            check_damage(error.tail, self.path)
            raise

    def take(self, repository: str, refspec: str, *options: str, log: Path | None = None) -> None:
        """Fetch one commit without its history. Caller is writing(); raises CommandFailed."""
        git_remote(
            f"--git-dir={self.path}",
            *("fetch", "--no-tags", "--no-write-fetch-head", "--depth=1", *options),
            *("--", repository, refspec),
            log=log,
        )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock and put right what a killed writer may have left."""
        with cache.lock(LOCK, "fetches sources"):
            self._sweep()
            self._drop_halves()
            yield

    def _sweep(self) -> None:
        (self.path / "shallow.lock").unlink(missing_ok=True)
        objects = self.path / "objects"
        for seconds, leftovers in (
            (LOCK_SECONDS, (*self.path.glob("*.lock"), *(self.path / "refs").rglob("*.lock"))),
            (TEMPORARY_SECONDS, (*objects.glob("pack/*tmp_*"), *objects.glob("??/tmp_obj_*"))),
        ):
            for path in leftovers:
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < time.time() - seconds:
                        path.unlink()

    def _drop_halves(self) -> None:
        """Drop the refs to commits of which something is missing."""
        if self.git("rev-list", "--objects", "--quiet", "--all", check=False).returncode == 0:
            return
        for ref in self.git("for-each-ref", "--format=%(refname)").stdout.decode().split():
            if not self.whole(ref):
                self.git("update-ref", "-d", ref)

    def commit(self, name: str) -> str:
        """The id of the commit a ref or an id stands for, or "" when that is not here.

        Its files may not be: see whole().
        """
        done = self.git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", check=False)
        return done.stdout.decode().strip()

    def whole(self, name: str) -> str:
        """The id of the commit, or "" when it, or any of its files, is not here."""
        commit = self.commit(name)
        walk = ("rev-list", "--objects", "--quiet", "--no-walk")
        if not commit or self.git(*walk, commit, check=False).returncode != 0:
            return ""
        return commit

    def tree(self, commit: str) -> str:
        """The id of a commit's tree."""
        return self.git("rev-parse", "--verify", f"{commit}^{{tree}}").stdout.decode().strip()

    def has(self, objects: Iterable[str]) -> bool:
        """Whether all of these objects (ids, possibly abbreviated, or names) are here."""
        lines = "\n".join(objects).encode()
        done = self.git("cat-file", "--batch-check=%(objecttype)", stdin=lines + b"\n")
        return all(
            not line.endswith((b" missing", b" ambiguous")) for line in done.stdout.splitlines()
        )

    def read(self, commit: str, path: str) -> bytes | None:
        """The contents of a file of a commit, or None when it has none of that name."""
        return self.read_all(commit, [path])[0]

    def read_all(self, commit: str, paths: Iterable[str]) -> list[bytes | None]:
        """Several files of a commit at once, in the order asked for."""
        names = [f"{commit}:{path}" for path in paths]
        out = self.git("cat-file", "--batch", stdin="\n".join(names).encode() + b"\n").stdout
        found: list[bytes | None] = []
        for _ in names:
            header, _, out = out.partition(b"\n")
            if header.endswith((b" missing", b" ambiguous")):
                found.append(None)
                continue
            size = int(header.rsplit(b" ", 1)[1])
            found.append(out[:size] if b" blob " in header else None)
            out = out[size + 1 :]
        return found

    def set_ref(self, ref: str, commit: str) -> None:
        """Let a ref name a commit, so that it stays."""
        if self.commit(ref) != commit:
            self.git("-c", "core.filesRefLockTimeout=10000", "update-ref", ref, commit)

    def version(self, commit: str, where: str) -> str:
        """The version that configure of a commit says.

        Raises BadSource when it is no PostgreSQL tree, or one that is patched already.
        """
        files = self.read_all(commit, (*VERSION_FILES, *PATCHED_FILES))
        header, md = files[len(VERSION_FILES) :]
        refuse_patched(where, header=header is not None, md=md or b"")
        return find_version(files[: len(VERSION_FILES)], where)

    def store(self, ref: str, entries: Iterable[Entry], message: str) -> str:
        """Make a commit of these files and let ref name it; the commit's id.

        It depends on the files and the message alone. Nothing is named before all is there.
        """
        with cache.lock(f"import-{cache.digest(ref)[:16]}", "unpacks the same source"):
            if before := self.whole(ref):
                return before
            with self._annex() as annex:
                self._import(annex, entries, message)
                commit = annex.commit(ref_there := "refs/heads/import")
                annex.git("update-ref", "-d", ref_there)
                for suffix in (".pack", ".idx"):  # a pack counts once its index is there
                    for path in (annex.path / "objects/pack").glob(f"*{suffix}"):
                        path.rename(self.path / "objects/pack" / path.name)
            self.set_ref(ref, commit)
            return commit

    @contextlib.contextmanager
    def _annex(self) -> Iterator[Mirror]:
        """A repository that borrows the mirror's objects; with it goes all that it was given."""
        place = cache.directory("source", "import")
        _sweep_old(place)
        with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as scratch:
            path = Path(scratch, "annex.git")
            git("init", "--quiet", "--bare", "--initial-branch=none", "--template=", str(path))
            (path / "objects/info").mkdir(exist_ok=True)
            (path / "objects/info/alternates").write_text(f"{self.path / 'objects'}\n")
            yield Mirror(path)

    @staticmethod
    def _import(annex: Mirror, entries: Iterable[Entry], message: str) -> None:
        # neither deltas nor thorough compression: a third of the time for a fifth more space
        settings = ("-c", "core.compression=1", "-c", "fastimport.unpackLimit=0")
        argv = [git_program(), f"--git-dir={annex.path}", *settings]
        argv += ["fast-import", "--quiet", "--done", "--depth=0"]
        process = subprocess.Popen(
            argv,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                _feed(process.stdin, "refs/heads/import", entries, message)
                process.stdin.close()
            complaint = process.stderr.read().decode(errors="replace").strip()
            status = process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            process.stderr.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if status != 0:
            check_space(complaint)
            raise CommandFailed(argv, status, tail=complaint)


def _sweep_old(place: Path) -> None:
    """Remove what killed imports left."""
    for path in place.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - 24 * TEMPORARY_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _feed(stream: IO[bytes], ref: str, entries: Iterable[Entry], message: str) -> None:
    text = message.encode()
    stream.write(b"feature done\ncommit " + ref.encode() + b"\n")
    stream.write(b"author " + WHO.encode() + b"\ncommitter " + WHO.encode() + b"\n")
    stream.write(b"data %d\n%s\n" % (len(text), text))
    for entry in entries:
        name = quoted(checked_name(entry.path))
        stream.write(b"M %o inline %s\ndata %d\n" % (entry.mode, name, len(entry.data)))
        stream.write(entry.data)
        stream.write(b"\n")
    stream.write(b"\ndone\n")
    stream.flush()


def checked_name(name: str) -> str:
    """The name of a tree's file, normalised. Raises BadSource if it leads anywhere else."""
    path = PurePosixPath(name)
    parts = path.parts
    evil = any(part == ".." or part.lower() == ".git" for part in parts)
    if path.is_absolute() or not parts or evil or "\0" in name:
        what = f"a source tree must not have a file named {name!r}"
        raise BadSource(what, hint="take the tarball from another place")
    return path.as_posix()


def checked_link(name: str, target: str) -> bytes:
    """The target of a symbolic link. Raises BadSource if it leads out of the tree."""
    depth = len(PurePosixPath(name).parts) - 1
    for part in PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        if part == "/" or depth < 0:
            what = f"the link {name!r} of a source tree leads out of it, to {target!r}"
            raise BadSource(what, hint="take the source from another place")
    return target.encode()


def quoted(name: str) -> bytes:
    """A path as fast-import reads it."""
    raw = os.fsencode(name)
    escaped = raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    return b'"' + escaped + b'"'


def find_version(files: Iterable[bytes | None], where: str) -> str:
    """The version in the text of configure.ac, configure.in or configure. Raises BadSource."""
    import re

    for text in files:
        if text is None:
            continue
        found = re.search(
            rb"AC_INIT\(\[PostgreSQL\],\s*\[([^\]]+)\]|^PACKAGE_VERSION='([^']+)'",
            text[:200_000],
            re.MULTILINE,
        )
        if found:
            return (found[1] or found[2]).decode(errors="replace")
    what = f"{where} is no PostgreSQL source tree: no version in configure"
    raise BadSource(what, hint="give the top directory or the tarball of a PostgreSQL release")


def refuse_patched(where: str, *, header: bool, md: bytes) -> None:
    """Raise BadSource for a tree that has hooks of this or an earlier ptrack."""
    if header or b"mdwrite_hook" in md or b"changetrack" in md:
        what = f"{where} has the core patch of ptrack already"
        raise BadSource(what, hint="give an unpatched tree: the build applies the patch itself")


def open_mirror() -> Mirror:
    """The mirror of the cache, made if need be."""
    path = cache.root() / "postgresql.git"
    if not (path / "HEAD").is_file():
        check_free()
        with cache.building(path) as scratch:
            git("init", "--quiet", "--bare", "--initial-branch=none", "--template=", str(scratch))
            (scratch / "info").mkdir(exist_ok=True)
            (scratch / "info/attributes").write_text(
                "# Trees leave the mirror byte for byte.\n"
                "* -export-ignore -export-subst -text -eol -ident -filter -working-tree-encoding\n"
            )
    return Mirror(path)


def export(mirror: Path, commit: str, dest: Path) -> None:
    """Write a commit's files into dest, an existing directory; all get the commit's time.

    Equal times keep make from regenerating what a release tarball brings generated.
    """
    program = shutil.which("tar")
    if program is None:
        what = "tar is not installed"
        raise HostError(what, hint="apt-get install tar, or dnf install tar")
    argv = [git_program(), f"--git-dir={mirror}", "-c", "tar.umask=022", "archive", commit]
    with subprocess.Popen(
        argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as archive:
        unpack = [program, "-x", "-C", str(dest), "--no-same-owner", "-f", "-"]
        done = subprocess.run(unpack, stdin=archive.stdout, capture_output=True, check=False)
        assert archive.stdout is not None
        assert archive.stderr is not None
        archive.stdout.close()  # git ends when nobody reads
        complaint = archive.stderr.read().decode(errors="replace")
    said = done.stderr.decode(errors="replace")
    check_space(f"{said}\n{complaint}", dest)
    check_damage(complaint, mirror)
    ended = [(argv, archive.returncode, complaint), (unpack, done.returncode, said)]
    # what git could not give tar misses; but a tar that ends early ends git, which says nothing
    ended.sort(key=lambda each: each[1] == -signal.SIGPIPE)
    for command, status, text in ended:
        if status != 0:
            raise CommandFailed(command, status, tail=text.strip())


def file_mode(mode: int) -> int:
    """The mode that git gives to a file of that mode."""
    return 0o100755 if mode & stat.S_IXUSR else 0o100644
