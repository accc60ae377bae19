"""The machine: what is missing is installed, or named in a line that can be pasted."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from ptrack_build import cache, demo, host, matrix, suite
from ptrack_build.errors import HostError, UsageError
from tests.harness import fault

if TYPE_CHECKING:
    from collections.abc import Callable

APT = """#!/bin/sh
echo "apt-get $*" >> {log}
case "$*" in
*install*)
    [ ! -e {log}.asks ] || {{
        rm {log}.asks
        echo "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct it."
        exit 100
    }}
    [ -z "$FAKE_APT_FAILS" ] || {{ echo "E: Unable to locate package"; exit 100; }}
    [ ! -e {log}.no-lists ] || {{ echo "E: Unable to locate package"; exit 100; }}
    for word; do case $word in flex) cp /bin/true {bin}/flex ;; esac; done ;;
*update*)
    [ ! -e {log}.locked ] || {{
        rm {log}.locked
        echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt-get)"
        exit 100
    }}
    rm -f {log}.no-lists ;;
esac
"""

#: Configures what is left, where it is not told to fail.
DPKG = """#!/bin/sh
echo "dpkg $*" >> {log}
[ -z "$FAKE_DPKG_FAILS" ] || {{ echo "dpkg: error processing package flex"; exit 1; }}
rm -f {dpkg}/updates/*
echo "Package: flex\nStatus: install ok installed" > {dpkg}/status
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Path:
    """A PATH with nothing but what a shell needs; its directory."""
    del own_cache
    path = tmp_path / "bin"
    path.mkdir()
    for name in ("sh", "cp", "rm", "true"):
        (path / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(path))
    host._advise.cache_clear()
    return path


@pytest.fixture
def apt(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt-get that writes down what it is asked, and root to ask it; its log."""
    log = tmp_path / "apt.log"
    (bare / "apt-get").write_text(APT.format(log=log, bin=bare))
    (bare / "apt-get").chmod(0o755)
    (bare / "flex").unlink(missing_ok=True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "_lists_stale", lambda: True)
    dpkg = tmp_path / "dpkg"
    (dpkg / "updates").mkdir(parents=True)
    (dpkg / "status").write_text("Package: flex\nStatus: install ok installed\n")
    (bare / "dpkg").write_text(DPKG.format(log=log, dpkg=dpkg))
    (bare / "dpkg").chmod(0o755)
    monkeypatch.setattr(host, "DPKG", dpkg)
    return log


def interrupt(place: Path, how: str) -> None:
    """Leave what dpkg does where it is killed."""
    if how == "updates":
        (place / "updates" / "0001").touch()
    elif how == "asks":
        (place.parent / "apt.log.asks").touch()
    else:
        text = f"Package: make\nStatus: install ok installed\n\nPackage: flex\nStatus: {how}\n"
        (place / "status").write_text(text)


def test_no_compiler(bare: Path) -> None:
    del bare
    with pytest.raises(HostError, match="no C compiler") as caught:
        host.compiler()
    assert "gcc" in (caught.value.hint or "")


def test_a_perl_without_its_library(bare: Path) -> None:
    assert host.missing(["perl"]) == ["perl"]
    perl = bare / "perl"
    perl.write_text('#!/bin/sh\nfor word; do test "$word" != -MFindBin || exit 2; done\n')
    perl.chmod(0o755)
    assert host.missing(["perl"]) == ["perl"]
    perl.write_text("#!/bin/sh\n")
    assert host.missing(["perl"]) == []


def test_a_compiler_that_is_named_but_absent(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del bare
    monkeypatch.setenv("CC", "gcc-99 -m64")
    with pytest.raises(HostError, match="gcc-99"):
        host.missing(["cc"])


def test_the_tests_compile_with_what_the_build_does(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fault.compiler() is None
    (bare / "flex").symlink_to(bare / "true")
    monkeypatch.setenv("CC", "flex -m64")
    assert fault.compiler() == ["flex", "-m64"]
    monkeypatch.setenv("CC", "gcc-99")
    with pytest.raises(HostError, match="gcc-99"):
        fault.compiler()


def test_what_is_recorded_has_skipped_no_test_for_want_of_a_compiler(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one the session ends before any test, even where the server is there already."""
    del bare
    monkeypatch.setenv("PTRACK_NO_INSTALL", "1")
    monkeypatch.setattr(host, "server_user", lambda: None)
    monkeypatch.setattr(suite, "pytest", lambda *_args, **_options: pytest.fail("tests ran"))
    with pytest.raises(HostError, match=r"lacks cc\b"):
        suite.one(matrix.load().major("17"), [], record=True)


def test_an_ordinary_user_gets_one_line_to_paste(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare / "apt-get").symlink_to(bare / "true")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="lacks make, bison") as caught:
        host.ensure(["make", "bison"])
    line = "sudo apt-get update && sudo apt-get install -y make bison"
    assert caught.value.hint == line
    with pytest.raises(HostError, match=r"lacks make, bison\n") as caught:
        host.ensure(["make", "bison"], besides=["flex", "make"])
    assert caught.value.hint == f"{line} flex"


def test_fedora_has_its_own_names(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "dnf").symlink_to(bare / "true")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert host.paste(["zlib", "git"]) == "sudo dnf install -y zlib-devel git-core"


def test_elsewhere_the_packages_are_named(bare: Path) -> None:
    del bare
    assert host.paste(["zlib"]) == "install these (Debian's names): zlib1g-dev"


def test_optional_needs_are_only_advised_once(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (bare / "apt-get").symlink_to(bare / "true")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for _ in range(2):
        host.ensure(["ccache"], optional=True)
    out = capsys.readouterr().out
    assert out.count("going on without ccache") == 1
    assert "install -y ccache" in out


def test_root_gets_them_installed_after_an_update(apt: Path) -> None:
    host.ensure(["flex"])
    update, install = apt.read_text().splitlines()
    assert update.endswith("update")
    assert install.endswith("install -y --no-install-recommends flex")
    host.ensure(["flex"])
    assert len(apt.read_text().splitlines()) == 2


def test_what_apt_cannot_install_is_told_with_the_line(
    apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del apt
    monkeypatch.setenv("FAKE_APT_FAILS", "1")
    with pytest.raises(HostError, match="Unable to locate") as caught:
        host.ensure(["flex"])
    assert "install -y flex" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "how", ["updates", "install ok unpacked", "install reinstreq half-installed"]
)
def test_what_an_interrupted_installation_left_is_configured_first(
    apt: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    interrupt(host.DPKG, how)
    host.ensure(["flex"])
    asked = apt.read_text().splitlines()
    assert asked[0] == "dpkg --configure -a"
    assert asked[-1].endswith("install -y --no-install-recommends flex")
    interrupt(host.DPKG, how)
    host.ensure(["flex"])
    assert apt.read_text().splitlines() == [*asked, "dpkg --configure -a"], "though flex is there"
    host.ensure(["flex"])
    assert len(apt.read_text().splitlines()) == len(asked) + 1
    interrupt(host.DPKG, how)
    monkeypatch.setenv("FAKE_DPKG_FAILS", "1")
    with pytest.raises(HostError, match="processing package flex") as caught:
        host.ensure(["flex"])
    assert (caught.value.hint or "").startswith("dpkg --configure -a")


def test_where_apt_asks_for_it_dpkg_configures_and_it_is_tried_again(apt: Path) -> None:
    interrupt(host.DPKG, "asks")
    host.ensure(["flex"])
    told = [line.split()[0] + " " + line.split()[-1] for line in apt.read_text().splitlines()]
    assert told == ["apt-get update", "apt-get flex", "dpkg -a", "apt-get flex"]


def test_who_else_fetches_lists_is_waited_for(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at a machine's first start, which has none yet."""
    monkeypatch.setattr(host, "LISTS_POLL_SECONDS", 0.01)
    for what in ("locked", "no-lists"):
        (apt.parent / f"apt.log.{what}").touch()
    host.ensure(["flex"])
    told = [line.split()[-1] for line in apt.read_text().splitlines()]
    assert told == ["update", "update", "flex"]


@pytest.mark.parametrize("who", ["a user", "root who forbids it"])
def test_what_an_interrupted_installation_left_is_named_to_others(
    apt: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    (apt.parent / "bin" / "flex").symlink_to("true")
    if who == "a user":
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    else:
        monkeypatch.setenv("PTRACK_NO_INSTALL", "1")
    host.ensure(["flex"])
    interrupt(host.DPKG, "install ok half-configured")
    with pytest.raises(HostError, match="flex is half-configured") as caught:
        host.ensure(["flex"])
    line = ("sudo " if who == "a user" else "") + "dpkg --configure -a;"
    assert (caught.value.hint or "").startswith(line)
    assert not apt.exists()


def test_an_installation_under_way_is_waited_for(
    apt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it has not come to yet is nothing that it left."""
    (apt.parent / "bin" / "flex").symlink_to("true")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    interrupt(host.DPKG, "updates")
    (host.DPKG / "lock").touch()
    code = (
        "import fcntl, pathlib, sys, time\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "handle = (place / 'lock').open('w')\n"
        "fcntl.lockf(handle, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "time.sleep(1)\n"
        "(place / 'updates/0001').unlink()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, host.DPKG], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        host.ensure(["flex"])
    assert "waiting for another program that installs packages" in capsys.readouterr().out


def test_what_others_have_left_keeps_nobody_from_compiling(apt: Path) -> None:
    (apt.parent / "bin" / "flex").symlink_to("true")
    (host.DPKG / "status").write_text("Package: printer\nStatus: install ok half-configured\n")
    host.ensure(["flex"])
    assert not apt.exists()


def test_a_package_manager_has_time_to_end_by_itself(
    apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del apt
    given: list[float] = []

    def patient(argv: list[str], *, patience: float = 0.0, **_options: object) -> None:
        given.append(patience)
        shutil.copy("/bin/true", host.DPKG.parent / "bin" / argv[-1])

    monkeypatch.setattr(host, "call", patient)
    host.ensure(["flex"])
    assert len(given) == 2
    assert min(given) >= 30


def test_root_can_forbid_it(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTRACK_NO_INSTALL", "1")
    with pytest.raises(HostError, match="lacks flex"):
        host.ensure(["flex"])
    assert not apt.exists()


def test_zero_forbids_nothing(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTRACK_NO_INSTALL", "0")
    host.ensure(["flex"])
    assert "install" in apt.read_text()


def test_the_servers_user() -> None:
    user = host.server_user()
    if os.geteuid() != 0:
        assert user is None
        return
    assert user is not None
    assert user.uid != 0
    assert pwd.getpwuid(user.uid).pw_name == user.name


def test_scratch_is_the_servers_and_goes_away() -> None:
    user = host.server_user()
    with host.scratch() as path:
        status = path.stat()
        assert status.st_uid == (user.uid if user else os.geteuid())
        if user:
            host.check_reachable(path, user)
        assert len(str(path)) < 60
    assert not path.exists()


def test_a_cache_that_keeps_the_server_out_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "prefix").mkdir(parents=True)
    closed.chmod(stat.S_IRWXU)
    somebody = host.ServerUser(uid=64321, gid=64321, name="nobody")
    with pytest.raises(HostError, match="keeps out the user nobody") as caught:
        host.check_reachable(closed / "prefix", somebody)
    assert "PTRACK_CACHE" in (caught.value.hint or "")


def test_a_cache_that_was_there_and_is_closed_is_named_before_a_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """root() leaves its mode alone, so this has to be said, and before anything is built."""
    (tmp_path / "place").mkdir(mode=0o700)
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "place"))
    somebody = host.ServerUser(uid=64321, gid=64321, name="nobody")
    monkeypatch.setattr(host, "server_user", lambda: somebody)

    def build(*_args: object, **_options: object) -> NoReturn:
        pytest.fail("it was built")

    monkeypatch.setattr(suite, "prefix", build)
    with pytest.raises(HostError, match="place keeps out the user nobody") as caught:
        suite.one(matrix.load().major("17"), [])
    assert f"chmod o+x {tmp_path / 'place'}" in (caught.value.hint or "")


def test_jobs_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTRACK_JOBS", "7")
    assert host.cpus() == 7
    monkeypatch.delenv("PTRACK_JOBS")
    assert host.cpus() >= 1


def test_a_line_to_paste_survives_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "manager", lambda: "dnf")
    line = host.paste_packages(["gcc-c++", "perl(IPC::Run)"])
    assert line.endswith("dnf install -y gcc-c++ 'perl(IPC::Run)'")


@pytest.mark.parametrize("named", ["many", "0", "-2", "1.5"])
def test_jobs_that_are_no_number(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("PTRACK_JOBS", named)
    with pytest.raises(UsageError, match=f"PTRACK_JOBS={named}"):
        host.jobs()


@pytest.mark.parametrize(
    ("check", "setting"),
    [(demo.check_places, "TMPDIR"), (suite.check_places, "PTRACK_TEST_DIR")],
)
def test_servers_have_room_before_anything_is_built(
    check: Callable[[], None], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="pt-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        monkeypatch.setenv("PTRACK_CACHE", f"{name}/cache")
        monkeypatch.setenv(setting, name)
        monkeypatch.setattr(tempfile, "tempdir", None)
        check()
        used = shutil.disk_usage(name)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: used._replace(free=400_000_000))
        with pytest.raises(HostError, match=f"{name} has 400 MB free") as caught:
            check()
        assert f"set {setting} to " in (caught.value.hint or "")


def test_a_few_tests_take_less_room_than_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "server_user", lambda: None)
    monkeypatch.setattr(suite, "LONGEST_TEST_DIR", 1000)
    monkeypatch.setenv("PTRACK_TEST_DIR", str(tmp_path))
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: used._replace(free=800_000_000))
    suite.check_places(["tests/test_map.py"])
    with pytest.raises(HostError, match="the suite takes 3000 MB"):
        suite.check_places()


def test_the_demonstration_goes_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    used = shutil.disk_usage("/")

    def usage(place: Path) -> object:
        return used._replace(free=900_000_000 if place == Path("/var/tmp") else 400_000_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert host.scratch_place(None, 500) == Path("/var/tmp")
    assert host.scratch_place(None) == Path("/tmp")


def test_the_suites_place_is_within_reach_of_its_servers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A directory for temporary files may be its owner's alone."""
    nobody = pwd.getpwnam("nobody")
    somebody = host.ServerUser(name="nobody", uid=nobody.pw_uid, gid=nobody.pw_gid)
    monkeypatch.setattr(host, "server_user", lambda: somebody)
    monkeypatch.setattr(host, "suite_place", lambda: Path("/tmp"))
    monkeypatch.setattr(cache, "root", lambda: Path("/tmp"))
    suite.check_places(["one"])
    with tempfile.TemporaryDirectory(prefix="pt-", dir="/tmp") as name:  # mode 0700
        monkeypatch.setattr(host, "suite_place", lambda: Path(name))
        with pytest.raises(HostError, match=f"{name} keeps out the user nobody") as caught:
            suite.check_places(["one"])
        assert "set PTRACK_TEST_DIR" in (caught.value.hint or "")
