"""What making packages of any kind takes: a source's facts, places, compilers, what went wrong.

Used by deb and rpm, which differ in what they hand to which tool.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import time
from typing import TYPE_CHECKING, Any, Final

from ptrack_build import cache, report
from ptrack_build.errors import CommandFailed, PtrackError, SourceError
from ptrack_build.package import PackageError
from ptrack_build.package.place import NATIVE
from ptrack_build.progress import say
from ptrack_build.suite import results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from ptrack_build.host import ServerUser
    from ptrack_build.matrix import Major
    from ptrack_build.package.place import Place
    from ptrack_build.patch import PatchedTree
    from ptrack_build.source import SourceTree

KEEP_SECONDS: Final = 14 * 24 * 3600
MAINTAINER: Final = "The ptrack developers <maintainers@ptrack.example>"

# ---- facts of a source


def epoch(tree: PatchedTree) -> int:
    """The source's time, in seconds since 1970: all its files have it."""
    return int((tree.path / "configure").stat().st_mtime)


def defined(tree: PatchedTree, header: str, name: str) -> str:
    """A number that a header of the tree defines. Raises PackageError where it does not."""
    path = tree.path / header
    with contextlib.suppress(OSError):
        found = re.search(rf"^#define\s+{name}\s+(\d+)", path.read_text(), re.MULTILINE)
        if found:
            return found[1]
    what = f"{path} does not define {name}"
    raise PackageError(what, hint="see where this major has it, and adapt ptrack_build/package")


def version_parts(version: str) -> tuple[str, str, str, str]:
    """PostgreSQL's version as major, minor, "devel" and "beta1"; of the last three one is there.

    Raises PackageError for what is no version.
    """
    found = re.fullmatch(r"(\d+)(?:\.(\d+)|(devel)|((?:alpha|beta|rc)\d+))", version)
    if found is None:
        what = f"PostgreSQL says that its version is {version!r}, which no package can be called"
        raise PackageError(what, hint="see configure's PACKAGE_VERSION in the source")
    major, minor, devel, early = (part or "" for part in found.groups())
    return major, minor, devel, early


def snapshot(source: SourceTree, when: int) -> str:
    """20240131.abcdef0: what sets a branch's tip apart from the release whose version it has."""
    if source.provider != "git" and "devel" not in source.version:
        return ""
    return f"{time.strftime('%Y%m%d', time.gmtime(when))}.{source.commit[:7]}"


def extension_files(extension: Path) -> list[Path]:
    """The extension's sources, without what compiling it in place leaves."""
    found = [extension / "Makefile", extension / "ptrack.control"]
    found += [path for kind in ("sql", "src") for path in (extension / kind).glob("*.*")]
    return sorted(path for path in found if path.suffix in {"", ".c", ".h", ".sql", ".control"})


def rendered(template: Path, context: Mapping[str, Any], names: str) -> str:
    """A template's text. names: whose names it may use, for the message.

    Raises PackageError with the template's name and line.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = f"packaging/{names.partition('.')[0]}/{template.parent.name}"
    try:
        return environment.get_template(template.name).render(context)
    except jinja2.TemplateSyntaxError as error:
        what = f"{shown}/{error.name or template.name}:{error.lineno}: {error}"
        raise PackageError(what, hint="correct the template") from error
    except jinja2.TemplateError as error:
        what = f"{shown}/{template.name}: {error}"
        raise PackageError(what, hint=f"the names are those of {names}") from error


# ---- places


def clear(place: Path) -> None:
    """Make way for a build at place.

    A run that was killed may have left a make behind: it keeps the old directory.
    """
    if place.exists():
        old = place.with_name(f".{place.name}.{os.getpid()}.part")
        place.rename(old)
        cache.remove(old)


def compiler_masks() -> Path:
    """The directory of links that put ccache in front of compilers."""
    return cache.directory("ccache-bin")


def compiler_store(user: ServerUser | None) -> Path:
    """Where ccache keeps what that user compiles: beside build-NN's, where it is another user."""
    store = cache.directory("ccache" if user is None else f"ccache-{user.name}")
    if user is not None:
        os.chown(store, user.uid, user.gid)
    return store


