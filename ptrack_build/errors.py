"""What can go wrong, in the words of whoever has to put it right."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


TAIL_LINES = 25  # of a command's output, where it failed


class PtrackError(Exception):
    """A failure that is reported without a traceback.

    what: one sentence, what failed; hint: what to do next; log: the file that has it all.
    """

    def __init__(self, what: str, *, hint: str | None = None, log: Path | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.log = log

    def __str__(self) -> str:
        lines = [self.what]
        if self.log is not None:
            lines.append(f"log: {self.log}")
        if self.hint is not None:
            lines.append(f"next: {self.hint}")
        return "\n".join(lines)


class UsageError(PtrackError):
    """The caller asked for something that does not exist, or wrote a setting wrong."""


class SourceError(PtrackError):
    """No provider could bring the source of a major."""


class BadSource(SourceError):
    """A source came, or was named, and is not what it has to be."""


class PatchError(PtrackError):
    """A template or a diff of the core patch does not fit."""


class CompileError(PtrackError):
    """The server or the extension did not compile."""


class HostError(PtrackError):
    """The machine lacks something, or does not permit something."""


class CommandFailed(PtrackError):
    """A command ended with a non-zero status, or could not be started (returncode 127).

    tail: its output, of which the last lines are shown.
    """

    def __init__(
        self,
        argv: Sequence[str],
        returncode: int,
        *,
        log: Path | None = None,
        tail: str = "",
        hint: str | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.tail = tail
        how = f"by signal {-returncode}" if returncode < 0 else f"with status {returncode}"
        what = f"`{shlex.join(self.argv)}` ended {how}"
        if tail:
            lines = tail.splitlines()
            left = len(lines) - TAIL_LINES
            if left > 0:
                lines = [f"... {left} lines", *lines[left:]]
            what += "\n" + "\n".join(f"    {line}" for line in lines)
        super().__init__(what, hint=hint, log=log)
