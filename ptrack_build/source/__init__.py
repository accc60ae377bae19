"""Sources: from a major to its pristine tree, a commit of the cache's bare mirror.

    fetch(major) -> SourceTree

PTRACK_SOURCE says where from: `auto` (the default: git, then distro, then tarball), one of these
three, or the path of a directory or tarball. `git:REL_17_2`, `distro:17.2`, `tarball:17.2` ask for
one version.

What was found is remembered for PTRACK_SOURCE_TTL seconds (default 86400; 0 asks every time), so
that a build with nothing changed needs no network and no time. The line that each fetch prints
says the version and when it was looked up. PTRACK_REFRESH=1 looks again, as does a change of the
settings that decide the answer (PTRACK_SOURCE, PTRACK_PG_GIT, PTRACK_PG_TARBALLS, apt's sources).
A repository, directory or tarball on this machine is looked at every time. Where the servers cannot
be reached (or PTRACK_OFFLINE=1) the newest tree of the major that the mirror has is taken, and said
so; not where one of them had something that is not right.

PTRACK_LOCKED=1, or locked=True, takes what matrix.lock records and nothing else.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from ptrack_build import cache, host
from ptrack_build.errors import BadSource, SourceError, UsageError
from ptrack_build.progress import say
from ptrack_build.source import mirror as _mirror
from ptrack_build.source import releases as _releases
from ptrack_build.source.base import (
    WAYS_OUT,
    OtherMajor,
    Provider,
    SourceTree,
    Unreachable,
    Want,
    check_free,
    check_version,
    offline,
    version_key,
)
from ptrack_build.source.distro import DistroProvider, Tampered
from ptrack_build.source.git import GitProvider
from ptrack_build.source.lock import read_lock, write_lock
from ptrack_build.source.mirror import Mirror, open_mirror
from ptrack_build.source.path import PathProvider
from ptrack_build.source.tarball import TarballProvider

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ptrack_build.matrix import Major
    from ptrack_build.source.lock import Row

__all__ = [
    "Mirror",
    "SourceTree",
    "check_settings",
    "export",
    "fetch",
    "is_provider",
    "open_mirror",
    "read_file",
    "read_lock",
    "releases",
    "ways_out",
    "write_lock",
]

TTL_SECONDS = 86400.0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A tree that was found: SourceTree's fields, when it was looked up and by which settings."""

    when: float
    key: str
    version: str
    commit: str
    digest: str
    provider: str
    origin: str
    sha256: str = ""
    passed: str = ""  # why the providers before it were passed over


def providers() -> tuple[Provider, ...]:
    """What `auto` tries, in order."""
    return (GitProvider(), DistroProvider(), TarballProvider())


def is_provider(name: str) -> bool:
    """Whether PTRACK_SOURCE by this name, before a colon, asks providers and is no path."""
    return name == "auto" or name in {provider.name for provider in providers()}


def fetch(
    major: Major, *, spec: str | None = None, locked: bool = False, refresh: bool = False
) -> SourceTree:
    """The major's source tree, as a commit of the mirror; prints one line on which it is.

    Raises SourceError naming each provider that was tried and why it failed, as BadSource where
    one had something that is not right, and UsageError for a spec that is none.
    """
    spec = spec or os.environ.get("PTRACK_SOURCE") or "auto"
    refresh = refresh or host.switched_on("PTRACK_REFRESH")
    if locked or host.switched_on("PTRACK_LOCKED"):
        return _fetch_locked(major, spec, refresh=refresh)
    chosen, pin = _choose(spec)
    # A version tells at once; a tag or commit (which may be all digits) when it is there.
    if 0 < version_key(pin)[0] < 1000:
        check_version(major, pin, f"what PTRACK_SOURCE={spec} asks for", error=OtherMajor)
    mirror = open_mirror()
    want = Want(major=major, mirror=mirror, pin=pin, refresh=refresh)
    key = cache.digest(spec, *(p.name + p.key() for p in chosen))
    lasting = all(p.lasting() for p in chosen)
    if lasting and not refresh and (known := _remembered(want, key)):
        return known
    with cache.lock(f"source-{major.name}", f"looks for PostgreSQL {major.name}"):
        if lasting and not refresh and (known := _remembered(want, key)):
            return known  # another run looked it up meanwhile
        return _look(want, chosen, key)


