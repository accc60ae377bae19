"""Compile: from a patched tree to a prefix with PostgreSQL and ptrack.

Two keys. The server's is a hash of its source, the rendered patch, the configure flags, the
compiler, the libraries and the environment that matters; the prefix's adds the extension. So an
edit in extension/ compiles the extension only: the new prefix is made of hard links to the
server's files, and each published prefix stays as it is for ever.

A prefix can be moved: PostgreSQL's programs find share/ and lib/ from where they lie themselves,
and the libraries are found by $ORIGIN. It is configured for one constant place, so that the key
does not depend on the cache's.

The compiling happens at <cache>/build/<major>-<variant>, the same place each time, in which src/
is made of hard links to the patched tree: with the same paths, ccache holds what an edit did not
touch. A cache that was moved fills its ccache anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ptrack_build import REPO, cache, host
from ptrack_build.errors import CommandFailed, CompileError
from ptrack_build.progress import step
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ptrack_build.matrix import Major
    from ptrack_build.patch import PatchedTree
    from ptrack_build.progress import Step

EXTENSION = REPO / "extension"

#: What is configured; the files end up below the cache.
NOMINAL_PREFIX = "/usr/local/pgsql"

#: The environment that changes what a compiler makes, and what configure's help says it heeds.
ENVIRONMENT = (
    "CC", "CCC", "CPP", "CXX", "CFLAGS", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "LDFLAGS_EX",
    "LDFLAGS_SL", "LIBS", "COPT", "PROFILE", "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH",
    "PKG_CONFIG", "PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR", "PKG_CONFIG_SYSROOT_DIR",
    "ICU_CFLAGS", "ICU_LIBS", "LZ4_CFLAGS", "LZ4_LIBS", "ZSTD_CFLAGS", "ZSTD_LIBS",
    "XML2_CONFIG", "XML2_CFLAGS", "XML2_LIBS", "LLVM_CONFIG", "CLANG", "PYTHON", "MSGFMT", "TCLSH",
    "AR", "RANLIB", "STRIP", "BISON", "FLEX", "PERL", "YFLAGS", "LFLAGS", "CONFIG_SITE",
    "SOURCE_DATE_EPOCH",
)  # fmt: skip

#: What is compiled first: in which directory, make's goal, a source of it (a major that has none
#: does without), and whether it needs generated headers. make goes through src one directory after
#: another, and at the end of each waits, with most processors idle, for its slowest object. The
#: first three are such objects; the last is something to do beside them.
EARLY = (
    ("src/interfaces/ecpg/preproc", "preproc.o", "ecpg.trailer", False),
    ("src/backend/parser", "gram.o", "gram.y", True),
    ("src/bin/psql", "tab-complete.o", "tab-complete*.c", True),
    ("src/backend/utils/adt", "objfiles.txt", "numeric.c", True),
)

#: What makes files that are compiled, in a tree from git: its variable, and its usual name.
GENERATORS = (("BISON", "bison"), ("FLEX", "flex"), ("PERL", "perl"))

#: What configure reads first of all where CONFIG_SITE is not set.
SITE_FILES = tuple(f"{NOMINAL_PREFIX}/{folder}/config.site" for folder in ("share", "etc"))

SERVER_FORMAT = "server 1"
PREFIX_FORMAT = "prefix 2"
INFO = ".ptrack/info.json"  # what a server or prefix was made of; one without it is not whole
FREE_MB = 700
FIRST_MB = 1000  # with the source and the patched tree
CONFIGURE_LINES = 20
WARNINGS = "-Wall -Wextra -Werror"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a server is compiled.

    segsize_blocks: blocks in a segment file, segsize_gb: its size, neither for PostgreSQL's 1 GB;
    blocksize_kb: a block; werror: the extension has to compile without warnings, asked or not.
    """

    name: str
    cassert: bool = False
    segsize_blocks: int | None = None
    segsize_gb: int | None = None
    blocksize_kb: int = 8
    injection_points: bool = False
    werror: bool = False


