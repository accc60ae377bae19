"""The core patch from templates to tree: rendering, the committed diff, drift, and what is refused.

The sources are made up: a few files of a hundred lines, as commits of a bare repository.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from ptrack_build import REPO, cache, matrix, patch
from ptrack_build.errors import PatchError
from ptrack_build.matrix import Major
from ptrack_build.patch import committed
from ptrack_build.patch.objects import Objects
from ptrack_build.source import SourceTree
from tests.build.conftest import on_a_small_disk

if TYPE_CHECKING:
    from pathlib import Path

MAJOR = Major(name="17", number=17, branch="REL_17_STABLE", state="stable")
HEADER = "src/include/hooks.h"
BODY = "src/backend/body.c"

BODY_TEMPLATE = """\
after   #include "body.h"
insert
#include "hooks.h"
end

in      work
after   step50(x);
insert
\tif (hook)
\t\thook(x);
end
"""
HEADER_TEMPLATE = "new\ninsert\n#ifndef HOOKS_H\nextern void (*hook) (int);\n#endif\nend\n"


def body(
    *,
    above: int = 0,
    step: str = "step50(x);",
    near: str = "step48(x);",
    far: str = "step90(x);",
    name: str = "work",
) -> str:
    """A file of one function of a hundred lines, `above` lines further down."""
    steps = [f"\tstep{number}(x);" for number in range(100)]
    steps[90] = f"\t{far}"
    steps[50] = f"\t{step}"
    steps[48] = f"\t{near}"
    head = ['#include "body.h"', *(f"static int a{number};" for number in range(5))]
    lines = [*head, *["/* above */"] * above, "void", f"{name}(int x)", "{"]
    return "\n".join([*lines, *steps, "}", ""])


@dataclass
class World:
    """A bare repository, templates and patches below one directory."""

    root: Path
    commits: int = field(default=0)

    @property
    def mirror(self) -> Path:
        return self.root / "mirror.git"

    @property
    def templates(self) -> Path:
        return self.root / "templates/core"

    @property
    def patches(self) -> Path:
        return self.root / "patches"

    @property
    def diff(self) -> Path:
        return self.patches / "REL_17_STABLE-ptrack-core.diff"

    def git(self, *arguments: str, text: str = "", mirror: Path | None = None) -> str:
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@localhost",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@localhost",
            "GIT_AUTHOR_DATE": "1000000000 +0000",
            "GIT_COMMITTER_DATE": "1000000000 +0000",
            "GIT_DIR": str(mirror or self.mirror),
            "GIT_INDEX_FILE": str(self.root / "index"),
        }
        done = subprocess.run(
            ["git", *arguments], input=text, env=env, text=True, capture_output=True, check=True
        )
        return done.stdout.strip()

    def source(
        self, version: str = "17.2", *, mirror: Path | None = None, **how: object
    ) -> SourceTree:
        """A commit whose body.c is body(**how), and a README."""
        where = mirror or self.mirror
        if not where.exists():
            self.git("init", "--quiet", "--bare", str(where), mirror=where)
        self.root.joinpath("index").unlink(missing_ok=True)
        files = {BODY: body(**how), "README": "made up\n", "configure": "#!/bin/sh\n"}  # type: ignore[arg-type]
        for path, text in files.items():
            blob = self.git("hash-object", "-w", "--stdin", text=text, mirror=where)
            mode = "100755" if path == "configure" else "100644"
            self.git("update-index", "--add", "--cacheinfo", f"{mode},{blob},{path}", mirror=where)
        tree = self.git("write-tree", mirror=where)
        commit = self.git("commit-tree", "-m", version, tree, mirror=where)
        return SourceTree(
            major=MAJOR,
            version=version,
            commit=commit,
            mirror=where,
            digest=tree,
            provider="path",
            origin="made up",
        )

    def template(self, path: str, text: str) -> None:
        file = self.templates / f"{path}.j2"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def render(self, source: SourceTree) -> committed.Diff:
        return patch.write(source, templates=self.templates, patches=self.patches)

    def apply(self, source: SourceTree) -> patch.PatchedTree:
        return patch.apply(source, templates=self.templates, patches=self.patches)

    def drift(self, source: SourceTree) -> patch.Drift:
        return patch.drift(source, templates=self.templates, patches=self.patches)

    def check(self, source: SourceTree | None, mirror: Path | None = None) -> patch.Checked:
        return patch.check(
            MAJOR, source, templates=self.templates, patches=self.patches, mirror=mirror
        )

    def problem(self, source: SourceTree | None) -> str:
        problems = self.check(source).problems
        assert problems
        return "\n".join(problems)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "cache"))
    made = World(tmp_path)
    made.template(BODY, BODY_TEMPLATE)
    made.template(HEADER, HEADER_TEMPLATE)
    return made


# ---- rendering and its head


def test_the_head_says_against_what_and_from_what(world: World) -> None:
    source = world.source()
    diff = world.render(source)
    text = world.diff.read_text()
    head = text.split("\ndiff --git")[0]
    assert "Against: PostgreSQL 17.2\n" in head
    assert f"Tree: {source.digest}\n" in head
    assert f"Edits: {diff.edits}\n" in head
    assert "Lines: 6 added, 0 removed, 2 files\n" in head
    assert "@@ -1,4 +1,5 @@" in text
    assert [file.path for file in diff.files] == [BODY, HEADER]
    assert (diff.added, diff.removed) == (6, 0)
    assert diff == committed.read(MAJOR, world.patches)


def test_git_applies_the_file_as_it_is(world: World) -> None:
    source = world.source()
    world.render(source)
    tree = world.root / "plain"
    for path in (BODY, "README"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(world.git("show", f"{source.commit}:{path}") + "\n")
    subprocess.run(["git", "apply", str(world.diff)], cwd=tree, check=True)
    assert "if (hook)" in (tree / BODY).read_text()
    assert (tree / HEADER).read_text().startswith("#ifndef HOOKS_H\n")


def test_rendering_does_not_depend_on_settings(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = world.source()
    first = patch.render(source, templates=world.templates)
    settings = tmp_path / "gitconfig"
    settings.write_text("[diff]\n\tnoprefix = true\n\tcontext = 9\n[core]\n\tautocrlf = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=1")
    assert patch.render(source, templates=world.templates) == first


def test_a_patch_that_is_too_large(world: World) -> None:
    many = "".join(f"line {number}\n" for number in range(81))
    world.template(HEADER, f"new\ninsert\n{many}end\n")
    with pytest.raises(PatchError, match="would add 84 lines"):
        world.render(world.source())


def test_all_edits_that_do_not_fit_are_named_at_once(world: World) -> None:
    world.template("src/other.c", "after a\ninsert\nb\nend\n")
    with pytest.raises(PatchError) as caught:
        world.render(world.source(step="gone(x);"))
    assert "core/src/backend/body.c.j2:6: this edit matches nowhere" in caught.value.what
    assert "has no file src/other.c" in caught.value.what


def test_another_minor_does_not_touch_a_diff_that_agrees(world: World) -> None:
    world.render(world.source())
    before = world.diff.read_bytes()
    world.render(world.source("17.3", above=40))
    assert world.diff.read_bytes() == before


# ---- applying


def test_apply_exports_the_patched_tree(world: World) -> None:
    source = world.source()
    world.render(source)
    tree = world.apply(source)
    assert tree.how == "applied"
    assert tree.notes == ()
    assert tree.path == cache.root() / "tree" / tree.key
    assert "\tstep50(x);\n\tif (hook)\n\t\thook(x);\n" in (tree.path / BODY).read_text()
    assert (tree.path / HEADER).is_file()
    assert (tree.path / "README").read_text() == "made up\n"
    assert os.access(tree.path / "configure", os.X_OK)
    assert {p.stat().st_mtime for p in tree.path.rglob("*")} == {1_000_000_000.0}
    assert not list(tree.path.parent.glob(".*.part"))


def test_apply_again_is_the_same_and_exports_nothing(world: World) -> None:
    source = world.source()
    world.render(source)
    first = world.apply(source)
    inode = first.path.stat().st_ino
    assert world.apply(source) == first
    assert first.path.stat().st_ino == inode


def test_apply_exports_anew_what_was_removed(world: World) -> None:
    source = world.source()
    world.render(source)
    first = world.apply(source)
    cache.remove(first.path)
    assert world.apply(source) == first
    assert (first.path / BODY).is_file()


@pytest.mark.parametrize("lost", [BODY, patch.WHOLE])
def test_apply_exports_anew_what_was_removed_in_part(world: World, lost: str) -> None:
    """As an interrupted rm leaves it."""
    source = world.source()
    world.render(source)
    first = world.apply(source)
    (first.path / lost).unlink()
    assert world.apply(source) == first
    assert (first.path / BODY).is_file()


def test_apply_leaves_nothing_behind_when_it_is_interrupted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = world.source()
    world.render(source)

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Objects, "export", interrupted)
        with pytest.raises(KeyboardInterrupt):
            world.apply(source)
    assert list((cache.root() / "tree").iterdir()) == []
    assert world.apply(source).how == "applied"


def asked_long_ago() -> None:
    """As if all trees had been asked for a minute too long ago to be kept."""
    then = time.time() - cache.KEEP_SECONDS - 60
    for memo in (cache.root() / "memo").glob("patch-*.json"):
        os.utime(memo, (then, then))


def test_trees_that_nobody_asked_for_for_two_weeks_go(world: World) -> None:
    old, used, new = (world.source(f"17.{number}", above=number) for number in (2, 3, 4))
    world.render(old)
    first, second = world.apply(old), world.apply(used)
    asked_long_ago()
    assert world.apply(used) == second, "who asked may still have to wait before it is used"
    third = world.apply(new)
    assert [tree.path.is_dir() for tree in (first, second, third)] == [False, True, True]
    assert len(list((cache.root() / "memo").glob("patch-*.json"))) == 2
    assert world.apply(old) == first
    assert (first.path / BODY).is_file()


def test_who_asks_for_a_tree_that_goes_just_now_gets_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = world.source()
    world.render(old)
    first = world.apply(old)
    asked_long_ago()
    asking = threading.Thread(target=world.apply, args=(old,))
    discard = cache.discard

    def slowly(path: Path) -> None:
        asking.start()
        asking.join(0.5)
        discard(path)

    monkeypatch.setattr(cache, "discard", slowly)
    world.apply(world.source("17.3", above=40))
    asking.join()
    assert (first.path / BODY).is_file()


def test_a_source_that_has_shifted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.render(world.source())
    source = world.source("17.3", above=40)
    tree = world.apply(source)
    assert tree.how == "offset"
    assert "DRIFT" not in capsys.readouterr().out
    assert "\tstep50(x);\n\tif (hook)\n" in (tree.path / BODY).read_text()


def test_a_changed_line_nearby_is_merged_where_the_blobs_are(world: World) -> None:
    world.render(world.source())
    tree = world.apply(world.source("17.3", near="other(x);"))
    assert tree.how == "offset"
    assert (
        "\tother(x);\n\tstep49(x);\n\tstep50(x);\n\tif (hook)\n" in (tree.path / BODY).read_text()
    )


def test_without_the_blobs_a_shift_is_an_offset(world: World) -> None:
    world.render(world.source())
    tree = world.apply(world.source("17.3", mirror=world.root / "shallow.git", above=40))
    assert tree.how == "offset"


def test_without_the_blobs_a_changed_line_nearby_means_rendering(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.render(world.source())
    tree = world.apply(world.source("17.3", mirror=world.root / "shallow.git", near="other(x);"))
    assert tree.how == "rendered"
    (note,) = tree.notes
    assert "does not apply to PostgreSQL 17.3" in note
    assert "body.c, hunk 2" in note
    said = capsys.readouterr().out
    assert said.count("DRIFT, PostgreSQL 17: ") == 1
    assert "rendered anew" in said
    assert "::" not in said
    assert "commit what `./nox -s patches` writes" in said
    assert (
        "\tother(x);\n\tstep49(x);\n\tstep50(x);\n\tif (hook)\n" in (tree.path / BODY).read_text()
    )


def test_what_could_not_be_rendered_anew_is_not_said_to_be(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.render(world.source())
    source = world.source("17.3", mirror=world.root / "shallow.git", step="gone(x);")
    with pytest.raises(PatchError, match=r"body.c.j2:6: this edit matches nowhere"):
        world.apply(source)
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "DRIFT" in line]
    assert "does not apply to PostgreSQL 17.3" in said
    assert said.endswith("; templates/core do not fit that source")
    assert "rendered anew" not in said
    assert "commit" not in said
    row = world.drift(source)
    assert row.status == "conflict"
    assert row.notes[0].endswith("; templates/core do not fit that source")
    assert row.notes[1].startswith(
        "templates/core/src/backend/body.c.j2:6: this edit matches nowhere"
    )


def test_it_is_rendered_before_that_is_said(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    world.render(world.source())
    source = world.source("17.3", mirror=world.root / "shallow.git", near="other(x);")
    monkeypatch.setattr(Objects, "export", full)
    with pytest.raises(OSError, match="No space left"):
        world.apply(source)
    assert "DRIFT" not in capsys.readouterr().out


FULL = """
from pathlib import Path
from ptrack_build import cache
from ptrack_build.errors import HostError
from tests.build.test_patch_apply import BODY, BODY_TEMPLATE, HEADER, HEADER_TEMPLATE, World
world = World(Path({folder!r}))
world.template(BODY, BODY_TEMPLATE)
world.template(HEADER, HEADER_TEMPLATE)
world.render(world.source())
big = world.source("17.3", mirror=world.root / "shallow.git", above=40000, near="other(x);")
try:
    world.apply(big)
