"""What is in dist/, installed and used as users do, in clean containers.

    dist/<system>/postgresql-NN ── verify ──▶ Outcome

For each system there is a container without network for each major. Everything but our own packages
is installed before, into an image that is kept; what the packages leave behind when they are purged
is what a list of all files has more, or less, than before. The steps are shell, in
packaging/deb/verify, and the test that packages bring along for autopkgtest is one of them.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ptrack_build import cache, report
from ptrack_build.container import Reference, box
from ptrack_build.container import image as images
from ptrack_build.errors import CommandFailed, HostError, PtrackError, UsageError
from ptrack_build.package import DIST, MANIFEST, SUMS, PackageError, deb, making, sha256
from ptrack_build.progress import say, step
from ptrack_build.suite import results

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from docker import DockerClient

STEPS: Final = deb.TEMPLATES / "verify" / "steps.sh"
TRACKING: Final = deb.TEMPLATES / "extension" / "tests" / "tracking.j2"

#: The steps in order; what a step does is in steps.sh.
ORDER: Final = {
    "install": "an earlier version, with a first cluster",
    "track": "a cluster with the extension; each changed block is reported",
    "upgrade": "to the version in dist/; clusters run on, and their map stays valid",
    "upgradecluster": "from the previous major, by dump and by pg_upgrade",
    "remove": "clusters are stopped and kept",
    "purge": "nothing is left",
}
OLDER: Final = "packages of an earlier version are those of dist/ with `~before` behind theirs"


class VerifyFailed(PtrackError):
    """Packages did not do what they should; the table has said which and what."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A directory of dist/: packages of a major for a system. image: what to verify them in."""

    folder: Path
    kind: str
    system: str
    image: str
    major: str
    number: int
    version: str
    files: tuple[str, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """debian-bookworm-amd64 17"""
        return f"{self.system} {self.major}"

    def packages(self) -> list[Path]:
        """Those that are installed: neither debugging symbols nor what others compile with."""
        return [
            self.folder / file
            for file in self.files
            if "-dbgsym_" not in file and not file.startswith("postgresql-server-dev-")
        ]


def published(
    dist: Path, systems: Sequence[str] = (), majors: Sequence[str] = ()
) -> list[Published]:
    """What is in dist/, filtered by words of systems' names and by majors.

    Raises PackageError where a file is damaged, and UsageError where nothing is left to verify.
    """
    found = []
    for manifest in sorted(dist.glob(f"*/postgresql-*/{MANIFEST}")):
        said = json.loads(manifest.read_text(encoding="utf-8"))
        system = manifest.parent.parent.name
        if systems and not set(systems) & {system, *system.split("-")}:
            continue
        if majors and said["major"] not in majors:
            continue
        about = said["system"]
        _intact(manifest.parent)
        found.append(
            Published(
                folder=manifest.parent,
                kind=said["kind"],
                system=system,
                image=f"{about['distribution']}:{about['codename'] or about['release']}",
                major=said["major"],
                number=20 if said["major"] == "devel" else int(said["major"]),
                version=said["postgresql"]["version"],
                files=tuple(each["file"] for each in said["packages"]),
            )
        )
    if not found:
        asked = " ".join([*systems, *majors])
        what = f"{dist} has no packages" + (f" of {asked}" if asked else "")
        raise UsageError(what, hint="./nox -s deb-17 makes some")
    return sorted(found, key=lambda each: (each.system, each.number))


def _intact(folder: Path) -> None:
    """Raise PackageError unless all files of a published directory have the sums they should."""
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        digest, _, file = line.partition("  ")
        if not (folder / file).is_file() or sha256(folder / file) != digest:
            what = f"{folder / file} is not as {SUMS} has it"
            raise PackageError(what, hint="remove the directory and make the packages again")


def verify(
    systems: Sequence[str] = (), majors: Sequence[str] = (), dist: Path = DIST
) -> list[report.Outcome]:
    """Verify what is in dist/; prints one table at the end, kept in results() as JSON.

    Raises VerifyFailed if anything failed, or if nothing could be verified.
    """
    from ptrack_build.container import engine

    wanted = published(dist, systems, majors)
    everything = published(dist)
    outcomes = []
    with contextlib.ExitStack() as stack:
        client: DockerClient | None = None
        for each in wanted:
            if each.kind == "rpm":
                outcomes.append(_rpms(each))
                continue
            if client is None:
                client = stack.enter_context(engine.running())
            before = previous(each, everything)
            try:
                outcomes.append(one(client, each, before))
            except PtrackError as error:
                say(str(error))
                outcomes.append(
                    report.Outcome(session=each.name, status="failed", note=str(error), failures=1)
                )
    report.keep(outcomes, results() / "verify-packages.json")
    say("\n" + report.table(outcomes))
    failed = [each.session for each in outcomes if each.status == "failed"]
    if failed:
        what = f"failed: {', '.join(failed)}"
        raise VerifyFailed(what, hint=f"read {cache.directory('log')}/verify-*.log")
    if not any(each.status == "passed" for each in outcomes):
        what = "nothing could be verified"
        raise VerifyFailed(what, hint="./nox -s deb-17 makes Debian packages")
    return outcomes


def _rpms(each: Published) -> report.Outcome:
    """Try rpms on a system made for them; not run where this machine cannot make it."""
    from ptrack_build.package import rpmroot

    began = time.monotonic()
    name = f"{each.name} rpm"
    try:
        tried = rpmroot.verify(each.folder)
    except HostError as error:
        return report.Outcome(session=name, status="not run", note=error.what)
    except PtrackError as error:
        say(str(error))
        return report.Outcome(session=name, status="failed", note=error.what, failures=1)
    return report.Outcome(
        session=name,
        status="passed",
        version=each.version,
        tests=len(tried.steps),
        test_seconds=time.monotonic() - began,
    )


def previous(each: Published, everything: Sequence[Published]) -> Published | None:
    """The nearest major before this one whose packages for the same system are there."""
    below = [
        other
        for other in everything
        if (other.kind, other.system) == (each.kind, each.system) and other.number < each.number
    ]
    return max(below, key=lambda other: other.number, default=None)


def one(client: DockerClient, each: Published, before: Published | None) -> report.Outcome:
    """Verify the packages of a major for a system; the outcome's note has what was skipped."""
    began = time.monotonic()
    log = cache.directory("log") / f"verify-{each.system}-{each.major}.log"
    log.unlink(missing_ok=True)
    reference = Reference.parse(each.image)
    base = images.get(client, reference)
    say(f"verifying {each.name} in {reference} ({base.how})")
    failures, skipped, notes, done = 0, 0, [], 0
    with _prepared(each, before) as (mounts, env):
        image = _with_dependencies(client, base, each, before, mounts, log)
        with box.opened(
            client, image.id, user="0:0", mounts=mounts, called=str(reference)
        ) as container:  # fmt: skip
            for name, title in ORDER.items():
                if name == "upgradecluster" and before is None:
                    skipped += 1
                    notes.append(f"skipped {name}: no earlier major's packages for {each.system}")
                    continue
                done += 1
                argv = ["sh", env["STEPS"], name]
                try:
                    with step(f"{each.name}: {name} ({title})"):
                        container.call(argv, env=env, log=log)
                except CommandFailed as error:
                    failures += 1
                    notes.append(f"{name} failed: {_why(error)} (log: {log})")
                    rest = list(ORDER)[list(ORDER).index(name) + 1 :]
                    skipped += len(rest)
                    notes += [f"skipped {later}: {name} failed" for later in rest]
                    break
    return report.Outcome(
        session=each.name,
        status="failed" if failures else "passed",
        version=each.version,
        tests=done + skipped,
        failures=failures,
        skipped=skipped,
        test_seconds=time.monotonic() - began,
        note="\n".join(notes),
    )


def _why(error: CommandFailed) -> str:
    """What a step says of its failure, else the last line."""
    lines = [line for line in error.tail.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("FAILED: ")]
    return (said or lines or ["it said nothing"])[-1].removeprefix("FAILED: ")


@contextlib.contextmanager
def _prepared(
    each: Published, before: Published | None
) -> Iterator[tuple[list[box.Mount], dict[str, str]]]:
    """The directories a container needs, and the environment of its steps."""
    work = cache.directory("build", f"verify-{each.system}-{each.major}")
    try:
        tracking = work / "tracking"
        text = making.rendered(TRACKING, {"major": each.number}, "deb.Facts")
        tracking.write_text(text, encoding="utf-8")
        tracking.chmod(0o755)
        (work / "steps.sh").write_text(STEPS.read_text(encoding="utf-8"), encoding="utf-8")
        folders = [work, each.folder, *([before.folder] if before else [])]
        env = {
            "MAJOR": str(each.number),
            "PACKAGES": " ".join(map(str, each.packages())),
            "PREVIOUS": str(before.number) if before else "",
            "PREVIOUS_PACKAGES": " ".join(map(str, before.packages())) if before else "",
            "STEPS": str(work / "steps.sh"),
            "TRACKING": str(tracking),
        }
        yield [box.Mount(path=folder) for folder in folders], env
    finally:
        cache.remove(work)


def _with_dependencies(
    client: DockerClient,
    base: images.Image,
    each: Published,
    before: Published | None,
    mounts: Sequence[box.Mount],
    log: Path,
) -> images.Image:
    """The clean image with all that the packages depend on, and none of them.

    Raises CommandFailed where apt cannot satisfy one of them, be it never installed here.
    """
    ours = [each.folder / file for file in each.files]
    used = [*each.packages(), *(before.packages() if before else [])]
    env: Mapping[str, str] = images.unattended()
    with (
        step(f"{each.name}: what the packages depend on"),
        box.opened(
            client, base.id, user="0:0", network="host", mounts=mounts, called=str(base.reference)
        ) as container,
    ):
        simulate = ["apt-get", "install", "-s", "--no-install-recommends"]
        container.call(["apt-get", "update"], env=env, log=log)
        container.call([*simulate, *map(str, ours)], env=env, log=log)
        said = container.call([*simulate, *map(str, used)], env=env, log=log, capture=True).stdout
    own = {file.name.partition("_")[0] for file in used}
    names = [name for name in re.findall(r"^Inst (\S+)", said, re.MULTILINE) if name not in own]
    return images.with_packages(client, base, "apt", names)
