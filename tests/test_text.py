import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.parsers import parse_duration, parse_size
from e2e_runner.text import (
    cell_width,
    duration,
    limit,
    one_line,
    plural,
    shorten,
    size,
    strip_ansi,
)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0ms"),
        (0.9994, "999ms"),
        (0.9996, "1.00s"),
        (9.994, "9.99s"),
        (9.996, "10.0s"),
        (59.94, "59.9s"),
        (59.96, "1m00s"),
        (119.6, "2m00s"),
        (3599.4, "59m59s"),
        (3599.6, "1h00m"),
        (90000, "25h00m"),
    ],
)
def test_duration_never_shows_more_than_its_unit_holds(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@given(st.integers(1, 10**6))
def test_a_limit_is_said_exactly(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert math.isclose(parse_duration(limit(seconds)), seconds, rel_tol=1e-5)


@given(st.integers(120, 10**7))
def test_a_long_limit_is_said_to_the_second(seconds: int) -> None:
    assert parse_duration(limit(seconds)) == seconds


@given(st.integers(1024, 2**50))
def test_a_size_is_said_to_the_tenth(count: int) -> None:
    said = size(count)
    assert re.fullmatch(r"\d{1,4}\.\d [KMGT]iB", said)
    number, unit = said.split()
    step = parse_size(f"1{unit}") if unit != "TiB" else 2**40
    assert abs(float(number) * step - count) <= 0.05 * step + 1


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1024, "1.0 KiB"),
        (1024**3, "1.0 GiB"),
        (1024**4, "1.0 TiB"),
        (1024**5, "1024.0 TiB"),
    ],
)
def test_size(count: int, words: str) -> None:
    assert size(count) == words


def test_plural_groups_thousands() -> None:
    assert plural(10_000, "example") == "10,000 examples"


@given(st.text())
def test_one_line_is_one_printable_line(text: str) -> None:
    safe = one_line(text)
    assert len(safe.splitlines()) <= 1
    assert "\x1b" not in safe
    safe.encode("utf-8")  # no lone surrogate is left
    assert one_line(safe) == safe


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_plain_text_is_left_alone(text: str) -> None:
    assert one_line(text) == strip_ansi(text) == text


def test_undecodable_bytes_in_a_name_are_shown() -> None:
    assert one_line(b"caf\xe9.py".decode("utf-8", "surrogateescape")) == r"caf\udce9.py"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[2K\x1b[1Aup", "up"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bMreverse", "reverse"),
    ],
)
def test_strip_ansi(text: str, plain: str) -> None:
    assert strip_ansi(text) == plain


@pytest.mark.parametrize(
    ("text", "columns"), [("", 0), ("abc", 3), ("価格", 4), ("e\u0301", 1), ("✓", 1)]
)
def test_cell_width(text: str, columns: int) -> None:
    assert cell_width(text) == columns


@given(st.text(), st.integers(0, 40))
def test_shortened_text_fits_and_keeps_its_ends(text: str, width: int) -> None:
    short = shorten(text, width)
    assert cell_width(short) <= width
    if cell_width(text) <= width:
        assert short == text
    elif width > 1:
        cuts = [at for at, char in enumerate(short) if char == "…"]
        assert any(text.startswith(short[:at]) and text.endswith(short[at + 1 :]) for at in cuts)