except HostError as error:
    print(error)
print(list(cache.directory("tree").iterdir()))
"""


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Of which git says no more than which files it could not write."""
    said = on_a_small_disk("200k", tmp_path / "small", FULL.format(folder=str(tmp_path)))
    full, way_out, left = said.splitlines()
    assert full == f"no space left on the device of {tmp_path}/small/tree"
    assert way_out.startswith("next: ")
    assert "PTRACK_CACHE" in way_out
    assert left == "[]"


def test_what_is_remembered_is_said_again(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.render(world.source())
    source = world.source("17.3", mirror=world.root / "shallow.git", near="other(x);")
    first = world.apply(source)
    capsys.readouterr()
    assert world.apply(source) == first
    assert "DRIFT" in capsys.readouterr().out


def test_a_template_edited_since_is_what_gets_built(world: World) -> None:
    source = world.source()
    world.render(source)
    old = world.apply(source)
    world.template(BODY, BODY_TEMPLATE.replace("hook(x)", "hook(x + 1)"))
    new = world.apply(source)
    assert new.how == "rendered"
    assert new.key != old.key
    assert "was rendered from other templates" in new.notes[0]
    assert "hook(x + 1);" in (new.path / BODY).read_text()


def test_without_a_committed_diff(world: World) -> None:
    """A branch that is mistyped has none: what is built must not depend on that in silence."""
    source = world.source()
    for use in (world.apply, world.drift):
        with pytest.raises(PatchError, match="no committed diff: patches/REL_17_STABLE") as caught:
            use(source)
        assert " ./nox -s patches -- 17" in (caught.value.hint or "")
    world.render(source)
    world.apply(source)
    world.diff.unlink()
    with pytest.raises(PatchError, match="no committed diff"):
        world.apply(source)


def test_a_source_that_no_edit_fits(world: World) -> None:
    world.render(world.source())
    with pytest.raises(PatchError) as caught:
        world.apply(world.source("17.3", step="step50(x) ;"))
    assert "core/src/backend/body.c.j2:6: this edit matches nowhere" in caught.value.what
    assert "src/backend/body.c:60: step50(x) ;" in caught.value.what
    assert list((cache.root() / "tree").glob("*")) == []


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"name": "work_of_mine"}, r"body.c.j2:6: src/backend/body.c .* has no function work\n"),
        ({"far": "step50(x);"}, r"body.c.j2:6: this edit matches twice"),
    ],
)
def test_a_diff_that_applies_where_the_templates_do_not_fit_is_refused(
    world: World, capsys: pytest.CaptureFixture[str], changed: dict[str, str], why: str
) -> None:
    world.render(world.source())
    source = world.source("17.3", **changed)  # type: ignore[arg-type]
    with pytest.raises(PatchError, match=why):
        world.apply(source)
    said = capsys.readouterr().out
    assert "17.2) still applies to PostgreSQL 17.3; templates/core do not fit that source\n" in said
    assert list((cache.root() / "tree").glob("*")) == []
    assert world.drift(source).status == "conflict"


