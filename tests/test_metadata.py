import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.layers import misspelt_table
from e2e_runner.metadata import comment_prefix, find_blocks, read_metadata
from e2e_runner.model import Origin, Problem, Source, TcpProbe

# The regular expression that PEP 723 gives as the canonical reading.
CANONICAL = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")

SCRIPT = """\
#!/usr/bin/env python
# /// script
# dependencies = ["httpx"]
#
# [tool.e2e-run]
# timeout = "2m"
# ports = [8000]
# tags = ["websocket"]
# serve = "tcp://127.0.0.1:8000"
# env = { MODE = "demo" }
# ///
print("hello")
"""


def _problems(text: str) -> list[str]:
    return [problem.message for problem in read_metadata(text, "examples/x.py").problems]


def _script(*lines: str) -> str:
    return "\n".join(
        ["# /// script", "# [tool.e2e-run]", *(f"# {line}" for line in lines), "# ///"]
    )


def test_values_and_their_lines() -> None:
    metadata = read_metadata(SCRIPT, "examples/x.py")
    assert metadata.problems == ()
    assert metadata.declared
    assert {name: given.value for name, given in metadata.layer.items()} == {
        "timeout": 120.0,
        "ports": (8000,),
        "tags": ("websocket",),
        "serve": TcpProbe(host="127.0.0.1", port=8000),
        "env": {"MODE": "demo"},
    }
    assert metadata.layer["ports"].origin == Origin(source=Source.METADATA, where="examples/x.py:7")


def test_windows_line_ends_change_nothing() -> None:
    assert read_metadata(SCRIPT.replace("\n", "\r\n"), "x.py") == read_metadata(SCRIPT, "x.py")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "print(1)\n",
        "# /// script\n# a = 1\n",
        "# /// script\n# ///\n",
        "# /// other\n# [tool.e2e-run]\n# x = 1\n# ///\n",
        "# /// script\n# dependencies = []\n# ///\n",
        "# /// script\n# [tool.other]\n# timout = 1\n# ///\n",
        "# /// script\n# not toml\n# ///\n",
        "  # /// script\n  # [tool.e2e-run]\n  # x = 1\n  # ///\n",
        "# /// script\n# [tool.e2e-run]\n#x = 1\n# ///\n",
    ],
)
def test_scripts_that_say_nothing_to_e2e_run(text: str) -> None:
    metadata = read_metadata(text, "x.py")
    assert (metadata.layer, metadata.problems, metadata.declared) == ({}, (), False)


def test_an_unknown_key_is_named_with_the_right_one() -> None:
    (message,) = _problems(_script('grace = "1s"', 'timout = "2m"'))
    assert message == "examples/x.py:4: timout: unknown key; did you mean timeout?"


def test_every_problem_is_told_at_once() -> None:
    assert _problems(
        _script("ports = [0]", "strict = true", 'timeout = "soon"', "randomize = 2")
    ) == [
        (
            "examples/x.py:3: ports: 0 is out of range; "
            "accepted: port numbers from 1 to 65535, as in [8000]"
        ),
        (
            "examples/x.py:4: strict: is a setting of the whole run: "
            "write it in the configuration file"
        ),
        (
            "examples/x.py:5: timeout: 'soon' is not a duration; "
            "accepted: a duration such as 90, 90s, 1m30s, 500ms or 1h, above 0"
        ),
        (
            "examples/x.py:6: randomize: unknown key; accepted: args, cwd, databases, env, exclusive, "
            "expect-exit, grace, interpreter, locks, needs, network, ports, postgres, reach, retries, "
            "serve, skip, stdin, tags, timeout"
        ),
    ]


def test_metadata_that_is_not_toml() -> None:
    (message,) = _problems(_script("timeout = ", "x = 1"))
    assert message == "examples/x.py:3: script: the metadata is not TOML: Invalid value"


def test_two_blocks_are_one_too_many() -> None:
    text = "# /// script\n# a = 1\n# ///\n\n# /// script\n# b = 1\n# ///\n"
    assert read_metadata(text, "x.py").problems == (
        Problem(
            message="x.py:5: script: more than one metadata block (lines 1, 5); accepted: one block"
        ),
    )