RELEASE = Variant(name="release")
TEST = Variant(name="test", cassert=True, segsize_blocks=8, injection_points=True, werror=True)
#: Chunks of 64 blocks straddle these segments, and a segment has no whole byte of a bitmap.
BLOCKS_1K = Variant(name="blocks-1k", cassert=True, segsize_blocks=20, blocksize_kb=1, werror=True)
BLOCKS_32K = Variant(name="blocks-32k", cassert=True, segsize_gb=8, blocksize_kb=32, werror=True)
VARIANTS = {variant.name: variant for variant in (RELEASE, TEST, BLOCKS_1K, BLOCKS_32K)}


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """PostgreSQL with ptrack, installed; never changed once it is there.

    server_key: what an edit in extension/ leaves alone; log: of the compile that made it.
    """

    path: Path
    key: str
    server_key: str
    tree: PatchedTree
    variant: Variant
    version: str
    log: Path = field(compare=False)

    @property
    def bin(self) -> Path:
        """Where psql, postgres, pg_ctl ... are."""
        return self.path / "bin"

    @property
    def pg_config(self) -> Path:
        """For PGXS, testgres and whoever compiles against this server."""
        return self.bin / "pg_config"


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A compile about to happen, or found done."""

    tree: PatchedTree
    variant: Variant
    compiler: tuple[str, ...]
    compiler_id: str
    libraries: tuple[str, ...]
    flags: tuple[str, ...]
    surroundings: tuple[str, ...]
    key: str

    @property
    def title(self) -> str:
        return f"PostgreSQL {self.tree.source.version} ({self.variant.name})"

    @property
    def slot(self) -> str:
        """The name of the place where this is compiled, and of its link, log and memo."""
        name = self.tree.source.major.name
        return name if self.variant.name == "release" else f"{name}-{self.variant.name}"

    @property
    def log(self) -> Path:
        return cache.directory("log") / f"build-{self.slot}.log"


def build(tree: PatchedTree, variant: Variant, *, extension: Path = EXTENSION) -> Prefix:
    """The prefix of a patched tree, compiled where that has not been done before.

    Installs or names missing system packages. Raises HostError for what the machine lacks and
    CompileError, with the log and its telling lines, for what does not compile.
    """
    os.umask(0o022)
    plan = _plan(tree, variant)
    key = _prefix_key(plan, extension)
    final = cache.directory("prefix") / key[:32]
    if not _finished(final):
        with cache.lock(f"PostgreSQL {plan.slot}"):
            if not _finished(final):
                server = _server(plan)
                _extension(plan, server, extension, final)
    _used(final, plan)
    name = f"pg-{plan.slot}"
    if not _points(name, final):
        cache.link(name, final)
    if extension == EXTENSION and cache.usual():
        _commands(final, cache.directory("server") / plan.key[:32], cache.root() / name)
    return Prefix(
        path=final,
        key=key,
        server_key=plan.key,
        tree=tree,
        variant=variant,
        version=tree.source.version,
        log=plan.log,
    )


def server(tree: PatchedTree, variant: Variant) -> Path:
    """The server of a tree alone, without the extension, compiled where that has not been done.

    For what is measured beside. Raises what build() raises.
    """
    os.umask(0o022)
    plan = _plan(tree, variant)
    final = cache.directory("server") / plan.key[:32]
    if not _finished(final):
        with cache.lock(f"PostgreSQL {plan.slot}"):
            _server(plan)
    with contextlib.suppress(OSError):
        os.utime(final / ".ptrack")
    return final


# ---- keys


def _plan(tree: PatchedTree, variant: Variant) -> _Plan:
    wanted = tree.source.major.libraries
    host.ensure(host.TOOLS, besides=(*host.EXTRAS, *wanted))
    host.ensure((*host.EXTRAS, *wanted), optional=True)
    libraries = host.libraries(wanted)
    compiler = tuple(host.compiler())
    identity = call([*compiler, "--version"], capture=True, quiet=True).stdout
    options = flags(tree, variant)
    surroundings = _surroundings()
    key = cache.digest(
        SERVER_FORMAT,
        tree.source.digest,
        tree.patch_digest,
        tree.source.version,
        repr(options),
        repr(variant),
        repr(compiler),
        identity,
        *tree.source.major.cflags,
        *(host.stamp(name) for name in libraries),
        *surroundings,
    )
    return _Plan(
        tree=tree,
        variant=variant,
        compiler=compiler,
        compiler_id=identity,
        libraries=libraries,
        flags=options,
        surroundings=surroundings,
        key=key,
    )


def _surroundings() -> tuple[str, ...]:
    """What of the environment changes what configure and make do, and what it leads to."""
    found = [f"{name}={os.environ.get(name, '')}" for name in ENVIRONMENT]
    for file in os.environ.get("CONFIG_SITE", "").split() or SITE_FILES:
        with contextlib.suppress(OSError):
            found.append(f"{file}: {cache.digest(Path(file).read_bytes())}")
    for setting, usual in GENERATORS:
        words = os.environ.get(setting, "").split() or [usual]
        with contextlib.suppress(CommandFailed):  # where it is needed and not there, make will tell
            done = call([*words, "--version"], capture=True, check=False, quiet=True)
            found.append(f"{usual}: {done.stdout}")
    return tuple(found)


def flags(tree: PatchedTree, variant: Variant) -> tuple[str, ...]:
    """Configure's arguments for a major, a variant, and the libraries that this machine has."""
    offered = tree.source.major.libraries
    libraries = host.libraries(offered)
    flags = [f"--prefix={NOMINAL_PREFIX}", "--enable-debug", "--enable-depend", "--disable-rpath"]
    absent = [name for name in offered if name not in libraries]
    flags += [f"--without-{name}" for name in ("zlib", "readline") if name in absent]
    if "icu" in offered:
        flags.append("--with-icu" if "icu" in libraries else "--without-icu")
    flags += [f"--with-{name}" for name in ("openssl", "lz4", "zstd") if name in libraries]
    if variant.cassert:
        flags.append("--enable-cassert")
    if variant.blocksize_kb != 8:
        flags.append(f"--with-blocksize={variant.blocksize_kb}")
    if variant.segsize_gb is not None:
        flags.append(f"--with-segsize={variant.segsize_gb}")
    if variant.segsize_blocks is not None and tree.source.major.number >= 16:
        flags.append(f"--with-segsize-blocks={variant.segsize_blocks}")
    if variant.injection_points and tree.source.major.number >= 17:
        flags.append("--enable-injection-points")
    return tuple(flags)