def test_the_mirror_stays_as_it_is(world: World) -> None:
    source = world.source()
    before = sorted(world.mirror.rglob("*"))
    world.render(source)
    world.apply(source)
    world.drift(source)
    assert sorted(world.mirror.rglob("*")) == before


# ---- drift


def test_drift(world: World) -> None:
    world.render(world.source())
    shallow = world.root / "shallow.git"
    rows = [
        world.drift(world.source()),
        world.drift(world.source("17.3", above=40)),
        world.drift(world.source("17.4", mirror=shallow, near="other(x);")),
        world.drift(world.source("17.5", step="step50(x) ;")),
    ]
    assert [row.status for row in rows] == ["clean", "offset", "rendered", "conflict"]
    assert [row.files for row in rows] == [(), (BODY,), (BODY,), (BODY,)]
    assert json.loads(patch.drift_json(rows))[3]["status"] == "conflict"
    table = patch.drift_table(rows)
    assert "17     offset    17.3" in table
    assert "step50(x) ;" in table
    assert not (cache.root() / "tree").exists()


# ---- check


def test_check_proves_what_it_can(world: World) -> None:
    source = world.source()
    world.render(source)
    assert world.check(source).proven == ("templates", "blobs", "source")
    assert world.check(None).proven == ("templates",)
    assert world.check(None, world.mirror).proven == ("templates", "blobs")
    later = world.source("17.3", above=40)
    assert world.check(later).proven == ("templates", "blobs", "source")
    elsewhere = world.source("17.4", mirror=world.root / "shallow.git", above=3)
    assert world.check(elsewhere).proven == ("templates", "source")
    for at in (source, later, elsewhere, None):
        assert world.check(at).problems == ()


