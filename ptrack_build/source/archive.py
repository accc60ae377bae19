"""Tarballs and directories as the files of a tree."""

from __future__ import annotations

import hashlib
import lzma
import os
import stat
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ptrack_build.errors import BadSource
from ptrack_build.source.base import check_version
from ptrack_build.source.mirror import Entry, Mirror, checked_link, checked_name, file_mode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptrack_build.source.base import Want

#: The message of the commits made here: no version, since their ids depend on contents alone.
MESSAGE = "PostgreSQL source tree\n"
LINKED_BYTES = 1 << 20  # the largest file that another name of a tarball may be a hard link to


def sha256_of(path: Path) -> str:
    """The digest of a file's contents, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def import_tarball(want: Want, tarball: Path, sha256: str, where: str) -> tuple[str, str]:
    """Make a commit of a tarball that was verified to have that digest; its id, and the version.

    The one directory on top that release tarballs have is left out. Raises BadSource for what
    is no PostgreSQL of that major, damaged, or would write outside of its tree.
    """
    known = imported(want.mirror, sha256)
    if not known:
        try:
            with tarfile.open(tarball, "r|*") as tar:
                known = want.mirror.store(ref(sha256), tar_entries(tar, where), MESSAGE)
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            what = f"{where} is no sound tarball: {error}"
            raise BadSource(what, hint="fetch it again") from error
        except OSError as error:
            if error.errno is not None:
                raise
            what = f"{where} is no sound tarball: {error}"
            raise BadSource(what, hint="fetch it again") from error
    version = want.mirror.version(known, where)
    check_version(want.major, version, where)
    return known, version


def ref(sha256: str) -> str:
    """The ref that names the commit made from the tarball of that digest."""
    return f"refs/ptrack/sha256/{sha256}"


def imported(mirror: Mirror, sha256: str) -> str:
    """The commit made from the tarball of that digest, or ""."""
    return mirror.whole(ref(sha256)) if sha256 else ""


def tar_entries(tar: tarfile.TarFile, where: str) -> Iterator[Entry]:
    """The files of a tarball, without the one directory on top of them."""
    top = ""
    small: dict[str, bytes] = {}
    for member in tar:
        parts = PurePosixPath(checked_name(member.name)).parts
        top = top or parts[0]
        if parts[0] != top or (len(parts) == 1 and not member.isdir()):
            what = f"{where} does not have all files in one directory: {member.name!r}"
            raise BadSource(what, hint="give a release tarball or one made by git archive")
        if member.isdir():
            continue
        name = PurePosixPath(*parts[1:]).as_posix()
        if member.isfile():
            stream = tar.extractfile(member)
            data = stream.read() if stream else b""
            if len(data) != member.size:
                what = f"{where} is cut short in {name}"
                raise BadSource(what, hint="fetch it again")
            if member.size <= LINKED_BYTES:
                small[member.name] = data
            yield Entry(path=name, mode=file_mode(member.mode), data=data)
        elif member.issym():
            yield Entry(path=name, mode=0o120000, data=checked_link(name, member.linkname))
        elif member.islnk() and member.linkname in small:
            yield Entry(path=name, mode=file_mode(member.mode), data=small[member.linkname])
        else:
            what = f"{where}: {member.name!r} is no file, directory or link"
            raise BadSource(what, hint="take the tarball from another place")


def directory_entries(top: Path) -> Iterator[Entry]:
    """The files below a directory, sorted; .git on top is left out."""
    for folder, folders, files in os.walk(top):
        here = Path(folder)
        if here == top:
            folders[:] = [name for name in folders if name != ".git"]
            files = [name for name in files if name != ".git"]
        folders.sort()
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted([*files, *links]):
            path = here / name
            relative = path.relative_to(top).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                target = path.readlink().as_posix()
                yield Entry(path=relative, mode=0o120000, data=checked_link(relative, target))
            elif stat.S_ISREG(mode):
                yield Entry(path=relative, mode=file_mode(mode), data=path.read_bytes())
            else:
                what = f"{path} is no file, directory or link"
                raise BadSource(what, hint="give a clean source tree")


def directory_stamp(top: Path) -> str:
    """A digest of names, sizes, modes and times below a directory: changes when it does."""
    total = hashlib.sha256()
    stack = [str(top)]
    while stack:
        folder = stack.pop()
        with os.scandir(folder) as found:
            for entry in sorted(found, key=lambda e: e.name):
                info = entry.stat(follow_symlinks=False)
                line = f"{entry.path}\0{info.st_size}\0{info.st_mode}\0{info.st_mtime_ns}\n"
                total.update(line.encode(errors="surrogateescape"))
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
    return total.hexdigest()
