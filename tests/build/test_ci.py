"""CI, sessions and settings: what is written in more than one place says the same."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ptrack_build import ci, matrix, mutants
from ptrack_build.errors import PtrackError
from tests.build.conftest import REPO

NAMES = matrix.load().names


def nox(*words: str, cwd: Path = REPO, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the noxfile of a checkout with the nox of this environment."""
    return subprocess.run(
        [sys.executable, "-m", "nox", "-f", str(cwd / "noxfile.py"), *words],
        cwd=cwd, text=True, capture_output=True, check=False, timeout=120,
        env={**os.environ, "NOX_SCRIPT_MODE": "none", **env}, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the noxfile needs, to be damaged."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("noxfile.py", "matrix.toml"):
        shutil.copy(REPO / name, copy)
    for name in ("ptrack_build", ".github"):
        shutil.copytree(REPO / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def header() -> dict[str, object]:
    """The metadata at the top of the noxfile."""
    block = re.search(
        r"^# /// script\n((?:#.*\n)+?)# ///$", (REPO / "noxfile.py").read_text(), re.MULTILINE
    )
    assert block
    return tomllib.loads(re.sub(r"^# ?", "", block[1], flags=re.MULTILINE))


def test_the_header_and_the_project_ask_for_the_same() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert header()["dependencies"] == project["dependencies"]
    assert header()["requires-python"] == project["requires-python"]


def test_the_lock_has_hashes_and_names_no_address() -> None:
    text = (REPO / "requirements" / "lock.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-{1,2}(i|f|index|extra|find|trusted)", text, re.MULTILINE)
    for block in re.split(r"\n(?=[a-z])", text.split("\n", 4)[4]):
        assert "--hash=sha256:" in block, block


def test_the_lock_holds_all_that_is_asked_for() -> None:
    locked = set(
        re.findall(r"^([a-z0-9_.-]+)==", (REPO / "requirements/lock.txt").read_text(), re.MULTILINE)
    )
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    for wanted in (*project["project"]["dependencies"], *groups["test"], *groups["lint"]):
        name = re.split(r"[\[><=]", wanted)[0]
        assert name in locked


def listed() -> list[dict[str, Any]]:
    """All sessions, as nox tells them to a CI."""
    tags = ("build", "test", "demo", "mutants", "deb", "rpm", "package", "check", "all")
    done = nox("-l", "--json", "-t", *tags)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@functools.cache
def sessions() -> dict[str, list[str]]:
    """Tags by session, in the order of the noxfile."""
    return {each["session"]: each["tags"] for each in listed()}


def test_every_major_has_its_sessions() -> None:
    found = {each["session"]: each for each in listed()}
    for name in NAMES:
        for family in ("build", "test", "demo"):
            each = found[f"{family}-{name}"]
            assert set(each["tags"]) == {family, f"pg{name}"}
    for name in ("build", "test", "patches", "drift", "lint", "matrix"):
        assert found[name]["description"]


def test_the_matrix_is_json_and_nothing_else() -> None:
    printed = nox("-s", "matrix")
    assert printed.returncode == 0, printed.stderr
    data = json.loads(printed.stdout)
    assert [row["session"] for row in data["include"]] == [f"test-{name}" for name in NAMES]
    assert len({row["key"] for row in data["include"]}) == len(NAMES)
    words = [words for family in data["sessions"].values() for words in family]
    assert sorted(each.split()[0] for each in words) == sorted(registered())
    assert {"patches -- --check", "workflows -- --check", "bench-build", "repo"} <= set(words)
    for family in ("build", "test", "demo", "mutants", "bench", "deb", "rpm", "reproduce"):
        assert {f"{family}-{name}" for name in NAMES} <= set(data["sessions"][family])


def registered() -> list[str]:
    """All sessions, in nox's own order."""
    done = nox("-l")
    assert done.returncode == 0, done.stderr
    return re.findall(r"^[*-] (\S+)", done.stdout, re.MULTILINE)


def test_the_list_begins_with_what_there_is_one_of() -> None:
    names = registered()
    families = [name for name in names if name.endswith(tuple(f"-{each}" for each in NAMES))]
    assert names == [*(name for name in names if name not in families), *families]
    assert names[:2] == ["build", "test"]


def test_what_a_session_is_told_is_not_taken_for_a_session() -> None:
    asked = nox("-s", "matrix", "--", "test-99")
    assert "unrecognized arguments: test-99" in asked.stderr
    assert "no PostgreSQL major" not in asked.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-k", "nothing_is_called_so"], "no test is meant by"),
        (["--lokced"], "unrecognized arguments: --lokced"),
        (["--locked", "-k", "write"], "which matrix.lock asks for"),
    ],
)
def test_mutants_look_at_their_words_before_anything_is_built(words: list[str], said: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # pytest's own keep servers out
        Path(place).chmod(0o755)
        asked = nox(
            "-s", "mutants-17", "--", *words, PTRACK_CACHE=f"{place}/cache",
            PTRACK_SOURCE="tarball", PTRACK_OFFLINE="1",
        )  # fmt: skip
    assert asked.returncode != 0
    assert said in asked.stderr


def test_the_content_key_follows_the_patch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    major = matrix.load().major("17")
    before = ci.content_key(major)
    assert before == ci.content_key(major)
    (tmp_path / "templates" / "core").mkdir(parents=True)
    (tmp_path / "templates" / "core" / "x").write_text("")
    monkeypatch.setattr(ci, "REPO", tmp_path)
    assert ci.content_key(major) != before


def test_the_committed_workflows_are_what_is_rendered() -> None:
    ci.check(matrix.load(), sessions(), REPO)


def test_a_changed_workflow_is_named_with_its_lines(checkout: Path) -> None:
    workflow = checkout / ".github" / "workflows" / "ci.yml"
    workflow.write_text(workflow.read_text().replace("timeout-minutes: 60", "timeout-minutes: 61"))
    (checkout / ".github" / "workflows" / "stray.yml").write_text("")
    with pytest.raises(PtrackError, match="timeout-minutes: 61") as caught:
        ci.check(matrix.load(), sessions(), checkout)
    assert "stray.yml is rendered by nothing" in caught.value.what
    assert caught.value.hint
    assert "nox -s workflows" in caught.value.hint
    ci.write(matrix.load(), sessions(), checkout)
    ci.check(matrix.load(), sessions(), checkout)


def test_workflows_hold_no_secrets_and_fan_out_over_all_majors() -> None:
    for text in ci.render(matrix.load(), sessions()).values():
        assert "secrets." not in text
        assert all(f'"{name}"' in text for name in NAMES)
        assert "[[" not in text
        assert "[%" not in text


def test_no_path_of_a_workflow_leads_upwards() -> None:
    """actions/cache and actions/upload-artifact refuse such paths."""
    for text in ci.render(matrix.load(), sessions()).values():
        assert "/.." not in text
        assert "../" not in text


def test_the_cache_of_a_workflow_is_in_nobody_elses_way() -> None:
    """Inside of the checkout git and the linters pass over it, and no upload calls it hidden."""
    for text in ci.render(matrix.load(), sessions()).values():
        (name,) = re.findall(r"\n  PTRACK_CACHE: \$\{\{ github\.workspace \}\}/(\S+)\n", text)
        assert not name.startswith(".")
        assert f"/{name}/" in (REPO / ".gitignore").read_text().splitlines()
        settings = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]
        assert name in settings["ruff"]["extend-exclude"]
        assert not any(name.startswith(place) for place in settings["mypy"]["files"])
        assert settings["pytest"]["ini_options"]["testpaths"] == ["tests"]


