"""Frames of others in tracebacks that this Python really prints, folded and not."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.report.screen import render
from e2e_runner.report.tracebacks import fold, last_error


def printed(folder: Path, source: str, *options: str) -> list[str]:
    """Run a script of the project in `folder`; gives the lines that a terminal would show."""
    script = folder / "examples" / "story.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(textwrap.dedent(source), "utf-8")
    done = subprocess.run(
        [sys.executable, "-I", *options, script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    return render(done.stdout)


def folded(lines: list[str], root: Path) -> list[str]:
    """Fold, and name each frame that is left by its file and function alone."""
    shown = fold(lines, root)
    assert sum(each.count for each in shown) == len(lines)
    frame = re.compile(r'File "(?:<|[^"]*/)?([^"/]+)", line \d+(, in .+)?')
    return [
        frame.sub(lambda found: f"{found[1]}{(found[2] or '')[1:]}", each.line) for each in shown
    ]


def test_frames_of_libraries_are_counted(tmp_path: Path) -> None:
    lines = printed(
        tmp_path,
        """
        import asyncio
        import json

        async def main():
            await asyncio.wait_for(deeper(), 9)

        async def deeper():
            return json.loads("{")

        asyncio.run(main())
        """,
    )
    assert any("^^^^" in line for line in lines), "this Python marks the place"
    assert folded(lines, tmp_path) == [
        "Traceback (most recent call last):",
        "  story.py in <module>",
        "    asyncio.run(main())",
        "  … 3 frames in asyncio",
        "  story.py in main",
        "    await asyncio.wait_for(deeper(), 9)",
        "  … 1 frame in asyncio",
        "  story.py in deeper",
        '    return json.loads("{")',
        "           ^^^^^^^^^^^^^^^",
        "  … 2 frames in json",
        "  decoder.py in raw_decode",
        "    obj, end = self.scan_once(s, idx)",
        "               ^^^^^^^^^^^^^^^^^^^^^^",
        (
            "json.decoder.JSONDecodeError: Expecting property name enclosed in double quotes:"
            " line 1 column 2 (char 1)"
        ),
    ]
    assert last_error(lines).startswith("json.decoder.JSONDecodeError: Expecting property name")


def test_chained_exceptions_each_keep_their_last_frame(tmp_path: Path) -> None:
    lines = printed(
        tmp_path,
        """
        import json

        def read(text):
            try:
                return json.loads(text)
            except ValueError as error:
                raise LookupError(text) from error

        try:
            read("{")
        except LookupError:
            json.dumps({1: {2: object()}})
        """,
    )
    said = folded(lines, tmp_path)
    assert said.count("Traceback (most recent call last):") == 3
    counts = [line for line in said if "…" in line]
    assert len(counts) == 2
    assert all(re.fullmatch(r"  … \d frames in json", line) for line in counts)
    for kept in (
        "The above exception was the direct cause of the following exception:",
        "During handling of the above exception, another exception occurred:",
        "  decoder.py in raw_decode",
        "  encoder.py in default",
        "LookupError: {",
        "TypeError: Object of type object is not JSON serializable",
    ):
        assert kept in said
    assert last_error(lines) == "TypeError: Object of type object is not JSON serializable"


def test_exception_groups_are_folded_within_their_margins(tmp_path: Path) -> None:
    lines = printed(
        tmp_path,
        """
        import asyncio
        import json

        async def load(text):
            json.loads(text)

        async def main():
            async with asyncio.TaskGroup() as group:
                group.create_task(load("{"))
                group.create_task(load("["))

        asyncio.run(main())
        """,
    )
    said = folded(lines, tmp_path)
    assert said[:7] == [
        "  + Exception Group Traceback (most recent call last):",
        "  |   story.py in <module>",
        "  |     asyncio.run(main())",
        "  |   … 3 frames in asyncio",
        "  |   story.py in main",
        "  |     async with asyncio.TaskGroup() as group:",
        "  |   taskgroups.py in __aexit__",
    ]
    assert said.count("    |   … 2 frames in json") == 2
    assert said.count("    |   story.py in load") == 2
    assert "  | ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions)" in said
    assert said[-2:] == [lines[-2], "    +------------------------------------"]
    assert last_error(lines) == lines[-2].removeprefix("    | ")


def test_a_syntax_error_keeps_its_place(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n", "utf-8")
    lines = printed(
        tmp_path,
        f"""
        import importlib
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        importlib.import_module("broken")
        """,
    )
    said = folded(lines, tmp_path)
    assert said[2] == '    importlib.import_module("broken")'
    assert re.fullmatch(r"  … \d+ frames in importlib", said[3])
    # Frozen modules have frames without a line of source; the last one stays.
    assert said[4:] == [
        "  frozen importlib._bootstrap> in _call_with_frames_removed",
        "  broken.py",
        "    def f(:",
        "          ^",
        "SyntaxError: invalid syntax",
    ]
    alone = printed(tmp_path, "def f(:\n")
    assert [each.line for each in fold(alone, tmp_path)] == alone
    assert last_error(alone) == ""


def test_repeated_lines_count(tmp_path: Path) -> None:
    mine = printed(
        tmp_path,
        """
        def down(n):
            return down(n + 1)

        down(0)
        """,
    )
    assert any("[Previous line repeated" in line for line in mine)
    assert [each.line for each in fold(mine, tmp_path)] == mine

    theirs = printed(
        tmp_path,
        """
        import copy

        nested = []
        for _ in range(2000):
            nested = [nested]
        copy.deepcopy(nested)
        """,
    )
    said = folded(theirs, tmp_path)
    count = re.fullmatch(r"  … ([\d,]+) frames in copy", said[3])
    assert count is not None
    assert int(count[1].replace(",", "")) > 900
    assert said[-1].startswith("RecursionError: maximum recursion depth exceeded")
    assert len(said) < 10


def test_what_the_kit_and_installed_packages_add_is_folded(tmp_path: Path) -> None:
    lines = printed(
        tmp_path,
        """
        from e2e_runner.kit import wait_until
        import click

        @click.command()
        def main():
            wait_until(lambda: missing, timeout=0.1, every=0.01)

        main([], standalone_mode=True)
        """,
    )
    said = folded(lines, tmp_path)
    assert said[:3] == [
        "Traceback (most recent call last):",
        "  … 1 frame in e2e_runner",
        "  story.py in <lambda>",
    ]
    assert "NameError: name 'missing' is not defined" in said
    assert len([line for line in said if re.fullmatch(r"  … \d frames in click", line)]) == 1
    assert said[-3:-1] == ["  waiting.py in wait_until", "    raise wait.over() from error"]
    assert said[-1].startswith("e2e_runner.kit.waiting.NotInTime: ")


def test_a_project_below_a_folder_of_libraries_is_the_projects(tmp_path: Path) -> None:
    root = tmp_path / "lib" / "python3.11" / "site-packages" / "shop"
    root.mkdir(parents=True)
    lines = printed(
        root,
        """
        def inner():
            raise ValueError("no")

        def outer():
            inner()

        outer()
        """,
    )
    assert [each.line for each in fold(lines, root)] == lines
    assert folded(lines, Path("/elsewhere"))[1:3] == ["  … 2 frames in shop", "  story.py in inner"]


FRAMES = [
    "Traceback (most recent call last):",
    '  File "/srv/shop/a.py", line 1, in <module>',
    "    run()",
    '  File "/usr/lib/python3.11/asyncio/runners.py", line 190, in run',
    "    return runner.run(main)",
    '  File "/usr/lib/python3.11/asyncio/runners.py", line 118, in run',
    "    return self._loop.run_until_complete(task)",
]


@pytest.mark.parametrize(
    "lines",
    [
        FRAMES,  # cut off: where it ends is not known
        [*FRAMES[3:], "ValueError: no"],  # without its head
        [*FRAMES, "", "ValueError: no"],
        [*FRAMES[:5], "ValueError: no"],  # the last frame stays
        ["> " + line for line in [*FRAMES, "ValueError: no"]],  # quoted
        ['  File "<string>", line 1, in <module>', '  File "<stdin>", line 1, in <module>'],
    ],
)
def test_in_doubt_nothing_is_folded(lines: list[str]) -> None:
    assert [each.line for each in fold(lines, Path("/srv/shop"))] == lines


def test_an_error_that_was_long_ago_is_not_the_last() -> None:
    raised = [*FRAMES, "ValueError: no"]
    assert last_error(raised) == "ValueError: no"
    assert last_error([*raised, "a note"]) == "ValueError: no"
    assert last_error([*raised, *(["went on"] * 30)]) == ""
    assert last_error(FRAMES) == ""
    assert last_error([]) == ""


@given(
    st.lists(
        st.sampled_from(
            [
                *FRAMES,
                "ValueError: no",
                "",
                "  + Exception Group Traceback (most recent call last):",
                *("  | " + line for line in FRAMES),
                "  | ValueError: no",
                "    [Previous line repeated 9 more times]",
                "  [Previous line repeated 9 more times]",
            ]
        ),
        max_size=40,
    )
)
def test_every_line_is_shown_or_counted(lines: list[str]) -> None:
    shown = fold(lines, Path("/srv/shop"))
    assert sum(each.count for each in shown) == len(lines)
    kept = [each.line for each in shown if each.count == 1]
    rest = iter(lines)
    assert all(line in rest for line in kept), "in their order"
    outside = [
        line
        for line in lines
        if "usr/lib" not in line and not line.strip(" |").startswith("return")
    ]
    assert [line for line in kept if line in outside and "repeated" not in line] == [
        line for line in outside if "repeated" not in line
    ]
