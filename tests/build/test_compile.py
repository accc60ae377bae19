"""Compile: keyed, whole, locked; on a PostgreSQL of two files that takes no time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cache, host
from ptrack_build import compile as compiling
from ptrack_build.compile import RELEASE, TEST
from ptrack_build.errors import CompileError, HostError
from tests.build.conftest import Fake, Script, make_fake, on_a_small_disk

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("make")), reason="needs gcc and make"
)


@pytest.fixture(autouse=True)
def _this_machine_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install nothing; the real needs of a real PostgreSQL are not asked for."""
    monkeypatch.setattr(host, "ensure", lambda *_args, **_options: None)


def published() -> list[str]:
    """What is in the cache that another run would take for finished or would have to clean up."""
    return [
        f"{kind}/{path.name}"
        for kind in ("server", "prefix")
        for path in (cache.root() / kind).glob("*")
    ]


def test_a_build_is_whole_linked_and_described(fake: Fake) -> None:
    built = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert (built.path / "lib" / "ptrack.so").is_file()
    assert subprocess.run([built.bin / "postgres"], check=False).returncode == 0
    assert (cache.root() / "pg-17").resolve() == built.path
    info = json.loads((built.path / ".ptrack" / "info.json").read_text())
    assert info["version"] == "17.0"
    assert info["variant"] == "release"
    assert built.path.stat().st_mode & 0o777 == 0o755
    assert built.pg_config.is_file()
    assert built.log.is_file()


def _with_what_takes_long(
    tree: Path, monkeypatch: pytest.MonkeyPatch, *, without: str = ""
) -> None:
    """Directories whose rules say what is compiled, and want the generated header or none.

    One job at a time: which of two is first would be the machine's choice.
    """
    monkeypatch.setattr(host, "jobs", lambda: 1)
    header = "src/backend/names.h"
    sources = {
        "src/interfaces/ecpg/preproc": ("ecpg.trailer", "preproc.o", f"test ! -e $(T)/{header}"),
        "src/backend/parser": ("gram.y", "gram.o", f"test -e $(T)/{header}"),
        "src/bin/psql": ("tab-complete.in.c", "tab-complete.o", f"test -e $(T)/{header}"),
        "src/backend/utils/adt": ("numeric.c", "objfiles.txt", f"test -e $(T)/{header}"),
    }
    for name, (source, goal, test) in sources.items():
        folder = tree / name
        folder.mkdir(parents=True)
        up = "/".join(".." for _ in name.split("/"))
        (folder / "Makefile").write_text(f"T = {up}\n{goal}:\n\t{test}\n\techo compiles $@\n")
        if name != without:
            (folder / source).write_text("")
    (tree / "src/backend/Makefile").write_text("generated-headers:\n\techo > names.h\n")