def test_ci_runs_what_the_readmes_command_runs() -> None:
    words = re.search(r"^for command in (.*); do$", (REPO / ".ci/run").read_text(), re.MULTILINE)
    assert words
    commands = set(re.findall(r'"([^"]+)"', words[1]))
    assert {"-s test", "-s demo-17"} <= commands
    commands -= {"-s test", "-s demo-17"}  # each major, by itself
    text = ci.render(matrix.load(), sessions())[ci.TARGET / "ci.yml"]
    assert commands
    for command in commands:
        assert f"- run: ./nox {command}\n" in text


def test_each_major_is_shown_without_assertions_and_without_warnings() -> None:
    """The suite's variant has assertions; what users get is built, and started, by the demo."""
    for text in ci.render(matrix.load(), sessions()).values():
        (job,) = re.findall(r"^  test:\n(?:    .*\n|\n)+", text, re.MULTILINE)
        runs = re.findall(r"run: (\./nox -s (?!matrix).*)\n", job)
        assert runs[0] in {
            "./nox -s ${{ matrix.session }}",
            "./nox -s test-${{ matrix.major }}",
        }
        assert runs[1:] == ["./nox -s demo-${{ matrix.major }}"]
        assert re.search(r'^  PTRACK_WERROR: "1"$', text, re.MULTILINE)
    assert "PTRACK_WERROR=${PTRACK_WERROR:-1}" in (REPO / ".ci/run").read_text()


