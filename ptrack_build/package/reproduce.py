"""Whether the packages come out the same, byte for byte, when somebody else makes them.

    build(tree) here  ─┐
                       ├─ every file compared ──▶ table, or PackageError
    build(tree) there ─┘

There is a child process with a cache, a place, a home and a compiler cache of its own, in which
nothing is; another clock, time zone, language, umask and number of compilers; and, for root,
another user. The two have the patched tree in common, which is what is to be reproduced from.
What builds is deb.build or rpm.build.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import pwd
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ptrack_build import REPO, cache, host
from ptrack_build.errors import CommandFailed, HostError, PtrackError
from ptrack_build.package import MANIFEST, PackageError, deb, making, rpm, sha256
from ptrack_build.progress import duration, say, step
from ptrack_build.run import call, terminate_politely

if TYPE_CHECKING:
    from ptrack_build.matrix import Major
    from ptrack_build.package import Release
    from ptrack_build.patch import PatchedTree

KINDS: Final = {"deb": deb, "rpm": rpm}
AHEAD_DAYS: Final = 398
DIFFOSCOPE_LINES: Final = 200
#: What a caller may have in the environment, and what is to reach no compiler.
MISLEADING: Final = {
    "CC": "false", "CFLAGS": "-O1", "CPATH": "/nonexistent", "C_INCLUDE_PATH": "/nonexistent",
    "DEB_BUILD_OPTIONS": "noopt nostrip", "DEB_CFLAGS_APPEND": "-O1", "DEB_VENDOR": "Another",
    "GIT_DIFF_OPTS": "--unified=1", "GREP_OPTIONS": "-v", "LIBRARY_PATH": "/nonexistent",
    "MAKEFLAGS": "-k", "PERL5LIB": "/nonexistent", "SOURCE_DATE_EPOCH": "1",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Other:
    """The other side. env: for the child; user: whom it runs as, None for the same one.

    prefix: words before the command; varied: what differs, in words; same: what could not.
    """

    env: dict[str, str]
    user: host.ServerUser | None
    prefix: tuple[str, ...]
    varied: tuple[str, ...]
    same: tuple[str, ...]


def other(place: Path) -> Other:
    """How the second build differs from one that is made here. place: all that it writes to."""
    varied = ["path", "home", "time zone", "language", "umask", "number of compilers"]
    varied.append("environment")
    same: list[str] = []
    env = {
        "PTRACK_CACHE": str(place / "another-and-longer-way" / "cache"),
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "TZ": "Pacific/Kiritimati" if os.environ.get("TZ") != "Pacific/Kiritimati" else "UTC",
        "LANG": "tr_TR.UTF-8",
        "LC_ALL": "C" if os.environ.get("LC_ALL") != "C" else "C.UTF-8",
        "PTRACK_JOBS": str(host.jobs() + 2),
        "PTRACK_NO_INSTALL": "1",
        "PYTHONPATH": str(REPO),
        **MISLEADING,
    }
    user = _another_user()
    (varied if user else same).append("user")
    prefix: tuple[str, ...] = ()
    if shutil.which("faketime"):
        # Files keep their real times: make goes by them, and they are older than the clock.
        prefix = ("faketime", "-f", f"+{AHEAD_DAYS}d")
        env |= {"NO_FAKE_STAT": "1", "DONT_FAKE_MONOTONIC": "1"}
        varied.append(f"clock ({AHEAD_DAYS} days)")
    else:
        same.append("day (faketime varies it)")
    return Other(env=env, user=user, prefix=prefix, varied=tuple(varied), same=tuple(same))


def _another_user() -> host.ServerUser | None:
    """For root somebody who neither root is nor the user that builds here, and can read us."""
    builder = host.server_user()
    if builder is None:
        return None
    for name in ("nobody", "daemon", "ptrack"):
        with contextlib.suppress(KeyError, HostError):
            entry = pwd.getpwnam(name)
            user = host.ServerUser(uid=entry.pw_uid, gid=entry.pw_gid, name=name)
            if user.uid in {0, builder.uid}:
                continue
            host.check_reachable(REPO, user)
            host.check_reachable(Path(sys.executable), user)
            host.check_reachable(Path(sys.executable).resolve(), user)
            return user
    return None


def check(tree: PatchedTree, *, kind: str = "deb", without: tuple[str, ...] = ()) -> list[str]:
    """Build the packages of a tree twice and compare them; gives their names. kind: of KINDS.

    What was made here before, and is kept, is the first of the two. Raises PackageError where a
    file differs: both sides are kept then, and diffoscope's answer is in the message.
    """
    slot = f"reproduce-{making.slot(kind, tree.source.major)}"
    with cache.lock(slot):
        host.ensure(["faketime"], optional=True)
        host.ensure(making.FASTER, optional=True)
        here = KINDS[kind].build(tree, without=without)
        place = cache.directory("build") / slot
        cache.remove(place)
        way = other(place)
        try:
            _there(tree, place, way, kind=kind, without=without)
            names = compare(here, place)
        except PackageError:
            raise  # both sides are wanted now
        except BaseException:
            cache.remove(place)
            raise
        cache.remove(place)
    say(f"second build, from nothing but the patched tree: another {', '.join(way.varied)}")
    if way.same:
        say(f"the same in both: {', '.join(way.same)}")
    return names


def _there(
    tree: PatchedTree, place: Path, way: Other, *, kind: str, without: tuple[str, ...]
) -> None:
    """Make the packages anew in place/out, with manifest.json. Raises PackageError."""
    log = cache.directory("log") / f"{place.name}.log"
    log.unlink(missing_ok=True)
    for folder in (
        place,
        place / "another-and-longer-way",
        place / "home",
        place / "tmp",
        place / "out",
    ):
        folder.mkdir()
        folder.chmod(0o755)
        if way.user is not None:
            os.chown(folder, way.user.uid, way.user.gid)
    order = place / "order"
    order.write_bytes(pickle.dumps((tree, kind, without)))
    order.chmod(0o644)
    argv = [*way.prefix, sys.executable, "-m", __name__, str(order), str(place / "out")]
    try:
        with step(f"{making.slot(kind, tree.source.major)} again, elsewhere"):
            call(argv, cwd=place, env=way.env, log=log, quiet=True, user=way.user)
    except CommandFailed as error:
        what = f"the second build failed, where the first did not:\n{error.tail}"
        raise PackageError(what, log=log, hint="read the log") from error


def compare(here: Release, place: Path) -> list[str]:
    """The names of the files that are equal: all of them. place/out: the other side's.

    buildinfo is not compared: it has the day of the build, and how many compilers ran. Raises
    PackageError with what differs, and keeps the first side in place/here.
    """
    ours = {file.name: file for file in here.files}
    theirs = {file.name: file for file in (place / "out").iterdir() if file.name != MANIFEST}
    differing = sorted(ours.keys() ^ theirs.keys())
    differing += sorted(
        name for name in ours.keys() & theirs.keys() if sha256(ours[name]) != sha256(theirs[name])
    )
    manifest = (place / "out" / MANIFEST).read_text()
    ours_said = here.manifest(buildinfo=False)
    if not differing and manifest != ours_said:
        differing = [MANIFEST]
    if not differing:
        return sorted(ours)
    kept = place / "here"
    kept.mkdir(exist_ok=True)
    for file in here.files:
        shutil.copyfile(file, kept / file.name)
    (kept / MANIFEST).write_text(ours_said)
    rows = "\n".join(f"    {name}: {_how(kept / name, place / 'out' / name)}" for name in differing)
    what = f"{len(differing)} of {len(ours.keys() | theirs.keys())} files differ:\n{rows}"
    hint = f"diffoscope {kept} {place / 'out'}"
    host.ensure(["diffoscope"], optional=True)
    if not shutil.which("diffoscope"):
        hint = f"{host.paste(['diffoscope'])}, then: {hint}"
        raise PackageError(what, hint=hint)
    first = differing[0]
    msg = f"{what}\n{_diffoscope(kept / first, place / 'out' / first)}"
    raise PackageError(msg, hint=hint)


def _how(one: Path, two: Path) -> str:
    for file, where in ((one, "the second"), (two, "the first")):
        if not file.exists():
            return f"only in {where} build"
    return f"{sha256(one)[:16]}, {sha256(two)[:16]}"


def _diffoscope(one: Path, two: Path) -> str:
    """What differs in a file that both have, cut short."""
    if not (one.exists() and two.exists()):
        return ""
    said = call(["diffoscope", "--text", "-", str(one), str(two)], capture=True, quiet=True,
                check=False).stdout.splitlines()  # fmt: skip
    left = (
        [f"... {len(said) - DIFFOSCOPE_LINES} more lines"] if len(said) > DIFFOSCOPE_LINES else []
    )
    return "\n".join([*said[:DIFFOSCOPE_LINES], *left])


def one(
    major: Major, *, kind: str = "deb", locked: bool = False, without: tuple[str, ...] = ()
) -> None:
    """Fetch and patch a major, and check that its packages can be reproduced."""
    from ptrack_build import patch, source

    began = time.monotonic()
    host.jobs()  # before anything is fetched, which takes long
    host.ensure(["git"])
    tree = patch.apply(source.fetch(major, locked=locked))
    names = check(tree, kind=kind, without=without)
    say(f"{len(names)} packages, byte for byte the same ({duration(time.monotonic() - began)})")


# ---- the child


def main(order: Path, out: Path) -> None:
    """Build what an order says, and put the packages into out."""
    os.umask(0o077)
    tree, kind, without = pickle.loads(order.read_bytes())
    made = KINDS[kind].build(tree, without=without)
    for file in made.files:
        shutil.copyfile(file, out / file.name)
        (out / file.name).chmod(0o644)
    (out / MANIFEST).write_text(made.manifest(buildinfo=False))


if __name__ == "__main__":
    terminate_politely()
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except PtrackError as error:
        sys.exit(str(error))
