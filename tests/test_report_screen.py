import time
import unicodedata

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.report.screen import clean, render


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        ("", []),
        ("one\ntwo\n", ["one", "two"]),
        ("one\r\ntwo\r\n", ["one", "two"]),
        ("\n\none\n\n\n", ["", "", "one"]),
        ("10%\r20%\r100%\n", ["100%"]),
        ("downloading\rdone\n", ["doneloading"]),
        ("downloading\r\x1b[Kdone\n", ["done"]),
        ("downloading\x1b[2K\rdone", ["done"]),
        ("secret\b\b\bXYZ", ["secXYZ"]),
        ("\b\bx", ["x"]),
        ("a\tb\n1234567\tc", ["a       b", "1234567 c"]),
        ("a  b\r\tc", ["a  b    c"]),
        ("\x1b[1;31mred\x1b[0m plain", ["red plain"]),
        ("\x9b31mred\x9b0m", ["red"]),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x07 end", ["link end"]),
        ("\x1b]0;title never ends\nTraceback", ["", "Traceback"]),
        ("\x1bP+q544e\x1b\\after", ["after"]),
        ("\x1b(Bascii\x1b7\x1b8\x1b=", ["ascii"]),
        ("cut\x1b", ["cut"]),
        ("cut\x1b[38;5", ["cut"]),
        ("bar 1\nbar 2\n\x1b[2A\x1b[2Kdone 1\n\x1b[2Kdone 2\n", ["done 1", "done 2"]),
        ("a\x1b[5Cb", ["a     b"]),
        ("abc\x1b[2Dx", ["axc"]),
        ("abc\x1b[1Gx", ["xbc"]),
        ("abcdef\x1b[3D\x1b[1Kx", ["   xef"]),
        ("up\x0bdown", ["up", "down"]),
        ("bell\x07 nul\x00 del\x7f", ["bell nul del"]),
        ("日本\rx", ["x 本"]),
        ("日本\x1b[3Gx", ["日x"]),
        ("日本\bx", ["日 x"]),
        ("e\u0301\rx", ["x"]),
        ("\u0301a", ["\u0301a"]),
        ("lone \ud800 surrogate", ["lone \ufffd surrogate"]),
        ("a\u2028b \u202eevil", ["a b  evil"]),
        ("[bold]markup[/bold]", ["[bold]markup[/bold]"]),
    ],
)
def test_shows_what_a_terminal_shows(output: str, lines: list[str]) -> None:
    assert render(output) == lines


_NASTY = st.text(
    alphabet=st.one_of(
        st.sampled_from(
            "\x1b[]()0123456789;ABCDGKHJmPX^_\\\x07\x9b\x9c\x9d\r\n\b\t\x0b日e\u0301 \ud800"
        ),
        st.characters(),
    ),
    max_size=200,
)


@hypothesis.settings(deadline=None)
@given(_NASTY)
def test_no_control_character_survives(output: str) -> None:
    for char in "".join(render(output)):
        assert unicodedata.category(char) not in {"Cc", "Cs", "Zl", "Zp"}


@hypothesis.settings(deadline=None)
@given(_NASTY)
def test_rendering_again_changes_nothing(output: str) -> None:
    assert clean(clean(output)) == clean(output)


@hypothesis.settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["C", "Zl", "Zp"])))
def test_plain_text_comes_back_as_it_is(line: str) -> None:
    assert render(line) == ([line.rstrip()] if line.rstrip() else [])


@pytest.mark.parametrize(
    "output",
    [
        "\x1b[999999999C" * 2000 + "x",
        "\x1b[99999B" * 2000,
        "\x1b]" * 30_000,
        "\x1b[" + "9" * 60_000 + "C",
        "\t" * 60_000,
        "x" * 60_000 + "\r" + "y" * 60_000,
        "\x0b" * 60_000,
    ],
    ids=["right", "down", "unterminated", "digits", "tabs", "overwritten", "line feeds"],
)
def test_hostile_output_costs_little(output: str) -> None:
    begun = time.process_time()
    lines = render(output)
    assert time.process_time() - begun < 2
    assert sum(map(len, lines)) <= 60_000