def _prefix_key(plan: _Plan, extension: Path) -> str:
    if not (extension / "Makefile").is_file():
        what = f"there is no extension to compile: {extension / 'Makefile'} does not exist"
        raise CompileError(what, hint="git checkout -- extension")
    # A prefix that was made without is no answer to who asks whether there are warnings.
    strict = ["without warnings"] if _werror(plan.variant) and not plan.variant.werror else []
    return cache.digest(PREFIX_FORMAT, plan.key, *strict, *_extension_parts(extension))


def _werror(variant: Variant) -> bool:
    """Whether a warning about the extension is an error: in variants for tests, and where asked.

    Not for everybody: what a compiler of the future warns of is no reason to have no server.
    """
    return variant.werror or host.switched_on("PTRACK_WERROR")


def _extension_parts(extension: Path) -> Iterator[str | bytes]:
    """Names and contents of the extension's sources, without what compiling it in place leaves."""
    for file in _extension_files(extension):
        yield file.relative_to(extension).as_posix()
        yield file.read_bytes()


def _extension_files(extension: Path) -> list[Path]:
    products = {".o", ".so", ".bc", ".gcno", ".gcda", ".Po"}
    hidden = {".deps", "results", "tmp_check", "log", "output_iso"}
    return sorted(
        file
        for file in extension.rglob("*")
        if file.is_file()
        and file.suffix not in products
        and not hidden.intersection(file.relative_to(extension).parts)
    )