def test_a_push_runs_what_needs_a_package_index_once() -> None:
    """No other run selects what is marked so."""
    texts = "".join(ci.render(matrix.load(), sessions()).values())
    assert texts.count("-m network") == 1
    assert "run: ./nox -s selftest -- -m network\n" in texts


def test_a_push_runs_each_check_that_there_is() -> None:
    more = {**sessions(), "spelling": ["check"]}
    text = ci.render(matrix.load(), more)[ci.TARGET / "ci.yml"]
    assert "- run: ./nox -s spelling\n" in text
    assert "./nox -s drift" not in text


def test_the_night_runs_nothing_that_is_no_session() -> None:
    fewer = {name: tags for name, tags in sessions().items() if name != "mutants-16"}
    with pytest.raises(PtrackError, match="run mutants-16, which is no session"):
        ci.render(matrix.load(), fewer)


def test_the_night_runs_what_takes_long() -> None:
    text = ci.render(matrix.load(), sessions())[ci.TARGET / "nightly.yml"]
    asked = re.findall(r"- run: \./nox -s (\S+)(.*)", text)
    jobs = {
        ("patches", f" -- --check --minors {' '.join(filter(str.isdecimal, NAMES))}"),
        ("test-17", " -- --deep=60"),
        ("test-13", " -- --deep=60"),
        ("test-17", " -- --variant blocks-1k"),
        ("test-17", " -- --variant blocks-32k"),
        ("mutants-17", ""),
        ("mutants-16", ""),
        ("mutants-14", ""),
    }
    assert jobs <= set(asked)
    assert {name for name, _ in asked if "$" not in name} <= {each["session"] for each in listed()}


def _of_the_night(job: str) -> set[str]:
    """The majors for which it has a job with this name before theirs."""
    jobs = ci.night(matrix.load())
    return {name.removeprefix(job) for name in jobs if name.startswith(job)}


def test_the_state_machine_has_each_major_for_an_hour_at_night() -> None:
    assert _of_the_night("deep-") == set(NAMES)


def test_each_mutant_is_tried_at_night() -> None:
    """Some are of old majors, or of new ones."""
    majors = {int(name) for name in _of_the_night("mutants-")}
    assert majors == {int(name) for name in NAMES if name.isdecimal()}
    for each in mutants.load():
        assert majors & {*range(each.since, each.until + 1)}, each.name


def test_the_night_makes_packages_of_both_kinds_in_containers_of_their_systems() -> None:
    text = ci.render(matrix.load(), sessions())[ci.TARGET / "nightly.yml"]
    asked = set(re.findall(r"- run: \./nox -s (\S+) -- --image (\w+):", text))
    for distribution in ("fedora", "almalinux"):
        assert ("rpm-17", distribution) in asked
        assert f"- run: ./nox -s verify-packages -- --system {distribution}\n" in text


@pytest.mark.parametrize(
    ("suite", "more"), [("bookworm", ""), ("trixie", ""), ("sid", " --may-skip")]
)
def test_the_night_makes_packages_of_each_debian_and_verifies_them(suite: str, more: str) -> None:
    """Only where a release may not be had on a day is it left out, which the command says."""
    text = ci.render(matrix.load(), sessions())[ci.TARGET / "nightly.yml"]
    (job,) = re.findall(rf"^  deb-{suite}:\n(?:    .*\n|\n)+", text, re.MULTILINE)
    commands = re.findall(r"- run: \./nox -s (.*)", job)
    assert commands == [
        f"deb-15 deb-17 deb-18 -- --image debian:{suite}{more}",
        f"verify-packages -- --system {suite}{more}",
    ]


