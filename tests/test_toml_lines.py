import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.toml_lines import TomlError, parse_toml

TEXT = '''\
title = "x"  # [not.a.header]
multi = """
key = 1
[table]
"""
literal = \'\'\'
a = 1\'\'\'\'

[tool."e2e-run"]
timeout = "1m"
env.A = "1"
env.B = "}]"
ports = [
  8000,
  # 8001 = x
  8002,
]
inline = { a = 1, b.c = [ { d = 2 } ] }

[[tool.e2e-run.overrides]]
match = "a"
[[tool.e2e-run.overrides]]
match = 'b'
[tool.e2e-run.overrides.env]
C = "3"
[tool.other]
"quoted \\" key" = 1979-05-27T07:32:00Z
'''
E2E = ("tool", "e2e-run")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 1),
        (("multi",), 2),
        (("literal",), 6),
        (("tool",), 9),
        (E2E, 9),
        ((*E2E, "timeout"), 10),
        ((*E2E, "env"), 11),
        ((*E2E, "env", "B"), 12),
        ((*E2E, "ports"), 13),
        ((*E2E, "ports", 1), 16),
        ((*E2E, "inline", "b", "c", 0, "d"), 18),
        ((*E2E, "overrides", 0), 20),
        ((*E2E, "overrides", 0, "match"), 21),
        ((*E2E, "overrides", 1, "match"), 23),
        ((*E2E, "overrides", 1, "env", "C"), 25),
        ((*E2E, "missing"), 9),
        (("tool", "other", 'quoted " key'), 27),
        (("nowhere",), 1),
    ],
)
def test_the_line_of_a_key(path: tuple[str | int, ...], line: int) -> None:
    assert parse_toml(TEXT).line(*path) == line


def test_lines_are_the_same_with_crlf() -> None:
    assert parse_toml(TEXT.replace("\n", "\r\n")).lines == parse_toml(TEXT).lines


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [("a = 1\nb =\n", 2, 4), ("a = [1,\n", 2, None), ("a = 1\na = 2\n", 2, 6)],
)
def test_what_is_not_toml(text: str, line: int, column: int | None) -> None:
    with pytest.raises(TomlError) as caught:
        parse_toml(text)
    assert (caught.value.line, caught.value.column) == (line, column)


@pytest.mark.parametrize("text", ["a = " + "[" * 20000, "a = " + "9" * 5000])
def test_monsters_are_errors(text: str) -> None:
    with pytest.raises(TomlError):
        parse_toml(text)


_keys = st.text("abc-_", min_size=1, max_size=4) | st.text('a"\\\n #]é', max_size=4)
_scalars = st.sampled_from(["1", "true", '"] # }"', "'x'", '"""\n[a]\nb = 1\n"""', "1.5e3"])


def _quote(key: str) -> str:
    escaped = key.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


@given(st.lists(st.tuples(_keys, st.dictionaries(_keys, _scalars, max_size=4)), max_size=5))
def test_every_key_is_found_on_its_line(tables: list[tuple[str, dict[str, str]]]) -> None:
    lines: list[str] = []
    expected: list[tuple[tuple[Any, ...], int]] = []
    counts: dict[str, int] = {}
    for name, table in tables:
        index = counts[name] = counts.get(name, -1) + 1
        lines.append(f"[[ {_quote(name)} ]]")
        expected.append(((name, index), len(lines)))
        for key, value in table.items():
            lines.append(f"  {_quote(key)} = {value} # c")
            expected.append(((name, index, key), len(lines)))
            lines = "\n".join(lines).split("\n")
    document = parse_toml("\n".join(lines))
    assert document.data == tomllib.loads("\n".join(lines))
    for path, line in expected:
        assert document.lines[path] == line
