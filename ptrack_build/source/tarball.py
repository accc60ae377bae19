"""Provider `tarball`: a release tarball from PostgreSQL's download server, by its SHA-256.

A download goes to a file that ends in .part, is continued where it broke off (by this run or the
next) if the server can do that, and is looked at only once its digest is right. After that it
becomes a commit and the file is removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ptrack_build import cache
from ptrack_build.errors import BadSource, HostError, SourceError
from ptrack_build.progress import say, step
from ptrack_build.source import net
from ptrack_build.source.archive import import_tarball, imported, sha256_of
from ptrack_build.source.base import SourceTree, Unreachable, Want, offline, version_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

#: Where PostgreSQL's releases are downloaded from.
SERVER = "https://ftp.postgresql.org/pub/source"
SUFFIXES = ("tar.bz2", "tar.gz")
CONNECT_SECONDS = 5.0
STALL_SECONDS = 20.0
TRIES = 4
ASKS = 2
PAUSE_SECONDS = 1.0
CHUNK = 1 << 18
#: No list or checksum, and no tarball, is larger: what goes on beyond that would fill the disk.
LIST_BYTES = 10_000_000
TARBALL_BYTES = 200_000_000
SLOW = 1000  # bytes a second, as for git


class NotThere(SourceError):
    """The server says that it does not have the file."""


@dataclass(frozen=True)
class TarballProvider:
    """Takes the newest release of the major that the server of PTRACK_PG_TARBALLS lists."""

    name: ClassVar[str] = "tarball"

    def server(self) -> str:
        """The URL below which there is v17.2/postgresql-17.2.tar.bz2. Raises UsageError."""
        named = os.environ.get("PTRACK_PG_TARBALLS", "").strip().rstrip("/")
        return net.checked(named, "PTRACK_PG_TARBALLS", ("http", "https")) if named else SERVER

    def key(self) -> str:
        """See Provider."""
        return cache.digest(self.server())

    def lasting(self) -> bool:
        """See Provider."""
        return True

    def fetch(self, want: Want) -> SourceTree:
        """The newest release, or the one of want.pin. Raises SourceError."""
        if offline():
            what = "PTRACK_OFFLINE is set"
            raise Unreachable(what)
        if want.major.state == "devel":
            what = f"PostgreSQL {want.major.name} has no release"
            raise SourceError(what)
        server = self.server()
        silent = net.unreachable([server], refresh=want.refresh)
        if silent:
            raise Unreachable(silent[server])
        with client() as http:
            versions = [want.pin] if want.pin else _listed(http, server, want.major.number)
            if not versions:
                what = f"{server} lists no PostgreSQL {want.major.name}"
                raise SourceError(what)
            for version in versions[:-1]:
                try:
                    return self._take(http, want, server, version)
                except NotThere as error:
                    say(f"PostgreSQL {version} is listed but not there yet: {error.what}")
            return self._take(http, want, server, versions[-1])

    def _take(self, http: httpx.Client, want: Want, server: str, version: str) -> SourceTree:
        url, sha256 = _published(http, server, version)
        if want.sha256 and sha256 != want.sha256:
            what = f"{url} has SHA-256 {sha256[:16]}…, where {want.sha256[:16]}… is wanted"
            raise BadSource(what, hint="find out which is right before anything is built from it")
        where = url
        if not imported(want.mirror, sha256):
            file = cache.directory("source", "download") / f"{sha256[:16]}-{Path(url).name}"
            with cache.lock(f"download-{sha256[:16]}", f"downloads {Path(url).name}"):
                if not imported(want.mirror, sha256):
                    with step(f"downloading {Path(url).name}") as progress:
                        download(http, url, file, sha256, progress.update)
                    with step(f"unpacking {Path(url).name}", estimate=10.0):
                        import_tarball(want, file, sha256, where)
                    file.unlink(missing_ok=True)
        commit, found = import_tarball(want, Path(), sha256, where)
        if found != version:
            what = f"{url} holds PostgreSQL {found}"
            raise BadSource(what, hint="tell whoever runs that server")
        return SourceTree(
            major=want.major,
            version=found,
            commit=commit,
            mirror=want.mirror.path,
            digest=want.mirror.tree(commit),
            provider=self.name,
            origin=url,
            sha256=sha256,
        )


def client() -> httpx.Client:
    """An HTTP client that gives up soon on a server that does not connect or stalls.

    Raises SourceError where the environment's proxies or certificates are none that it can use.
    """
    import httpx

    timeout = httpx.Timeout(STALL_SECONDS, connect=CONNECT_SECONDS)
    try:
        return httpx.Client(timeout=timeout, follow_redirects=True)
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        what = f"proxy or certificates as set here cannot be used: {error}"
        hint = "see ALL_PROXY, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE, or take PTRACK_SOURCE=git"
        raise SourceError(what, hint=hint) from error


def _text(http: httpx.Client, url: str) -> str:
    import httpx

    reason = ""
    for attempt in range(ASKS):
        if attempt:
            time.sleep(PAUSE_SECONDS * attempt)
        try:
            with http.stream("GET", url, headers={"Accept-Encoding": "identity"}) as answer:
                data = bytearray()
                for piece in _flowing(answer):
                    data += piece
                    _limit(url, len(data), LIST_BYTES)
        except httpx.HTTPError as error:
            reason = _said(error)
            continue
        if answer.status_code in {404, 403, 410}:
            what = f"{url}: {answer.status_code} {answer.reason_phrase}"
            raise NotThere(what)
        if answer.status_code == 200:
            return data.decode(errors="replace")
        reason = f"{answer.status_code} {answer.reason_phrase}"
        if answer.status_code < 500:
            break
    what = f"{url}: {reason}"
    raise Unreachable(what, hint="try again later")


def _limit(url: str, size: int, most: int) -> None:
    """Raise BadSource where more comes than a file of that kind can have."""
    if size > most:
        what = f"{url} sends more than {most / 1e6:g} MB"
        raise BadSource(what, hint="nothing of it was used; try another network or server")


def _listed(http: httpx.Client, server: str, number: int) -> list[str]:
    """The versions of a major that the server has, the newest first."""
    page = _text(http, f"{server}/")
    found = set(re.findall(rf'href="(?:[^"]*/)?v({number}(?:\.\d+|beta\d+|rc\d+))/?"', page))
    return sorted(found, key=version_key, reverse=True)


def _published(http: httpx.Client, server: str, version: str) -> tuple[str, str]:
    """URL and published SHA-256 of a release's tarball. Raises NotThere."""
    missing: NotThere | None = None
    for suffix in SUFFIXES:
        url = f"{server}/v{version}/postgresql-{version}.{suffix}"
        try:
            text = _text(http, f"{url}.sha256")
        except NotThere as error:
            missing = missing or error
            continue
        found = re.match(r"([0-9a-fA-F]{64})(\s|$)", text.strip())
        if not found:
            what = f"{url}.sha256 holds no SHA-256"
            raise BadSource(what, hint="tell whoever runs that server")
        return url, found[1].lower()
    assert missing is not None
    raise missing