def test_a_night_whose_second_session_is_none_is_refused() -> None:
    fewer = {name: tags for name, tags in sessions().items() if name != "deb-18"}
    with pytest.raises(PtrackError, match="run deb-18, which is no session"):
        ci.render(matrix.load(), fewer)


def test_an_unknown_major_is_told_the_known_ones() -> None:
    asked = nox("-s", "build-99")
    assert asked.returncode != 0
    assert "no PostgreSQL major '99'" in asked.stderr
    assert "12, 13, 14" in asked.stderr
    assert "Traceback" not in asked.stderr


def test_an_unknown_session_is_told_what_to_do_next() -> None:
    asked = nox("-s", "bild-17")
    assert asked.returncode != 0
    assert "Sessions not found: bild-17\nnext: ./nox -l" in asked.stderr


def test_an_unknown_tag_is_told_the_known_ones() -> None:
    asked = nox("-t", "pg99")
    assert asked.returncode == 3
    last, after = asked.stderr.splitlines()[-1], "next: take one of "
    assert last.startswith(after)
    tags = last.removeprefix(after).split(", ")
    assert tags[-len(NAMES) :] == [f"pg{name}" for name in NAMES]
    assert {"all", "bench", "check", "package", "demo", "reproduce"} <= set(tags)


def test_what_libraries_log_is_not_shown_unless_it_matters(checkout: Path) -> None:
    with (checkout / "noxfile.py").open("a") as noxfile:
        noxfile.write(
            '\n\n@session("talk")\ndef talk(session: nox.Session) -> None:\n    """Talk."""\n'
            "    import logging\n"
            '    logging.getLogger("some.library").info("noise")\n'
            '    logging.getLogger("some.library").warning("trouble")\n'
        )
    asked = nox("-s", "talk", cwd=checkout)
    assert asked.returncode == 0, asked.stderr
    assert "Session talk was successful" in asked.stderr
    assert "trouble" in asked.stderr
    assert "noise" not in asked.stderr