def test_what_takes_longest_is_compiled_first(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rules of its directory, and after the generated headers where it needs them."""
    _with_what_takes_long(fake.tree.path, monkeypatch)
    built = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    said = (cache.root() / "log/build-17.log").read_text()
    goals = ("preproc.o", "gram.o", "tab-complete.o", "objfiles.txt")
    order = [said.index(f"\ncompiles {goal}\n") for goal in goals]
    order += [said.index("-c -o postgres.o")]
    assert order == sorted(order)
    assert (built.bin / "postgres").is_file()


def test_what_a_major_does_not_have_is_not_compiled_first(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_what_takes_long(fake.tree.path, monkeypatch, without="src/bin/psql")
    compiling.build(fake.tree, RELEASE, extension=fake.extension)
    said = (cache.root() / "log/build-17.log").read_text()
    assert "\ncompiles gram.o\n" in said
    assert "tab-complete" not in said


def test_what_fails_first_fails_the_build(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_what_takes_long(fake.tree.path, monkeypatch)
    (fake.tree.path / "src/bin/psql/Makefile").write_text("tab-complete.o:\n\texit 3\n")
    with pytest.raises(CompileError, match=r"tab-complete\.o\] Error 3"):
        compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert "postgres.o" not in (cache.root() / "log/build-17.log").read_text()
    assert not published()


def test_what_is_there_is_not_built_again(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    log = cache.root() / "log/extension-17.log"
    written = log.stat()
    monkeypatch.setenv("FAKE_CONFIGURE_FAILS", "1")
    began = time.monotonic()
    second = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert second.path == first.path
    assert time.monotonic() - began < 1
    assert (log.stat().st_ino, log.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_an_edit_of_the_extension_leaves_the_server_alone(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    before = (first.path / "lib" / "ptrack.so").read_bytes()
    (fake.extension / "ptrack.c").write_text("int ptrack = 2;\n")
    monkeypatch.setenv("FAKE_CONFIGURE_FAILS", "1")
    second = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert second.server_key == first.server_key
    assert second.path != first.path
    assert (second.path / "lib" / "ptrack.so").read_bytes() != before
    assert (first.path / "lib" / "ptrack.so").read_bytes() == before, "it must never change"
    assert (cache.root() / "pg-17").resolve() == second.path


def test_what_compiling_in_place_leaves_is_no_edit(fake: Fake) -> None:
    first = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    (fake.extension / "ptrack.o").write_bytes(b"\0")
    (fake.extension / ".deps").mkdir()
    (fake.extension / ".deps" / "ptrack.Po").write_text("")
    assert compiling.build(fake.tree, RELEASE, extension=fake.extension).path == first.path


def test_the_key_follows_patch_variant_and_environment(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [compiling.build(fake.tree, RELEASE, extension=fake.extension).key]
    keys.append(compiling.build(fake.tree, TEST, extension=fake.extension).key)
    other = fake.edit_server("p2")
    keys.append(compiling.build(other, RELEASE, extension=fake.extension).key)
    monkeypatch.setenv("CFLAGS", "-O1")
    keys.append(compiling.build(fake.tree, RELEASE, extension=fake.extension).key)
    assert len(set(keys)) == len(keys)
    assert (cache.root() / "pg-17-test").resolve().name in {key[:32] for key in keys}


@pytest.mark.parametrize(
    "name",
    ["ICU_CFLAGS", "ICU_LIBS", "LZ4_CFLAGS", "LZ4_LIBS", "ZSTD_CFLAGS", "ZSTD_LIBS", "XML2_CONFIG",
     "XML2_CFLAGS", "XML2_LIBS", "PKG_CONFIG", "PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR",
     "CONFIG_SITE", "CPP", "CXX", "CXXFLAGS", "YFLAGS", "LFLAGS", "CCC"],
)  # fmt: skip
def test_the_keys_follow_what_configure_documents(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name, raising=False)
    first = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    monkeypatch.setenv(name, "/nonexistent/other")
    assert compiling.build(fake.tree, RELEASE, extension=fake.extension).key != first.key
    assert len(list((cache.root() / "memo").glob("configure-*"))) == 2


def test_the_keys_follow_the_contents_of_a_site_file(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = tmp_path / "config.site"
    monkeypatch.setenv("CONFIG_SITE", str(site))
    keys = set()
    for text in ("", "CFLAGS=-O1\n", "CFLAGS=-O3\n"):
        site.write_text(text)
        keys.add(compiling.build(fake.tree, RELEASE, extension=fake.extension).key)
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("program", "setting"), [("bison", "BISON"), ("flex", "FLEX"), ("perl", "PERL")]
)
def test_the_keys_follow_what_makes_the_parsers(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, setting: str
) -> None:
    monkeypatch.delenv(setting, raising=False)
    (tmp_path / "tools").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:{os.environ['PATH']}")
    tool = tmp_path / "tools" / program
    keys = []
    for version in ("1.0", "1.1", "1.1"):
        tool.write_text(f"#!/bin/sh\necho {program} {version}\n")
        tool.chmod(0o755)
        keys.append(compiling.build(fake.tree, RELEASE, extension=fake.extension).key)
    assert keys[0] != keys[1] == keys[2]
    other = tool.rename(tool.with_name("other"))
    monkeypatch.setenv(setting, str(other))
    named = compiling.build(fake.tree, RELEASE, extension=fake.extension).key
    other.write_text("#!/bin/sh\necho 2.0\n")
    assert compiling.build(fake.tree, RELEASE, extension=fake.extension).key != named
    monkeypatch.setenv(setting, str(tmp_path / "nowhere"))
    compiling.build(fake.tree, RELEASE, extension=fake.extension)


def test_segments_are_small_where_configure_cannot_say_so(tmp_path: Path, own_cache: Path) -> None:
    del own_cache
    old = make_fake(tmp_path / "old", "15")
    built = compiling.build(old.tree, TEST, extension=old.extension)
    text = (built.path / "share" / "pg_config.h").read_text()
    assert text == "#define RELSEG_SIZE 8\n"


def test_flags_that_a_configure_does_not_know_are_left_out(fake: Fake) -> None:
    built = compiling.build(fake.tree, TEST, extension=fake.extension)
    configured = next(
        line for line in built.log.read_text().splitlines() if line.startswith("configured with")
    )
    assert "--enable-cassert" in configured
    assert "injection" not in configured
    assert "segsize" not in configured


def test_the_compiler_that_is_recorded_is_not_ccache(fake: Fake) -> None:
    built = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert "configured with gcc:" in built.log.read_text()


def test_what_does_not_compile_shows_the_telling_lines_and_the_log(fake: Fake) -> None:
    broken = fake.edit_server("p3", "int main(void) { return nonsense; }\n")
    with pytest.raises(CompileError, match="nonsense") as caught:
        compiling.build(broken, RELEASE, extension=fake.extension)
    error = caught.value
    assert error.log is not None
    assert "nonsense" in error.log.read_text()
    assert error.hint
    assert published() == []
    assert not (cache.root() / "pg-17").exists()


def test_an_extension_that_does_not_compile_keeps_the_server(fake: Fake) -> None:
    (fake.extension / "ptrack.c").write_text("int ptrack = nonsense;\n")
    with pytest.raises(CompileError, match="nonsense"):
        compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert [entry.split("/")[0] for entry in published()] == ["server"]
    (fake.extension / "ptrack.c").write_text("int ptrack = 1;\n")
    compiling.build(fake.tree, RELEASE, extension=fake.extension)


def test_warnings_are_errors_in_the_test_variant_and_where_asked_for(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefix that is there without having been asked is no way around it."""
    (fake.extension / "ptrack.c").write_text("static int unused;\nint ptrack = 1;\n")
    lenient = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    with pytest.raises(CompileError, match="unused"):
        compiling.build(fake.tree, TEST, extension=fake.extension)
    monkeypatch.setenv("PTRACK_WERROR", "1")
    with pytest.raises(CompileError, match="unused"):
        compiling.build(fake.tree, RELEASE, extension=fake.extension)
    monkeypatch.setenv("PTRACK_WERROR", "0")
    assert compiling.build(fake.tree, RELEASE, extension=fake.extension).key == lenient.key


def test_that_warnings_are_errors_compiles_the_extension_alone(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenient = [compiling.build(fake.tree, v, extension=fake.extension) for v in (RELEASE, TEST)]
    monkeypatch.setenv("PTRACK_WERROR", "1")
    strict = [compiling.build(fake.tree, v, extension=fake.extension) for v in (RELEASE, TEST)]
    assert [b.server_key for b in strict] == [b.server_key for b in lenient]
    assert strict[0].key != lenient[0].key
    assert strict[1].key == lenient[1].key, "these were strict before"


def test_there_is_no_extension(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="no extension"):
        compiling.build(fake.tree, RELEASE, extension=tmp_path / "none")


def test_a_configure_that_fails(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CONFIGURE_FAILS", "1")
    with pytest.raises(CompileError, match="it was told to fail"):
        compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert published() == []


def test_what_configure_told_its_own_log_only_is_shown(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config.log is removed with the work directory."""
    monkeypatch.setenv("FAKE_CONFIGURE_LINKS", "1")
    compiling.build(fake.tree, RELEASE, extension=fake.extension)
    monkeypatch.setenv("CC", "gcc -std=nonsense")
    with pytest.raises(CompileError, match=r"error: .*-std=nonsense") as caught:
        compiling.build(fake.tree, RELEASE, extension=fake.extension)
    for text in (caught.value.what, caught.value.log.read_text() if caught.value.log else ""):
        assert "checking whether the C compiler works\n" in text
        assert "another check" not in text
        assert "int main" not in text
        assert "ac_cv" not in text


def test_too_little_room_is_said_before_anything_starts(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "FREE_MB", 10**9)
    with pytest.raises(HostError, match="MB free") as caught:
        compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert "PTRACK_CACHE" in (caught.value.hint or "")


def test_a_disk_that_fills_up_is_named_and_leaves_nothing(fake: Fake) -> None:
    full = "echo 'cp: error writing: No space left on device' >&2; exit 1"
    makefile = fake.tree.path / "GNUmakefile.in"
    makefile.write_text(makefile.read_text().replace("$(FAKE_INSTALL)", full))
    with pytest.raises(CompileError, match="No space left") as caught:
        compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert "free some space" in (caught.value.hint or "")
    assert published() == []


FULL = """
from pathlib import Path
from ptrack_build import cache, compile as compiling, host
from ptrack_build.errors import CompileError
from tests.build.conftest import make_fake
host.ensure = lambda *a, **o: None
compiling.FREE_MB = 0
fake = make_fake(Path({folder!r}))
big = fake.edit_server("p9", "char big[400000] = {{1}};\\nint main(void) {{ return 0; }}\\n")
try:
    compiling.build(big, compiling.RELEASE, extension=fake.extension)
except CompileError as error:
    print(error)
print([path.name for kind in ("server", "prefix") for path in cache.directory(kind).iterdir()])
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    said = on_a_small_disk("200k", tmp_path / "small", FULL.format(folder=str(tmp_path / "fake")))
    assert re.search(r"No space left|could not be compiled and installed", said)
    assert said.splitlines()[-1] == "[]"


BUILD = """
import sys
from pathlib import Path
from ptrack_build import compile as compiling, host
from ptrack_build.run import terminate_politely
from tests.build.conftest import make_fake
terminate_politely()
host.ensure = lambda *a, **o: None
fake = make_fake(Path(sys.argv[1] if len(sys.argv) > 1 else {folder!r}))
print(compiling.build(fake.tree, compiling.RELEASE, extension=fake.extension).path)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing_that_looks_finished(
    tmp_path: Path, own_cache: Path, number: signal.Signals
) -> None:
    started = tmp_path / "started"
    env = {
        "PTRACK_CACHE": str(own_cache),
        "FAKE_BEFORE": f"touch {started}; exec sleep 15",
        "CCACHE_DISABLE": "1",
    }
    process = Script(BUILD.format(folder=str(tmp_path / "a")), env).start()
    for _ in range(300):
        if started.exists():
            break
        time.sleep(0.05)
    assert started.exists(), "it never began to compile"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    left = [entry for entry in published() if not entry.split("/")[1].startswith(".")]
    assert left == []
    if number is not signal.SIGKILL:
        assert published() == []
    # The next run, with the same inputs, builds it whole.
    again = Script(BUILD.format(folder=str(tmp_path / "b")), {"PTRACK_CACHE": str(own_cache)})
    out, _ = again.start().communicate(timeout=60)
    assert "/prefix/" in out.splitlines()[-1], out
    whole = [entry for entry in published() if not entry.split("/")[1].startswith(".")]
    assert len(whole) == 2


def test_two_runs_at_once_build_once(tmp_path: Path, own_cache: Path) -> None:
    """The first goes on when the second waits for it."""
    runs, go = tmp_path / "runs", tmp_path / "go"
    wait = f"timeout 30 sh -c 'until [ -e {go} ]; do sleep 0.05; done'"
    env = {"PTRACK_CACHE": str(own_cache), "FAKE_BEFORE": f"echo run >> {runs}; {wait}"}
    processes = [Script(BUILD.format(folder=str(tmp_path / "a")), env).start()]
    try:
        for _ in range(300):
            if runs.exists():
                break
            time.sleep(0.05)
        assert runs.exists(), "it never began to compile"
        processes.append(Script(BUILD.format(folder=str(tmp_path / "b")), env).start())
        assert processes[1].stdout is not None
        said = ""
        while "waiting for another run that builds PostgreSQL 17" not in said:
            line = processes[1].stdout.readline()
            assert line, said
            said += line
    finally:
        go.touch()
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert runs.read_text() == "run\n"


def test_old_prefixes_go_and_recent_ones_stay(fake: Fake) -> None:
    paths = []
    for number in range(3):
        (fake.extension / "ptrack.c").write_text(f"int ptrack = {number};\n")
        paths.append(compiling.build(fake.tree, RELEASE, extension=fake.extension).path)
    os.utime(paths[0] / ".ptrack", (1, 1))
    (fake.extension / "ptrack.c").write_text("int ptrack = 9;\n")
    compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert [path.exists() for path in paths] == [False, True, True]


def test_an_old_prefix_goes_by_one_rename(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed meanwhile leaves nothing that looks finished."""
    old = compiling.build(fake.tree, RELEASE, extension=fake.extension).path
    (fake.extension / "ptrack.c").write_text("int ptrack = 2;\n")
    os.utime(old / ".ptrack", (1, 1))
    remove = cache.remove

    def killed(path: Path) -> None:
        if (path / ".ptrack" / "info.json").exists():
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(cache, "remove", killed)
    cache.link("pg-17", fake.tree.path)
    with pytest.raises(KeyboardInterrupt):
        compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert not old.exists()


def test_what_is_left_of_a_prefix_is_replaced(fake: Fake) -> None:
    first = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    for path in (first.path, cache.root() / "server" / first.server_key[:32]):
        (path / "bin" / "postgres").unlink()
        (path / ".ptrack" / "info.json").unlink()
    again = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert again.path == first.path
    assert (again.bin / "postgres").is_file()
    assert (again.path / ".ptrack" / "info.json").is_file()


@pytest.mark.parametrize("name", ["my check out", "it's $HOME & #1"])
def test_a_checkout_may_be_anywhere(fake: Fake, tmp_path: Path, name: str) -> None:
    place = shutil.copytree(fake.extension, tmp_path / name)
    built = compiling.build(fake.tree, RELEASE, extension=place)
    assert (built.path / "lib" / "ptrack.so").is_file()
    assert f"={place}".encode() not in (built.path / ".ptrack/compile_commands.json").read_bytes()


def test_compile_commands_name_the_sources_where_they_are_edited(fake: Fake) -> None:
    built = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    entries = json.loads((built.path / ".ptrack" / "compile_commands.json").read_text())
    assert [entry["file"] for entry in entries] == ["ptrack.c"]
    assert entries[0]["directory"] == "@extension@"
    arguments = entries[0]["arguments"]
    assert not any("prefix-map" in word for word in arguments)
    # what cannot be written beside the sources
    assert not [word for word in arguments if word.startswith("-M") or ".deps" in word]
    assert arguments[-1] == "ptrack.c"


def test_editors_are_told_of_the_usual_cache_alone(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And find the headers where they stay when this very server is removed."""
    monkeypatch.setattr(compiling, "REPO", tmp_path)
    monkeypatch.setattr(compiling, "EXTENSION", fake.extension)
    pgxs = fake.tree.path / "pgxs.mk"
    pgxs.write_text(pgxs.read_text().replace("-fPIC", "-fPIC -I$(shell $(PG_CONFIG) --pkglibdir)"))
    target = tmp_path / "compile_commands.json"
    built = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    assert not target.exists()
    monkeypatch.setattr(cache, "usual", lambda: True)
    compiling.build(fake.tree, RELEASE, extension=fake.extension)
    (entry,) = json.loads(target.read_text())
    assert entry["directory"] == str(fake.extension)
    assert f"-I{cache.root()}/pg-17/lib" in entry["arguments"]
    assert str(cache.root() / "server") not in target.read_text()
    assert (cache.root() / "pg-17").resolve() == built.path


def test_the_mask_of_the_process_does_not_reach_the_prefix(fake: Fake) -> None:
    before = os.umask(0o077)
    try:
        built = compiling.build(fake.tree, RELEASE, extension=fake.extension)
    finally:
        os.umask(before)
    closed = [p for p in built.path.rglob("*") if not p.stat().st_mode & 0o004]
    assert closed == []
