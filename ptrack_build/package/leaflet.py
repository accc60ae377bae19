"""README of a repository: what the administrator of a machine does to install from it.

    usage, fingerprint, releases ── text ──▶ dist/repo/README

It has no date and no address: URL stands for where the repository is served.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

FILE: Final = "README"
#: The extension's package brings the server that it is for.
_EXTENSION: Final = re.compile(r"(postgresql-\d+-ptrack)_|(ptrack_\d+)-\d")

HEAD: Final = """PostgreSQL with ptrack: an apt repository in apt/, a yum repository in yum/.
URL stands for where this directory is served; put the address there.
"""
SIGNED: Final = """The key is URL/{key}, with the fingerprint

    {fingerprint}

which is worth comparing with one that came to you another way than the key did:

    curl -fsS URL/{key} | gpg --show-keys --with-fingerprint
"""
UNSIGNED: Final = """UNSIGNED: nothing here has a signature.
Whoever can change what is served can change what machines install.
"""


def text(usage: str, *, key: str, fingerprint: str, files: Iterable[str]) -> str:
    """The whole README.

    usage: what apt and dnf are told; key: the name of its file; fingerprint: empty where nothing is
    signed; files: names of all packages.
    """
    signed = SIGNED.format(key=key, fingerprint=grouped(fingerprint)) if fingerprint else UNSIGNED
    listed = commands(files)
    parts = [
        HEAD.strip(),
        signed.strip(),
        f"What a machine is told, by its system:\n\n{usage}",
        "Then, as root, for one of these majors, with the server that belongs to it:\n\n"
        + textwrap.indent("\n".join(listed), "    "),
    ]
    return "\n\n".join(parts if listed else parts[:-1]) + "\n"


def grouped(fingerprint: str) -> str:
    """A fingerprint as gpg shows it: 0123 4567 ...  89AB ..., for eyes to compare."""
    words = textwrap.wrap(fingerprint, 4)
    half = len(words) // 2
    return " ".join(words[:half]) + "  " + " ".join(words[half:])


def commands(files: Iterable[str]) -> list[str]:
    """How each extension's package is installed: by apt, then by dnf; sorted by major."""
    debs: set[str] = set()
    rpms: set[str] = set()
    for file in files:
        if found := _EXTENSION.match(file):
            (debs if found[1] else rpms).add(found[1] or found[2])

    def major(name: str) -> int:
        return int("".join(re.findall(r"\d+", name)))

    lines = [f"apt-get update && apt-get install {name}" for name in sorted(debs, key=major)]
    return lines + [f"dnf install {name}" for name in sorted(rpms, key=major)]