def test_check_changes_nothing(world: World) -> None:
    world.render(world.source())
    world.template(BODY, BODY_TEMPLATE.replace("hook(x)", "hook(x + 1)"))
    before = world.diff.read_bytes()
    assert world.check(world.source("17.3", above=40)).problems
    assert world.diff.read_bytes() == before


@pytest.mark.parametrize("reachable", [True, False])
def test_check_sees_an_edited_template(world: World, *, reachable: bool) -> None:
    source = world.source()
    world.render(source)
    world.template(BODY, BODY_TEMPLATE.replace("hook(x)", "hook(x + 1)"))
    problem = world.problem(source if reachable else None)
    assert "body.c, hunk 2 (@@ -58,6 +59,8 @@ work(int x)) adds `hook(x);`" in problem
    assert "core/src/backend/body.c.j2:6 inserts `hook(x + 1);`" in problem


@pytest.mark.parametrize("reachable", [True, False])
def test_check_sees_an_edit_that_moved(world: World, *, reachable: bool) -> None:
    """The same lines, to another place: the lines around them tell, where there is no source."""
    source = world.source()
    world.render(source)
    world.template(BODY, BODY_TEMPLATE.replace("step50", "step60"))
    problem = world.problem(source if reachable else None)
    assert "body.c, hunk 2 (@@ -58,6 +59,8 @@ work(int x)) adds elsewhere than " in problem
    assert "core/src/backend/body.c.j2:6 says `if (hook)`" in problem


