"""Rpms out of a signed yum repository: dnf's own answer to what our specs say of each other.

The packages have our specs' heads and no files; the key, the repository, its server and dnf are
real.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from ptrack_build import matrix
from ptrack_build.errors import HostError
from ptrack_build.package import PackageError, Release, publish, repo, rpm, rpmrepo
from tests.build import _packages
from tests.build.test_package import MADE_OF
from tests.build.test_package_rpm import facts_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

needed = pytest.mark.skipif(
    os.geteuid() != 0
    or not all(map(shutil.which, ("rpmbuild", "rpmsign", "createrepo_c", "dnf", "gpg"))),
    reason="needs root, rpmbuild, rpmsign, createrepo_c, dnf and gpg",
)

NUMBER = 18


def built(
    folder: Path, *options: str, alter: Callable[[str], str] = lambda text: text, abi: int = 7
) -> Path:
    """A directory of dist/ with packages of our specs. abi: of the extension."""
    (major,) = (each for each in matrix.load().majors if each.number == NUMBER)
    known = facts_of(major)
    for role, facts in (("server", known), ("extension", dataclasses.replace(known, abi=abi))):
        (text,) = (text for name, text in rpm.render(role, facts).items() if name.endswith(".spec"))
        head = re.sub(r"^(Source|Patch)\d+:.*\n", "", text, flags=re.MULTILINE)
        head, _, rest = head.partition("%prep\n")
        # without what makes the debugging packages, of which there are none
        head = re.sub(r"%if %\{with native\}\n%debug_package\n%endif\n", "", head)
        # the packages without their lists
        lists = re.findall(r"^%(?:files(?: (?!-)\S+)?|if .*|endif)", rest, re.MULTILINE)
        lists = lists[lists.index("%files") :]
        spec = folder / f"{role}.spec"
        spec.write_text(alter(head) + "\n".join([*lists, ""]))
        macros = [f"_topdir {folder}/top", "debug_package %{nil}", "unpacked /nowhere",
                  "dist .fc43"]  # fmt: skip
        defined = [word for macro in macros for word in ("--define", macro)]
        subprocess.run(
            ["rpmbuild", "-bb", "--nodeps", *defined, *options, str(spec)],
            check=True, capture_output=True, env={**os.environ, "HOME": str(folder)},
        )  # fmt: skip
    files = tuple(sorted((folder / "top" / "RPMS").rglob("*.rpm")))
    made_of = {**MADE_OF, "postgresql": {**MADE_OF["postgresql"], "version": f"{NUMBER}.3"}}
    system = dataclasses.replace(
        _packages.system(os.uname().machine), distribution="fedora", release="43", codename="",
        tag="fc43",
    )  # fmt: skip
    made = Release(
        kind="rpm", system=system, major=str(NUMBER), made_of=made_of, files=files,
        packages=tuple(map(rpm.described, files)),
    )  # fmt: skip
    return publish(made, folder / "dist")


@needed
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("options", [[], ["--with", "native"]], ids=["distribution", "native"])
def test_dnf_installs_our_server_for_the_extension_and_one_for_each_of_pgdg_s(
    options: list[str], tmp_path: Path
) -> None:
    steps = rpmrepo.verify(built(tmp_path, *options))
    first, *others = rpmrepo.programs()
    assert first == "dnf"
    assert len(steps) == 4 + len(others)


@needed
@pytest.mark.usefixtures("own_cache")
def test_an_extension_for_other_hooks_is_not_installed(tmp_path: Path) -> None:
    said = f"nothing provides postgresql{NUMBER}-ptrack-abi = 8 needed by ptrack_{NUMBER}"
    with pytest.raises(PackageError, match=said) as caught:
        rpmrepo.verify(built(tmp_path, abi=8))
    assert caught.value.log is not None


@needed
@pytest.mark.usefixtures("own_cache")
def test_a_server_that_conflicts_with_none_is_found_out(tmp_path: Path) -> None:
    def alter(text: str) -> str:
        return re.sub(r"^Conflicts: .*\n", "", text, flags=re.MULTILINE)

    with pytest.raises(PackageError, match="dnf does not refuse: install postgresql18-server"):
        rpmrepo.verify(built(tmp_path, alter=alter))


@needed
@pytest.mark.usefixtures("own_cache")
def test_a_repository_that_a_distribution_s_module_hides_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As EL 8 does, whose module has a postgresql-server, which ours provide."""
    said = repo.listing

    def listing(system: str, *, unsigned: bool) -> str:
        return said(system, unsigned=unsigned).replace("module_hotfixes=1\n", "")

    monkeypatch.setattr(repo, "listing", listing)
    with pytest.raises(PackageError, match="is filtered out by modular filtering"):
        rpmrepo.verify(built(tmp_path))


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ({"dnf-3": None, "dnf": "dnf-3"}, ("dnf",)),
        ({"dnf-3": None, "dnf": "dnf-3", "dnf5": None}, ("dnf", "dnf5")),
        ({"dnf5": None, "dnf": "dnf5"}, ("dnf",)),  # Fedora 41
        ({"dnf5": None}, ("dnf5",)),
    ],
)
def test_every_dnf_is_asked_once(
    there: dict[str, str | None],
    found: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, target in there.items():
        if target:
            (tmp_path / name).symlink_to(target)
        else:
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rpmrepo.programs() == found


def test_what_nobody_of_ours_provides_is_the_system_s() -> None:
    packages = [
        {"architecture": "x86_64", "provides": "a = 1-1, a(x86-64) = 1-1",
         "depends": "/bin/sh, libc.so.6(GLIBC_2.4)(64bit), systemd >= 250"},
        {"architecture": "x86_64", "provides": "b = 1-1", "depends": "a(x86-64) = 1-1, /bin/sh"},
        {"architecture": "src", "provides": "", "depends": "gcc"},
        {"architecture": "noarch", "provides": "c = 1-1", "depends": "(d if e)"},
    ]  # fmt: skip
    assert rpmrepo.capabilities(packages) == [
        "/bin/sh", "libc.so.6(GLIBC_2.4)(64bit)", "systemd = 250",
    ]  # fmt: skip


@pytest.mark.usefixtures("own_cache")
def test_for_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="only root"):
        rpmrepo.verify(tmp_path)
