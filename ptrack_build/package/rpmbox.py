"""Rpms made in a container of an rpm distribution, installed and used in a clean one of the same.

    dist/<system>/postgresql-NN ── verify ──▶ Tried

What the packages depend on is installed by dnf into an image that is kept; then all is done without
a network, by packaging/rpm/verify/container.sh, a step a call: the packages are installed from
their files, a cluster is made and its server started by pg_ctl, since containers have no systemd,
every extension there is is created, rows are changed, the server is killed, packages of an earlier
release are upgraded where there are some, and all are erased. What ptrack said of the changed
blocks is compared here with the files of before and after.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from ptrack_build import REPO, cache
from ptrack_build.container import NoEngine, NoImage, Reference, box, engine
from ptrack_build.errors import CommandFailed, HostError
from ptrack_build.package import MANIFEST, PackageError, rpmroot
from ptrack_build.package.ground import Containers
from ptrack_build.package.rpmrepo import capabilities
from ptrack_build.package.rpmroot import Tried
from ptrack_build.progress import say, step

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

SCRIPT: Final = REPO / "packaging" / "rpm" / "verify" / "container.sh"
#: What the script uses, and not every image has. Each has coreutils, or coreutils-single (those of
#: EL), which conflicts with it.
TOOLS: Final = ("diffutils", "findutils", "procps-ng", "util-linux")
#: Names of images, by what a distribution calls itself in os-release; of others it is the same.
#: Releases of EL have images of their major.
IMAGES: Final = {
    "almalinux": "almalinux:{major}",
    "centos": "quay.io/centos/centos:stream{major}",
    "ol": "oraclelinux:{major}",
    "rhel": "registry.access.redhat.com/ubi{major}/ubi:latest",
    "rocky": "rockylinux:{major}",
}
#: The steps in order; `upgrade` where there is something to upgrade from.
ORDER: Final = {
    "install": "all packages, a cluster, every extension",
    "track": "each changed block is reported",
    "crash": "also after a crash; a restart keeps the map",
    "upgrade": "from an earlier release; the map is kept, and tracked on",
    "remove": "the cluster is kept, and nothing else is left",
}


def image(system: Mapping[str, str]) -> str:
    """The image of a system, as the manifest has it."""
    release = system["release"] or system["codename"]
    named = IMAGES.get(system["distribution"], "{distribution}:{release}")
    return named.format(
        distribution=system["distribution"], release=release, major=release.partition(".")[0]
    )


def verify(dist: Path, earlier: Path | None = None) -> Tried:
    """Install, use and erase the packages of a directory of dist/ in a container of their system.

    earlier: a directory with packages of an earlier release, which those are upgraded from. Raises
    HostError where there is no engine, or no image of the system, and PackageError, with the log,
    for whatever the packages do not do as they should.
    """
    said = json.loads((dist / MANIFEST).read_text(encoding="utf-8"))
    place = dist.absolute()
    packages = [each for each in said["packages"] if each["architecture"] != "src"]
    files = [place / each["file"] for each in packages]
    old = rpmroot.upgraded_from(earlier, files) if earlier else ()
    log = cache.directory("log") / f"verify-rpm-{place.parent.name}-{said['major']}.log"
    log.unlink(missing_ok=True)
    reference = Reference.parse(image(said["system"]))
    try:
        with engine.running() as client:
            tried = _in(Containers(client=client), reference, packages, said, files, old, log)
    except (NoEngine, NoImage) as error:
        raise HostError(error.what, hint=error.hint, log=error.log) from error
    for line in tried.steps:
        say(f"    {line}")
    say(f"    {tried.changed} blocks changed, all among the {tried.reported} reported")
    return tried


def _in(
    ground: Containers,
    reference: Reference,
    packages: Iterable[Mapping[str, str]],
    said: Mapping[str, Any],
    files: Sequence[Path],
    old: Sequence[Path],
    log: Path,
) -> Tried:
    """Take the steps in a container of that image."""
    name = f"{reference} {said['major']}"
    number = re.split(r"\D", said["postgresql"]["version"])[0]  # `devel` is the number of none
    system = files[0].parent.parent.name
    with cache.lock(f"verify {name}", f"verifies {name}"):
        work = cache.directory("build") / f"verify-rpm-{system}-{said['major']}"
        cache.remove(work)
        work.mkdir()
        try:
            script = work / SCRIPT.name
            script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
            clean = ground.image(reference)
            say(f"verifying rpms of {said['major']} {ground.how} of {reference} ({clean.how})")
            seen = sorted({file.parent for file in (*files, *old)})
            mounts = [box.Mount(path=path) for path in seen]
            mounts.append(box.Mount(path=work, writable=True))
            env = {
                "BEFORE": " ".join(map(str, old)),
                "MAJOR": number,
                "PACKAGES": " ".join(map(str, files)),
                "WORK": str(work),
            }
            ready = ground.with_packages(clean, "dnf", [*TOOLS, *needed(packages)])
            steps = []
            with ground.opened(ready, mounts=mounts) as container:
                for each, means in ORDER.items():
                    if each == "upgrade" and not old:
                        continue
                    with step(f"{name}: {each} ({means})"):
                        container.call(["sh", str(script), each], env=env, log=log)
                    steps.append(f"{each}: {means}")
            answers = [("after", "map"), ("crashed", "crashed.map")]
            answers += [("upgraded", "upgraded.map")] if old else []
            changed, reported = rpmroot.judged(work, number, answers, log, SCRIPT)
        except CommandFailed as error:
            what = f"the packages failed in a container of {reference}: {_why(error)}"
            raise PackageError(what, log=log, hint="read the log") from error
        finally:
            cache.remove(work)
    return Tried(steps=tuple(steps), changed=changed, reported=reported)


def needed(packages: Iterable[Mapping[str, str]]) -> list[str]:
    """What packages require of a distribution, without versions: dnf installs what has it."""
    return sorted({each.partition(" ")[0] for each in capabilities(packages)})


def _why(error: CommandFailed) -> str:
    lines = [line for line in error.tail.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("FAILED: ", "Error: "))]
    return (said or lines or ["it said nothing"])[-1].removeprefix("FAILED: ")
