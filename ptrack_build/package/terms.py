"""Which package is under which terms, as expressions of SPDX's.

    third-party.copyright ── licenses ──▶ License of each rpm
    a package's name      ── under ──▶ what the bill of materials says of it

A package is under the terms of what is in it: of all majors, since not each has each file.
"""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Final

from ptrack_build.package import notices

if TYPE_CHECKING:
    from collections.abc import Iterable

OWN: Final = notices.SPDX["PostgreSQL"]

#: Packages that are linked to libpgport and libpgcommon, or have them.
LINKED: Final = ("client", "contrib", "devel", "libs", "libs-oauth", "server")
LANGUAGES: Final = ("plperl", "plpython3", "pltcl")
#: Which packages have what others hold, by where its source is: the first pattern that matches
#: holds. llvmjit has the bitcode of the server and of contrib modules.
ORIGINS: Final = (
    ("config/*", ("devel",)),
    ("contrib/*", ("contrib", "llvmjit")),
    ("src/backend/jit/*", ("llvmjit",)),
    ("src/backend/snowball/*", ("server",)),
    ("src/backend/utils/mb/Unicode/*", ("server",)),  # as the tables of conversions
    ("src/backend/*", ("llvmjit", "server")),
    ("src/bin/pg_controldata/*", ("server",)),
    ("src/bin/*", ("client",)),
    ("src/include/jit/*", ("devel", "llvmjit")),
    ("src/include/lib/hyperloglog.h", ("devel", "llvmjit", "server")),
    ("src/include/regex/*", ("devel", "llvmjit", "server")),
    ("src/include/snowball/*", ("devel", "server")),
    ("src/interfaces/ecpg/preproc/*", ("devel",)),
    ("src/pl/plperl/*", ("devel", "plperl")),
    ("src/pl/plpgsql/*", ("server",)),
    ("src/port/*gettimeofday.c", ()),  # Windows alone compiles it
    ("src/test/*", ("devel",)),
    ("src/timezone/*", ("server",)),
    ("*", LINKED),
)
#: Of Debian's packages: those of rpm's of which they have the files. The server's has contrib, JIT
#: compilation, and programs that rpm's client has; the client's has libpq and PGXS.
DEBS: Final = {
    "postgresql-client": ("client", "libs", "libs-oauth"),
    "postgresql-server-dev": ("devel",),
    "postgresql": ("client", "contrib", "llvmjit", "server"),
    **{f"postgresql-{language}": (language,) for language in LANGUAGES},
}
PGXS: Final = "config/*"
SOURCES: Final = ("source", "src")  # architectures of what is not installed


def names(said: str) -> dict[str, set[str]]:
    """The licenses of what is in each package, by its name's last word.

    said: who else holds what.
    """
    found: dict[str, set[str]] = {name: set() for name in (*LINKED, *LANGUAGES, "llvmjit")}
    for pattern, licenses in notices.terms(said).items():
        having = next(have for origin, have in ORIGINS if fnmatch.fnmatchcase(pattern, origin))
        for package in having:
            found[package].update(licenses)
    return found


def licenses(said: str) -> dict[str, str]:
    """What each rpm is under, by its name's last word."""
    return {package: notices.expression(found) for package, found in names(said).items()}


def under(package: str, said: str, architecture: str = "") -> str:
    """What a package of the server or of the extension is under, by its name.

    One of debugging symbols is under what its package is, if that is told by the name; one of
    sources, for debuggers or by its architecture, under all that there is.
    """
    whole = architecture in SOURCES or package.endswith("-debugsource")
    if whole and re.match(r"postgresql-?\d+pt\b", package):
        every = notices.terms(said).values()
        return notices.expression(name for licenses in every for name in licenses)
    plain = re.sub(r"-dbgsym$|-debuginfo$", "", package)
    having = names(said)
    if found := re.fullmatch(r"(postgresql(?:-[a-z\d-]+?)?)-\d+pt", plain):
        words: Iterable[str] = DEBS.get(found[1], tuple(having))
        held = set().union(*(having[word] for word in words))
        if found[1] == "postgresql-client":
            for pattern, licenses in notices.terms(said).items():
                held |= {*licenses} if fnmatch.fnmatchcase(pattern, PGXS) else set()
        return notices.expression(held)
    if found := re.fullmatch(r"postgresql\d+pt(?:-(.*))?", plain):
        return notices.expression(having.get(found[1] or "client", ()))  # -native has no files
    return OWN