def download(
    http: httpx.Client,
    url: str,
    file: Path,
    sha256: str,
    update: Callable[[float, str], None] = lambda _done, _note: None,
) -> None:
    """Bring url to file, whose contents have that digest when this returns.

    Raises NotThere (404), BadSource (wrong contents, or no end of them), SourceError (cut short or
    stalled again and again) and HostError (no space). What has come so far stays in <file>.part for
    the next try where it may be of use: not that of a bad source, nor on a full disk.
    """
    import httpx

    if file.is_file() and sha256_of(file) == sha256:
        return
    part = file.with_name(file.name + ".part")
    resumed = part.is_file()
    redone = False
    reason = ""
    idle = 0
    while idle < TRIES:
        if idle:
            time.sleep(PAUSE_SECONDS * idle)
        before = part.stat().st_size if part.is_file() else 0
        try:
            whole = _receive(http, url, part, update)
        except httpx.HTTPError as error:
            whole, reason = False, _said(error)
        except BadSource:
            part.unlink(missing_ok=True)
            raise
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            what = f"{part} cannot be written: {error.strerror}"
            hint = "free some space, or set PTRACK_CACHE to a larger place"
            raise HostError(what, hint=hint) from error
        if whole:
            if sha256_of(part) == sha256:
                part.replace(file)
                return
            got = sha256_of(part)
            part.unlink()
            if resumed and not redone:
                # the rest may be of another file than the beginning
                resumed, redone = False, True
                continue
            what = f"{url} has SHA-256 {got[:16]}…, not the published {sha256[:16]}…"
            raise BadSource(what, hint="nothing of it was used; try another network or server")
        after = part.stat().st_size if part.is_file() else 0
        resumed = resumed or after > 0
        # as long as something comes, it is worth going on
        idle = idle + 1 if after - before < CHUNK else 1
    what = f"{url}: {reason or 'cut short'}, {TRIES} times"
    raise SourceError(what, hint="run it again: it goes on where this broke off")