def releases(major: Major, paths: Sequence[str]) -> list[SourceTree]:
    """Every tagged version of a major, betas included, with those files; the oldest first.

    Raises SourceError where git is not among those that PTRACK_SOURCE has asked, or has no tags.
    """
    chosen, pin = _choose(os.environ.get("PTRACK_SOURCE") or "auto")
    for provider in chosen:
        if isinstance(provider, GitProvider) and not pin:
            return _releases.tagged(provider, major, paths)
    what = f"PTRACK_SOURCE={os.environ.get('PTRACK_SOURCE')} asks for one version"
    raise SourceError(what)


def _look(want: Want, chosen: tuple[Provider, ...], key: str) -> SourceTree:
    check_free()
    failures: list[tuple[str, SourceError]] = []
    for provider in chosen:
        try:
            tree = provider.fetch(want)
        except SourceError as error:
            failures.append((provider.name, error))
            if isinstance(error, Tampered):
                break
            continue
        passed = "; ".join(f"{name}: {error.what}" for name, error in failures)
        _remember(want, key, tree, passed)
        say(f"PostgreSQL {tree.version}: {tree.provider}, {tree.origin}" + _in_brackets(passed))
        return tree
    names = {provider.name for provider in chosen}
    bad = next((error for _, error in failures if isinstance(error, BadSource)), None)
    cut_off = any(isinstance(error, Unreachable) for _, error in failures)
    if cut_off and not bad and (known := _newest(want, names)):
        record, tree = known
        reasons = "; ".join(f"{name}: {error.what}" for name, error in failures)
        if len(failures) > 1 and len({error.what for _, error in failures}) == 1:
            reasons = failures[0][1].what
        say(
            f"PostgreSQL {tree.version}: {tree.provider}, {tree.origin}, as of {_age(record.when)} "
            f"ago, from the cache" + _in_brackets(reasons)
        )
        return tree
    title = f"PostgreSQL {want.major.name}" + (f" ({want.pin})" if want.pin else "")
    kind = BadSource if bad else SourceError
    hint = (bad and bad.hint) or _ways_out(chosen)
    if len(failures) == 1:
        name, only = failures[0]
        said = only.what if name == PathProvider.name else f"{name}: {only.what}"
        what = f"{title}: {said}"
        raise kind(what, hint=only.hint or hint) from only
    lines = [f"{title}: no source could be had", *(f"  {n}: {e.what}" for n, e in failures)]
    if len({error.what for _, error in failures}) == 1:
        lines = [f"{lines[0]}: {failures[0][1].what}"]
    raise kind("\n".join(lines), hint=hint)


def ways_out() -> str:
    """What to do where those that PTRACK_SOURCE names had no source."""
    chosen, _ = _choose(os.environ.get("PTRACK_SOURCE") or "auto")
    return _ways_out(chosen)


def _ways_out(chosen: Sequence[Provider]) -> str:
    """What to do where none of these providers had a source: what keeps others away comes first."""
    names = [provider.name for provider in chosen]
    ways = []
    if offline():
        ways.append("unset PTRACK_OFFLINE")
    if len(names) == 1:
        ways.append("unset PTRACK_SOURCE, so that others are asked")
    if "git" not in names:
        ways.append("set it to a source directory or tarball")
    elif os.environ.get("PTRACK_PG_GIT"):
        ways.append("let PTRACK_PG_GIT name a PostgreSQL repository that has the branch")
        ways.append("set PTRACK_SOURCE to a source directory or tarball")
    else:
        ways.append(WAYS_OUT)
    return ", or ".join(ways)


