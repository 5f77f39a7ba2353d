"""The README is true: its commands run, its output is what they print, its tables are what the code does."""

import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from harness import REPOSITORY
from pages import (
    Block,
    assert_printed,
    blocks_of,
    make_checkout,
    run_all,
    without_blocks,
)

from e2e_runner import docs, verdict
from e2e_runner.cli.commands import group
from e2e_runner.config import resolve
from e2e_runner.errors import UsageError
from e2e_runner.hints import load_rules
from e2e_runner.metadata import read_metadata
from e2e_runner.model import Containment, ReportFormat, Status
from e2e_runner.settings import SETTINGS, Scope, within

README = (REPOSITORY / "README.md").read_text("utf-8")

_OWN_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
_OF_OTHERS = {"--bind", "--create", "--write"}  # of python -m http.server, pg_dump, sysctl


BLOCKS = blocks_of(README)


def blocks(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def table(*head: str) -> list[list[str]]:
    """Give the rows of the table with this head."""
    lines = README.splitlines()
    start = lines.index(f"| {' | '.join(head)} |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert {block.language for block in BLOCKS} == {"console", "python", "sh", "toml", "yaml"}
    assert README.count("\n```") == 2 * len(BLOCKS)


# --- commands ------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path)


@pytest.mark.usefixtures("demo_port")
@pytest.mark.timeout(400)  # it may have to wait for the port of another worker's test
def test_commands_run_and_print_what_the_readme_says(checkout: Path) -> None:
    chosen = [block for block in blocks("console", "sh") if not block.reason]
    printed = run_all(chosen, checkout, timeout=280)

    for block, output in zip(chosen, printed, strict=True):
        if block.language == "console":
            assert_printed(block.output, output, checkout)
    assert (checkout / ".e2e-run" / "examples.json").exists()
    assert (checkout / ".e2e-run" / "examples.xml").exists()


def test_targets_of_make_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    named = set(re.findall(r"\bmake ([a-z0-9]+)\b(?=`|$)", README, re.MULTILINE))
    assert named == {"bench", "e2e", "format", "lint", "test"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_only_blocks_that_cannot_run_are_left_out() -> None:
    left_out = [block.text.splitlines()[0] for block in BLOCKS if block.reason]
    assert left_out == [
        "make test",
        "pip install path/to/e2e-run",
        "e2e-run sweep-dbs --postgres postgresql://maria@db.example/postgres --dry-run",
        ".venv/bin/python -m pytest tests/test_hints.py",
    ]


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"))
def test_metadata_is_accepted(block: Block) -> None:
    metadata = read_metadata(block.text, "example.py")
    assert metadata.declared
    assert metadata.problems == ()


@pytest.mark.parametrize("block", [b for b in blocks("toml") if "tool.e2e-run" in b.text])
def test_configuration_is_accepted(block: Block, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(block.text, "utf-8")
    (tmp_path / "examples").mkdir()
    for name in re.findall(r'template = "([^"]+)"', block.text):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    resolved = resolve({}, (), {}, tmp_path)
    assert resolved.warnings == ()
    assert resolved.run.config_file == tmp_path / "pyproject.toml"


@pytest.mark.parametrize("block", [b for b in blocks("toml") if "tool.e2e-run" not in b.text])
def test_rules_are_accepted(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(block.text, "utf-8")
    (rule,) = load_rules(file)
    assert rule.cause == "queue-full"


def test_causes_that_are_named_exist() -> None:
    sentence = README.split("with a sentence of advice: ")[1].split(" and more.")[0]
    causes = {rule.cause for rule in load_rules()}
    named = re.findall(r"`([^`]+)`", sentence)
    assert len(named) == 5
    assert causes.issuperset(named)
    assert len(causes) > len(named)


def test_references_are_current() -> None:
    assert README.count("<!-- reference: ") == 2
    assert docs.update(README) == README, "run: python -m e2e_runner.docs README.md"


# --- options -------------------------------------------------------------------------------------


def commands() -> Iterator[click.Command]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield command


def options(command: click.Command) -> list[click.Option]:
    return [param for param in command.params if isinstance(param, click.Option)]


def help_options() -> set[str]:
    """List what ``e2e-run --help`` shows as options."""
    done = subprocess.run(
        [sys.executable, "-m", "e2e_runner", "--help"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    listed = done.stdout.split("Options:\n")[1].split("Commands:\n")[0]
    heads = re.findall(r"^  (-\S.*?)(?:  |$)", listed, re.MULTILINE)
    return {option for head in heads for option in _OWN_OPTION.findall(head)}


def test_reference_has_the_options_of_help_and_no_others() -> None:
    head = ("key", "type", "default", "environment", "flag", "what it does")
    rows = [[cell.replace("`", "") for cell in row] for row in table(*(name for name in head))]
    referred = {flag for row in rows for flag in row[4].split(", ") if flag}
    assert help_options() - {"-h", "--help"} == referred


def test_options_that_the_text_names_exist() -> None:
    known = {name for command in commands() for option in options(command) for name in option.opts}
    known |= {"-h", "--help", "--version"} | _OF_OTHERS
    fenced = [block for block in BLOCKS if "e2e-run" in block.text]
    quoted = re.findall(r"`[^`\n]+`", without_blocks(README))
    texts = [*(block.text for block in fenced if block.language != "python"), *quoted]
    named = {option for text in texts for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}
    assert named <= known, named - known


def test_every_option_and_command_has_help() -> None:
    for command in commands():
        assert command.help
        for option in options(command):
            assert option.help, (command.name, option.name)
            assert re.fullmatch(r"[A-Z].*[.\]]", option.help, re.DOTALL), option.help


def test_every_setting_has_one_sentence_in_the_present() -> None:
    for setting in SETTINGS:
        first = setting.help.split()[0]
        assert setting.help.endswith(".")
        assert re.fullmatch(r"[A-Z][a-z]+s|Does", first), setting.help


def test_all_commands_are_named() -> None:
    listed = {re.search(r"e2e-run(?: ([\w-]+))? \[", row[0]) for row in table("command", "does")}
    names = {found[1] or "run" for found in listed if found}
    assert names == set(group.list_commands(click.Context(group)))


def test_limits_that_are_named_are_the_defaults() -> None:
    settings = within(Scope.CONFIG)
    assert settings["max-output"].default == 64 * 1024**2
    assert settings["keep-runs"].default == 20
    assert "`max-output` (64 MiB)" in README
    assert "The logs of the last 20 runs" in README


# --- statuses, codes, tiers ----------------------------------------------------------------------


def test_statuses() -> None:
    rows = table("status", "meaning", "counts as")
    assert [row[0].strip("`") for row in rows] == [status.value for status in Status]
    for status, row in zip(Status, rows, strict=True):
        expected = {
            (True, True): "ok",
            (True, False): "ok; with `--strict` not ok",
            (False, False): "not ok",
        }[verdict.is_ok(status, strict=False), verdict.is_ok(status, strict=True)]
        if status is Status.NOT_RUN:
            expected = "never green"
        if not verdict.is_bad(status, strict=True) and status is Status.SKIPPED:
            expected = "neutral"
        assert row[2] == expected


def test_exit_codes() -> None:
    shown = [int(code) for row in table("exit code", "when") for code in row[0].split(", ")]
    constants = [value for name, value in vars(verdict).items() if name.startswith("EXIT_")]
    signals = [128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)]
    assert shown == sorted({*constants, UsageError.exit_code}) + signals


def test_tiers() -> None:
    rows = table("tier", "needs", "what it cannot do")
    assert [row[0].strip("`") for row in rows] == [tier.value for tier in Containment]


def test_report_formats() -> None:
    section = README.split("## Reports and CI")[1].split("\n## ")[0]
    assert re.findall(r"^- `(\w+)`:", section, re.MULTILINE) == [
        kind.value for kind in ReportFormat
    ]


def test_the_steps_for_ci_write_what_they_keep() -> None:
    block, matrix = blocks("yaml")
    text = textwrap.dedent(block.text)
    report = re.search(r"--report junit=(\S+)", text)
    assert report
    assert text.count(report[1]) == 2

    for words in (matrix.text, (REPOSITORY / ".github/workflows/ci.yml").read_text("utf-8")):
        numbers = re.findall(r"shard: \[([0-9, ]+)\]", words)
        counts = re.findall(r"--shard \$\{\{ matrix\.shard \}\}/([0-9]+) --timings \S", words)
        assert [[*map(int, each.split(","))] for each in numbers] == [
            [*range(1, int(count) + 1)] for count in counts
        ]
        assert counts