def compiler_cache(
    user: ServerUser | None, names: Iterable[str], where: Place = NATIVE
) -> dict[str, str]:
    """The environment that puts ccache in front of the compilers of those names, if it is there."""
    ccache = where.which("ccache")
    if not ccache or os.environ.get("CCACHE_DISABLE"):
        return {}
    masks = compiler_masks()
    for name in names:
        # a link's target is looked up where the link is used: in the container, if it is one
        if not (masks / name).is_symlink() or str((masks / name).readlink()) != ccache:
            (masks / name).unlink(missing_ok=True)
            (masks / name).symlink_to(ccache)
    return {
        "PATH": f"{masks}:{where.path()}",
        "CCACHE_DIR": str(compiler_store(user)),
        "CCACHE_BASEDIR": str(cache.root()),
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_SLOPPINESS": "include_file_ctime,include_file_mtime",
        "CCACHE_MAXSIZE": "5G",
    }


def prune(kind: str, keep: set[Path]) -> None:
    """Drop what of <cache>/<kind> nobody used for two weeks."""
    limit = time.time() - KEEP_SECONDS
    for path in cache.directory(kind).iterdir():
        if path not in keep and not path.name.startswith("."):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < limit:
                    cache.remove(path)


class Memo:
    """What the last build of a place took, for the next one's estimate."""

    def __init__(self, place: Path) -> None:
        self.path = cache.directory("memo") / f"{place.parent.name}-{place.name}.json"
        self.seconds: float | None = None
        self.compiled = 1
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(self.path.read_text())
            self.seconds, self.compiled = float(data["seconds"]), int(data["compiled"])

    def save(self, seconds: float, compiled: int) -> None:
        """For the next time."""
        cache.write(self.path, json.dumps({"seconds": round(seconds, 1), "compiled": compiled}))


# ---- failures

_TELLING: Final = re.compile(
    r"\berror: |: error |undefined reference|No space left|Disk quota|\bcannot find\b|: not found|"
    r"Killed|out of memory|internal compiler error|\*\*\* (?!.*Waiting)|^dh_\w+: "
)


def explained(
    title: str, error: CommandFailed, log: Path, hint_of: Callable[[str], str]
) -> PackageError:
    """The lines of the log that tell why, then its end."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    telling = [line for line in lines[-4000:] if _TELLING.search(line)][:8]
    last = [line for line in lines[-8:] if line not in telling]
    shown = "\n".join(f"    {line}" for line in (*telling, *(["..."] if telling else []), *last))
    what = f"{title} could not be built: `{shlex.join(error.argv)}` failed:\n{shown}"
    return PackageError(what, log=log, hint=hint_of("\n".join([*telling, *last, error.tail])))


def no_room(text: str) -> bool:
    """Whether a message speaks of a full disk."""
    return "No space left" in text or "Disk quota" in text


def hint(text: str) -> str:
    """What to do next after that message."""
    if no_room(text):
        return f"free some space below {cache.root()}, or set PTRACK_CACHE to where there is more"
    if "Killed" in text or "out of memory" in text:
        return "there was not enough memory: try PTRACK_JOBS=1"
    return "read the log; what was compiled so far is kept by ccache, so trying again is quick"


# ---- sessions


def every(kind: str, majors: Sequence[Major], one: Callable[[Major], Path]) -> None:
    """Package all majors whose source can be had; ends with a table that says which could not.

    Raises PackageError if any failed, and SourceError when no source could be had at all.
    """
    outcomes = []
    for major in majors:
        name = f"{kind}-{major.name}"
        try:
            place = one(major)
        except SourceError as error:
            outcomes.append(report.Outcome(session=name, status="unreachable", note=error.what))
        except PtrackError as error:
            say(str(error))
            outcomes.append(report.Outcome(session=name, status="failed", note=str(error)))
        else:
            outcomes.append(report.Outcome(session=name, status="passed", note=str(place)))
    report.keep(outcomes, results() / f"{kind}.json")
    say("\n" + report.table(outcomes))
    failed = [each.session for each in outcomes if each.status == "failed"]
    if failed:
        what = f"failed: {', '.join(failed)}"
        raise PackageError(what, hint=f"./nox -s {failed[-1]} shows it alone")
    if not any(each.status == "passed" for each in outcomes):
        what = "no major's source could be had, so nothing was packaged"
        raise SourceError(what, hint="set PTRACK_PG_GIT to a PostgreSQL repository")
