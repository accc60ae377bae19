"""Installing a container engine without its running, now or after the next boot.

Debian's packages enable what they bring, and start it. While they are installed a preset forbids
the one, where there is systemd, and policy-rc.d the other. Both files are gone afterwards, and what
is enabled or runs nevertheless is said, with the line that turns it off.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ptrack_build import host
from ptrack_build.progress import say
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

UNITS: Final = ("docker.service", "docker.socket", "containerd.service")
POLICY: Final = Path("/usr/sbin/policy-rc.d")
PRESET: Final = Path("/run/systemd/system-preset/00-ptrack.preset")
INIT: Final = Path("/etc/init.d/docker")
BOOTED: Final = Path("/run/systemd/system")  # see sd_booted(3)
PLACES: Final = tuple(
    Path(folder, "systemd/system") for folder in ("/etc", "/run", "/usr/lib", "/lib")
)

MARK: Final = "# ptrack's, while it installs a container engine"
#: Without effect as soon as the process is gone that wrote it: pid and the time of its start.
SCRIPT: Final = """#!/bin/sh
{mark}
grep -qs ' {started} ' /proc/{pid}/stat || exit 0
for word; do
    case $word in {names}) exit 101 ;; esac
done
exit 0
"""


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Let the engine that is installed in the block neither start nor be enabled.

    Where something of it is there before, that is left as it is. For root, who installs.
    """
    units = [unit for unit in UNITS if not any((place / unit).exists() for place in PLACES)]
    if host.manager() != "apt" or not units:  # rpms enable and start nothing
        yield
        return
    try:
        with contextlib.ExitStack() as stack:
            if shutil.which("systemctl"):
                rows = "".join(f"disable {unit}\n" for unit in units)
                stack.enter_context(_file(PRESET, f"{MARK}\n{rows}", 0o644))
            stack.enter_context(_file(POLICY, policy(units, os.getpid()), 0o755))
            yield
    finally:
        _settle([unit for unit in units if any((place / unit).exists() for place in PLACES)])


def policy(units: Sequence[str], pid: int) -> str:
    """A policy-rc.d that forbids the units (and scripts of their names) while a process lives."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    started = stat.rpartition(")")[2].split()[19]
    names = dict.fromkeys(name for unit in units for name in (unit, unit.partition(".")[0]))
    return SCRIPT.format(mark=MARK, started=started, pid=pid, names="|".join(names))


@contextlib.contextmanager
def _file(path: Path, text: str, mode: int) -> Iterator[None]:
    """A file for as long as the block lasts; somebody's own stays, and is not replaced."""
    made = [folder for folder in path.parents if not folder.exists()]
    with contextlib.suppress(OSError):  # where it cannot be written nothing can be installed
        if not os.path.lexists(path) or MARK in path.read_text(errors="replace"):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
            temporary.write_text(text, encoding="utf-8")
            temporary.chmod(mode)
            temporary.replace(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.read_text(errors="replace") == text:
                path.unlink()
            for folder in made:
                folder.rmdir()


def _settle(units: Sequence[str]) -> None:
    """Turn off what other inits start, and say of units that were installed how they are."""
    if not units:
        return
    if INIT.exists() and not BOOTED.is_dir() and shutil.which("update-rc.d"):
        call(["update-rc.d", "docker", "disable"], capture=True, check=False, quiet=True)
    on = [unit for unit in units if _is_on(unit)] if shutil.which("systemctl") else []
    if on:
        say(
            f"installing the container engine enabled or started {', '.join(on)}, though that was "
            "forbidden: a daemon for the whole machine, with a bridge and rules of the packet "
            f"filter. To turn it off: systemctl disable --now {' '.join(on)}"
        )
    else:
        say(f"{', '.join(units)}: installed, neither enabled nor started")


def _is_on(unit: str) -> bool:
    for how in ("is-enabled", *(["is-active"] if BOOTED.is_dir() else [])):
        said = call(["systemctl", how, unit], capture=True, check=False, quiet=True).stdout
        if said.strip() in {"enabled", "enabled-runtime", "active", "activating"}:
            return True
    return False
