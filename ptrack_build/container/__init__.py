"""Containers: the engine, its images, and commands run in a container as they are run here.

    reference ── image.get ──▶ Image ── box.opened ──▶ Box ── Box.call ──▶ Completed
                                  └──── image.with_packages ──▶ Image

engine brings the client of an engine, dormant installs one that is not to run for itself, box runs
one container, image finds, pulls or bootstraps what containers are made of, root is a fresh system
without an engine, left removes what killed sessions left of those, workshop is the place that
packages are built in.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ptrack_build.container.base import ContainerError, NoEngine, NoImage, Reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptrack_build.package.place import Place

__all__ = ["ContainerError", "NoEngine", "NoImage", "Reference", "place"]


@contextlib.contextmanager
def place(image: str, slot: str, *, kept: str) -> Iterator[Place]:
    """Where packages are made: a container of that image, or this machine where it is "".

    slot: the directory below <cache>/build where they are made; kept: the one below <cache> where
    they are kept. Without an engine, an image of this very system is done without, which is said.
    Raises ContainerError for another one, and UsageError for what names no image.
    """
    from ptrack_build.package.place import HERE

    if not image:
        yield HERE
        return
    from ptrack_build.container import engine, workshop
    from ptrack_build.progress import say

    reference = Reference.parse(image)
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(engine.running())
        except NoEngine as error:
            if not reference.is_of(HERE.os_release()):
                raise
            say(f"{error.what}: {image} is this system, so it is built here, without a container")
            yield HERE
            return
        yield stack.enter_context(workshop.opened(client, reference, slot, kept=kept))
