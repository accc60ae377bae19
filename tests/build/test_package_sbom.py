"""The bill of materials: valid by CycloneDX's schema, complete, and equal for equal releases."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from cyclonedx import spdx
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from ptrack_build.package import Package, Release, System, notices, sbom, terms
from tests.build.test_package import MADE_OF, SYSTEM, release

if TYPE_CHECKING:
    from pathlib import Path


def package(name: str, depends: str = "", provides: str = "") -> Package:
    """A package of that name, which depends on others."""
    return Package(
        file=f"{name}_17.2-1+deb12_amd64.deb", name=name, version="17.2-1+ptrack3.0.0+deb12",
        architecture="amd64", size=1, installed_kb=1, sha256="a" * 64, depends=depends,
        provides=provides,
    )  # fmt: skip


MADE = Release(
    kind="deb", system=SYSTEM, major="17", made_of=MADE_OF, files=(),
    packages=(
        package("postgresql-17-ptrack", "postgresql-17 (>= 17.2~), postgresql-17-ptrack-abi-1"),
        package(
            "postgresql-17pt", "postgresql-client-17pt (= 17.2-1), libc6 (>= 2.34)",
            "postgresql-17 (= 17.2-1), postgresql-17-ptrack-abi-1",
        ),
        package("postgresql-client-17pt"),
    ),
)  # fmt: skip


def read(made: Release) -> dict[str, Any]:
    """Its bill."""
    said: dict[str, Any] = json.loads(sbom.document(made))
    return said


def test_it_is_valid_and_a_wrong_one_is_not() -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    text = sbom.document(MADE)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"specVersion"', '"specVersoin"')) is not None


def test_it_names_all_that_the_release_was_made_of() -> None:
    said = {each["bom-ref"]: each for each in read(MADE)["components"]}
    assert said.keys() == {
        *(each.file for each in MADE.packages), "postgresql-source", "ptrack-core-patch", "ptrack",
        "built-with/gcc", "built-with/libssl-dev",
        *(f"third-party/{part.files[0]}" for part in notices.parts(notices.text())),
    }  # fmt: skip
    server = said[MADE.packages[1].file]
    assert server["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    url = PackageURL.from_string(server["purl"])
    assert (url.type, url.namespace, url.name) == ("deb", "debian", "postgresql-17pt")
    assert url.version == "17.2-1+ptrack3.0.0+deb12"
    assert url.qualifiers == {"arch": "amd64", "distro": "debian-12"}
    source = said["postgresql-source"]
    assert source["version"] == "17.2"
    assert source["licenses"] == [{"license": {"id": "PostgreSQL"}}]
    assert {"name": "ptrack:commit", "value": "c" * 40} in source["properties"]
    assert said["ptrack-core-patch"]["hashes"][0]["content"] == "e" * 64
    assert said["built-with/libssl-dev"]["version"] == "3.0.22-1"
    assert said["built-with/gcc"]["scope"] == "excluded"


def test_of_rpms_the_epoch_is_beside_the_version() -> None:
    system = System(
        distribution="rocky", release="9.4", codename="", architecture="x86_64", tag="el9"
    )  # fmt: skip
    server = dataclasses.replace(
        package("postgresql17pt-server"), file="a.rpm", version="17.2-1.el9", architecture="x86_64"
    )  # fmt: skip
    built_with = {"openssl-devel": "1:3.2.2-6.el9", "perl-FindBin": "1.51-481.el9"}
    made = dataclasses.replace(
        MADE, kind="rpm", system=system, packages=(server,),
        made_of={**MADE_OF, "built_with": built_with},
    )  # fmt: skip
    said = {each["bom-ref"]: each.get("purl") for each in read(made)["components"]}
    distro = "distro=rocky-9.4"
    assert said["a.rpm"] == (f"pkg:rpm/rocky/postgresql17pt-server@17.2-1.el9?arch=x86_64&{distro}")
    assert said["built-with/openssl-devel"] == (
        f"pkg:rpm/rocky/openssl-devel@3.2.2-6.el9?{distro}&epoch=1"
    )
    assert said["built-with/perl-FindBin"] == f"pkg:rpm/rocky/perl-FindBin@1.51-481.el9?{distro}"


def test_dependencies_lead_from_the_packages_to_their_sources() -> None:
    said = {each["ref"]: each.get("dependsOn", []) for each in read(MADE)["dependencies"]}
    extension, server, client = (each.file for each in MADE.packages)
    assert said[extension] == [server, "ptrack"]
    assert said[server] == [client, "postgresql-source"]
    of_others = {name for name in said["postgresql-source"] if name.startswith("third-party/")}
    assert "third-party/contrib/fuzzystrmatch/dmetaphone.c" in of_others
    assert {*said["postgresql-source"]} - of_others == {
        "ptrack-core-patch", "built-with/gcc", "built-with/libssl-dev"
    }  # fmt: skip
    assert set(said["debian-bookworm-amd64/postgresql-17"]) == {extension, server, client}


def test_what_packages_depend_on_is_a_library_and_what_compiled_them_is_not() -> None:
    built_with = {"libc6": "2.36", "gcc-12": "12.2.0", "libc6-dev": "2.36"}
    bill = read(dataclasses.replace(MADE, made_of={**MADE_OF, "built_with": built_with}))
    found = {
        each["name"]: (each["type"], each["scope"])
        for each in bill["components"]
        if each["bom-ref"].startswith("built-with/")
    }
    assert found == {
        "libc6": ("library", "required"), "libc6-dev": ("library", "required"),
        "gcc-12": ("application", "excluded"),
    }  # fmt: skip


def test_nothing_depends_on_a_source() -> None:
    source = dataclasses.replace(MADE.packages[2], file="a.dsc", architecture="source")
    bill = read(dataclasses.replace(MADE, packages=(*MADE.packages, source)))
    said = {each["ref"]: each.get("dependsOn", []) for each in bill["dependencies"]}
    assert "a.dsc" not in said[MADE.packages[1].file]


def test_equal_releases_give_equal_bytes_and_others_another_serial_number() -> None:
    again = dataclasses.replace(MADE, packages=tuple(reversed(MADE.packages)))
    assert sbom.document(MADE) == sbom.document(again)
    other = dataclasses.replace(MADE, made_of={**MADE_OF, "built_with": {"gcc": "13"}})
    assert read(other)["serialNumber"] != read(MADE)["serialNumber"]
    assert read(MADE)["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"


def test_a_tarball_is_known_by_its_digest(tmp_path: Path) -> None:
    made = release(tmp_path / "made", a="1")
    source = {**MADE_OF["postgresql"], "sha256": "f" * 64}
    bill = read(dataclasses.replace(made, made_of={**MADE_OF, "postgresql": source}))
    (found,) = (each for each in bill["components"] if each["bom-ref"] == "postgresql-source")
    assert found["hashes"] == [{"alg": "SHA-256", "content": "f" * 64}]


# ---- licenses


def licenses(made: Release) -> dict[str, list[dict[str, Any]]]:
    """What the bill says of each component's licenses, of the release itself by the name ""."""
    bill = read(made)
    every = {each["bom-ref"]: each for each in bill["components"]}
    every[""] = bill["metadata"]["component"]
    return {name: each.get("licenses", []) for name, each in every.items()}


