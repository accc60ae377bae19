"""Provider `git`: one branch of a PostgreSQL repository, its newest commit."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ptrack_build import cache
from ptrack_build.errors import BadSource, CommandFailed, SourceError, UsageError
from ptrack_build.progress import step
from ptrack_build.source import net
from ptrack_build.source.base import (
    OtherMajor,
    SourceTree,
    Unreachable,
    Want,
    check_space,
    check_version,
    first_line,
    offline,
)
from ptrack_build.source.mirror import git, git_remote

if TYPE_CHECKING:
    from collections.abc import Iterable

#: PostgreSQL's own git server, then its mirror on GitHub.
SERVERS = (
    "https://git.postgresql.org/git/postgresql.git",
    "https://github.com/postgres/postgres.git",
)
SETTING = "PTRACK_PG_GIT"
ASK_SECONDS = 20.0
FETCH_ESTIMATE = 40.0


@dataclass(frozen=True)
class GitProvider:
    """Takes from the first repository of PTRACK_PG_GIT that can: URLs or paths, by spaces."""

    name: ClassVar[str] = "git"

    def repositories(self) -> list[str]:
        """The repositories to try, in order. Raises UsageError for what cannot be a URL."""
        named = os.environ.get(SETTING, "").strip()
        if not named:
            return list(SERVERS)
        whole = cache.expanded(named, SETTING)
        if whole.is_dir():
            return [str(whole.absolute())]
        return [_repository(word) for word in named.split()]

    def key(self) -> str:
        """See Provider."""
        return cache.digest(*self.repositories())

    def lasting(self) -> bool:
        """A repository on this machine is asked every time: that costs nothing."""
        return not any(is_local(repository) for repository in self.repositories())

    def fetch(self, want: Want) -> SourceTree:
        """The tip of the major's branch, or what want.pin names. Raises SourceError."""
        repositories = self.repositories()
        if offline():
            repositories = [r for r in repositories if is_local(r)]
            if not repositories:
                what = "PTRACK_OFFLINE is set"
                raise Unreachable(what)
        silent = unreachable(repositories, refresh=want.refresh)
        reasons: list[str] = []
        kind: type[SourceError] = SourceError
        bad = other = False
        for repository in repositories:
            if repository in silent:
                reasons.append(silent[repository])
                kind = Unreachable
                continue
            try:
                return self._fetch(want, repository)
            except CommandFailed as error:
                check_space(error.tail)
                reasons.append(f"{repository}: {reason_of(error)}")
                kind = kind if is_local(repository) else Unreachable
            except SourceError as error:
                if len(repositories) == 1:
                    raise
                reasons.append(error.what)
                bad = bad or isinstance(error, BadSource)
                other = other or isinstance(error, OtherMajor)
        raise (BadSource if bad else OtherMajor if other else kind)("; ".join(reasons))

    def _fetch(self, want: Want, repository: str) -> SourceTree:
        name = want.pin or want.major.branch
        commit, found = _ask(repository, name)
        mirror = want.mirror
        if not mirror.whole(commit):
            log = cache.directory("log") / f"source-{want.major.name}.log"
            with (
                step(f"fetching {found} from {repository}", estimate=FETCH_ESTIMATE),
                mirror.writing(),
            ):
                if not mirror.whole(commit):
                    asked = commit if _is_id(found) else found
                    mirror.take(repository, f"+{asked}:{_ref(want, commit)}", log=log)
                    # the branch may have moved between question and answer
                    commit = mirror.whole(_ref(want, commit))
            if not commit:
                what = f"{found} of {repository} did not come whole"
                raise SourceError(what, hint="try again, or name another with PTRACK_PG_GIT")
        where = f"{found} of {repository}"
        version = mirror.version(commit, where)
        # A branch of the major that is none is not right; one version is asked for for one major.
        check_version(want.major, version, where, error=OtherMajor if want.pin else BadSource)
        mirror.set_ref(_ref(want, commit), commit)
        return SourceTree(
            major=want.major,
            version=version,
            commit=commit,
            mirror=mirror.path,
            digest=mirror.tree(commit),
            provider=self.name,
            origin=f"{_short(found)} of {repository} at {commit[:12]}",
        )


def _repository(word: str) -> str:
    """One word of PTRACK_PG_GIT: a directory as its whole path, anything else as it is."""
    path = cache.expanded(word, SETTING)
    if path.is_dir():
        return str(path.absolute())
    if word.startswith("-"):
        what = f"{SETTING}={word} is an option, not a repository"
        raise UsageError(what, hint="give a directory or an address")
    scheme = word.partition("://")[0]
    return net.checked(word, SETTING) if scheme in net.PORTS else word


def is_local(repository: str) -> bool:
    """Whether a repository is on this machine."""
    return repository.startswith(("/", "file://"))


def unreachable(repositories: Iterable[str], *, refresh: bool = False) -> dict[str, str]:
    """Of these repositories those whose server does not answer, with the reason.

    What is looked for is what git would ask: a user's url.<base>.insteadOf counts, and what is
    behind git's own http.proxy is left to git.
    """
    urls = {r: rewritten(r) for r in repositories if not is_local(r)}
    direct = [url for url in urls.values() if not _proxied(url)]
    reasons = net.unreachable(direct, refresh=refresh)
    return {r: reasons[url] for r, url in urls.items() if url in reasons}


def rewritten(repository: str) -> str:
    """What a user's url.<base>.insteadOf makes of a repository's address."""
    done = git("ls-remote", "--get-url", "--", repository, check=False)
    return done.stdout.decode().strip() or repository


def _proxied(url: str) -> bool:
    return bool(git("config", "--get-urlmatch", "http.proxy", url, check=False).stdout.strip())


def _is_id(name: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) is not None


def _short(ref: str) -> str:
    return re.sub(r"^refs/(heads|tags|remotes)/", "", ref)


def _ref(want: Want, commit: str) -> str:
    return f"refs/ptrack/git/{want.major.name}/{commit[:12]}"


def _ask(repository: str, name: str) -> tuple[str, str]:
    """The commit and the full name of a branch, tag, or commit of a repository.

    A clone's branches of its origin count as well. Raises SourceError if it has none such.
    """
    if _is_id(name):
        return name, name
    if re.fullmatch(r"\d+(\.\d+|beta\d+|rc\d+)?", name):
        name = "REL_" + re.sub(r"^(\d+)(beta|rc)", r"\1_\2", name).replace(".", "_").upper()
    patterns = (
        f"refs/heads/{name}",
        f"refs/tags/{name}",
        f"refs/tags/{name}^{{}}",
        f"refs/remotes/*/{name}",
    )
    out = git_remote("ls-remote", "--", repository, *patterns, timeout=ASK_SECONDS).stdout
    found = [line.split("\t", 1) for line in out.splitlines() if "\t" in line]
    for kind in ("refs/heads/", "refs/tags/", "refs/remotes/"):
        for commit, ref in found:
            if ref.startswith(kind) and not ref.endswith("^{}"):
                peeled = [c for c, r in found if r == f"{ref}^{{}}"]
                return (peeled or [commit])[0], ref
    what = f"{repository} has no branch or tag {name}"
    raise SourceError(what)


def reason_of(error: CommandFailed) -> str:
    """What git's complaint comes down to."""
    lines = [line for line in error.tail.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith(("fatal:", "error:", "killed"))]
    text = first_line("\n".join(fatal or lines)) or error.what
    return re.sub(r"^(fatal|error): ", "", text)
