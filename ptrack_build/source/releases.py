"""Every release of a major that a repository has tags of: what a patch has to apply to.

A repository on this machine is read where it lies. Of another's, the tags come without history and
without files, and then just those files that are asked for, all at once: 2 MB a major instead of
the 60 that the mirror would grow by. They go to a repository of their own, for the mirror's commits
are whole.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ptrack_build import cache
from ptrack_build.errors import CommandFailed, SourceError
from ptrack_build.progress import step
from ptrack_build.source.base import SourceTree, Unreachable, check_space, offline, version_key
from ptrack_build.source.git import GitProvider, is_local, reason_of, unreachable
from ptrack_build.source.mirror import git, git_remote

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ptrack_build.matrix import Major

ESTIMATE = 10.0


def tagged(provider: GitProvider, major: Major, paths: Sequence[str]) -> list[SourceTree]:
    """The tagged versions of a major, the oldest first, of the first repository that has some.

    Of their files only those of the paths need be there. Raises SourceError where none has any.
    """
    reasons = []
    for repository in provider.repositories():
        try:
            if found := _tagged(repository, major, paths):
                return found
        except CommandFailed as error:
            check_space(error.tail)
            reasons.append(f"{repository}: {reason_of(error)}")
        except SourceError as error:
            reasons.append(error.what)
        else:
            reasons.append(f"{repository} has no tags of {major.name}")
    raise SourceError("; ".join(reasons))


def _tagged(repository: str, major: Major, paths: Sequence[str]) -> list[SourceTree]:
    if is_local(repository):
        place = Path(repository.removeprefix("file://"))
        shown = git(
            "-C", str(place), "rev-parse", "--path-format=absolute", "--git-common-dir"
        ).stdout  # fmt: skip
        return _trees(Path(shown.decode().strip()), "refs/tags", major, repository)
    if offline():
        what = "PTRACK_OFFLINE is set"
        raise Unreachable(what)
    if silent := unreachable([repository]):
        raise Unreachable(silent[repository])
    with cache.lock("releases.git", "fetches releases"):
        return _fetched(repository, major, paths)


def _fetched(repository: str, major: Major, paths: Sequence[str]) -> list[SourceTree]:
    path = cache.directory("source") / "releases.git"
    if not (path / "HEAD").is_file():
        with cache.building(path) as scratch:
            git("init", "--quiet", "--bare", "--initial-branch=none", "--template=", str(scratch))
    name = f"from-{cache.digest(repository)[:12]}"
    # For the time of a fetch alone: else git would ask the server, one by one, for whatever blob
    # is looked for and not there.
    remote = f"remote.{name}"
    fetch = (
        f"--git-dir={path}",
        *("-c", f"{remote}.url={repository}"),
        *("-c", f"{remote}.promisor=true"),
        *("-c", f"{remote}.partialclonefilter=blob:none"),
        *("-c", "fetch.negotiationAlgorithm=noop"),
        *("fetch", "--no-tags", "--no-write-fetch-head", "--filter=blob:none"),
    )
    log = cache.directory("log") / f"releases-{major.name}.log"
    space = f"refs/releases/{name}"
    prefix = f"REL_{major.number}_"
    title = f"fetching what the patch touches in the releases of {major.name} from {repository}"
    with step(title, estimate=ESTIMATE):
        git_remote(
            *fetch, "--depth=1", name, f"+refs/tags/{prefix}*:{space}/{prefix}*", log=log
        )  # fmt: skip
        trees = _trees(path, space, major, repository)
        if blobs := sorted(_blobs(path, (tree.commit for tree in trees), paths)):
            git_remote(*fetch, name, *blobs, log=log)
    return trees


def _blobs(path: Path, commits: Iterable[str], paths: Sequence[str]) -> set[str]:
    """The ids of the files that the commits have of those paths."""
    found: set[str] = set()
    for commit in commits:
        out = git(f"--git-dir={path}", "ls-tree", "-z", "--full-tree", commit, "--", *paths).stdout
        rows = (entry.split(b"\t")[0].split() for entry in out.split(b"\0") if entry)
        found |= {blob.decode() for _mode, kind, blob in rows if kind == b"blob"}
    return found


def _trees(path: Path, space: str, major: Major, repository: str) -> list[SourceTree]:
    """The trees that the refs of a repository name as a release's tag does."""
    shown = "%(refname) %(objectname) %(*objectname)"
    out = git(f"--git-dir={path}", "for-each-ref", f"--format={shown}", f"{space}/REL_*").stdout
    found = []
    for line in out.decode().splitlines():
        ref, *ids = line.split()
        name = ref.removeprefix(f"{space}/")
        match = re.fullmatch(rf"REL_{major.number}_(\d+|BETA\d+|RC\d+)", name)
        if not match:
            continue
        word = match[1].lower()
        tree = git(f"--git-dir={path}", "rev-parse", "--verify", f"{ids[-1]}^{{tree}}").stdout
        found.append(
            SourceTree(
                major=major,
                version=f"{major.number}{'.' if word.isdecimal() else ''}{word}",
                commit=ids[-1],
                mirror=path,
                digest=tree.decode().strip(),
                provider="git",
                origin=f"tags of {repository}",
            )
        )
    return sorted(found, key=lambda tree: version_key(tree.version))
