"""Packages that take no time to build: a tree of a few files, and templates of both kinds for it.

The server's package has hello.h, to which the packages' own edits add a line; the extension's has
its Makefile. $FAKE_BUILD is run where compiling would be.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cache, host, matrix
from ptrack_build.package import Release, System, deb, place, rpm
from ptrack_build.patch import PatchedTree
from ptrack_build.source import SourceTree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

with_dpkg = pytest.mark.skipif(
    not (shutil.which("dpkg-buildpackage") and shutil.which("gcc")), reason="needs dpkg-dev"
)
with_rpmbuild = pytest.mark.skipif(
    not all(map(shutil.which, ("rpmbuild", "cpio"))), reason="needs rpmbuild and cpio"
)

#: PostgreSQL's versions as they come out.
RISING = ("20devel", "20alpha1", "20beta1", "20beta2", "20rc1", "20.0", "20.1", "20.10")

RULES = r"""#!/usr/bin/make -f
%:
	@true
build:
	$(FAKE_BUILD)
	pwd > place
binary: build
	mkdir -p debian/p/DEBIAN debian/p/usr/share/p
	cp {{ "hello.h" if role == "server" else "Makefile" }} debian/p/usr/share/p/
	dpkg-gencontrol -p{{ role }} -Pdebian/p
	dpkg-deb --root-owner-group -b debian/p ..
"""

CONTROL = """Source: {{ role }}
Maintainer: {{ maintainer }}
Section: misc
Priority: optional
Rules-Requires-Root: no
Build-Depends: dpkg-dev

Package: {{ role }}
Architecture: any
Description: test
 test
"""

CHANGELOG = """{{ role }} ({{ version }}) unstable; urgency=medium

  * Test.

 -- {{ maintainer }}  {{ date }}
"""

SPEC = """%bcond_with native
%bcond_without selftest
{% set plain = "plain" if role == "server" else "extra" %}
Name:     {{ role }}
Version:  {{ rpm_version if role == "server" else project }}
Release:  1%{?dist}
Summary:  Test
License:  PostgreSQL
Source0:  {{ "postgresql-" + version if role == "server" else "ptrack-" + project }}.tar.gz
{% if role == "server" %}
Patch0:   ptrack-core.patch
Patch1:   ptrack-packaging.patch
{% endif %}
BuildArch: noarch
Provides: {{ plain }} = %{version}-%{release}
Conflicts: {{ plain }}

%description
A test.

%prep
%autosetup -n {{ "postgresql-" + version + " -p1" if role == "server" else "ptrack-" + project }}

%build
$FAKE_BUILD

%install
mkdir -p %{buildroot}/usr/share/{{ role }}
date > %{buildroot}/usr/share/{{ role }}/date.gz
cp {{ "hello.h core.h" if role == "server" else "Makefile" }} %{buildroot}/usr/share/{{ role }}/
truncate -s 0 %{buildroot}/usr/share/{{ role }}/date.gz

%files
/usr/share/{{ role }}
"""

#: What each kind's templates are called; {} is the role: server or extension.
TEMPLATES = {
    "deb": {
        "rules.j2": RULES, "control.j2": CONTROL, "changelog.j2": CHANGELOG,
        "source/format.j2": "3.0 (quilt)\n",
    },
    "rpm": {"{}.spec.j2": SPEC},
}  # fmt: skip

PRISTINE = {
    "configure": "#!/bin/sh\n",
    "hello.h": "hello\n",
    "core.h": "core\n",
    "COPYRIGHT": "Portions Copyright (c) 1996-2026, PGDG\n\nMay be used.\n",
    "src/include/catalog/catversion.h": "#define CATALOG_VERSION_NO\t202406281\n",
    "src/include/catalog/pg_control.h": "#define PG_CONTROL_VERSION\t1700\n",
}
PATCHED = PRISTINE | {
    "core.h": "core\nhooks\n",
    "src/include/storage/changetrack.h": "#define CHANGETRACK_ABI 3\n",
}


def system(architecture: str) -> System:
    """Debian 12."""
    return System(
        distribution="debian", release="12", codename="bookworm", architecture=architecture,
        tag="deb12",
    )  # fmt: skip


NATIVE = rpm._Machine(
    system=system("x86_64"), native=True, builder="Debian GNU/Linux 12 (bookworm)", without=(),
    builders={"gcc": "12"}, macros="",
)  # fmt: skip


def patched(folder: Path) -> PatchedTree:
    """A patched tree that has just what the facts are read from."""
    path = folder / "tree"
    write(path, PATCHED)
    os.utime(path / "configure", (1_700_000_000, 1_700_000_000))
    source = SourceTree(
        major=matrix.load().major("17"), version="17.4", commit="c" * 40, digest="d" * 40,
        mirror=folder, provider="distro", origin="a test",
    )  # fmt: skip
    return PatchedTree(source=source, path=path, key="k", patch_digest="p", how="applied")


def write(folder: Path, files: dict[str, str]) -> None:
    """Files by their names below a folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@dataclass(frozen=True, kw_only=True)
class Line:
    """The build line of one kind of packages, with a tree to build. extension: a folder."""

    kind: str
    tree: PatchedTree
    extension: Path
    make: Callable[[PatchedTree, Path], Release]

    def built(self) -> Release:
        """Both packages."""
        return self.make(self.tree, self.extension)

    def left(self) -> list[str]:
        """Packages that are kept, and what there is where they are built."""
        places = (cache.directory(self.kind), cache.directory("build", f"{self.kind}-17"))
        return [path.name for place in places for path in place.iterdir()]


def line(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    """A build line that takes the templates of this module for ours."""
    templates = folder / "templates"
    for role in ("server", "extension"):
        head = f'{{% set role = "{role}" %}}\n'
        files = {name.format(role): head + text for name, text in TEMPLATES[kind].items()}
        write(templates / role, files)
    write(templates / "core", {"hello.h.j2": "after hello\ninsert\nthere\nend\n"})
    write(folder / "extension", {"Makefile": "x\n", "ptrack.control": "x\n"})
    module = {"deb": deb, "rpm": rpm}[kind]
    monkeypatch.setattr(module, "TEMPLATES", templates)
    monkeypatch.setattr(module, "DEVELOPMENT", ())  # the extension is compiled with nothing
    monkeypatch.setattr(host, "server_user", lambda: None)
    monkeypatch.setattr(place, "KEPT", (*place.KEPT, "FAKE_BUILD"))
    monkeypatch.setattr(rpm, "_machine", lambda _major, **_: NATIVE)
    monkeypatch.setattr("ptrack_build.source.export", lambda _tree, dest: write(dest, PRISTINE))
    return Line(
        kind=kind,
        tree=patched(folder),
        extension=folder / "extension",
        make=lambda tree, extension: module.build(tree, without=["llvmjit"], extension=extension),
    )
