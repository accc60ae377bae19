"""A directory of rpms, verified by all that this machine can: rpmlint, dnf, and a trial.

    Published ── one ──▶ Outcome

The trial of natively built ones is on a system made for them (rpmroot), that of others in a
container of their distribution (rpmbox).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ptrack_build import report
from ptrack_build.errors import HostError, PtrackError
from ptrack_build.package import earlier, rpmbox, rpmrepo, rpmroot
from ptrack_build.progress import say

if TYPE_CHECKING:
    from pathlib import Path

    from ptrack_build.package.verify import Published


def one(each: Published, before: Path | None = None, *, asked: bool = False) -> report.Outcome:
    """Let rpmlint look at rpms, and dnf install them from a repository; try them on a system made
    for them, or in a container of their distribution, where this machine can.

    before: where packages of an earlier release are; asked: whether such were asked for.
    """
    began = time.monotonic()
    status: report.Status = "passed"
    passed = failures = skipped = 0
    notes = []
    if asked and before is None:
        skipped += 1
        notes.append(f"skipped upgrade: {earlier.NONE}")
    try:
        if rpmroot.lint(each.folder):
            passed += 1
        else:
            skipped += 1
            notes.append("skipped lint: there is no rpmlint")
    except PtrackError as error:
        say(str(error))
        failures += 1
        notes.append(error.what)
    try:
        passed += len(rpmrepo.verify(each.folder))
    except HostError as error:
        skipped += 1
        notes.append(f"skipped repo: {error.what}")
    except PtrackError as error:
        say(str(error))
        failures += 1
        notes.append(error.what)
    try:
        tries = rpmroot if each.native else rpmbox
        passed += len(tries.verify(each.folder, before).steps)
    except HostError as error:
        status = "not run"
        notes.append(str(error))  # with what to do
    except PtrackError as error:
        say(str(error))
        failures += 1
        notes.append(error.what)
    return report.Outcome(
        session=f"{each.name} rpm",
        status="failed" if failures else "incomplete" if skipped and status == "passed" else status,
        version=each.version,
        tests=passed + failures + skipped,
        failures=failures,
        skipped=skipped,
        test_seconds=time.monotonic() - began,
        note="\n".join(notes),
    )
