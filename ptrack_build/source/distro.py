"""Provider `distro`: the orig tarball of the distribution's source package, through apt.

Apt does the verified download: its own methods, proxies, keyrings and settings, as the host has
them. What is private is everything that apt writes and the list of sources, which is derived from
the host's: no mirror is named here, nothing of the host is changed, and no root is needed.

From each of the host's entries for the distribution's main archive the suites that carry the major
(matrix.toml) are asked for, one after the other, with their pockets, and likewise from the entry
for its security archive: the host may be of another suite, the archive is the same. If they do not
have it, the host's own suites are asked, with those of PostgreSQL's apt repository where the host
uses it. Whatever is asked must be signed by a key that the host trusts for that archive.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ptrack_build import cache
from ptrack_build.errors import BadSource, CommandFailed, SourceError
from ptrack_build.progress import say, step
from ptrack_build.run import Completed, call
from ptrack_build.source import net
from ptrack_build.source.archive import import_tarball, imported, sha256_of
from ptrack_build.source.base import (
    SourceTree,
    Unreachable,
    Want,
    check_space,
    first_line,
    offline,
    version_key,
)

UPDATED_SECONDS = 900.0  # for so long a package index just fetched is not fetched again
UPDATE_SECONDS = 240.0
_DISTRUST = re.compile(r"(?i)NO_PUBKEY|not signed|invalid signature|BADSIG")
_TRANSPORT = re.compile(
    r"(?i)acquire::(https?::(.*::)?proxy\b|check-valid-until\b|check-date\b|(min|max)-validtime\b)"
)
#: Something came that is not what was signed for: whatever else there is, somebody has to look. Of
#: an index that may be a mirror that is being renewed, which apt takes no notice of either.
_TAMPERED = re.compile(r"(?i)hash sum mismatch|invalid signature|BADSIG")
_WRONG_INDEX = re.compile(r"(?m)^  Hash Sum mismatch")
_FORGED = re.compile(r"(?i)invalid signature|BADSIG")
TAMPERED_HINT = (
    "if the mirror was being renewed just now, try again later; else find out who changes what "
    "comes from it, or take another provider: PTRACK_SOURCE=git or tarball"
)
POCKETS = ("", "-updates", "-proposed-updates", "-backports")
ROLLING = {"sid", "unstable", "experimental", "rc-buggy"}
ALIASES = ROLLING | {"stable", "testing", "oldstable", "oldoldstable"}
#: Fields of an entry that say how its archive is reached and verified: these are kept.
KEPT = {
    "Signed-By",
    "Check-Valid-Until",
    "Valid-Until-Max",
    "Check-Date",
    "Date-Max-Future",
    "By-Hash",
    "PDiffs",
}
TRIES = 2
APT_HELPER = Path("/usr/lib/apt/apt-helper")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A source of packages of the host: URIs, suites, components, and what else was said of it."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    fields: tuple[tuple[str, str], ...] = ()

    def stanza(self, suites: tuple[str, ...], *, types: str = "deb-src") -> str:
        """The sources of these suites of the archive, as apt reads them; types: or "deb"."""
        components = ("main",) if "main" in self.components else self.components
        lines = [
            f"Types: {types}",
            f"URIs: {' '.join(self.uris)}",
            f"Suites: {' '.join(suites)}",
            *([f"Components: {' '.join(components)}"] if components else []),
            *(
                f"{name}: {_family(value) if name == 'Signed-By' else value}"
                for name, value in self.fields
            ),
        ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A source package as an index lists it: its Debian version and its orig tarball.

    folder: where that lies in the archive's pool, in which each pocket has a place of its own.
    """

    version: str
    folder: str
    file: str
    sha256: str
    size: int

    @property
    def upstream(self) -> str:
        """17.2, 19beta1"""
        return _upstream(self.version)


