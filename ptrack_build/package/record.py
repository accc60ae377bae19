"""How rpms were made, as dpkg writes it of its packages: <name>_<version>_<architecture>.buildinfo.

    where, what was told, what came out ── written ──▶ a record beside the packages

rpmbuild notes nothing of the kind. The form is that of deb-buildinfo(5), for the programs that read
it: what came out, with sums; all packages that were installed there, with versions; and what the
build was told. It has neither the day nor a path, so that the same build gives the same record.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ptrack_build.package import sha256

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from ptrack_build.package.place import Place

#: What the build is told that is of no place.
TOLD: Final = ("LC_ALL", "RPM_BUILD_NCPUS", "SOURCE_DATE_EPOCH", "TZ")
_QUERIES: Final = {
    "apt": ("dpkg-query", "-W", "-f",
            "${db:Status-Status} ${Package} ${Version} ${Architecture}\\n"),
    "dnf": ("rpm", "-qa", "--qf", "installed %{NAME} %{EVR} %{ARCH}\\n"),
}  # fmt: skip


def installed(where: Place) -> list[str]:
    """All packages of a place: `name:architecture (= version)`, sorted."""
    argv = _QUERIES[where.manager() or "dnf"]
    rows = where.call(argv, capture=True, quiet=True).stdout.splitlines()
    words = (row.split() for row in rows)
    return sorted(
        f"{row[1]}:{row[3]} (= {row[2]})"
        for row in words
        # keys that signatures are checked with are among rpm's packages
        if len(row) == 4 and row[0] == "installed" and row[1] != "gpg-pubkey"
    )


def written(
    folder: Path,
    *,
    name: str,
    version: str,
    architecture: str,
    where: Place,
    made: Iterable[Path],
    env: Mapping[str, str],
    options: Sequence[str],
) -> Path:
    """Write the record of a source package into a folder.

    made: the files that came out; env, options: what rpmbuild was told. Of an option with a path of
    the build the path is left out.
    """
    files = sorted(made, key=lambda file: file.name)
    sums = [f"{sha256(file)} {file.stat().st_size} {file.name}" for file in files]
    place = re.compile(rf"{re.escape(str(folder))}[^\s'\"]*")
    fields = {
        "Format": "1.0",
        "Source": name,
        "Binary": " ".join(_name(file) for file in files if not file.name.endswith(".src.rpm")),
        "Architecture": architecture,
        "Version": version,
        "Checksums-Sha256": _lines(sums),
        "Build-Origin": where.os_release().get("PRETTY_NAME", where.name),
        "Build-Architecture": architecture,
        "Installed-Build-Depends": _lines(f"{each}," for each in installed(where)).rstrip(","),
        "Environment": _lines(f'{key}="{env[key]}"' for key in TOLD if key in env),
        "Rpmbuild-Options": _lines(place.sub("...", word) for word in options),
    }
    target = folder / f"{name}_{version}_{architecture}.buildinfo"
    text = "".join(f"{key}: {value}\n" for key, value in fields.items() if value)
    target.write_text(re.sub(r": \n", ":\n", text), encoding="utf-8")
    return target


def _name(file: Path) -> str:
    """A package's name by that of its file: name-version-release.architecture.rpm."""
    return file.name.rsplit("-", 2)[0]


def _lines(words: Iterable[str]) -> str:
    """A field of several lines, none of them in the first one."""
    return "".join(f"\n {word}" for word in words)