@pytest.mark.parametrize("reachable", [True, False])
def test_check_sees_an_edit_that_names_a_line_more(world: World, *, reachable: bool) -> None:
    """One that the hunk does not show: the digest tells."""
    source = world.source()
    world.render(source)
    more = "after   step46(x);\nafter   step47(x);\nafter   step48(x);\nafter   step49(x);\n"
    world.template(BODY, BODY_TEMPLATE.replace("after   step50", f"{more}after   step50"))
    assert "it comes from other templates" in world.problem(source if reachable else None)


def _sealed_again(world: World, changes: dict[str, str]) -> None:
    diff = world.render(world.source())
    body = diff.body
    for old, new in changes.items():
        assert body.count(old) == 1
        body = body.replace(old, new)
    committed.write(replace(diff, body=body), world.patches)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({" \tstep50(x);\n": " \tstep70(x);\n"}, id="another line"),
        pytest.param({" work(int x)\n": " other(int x)\n"}, id="another function"),
        pytest.param(
            {" \tstep48(x);\n \tstep49(x);\n": " other(int x)\n {\n"},
            id="another function, which the hunk begins",
        ),
        pytest.param(
            {" work(int x)\n": " other(int x)\n", " \tstep49(x);\n": " \twork(x);\n"},
            id="another function, which calls the one",
        ),
        pytest.param(
            {
                "+\tif (hook)\n+\t\thook(x);\n \tstep51(x);\n":
                "+\tif (hook)\n \tstep51(x);\n+\t\thook(x);\n"
            },
            id="two pieces",
        ),
    ],
)  # fmt: skip
def test_check_sees_without_a_source_what_was_moved_and_sealed_again(
    world: World, changes: dict[str, str]
) -> None:
    _sealed_again(world, changes)
    problem = world.problem(None)
    assert "body.c, hunk 2 (" in problem
    assert "adds elsewhere than " in problem