# ---- the server


def _server(plan: _Plan) -> Path:
    """The server's files, compiled where need be. The caller holds the lock of the slot."""
    final = cache.directory("server") / plan.key[:32]
    if _finished(final):
        return final
    _room(FREE_MB, "a build")
    log = plan.log
    log.unlink(missing_ok=True)
    place = cache.directory("build", plan.slot)
    work = _place_for_work(place)
    memo = _Memo(plan.slot)
    began = time.monotonic()
    try:
        with (
            step(f"compiling {plan.title}", estimate=memo.seconds) as shown,
            cache.building(final, INFO) as scratch,
        ):
            link_tree(plan.tree.path, place / "src")
            (work / "obj").mkdir()
            _configure(plan, place / "src", work / "obj", shown, log)
            count = _make(plan, place / "src", work, shown, memo, log)
            for item in (work / "dest" / NOMINAL_PREFIX[1:]).iterdir():
                item.rename(scratch / item.name)
            _describe(scratch, plan, plan.key)
    except CommandFailed as error:
        raise _explained(plan.title, error, log) from error
    except OSError as error:
        what = f"{plan.title} could not be compiled and installed: {error}"
        raise CompileError(what, log=log, hint=_hint(str(error))) from error
    finally:
        cache.remove(work)
    memo.save(seconds=time.monotonic() - began, objects=count)
    _prune("server", plan, keep=final)
    return final


def _place_for_work(place: Path) -> Path:
    """A new directory, after what earlier runs left is removed.

    Its name is its own: should a killed run have left a make behind, it meddles with nothing here.
    """
    for name in ("src", *(path.name for path in place.glob("work-*"))):
        cache.remove(place / name)
    return Path(tempfile.mkdtemp(prefix="work-", dir=place))


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """A server's sources and objects, to compile variations of it in no time.

    source: its files (links: put new ones in their place); objects: where it is compiled;
    env: what make has to be given; log: of all that is compiled here.
    """

    source: Path
    objects: Path
    env: Mapping[str, str]
    log: Path

    def program(self, directory: str) -> Path:
        """What a directory of src/ has for a program, linked anew after what has changed there.

        directory: `backend` or one like `bin/pg_rewind`. Raises CommandFailed.
        """
        place = self.objects / "src" / directory
        make = ["make", "-C", str(place), f"-j{host.jobs()}", "all"]
        call(make, env=self.env, log=self.log, quiet=True)
        return place / ("postgres" if directory == "backend" else place.name)


@contextlib.contextmanager
def workbench(prefix: Prefix) -> Iterator[Workbench]:
    """The server of a prefix, compiled once more with its objects kept; removed at the end.

    Its sources lie at a path of their own, the same each time, so ccache has its objects from the
    second time on. Raises CompileError.
    """
    plan = _plan(prefix.tree, prefix.variant)
    place = cache.directory("build", f"{plan.slot}-bench")
    log = cache.directory("log") / f"bench-{plan.slot}.log"
    with cache.lock(f"PostgreSQL {plan.slot} for experiments", f"makes mutants of {plan.slot}"):
        _room(FREE_MB, "a build")
        log.unlink(missing_ok=True)
        work = _place_for_work(place)
        memo = _Memo(f"{plan.slot}-bench")
        began = time.monotonic()
        try:
            try:
                with step(f"objects of {plan.title}", estimate=memo.seconds) as shown:
                    link_tree(plan.tree.path, place / "src")
                    (work / "obj").mkdir()
                    _configure(plan, place / "src", work / "obj", shown, log)
                    count = _make(plan, place / "src", work, shown, memo, log, install=False)
            except CommandFailed as error:
                raise _explained(plan.title, error, log) from error
            memo.save(seconds=time.monotonic() - began, objects=count)
            yield Workbench(
                source=place / "src", objects=work / "obj", env=_environment(plan), log=log
            )
        finally:
            for path in (work, place / "src"):
                cache.remove(path)


