"""Images: found, pulled, or bootstrapped from this machine's own package mirror.

An image of Debian or Ubuntu that is not there and cannot be pulled is made by mmdebstrap from what
apt is set up with here, mirror, keys and proxies, for the suite that its tag names. It gets a name
of its own, `ptrack-bootstrapped/...`, and a label, so that nobody takes it for the registry's.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from ptrack_build import cache, host
from ptrack_build.container import box
from ptrack_build.container.base import ROLLING, ContainerError, NoImage, Reference, explained
from ptrack_build.errors import CommandFailed, SourceError
from ptrack_build.host import check_room
from ptrack_build.package.place import unobtainable
from ptrack_build.progress import say, step
from ptrack_build.run import call
from ptrack_build.source import distro

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from docker import DockerClient
    from docker.models.images import Image as Held

BOOTSTRAPPED: Final = "ptrack-bootstrapped"
DERIVED: Final = "ptrack-derived"
LABEL: Final = "ptrack.made"
FORMAT: Final = "image 1"
RENEW_SECONDS: Final = 14 * 24 * 3600  # from then on an image of ours is made anew
FREE_MB: Final = 2500

#: What apt is told for unattended work.
UNATTENDED: Final = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that is there. how: where it came from, in a few words."""

    reference: Reference
    id: str
    how: str

    @property
    def rolling(self) -> str:
        """The suite's name where the system in it calls itself by another one, else ""."""
        return self.reference.tag if self.reference.tag in ROLLING else ""


def get(client: DockerClient, reference: Reference) -> Image:
    """The image of that name: as the engine has it, pulled, or bootstrapped.

    Raises NoImage saying what was tried, and ContainerError where a digest is not the image's.
    """
    import docker.errors

    named = str(reference)
    with explained(f"the engine cannot look for {named}"):
        for tag in (named, f"{BOOTSTRAPPED}/{reference.tagged}"):
            with contextlib.suppress(docker.errors.ImageNotFound):
                held = client.images.get(tag)
                if tag != named and (reference.digest or _old(held)):
                    continue
                how = "there" if tag == named else "bootstrapped before from this host's mirror"
                return _proven(client, reference, held, how)
    try:
        with step(f"pulling {named}"), explained("not pulled"):
            name, tag = reference.name, reference.digest or reference.tag
            if not name:
                what = f"the engine has no image {named}"
                raise ContainerError(what, hint="name it by its registry's name, too")
            held = client.images.pull(name, tag=tag)
    except ContainerError as error:
        if reference.digest:
            raise _other_digest(client, reference, error) from error
        say(f"{named} could not be pulled ({_short(error)}): bootstrapping it")
        try:
            return _bootstrap(client, reference)
        except NoImage as none:
            if _is_engine_s(error):
                what = f"{none.what}\n(pulling it: {_short(error)})"
                raise ContainerError(what, hint=error.hint, log=none.log) from error
            raise
    return _proven(client, reference, held, "pulled")


def _proven(client: DockerClient, reference: Reference, held: Held, how: str) -> Image:
    """The image, if its digest is the one asked for."""
    if reference.digest and reference.digest not in _digests(held):
        raise _other_digest(client, reference, None)
    return Image(reference=reference, id=held.id, how=how)


def _digests(held: Held) -> set[str]:
    listed = held.attrs.get("RepoDigests") or []
    return {held.id, *(each.partition("@")[2] for each in listed)}


def _other_digest(
    client: DockerClient, reference: Reference, cause: ContainerError | None
) -> ContainerError:
    """What is to be said where no image has the digest."""
    import docker.errors

    what = f"{reference}: no image with this digest can be had"
    if cause is not None:
        what += f" ({_short(cause)})"
    hint = "check the digest; a bootstrapped image is asked for by its tag alone"
    if reference.tagged:
        with contextlib.suppress(docker.errors.DockerException):
            held = client.images.get(reference.tagged)
            others = " and ".join(sorted(_digests(held)))
            what = f"{reference.tagged} has not this digest, but {others}"
            hint = "ask for one of these, or remove the image so that it is pulled again"
    return ContainerError(what, hint=hint)


def _is_engine_s(error: ContainerError) -> bool:
    """Whether a pull failed here, and not for what the registry has or that it does not answer.

    What fails when it has begun the client does not tell, but that there is no image then.
    """
    import docker.errors

    cause = error.__cause__
    if not isinstance(cause, docker.errors.APIError):
        return cause is not None
    here = r"no space left|disk quota|permission denied|read-only file system|^No such image"
    return re.search(here, str(cause.explanation or cause), re.IGNORECASE) is not None


def _short(error: ContainerError) -> str:
    return " ".join(error.what.split())[:200]


def _old(held: Held) -> bool:
    """Whether an image of ours is to be made anew."""
    created = held.attrs.get("Created", "")
    with contextlib.suppress(ValueError):
        when = datetime.fromisoformat(created[:19] + "+00:00").timestamp()
        return time.time() - when > RENEW_SECONDS
    return True


# ---- bootstrapping


def _bootstrap(client: DockerClient, reference: Reference) -> Image:
    """Make the image of a suite from this machine's mirror."""
    work = cache.directory("build", "images")
    archive = work / f"{reference.name}-{reference.tag}.tar"
    with cache.lock(f"image {reference.name}-{reference.tag}"):
        try:
            bootstrap(reference, archive)
            held = _imported(client, reference, archive)
        except OSError as error:
            what = f"{reference} could not be bootstrapped: {error}"
            raise ContainerError(what, hint=f"free some space at {work}") from error
        finally:
            cache.remove(archive)
    return Image(reference=reference, id=held.id, how="bootstrapped from this host's mirror")


