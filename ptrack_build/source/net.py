"""Knowing within seconds that a server cannot be reached, and not asking again for a while.

Git and apt wait minutes for a server behind a wall that drops packets. So a plain connection is
tried first, with a deadline that covers the name lookup as well; what failed is remembered in the
cache for a few minutes, so that nine majors built at once or in turn wait once.
"""

from __future__ import annotations

import errno
import os
import queue
import re
import socket
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from ptrack_build import cache
from ptrack_build.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CONNECT_SECONDS = 5.0
REMEMBER_SECONDS = 300.0
#: Since when this run is under way: what it has found itself needs no date.
STARTED = time.time()

#: What comes of a kind of address that this machine, or a network on the way, does not have.
NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}

PORTS = {"http": 80, "https": 443, "git": 9418, "ssh": 22, "ftp": 21}


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A server that could not be reached: when (seconds since 1970) and why."""

    when: float
    reason: str


def checked(url: str, setting: str, schemes: Iterable[str] = PORTS) -> str:
    """The URL, if it can be one. Raises UsageError naming the setting that it is from."""
    try:
        parts = urlsplit(url)
        reason = "" if parts.port != 0 else "there is no port 0"
    except ValueError as error:
        reason = str(error)
    else:
        if parts.scheme not in schemes or not parts.hostname:
            reason = f"it does not begin with {' or '.join(f'{name}://' for name in schemes)}"
        elif re.search(r"[\x00-\x20\x7f]", url):
            reason = "there is a space or a control character in it"
    if reason:
        what = f"{setting}={url} is no address: {reason}"
        raise UsageError(what, hint=f"write it as https://host/path, or unset {setting}")
    return url


def endpoint(url: str) -> tuple[str, int] | None:
    """Host and port that a URL leads to, or None where that cannot be told (a file, a proxy).

    Nor can it of ssh, whose own configuration says what a host's name stands for and what to pass.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.scheme not in PORTS or parts.scheme == "ssh" or not parts.hostname:
        return None
    if parts.scheme in {"http", "https"}:
        proxies = getproxies()
        if (proxies.get(parts.scheme) or proxies.get("all")) and not proxy_bypass(parts.hostname):
            return None
    try:
        return parts.hostname, parts.port or PORTS[parts.scheme]
    except ValueError:
        return None


def unreachable(urls: Iterable[str], *, refresh: bool = False) -> dict[str, str]:
    """Of these URLs those whose server does not answer, with the reason; all are tried at once."""
    places = {url: place for url in urls if (place := endpoint(url)) is not None}
    known = {} if refresh else _remembered()
    now = time.time()
    reasons: dict[tuple[str, int], str] = {}
    for host, port in set(places.values()):
        failure = known.get(f"{host}:{port}")
        if failure is not None and 0 <= now - failure.when < REMEMBER_SECONDS:
            ago = STARTED - failure.when
            before = f", tried {ago:.0f} s before (PTRACK_REFRESH=1 tries again)" if ago > 0 else ""
            reasons[host, port] = failure.reason + before  # the same for each major of this run
    untried = {place for place in places.values() if place not in reasons}
    failures = _try_all(untried)
    if failures:
        _remember(failures, now)
    reasons |= failures
    return {url: reasons[place] for url, place in places.items() if place in reasons}


def _try_all(places: set[tuple[str, int]]) -> dict[tuple[str, int], str]:
    failures: dict[tuple[str, int], str] = {}
    pending = set(places)

    def attempt(place: tuple[str, int]) -> None:
        if reason := _try(*place):
            failures[place] = reason
        pending.discard(place)

    threads = [threading.Thread(target=attempt, args=(p,), daemon=True) for p in places]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + CONNECT_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = {p: f"{p[0]} does not answer within {CONNECT_SECONDS:g} s" for p in set(pending)}
    return dict(failures) | late


def _try(host: str, port: int) -> str:
    """Why a connection to none of a host's addresses can be made, or "".

    All are tried at once: where what is sent to one of them is swallowed, another may answer.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        return f"{host} can be no host's name"
    except OSError as error:
        return f"{host}: {(error.strerror or str(error)).lower()}"
    told: queue.SimpleQueue[tuple[bool, str]] = queue.SimpleQueue()

    def connect(address: tuple[str, int]) -> None:
        reason = ""
        no_way = False
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
        except TimeoutError:
            reason = f"{host} does not answer within {CONNECT_SECONDS:g} s"
        except OSError as error:
            reason = f"{host}: {(error.strerror or str(error)).lower()}"
            no_way = error.errno in NO_WAY
        told.put((no_way, reason))

    addresses = set()
    for *_, place in found:
        scope = f"%{place[3]}" if len(place) == 4 and place[3] else ""  # of a link-local one
        addresses.add((f"{place[0]!s}{scope}", int(place[1])))
    for address in addresses:
        threading.Thread(target=connect, args=(address,), daemon=True).start()
    reasons = []
    for _ in addresses:
        reasons.append(told.get())
        if not reasons[-1][1]:
            return ""
    return min(reasons)[1]  # an answer or none, rather than that this machine has no way there


def _file() -> Path:
    # one per user: a cache may be shared
    return cache.directory("source") / f"unreachable-{os.geteuid()}.json"


def _remembered() -> dict[str, Failure]:
    try:
        return msgspec.json.decode(_file().read_bytes(), type=dict[str, Failure])
    except (OSError, msgspec.DecodeError):
        return {}


def _remember(failures: dict[tuple[str, int], str], now: float) -> None:
    known = {k: f for k, f in _remembered().items() if now - f.when < REMEMBER_SECONDS}
    for (host, port), reason in failures.items():
        known[f"{host}:{port}"] = Failure(when=now, reason=reason)
    cache.write(_file(), msgspec.json.encode(known).decode())