def check_settings() -> None:
    """Raise UsageError for a setting that can be of use to no major."""
    chosen, _ = _choose(os.environ.get("PTRACK_SOURCE") or "auto")
    for provider in chosen:
        provider.key()
    _ttl()


def _choose(spec: str) -> tuple[tuple[Provider, ...], str]:
    """The providers that a spec stands for, and the version it asks for, if any."""
    known = {provider.name: provider for provider in providers()}
    if spec == "auto":
        return tuple(known.values()), ""
    name, _, pin = spec.partition(":")
    if name in known:
        return (known[name],), pin
    path = cache.expanded(spec, "PTRACK_SOURCE")
    try:
        found = path.exists()
    except PermissionError as error:
        what = f"{path} cannot be read"
        raise UsageError(what, hint="let this user search the directories above it") from error
    if not found:
        what = f"PTRACK_SOURCE={spec} is neither a provider nor a path"
        hint = f"take auto, {', '.join(known)}, or a directory or tarball of PostgreSQL"
        raise UsageError(what, hint=hint)
    return (PathProvider(path.absolute()),), ""


def _fetch_locked(major: Major, spec: str, *, refresh: bool) -> SourceTree:
    row = read_lock().get(major.name)
    if row is None:
        what = f"matrix.lock has no PostgreSQL {major.name}"
        raise SourceError(what, hint="build it without --locked")
    mirror = open_mirror()
    if spec in {"auto", row.provider} and mirror.whole(row.commit):
        tree = _locked_tree(major, mirror, row)
        say(f"PostgreSQL {tree.version}: {tree.provider}, {tree.origin}, as locked")
        return tree
    chosen, _ = _choose(spec)
    if spec == "auto":
        # the same tarball is at the distribution and at the download server; a commit only in git
        chosen = tuple(p for p in chosen if (p.name == "git") == (row.provider == "git"))
    failures: list[tuple[str, str]] = []
    kind: type[SourceError] = SourceError
    with cache.lock(f"source-{major.name}", f"looks for PostgreSQL {major.name}"):
        for provider in chosen:
            pin = row.commit if provider.name == "git" else row.version
            digest = "" if provider.name in {"git", "path"} else row.sha256
            want = Want(major=major, mirror=mirror, pin=pin, sha256=digest, refresh=refresh)
            try:
                tree = provider.fetch(want)
            except SourceError as error:
                # a commit that was locked for this major
                other = isinstance(error, OtherMajor) and provider.name == "git"
                kind = BadSource if isinstance(error, BadSource) or other else kind
                failures.append((provider.name, error.what))
                if isinstance(error, Tampered):
                    break
                continue
            if tree.digest == row.tree:
                say(f"PostgreSQL {tree.version}: {tree.provider}, {tree.origin}, as locked")
                return tree
            kind = BadSource
            failures.append((provider.name, f"{tree.version} from {tree.origin} is another tree"))
    available = sorted({r.version for r in _records(major.name, mirror)}, key=version_key)
    lines = [
        f"PostgreSQL {row.version}, which matrix.lock asks for ({row.origin}), cannot be had",
        *(f"  {name}: {reason}" for name, reason in failures),
        f"  in the cache: {', '.join(available) or 'nothing of that major'}",
    ]
    raise kind("\n".join(lines), hint="build without --locked to take what is available")


def _locked_tree(major: Major, mirror: Mirror, row: Row) -> SourceTree:
    if mirror.tree(row.commit) != row.tree:
        what = f"matrix.lock contradicts itself: {row.commit[:12]} has no tree {row.tree[:12]}"
        raise BadSource(what, hint="git checkout -- matrix.lock")
    version = mirror.version(row.commit, row.origin)
    if version != row.version:
        what = f"matrix.lock contradicts itself: {row.commit[:12]} is {version}, not {row.version}"
        raise BadSource(what, hint="git checkout -- matrix.lock")
    return SourceTree(
        major=major,
        version=row.version,
        commit=row.commit,
        mirror=mirror.path,
        digest=row.tree,
        provider=row.provider,
        origin=row.origin,
        sha256=row.sha256,
    )


