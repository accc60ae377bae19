"""What a release of packages consists of and was made with, as CycloneDX 1.6 in JSON.

    Release ── document ──▶ bom.cdx.json

Equal releases give equal bytes: the time is the source's, the serial number a digest of the rest.
Of all that is packaged the license is named: of packages that of what is in them, of PostgreSQL its
own, and of each part of it that others hold theirs. What SPDX has no name for has its words there.
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cyclonedx.model import AttachedText, HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from ptrack_build.package import notices, terms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cyclonedx.model.license import License

    from ptrack_build.package import Package, Release, System

FILE: Final = "bom.cdx.json"
_NOBODY: Final = uuid.UUID(int=0)


def document(release: Release) -> str:
    """The bill of materials of a release, from what its manifest says."""
    said = release.made_of
    text = notices.text()
    parts = notices.parts(text)
    packages = {each.file: _package(release, each, text) for each in release.packages}
    others = [_part(each, text) for each in parts]
    postgresql = _postgresql(said["postgresql"])
    patch = Component(
        type=ComponentType.FILE, name="ptrack-core.patch", version=said["ptrack"],
        bom_ref="ptrack-core-patch", hashes=_sha256(said["patch"]["digest"]),
        licenses=[_license(terms.OWN)],
        properties=_properties(abi=said["patch"]["abi"], how=said["patch"]["how"]),
    )  # fmt: skip
    extension = Component(
        type=ComponentType.LIBRARY, name="ptrack", version=said["ptrack"], bom_ref="ptrack",
        purl=PackageURL("generic", None, "ptrack", said["ptrack"]),
        licenses=[_license(terms.OWN)],
    )  # fmt: skip
    linked = {name for package in release.packages for name in _names(package.depends)}
    builders = [
        _builder(release.system, name, version, linked=name in linked)
        for name, version in sorted(said["built_with"].items())
    ]
    whole = Component(
        type=ComponentType.APPLICATION, name=f"postgresql-{release.major}-with-ptrack",
        version=f"{said['postgresql']['version']}+ptrack{said['ptrack']}",
        bom_ref=release.place,
        licenses=[_license(notices.expression(name for part in parts for name in part.licenses))],
    )  # fmt: skip
    bom = Bom(serial_number=_NOBODY)
    bom.metadata.timestamp = datetime.fromtimestamp(said["source_date_epoch"], UTC)
    bom.metadata.component = whole
    for each in (postgresql, patch, extension, *packages.values(), *others, *builders):
        bom.components.add(each)
    bom.register_dependency(whole, packages.values() or [postgresql])
    bom.register_dependency(postgresql, [patch, *others, *builders])
    for package in release.packages:
        sources = [extension] if _is_extension(package) else [postgresql]
        needed = [packages[file] for file in _neighbours(package, release.packages)]
        bom.register_dependency(packages[package.file], [*sources, *needed])
    # The name is that of the content, which is why it is written twice.
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, JsonV1Dot6(bom).output_as_string())
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _part(part: notices.Part, said: str) -> Component:
    """What of PostgreSQL others hold. said: the text that has the words of licenses.

    An expression has no place for words: those of its LicenseRefs are properties.
    """
    words = notices.texts(said)
    mine = part.licenses[0] if len(part.licenses) == 1 else ""
    named = {notices.spdx(name): words.get(name, "") for name in part.licenses if not mine}
    refs = {name: text for name, text in named.items() if name.startswith("LicenseRef-")}
    return Component(
        type=ComponentType.FILE, name=part.files[0], bom_ref=f"third-party/{part.files[0]}",
        licenses=[_license(part.expression, words.get(mine, ""))], copyright=part.holders,
        properties=_properties(files=" ".join(part.files), **refs),
    )  # fmt: skip


def _license(expression: str, words: str = "") -> License:
    """One of SPDX's by its id; what has no name there with its words; else an expression."""
    if re.search(r" (AND|OR|WITH) ", expression):
        return LicenseExpression(expression)
    if expression.startswith("LicenseRef-"):
        text = AttachedText(content=words) if words else None
        return DisjunctiveLicense(name=expression, text=text)
    return DisjunctiveLicense(id=expression)


def _package(release: Release, package: Package, said: str) -> Component:
    url = _url(
        release.kind, release.system, package.name, package.version, arch=package.architecture
    )
    return Component(
        type=ComponentType.LIBRARY if _is_extension(package) else ComponentType.APPLICATION,
        name=package.name, version=package.version, bom_ref=package.file, purl=url,
        hashes=_sha256(package.sha256),
        licenses=[_license(terms.under(package.name, said, package.architecture))],
        properties=_properties(file=package.file),
    )  # fmt: skip


def _postgresql(said: dict[str, str]) -> Component:
    known = {name: said[name] for name in ("provider", "commit", "tree") if said.get(name)}
    return Component(
        type=ComponentType.APPLICATION, name="postgresql", version=said["version"],
        bom_ref="postgresql-source", hashes=_sha256(said.get("sha256", "")),
        purl=PackageURL("generic", None, "postgresql", said["version"]),
        licenses=[_license(terms.OWN)], properties=_properties(**known),
    )  # fmt: skip


def _builder(system: System, name: str, version: str, *, linked: bool) -> Component:
    """A package of the distribution: a library, or what it is linked by, or a tool.

    linked: whether a package of the release depends on it.
    """
    kind = "deb" if system.distribution in {"debian", "ubuntu"} else "rpm"
    linked = linked or name.endswith(("-dev", "-devel"))
    return Component(
        type=ComponentType.LIBRARY if linked else ComponentType.APPLICATION,
        name=name, version=version, bom_ref=f"built-with/{name}",
        scope=ComponentScope.REQUIRED if linked else ComponentScope.EXCLUDED,
        purl=_url(kind, system, name, version),
    )  # fmt: skip


def _url(kind: str, system: System, name: str, version: str, **more: str) -> PackageURL:
    """The name of a system's package. A version of rpm's has its epoch beside it there."""
    qualifiers = {**more, "distro": f"{system.distribution}-{system.release or system.codename}"}
    epoch, colon, rest = version.partition(":")
    if kind == "rpm" and colon:
        version, qualifiers["epoch"] = rest, epoch
    return PackageURL(kind, system.distribution, name, version, qualifiers)


def _is_extension(package: Package) -> bool:
    return re.match(r"postgresql-\d+-ptrack\b|ptrack", package.name) is not None


def _neighbours(package: Package, others: Iterable[Package]) -> list[str]:
    """The files of the release's other packages that one depends on, by what they are or provide.

    What is only told apart by where it is installed, such as one of an architecture and its source,
    has one name: a source provides nothing.
    """
    wanted = _names(package.depends)
    return sorted(
        each.file
        for each in others
        if each != package
        and each.architecture not in terms.SOURCES
        and wanted & {each.name, *_names(each.provides)}
    )


def _names(said: str) -> set[str]:
    """The names in what a package says of others, without versions."""
    return set(re.findall(r"(?:^|[,|])\s*([A-Za-z0-9][\w.+-]*)", said))


def _sha256(digest: str) -> list[HashType]:
    if re.fullmatch("[0-9a-f]{64}", digest) is None:
        return []
    return [HashType(alg=HashAlgorithm.SHA_256, content=digest)]


def _properties(**values: object) -> list[Property]:
    return [Property(name=f"ptrack:{name}", value=str(value)) for name, value in values.items()]