@dataclass(frozen=True)
class DistroProvider:
    """Takes from the archives that the host's apt is set up with.

    etc: apt's configuration; release: the os-release file; options: more of them for apt, before
    the command.
    """

    etc: Path = Path("/etc/apt")
    release: Path = Path("/etc/os-release")
    options: tuple[str, ...] = field(default=())
    name: ClassVar[str] = "distro"

    def key(self) -> str:
        """See Provider."""
        try:
            return cache.digest(repr(entries(self.etc)))
        except OSError:
            return ""

    def lasting(self) -> bool:
        """See Provider."""
        return True

    def fetch(self, want: Want) -> SourceTree:
        """The newest upload that can be downloaded, or the newest of version want.pin.

        Raises SourceError saying what was listed and why nothing of it came.
        """
        if offline():
            what = "PTRACK_OFFLINE is set"
            raise Unreachable(what)
        if want.major.state == "devel":
            what = f"no distribution has PostgreSQL {want.major.name}"
            raise SourceError(what)
        self._check_host()
        reasons: list[str] = []
        kind: type[SourceError] = SourceError
        stages = self._stages(want)
        for stanzas, label in stages:
            apt = Apt(stanzas=stanzas, label=label, etc=self.etc, options=self.options, want=want)
            try:
                return self._take(apt, want)
            except Tampered:
                raise
            except SourceError as error:
                _stop_if(_FORGED, error.what)
                if label != stages[-1][1]:
                    say(f"distro: {error.what}: next suite")
                reasons.append(error.what)
                kind = _graver(kind, error)
        if not reasons:
            reasons.append(f"no source of packages in {self.etc} is for this")
        raise kind("; ".join(dict.fromkeys(reasons)))

    def _check_host(self) -> None:
        missing = [name for name in ("apt-get", "apt-cache") if shutil.which(name) is None]
        if missing:
            what = "not an apt host"
            raise SourceError(what)

    def binary_sources(self, distribution: str, suite: str) -> list[str]:
        """Stanzas for the binary packages of a suite, with its updates, from the host's mirror.

        Raises SourceError where the host is of another distribution, or its mirror lacks the suite.
        """
        self._check_host()
        about = _os_release(self.release)
        if about.get("ID") != distribution:
            what = f"apt is set up here for {about.get('ID', 'nothing')}, not for {distribution}"
            raise SourceError(what)
        main, security, _ = self._archives(about.get("VERSION_CODENAME", ""), (suite,))
        stanzas = []
        for entry in main.values():
            if self._carries(entry, suite):
                pockets = (suite, f"{suite}-updates") if suite not in ROLLING else (suite,)
                there = tuple(p for p in pockets if p == suite or self._carries(entry, p))
                stanzas.append(entry.stanza(there, types="deb"))
        if not stanzas:
            what = f"the mirror that apt is set up with here has no suite {suite}"
            raise SourceError(what)
        for entry in security.values() if suite not in ROLLING else ():
            pocket = f"{suite}-security"
            if self._carries(entry, pocket):
                stanzas.append(entry.stanza((pocket,), types="deb"))
        return stanzas

    def transport(self) -> list[str]:
        """Apt's settings for getting through to the mirror, and what age of it is good enough.

        Whoever keeps a mirror back on purpose has told apt so. Whether its signatures are wanted is
        not among what is taken over: they are.
        """
        argv = ["apt-config", *self.options, "dump", "--format", '%F "%v";%n']
        dumped = call(argv, capture=True, quiet=True).stdout.splitlines()
        return [line for line in dumped if _TRANSPORT.match(line)]

    def _carries(self, entry: Entry, suite: str) -> bool:
        """Whether an archive has a suite, by apt's own ways of getting there."""
        with tempfile.TemporaryDirectory(prefix="ptrack-suite-") as folder:
            file = Path(folder) / "InRelease"
            url = f"{entry.uris[0].rstrip('/')}/dists/{suite}/InRelease"
            argv = [str(APT_HELPER), *self.options, "download-file", url, str(file)]
            call(argv, check=False, quiet=True, capture=True, timeout=UPDATE_SECONDS)
            return file.is_file() and file.stat().st_size > 0

    def _stages(self, want: Want) -> list[tuple[list[str], str]]:
        """What to ask, in order: lists of stanzas, each with a word for them."""
        about = _os_release(self.release)
        codename = about.get("VERSION_CODENAME", "")
        suites = want.major.suites if about.get("ID") == "debian" else ()
        main, security, other = self._archives(codename, suites)
        stages: list[tuple[list[str], str]] = []
        for suite in suites if main else ():
            pockets = tuple(suite + pocket for pocket in POCKETS if _has_pocket(suite, pocket))
            asked = [entry.stanza(pockets) for entry in main.values()]
            if suite not in ROLLING:
                asked += [entry.stanza((f"{suite}-security",)) for entry in security.values()]
            stages.append((asked, suite))
        done = {s + p for s in suites if main for p in (*POCKETS, "-security")}
        other = [(entry, named) for entry, named in other if named[0] not in done]
        if other:
            stages.append(([entry.stanza(named) for entry, named in other], codename or "host"))
        return stages

    def _archives(
        self, codename: str, suites: tuple[str, ...]
    ) -> tuple[
        dict[tuple[str, ...], Entry],
        dict[tuple[str, ...], Entry],
        list[tuple[Entry, tuple[str, ...]]],
    ]:
        """The host's main and security archives by URIs, and all its entries that matter."""
        main: dict[tuple[str, ...], Entry] = {}
        security: dict[tuple[str, ...], Entry] = {}
        other: list[tuple[Entry, tuple[str, ...]]] = []
        for entry in entries(self.etc):
            for suite in entry.suites:
                base = re.sub(r"-(updates|proposed-updates|proposed|backports)$", "", suite)
                if re.search(r"(-security|/updates)$", suite):
                    security.setdefault(entry.uris, entry)
                elif base in {codename, *ALIASES, *suites}:
                    main.setdefault(entry.uris, entry)
                elif not ("pgdg" in suite or any("postgresql" in uri for uri in entry.uris)):
                    continue
                other.append((entry, (suite,)))
        return main, security, other

    def _take(self, apt: Apt, want: Want) -> SourceTree:
        complaint = apt.update()
        _stop_if(_FORGED, complaint)
        uploads = apt.uploads()
        if want.pin:
            uploads = [u for u in uploads if u.upstream == want.pin]
        wanted = f"{apt.package} {want.pin}".strip()
        if not uploads:
            what = f"{apt.label} lists no {wanted}" + (f" ({complaint})" if complaint else "")
            raise _failure(what)
        if want.sha256:
            uploads = [u for u in uploads if u.sha256 == want.sha256]
            if not uploads:
                what = f"{apt.label} lists {wanted} with another checksum than is asked for"
                raise _failure(what)
        if complaint:
            say(f"distro: {complaint}")
        failures: list[tuple[Upload, SourceError]] = []
        for upload in uploads:
            where = f"{apt.package} {upload.version}"
            try:
                self._import(apt, want, upload, where)
            except SourceError as error:
                _stop_if(_TAMPERED, error.what, where)
                failures.append((upload, error))
                if upload is not uploads[-1]:
                    say(f"distro: {where} is listed but cannot be had ({error.what}): next one")
                continue
            commit, version = import_tarball(want, Path(), upload.sha256, where)
            return SourceTree(
                major=want.major,
                version=version,
                commit=commit,
                mirror=want.mirror.path,
                digest=want.mirror.tree(commit),
                provider=self.name,
                origin=f"{where} of {apt.label}",
                sha256=upload.sha256,
            )
        # the same one may be listed at several places
        tried = ", ".join(dict.fromkeys(f"{u.version} ({e.what})" for u, e in failures))
        what = f"{apt.label} lists {tried}: none can be downloaded"
        kind: type[SourceError] = SourceError
        for _, failure in failures:
            kind = _graver(kind, failure)
        raise kind(what)

    def _import(self, apt: Apt, want: Want, upload: Upload, where: str) -> None:
        if imported(want.mirror, upload.sha256):
            return
        with cache.lock(f"download-{upload.sha256[:16]}", f"downloads {upload.file}"):
            if imported(want.mirror, upload.sha256):
                return
            file = apt.download(upload)
            with step(f"unpacking {file.name}", estimate=12.0):
                import_tarball(want, file, upload.sha256, where)
            file.unlink(missing_ok=True)


