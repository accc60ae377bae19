"""The provider `git` and the mirror."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ptrack_build import REPO, source
from ptrack_build.errors import BadSource, CommandFailed, HostError, SourceError, UsageError
from ptrack_build.patch.objects import Objects
from ptrack_build.source import net
from ptrack_build.source.mirror import Entry, Mirror, git_program, open_mirror
from tests.build._source_fixtures import NOWHERE, cache_root
from tests.build._sources import MD, commit, git, git_over_http, major, repository, tree, write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["cache_root"]


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two stable branches, the one that is asked."""
    path = repository(tmp_path / "pg", {"REL_16_STABLE": "16.4", "REL_17_STABLE": "17.2"})
    monkeypatch.setenv("PTRACK_PG_GIT", str(path))
    monkeypatch.setenv("PTRACK_SOURCE", "git")
    return path


def test_takes_the_tip_of_the_branch(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = source.fetch(major("17"))
    tip = git("rev-parse", "REL_17_STABLE", cwd=repo)
    assert (found.version, found.provider, found.commit) == ("17.2", "git", tip)
    assert found.digest == git("rev-parse", "REL_17_STABLE^{tree}", cwd=repo)
    assert found.mirror == open_mirror().path
    assert f"PostgreSQL 17.2: git, REL_17_STABLE of {repo} at {tip[:12]}" in capsys.readouterr().out


def test_fetches_one_branch_and_no_history(repo: Path) -> None:
    commit(repo, tree("17.3"))
    found = source.fetch(major("17"))
    mirror = Mirror(found.mirror)
    assert mirror.git("rev-list", "--count", found.commit).stdout == b"1\n"
    assert not mirror.commit(git("rev-parse", "REL_16_STABLE", cwd=repo))
    assert source.fetch(major("16")).version == "16.4"


def test_a_branch_that_moved_is_seen_at_once(repo: Path) -> None:
    before = source.fetch(major("17"))
    moved = commit(repo, tree("17.3"))
    after = source.fetch(major("17"))
    assert (after.commit, after.version) == (moved, "17.3")
    assert source.read_file(before, MD) == source.read_file(after, MD)


def test_nothing_is_fetched_twice(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = source.fetch(major("17"))
    capsys.readouterr()
    assert source.fetch(major("17")) == first
    assert "fetching" not in capsys.readouterr().out
    assert repo.is_dir()


@pytest.mark.parametrize("kind", ["file", "bare", "clone", "shallow"])
def test_kinds_of_repositories(
    repo: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    options = {"bare": ["--bare"], "shallow": ["--depth=1", "--no-single-branch"]}.get(kind, [])
    git("clone", "-q", *options, f"file://{repo}", str(other), cwd=tmp_path)
    monkeypatch.setenv("PTRACK_PG_GIT", f"file://{other}" if kind == "file" else str(other))
    # of the branches only the one of the work tree is a clone's own; the other is origin's
    assert source.fetch(major("16")).version == "16.4"


def test_tags_versions_and_commits(repo: Path) -> None:
    git("tag", "-a", "-m", "x", "REL_17_2", cwd=repo)
    tagged = git("rev-parse", "HEAD", cwd=repo)
    commit(repo, tree("17.3"))
    assert source.fetch(major("17"), spec="git:17.2").commit == tagged
    assert source.fetch(major("17"), spec="git:REL_17_2").commit == tagged
    assert source.fetch(major("17"), spec=f"git:{tagged}").commit == tagged
    assert source.fetch(major("17")).version == "17.3"


@pytest.mark.parametrize("spec", ["git:17.2", "git:REL_17_2", "git:{commit}", "distro:17.2"])
def test_one_version_is_another_majors_for_the_rest(repo: Path, spec: str) -> None:
    """All majors may be asked for it: that it is not theirs says nothing against the source."""
    git("tag", "-a", "-m", "x", "REL_17_2", cwd=repo)
    spec = spec.format(commit=git("rev-parse", "HEAD", cwd=repo))
    with pytest.raises(SourceError, match=r"PostgreSQL 17\.2, not 16") as caught:
        source.fetch(major("16"), spec=spec)
    assert not isinstance(caught.value, BadSource)


def test_no_such_branch(repo: Path) -> None:
    with pytest.raises(SourceError, match=r"PostgreSQL 15: .* has no branch or tag REL_15_STABLE"):
        source.fetch(major("15"))
    assert repo.is_dir()


def test_no_such_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTRACK_PG_GIT", str(tmp_path / "nothing"))
    with pytest.raises(SourceError, match=r"nothing: .*(not appear to be a git|does not exist)"):
        source.fetch(major(), spec="git")


def test_another_major_on_the_branch(repo: Path) -> None:
    commit(repo, tree("16.9"))
    with pytest.raises(BadSource, match=r"is PostgreSQL 16\.9, not 17"):
        source.fetch(major("17"))


def test_what_is_not_right_is_so_though_another_repository_is_out_of_reach(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source.fetch(major("17")).version == "17.2"
    commit(repo, tree("16.9"))
    for named in (f"{repo} {NOWHERE}/x.git", f"{NOWHERE}/x.git {repo}"):
        monkeypatch.setenv("PTRACK_PG_GIT", named)
        with pytest.raises(BadSource, match=r"is PostgreSQL 16\.9, not 17"):
            source.fetch(major("17"), spec="git")


def test_master_was_branched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = repository(tmp_path / "pg", {"master": "20devel"})
    monkeypatch.setenv("PTRACK_PG_GIT", str(path))
    assert source.fetch(major("devel"), spec="git").version == "20devel"
    commit(path, tree("21devel"))
    with pytest.raises(SourceError, match="21devel, not devel") as caught:
        source.fetch(major("devel"), spec="git")
    assert "matrix.toml" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "files",
    [
        {"src/include/storage/changetrack.h": b""},
        {MD: b"mdwrite_hook_type mdwrite_hook = NULL;\n"},
    ],
    ids=["ours", "2.x"],
)
def test_a_patched_tree_is_refused(repo: Path, files: dict[str, bytes]) -> None:
    commit(repo, tree("17.2") | files)
    with pytest.raises(SourceError, match="has the core patch of ptrack already"):
        source.fetch(major("17"))


def test_no_postgresql(repo: Path) -> None:
    commit(repo, {"README": b"something else\n"})
    with pytest.raises(SourceError, match="no PostgreSQL source tree"):
        source.fetch(major("17"))


def test_the_next_repository_when_one_is_dead(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTRACK_PG_GIT", f"{NOWHERE}/pg.git {repo}")
    assert source.fetch(major("17")).version == "17.2"


def test_a_commit_that_another_run_has_fetched_meanwhile(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For another major, under a name of that, while this one waited for the mirror."""
    writing = Mirror.writing

    @contextlib.contextmanager
    def late(mirror: Mirror) -> Iterator[None]:
        with writing(mirror):
            mirror.take(str(repo), "+REL_17_STABLE:refs/ptrack/git/18/another")
            yield

    monkeypatch.setattr(Mirror, "writing", late)
    assert source.fetch(major("17")).commit == git("rev-parse", "REL_17_STABLE", cwd=repo)


def test_a_dead_server_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    connect = socket.create_connection

    def counted(place: tuple[str, int], timeout: float) -> socket.socket:
        tried.append(place)
        return connect(place, timeout)

    monkeypatch.setattr(socket, "create_connection", counted)
    for name in ("12", "13", "14"):
        with pytest.raises(SourceError, match="connection refused"):
            source.fetch(major(name), spec="git")
    assert tried == [("127.0.0.1", 9)]
    with pytest.raises(SourceError):
        source.fetch(major("12"), spec="git", refresh=True)
    assert len(tried) == 2


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server that never answers: its queue of connections is full."""
    monkeypatch.setattr(net, "CONNECT_SECONDS", 0.3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        place = listener.getsockname()
        waiting = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(place)
            waiting.append(filler)
        try:
            yield f"http://127.0.0.1:{place[1]}"
        finally:
            for filler in waiting:
                filler.close()


def test_a_silent_server_costs_seconds_not_minutes(
    silence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTRACK_PG_GIT", f"{silence}/pg.git")
    with pytest.raises(SourceError, match=r"127\.0\.0\.1 does not answer within 0\.3 s"):
        source.fetch(major(), spec="git")


def test_an_address_that_is_silent_hides_none_that_answers(
    silence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a host has one for IPv6, and what is sent there is swallowed."""
    resolve = socket.getaddrinfo
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ports = (int(silence.rpartition(":")[2]), listener.getsockname()[1])

        def resolved(host: str, port: int, family: int = 0, type: int = 0) -> list[object]:  # noqa: A002
            if host != "two.example":
                return [*resolve(host, port, family, type)]
            return [each for port in ports for each in resolve("127.0.0.1", port, family, type)]

        monkeypatch.setattr(socket, "getaddrinfo", resolved)
        assert net.unreachable(["http://two.example/pg.git"]) == {}
        listener.close()
        assert [*net.unreachable(["http://two.example/pg.git"])] == ["http://two.example/pg.git"]


@pytest.mark.parametrize("first", ["fe80::1%7", "192.0.2.1"])
def test_what_an_address_says_is_told_rather_than_that_no_way_leads_there(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of them is told last; a link-local address is asked on the link it belongs to."""
    told = threading.Event()

    def resolved(*_args: object, **_more: object) -> list[object]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 80, 0, 7)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80)),
        ]

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        reasons = {"fe80::1%7": errno.EHOSTUNREACH, "192.0.2.1": errno.ECONNREFUSED}
        code = reasons[address[0]]
        if address[0] != first:
            told.wait(timeout)
            time.sleep(0.05)
        told.set()
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    monkeypatch.setattr(socket, "create_connection", connect)
    found = net.unreachable(["http://two.example/pg.git"])
    assert [*found.values()] == ["two.example: connection refused"]


def test_what_can_be_no_hosts_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTRACK_PG_GIT", "https://git..example/pg.git")
    with pytest.raises(SourceError, match=r"git\.\.example can be no host's name"):
        source.fetch(major(), spec="git")


def test_what_a_hook_sets_is_ignored(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(repo / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent/index")
    monkeypatch.setenv("GIT_WORK_TREE", str(repo))
    assert source.fetch(major("17")).version == "17.2"
    assert git("for-each-ref", "refs/ptrack", cwd=repo) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a repository away takes root")
def test_a_repository_of_somebody_else(repo: Path) -> None:
    for path in [repo, *repo.rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    assert source.fetch(major("17")).version == "17.2"
    assert source.fetch(major("17"), spec=str(repo)).version == "17.2"


def test_what_a_killed_fetch_left_is_no_obstacle(repo: Path) -> None:
    mirror = open_mirror().path
    leftovers = [
        mirror / "shallow.lock",
        mirror / "refs/ptrack/git/17/abc.lock",
        mirror / "objects/pack/tmp_pack_abc",
    ]
    for path in leftovers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for path in leftovers[1:]:
        os.utime(path, (1, 1))
    assert source.fetch(major("17")).version == "17.2"
    assert not any(path.exists() for path in leftovers)
    assert repo.is_dir()


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """While this file is there, a fetch ends where it has written some kB, as on a full disk."""
    fails = tmp_path / "fails"
    fails.touch()
    program = shutil.which("git")
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin/git"
    wrapper.write_text(
        f'#!/bin/sh\ncase " $* " in *" fetch "*) [ ! -e {fails} ] || ulimit -f 16 ;; esac\n'
        f'exec {program} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    git_program.cache_clear()
    yield fails
    git_program.cache_clear()


@pytest.mark.parametrize("spec", ["git", "path"])
def test_a_fetch_that_fails_midway_is_done_again(
    repo: Path, tmp_path: Path, failing: Path, spec: str
) -> None:
    tip = commit(repo, tree("17.3", bulk=200_000))
    asked = {"git": "git", "path": str(repo)}[spec]
    with pytest.raises((SourceError, CommandFailed)):
        source.fetch(major("17"), spec=asked)
    assert not open_mirror().commit(tip), "what came by half must not be taken for whole"
    failing.unlink()
    source.export(source.fetch(major("17"), spec=asked), tmp_path / "out")
    assert (tmp_path / "out/ballast").stat().st_size == 200_000


@pytest.mark.parametrize("named", [False, True], ids=["by nothing", "by a ref"])
@pytest.mark.parametrize("part", ["commit", "all but a blob"])
def test_half_a_commit_is_fetched_anew(
    repo: Path, tmp_path: Path, *, named: bool, part: str
) -> None:
    mirror = open_mirror()
    tip = git("rev-parse", "HEAD", cwd=repo)
    objects = [tip]
    if part != "commit":
        listed = git("rev-list", "--objects", "--no-walk", tip, cwd=repo).splitlines()
        objects = [line.split()[0] for line in listed if not line.endswith("md.c")]
    for each in objects:
        kind = git("cat-file", "-t", each, cwd=repo)
        data = subprocess.run(
            ["git", "cat-file", kind, each], cwd=repo, check=True, capture_output=True
        ).stdout
        mirror.git("hash-object", "-t", kind, "-w", "--stdin", "--literally", stdin=data)
    (mirror.path / "shallow").write_text(f"{tip}\n")
    if named:
        place = mirror.path / f"refs/ptrack/git/17/{tip[:12]}"
        place.parent.mkdir(parents=True)
        place.write_text(f"{tip}\n")
    assert mirror.commit(tip)
    assert not mirror.whole(tip)
    found = source.fetch(major("17"))
    assert found.commit == tip
    source.export(found, tmp_path / "out")
    assert (tmp_path / "out" / MD).is_file()
    assert source.fetch(major("16")).version == "16.4"


def test_a_damaged_mirror_is_named_with_the_way_out(
    repo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = source.fetch(major("17"))
    mirror = Mirror(found.mirror)
    pack = next((mirror.path / "objects/pack").glob("*.pack")).read_bytes()
    for path in (mirror.path / "objects/pack").iterdir():
        path.unlink()
    mirror.git("unpack-objects", "-q", stdin=pack)
    blob = mirror.git("rev-parse", f"{found.commit}:{MD}").stdout.decode().strip()
    (mirror.path / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(HostError, match=r"mirror .* is damaged: .*" + blob) as caught:
        source.export(found, tmp_path / "out")
    assert caught.value.hint == f"rm -rf {mirror.path}: it is fetched anew"
    with Objects(mirror.path) as objects, pytest.raises(HostError, match="is damaged"):
        objects.export(found.commit, {}, tmp_path / "out")
    shutil.rmtree(mirror.path)
    source.export(source.fetch(major("17")), tmp_path / "again")
    assert repo.is_dir()
    assert "tar" not in capfd.readouterr().err


def test_interrupted_in_mid_import(cache_root: Path) -> None:
    mirror = open_mirror()

    def files(*, broken: bool) -> Iterator[Entry]:
        yield Entry(path="configure", mode=0o100755, data=b"x" * 100_000)
        if broken:
            raise KeyboardInterrupt
        yield Entry(path="README", mode=0o100644, data=b"")

    with pytest.raises(KeyboardInterrupt):
        mirror.store("refs/ptrack/x", files(broken=True), "x")
    assert not mirror.commit("refs/ptrack/x")
    assert not any(path.is_file() for path in (mirror.path / "objects").rglob("*"))
    assert list((cache_root / "source/import").iterdir()) == []
    made = mirror.store("refs/ptrack/x", files(broken=False), "x")
    assert mirror.read_all(made, ["README", "nothing"]) == [b"", None]


def test_over_http(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with git_over_http(repo.parent) as (url, asked):
        monkeypatch.setenv("PTRACK_PG_GIT", f"{url}/pg/.git")
        first = source.fetch(major("17"))
        assert first.version == "17.2"
        many = len(asked)
        assert many > 0
        assert source.fetch(major("17")) == first
        assert len(asked) == many
        moved = commit(repo, tree("17.3"))
        assert source.fetch(major("17"), refresh=True).commit == moved
    monkeypatch.setenv("PTRACK_REFRESH", "1")
    assert source.fetch(major("17")).commit == moved


def test_a_server_that_is_back_is_said_to_have_been_tried_before(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not asked for a while, lest every major waits; that is told, with the way out."""
    with git_over_http(repo.parent) as (url, _):
        pass
    monkeypatch.setenv("PTRACK_PG_GIT", f"{url}/pg/.git")
    for name in ("16", "17"):  # the same for each: such reasons are told once
        with pytest.raises(SourceError, match=r"connection refused\n"):
            source.fetch(major(name))
    monkeypatch.setattr(net, "STARTED", time.time() + 10)  # as in another run
    with pytest.raises(SourceError, match=r"refused, tried \d+ s before \(PTRACK_REFRESH=1 tries"):
        source.fetch(major("17"))


def test_behind_the_proxy_that_git_knows(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with git_over_http(repo.parent) as (proxy, asked):
        config = tmp_path / "gitconfig"
        config.write_text(f'[http "http://pg.invalid"]\n\tproxy = {proxy}\n')
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
        monkeypatch.setenv("PTRACK_PG_GIT", "http://pg.invalid/pg/.git")
        assert source.fetch(major("17")).version == "17.2"
        assert asked
        monkeypatch.setenv("PTRACK_PG_GIT", "http://other.invalid/pg/.git")
        with pytest.raises(SourceError, match=r"other\.invalid: "):
            source.fetch(major("16"))


def test_what_cannot_be_looked_for_is_left_to_git() -> None:
    assert net.endpoint("https://a.example/pg.git") == ("a.example", 443)
    assert net.endpoint("ssh://alias/pg.git") is None  # its name is ssh's own affair


def test_an_option_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = tmp_path / "done"
    monkeypatch.setenv("PTRACK_PG_GIT", f"--upload-pack=touch${{IFS}}{done}")
    with pytest.raises(UsageError, match="is an option, not a repository"):
        source.fetch(major("17"), spec="git")
    assert not done.exists()


def test_two_at_once(repo: Path) -> None:
    script = (
        "from tests.build._sources import major; from ptrack_build import source; import sys;"
        "print(source.fetch(major(sys.argv[1])).commit)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, name],
            cwd=REPO,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), *sys.path])},
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("17", "16", "17", "16")
    ]
    out = [run.communicate(timeout=60)[0].splitlines()[-1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0, 0]
    tips = [git("rev-parse", f"REL_{n}_STABLE", cwd=repo) for n in (17, 16)]
    assert out == tips * 2
    Mirror(open_mirror().path).git("fsck", "--connectivity-only")


def test_export_is_byte_for_byte(repo: Path, tmp_path: Path) -> None:
    found = source.fetch(major("17"))
    dest = tmp_path / "out"
    source.export(found, dest)
    names = {p.relative_to(dest).as_posix(): p for p in dest.rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in names.items()} == tree("17.2")
    assert oct(names["configure"].stat().st_mode) == "0o100755"
    assert oct(names[MD].stat().st_mode) == "0o100644"
    assert len({path.stat().st_mtime for path in names.values()}) == 1
    assert repo.is_dir()


def test_a_tar_that_ends_early_ends_the_export(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads on what git writes; it must not wait for that."""
    content = {"x": os.urandom(1_000_000)}  # more than a pipe holds
    tip = commit(repo, {**tree("17.2"), **content})
    found = source.fetch(major("17"))
    assert found.commit == tip
    first = tmp_path / "bin"
    first.mkdir()
    (first / "tar").write_text("#!/bin/sh\necho tar: killed >&2\nexit 1\n")
    (first / "tar").chmod(0o755)
    monkeypatch.setenv("PATH", f"{first}:{os.environ['PATH']}")
    (tmp_path / "out").mkdir()
    with pytest.raises(CommandFailed, match="tar: killed"):
        source.export(found, tmp_path / "out")


def test_export_into_something(repo: Path, tmp_path: Path) -> None:
    found = source.fetch(major("17"))
    write_tree(tmp_path / "out", {"x": b""})
    with pytest.raises(Exception, match="is not empty"):
        source.export(found, tmp_path / "out")
    assert repo.is_dir()
