"""Templates of the core patch: how they are read, and where their edits are made."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

from ptrack_build.errors import PatchError
from ptrack_build.matrix import Major
from ptrack_build.patch import edits

if TYPE_CHECKING:
    from pathlib import Path

FILE = textwrap.dedent("""\
    #include "a.h"
    #include "c.h"

    static void open(int x);

    static const struct item skip[] = {
    \t{"one", false},

    \t{"two", true},
    };

    static const struct item keep[] =
    {
    \t{"one", false},
    };

    static void
    open(int x)
    {
    \tAssert(x <  10);

    \twrite(x);
    \tif (x)
    \t\treturn;\t\t\t/* no work */
    }

    void
    shut(int x)
    {
    \twrite(x);

    \t/*
    \t * Be paranoid.
    \t */
    \twrite(x);
    }
    """)


def major(number: int = 17) -> Major:
    name = str(number) if number < 20 else "devel"
    return Major(name=name, number=number, branch=f"REL_{name}_STABLE", state="stable")


def plan(tmp_path: Path, text: str, number: int = 17) -> edits.Plan:
    """The plan of the one template of a tree, src/a.c.j2."""
    template = tmp_path / "templates/core/src/a.c.j2"
    template.parent.mkdir(parents=True, exist_ok=True)
    template.write_text(textwrap.dedent(text), encoding="utf-8", errors="surrogateescape")
    (found,) = edits.load(tmp_path / "templates/core", major(number))
    return found


def made(tmp_path: Path, text: str, file: str = FILE, number: int = 17) -> str:
    return edits.perform(plan(tmp_path, text, number), file, where="PostgreSQL 17.2")


def added(before: str, after: str) -> list[tuple[str, str]]:
    """Each line added, with the line above it."""
    old, new = before.splitlines(), after.splitlines()
    found = []
    position = 0
    for index, line in enumerate(new):
        if position < len(old) and line == old[position]:
            position += 1
        else:
            found.append((new[index - 1], line))
    assert position == len(old), "a line was removed"
    return found


def test_after_and_before(tmp_path: Path) -> None:
    text = """\
        after   #include "a.h"
        insert
        #include "b.h"
        end

        before  #include "c.h"
        insert
        #include "bb.h"
        end
        """
    assert added(FILE, made(tmp_path, text)) == [
        ('#include "a.h"', '#include "b.h"'),
        ('#include "b.h"', '#include "bb.h"'),
    ]


def test_white_space_and_blank_lines_do_not_count_and_dots_stand_for_anything(
    tmp_path: Path,
) -> None:
    text = """\
        in      open
        after   Assert(x <   ...);
        before  write(x);
        insert
        one
        end

        in      open
        after   return; ...
        insert
        two
        end
        """
    assert added(FILE, made(tmp_path, text)) == [
        ("\tAssert(x <  10);", "one"),
        ("\t\treturn;\t\t\t/* no work */", "two"),
    ]


def test_a_comment_behind_a_line_tells_two_lines_apart(tmp_path: Path) -> None:
    text = """\
        in      shut
        after   write(x);
        before  /*
        before  * Be paranoid.
        insert
        \there();
        end
        """
    assert added(FILE, made(tmp_path, text)) == [("\twrite(x);", "\there();")]


def test_inside_of_an_array(tmp_path: Path) -> None:
    for array in ("skip", "keep"):
        text = f"""\
            in      {array}[]
            after   {{"one", false}},
            insert
            \t{{"three", true}},
            end
            """
        changed = made(tmp_path, text)
        assert changed.count("three") == 1
        assert changed.index("three") > changed.index(f"{array}[]")


def test_shifted_lines_change_nothing_else(tmp_path: Path) -> None:
    text = """\
        in      shut
        before  /*
        insert
        \there();
        end
        """
    shifted = "/* new */\n" * 100 + FILE.replace("open(int x)\n{", "open(int x)\n{\n\tint\ty;\n")
    assert added(shifted, made(tmp_path, text, shifted)) == [("", "\there();")]


def test_the_text_is_taken_as_it_is(tmp_path: Path) -> None:
    text = 'after   #include "a.h"\ninsert\n\tone  two \n\n   three\nend\n'
    assert made(tmp_path, text).startswith(
        '#include "a.h"\n\tone  two \n\n   three\n#include "c.h"'
    )


@pytest.mark.parametrize(("number", "line"), [(15, "old"), (16, "new"), (20, "new")])
def test_conditions_on_the_major(tmp_path: Path, number: int, line: str) -> None:
    text = """\
        {# a comment
           over two lines #}
        after   #include "a.h"
        insert
        {% if major >= 16 %}
        new
        {% else %}
        old
        {% endif %}
        {{ "tail" if major >= 12 else "" }}
        end
        """
    above = '#include "a.h"'
    assert added(FILE, made(tmp_path, text, number=number)) == [(above, line), (line, "tail")]


def test_a_template_without_an_edit_for_a_major_is_left_out(tmp_path: Path) -> None:
    template = tmp_path / "core/src/a.c.j2"
    template.parent.mkdir(parents=True)
    template.write_text(
        "{% if major >= 16 %}\nafter a\ninsert\nb\nend\n{% endif %}\n", encoding="utf-8"
    )
    assert edits.load(tmp_path / "core", major(15)) == ()
    assert len(edits.load(tmp_path / "core", major(16))) == 1


def test_a_file_that_moved(tmp_path: Path) -> None:
    text = """\
        file    {{ "src/old.c" if major < 15 else "src/new.c" }}
        after   #include "a.h"
        insert
        x
        end
        """
    assert plan(tmp_path, text, 14).path == "src/old.c"
    assert plan(tmp_path, text, 15).path == "src/new.c"


def test_a_new_file(tmp_path: Path) -> None:
    new = plan(tmp_path, "new\ninsert\n#ifndef A\n\n#endif\nend\n")
    assert edits.perform(new, None, where="17.2") == "#ifndef A\n\n#endif\n"
    with pytest.raises(PatchError, match=r"17\.2 already has a file src/a\.c"):
        edits.perform(new, "there\n", where="17.2")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    known = plan(tmp_path, "after a\ninsert\nb\nend\n")
    with pytest.raises(PatchError, match=r"src/a\.c\.j2: 17\.2 has no file src/a\.c"):
        edits.perform(known, None, where="17.2")


# ---- edits that do not fit


def test_nowhere_names_template_edit_and_the_closest_places(tmp_path: Path) -> None:
    text = """\
        {# one line above #}
        in      open
        after   Assert(x < 11);
        insert
        y
        end
        """
    with pytest.raises(PatchError) as caught:
        made(tmp_path, text)
    message = str(caught.value)
    line = FILE.splitlines().index("\tAssert(x <  10);") + 1
    assert "templates/core/src/a.c.j2:2: this edit matches nowhere in src/a.c" in message
    assert "PostgreSQL 17.2" in message
    assert "in      open" in message
    assert "after   Assert(x < 11);" in message
    assert f"src/a.c:{line}: Assert(x <  10);" in message


def test_nowhere_says_when_the_place_is_in_another_function(tmp_path: Path) -> None:
    with pytest.raises(PatchError) as caught:
        made(tmp_path, "in shut\nafter Assert(x < 10);\ninsert\ny\nend\n")
    assert "Assert(x <  10);   (outside of shut)" in str(caught.value)


def test_twice_names_both_places(tmp_path: Path) -> None:
    with pytest.raises(PatchError) as caught:
        made(tmp_path, "in shut\nafter write(x);\ninsert\ny\nend\n")
    message = str(caught.value)
    lines = FILE.splitlines()
    first, second = [n for n, line in enumerate(lines, 1) if line == "\twrite(x);"][1:]
    assert "src/a.c.j2:1: this edit matches twice in src/a.c" in message
    assert f"src/a.c:{first}: write(x);" in message
    assert f"src/a.c:{second}: write(x);" in message


def test_a_function_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PatchError) as caught:
        made(tmp_path, "in opens\nafter write(x);\ninsert\ny\nend\n")
    message = str(caught.value)
    assert "src/a.c of PostgreSQL 17.2 has no function opens" in message
    assert "open(int x)" in message


def test_edits_out_of_order(tmp_path: Path) -> None:
    text = """\
        in      shut
        before  /*
        insert
        b
        end
        after   #include "a.h"
        insert
        a
        end
        """
    with pytest.raises(PatchError, match=r"src/a\.c\.j2:6: this edit belongs above"):
        made(tmp_path, text)


# ---- templates that cannot be read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("after a\ninsert\nb\n", r"a\.c\.j2:2: `insert` without `end`"),
        ("after a\n\n", r"a\.c\.j2:1: an edit without `insert`"),
        ("insert\nb\nend\n", r"a\.c\.j2:1: this edit has no place"),
        ("after a\ninsert\nend\n", r"a\.c\.j2:2: nothing between insert and end"),
        ("\n\naftr a\n", r"a\.c\.j2:3: `aftr` is no keyword"),
        ("before a\nafter b\n", r"a\.c\.j2:2: `after b` does not belong here"),
        ("after a\nfile b\n", r"a\.c\.j2:2: `file` belongs to the top"),
        ("new\nafter a\ninsert\nb\nend\n", r"a\.c\.j2:3: a new file has one edit"),
        ("after a\ninsert\n{{ number }}\nend\n", r"a\.c\.j2:3: 'number' is undefined"),
        ("after a\n{% if %}\n", r"a\.c\.j2:2: "),
        ("after a\n{% if major\n>= 3 %}\n", r"a\.c\.j2:2: "),
        ('after a\n{% if major >= "16" %}\n{% endif %}\n', r"a\.c\.j2:2: '>=' not supported"),
        ("after a\n{{ 1 // 0 }}\n", r"a\.c\.j2:2: "),
        ("after a\ninsert\n\udce4\nend\n", r"a\.c\.j2:3: this is not UTF-8"),
    ],
)
def test_errors_name_template_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PatchError, match=message):
        plan(tmp_path, text)


