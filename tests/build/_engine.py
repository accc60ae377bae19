"""A container engine that is none: images are names, and commands are run here."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker.errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NOW = datetime.now(UTC).isoformat().replace("+00:00", "Z")


def digest(letter: str) -> str:
    """sha256:aaaa..."""
    return "sha256:" + letter * 64


@dataclass
class FakeImage:
    """An image as the client shows it."""

    id: str
    digests: tuple[str, ...] = ()
    created: str = NOW

    @property
    def attrs(self) -> dict[str, Any]:
        return {"RepoDigests": [f"x@{each}" for each in self.digests], "Created": self.created}


@dataclass
class FakeContainer:
    """A container: what it was created with."""

    engine: FakeEngine
    image: str
    wanted: dict[str, Any]
    labels: dict[str, str]
    id: str
    status: str = "running"

    @property
    def name(self) -> str:
        return str(self.wanted["name"])

    def start(self) -> None:
        """Does what the test says."""
        self.engine.on_start(self)

    def commit(self, repository: str, tag: str, changes: list[str]) -> FakeImage:
        """An image of its own."""
        del changes
        made = FakeImage(f"sha256:derived-{len(self.engine.held)}")
        self.engine.held[f"{repository}:{tag}"] = made
        return made


@dataclass
class FakeEngine:
    """What of docker.DockerClient is used, with all that it was asked for."""

    held: dict[str, FakeImage] = field(default_factory=dict)
    registry: dict[str, FakeImage] = field(default_factory=dict)
    #: by id
    there: dict[str, FakeContainer] = field(default_factory=dict)
    created: list[FakeContainer] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    imported: list[dict[str, Any]] = field(default_factory=list)
    refusal: str = "no such host"
    #: answers instead of running: by the first word, (status, output)
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    on_create: Callable[[str], None] = lambda _name: None
    on_start: Callable[[FakeContainer], None] = lambda _container: None
    #: sees each command first; what it returns, (status, output), is the answer
    on_exec: Callable[[list[str]], tuple[int | None, str] | None] = lambda _argv: None
    _execs: dict[str, tuple[list[str], dict[str, Any]]] = field(default_factory=dict)
    _ended: dict[str, int | None] = field(default_factory=dict)

    @property
    def images(self) -> FakeEngine:
        return self

    @property
    def api(self) -> FakeEngine:
        return self

    @property
    def containers(self) -> _Containers:
        return _Containers(self)

    def ends(self, first: str, last: str, text: str) -> None:
        """Commands of that first and last word (any where it is "") say that and fail."""
        before = self.on_exec

        def answer(argv: list[str]) -> tuple[int | None, str] | None:
            found = argv[0] == first and last in {"", argv[-1]}
            return (1, text) if found else before(argv)

        self.on_exec = answer

    # images

    def get(self, name: str) -> FakeImage:
        for tag, image in self.held.items():
            repository = tag.rpartition(":")[0]
            if name in {tag, image.id, *(f"{repository}@{each}" for each in image.digests)}:
                return image
        raise docker.errors.ImageNotFound(f"No such image: {name}")  # noqa: EM102

    def pull(self, name: str, tag: str) -> FakeImage:
        joined = f"{name}@{tag}" if tag.startswith("sha256:") else f"{name}:{tag}"
        if joined not in self.registry:
            status = "500 Server Error"
            raise docker.errors.APIError(status, explanation=self.refusal)
        self.held[joined] = self.registry[joined]
        return self.held[joined]

    def remove(self, ident: str) -> None:
        self.held = {tag: image for tag, image in self.held.items() if image.id != ident}

    def import_image_from_file(self, file: str, **wanted: Any) -> None:  # noqa: ANN401
        self.imported.append({"bytes": Path(file).read_bytes(), **wanted})
        self.held[f"{wanted['repository']}:{wanted['tag']}"] = FakeImage("sha256:bootstrapped")

    # containers and commands

    def found(self, word: str) -> FakeContainer:
        """A container by its id or name."""
        for each in self.there.values():
            if word in {each.id, each.name}:
                return each
        raise docker.errors.NotFound(f"No such container: {word}")  # noqa: EM102

    def remove_container(self, word: str, *, force: bool, v: bool) -> None:
        assert force
        assert v
        del self.there[self.found(word).id]

    def exec_create(self, word: str, argv: list[str], **wanted: Any) -> dict[str, str]:  # noqa: ANN401
        container = self.found(word)
        ident = str(len(self._execs))
        self._execs[ident] = (argv, wanted)
        self.commands.append(argv)
        self.networks.append(container.wanted["network_mode"])
        self.users.append(container.wanted["user"])
        return {"Id": ident}

    def exec_start(
        self, ident: str, *, stream: bool, demux: bool
    ) -> Iterator[tuple[bytes | None, bytes | None]]:
        assert stream
        assert demux
        argv, wanted = self._execs[ident]
        answer = self.on_exec(argv) or self.answers.get(argv[0])
        if answer is not None:
            self._ended[ident], text = answer
            yield text.encode(), None
            return
        environment = {"PATH": os.environ["PATH"], **wanted["environment"]}
        done = subprocess.run(
            argv, cwd=wanted["workdir"], env=environment, capture_output=True, check=False
        )
        self._ended[ident] = done.returncode
        for at in range(0, len(done.stdout), 7):  # in pieces, as from a socket
            yield done.stdout[at : at + 7], None
        if done.stderr:
            yield None, done.stderr

    def exec_inspect(self, ident: str) -> dict[str, int | None]:
        return {"ExitCode": self._ended[ident]}

    def list(self, name: str) -> Sequence[FakeImage]:
        return [image for tag, image in self.held.items() if tag.startswith(f"{name}:")]


@dataclass
class _Containers:
    engine: FakeEngine

    def create(self, image: str, **wanted: Any) -> FakeContainer:  # noqa: ANN401
        self.engine.get(image)
        self.engine.on_create(wanted["name"])
        if wanted["name"] in {each.name for each in self.engine.there.values()}:
            status = "409 Client Error"
            raise docker.errors.APIError(status, explanation="the name is in use")
        ident = f"{len(self.engine.created):064x}"
        made = FakeContainer(self.engine, image, wanted, wanted["labels"], ident)
        self.engine.there[ident] = made
        self.engine.created.append(made)
        return made

    def get(self, word: str) -> FakeContainer:
        return self.engine.found(word)

    def list(self, *, all: bool, filters: dict[str, str]) -> list[FakeContainer]:  # noqa: A002
        assert all
        return [each for each in self.engine.there.values() if filters["label"] in each.labels]