@pytest.mark.parametrize("heading", [" retry:", " retry: ;", "", " work(int x)"])
def test_check_takes_no_label_for_a_function(world: World, heading: str) -> None:
    """git does, and says nothing where no line before the hunk begins like a function."""
    _sealed_again(world, {" @@ work(int x)\n": f" @@{heading}\n"})
    assert world.check(None).problems == ()


@pytest.mark.parametrize("reachable", [True, False])
def test_check_sees_an_edited_diff(world: World, *, reachable: bool) -> None:
    source = world.source()
    world.render(source)
    world.diff.write_text(world.diff.read_text().replace("+\t\thook(x);", "+\t\thook(y);"))
    problem = world.problem(source if reachable else None)
    assert "body.c, hunk 2" in problem
    assert "adds `hook(y);`, but " in problem
    assert "inserts `hook(x);`" in problem
    tree = world.apply(source)
    assert tree.how == "rendered"
    assert "has been edited" in tree.notes[0]


def test_check_names_the_nearest_candidate(world: World) -> None:
    source = world.source()
    world.render(source)
    text = world.diff.read_text()
    world.diff.write_text(text.replace("+\tif (hook)\n", "").replace("+59,8", "+59,7"))
    problem = world.problem(None)
    assert "adds `hook(x);`, but" in problem
    assert "inserts `if (hook)`; nearest is `hook(x);` of " in problem


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" \tstep51(x);\n", " \tstep_51(x);\n"),
        ("@@ -58,6 +59,8 @@", "@@ -68,6 +69,8 @@"),
        ("Against: PostgreSQL 17.2", "Against: PostgreSQL 17.9"),
        ("Lines: 6 added", "Lines: 7 added"),
    ],
)
def test_check_sees_what_adds_the_same_lines(world: World, old: str, new: str) -> None:
    source = world.source()
    world.render(source)
    text = world.diff.read_text()
    assert old in text
    if old.startswith("Against"):
        world.diff.write_text(text.replace(old, new))
        assert world.check(source).problems == ()  # the head's prose proves nothing by itself
        return
    world.diff.write_text(text.replace(old, new))
    assert "its head or body was edited" in world.problem(None)