def test_two_blocks_without_a_line_between_them() -> None:
    block = "# /// script\n# [tool.e2e-run]\n# timeout = 1\n# ///\n"
    assert _problems(f"\n{block}{block}") == [
        "examples/x.py:6: script: more than one metadata block (lines 2, 6); accepted: one block"
    ]


def test_a_block_that_begins_before_the_last_is_closed() -> None:
    text = "\n# /// script\n# [tool.e2e-run]\n# timeout = 1\n# /// script\n# x = 1\n# ///\n"
    assert _problems(text) == [
        (
            "examples/x.py:5: script: a second metadata block begins before that of line 2 is closed; "
            "accepted: one block, closed by `# ///`"
        )
    ]


UNCLOSED = (
    "the metadata block is never closed, and ignored; "
    "accepted: lines that begin with `# `{}, the last of them `# ///`"
)
OUTSIDE = "is ignored: it is not in a block that `# /// script` opens and `# ///` closes"


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("# /// script\n# [tool.e2e-run]\n# x = 1\nprint(1)\n", "1: " + UNCLOSED.format("")),
        ("\n# /// script\n# x = 1", "2: " + UNCLOSED.format("")),
        (
            "# /// script\n#[tool.e2e-run]\n# x = 1\n# ///\n",
            "1: " + UNCLOSED.format(", but line 2 does not"),
        ),
        (
            "# /// script\n# [tool.e2e-run]\n# x = 1\n#///\n",
            "1: " + UNCLOSED.format(", but line 4 does not"),
        ),
        (
            "#/// script\n# [tool.e2e-run]\n# x = 1\n# ///\n",
            "1: '#/// script' opens no metadata block; accepted: `# /// script`",
        ),
        (
            "#!/usr/bin/python\n#///script\n#[tool.e2e-run]\n#///\n",
            "2: '#///script' opens no metadata block; accepted: `# /// script`",
        ),
        (
            "# // Script \n# [tool.e2e-run]\n# //\n",
            "1: '# // Script ' opens no metadata block; accepted: `# /// script`",
        ),
        (
            "# /// other\n# [tool.e2e-run]\n# x = 1\n# ///\n",
            "1: the block of type other is ignored; accepted: `# /// script`",
        ),
        (
            "import a\n# note:\n# [tool.e2e-run]\n# timeout = 1\n",
            f"3: '# [tool.e2e-run]' {OUTSIDE}",
        ),
        ("#[tool.e2e-run]\n#timeout = 1\n", f"1: '#[tool.e2e-run]' {OUTSIDE}"),
        (
            "# /// script\n# [tool.e2e_run]\n# timeout = 1\n# ///\n",
            "2: [tool.e2e_run] is ignored; did you mean [tool.e2e-run]?",
        ),
        (
            "# /// script\n# a = 1\n# [e2e-run]\n# timeout = 1\n# ///\n",
            "3: [e2e-run] is ignored; did you mean [tool.e2e-run]?",
        ),
        (
            "# /// script\n# [tool.e2erun]\n# ///\n",
            "2: [tool.e2erun] is ignored; did you mean [tool.e2e-run]?",
        ),
    ],
)
def test_what_looks_like_metadata_and_is_not_read_is_told(text: str, warning: str) -> None:
    metadata = read_metadata(text, "x.py")
    assert metadata.warnings == (f"x.py:{warning}",)
    assert (metadata.layer, metadata.problems, metadata.declared) == ({}, (), False)


@pytest.mark.parametrize(
    "text",
    [
        SCRIPT,
        "# /// script\n# ///\n",
        "# /// script\n# dependencies = []\n# ///\n",
        "# /// script\n# [tool.other]\n# x = 1\n# ///\n",
        "# /// other\n# x = 1\n",
        "# reads [tool.e2e-run] of a file\n",
        "text = '[tool.e2e-run]'\n",
        "  # [tool.e2e-run]\n",
    ],
)
def test_nothing_is_told_of_what_is_read_or_not_meant(text: str) -> None:
    assert read_metadata(text, "x.py").warnings == ()


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"tool": {"e2e-run": {"e2e_run": {}}, "ruff": {}, "e2e": {}}}, ()),
        ({"project": {"e2e-run": 1}, "tool": {"uv": {"sources": {"e2e-run": {}}}}}, ()),
        ({"tool": {"e2e-runner": {}}}, ("tool", "e2e-runner")),
        ({"tool": {"e2e": {"run": {}}}}, ("tool", "e2e", "run")),
        ({"tools": {"e2e-run": {}}}, ("tools", "e2e-run")),
        ({"tool": {"E2E-Rnu": {}}}, ("tool", "E2E-Rnu")),
        ({"tool": 1, "e2erun": {}}, ("e2erun",)),
    ],
)
def test_misspelt_tables(data: dict[str, object], path: tuple[str, ...]) -> None:
    assert misspelt_table(data) == path