def test_whatever_is_packaged_has_a_license() -> None:
    """Of the distribution's packages it is for the distribution to say."""
    found = licenses(MADE)
    assert {name for name, each in found.items() if not each} == {
        "built-with/gcc", "built-with/libssl-dev",
    }  # fmt: skip
    for name, (each,) in ((name, each) for name, each in found.items() if each):
        said = each.get("expression") or each["license"].get("id") or each["license"]["name"]
        assert spdx.is_expression(re.sub(r"LicenseRef-[\w.-]+", "MIT", said)), name
        assert "id" not in each.get("license", {}) or spdx.is_supported_id(said), name


def test_a_part_that_others_hold_names_them_and_their_terms() -> None:
    (perl,) = (
        each
        for each in read(MADE)["components"]
        if each["bom-ref"] == "third-party/contrib/fuzzystrmatch/dmetaphone.c"
    )
    assert "Maurice Aubrey" in perl["copyright"]
    terms_of_it = "(GPL-1.0-or-later OR Artistic-1.0-Perl) AND LicenseRef-HPND-patrol"
    assert perl["licenses"] == [{"expression": terms_of_it}]
    ((each,),) = [
        each
        for name, each in licenses(MADE).items()
        if name == "third-party/contrib/dblink/dblink.c"
    ]
    assert each["license"]["name"] == "LicenseRef-HPND-distributors"
    assert each["license"]["text"]["content"].startswith("Permission to use, copy, modify")


