from e2e_runner.docs import config_reference, metadata_reference, update
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