class Tampered(BadSource):
    """What came is not what was signed for."""


def _stop_if(tampered: re.Pattern[str], reason: str, where: str = "") -> None:
    if tampered.search(reason):
        raise Tampered(f"{where}: {reason}" if where else reason, hint=TAMPERED_HINT)


def _graver(kind: type[SourceError], error: SourceError) -> type[SourceError]:
    """The kind of failure that matters more: what is not right, then what was not there to ask."""
    if kind is BadSource or isinstance(error, BadSource) or _DISTRUST.search(error.what):
        return BadSource
    return Unreachable if isinstance(error, Unreachable) else kind


@dataclass(frozen=True, kw_only=True)
class Apt:
    """Apt with a configuration of its own; everything it writes is below `home`."""

    stanzas: list[str]
    label: str
    etc: Path
    options: tuple[str, ...]
    want: Want

    @property
    def package(self) -> str:
        """The source package."""
        return f"postgresql-{self.want.major.name}"

    @functools.cached_property
    def home(self) -> Path:
        """One directory for each list of sources and each user, since apt wants to own it."""
        text = "\n".join(self.stanzas)
        name = f"{self.label}-{cache.digest(text, str(os.geteuid()), *self.options)[:8]}"
        home = cache.directory("source", "apt", name)
        for folder in ("state/lists/partial", "cache/archives/partial", "etc", "download"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        (home / "status").touch()
        cache.write(home / "etc/private.sources", text)
        hooks = ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success", "Post-Invoke-Stats")
        settings = {
            "Dir::State": home / "state",
            "Dir::State::status": home / "status",
            "Dir::State::lists": home / "state/lists",
            "Dir::Cache": home / "cache",
            "Dir::Cache::archives": home / "cache/archives",
            "Dir::Log": home,
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": home / "etc",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "15",
            "Acquire::https::Timeout": "15",
            "Acquire::Languages": "none",
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::AllowDowngradeToInsecureRepositories": "false",
        }
        lines = [f"#clear APT::Update::{hook};" for hook in hooks]
        lines += [f'{name} "{value}";' for name, value in settings.items()]
        cache.write(home / "apt.conf", "\n".join(lines) + "\n")
        if os.geteuid() == 0 and not cache.private_parents(home / "download"):
            # whom apt's downloads run as, so that they need not run as root; a container's root may
            # be a user who cannot give it away
            with contextlib.suppress(LookupError, OSError):
                shutil.chown(home / "download", "_apt")
        return home

    def run(self, *argv: str, cwd: Path | None = None, timeout: float | None = None) -> Completed:
        """Run an apt command, whatever its status; stdout has both streams.

        Raises Unreachable when it takes more than timeout seconds.
        """
        config = ["-c", str(self.home / "apt.conf"), "-q", *self.options]
        try:
            return call(
                [argv[0], *config, *argv[1:]],
                cwd=cwd,
                env={"LC_ALL": "C.UTF-8"},
                log=cache.directory("log") / f"source-{self.want.major.name}.log",
                capture=True,
                check=False,
                quiet=True,
                timeout=timeout,
            )
        except CommandFailed as error:
            what = f"{' '.join(argv[:2])}: {first_line(error.tail)}"
            raise Unreachable(what) from error

    def update(self) -> str:
        """Fetch the indexes unless that was done just now; what is to be said about it, or "".

        Raises SourceError when no server answers.
        """
        stamp = self.home / "updated"
        with cache.lock(f"apt-{self.home.name}", f"asks the archive of {self.label}"):
            if not self.want.refresh and _younger(stamp, UPDATED_SECONDS):
                return stamp.read_text(encoding="utf-8")
            uris = (
                []
                if self._proxied()
                else sorted({uri for s in self.stanzas for uri in s.splitlines()[1].split()[1:]})
            )
            silent = net.unreachable(uris, refresh=self.want.refresh)
            if uris and len(silent) == len(uris):
                raise Unreachable(next(iter(silent.values())))
            with step(f"asking the archive for {self.package} in {self.label}", estimate=3.0):
                done = self.run("apt-get", "update", timeout=UPDATE_SECONDS)
            check_space(done.stdout)
            complaint = _complaint(done)
            renewed = re.search(_WRONG_INDEX, done.stdout)
            if renewed:
                complaint = complaint or renewed[0].strip()
            if not any((self.home / "state/lists").glob("*_Sources*")):
                raise _failure(complaint or _silence(done, self.label))
            if not renewed:
                cache.write(stamp, complaint)
        return complaint

    def _proxied(self) -> bool:
        """Whether apt goes through a proxy, so that its servers need not be reachable from here."""
        out = self.run("apt-config", "dump", "--format", "%F=%v%n").stdout
        proxy = r"(?im)^acquire::https?::(.*::)?proxy(-?auto-?detect)?=(?!direct$|false$)."
        return re.search(proxy, out) is not None

    def uploads(self) -> list[Upload]:
        """The uploads that the indexes list, the newest version first.

        Each tarball once for each place that it can be downloaded from.
        """
        out = self.run("apt-cache", "showsrc", "--only-source", self.package).stdout
        found: dict[tuple[str, str], Upload] = {}
        for upload in parse_uploads(out, self.package):
            found.setdefault((upload.sha256, upload.folder), upload)
        return sorted(found.values(), key=lambda u: version_key(u.upstream), reverse=True)

    def download(self, upload: Upload) -> Path:
        """Bring the orig tarball of an upload; verified by apt, and once more here.

        Raises SourceError with the reason, in a few words.
        """
        folder = self.home / "download"
        file = folder / upload.file
        wanted = f"{self.package}={upload.version}"
        failure = SourceError("nothing came")
        size = f"{upload.size / 1e6:.0f} MB"
        for attempt in range(TRIES):
            if attempt:
                # perhaps what was there to go on from is of another file
                file.unlink(missing_ok=True)
                time.sleep(1.0)
            try:
                with step(f"downloading {upload.file}, {size}", estimate=upload.size / 5e6):
                    done = self.run(
                        "apt-get", "source", "--download-only", "--tar-only", wanted, cwd=folder
                    )
                    file.with_name(file.name + ".FAILED").unlink(missing_ok=True)
                    _arrived(file, upload, done)
            except SourceError as error:
                failure = error
            else:
                return file
            if re.search(r"\b(404|403|410)\b", failure.what):
                break
        file.unlink(missing_ok=True)
        raise failure


def _arrived(file: Path, upload: Upload, done: Completed) -> None:
    """Raise SourceError with apt's reason unless the tarball of an upload is there, and right."""
    if not file.is_file():
        check_space(done.stdout)
        raise _failure(_complaint(done) or f"apt-get brought nothing, status {done.returncode}")
    if sha256_of(file) != upload.sha256:
        check_space(done.stdout)
        raise _failure(_complaint(done) or "hash sum mismatch")


def parse_uploads(text: str, package: str) -> list[Upload]:
    """The uploads in what `apt-cache showsrc` prints."""
    uploads = []
    for paragraph in re.split(r"\n\s*\n", text):
        fields = _paragraph(paragraph)
        if fields.get("Package") != package or "Version" not in fields:
            continue
        for line in fields.get("Checksums-Sha256", "").splitlines():
            words = line.split()
            if len(words) == 3 and re.search(r"\.orig\.tar\.\w+$", words[2]):
                sha256, size, file = words
                uploads.append(
                    Upload(
                        version=fields["Version"], folder=fields.get("Directory", ""), file=file,
                        sha256=sha256, size=int(size),
                    )
                )  # fmt: skip
    return uploads


def entries(etc: Path) -> list[Entry]:
    """The host's sources of binary or source packages, from both of apt's formats, in order."""
    found: list[Entry] = []
    parts = etc / "sources.list.d"
    lists = [etc / "sources.list", *sorted(parts.glob("*.list"))]
    for path in lists:
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found += filter(None, map(_one_line, text.splitlines()))
    for path in sorted(parts.glob("*.sources")):
        text = path.read_text(encoding="utf-8", errors="replace")
        found += filter(None, (_deb822(_paragraph(p)) for p in re.split(r"\n\s*\n", text)))
    return list(dict.fromkeys(found))


def _one_line(line: str) -> Entry | None:
    """deb [signed-by=/x arch=amd64] http://host/debian bookworm main"""
    found = re.match(r"\s*deb(?:-src)?\s+(?:\[([^\]]*)\]\s*)?([^#]+)", line)
    words = found[2].split() if found else []
    if found is None or len(words) < 2:
        return None
    kept = {name.lower(): name for name in KEPT}
    options = [w.partition("=") for w in (found[1] or "").split()]
    fields = tuple(
        (kept[name.lower()], value.replace(",", " "))
        for name, _, value in options
        if name.lower() in kept
    )
    return Entry(uris=(words[0],), suites=(words[1],), components=tuple(words[2:]), fields=fields)


def _deb822(fields: dict[str, str]) -> Entry | None:
    if not fields.get("URIs") or not fields.get("Suites"):
        return None
    if fields.get("Enabled", "yes").strip().lower() in {"no", "false", "off", "0"}:
        return None
    return Entry(
        uris=tuple(fields["URIs"].split()),
        suites=tuple(fields["Suites"].split()),
        components=tuple(fields.get("Components", "").split()),
        fields=tuple((name, value) for name, value in fields.items() if name in KEPT),
    )


def _paragraph(text: str) -> dict[str, str]:
    """The fields of a paragraph of Debian's control format; further lines keep their newlines."""
    fields: dict[str, str] = {}
    name = ""
    known = {n.lower(): n for n in KEPT | {"URIs", "Suites", "Components", "Enabled", "Types"}}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in {" ", "\t"} and name:
            fields[name] += "\n" + line
        elif ":" in line:
            name, _, value = line.partition(":")
            name = known.get(name.strip().lower(), name.strip())
            fields[name] = value.strip()
    return fields


def _family(signed_by: str) -> str:
    """A keyring, and the distribution's whole one beside it.

    A host may trust only its own suite's keys for its archive; other suites are signed by their
    own, which the same package of keyrings brought to the same place.
    """
    if "\n" in signed_by or not signed_by.startswith("/"):
        return signed_by
    paths = signed_by.split()
    for path in map(Path, list(paths)):
        vendor = re.match(r"([a-z]+)-archive-", path.name)
        if vendor and path.parent == Path("/usr/share/keyrings"):
            whole = path.with_name(f"{vendor[1]}-archive-keyring{path.suffix}")
            if whole.is_file() and str(whole) not in paths:
                paths.append(str(whole))
    return " ".join(paths)


def _has_pocket(suite: str, pocket: str) -> bool:
    """Whether a suite can have such a pocket: sid and experimental stand alone."""
    return not pocket or suite not in ROLLING


def _upstream(version: str) -> str:
    """17.2 of 1:17.2-1.pgdg12+1, 19beta1 of 19~beta1-1"""
    return re.sub(r"^\d+:", "", version).rpartition("-")[0].replace("~", "") or version


def _os_release(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line]
    return {name.strip(): "".join(shlex.split(value)) for name, _, value in pairs}


def _younger(path: Path, seconds: float) -> bool:
    try:
        return 0 <= time.time() - path.stat().st_mtime < seconds
    except OSError:
        return False


def _failure(reason: str) -> SourceError:
    """The error for what apt said: whether another time may do decides what is done about it.

    An index with another sum than the signed one is none that can be asked: a mirror is renewed.
    """
    passing = r"(?i)could not (connect|resolve)|timed? ?out|temporary failure|network is|hash sum"
    return (Unreachable if re.search(passing, reason) else SourceError)(reason)


def _silence(done: Completed, label: str) -> str:
    """Why no index came, where apt does not complain of anything: "Ign:" is not a reason."""
    if re.search("(does not|no longer) ha(ve|s) a Release file", done.stdout):
        return f"the archive has no suite {label}"
    errors = "\n".join(line for line in done.stdout.splitlines() if line.startswith("Err:"))
    return first_line(errors) or f"apt-get update brought no index, status {done.returncode}"


def _complaint(done: Completed) -> str:
    """What apt complains about in one line, without suites that an archive does not have."""
    if done.returncode == 0 and "\nW: " not in f"\n{done.stdout}":
        return ""
    text = "\n".join(
        line[3:]
        for line in done.stdout.splitlines()
        if line.startswith(("E: ", "W: "))
        and "does not have a Release file" not in line
        and "no longer has a Release file" not in line
        and "Some index files failed to download" not in line
        and "Failed to fetch some archives" not in line
        and "Download is performed unsandboxed" not in line
    )
    line = first_line(text, limit=300)
    failed = re.match(r"Failed to fetch \S+\s+(.*?)(\s*\[IP: .*\])?$", line)
    if failed:
        return " ".join(failed[1].split())
    if "NO_PUBKEY" in line:
        line += " (a newer package of the distribution's archive keyring has it)"
    return line
