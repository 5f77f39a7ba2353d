import pytest

from e2e_runner.docs import config_reference, metadata_reference, signature, update
from e2e_runner.settings import SETTINGS, Scope


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip()[1:-1].replace("\\|", "/").split("|")]


def test_every_setting_has_its_line() -> None:
    lines = config_reference().splitlines()[2:]
    assert len(lines) == sum(1 for each in SETTINGS if each.scopes - {Scope.METADATA})
    lines = metadata_reference().splitlines()[2:]
    assert len(lines) == sum(1 for each in SETTINGS if Scope.METADATA in each.scopes)


def test_a_line_names_key_type_default_variable_flag_and_help() -> None:
    lines = [_cells(line) for line in config_reference().splitlines()]
    assert lines[0] == ["key", "type", "default", "environment", "flag", "what it does"]
    assert [
        "`timeout`",
        "duration",
        "60s",
        "`E2E_RUN_TIMEOUT`",
        "`-t`, `--timeout`",
        "Stops an example after this time.",
    ] in lines
    assert all(len(line) == len(lines[0]) for line in lines)


def test_update_replaces_the_blocks_and_nothing_else() -> None:
    text = (
        "# A\n<!-- reference: config -->\nold\n<!-- /reference -->\nB\n"
        "<!-- reference: metadata -->\n<!-- /reference -->\nC\n"
    )
    expected = (
        f"# A\n<!-- reference: config -->\n{config_reference()}<!-- /reference -->\nB\n"
        f"<!-- reference: metadata -->\n{metadata_reference()}<!-- /reference -->\nC\n"
    )
    assert update(text) == expected
    assert update(expected) == expected


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("unique_name", 'def unique_name(prefix: str = "test") -> str\n'),
        ("databases", "def databases(*names: str) -> Block[IsolatedDatabases]\n"),
        (  # its base is an inner one of the kit
            "ServerNotReady",
            "class ServerNotReady(Exception): ...\n",
        ),
        (
            "IsolatedDatabases",
            "class IsolatedDatabases(Mapping[str, IsolatedDatabase]):\n    first: IsolatedDatabase\n",
        ),
    ],
)
def test_a_signature_is_that_of_the_source(name: str, shown: str) -> None:
    assert signature(name) == shown


def test_a_long_signature_has_a_line_for_each_parameter() -> None:
    lines = signature("serve").splitlines()
    assert lines[:4] == ["def serve(", "    app: str,", "    *,", "    port: int = 8000,"]
    assert lines[-1] == ") -> Block[Server]"


def test_each_way_to_call_is_shown() -> None:
    assert signature("check").splitlines()[::2] == [
        'def check(actual: object, *, why: str = "") -> None',
        'def check(actual: object, expected: object, why: str = "") -> None',
    ]
    assert "-> T\n" in signature("wait_until")


def test_a_value_shows_its_public_fields_and_properties() -> None:
    lines = signature("Server").splitlines()
    assert lines[0] == "class Server:"
    assert {"    port: int", "    url: str"} < set(lines)
    assert not any(line.startswith("    _") for line in lines)


def test_update_replaces_signatures() -> None:
    text = "A\n<!-- signature: metric -->\n```python\nold\n```\nB\n```python\nkept\n```\n"
    expected = text.replace("old\n", signature("metric"))
    assert update(text) == expected
    assert update(expected) == expected