def test_what_spdx_has_no_name_for_has_its_words() -> None:
    """Wherever it is named: also what is only ever one of several licenses."""
    text = sbom.document(MADE)
    known = {notices.spdx(name): words for name, words in notices.texts(notices.text()).items()}
    there: dict[str, str] = {}
    for each in json.loads(text)["components"]:
        for found in (one.get("license", {}) for one in each.get("licenses", [])):
            if "text" in found:
                there[found["name"]] = found["text"]["content"]
        for said in each.get("properties", []):
            if said["name"].startswith("ptrack:LicenseRef-"):
                there[said["name"].removeprefix("ptrack:")] = said["value"]
    named = set(re.findall(r"LicenseRef-[\w.-]*\w", text))
    assert {"LicenseRef-HPND-patrol", "LicenseRef-Niemann", "LicenseRef-Whitley"} <= named
    assert there == {name: known[name] for name in named}
    assert all(there.values())


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("postgresql17pt", "client"), ("postgresql17pt-libs", "libs"),
        ("postgresql17pt-server", "server"), ("postgresql17pt-llvmjit", "llvmjit"),
        ("postgresql17pt-debuginfo", "client"), ("postgresql-plperl-17pt", "plperl"),
        ("postgresql-plperl-17pt-dbgsym", "plperl"), ("postgresql-server-dev-17pt", "devel"),
    ],
)  # fmt: skip
def test_a_package_is_under_what_is_in_it(name: str, word: str) -> None:
    text = notices.text()
    assert terms.under(name, text) == terms.licenses(text)[word]


def test_debian_s_packages_have_what_several_of_rpm_s_have() -> None:
    text = notices.text()
    client, server = (
        terms.under(name, text) for name in ("postgresql-client-17pt", "postgresql-17pt")
    )
    assert "X11" in client.split(" AND ")  # of PGXS
    assert "X11" not in server.split(" AND ")
    for word in ("client", "contrib", "llvmjit", "server"):
        assert {*terms.licenses(text)[word].split(" AND ")} <= {*server.split(" AND ")}


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("postgresql17pt", "src"), ("postgresql17pt-debugsource", "x86_64"),
     ("postgresql-17pt", "source")],
)  # fmt: skip
def test_sources_are_under_all_that_there_is(name: str, architecture: str) -> None:
    every = " AND ".join(terms.licenses(notices.text()).values())
    each = dataclasses.replace(package(name), file="a", architecture=architecture)
    (said,) = licenses(dataclasses.replace(MADE, packages=(each,)))["a"]
    assert {*every.split(" AND ")} <= {*said["expression"].split(" AND ")}
    for part in notices.parts(notices.text()):
        assert {*part.expression.split(" AND ")} <= {*said["expression"].split(" AND ")}


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("ptrack_17", "src"), ("ptrack_17-debugsource", "x86_64"), ("postgresql-17-ptrack", "source")],
)
def test_the_extension_s_sources_are_all_our_own(name: str, architecture: str) -> None:
    assert terms.under(name, notices.text(), architecture) == "PostgreSQL"


@pytest.mark.parametrize(
    "name", ["postgresql-17-ptrack", "postgresql-17-ptrack-dbgsym", "ptrack_17",
             "ptrack_17-llvmjit", "postgresql17pt-native"],
)  # fmt: skip
def test_the_extension_and_what_has_no_files_is_all_our_own(name: str) -> None:
    assert terms.under(name, notices.text()) == "PostgreSQL"


def test_each_paragraph_of_files_is_a_part() -> None:
    text = notices.text()
    found = notices.parts(text)
    assert [name for part in found for name in part.files] == notices.patterns(text)
    assert all(part.holders or "public-domain" in part.licenses for part in found)
    words = notices.texts(text)
    lacking = {name for part in found for name in part.licenses} - words.keys()
    assert not [name for name in lacking if notices.spdx(name).startswith("LicenseRef-")]
