"""What the installation under test is."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_VERSION = re.compile(r"PostgreSQL\)? (\d+)(\S*)")


@dataclass(frozen=True, kw_only=True)
class Install:
    """An installed PostgreSQL, usually patched and with ptrack.

    Attributes:
        prefix: its installation prefix.
        bindir: where its programs are.
        sharedir: where its extension scripts are, below ``extension``.
        version: as it prints itself, such as ``17.2`` or ``20devel``.
        major: 12 and up; a development version counts as the major it will be.
    """

    prefix: Path
    bindir: Path
    sharedir: Path
    version: str
    major: int

    @classmethod
    def at(cls, prefix: Path) -> Install:
        """Ask the programs under ``prefix``.

        Raises:
            FileNotFoundError: there is no PostgreSQL there.
        """
        bindir = prefix / "bin"
        pg_config = bindir / "pg_config"
        if not pg_config.exists():
            what = f"no PostgreSQL in {prefix}: {pg_config} does not exist"
            raise FileNotFoundError(what)

        def ask(option: str) -> str:
            return subprocess.run(
                [pg_config, option], check=True, capture_output=True, text=True
            ).stdout.strip()

        shown = subprocess.run(
            [bindir / "postgres", "--version"], check=True, capture_output=True, text=True
        ).stdout
        match = _VERSION.search(shown)
        if match is None:
            what = f"cannot read a version in: {shown}"
            raise ValueError(what)
        return cls(
            prefix=prefix,
            bindir=bindir,
            sharedir=Path(ask("--sharedir")),
            version=match[1] + match[2],
            major=int(match[1]),
        )

    @property
    def has_ptrack(self) -> bool:
        """Whether the extension is installed."""
        return (self.sharedir / "extension" / "ptrack.control").exists()

    def _from_minor(self, first: dict[int, int]) -> bool:
        """Whether this is a minor not before the first one named for its major."""
        minor = self.version.partition(".")[2]
        return not minor.isdecimal() or int(minor) >= first.get(self.major, 0)

    @property
    def has_in_place_tablespaces(self) -> bool:
        """Whether allow_in_place_tablespaces is known; it came to 12, 13 and 14 in minors."""
        return self._from_minor({12: 10, 13: 6, 14: 2})

    @property
    def rewinds_in_place_tablespaces(self) -> bool:
        """Whether pg_rewind takes a directory for a tablespace."""
        return self.major >= 17

    @property
    def replays_dropped_databases(self) -> bool:
        """Whether a standby that crashed can replay the copy of a directory dropped since.

        Before, its recovery stops with "could not open directory", whatever is loaded.
        """
        return self._from_minor({12: 12, 13: 8, 14: 5})

    def has_extension(self, name: str) -> bool:
        """Whether an extension (contrib) can be created."""
        return (self.sharedir / "extension" / f"{name}.control").exists()

    def program(self, name: str) -> Path:
        """Path of one of its programs."""
        return self.bindir / name