def test_a_table_that_is_none() -> None:
    text = "# /// script\n# [tool]\n# e2e-run = 1\n# ///\n"
    assert _problems(text) == ["examples/x.py:3: tool.e2e-run: is not a table; accepted: a table"]


def test_other_languages_use_their_own_comments() -> None:
    text = "// /// script\n// [tool.e2e-run]\n// timeout = 3\n// ///\n"
    assert read_metadata(text, "x.js", ".js").layer["timeout"].value == 3.0
    assert not read_metadata(text, "x.sh", ".sh").declared
    assert [comment_prefix(suffix) for suffix in (".py", ".sh", ".js", ".lua")] == [
        "#",
        "#",
        "//",
        "--",
    ]


def test_a_name_with_a_newline_stays_on_one_line() -> None:
    (problem,) = read_metadata(_script("x = 1"), "a\nb.py").problems
    assert problem.message.startswith("a\\nb.py:3: x: unknown key")


_lines = st.sampled_from(
    ["# /// script", "# ///", "# a = 1", "#", "", "x", "# /// other-1", "#b", "# /// ", "# ///  "]
)


@given(st.lists(_lines, max_size=14), st.sampled_from(["", "\n"]))
def test_blocks_are_those_of_the_canonical_expression(lines: list[str], end: str) -> None:
    text = "\n".join(lines) + end
    expected = [
        (
            found["type"],
            "".join(
                line[2:] if line.startswith("# ") else line[1:]
                for line in found["content"].splitlines(keepends=True)
            ).rstrip("\n"),
            text.count("\n", 0, found.start()) + 2,
        )
        for found in CANONICAL.finditer(text)
    ]
    blocks = [(block.type, block.content.rstrip("\n"), block.line) for block in find_blocks(text)]
    assert blocks == expected


@given(st.text())
def test_no_text_raises(text: str) -> None:
    read_metadata(f"# /// script\n# [tool.e2e-run]\n# {text}\n# ///\n", "x.py")


# --- PostgreSQL ----------------------------------------------------------------------------------


def test_databases_are_named_or_defined() -> None:
    layer = read_metadata(_script("postgres = true", 'databases = ["orm"]'), "x.py").layer
    assert (layer["postgres"].value, layer["databases"].value) == (True, ("orm",))
    text = _script("[tool.e2e-run.databases]", 'orm = { env = "DB_NAME", template = "orm.sql" }')
    (definition,) = read_metadata(text, "x.py").layer["databases"].value
    assert (definition.name, definition.env, definition.suffix) == ("orm", ("DB_NAME",), None)
    assert definition.template == (Path("orm.sql"),)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["[tool.e2e-run.databases]", "orm = {}", "ohlcv = { sufix = 1 }"],
            "x.py:5: databases.ohlcv.sufix: unknown key; did you mean suffix?",
        ),
        (
            ["[tool.e2e-run.postgres]", 'url = "postgres://u:pw@db"'],
            (
                "x.py:3: postgres: a table stands where true or false belongs: the server is a "
                "setting of the whole run; accepted: true or false"
            ),
        ),
        (
            ['"postgres.url" = "postgres://u:pw@db"'],
            (
                "x.py:3: postgres.url: is a setting of the whole run: write it in the "
                "configuration file"
            ),
        ),
        (['databases = ["a b"]'], "x.py:3: databases.a b: 'a b' is no name for a database"),
    ],
)
def test_what_is_wrong_with_databases(lines: list[str], message: str) -> None:
    (found,) = [each.message for each in read_metadata(_script(*lines), "x.py").problems]
    assert found.startswith(message)
