"""A system in a directory, booted for one task.

    a directory ── run ──▶ Ended

The task is a command; it is all that the system boots for, under its own systemd, in
systemd-nspawn, without a network. The system is switched off when the command ends.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ptrack_build import cache, host
from ptrack_build.errors import HostError
from ptrack_build.host import check_room
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: What a system needs to be booted: Debian's packages.
NEEDS: Final = ("dbus", "systemd", "systemd-sysv")
#: Where the task works and writes, in the system.
WORK: Final = Path("/var/tmp/verify")
UNIT: Final = "ptrack-verify.service"
BOOT_SECONDS: Final = 600
FREE_MB: Final = 2500
#: From this one on systemd no longer boots where the host has the first version of cgroups.
UNIFIED: Final = 256
CGROUPS: Final = Path("/sys/fs/cgroup/cgroup.controllers")  # there with the second version only

TEXT: Final = f"""[Unit]
Description=Packages on trial
SuccessAction=exit
FailureAction=exit
FailureActionExitStatus=1
SuccessActionExitStatus=0

[Service]
Type=oneshot
WorkingDirectory={WORK}
ExecStart=/bin/sh {WORK}/task
StandardOutput=append:{WORK}/log
StandardError=append:{WORK}/log
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the task ended. said: what it wrote."""

    well: bool
    said: str


def check_root() -> None:
    """Raise HostError for whoever is not root."""
    if os.geteuid() != 0:
        what = "only root can boot a system to try packages on"
        raise HostError(what, hint="run it as root, or in a container")


def check(systemd: str) -> None:
    """Raise HostError where this machine cannot boot a system with that version of systemd.

    systemd: as its package has it, "252.39-1~deb12u1".
    """
    check_root()
    version = int(re.match(r"\d*", systemd)[0] or 0)  # type: ignore[index]
    if version >= UNIFIED and not CGROUPS.exists():
        what = f"systemd {version} boots only on a host with cgroups of version 2"
        raise HostError(what, hint="run it on a machine that has them")
    host.ensure(["nspawn"])
    check_room(cache.root(), FREE_MB, "a system to boot")


def run(
    root: Path,
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    seen: Iterable[Path] = (),
) -> Ended:
    """Boot the system below root with argv as its task, which works in WORK.

    env: what the command knows besides HOME; seen: directories of the machine that the system
    sees, at the same paths. Raises CommandFailed where it takes longer than BOOT_SECONDS.
    """
    work = root / WORK.relative_to("/")
    work.mkdir(parents=True, exist_ok=True)
    known = {"HOME": "/root", **(env or {})}
    told = [f"export {name}={shlex.quote(text)}" for name, text in known.items()]
    (work / "task").write_text("\n".join([*told, f"exec {shlex.join(argv)}", ""]), encoding="utf-8")
    (root / "etc/systemd/system" / UNIT).write_text(TEXT, encoding="utf-8")
    # An installer's work; without it no server finds its listen_addresses.
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    boot = [
        "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network",
        "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=pipe",
        f"--directory={root}", *(f"--bind-ro={path}" for path in seen), f"systemd.unit={UNIT}",
    ]  # fmt: skip
    done = call(boot, log=log, quiet=True, check=False, timeout=BOOT_SECONDS)
    written = work / "log"
    said = written.read_text(errors="replace") if written.exists() else ""
    with log.open("a", encoding="utf-8") as stream:
        stream.write(said)
    return Ended(well=done.returncode == 0, said=said)