def test_a_misspelt_keyword_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(PatchError) as caught:
        plan(tmp_path, "befor a\n")
    assert caught.value.hint == "did you mean `before`?"


def test_two_templates_for_one_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        template = tmp_path / f"core/{name}.j2"
        template.parent.mkdir(exist_ok=True)
        template.write_text("file src/x.c\nafter a\ninsert\nb\nend\n")
    with pytest.raises(PatchError, match=r"core/b\.j2 and .*core/a\.j2 edit the same file"):
        edits.load(tmp_path / "core", major())


def test_no_templates(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="there are no templates"):
        edits.load(tmp_path, major())


def test_the_digest_is_of_what_the_edits_say(tmp_path: Path) -> None:
    base = "{# why #}\nafter a\ninsert\n{% if major >= 16 %}\nb\n{% else %}\nc\n{% endif %}\nend\n"

    def digest(text: str, number: int) -> str:
        return edits.digest([plan(tmp_path, text, number)])

    assert digest(base, 16) == digest(base.replace("why", "because\n of this"), 16)
    assert digest(base, 16) == digest(base.replace("\nc\n", "\nd\n"), 17)
    assert digest(base, 15) != digest(base.replace("\nc\n", "\nd\n"), 15)
    assert digest(base, 16) != digest(base, 15)
    assert digest(base, 16) != digest(base.replace("after a", "before a"), 16)
