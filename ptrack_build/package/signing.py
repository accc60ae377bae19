"""The key that a repository of packages is signed with: found, tried, and used through gpg.

PTRACK_SIGNING_KEY is a key's fingerprint or id in the caller's GNUPGHOME, or a file with a secret
key. A key that cannot sign is found out before anything is made.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ptrack_build import cache
from ptrack_build.errors import CommandFailed, PtrackError, UsageError
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTING: Final = "PTRACK_SIGNING_KEY"
HOW_TO_MAKE: Final = (
    "make a key with `gpg --quick-generate-key 'NAME <ADDRESS>' ed25519 sign 2y` (rsa3072 where"
    f" rpm is older than 4.17), and set {SETTING} to its fingerprint;"
    " or ask for a repository without signatures with -- --unsigned"
)
#: pinentry is never asked: what the agent does not know is an error, not a session that waits.
_GPG: Final = ("gpg", "--batch", "--no-tty", "--pinentry-mode", "error")
_UNUSABLE: Final = {"e": "has expired", "r": "is revoked", "d": "is disabled", "i": "is invalid"}


class SigningError(PtrackError):
    """Nothing can be signed with that key."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key that has signed once already. home: its GNUPGHOME, None for the caller's."""

    fingerprint: str
    home: Path | None = None

    @property
    def env(self) -> dict[str, str]:
        """For programs that call gpg."""
        return {**({"GNUPGHOME": str(self.home)} if self.home else {}), "LC_ALL": "C.UTF-8"}

    def clearsign(self, file: Path, target: Path) -> None:
        """Write the file with its signature around it. Raises SigningError."""
        self._gpg("--clearsign", "--output", str(target), str(file))

    def detach(self, file: Path, target: Path) -> None:
        """Write the file's signature, armoured. Raises SigningError."""
        self._gpg("--armor", "--detach-sign", "--output", str(target), str(file))

    def export(self, target: Path) -> None:
        """Write the public key, armoured."""
        options = ["--armor", "--export-options", "export-minimal", "--output", str(target)]
        call([*_GPG, *options, "--export", self.fingerprint], env=self.env, quiet=True)

    def _gpg(self, *words: str) -> None:
        # The exclamation mark is left out: gpg may take a subkey that is there for signing.
        argv = [*_GPG, "--digest-algo", "SHA512", "--local-user", self.fingerprint, *words]
        said: list[str] = []
        try:
            call(argv, env=self.env, quiet=True, on_line=said.append)
        except CommandFailed as error:
            text = " ".join(said)
            what = f"the key {self.fingerprint} cannot sign: {said[-1] if said else error.what}"
            hint = f"name another one in {SETTING}"
            if "No pinentry" in text or "pinentry" in text or "Operation cancelled" in text:
                what = f"the key {self.fingerprint} has a passphrase that gpg-agent does not know"
                hint = f"let the agent learn it (echo | gpg -u {self.fingerprint} -s >/dev/null)"
            raise SigningError(what, hint=hint) from error


@contextlib.contextmanager
def key() -> Iterator[Key]:
    """The key that PTRACK_SIGNING_KEY names, ready for use.

    Raises UsageError where none is named and SigningError where it cannot sign.
    """
    named = os.environ.get(SETTING, "")
    if not named:
        what = f"a repository has to be signed, and {SETTING} names no key"
        raise UsageError(what, hint=HOW_TO_MAKE)
    file = cache.expanded(named, SETTING)
    if not file.is_file():
        if "/" in named:
            what = f"{SETTING} is {named}, where there is no file"
            raise UsageError(what, hint="name a file with a secret key, or a key's fingerprint")
        yield _usable(named, None)
        return
    with _home() as home:
        env = {"GNUPGHOME": str(home), "LC_ALL": "C.UTF-8"}
        said: list[str] = []
        argv = [*_GPG, "--import", str(file)]
        done = call(argv, env=env, quiet=True, check=False, on_line=said.append)
        primary = _rows(["--list-secret-keys"], home, "sec")
        if done.returncode != 0 or not primary:
            what = f"{file}, which {SETTING} names, has no secret key"
            hint = "gpg --armor --export-secret-keys FINGERPRINT writes one"
            raise SigningError(what + (f": {said[-1]}" if said else ""), hint=hint)
        if len(primary) > 1:
            what = f"{file}, which {SETTING} names, has {len(primary)} secret keys"
            raise SigningError(what, hint="export the one that is meant")
        yield _usable("", home)


@contextlib.contextmanager
def throwaway() -> Iterator[Key]:
    """A key for a trial, which is gone afterwards. Raises CommandFailed where gpg makes none."""
    with _home() as home:
        argv = [*_GPG, "--quiet", "--pinentry-mode", "loopback", "--passphrase", "",
                "--quick-generate-key", "a trial of packages", "ed25519", "sign", "1d"]  # fmt: skip
        # what it tells of the files that it makes is nobody's concern
        call(argv, env={"GNUPGHOME": str(home), "LC_ALL": "C.UTF-8"}, quiet=True, capture=True)
        yield _usable("", home)


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    """A GNUPGHOME that ends with its agent."""
    # In the default place and not below the cache: an agent's socket needs a short path.
    home = Path(tempfile.mkdtemp(prefix="ptrack-gpg-"))
    try:
        yield home
    finally:
        call(["gpgconf", "--homedir", str(home), "--kill", "all"], quiet=True, check=False,
             capture=True)  # fmt: skip
        cache.remove(home)


def _usable(named: str, home: Path | None) -> Key:
    """The key of that name (of any, where there is none), after it has signed something."""
    words = [named] if named else []
    secret = _rows(["--list-secret-keys", *words], home, "sec")
    if not secret:
        what = f"gpg has no key {named}"
        if _rows(["--list-keys", *words], home, "pub"):
            what = f"of the key {named} gpg has the public part only"
        hint = f"`gpg --list-secret-keys` lists what there is; {HOW_TO_MAKE}"
        raise SigningError(what, hint=hint)
    if len(secret) > 1:
        what = f"{SETTING}={named} is true of {len(secret)} keys"
        raise SigningError(what, hint="name one by its fingerprint")
    fields, fingerprint = secret[0]
    if fields[1] in _UNUSABLE:
        what = f"the key {fingerprint} {_UNUSABLE[fields[1]]}"
        raise SigningError(what, hint=f"name another one in {SETTING}, or extend it with gpg")
    if "S" not in fields[11]:
        what = f"the key {fingerprint} is not one for signing"
        raise SigningError(what, hint=f"name another one in {SETTING}")
    found = Key(fingerprint=fingerprint, home=home)
    with tempfile.TemporaryDirectory(prefix="ptrack-sign-") as folder:
        trial = Path(folder) / "trial"
        trial.write_text("trial\n")
        found.detach(trial, trial.with_suffix(".asc"))
    return found


def _rows(words: list[str], home: Path | None, kind: str) -> list[tuple[list[str], str]]:
    """Keys as `gpg --with-colons` has them: the fields of a row of that kind, the fingerprint."""
    env = {**({"GNUPGHOME": str(home)} if home else {}), "LC_ALL": "C.UTF-8"}
    argv = [*_GPG, "--with-colons", *words]
    text = call(argv, env=env, quiet=True, capture=True, check=False).stdout
    found: list[tuple[list[str], str]] = []
    current: list[str] | None = None
    for line in text.splitlines():
        fields = line.split(":")
        if fields[0] in {"sec", "pub"}:
            current = fields if fields[0] == kind else None
        elif fields[0] == "fpr" and current is not None:
            found.append((current, fields[9]))
            current = None
    return found