def check_first(major: Major) -> None:
    """Raise HostError, before anything is fetched, where a major's first build has no room."""
    if not any(cache.root().glob(f"pg-{major.name}*")):
        _room(FIRST_MB, "a first build")


def _room(megabytes: int, what_for: str) -> None:
    host.check_room(cache.root(), megabytes, what_for)


def _environment(plan: _Plan) -> dict[str, str]:
    """For configure and make: no locale, no outer make, ccache in front of the compiler.

    ccache stands on the PATH under the compiler's name, so that what configure records, and
    pg_config tells to those who compile against the prefix, is the compiler.
    """
    env = {
        "LC_ALL": "C",
        "MAKEFLAGS": "",
        "MAKELEVEL": "0",
        "DESTDIR": "",
        "LD_RUN_PATH": "$ORIGIN/../lib",
        "CC": shlex.join(plan.compiler),
    }
    ccache = shutil.which("ccache")
    first = plan.compiler[0]
    if ccache and "/" not in first and not os.environ.get("CCACHE_DISABLE"):
        masks = cache.directory("ccache-bin")
        with contextlib.suppress(FileExistsError):
            (masks / first).symlink_to(ccache)
        env |= {
            "PATH": f"{masks}:{os.environ.get('PATH', os.defpath)}",
            "CCACHE_DIR": str(cache.directory("ccache")),
            "CCACHE_NOHASHDIR": "1",
            "CCACHE_DEPEND": "1",
            # No CCACHE_BASEDIR: to make the path of each header relative, for each object, costs a
            # third of what a miss does, and the sources' paths are constant without it.
            #
            # No file of PostgreSQL's says when it was compiled; to look for that in each header,
            # and to hash it anew for each object, is most of what a miss costs.
            "CCACHE_SLOPPINESS": "include_file_ctime,include_file_mtime,time_macros",
            "CCACHE_INODECACHE": "1",
            "CCACHE_NAMESPACE": "".join(cache.digest(*map(host.stamp, plan.libraries))[:16]),
        }
    return env


def _configure(plan: _Plan, src: Path, obj: Path, shown: Step, log: Path) -> None:
    """Run configure in obj; what it found out is kept for the next time with the same inputs."""
    shown.update(0.0, "configure")
    script = src / "configure"
    flags = list(plan.flags)
    known = script.read_text(encoding="utf-8", errors="replace")
    for flag in plan.flags:
        option = flag.removeprefix("--").split("=")[0]
        bare = re.sub(r"^(with|without|enable|disable)-", "", option)
        if option != "prefix" and not re.search(
            rf"(with|enable)[-_]{bare.replace('-', '[-_]')}\b", known
        ):
            flags.remove(flag)
    env = _environment(plan)
    if cflags := plan.tree.source.major.cflags:
        env["CFLAGS"] = " ".join([os.environ.get("CFLAGS", "-O2"), *cflags])
    answers = cache.digest(
        known, repr(flags), plan.compiler_id, repr(sorted(env.items())),
        *(host.stamp(name) for name in ("cc", *plan.libraries)),
        *plan.surroundings,
    )  # fmt: skip
    memory = cache.directory("memo") / f"configure-{answers[:32]}.cache"
    mine = obj / "config.cache"
    if memory.is_file():
        shutil.copyfile(memory, mine)
    # The compiler itself: what configure tries is too small and too many for ccache.
    env["PATH"] = os.environ.get("PATH", os.defpath)
    argv = [str(script), "--cache-file=config.cache", *flags]
    try:
        call(argv, cwd=obj, env=env, log=log, quiet=True)
    except CommandFailed:
        _keep_reason(obj / "config.log", log)
        raise
    cache.write(memory, mine.read_text(encoding="utf-8", errors="replace"))
    blocks = plan.variant.segsize_blocks
    if blocks is not None and not any("segsize-blocks" in flag for flag in flags):
        _segment_size(obj / "src" / "include" / "pg_config.h", blocks)