def test_relative_settings_are_so_to_where_nox_is_called(checkout: Path, tmp_path: Path) -> None:
    """Of several repositories each word by itself, and what is no path stays what it is."""
    with (checkout / "noxfile.py").open("a") as noxfile:
        noxfile.write(
            '\n\n@session("tell")\ndef tell(session: nox.Session) -> None:\n    """Tell."""\n'
            "    import os\n    from ptrack_build.sessions import PLACES\n"
            "    print(*[os.environ.get(name) for name in PLACES], sep=chr(10))\n"
        )
    here = tmp_path / "elsewhere"
    (here / "pg").mkdir(parents=True)
    (here / "distro:17.5").mkdir()  # a provider's name is one, whatever else has it
    given = {
        "PTRACK_CACHE": "cache", "PTRACK_SOURCE": "distro:17.5",
        "PTRACK_PG_GIT": "pg https://git.example.org/pg.git", "PTRACK_SIGNING_KEY": "0123ABCD",
        "PTRACK_TEST_DIR": "servers", "PTRACK_VENV": "~/venv",
    }  # fmt: skip
    words = [sys.executable, "-m", "nox", "-f", str(checkout / "noxfile.py"), "-s", "tell"]
    done = subprocess.run(
        words, cwd=here, text=True, capture_output=True, check=True, timeout=120,
        env={**os.environ, "NOX_SCRIPT_MODE": "none", **given}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.stdout.split("\n")[-7:-1] == [
        f"{here}/cache", "distro:17.5", f"{here}/pg https://git.example.org/pg.git", "0123ABCD",
        f"{here}/servers", "~/venv",
    ]  # fmt: skip


def test_a_typo_in_the_matrix_is_told_without_a_traceback(checkout: Path) -> None:
    path = checkout / "matrix.toml"
    path.write_text(path.read_text().replace("branch =", "branhc =", 1))
    asked = nox("-l", cwd=checkout)
    assert asked.returncode != 0
    assert "branhc" in asked.stderr
    assert "did you mean 'branch'" in asked.stderr
    assert "Traceback" not in asked.stdout + asked.stderr


@pytest.mark.parametrize("word", ["--nonsense", "--variant=fast"])
def test_a_wrong_option_is_an_error_of_one_message(word: str) -> None:
    asked = nox("-s", "build-17", "--", word)
    assert asked.returncode != 0
    assert word.split("=")[-1] in asked.stderr
    assert "next: ./nox -s build-17 -- --help\n" in asked.stderr
    assert "Traceback" not in asked.stdout + asked.stderr


def test_no_compiler_at_all(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("sh", "git", "make", "bison", "flex", "perl", "tar", "xz", "bzip2"):
        (bare / name).symlink_to(shutil.which(name) or "/bin/true")
    asked = nox(
        "-s", "build-17", PATH=str(bare), PTRACK_NO_INSTALL="1",
        PTRACK_CACHE=str(tmp_path / "cache"), PTRACK_SOURCE="tarball",
    )  # fmt: skip
    assert asked.returncode != 0
    assert "lacks cc" in asked.stderr
    # with what it would have asked for next
    pasted = r"^next: .*gcc libc6-dev ccache pkg-config .*liblz4-dev libzstd-dev$"
    assert re.search(pasted, asked.stderr, re.MULTILINE)
    assert "Traceback" not in asked.stdout + asked.stderr


def test_the_next_step_ends_where_its_line_does(checkout: Path) -> None:
    """It is to be pasted into a shell: nothing of nox's, a full stop or a time, is behind it."""
    with (checkout / "noxfile.py").open("a") as noxfile:
        noxfile.write(
            "\n\nimport errno\nimport time\n"
            "from ptrack_build.errors import HostError\n"
            '@session("lack")\ndef lack(session: nox.Session) -> None:\n    """Lack."""\n'
            "    time.sleep(1.1)\n"
            '    raise HostError("it lacks 100% of perl", hint="apt-get install -y perl")\n'
            '@session("full")\ndef full(session: nox.Session) -> None:\n    """Full."""\n'
            '    raise OSError(errno.ENOSPC, "full")\n'
            '@session("lock")\ndef lock(session: nox.Session) -> None:\n    """Lock."""\n'
            '    raise PermissionError(errno.EACCES, "Permission denied", "/c/lock")\n'
        )
    asked = nox("-s", "lack", "full", "lock", cwd=checkout)
    assert asked.returncode == 1
    assert asked.stderr.splitlines()[:12] == [
        "nox > Running session lack",
        "nox > it lacks 100% of perl",
        "next: apt-get install -y perl",
        "nox > Session lack aborted.",
        "nox > Running session full",
        "nox > [Errno 28] full",
        "next: free some space, or set PTRACK_CACHE to where there is more",
        "nox > Session full aborted.",
        "nox > Running session lock",
        "nox > [Errno 13] Permission denied: '/c/lock'",
        "next: see whose it is, or set PTRACK_CACHE to a directory of your own",
        "nox > Session lock aborted.",
    ]


def unread(*words: str) -> subprocess.CompletedProcess[str]:
    """Run nox where nobody reads what it prints."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, "-m", "nox", *words], cwd=REPO, stdin=subprocess.DEVNULL,
            stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
            env={**os.environ, "NOX_SCRIPT_MODE": "none", "PYTHONUNBUFFERED": ""},
        )  # fmt: skip
    finally:
        os.close(writer)


def test_a_reader_that_has_enough_ends_a_session_quietly() -> None:
    """As `./nox -s matrix | head` does."""
    asked = unread("-s", "matrix")
    assert asked.stderr == "nox > Running session matrix\n"
    assert asked.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["-l"], 128 + signal.SIGPIPE),
        (["-l", "--json", "-s", "matrix"], 0),  # short: it is noticed at the very end
    ],
)
def test_a_reader_that_has_enough_ends_the_listing_quietly(words: list[str], status: int) -> None:
    asked = unread(*words)
    assert asked.stderr == ""
    assert asked.returncode == status


def test_a_pipe_of_another_kind_that_breaks_is_an_error(checkout: Path) -> None:
    with (checkout / "noxfile.py").open("a") as noxfile:
        noxfile.write(
            "\n\nimport errno\n"
            '@session("ask")\ndef ask(session: nox.Session) -> None:\n    """Ask."""\n'
            '    raise BrokenPipeError(errno.EPIPE, "the engine is gone")\n'
        )
    asked = nox("-s", "ask", cwd=checkout)
    assert asked.returncode == 1
    assert "the engine is gone\nnext: -- --debug shows where\n" in asked.stderr


def test_a_matrix_that_is_no_text(checkout: Path) -> None:
    path = checkout / "matrix.toml"
    path.write_bytes(path.read_bytes() + b"# \xff\n")
    asked = nox("-l", cwd=checkout)
    assert asked.returncode != 0
    assert "matrix.toml is not UTF-8" in asked.stderr
    assert "Traceback" not in asked.stdout + asked.stderr


@pytest.mark.parametrize("time", ["-1", "0", "nan", "inf", "soon"])
def test_a_length_of_time_that_is_none(time: str) -> None:
    asked = nox("-s", "test-17", "--", f"--deep={time}")
    assert asked.returncode != 0
    assert f"{time!r} is no number of minutes" in asked.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lokced"], "unrecognized arguments: --lokced"),
        (["-k", "nothing_is_called_so"], "no test is meant by"),
        (["--record", "-k", "redo"], "--record is for the whole suite"),
        (["--record", "--variant=blocks-1k"], "--record is for the whole suite"),
    ],
)
def test_words_that_mean_nothing_are_told_before_anything_is_built(
    words: list[str], said: str, tmp_path: Path
) -> None:
    asked = nox("-s", "test-17", "--", *words, PTRACK_CACHE=str(tmp_path), PTRACK_SOURCE="/nowhere")
    assert asked.returncode != 0
    assert said in asked.stderr
    assert "/nowhere" not in asked.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "rpm", "--without", "icu"], "/nowhere"),
        (["--kind", "deb", "--without", "icu"], "a deb is never without icu"),
        (["--kind", "apk"], "invalid choice: 'apk'"),
        (["--image", "debian:sid"], "unrecognized arguments: --image"),
    ],
)
def test_what_is_reproduced_is_of_one_kind(words: list[str], said: str, tmp_path: Path) -> None:
    asked = nox(
        "-s", "reproduce-17", "--", *words, PTRACK_CACHE=str(tmp_path), PTRACK_SOURCE="/nowhere"
    )  # fmt: skip
    assert asked.returncode != 0
    assert said in asked.stderr
    assert ("/nowhere" in asked.stderr) == (said == "/nowhere")


@pytest.mark.parametrize("session", ["build-17", "deb-17", "reproduce-17", "bench-build"])
def test_a_number_of_compilers_that_is_none_is_told_before_anything_is_fetched(
    session: str, tmp_path: Path
) -> None:
    asked = nox(
        "-s", session, PTRACK_JOBS="0", PTRACK_CACHE=str(tmp_path), PTRACK_SOURCE="/nowhere"
    )  # fmt: skip
    assert asked.returncode == 1
    assert "PTRACK_JOBS=0 is no number" in asked.stderr
    assert "/nowhere" not in asked.stderr


def test_a_relative_path_is_so_to_where_nox_was_called(tmp_path: Path) -> None:
    (tmp_path / "pg").mkdir()
    asked = nox(
        "-f", str(REPO / "noxfile.py"), "-s", "build-17", cwd=tmp_path,
        PTRACK_SOURCE="./pg", PTRACK_CACHE="cache",
    )  # fmt: skip
    assert asked.returncode != 0
    assert f"{tmp_path / 'pg'} " in asked.stderr
    assert (tmp_path / "cache").is_dir()
    assert not (REPO / "cache").exists()


def test_debug_shows_where() -> None:
    plain, debug = (
        nox("-s", "build-17", "--", *words, PTRACK_SOURCE="/does/not/exist")
        for words in ([], ["--debug"])
    )
    assert plain.returncode != 0
    assert debug.returncode != 0
    assert "Traceback" not in plain.stderr + plain.stdout
    assert "Traceback" in debug.stderr + debug.stdout