def bootstrap(reference: Reference, target: Path) -> None:
    """Make the system of a suite from this machine's mirror: a tarball, or into a directory.

    The caller sees to it that nobody else does so. Raises NoImage where the mirror has no such
    suite, or packages of it that cannot be installed, and ContainerError for all else that fails.
    """
    named = str(reference)
    about = distro.DistroProvider()
    try:
        stanzas = about.binary_sources(reference.name, reference.tag)
    except SourceError as error:
        what = f"{named} can neither be pulled nor bootstrapped here: {error.what}"
        hint = "use an image that the engine has (`docker images`), or a suite of the host's mirror"
        raise NoImage(what, hint=hint) from error
    host.ensure(["mmdebstrap"])
    check_room(cache.root(), FREE_MB, f"bootstrapping {named}")
    log = cache.directory("log") / "images.log"
    sources = cache.directory("build", "images") / f"{target.name}.sources"
    try:
        cache.write(sources, "\n".join(stanzas))
        options = [f"--aptopt={option}" for option in about.transport()]
        argv = ["mmdebstrap", "--variant=minbase", *options, reference.tag, str(target),
                str(sources)]  # fmt: skip
        with step(f"bootstrapping {named} from this host's mirror", estimate=50.0):
            call(argv, log=log, quiet=True, env=UNATTENDED)
    except CommandFailed as error:
        what = f"{named} could not be bootstrapped: {_reason(error)}"
        kind = NoImage if unobtainable(error) else ContainerError
        raise kind(what, log=log, hint=_bootstrap_hint(error)) from error
    finally:
        cache.remove(sources)


def _imported(client: DockerClient, reference: Reference, archive: Path) -> Held:
    """The archive as an image with a label that says how it was made."""
    repository = f"{BOOTSTRAPPED}/{reference.name}"
    changes = [
        f"LABEL {LABEL}=mmdebstrap",
        f'LABEL ptrack.what="bootstrapped {reference.tagged}, not the registry\'s image"',
        'CMD ["bash"]',
    ]
    with explained(f"{archive} could not be imported"):
        client.api.import_image_from_file(
            str(archive), repository=repository, tag=reference.tag, changes=changes
        )
        return client.images.get(f"{repository}:{reference.tag}")


def _reason(error: CommandFailed) -> str:
    """The first complaint: those that follow from it come after it."""
    lines = [line for line in error.tail.splitlines() if line.startswith("E: ")]
    return (lines or error.tail.splitlines()[-1:] or [error.what])[0].removeprefix("E: ")


def _bootstrap_hint(error: CommandFailed) -> str:
    if "No space left" in error.tail:
        return f"free some space below {cache.root()} and in $TMPDIR"
    if re.search(r"\bis expired\b|\binvalid since\b", error.tail):
        # Not for us to overlook: who answers with what is long past may hold back what is newer.
        return (
            "ask a mirror that is up to date; where this one is kept back on purpose, apt can be "
            "told so (`Acquire::Check-Valid-Until`), which is taken over"
        )
    if "permission" in error.tail.lower() or "unshare" in error.tail:
        return "run it as root once; the image is kept"
    return "read the log"


# ---- images with packages


def with_packages(
    client: DockerClient,
    image: Image,
    manager: str,
    names: Iterable[str],
    *,
    kept: Iterable[str] = (),
    folder: str = "",
) -> Image:
    """An image with more packages installed, made once for each image and list.

    kept: packages that are not installed (apt's only), but whose files are put into folder.
    Raises CommandFailed with the log's tail where they cannot be installed.
    """
    import docker.errors

    listed, files = sorted(set(names)), sorted(set(kept))
    key = cache.digest(FORMAT, image.id, manager, *listed, *files, folder)[:32]
    log = cache.directory("log") / "images.log"
    with cache.lock(f"image {key}"):
        with explained("the engine fails"), contextlib.suppress(docker.errors.ImageNotFound):
            held = client.images.get(f"{DERIVED}:{key}")
            if not _old(held):
                return replace(image, id=held.id)
        title = f"an image of {image.reference} with {len(listed)} packages"
        with step(title), box.opened(
            client, image.id, user="0:0", network="host", called=str(image.reference)
        ) as container:  # fmt: skip
            for argv in commands(manager, listed, files, folder):
                container.call(argv, env=unattended(), log=log)
            with explained(f"{title} could not be kept"):
                changes = [f"LABEL {LABEL}=packages"]
                held = client.containers.get(container.id).commit(
                    repository=DERIVED, tag=key, changes=changes
                )
        _prune(client)
    return replace(image, id=held.id)


def unattended() -> dict[str, str]:
    """The environment of a package manager in a container that has the host's network."""
    proxies = {name: os.environ.get(name) for name in ("http_proxy", "https_proxy", "no_proxy")}
    return UNATTENDED | {name: value for name, value in proxies.items() if value}


def commands(
    manager: str, names: Sequence[str], files: Sequence[str] = (), folder: str = ""
) -> list[list[str]]:
    """What root runs to install packages by names, and to put the files of others into a folder."""
    if manager == "dnf":
        return [["dnf", "install", "-y", *names], ["dnf", "clean", "all"]]
    script = 'mkdir -p "$0" && cd "$0" && apt-get download "$@"'
    return [
        ["apt-get", "update"],
        *([["sh", "-c", script, folder, *files]] if files else []),
        ["apt-get", "install", "-y", "--no-install-recommends", *names],
        ["apt-get", "clean"],
    ]


def _prune(client: DockerClient) -> None:
    """Drop derived images that are too old to be used again."""
    import docker.errors

    with contextlib.suppress(docker.errors.DockerException):
        for held in client.images.list(name=DERIVED):
            if _old(held):
                client.images.remove(held.id)