def _keep_reason(config_log: Path, log: Path) -> None:
    """Append to the log what configure's own log, soon removed, has on the check that failed.

    That is its commands and what the compiler said to them, without the program it was given.
    """
    with contextlib.suppress(OSError):
        lines = config_log.read_text(encoding="utf-8", errors="replace").splitlines()
        ends = [n for n, line in enumerate(lines) if re.match(r"configure:\d+: error: ", line)]
        lines = lines[: ends[0]] if ends else lines
        begins = [n for n, line in enumerate(lines) if re.match(r"configure:\d+: checking ", line)]
        program = ("configure: failed program was:", "|")
        lines = [x for x in lines[begins[-1] if begins else 0 :] if not x.startswith(program)]
        with log.open("a", encoding="utf-8") as file:
            file.write("\n".join(["config.log says of that:", *lines[-CONFIGURE_LINES:], ""]))


def _segment_size(header: Path, blocks: int) -> None:
    """Before 16 configure counts segments in GB; the header it writes counts blocks."""
    text, count = re.subn(
        r"^#define RELSEG_SIZE \d+$", f"#define RELSEG_SIZE {blocks}", header.read_text(),
        flags=re.MULTILINE,
    )  # fmt: skip
    if count != 1:
        what = f"RELSEG_SIZE is {count} times in {header.name}"
        raise CompileError(
            what, hint="see what this major's configure writes, and adapt compile.py"
        )
    status = header.stat()
    header.write_text(text)
    os.utime(header, ns=(status.st_atime_ns, status.st_mtime_ns))


def _make(
    plan: _Plan,
    src: Path,
    work: Path,
    shown: Step,
    memo: _Memo,
    log: Path,
    *,
    install: bool = True,
) -> int:
    """Compile in work/obj, install into work/dest; returns how many objects were compiled."""
    objects = 0
    expected = memo.objects or max(1, sum(1 for _ in (src / "src").rglob("*.c")))

    def count(line: str) -> None:
        nonlocal objects
        if " -c -o " in line:
            objects += 1
            if objects % 8 == 1:  # the first one, too, which takes long
                done = 0.12 + 0.82 * min(1.0, objects / expected)
                shown.update(done, f"{objects} of about {max(expected, objects)} files")

    world = "world-bin" in (src / "GNUmakefile.in").read_text()
    make = ["make", "-C", str(work / "obj")]
    into = f"DESTDIR={work / 'dest'}"
    env = _environment(plan)
    with cache.lock("other majors"):
        jobs = f"-j{host.jobs()}"
        targets = [["world-bin"]] if world else [["all"], ["-C", "contrib", "all"]]
        modules = []
        module = "src/test/modules/injection_points"
        if "--enable-injection-points" in plan.flags and (src / module).is_dir():
            modules = [["-C", module, "all"]]
        if early := _early(src, work):
            call([*make, jobs, "-f", str(early)], env=env, log=log, quiet=True, on_line=count)
        for target in (*targets, *modules):
            call([*make, jobs, *target], env=env, log=log, quiet=True, on_line=count)
        shown.update(0.95, "install")
        for target in (*targets, *modules) if install else ():
            goal = {"world-bin": "install-world-bin", "all": "install"}[target[-1]]
            # Nothing is left to be made, not even psql's sql_help.h, whose rule needs make's own
            # suffixes; and to look for built-in rules, for each file, is half of make's time.
            words = [*make, "--no-builtin-rules", jobs, *target[:-1], goal, into]
            call(words, env=env, log=log, quiet=True)
    shown.update(1.0, f"{objects} files")
    return objects


