"""What the user sees while something takes long.

On a terminal a bar with what is left; elsewhere one line when a step begins and one when it ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress, TaskID

_SLOW = 1.0  # seconds from which the end of a step is worth its duration


def terminal() -> bool:
    """Whether there is a person watching who wants movement and colour."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def say(text: str) -> None:
    """Print one line, at once."""
    print(text, flush=True)


def skipped(name: str, why: str) -> None:
    """Say that something was not done, as it may be; on GitHub its run is marked with that."""
    text = f"SKIPPED {name}, as it may be: {why}"
    say(text)
    if os.environ.get("GITHUB_ACTIONS"):
        # a command is one line, with these signs written so
        line = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        say(f"::warning::{line}")


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s"""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


class Step:
    """A step under way."""

    def __init__(self, title: str, estimate: float | None) -> None:
        self.title = title
        self.estimate = estimate
        self.began = time.monotonic()
        self.detail = ""
        self.skipped = False
        self._bar: tuple[Progress, TaskID] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.began

    def update(self, done: float, note: str = "") -> None:
        """Say how far the step is: done is a fraction, 0 to 1."""
        if note:
            self.detail = note
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=max(0.0, min(done, 1.0)), note=self.detail)

    def skip(self) -> None:
        """Say that whatever ends the step early is no failure: it cannot be done here."""
        self.skipped = True

    def note(self, text: str) -> None:
        """Replace what is shown beside the title, and at its end."""
        self.detail = text
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, note=text)


@contextlib.contextmanager
def step(title: str, *, estimate: float | None = None) -> Iterator[Step]:
    """Show that something is being done, for about `estimate` seconds where that is known."""
    current = Step(title, estimate)
    shown = terminal() and threading.current_thread() is threading.main_thread()
    try:
        with _bar(current) if shown else _lines(current):
            yield current
    except BaseException as error:
        word = "skipped" if current.skipped else "failed"
        if isinstance(error, KeyboardInterrupt | SystemExit):
            word = "interrupted"
        say(f"{title}: {word} after {duration(current.elapsed)}")
        raise
    tail = f" ({current.detail})" if current.detail else ""
    say(f"{title}: done in {duration(current.elapsed)}{tail}")


@contextlib.contextmanager
def _lines(current: Step) -> Iterator[None]:
    about = ""
    if current.estimate is not None and current.estimate > _SLOW:
        about = f", about {duration(current.estimate)}"
    say(f"{current.title} ...{about}")
    yield


@contextlib.contextmanager
def _bar(current: Step) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=Console(),
        transient=True,
        redirect_stdout=True,
    )
    with progress:
        task = progress.add_task(current.title, total=1.0, note=current.detail)
        current._bar = (progress, task)
        stop = threading.Event()
        if current.estimate:
            threading.Thread(
                target=_by_clock, args=(current, progress, task, stop), daemon=True
            ).start()
        try:
            yield
        finally:
            stop.set()
            current._bar = None


def _by_clock(current: Step, progress: Progress, task: TaskID, stop: threading.Event) -> None:
    """Move the bar by the estimate until the step says itself how far it is."""
    while not stop.wait(0.5):
        if current.estimate and progress.tasks[0].completed < 0.99:
            expected = min(current.elapsed / current.estimate, 0.99)
            if expected > progress.tasks[0].completed:
                progress.update(task, completed=expected)