def _receive(
    http: httpx.Client, url: str, part: Path, update: Callable[[float, str], None]
) -> bool:
    """Add to part what is missing; False where the server sent less than it said.

    Raises httpx.HTTPError for what may pass, SourceError for what will not, BadSource where the
    server sends more than a tarball can have.
    """
    import httpx

    have = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with http.stream("GET", url, headers=headers) as answer:
        status = answer.status_code
        if status == 416:
            # there is nothing after what we have: it is whole, or not of this file
            return True
        if status in {404, 403, 410}:
            what = f"{url}: {status} {answer.reason_phrase}"
            raise NotThere(what)
        if status >= 500:
            what = f"{status} {answer.reason_phrase}"
            raise httpx.HTTPStatusError(what, request=answer.request, response=answer)
        begins = re.match(rf"bytes {have}-", answer.headers.get("Content-Range", ""))
        if status == 206 and have and begins:
            mode = "ab"
        elif status == 200:
            mode, have = "wb", 0
        else:
            what = f"{url}: unexpected answer {status} {answer.reason_phrase}"
            raise SourceError(what, hint="try another server: set PTRACK_PG_TARBALLS")
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else 0
        _limit(url, max(have, total), TARBALL_BYTES)
        with part.open(mode) as stream:
            for data in _flowing(answer):
                have += len(data)
                _limit(url, have, TARBALL_BYTES)
                stream.write(data)
                update(have / total if total else 0.0, f"{have / 1e6:.0f} MB")
    return have >= total


def _flowing(answer: httpx.Response) -> Iterator[bytes]:
    """What a server sends, as long as more than a drip comes: a timeout is for each read.

    Raises httpx.ReadTimeout when STALL_SECONDS have brought less than SLOW bytes each.
    """
    import httpx

    since, came = time.monotonic(), 0
    for data in answer.iter_raw():
        yield data
        came += len(data)
        now = time.monotonic()
        if now - since > STALL_SECONDS:
            if came < SLOW * STALL_SECONDS:
                what = "too little comes"
                raise httpx.ReadTimeout(what, request=answer.request)
            since, came = now, 0


def _said(error: Exception) -> str:
    """What went wrong with a connection, in words."""
    import httpx

    match error:
        case httpx.ConnectTimeout():
            return f"no answer within {CONNECT_SECONDS:g} s"
        case httpx.TimeoutException():
            return f"stalled for {STALL_SECONDS:g} s"
        case httpx.RemoteProtocolError() | httpx.ReadError():
            return "cut short"
        case _:
            return str(error) or type(error).__name__