def _early(src: Path, work: Path) -> Path | None:
    """Write a makefile that compiles what of EARLY this major has.

    By the rules of its directories: make finds it up to date when it comes there.
    """
    found = [one for one in EARLY if any((src / one[0]).glob(one[2]))]
    if not found:
        return None
    folders = " ".join(folder for folder, *_ in found)
    lines = [f"all: {folders}", f".PHONY: all headers {folders}"]
    lines += ["headers:", "\t+$(MAKE) -C src/backend generated-headers"]
    for folder, goal, _, headers in found:
        lines += [f"{folder}: {'headers' if headers else ''}", f"\t+$(MAKE) -C $@ {goal}"]
    makefile = work / "early.mk"
    makefile.write_text("\n".join([*lines, ""]))
    return makefile


def link_tree(source: Path, target: Path) -> None:
    """A tree of links to the same files (copies, where the file system is another).

    Who changes one of them must put a new file in its place.
    """

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other, follow_symlinks=False)
        except OSError:
            shutil.copy2(one, other, follow_symlinks=False)

    shutil.copytree(
        source, target, symlinks=True, copy_function=link, dirs_exist_ok=True,
        ignore=lambda folder, names: [n for n in names if n == ".git" and Path(folder) == source],
    )  # fmt: skip


# ---- the extension


def _extension(plan: _Plan, server: Path, extension: Path, final: Path) -> None:
    """Publish the server's files and the extension as a prefix."""
    place = cache.directory("build", plan.slot)
    work = place / "extension"
    log = cache.directory("log") / f"extension-{plan.slot}.log"
    log.unlink(missing_ok=True)
    title = f"ptrack for {plan.title}"
    lines: list[str] = []
    # read by make, then by a shell
    copt = [shlex.quote(f"-ffile-prefix-map={work}={extension}").replace("$", "$$")]
    if _werror(plan.variant):
        copt += WARNINGS.split()
    copt += [os.environ.get("COPT", "")]
    make = ["make", "-C", str(work), f"COPT={' '.join(copt).strip()}"]
    env = _environment(plan)
    try:
        with step(f"compiling {title}"), cache.building(final, INFO) as scratch:
            cache.remove(work)
            for file in _extension_files(extension):
                (work / file.relative_to(extension)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, work / file.relative_to(extension))
            config = f"PG_CONFIG={server / 'bin' / 'pg_config'}"
            jobs = f"-j{host.jobs()}"
            call([*make, jobs, config, "all"], env=env, log=log, quiet=True, on_line=lines.append)
            link_tree(server, scratch)
            config = f"PG_CONFIG={scratch / 'bin' / 'pg_config'}"
            call([*make, config, "install"], env=env, log=log, quiet=True)
            cache.remove(scratch / ".ptrack")
            _describe(scratch, plan, final.name)
            _record_commands(scratch, lines)
    except CommandFailed as error:
        raise _explained(title, error, log) from error
    except OSError as error:
        what = f"{title} could not be compiled and installed: {error}"
        raise CompileError(what, log=log, hint=_hint(str(error))) from error
    finally:
        cache.remove(work)
    _prune("prefix", plan, keep=final)


def _record_commands(prefix: Path, lines: list[str]) -> None:
    """Keep how each file of the extension was compiled, with the directory left open."""
    entries = []
    for line in lines:
        words = shlex.split(line) if " -c " in line else []
        sources = [word for word in words if word.endswith(".c")]
        if len(sources) == 1 and "-c" in words:
            words = [word for word in words if not word.startswith("-ffile-prefix-map=")]
            # An editor runs these words where the sources lie, which have no .deps to write into.
            with contextlib.suppress(ValueError):
                del words[(at := words.index("-MF")) : at + 2]
            words = [word for word in words if word not in {"-MMD", "-MP"}]
            entries.append({"directory": "@extension@", "file": sources[0], "arguments": words})
    text = json.dumps(entries, indent=1) + "\n"
    (prefix / ".ptrack" / "compile_commands.json").write_text(text)