def export(tree: SourceTree, dest: Path) -> None:
    """Write the tree's files into dest, which is made if need be and must be empty.

    All files get the same time (the commit's), modes 0644 or 0755, and their bytes as committed.
    Raises HostError when the disk is full.
    """
    dest.mkdir(parents=True, exist_ok=True)
    if next(dest.iterdir(), None) is not None:
        what = f"{dest} is not empty"
        raise UsageError(what, hint="export into a new directory")
    _mirror.export(tree.mirror, tree.commit, dest)


def read_file(tree: SourceTree, path: str) -> bytes | None:
    """The contents of one file of the tree, or None when it has none of that name."""
    return Mirror(tree.mirror).read(tree.commit, path)


def _ttl() -> float:
    text = os.environ.get("PTRACK_SOURCE_TTL", "")
    try:
        return float(text) if text else TTL_SECONDS
    except ValueError:
        what = f"PTRACK_SOURCE_TTL={text} is no number of seconds"
        raise UsageError(what, hint="86400 is a day, 0 asks every time") from None


def _file(major: str) -> Path:
    return cache.directory("source") / f"found-{major}.json"


def _records(major: str, mirror: Mirror) -> list[Record]:
    """What was found of a major and is still in the mirror."""
    try:
        found = msgspec.json.decode(_file(major).read_bytes(), type=list[Record])
    except (OSError, ValueError, msgspec.DecodeError):
        return []
    if mirror.has(f"{record.commit}^{{tree}}" for record in found):
        return found
    return [record for record in found if mirror.has([f"{record.commit}^{{tree}}"])]


def _remembered(want: Want, key: str) -> SourceTree | None:
    """The tree found under the same settings not too long ago; says so."""
    ttl = _ttl()
    now = time.time()
    for record in _records(want.major.name, want.mirror):
        if record.key == key and (0 <= now - record.when < ttl or offline()):
            if not want.mirror.whole(record.commit):
                continue  # looked up anew, its files come again
            tree = _tree(want, record)
            say(
                f"PostgreSQL {tree.version}: {tree.provider}, {tree.origin}, looked up "
                f"{_age(record.when)} ago (PTRACK_REFRESH=1 looks again)"
            )
            return tree
    return None


def _newest(want: Want, names: set[str]) -> tuple[Record, SourceTree] | None:
    """The newest of the major that any of these providers ever found, for want of an answer."""
    found = [
        record
        for record in _records(want.major.name, want.mirror)
        if record.provider in names
        and want.pin in {"", record.version, record.commit}
        and want.mirror.whole(record.commit)
    ]
    if not found:
        return None
    best = max(found, key=lambda record: (version_key(record.version), record.when))
    return best, _tree(want, best)


def _remember(want: Want, key: str, tree: SourceTree, passed: str) -> None:
    if tree.provider == "path":
        return
    record = Record(
        when=time.time(),
        key=key,
        version=tree.version,
        commit=tree.commit,
        digest=tree.digest,
        provider=tree.provider,
        origin=tree.origin,
        sha256=tree.sha256,
        passed=passed,
    )
    others = [other for other in _records(want.major.name, want.mirror) if other.key != key]
    cache.write(_file(want.major.name), msgspec.json.encode([record, *others[:9]]).decode())


def _tree(want: Want, record: Record) -> SourceTree:
    return SourceTree(
        major=want.major,
        version=record.version,
        commit=record.commit,
        mirror=want.mirror.path,
        digest=record.digest,
        provider=record.provider,
        origin=record.origin,
        sha256=record.sha256,
    )


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _age(when: float) -> str:
    """5 min, 3 h, 2 days"""
    seconds = max(0.0, time.time() - when)
    for limit, unit, word in ((3600, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // unit)} {word}"
    return f"{int(seconds // 86400)} days"
