"""Packages of an earlier release of ours, which those in dist/ are to upgrade from.

    a directory, packages of now ── chosen ──▶ the same packages of then

Any directory with files will do: a release's as it was published, a dist/ of another day, or what
somebody has downloaded. What is chosen has the names of the packages of now, their architecture,
and the tag of their system in its version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ptrack_build.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NONE: Final = "no earlier packages of it were named"


@dataclass(frozen=True, kw_only=True, order=True)
class Name:
    """What the name of a package's file says. system: deb12, fc43; "" where it says none."""

    package: str
    version: str
    architecture: str
    system: str

    @classmethod
    def of(cls, file: str) -> Name | None:
        """None for what is no name of a binary package."""
        if found := re.fullmatch(r"([^_]+)_([^_]+)_([^_]+)\.deb", file):
            package, version, architecture = found.groups()
            return cls(
                package=package,
                version=version,
                architecture=architecture,
                system=version.rpartition("+")[2] if "+" in version else "",
            )
        if found := re.fullmatch(r"(.+)-([^-]+-[^-]+)\.([^.]+)\.rpm", file):
            package, version, architecture = found.groups()
            if architecture == "src":
                return None
            # 1ptrack3.0.0.fc43, 1.pg17.4.deb12: behind the last dot that no number follows
            tag = re.search(r"\.([a-z]+[a-z0-9_~]*(?:\.\d+)?)$", version)
            return cls(
                package=package,
                version=version,
                architecture=architecture,
                system=tag[1] if tag else "",
            )
        return None


def chosen(folder: Path, now: Sequence[Path]) -> tuple[Path, ...]:
    """Those below a folder that packages of now have come from; none where it has not one of them.

    Raises UsageError where it has several versions of a package, or the very same one.
    """
    kinds = {file.suffix for file in now}
    wanted = {(name.package, name.architecture, name.system): name for name in _names(now)}
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        name = Name.of(file.name) if file.suffix in kinds and file.is_file() else None
        if name is None:
            continue
        ours = wanted.get((name.package, name.architecture, name.system))
        if ours is None:
            continue
        if ours.version == name.version:
            what = f"{file} is of the version that is to be verified"
            raise UsageError(what, hint="name a directory with packages of an earlier release")
        found.setdefault(name.package, []).append(file)
    for package, files in found.items():
        if len({file.name for file in files}) > 1:
            listed = ", ".join(file.name for file in files)
            what = f"{folder} has several versions of {package}: {listed}"
            raise UsageError(what, hint="name a directory with one of them")
    return tuple(sorted(files[0] for files in found.values()))


def _names(files: Sequence[Path]) -> list[Name]:
    return [name for file in files if (name := Name.of(file.name)) is not None]