def test_check_sees_a_diff_that_was_sealed_again(world: World) -> None:
    """With the head's digests made good, the blobs still tell."""
    source = world.source()
    diff = world.render(source)
    body = diff.body.replace("@@ -58,6 +59,8 @@", "@@ -68,6 +69,8 @@")
    committed.write(replace(diff, body=body), world.patches)
    problem = world.problem(source)
    assert "hunk 2 (@@ -68,6 +69,8 @@ work(int x)) differs; rendered, it is @@ -58,6" in problem


def test_check_sees_a_removed_line(world: World) -> None:
    source = world.source()
    diff = world.render(source)
    body = diff.body.replace(" \tstep51(x);\n", "-\tstep51(x);\n").replace("+59,8", "+59,7")
    committed.write(replace(diff, body=body), world.patches)
    assert "hunk 2 (@@ -58,6 +59,7 @@ work(int x)) removes `step51(x);`" in world.problem(None)


def test_check_sees_a_file_too_many_and_a_file_too_few(world: World) -> None:
    world.render(world.source())
    (world.templates / f"{HEADER}.j2").unlink()
    assert f"{HEADER} is edited, but by no template" in world.problem(None)
    world.template(HEADER, HEADER_TEMPLATE)
    world.template("src/more.c", "after a\ninsert\nb\nend\n")
    assert "nothing is done to src/more.c" in world.problem(None)


def test_check_says_where_a_source_has_moved_too_far(world: World) -> None:
    world.render(world.source())
    shallow = world.root / "shallow.git"
    problem = world.problem(world.source("17.3", mirror=shallow, near="other(x);"))
    assert "does not apply to PostgreSQL 17.3: src/backend/body.c, hunk 2 (@@ -58,6" in problem
    assert "nearest is line 58" in problem


def test_check_of_a_missing_or_broken_diff(world: World) -> None:
    assert "cannot be read" in world.problem(None)
    with pytest.raises(PatchError) as caught:
        committed.read(MAJOR, world.patches)
    assert caught.value.hint == "./nox -s patches"
    world.render(world.source())
    text = world.diff.read_text()
    world.diff.write_text("nothing\n")
    assert "no diff in it" in world.problem(None)
    world.diff.write_text(text.replace("Edits: ", "Edit: "))
    assert "no Edits: in it" in world.problem(None)
    world.diff.write_text(text[: text.index("+\tif (hook)")])
    assert "is not a diff any more" in world.problem(None)


def test_what_differs_is_said_in_the_table(world: World) -> None:
    world.render(world.source())
    world.diff.unlink()
    assert "17     differs" in patch.check_table([world.check(None)])


# ---- the real ones


@pytest.mark.parametrize("name", matrix.load().names)
def test_the_committed_diff_of_each_major(name: str) -> None:
    major = matrix.load().major(name)
    checked = patch.check(major, None)
    assert checked.problems == ()
    assert 60 < checked.added <= patch.MOST_LINES
    diff = committed.read(major, patch.PATCHES)
    assert diff.removed == 0
    assert diff.against.removeprefix("PostgreSQL ").startswith(str(major.number))


def test_no_diff_without_a_major() -> None:
    names = {committed.file_name(major.branch) for major in matrix.load().majors}
    assert {path.name for path in (REPO / "patches").iterdir()} == names
