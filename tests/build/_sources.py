"""Made-up PostgreSQL trees, and a server that can be told to misbehave."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ptrack_build.matrix import Major

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MD = "src/backend/storage/smgr/md.c"
SUITE = "trial"


def major(name: str = "17", *, suites: tuple[str, ...] = (SUITE,)) -> Major:
    """A row of a matrix."""
    if name == "devel":
        return Major(name=name, number=20, branch="master", state="devel")
    return Major(
        name=name,
        number=int(name),
        branch=f"REL_{name}_STABLE",
        state="stable",
        suites=suites,
    )


def tree(version: str, *, bulk: int = 0) -> dict[str, bytes]:
    """The files of a PostgreSQL that is just enough to be taken for one.

    bulk: bytes of incompressible ballast.
    """
    files = {
        "configure": b"#!/bin/sh\n",
        "configure.ac": f"AC_INIT([PostgreSQL], [{version}], [x@example.org])\n".encode(),
        ".gitignore": b"*.c\n/ignored\n",
        ".gitattributes": b"*.sgml export-ignore\nVERSION export-subst\n",
        "VERSION": b"$Format:%H$\r\n",
        "doc/book.sgml": b"<book/>\n",
        "ignored": b"in the tree all the same\n",
        MD: b"/* md.c */\n",
        'a file "with" a name.txt': b"x\n",
    }
    if bulk:
        files["ballast"] = b"".join(
            hashlib.sha256(f"{version}{n}".encode()).digest() for n in range(bulk // 32)
        )
    return files


def write_tree(top: Path, files: Mapping[str, bytes]) -> Path:
    """Put files below a directory."""
    for name, data in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if name == "configure":
            path.chmod(0o755)
    return top


def tarball(
    files: Mapping[str, bytes], top: str = "postgresql", extra: tuple[tarfile.TarInfo, ...] = ()
) -> bytes:
    """A .tar.gz of files below one directory, and of members without contents as they are."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(data)
            member.mode = 0o755 if name == "configure" else 0o644
            tar.addfile(member, io.BytesIO(data))
        for member in extra:
            tar.addfile(member)
    return gzip.compress(out.getvalue(), mtime=0)


def git(*arguments: str, cwd: Path, check: bool = True) -> str:
    """Run git as somebody without settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        **{
            f"GIT_{who}_{what}": "t@example.org"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, env=env, check=check, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(repository: Path, files: Mapping[str, bytes], message: str = "x") -> str:
    """Commit exactly these files to the branch that is checked out."""
    git("rm", "-rqf", "--ignore-unmatch", ".", cwd=repository)
    write_tree(repository, files)
    git("add", "-Af", ".", cwd=repository)
    git("commit", "-q", "--allow-empty", "-m", message, cwd=repository)
    return git("rev-parse", "HEAD", cwd=repository)


def repository(path: Path, branches: Mapping[str, str]) -> Path:
    """A work tree whose branches hold trees of these versions; the last is checked out."""
    path.mkdir(parents=True)
    git("init", "-q", "--initial-branch=start", cwd=path)
    commit(path, {"README": b"start\n"})
    for branch, version in branches.items():
        git("checkout", "-q", "-b", branch, "start", cwd=path)
        commit(path, tree(version), f"Stamp {version}.")
    return path


@dataclass
class Behaviour:
    """How to serve one path: each list is used up from its front, one item a request.

    cut: send only so many bytes of what was promised; stall: then say nothing for seconds; drip:
    send what is left byte for byte, with so many seconds between them; status: answer this instead
    of 200; endless: after the data go on as long as somebody listens, without having said how much
    it is; length: what to say instead of how much it is. poured: the bytes sent or about to be, but
    for those that drip.
    """

    data: bytes
    ranges: bool = True
    cut: list[int] = field(default_factory=list)
    stall: list[float] = field(default_factory=list)
    drip: float = 0.0
    status: list[int] = field(default_factory=list)
    endless: bool = False
    length: int | None = None
    poured: int = 0


class Server:
    """An HTTP server on the loopback interface."""

    def __init__(self) -> None:
        self.files: dict[str, Behaviour] = {}
        self.requests: list[tuple[str, str]] = []  # path, Range
        self.stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def put(self, path: str, data: bytes) -> Behaviour:
        """Serve data at a path."""
        self.files[path] = Behaviour(data)
        return self.files[path]

    def release(self, version: str, data: bytes, sha256: str | None = None) -> Behaviour:
        """Serve a release as PostgreSQL's download server does, and list it."""
        listed = self.files.setdefault("/", Behaviour(b""))
        listed.data += f'<a href="v{version}/">v{version}/</a>\n'.encode()
        path = f"/v{version}/postgresql-{version}.tar.gz"
        digest = sha256 or hashlib.sha256(data).hexdigest()
        self.put(f"{path}.sha256", f"{digest}  postgresql-{version}.tar.gz\n".encode())
        return self.put(path, data)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range", "")
        self.requests.append((request.path, wanted))
        found = self.files.get(request.path)
        if found is None or found.status:
            request.send_error(found.status.pop(0) if found else 404)
            return
        data, status = found.data, 200
        if wanted and found.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                request.send_error(416)
                return
            data, status = data[start:], 206
        request.send_response(status)
        if not found.endless:
            length = len(data) if found.length is None else found.length
            request.send_header("Content-Length", str(length))
        if status == 206:
            whole = len(found.data)
            span = f"bytes {whole - len(data)}-{whole - 1}/{whole}"
            request.send_header("Content-Range", span)
        request.end_headers()
        cut = found.cut.pop(0) if found.cut else len(data)
        found.poured += min(cut, len(data))  # first: who has read enough need not wait for us
        request.wfile.write(data[:cut])
        request.wfile.flush()
        while found.endless and not self.stopping.is_set():
            found.poured += 1 << 16
            request.wfile.write(bytes(1 << 16))
        if found.drip:
            for at in range(cut, len(data)):
                if self.stopping.wait(found.drip):
                    return
                request.wfile.write(data[at : at + 1])
                request.wfile.flush()
        if found.stall and cut < len(data):
            deadline = time.monotonic() + found.stall.pop(0)
            while time.monotonic() < deadline and not self.stopping.wait(0.05):
                pass

    def asked(self, suffix: str) -> list[str]:
        """The Range headers ("" without) of the requests whose path ends so."""
        return [wanted for path, wanted in self.requests if path.endswith(suffix)]


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server under way."""
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


@contextlib.contextmanager
def git_over_http(top: Path) -> Iterator[tuple[str, list[str]]]:
    """The repositories below a directory, by a git server: its URL, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.backend(b"")

        def do_POST(self) -> None:
            self.backend(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

        def backend(self, body: bytes) -> None:
            path, _, query = self.path.partition("?")
            path = urlsplit(path).path  # whole addresses are what a proxy is asked for
            asked.append(path)
            env = os.environ | {
                "GIT_PROJECT_ROOT": str(top),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            }
            done = subprocess.run(
                ["git", "http-backend"], env=env, input=body, capture_output=True, check=True
            )
            head, _, data = done.stdout.partition(b"\r\n\r\n")
            fields = [line.partition(": ") for line in head.decode().split("\r\n")]
            status = next((value for name, _, value in fields if name == "Status"), "200")
            self.send_response(int(status.split()[0]))
            for name, _, value in fields:
                if name != "Status":
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}", asked
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
