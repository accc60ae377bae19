"""What all of container/ knows: errors, names of images, what is ours in an engine."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ptrack_build import cache
from ptrack_build.errors import PtrackError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Suites without a release of their own: os-release gives them the name of the coming one.
ROLLING: Final = {"sid", "unstable"}


class ContainerError(PtrackError):
    """An image could not be had, or a container could not be run."""


class NoEngine(ContainerError):
    """There is no container engine, and none could be started."""


class NoImage(ContainerError):
    """The image of that name is nowhere to be had: neither here nor pulled nor bootstrapped.

    Not what an engine that fails says, or a disk that is full: who may do without an image is to
    hear of these.
    """


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image as a user names it: name and tag, digest, or both.

    digest: "sha256:..." of the image as a registry has it, or of the image itself.
    """

    name: str
    tag: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """debian:trixie, debian@sha256:..., registry.example:5000/a/b:1, sha256:...

        A name alone means its tag `latest`, as everywhere. Raises UsageError.
        """
        if re.fullmatch(r"sha256:[0-9a-f]{64}", text):
            return cls(name="", tag="", digest=text)
        found = re.fullmatch(
            r"(?P<name>(?:[\w.-]+(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
            r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
            text,
        )
        if found is None or found["name"] == "sha256":
            what = f"{text!r} is no image: a name, and a tag or a digest of 64 hex digits"
            raise UsageError(what, hint="-- --image debian:bookworm")
        digest = found["digest"] or ""
        tag = found["tag"] or ("" if digest else "latest")
        return cls(name=found["name"], tag=tag, digest=digest)

    def __str__(self) -> str:
        name = self.name + (f":{self.tag}" if self.tag else "")
        return f"{name}@{self.digest}" if name and self.digest else name or self.digest

    @property
    def tagged(self) -> str:
        """The reference without its digest."""
        return f"{self.name}:{self.tag}" if self.tag else ""

    def is_of(self, about: Mapping[str, str]) -> bool:
        """Whether an os-release(5) is that of the distribution and release named here."""
        names = {about.get("VERSION_CODENAME"), about.get("VERSION_ID")} - {None, ""}
        return not self.digest and self.name == about.get("ID") and self.tag in names


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn the engine's errors into ContainerError. doing: what was being done, for the message."""
    import docker.errors
    import requests

    try:
        yield
    except (docker.errors.DockerException, requests.RequestException) as error:
        said = getattr(error, "explanation", None) or str(error)
        said = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        what = f"{doing}: {said}"
        raise ContainerError(what, hint=hint(said)) from error


def hint(said: str) -> str:
    """What to do next after the engine said that."""
    if "no space left" in said.lower() or "disk quota" in said.lower():
        return f"free some space where the engine keeps images, or below {cache.root()}"
    if "permission denied" in said.lower():
        return "run it as root, or as a user whom the engine's socket is open to"
    return "see the engine's own log; `docker info` shows whether it is well"