def _commands(prefix: Path, server: Path, link: Path) -> None:
    """Write compile_commands.json at the repository's top, for editors, from the last build.

    Its headers are found through <cache>/pg-NN, which stays when the server of today is removed.
    """
    with contextlib.suppress(OSError):
        text = (prefix / ".ptrack" / "compile_commands.json").read_text()
        text = text.replace("@extension@", str(EXTENSION))
        for path in (server.resolve(), server):
            text = text.replace(f"{path}/", f"{link}/")
        target = REPO / "compile_commands.json"
        if not target.is_file() or target.read_text() != text:
            cache.write(target, text)


# ---- what is on disk


def _finished(path: Path) -> bool:
    return (path / INFO).is_file()


def _describe(scratch: Path, plan: _Plan, key: str) -> None:
    """Say in the prefix itself what it was made of."""
    source = plan.tree.source
    info = {
        "key": key,
        "server": plan.key,
        "major": source.major.name,
        "version": source.version,
        "variant": plan.variant.name,
        "slot": plan.slot,
        "source": {"provider": source.provider, "digest": source.digest},
        "patch": {"digest": plan.tree.patch_digest, "how": plan.tree.how},
        "configure": list(plan.flags),
        "compiler": plan.compiler_id.splitlines()[0] if plan.compiler_id else "",
        "libraries": list(plan.libraries),
    }
    (scratch / INFO).parent.mkdir(exist_ok=True)
    (scratch / INFO).write_text(json.dumps(info, indent=1) + "\n")


def _used(final: Path, plan: _Plan) -> None:
    for path in (final, cache.directory("server") / plan.key[:32]):
        with contextlib.suppress(OSError):
            os.utime(path / ".ptrack")


def _points(name: str, final: Path) -> bool:
    with contextlib.suppress(OSError):
        return (cache.root() / name).resolve() == final.resolve()
    return False


def _prune(kind: str, plan: _Plan, keep: Path) -> None:
    """Drop what nobody used for two weeks, of this slot, except what pg-NN points at."""
    limit = time.time() - cache.KEEP_SECONDS
    linked = {path.resolve() for path in cache.root().glob("pg-*")}
    for path in cache.directory(kind).iterdir():
        if path == keep or path.resolve() in linked:
            continue
        with contextlib.suppress(OSError, ValueError):
            info = json.loads((path / INFO).read_text())
            if info.get("slot") == plan.slot and (path / ".ptrack").stat().st_mtime < limit:
                cache.discard(path)


class _Memo:
    """What the last compile of a slot took, for the next one's estimate."""

    def __init__(self, slot: str) -> None:
        self.path = cache.directory("memo") / f"build-{slot}.json"
        # Until one has been measured: what a core of our time takes, and what cannot be divided.
        self.seconds = 30.0 + 260.0 / host.cpus()
        self.objects: int | None = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(self.path.read_text())
            self.seconds, self.objects = float(data["seconds"]), int(data["objects"])

    def save(self, *, seconds: float, objects: int) -> None:
        cache.write(self.path, json.dumps({"seconds": round(seconds, 1), "objects": objects}))


# ---- failures


_TELLING = re.compile(
    r"\berror: |: error |undefined reference|No space left|Disk quota|\bcannot find\b|: not found|"
    r"Killed|out of memory|internal compiler error|\*\*\* (?!.*Waiting)"
)


def _explained(title: str, error: CommandFailed, log: Path) -> CompileError:
    """The lines of the log that tell why, then its end."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    telling = [line for line in lines[-4000:] if _TELLING.search(line)][:8]
    last = [line for line in lines[-12:] if line not in telling]
    shown = "\n".join(f"    {line}" for line in (*telling, *(["..."] if telling else []), *last))
    return CompileError(
        f"{title} did not compile (status {error.returncode}):\n{shown}",
        log=log,
        hint=_hint("\n".join([*telling, *last, error.tail])),
    )


def _hint(text: str) -> str:
    if "No space left" in text or "Disk quota" in text:
        return f"free some space below {cache.root()}, or set PTRACK_CACHE to where there is more"
    if "Killed" in text or "out of memory" in text:
        return "there was not enough memory: try PTRACK_JOBS=1"
    return "read the log; what was built so far is kept by ccache, so trying again is quick"
