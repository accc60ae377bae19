"""Fixtures of the build line's own tests: a cache of their own, and a PostgreSQL of two files."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cache, matrix
from ptrack_build.patch import PatchedTree
from ptrack_build.source import SourceTree

if TYPE_CHECKING:
    from collections.abc import Mapping

REPO = Path(__file__).resolve().parents[2]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control starts what is in its background deaf to ctrl-C, and that is
    # inherited; what these tests start has to hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # likewise from the session that runs these tests


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "cache"))
    for name in (
        "CC",
        "CFLAGS",
        "CPPFLAGS",
        "LDFLAGS",
        "COPT",
        "PTRACK_JOBS",
        "MAKEFLAGS",
        "PTRACK_WERROR",
    ):
        monkeypatch.delenv(name, raising=False)
    return cache.root()


@dataclass(frozen=True)
class Script:
    """Python code run in a process of its own, with the repository importable."""

    code: str
    env: Mapping[str, str]

    def start(self, *, start_new_session: bool = False) -> subprocess.Popen[str]:
        """Start it; both streams are one pipe."""
        return subprocess.Popen(
            [sys.executable, "-c", self.code], cwd=REPO, text=True,
            env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1", **self.env},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=start_new_session,
        )  # fmt: skip


def on_a_small_disk(size: str, place: Path, code: str) -> str:
    """What Python code prints whose cache is on a file system of that size, mounted at place.

    In a namespace of its own, which most systems let anybody have.
    """
    place.mkdir()
    mount = f"mount -t tmpfs -o size={size} tmpfs {shlex.quote(str(place))}"
    reason = ""
    for apart in (["unshare", "-m"], ["unshare", "-Urm"]):
        try:
            words = [*apart, "sh", "-c", mount]
            tried = subprocess.run(words, check=False, capture_output=True, text=True)
        except FileNotFoundError as error:
            pytest.skip(f"no place for a small file system: {error}")
        if tried.returncode == 0:
            break
        reason = tried.stderr.strip()
    else:
        pytest.skip(f"no small file system may be mounted: {reason}")
    done = subprocess.run(
        [*apart, "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", code],
        cwd=REPO, check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPO), "PTRACK_CACHE": str(place),
             "CCACHE_DISABLE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


CONFIGURE = r"""#!/bin/sh
# knows: enable-debug enable-cassert with-icu with-openssl with-lz4 with-zstd
src=$(cd "$(dirname "$0")" && pwd)
[ -z "$FAKE_CONFIGURE_FAILS" ] || { echo "configure: error: it was told to fail"; exit 1; }
if [ -n "$FAKE_CONFIGURE_LINKS" ]; then
    echo 'int main(void) { return 0; }' > conftest.c
    {
        echo "configure:1: checking for C compiler version"
        echo "gcc: warning: of another check"
        echo "configure:2: checking whether the C compiler works"
        echo "configure:3: $CC conftest.c >&5"
    } > config.log
    echo "checking whether the C compiler works..."
    if ! $CC conftest.c >> config.log 2>&1; then
        {
            echo "configure: failed program was:"
            sed 's/^/| /' conftest.c
            echo "configure:5: error: C compiler cannot create executables"
            echo "ac_cv_env_CC_value='$CC'"
        } >> config.log
        echo "configure: error: C compiler cannot create executables"
        echo 'See `config.log'"' for more details"
        exit 77
    fi
fi
for arg; do case $arg in --cache-file=*) echo 'ac_cv_fake=yes' > "${arg#*=}" ;; esac; done
echo "configured with $CC: $*"
[ ! -d "$src/src" ] || cp -R "$src/src" .
mkdir -p src/include
echo '#define RELSEG_SIZE 131072' > src/include/pg_config.h
sed "s|@src@|$src|; s|@args@|$*|" "$src/GNUmakefile.in" > GNUmakefile
"""

MAKEFILE = r"""
src = @src@
world-bin: postgres
postgres: $(src)/postgres.c
	$(FAKE_BEFORE)
	$(CC) -DARGS="\"@args@\"" -c -o postgres.o $(src)/postgres.c
	$(CC) -o postgres postgres.o
D = $(DESTDIR)/usr/local/pgsql
install-world-bin: postgres
	$(FAKE_INSTALL)
	mkdir -p $(D)/bin $(D)/lib $(D)/share/extension
	cp postgres $(D)/bin/
	cp src/include/pg_config.h $(D)/share/
	cp $(src)/pg_config $(D)/bin/ && chmod 755 $(D)/bin/pg_config
	cp $(src)/pgxs.mk $(D)/lib/
"""

PG_CONFIG = r"""#!/bin/sh
here=$(cd "$(dirname "$0")/.." && pwd)
case $1 in
--pgxs) echo "$here/lib/pgxs.mk" ;;
--pkglibdir) echo "$here/lib" ;;
--version) echo "PostgreSQL 17.0" ;;
esac
"""

PGXS = r"""
CC = gcc
all: ptrack.so
ptrack.o: ptrack.c
	@mkdir -p .deps
	$(CC) $(COPT) -fPIC -c -o ptrack.o ptrack.c -MMD -MP -MF .deps/ptrack.Po
ptrack.so: ptrack.o
	$(CC) -shared -o ptrack.so ptrack.o
install: all
	cp ptrack.so $(shell $(PG_CONFIG) --pkglibdir)/
"""


@dataclass(frozen=True)
class Fake:
    """A tree that configures, compiles and installs in no time, and an extension for it."""

    tree: PatchedTree
    extension: Path

    def edit_server(self, digest: str, text: str = "int main(void) { return 0; }\n") -> PatchedTree:
        """Another patched tree of the same major."""
        path = self.tree.path.with_name(digest)
        path.mkdir()
        for file in self.tree.path.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
            (path / file.name).chmod(file.stat().st_mode)
        (path / "postgres.c").write_text(text)
        return patched(self.tree.source, path, digest)


def patched(source: SourceTree, path: Path, digest: str) -> PatchedTree:
    """A patched tree with a made-up digest."""
    return PatchedTree(source=source, path=path, key=digest, patch_digest=digest, how="applied")


def make_fake(folder: Path, major: str = "17") -> Fake:
    """Write the tree and the extension below folder."""
    tree, extension = folder / "tree", folder / "extension"
    tree.mkdir(parents=True)
    extension.mkdir()
    (tree / "configure").write_text(CONFIGURE)
    (tree / "configure").chmod(0o755)
    (tree / "GNUmakefile.in").write_text(MAKEFILE)
    (tree / "pg_config").write_text(PG_CONFIG)
    (tree / "pgxs.mk").write_text(PGXS)
    (tree / "postgres.c").write_text("int main(void) { return 0; }\n")
    (extension / "Makefile").write_text("include $(shell $(PG_CONFIG) --pgxs)\n")
    (extension / "ptrack.c").write_text("int ptrack = 1;\n")
    source = SourceTree(
        major=matrix.load().major(major),
        version=f"{major}.0",
        commit="0" * 40,
        mirror=folder / "mirror.git",
        digest="1" * 40,
        provider="path",
        origin="a test",
    )
    return Fake(tree=patched(source, tree, "p1"), extension=extension)


@pytest.fixture
def fake(tmp_path: Path, own_cache: Path) -> Fake:
    """The tiny PostgreSQL, as major 17, and an empty cache."""
    del own_cache
    return make_fake(tmp_path / "fake")
