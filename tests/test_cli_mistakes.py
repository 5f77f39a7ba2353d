"""What a mistake in the command line is answered with."""

import subprocess
import sys
from pathlib import Path

import pytest


def run(arguments: str, folder: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "e2e_runner", *arguments.split()],
        check=False,
        capture_output=True,
        cwd=folder,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        (
            "--reach localhost:6379",
            "--reach is no option: `reach` is a key of [tool.e2e-run]",
            "write `reach = ...` in a script's metadata, an override or the configuration",
        ),
        (
            "list --exclusive",
            "--exclusive is no option: `exclusive` is a key of [tool.e2e-run]",
            "write `exclusive = ...` in a script's metadata or an override",
        ),
        (
            "--capture separate",
            "--capture is no option: `capture` is a key of [tool.e2e-run]",
            "write `capture = ...` in the configuration, or set E2E_RUN_CAPTURE",
        ),
        (
            "history --jsn",
            "--jsn is no option of e2e-run history",
            "did you mean --json? Else see `e2e-run history --help`",
        ),
        (
            "ports --loud",
            "--loud is no option of e2e-run ports",
            "see `e2e-run ports --help`",
        ),
        (
            "history --limit 0",
            "--limit: 0 is not accepted; accepted: a whole number of at least 1",
            "see `e2e-run history --help`",
        ),
        (
            "ports 99999999",
            "PORT: 99999999 is not accepted; accepted: a whole number from 1 to 65535",
            "see `e2e-run ports --help`",
        ),
        (
            "compare a b c",
            "Got unexpected extra argument (c)",
            "see `e2e-run compare --help`",
        ),
    ],
)
def test_a_mistake_is_told_with_its_remedy(
    arguments: str, problem: str, remedy: str, tmp_path: Path
) -> None:
    said = f"e2e-run: {problem}\nTo fix this: {remedy}\n"
    assert run(arguments, tmp_path) == (2, "", said)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            "--retries -1",
            "--retries: '-1' is out of range; accepted: a whole number of at least 0",
        ),
        (
            "--shard 3",
            "--shard: '3' is not I/N; accepted: I/N, as in 1/4 for the first of four parts",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_told_with_what_can(
    arguments: str, problem: str, tmp_path: Path
) -> None:
    assert run(arguments, tmp_path) == (2, "", f"e2e-run: {problem}\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("list --timings t.json .", "--timings has no effect without --shard"),
        ("list --timings t.json --shard 1/2 .", ""),
        (
            "--retries 1 --repeat 2 .",
            "--retries has no effect with --repeat: an example passes when all of them do",
        ),
        ("--retries 1 --repeat 1 .", ""),
        ("--repeat 2 .", ""),
    ],
)
def test_flags_that_do_nothing_beside_the_others_are_told_of(
    arguments: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "e2e-run.toml").write_text('retries = 1\ntimings = "t.json"\n')
    (tmp_path / "t.json").write_text('{"a.py": 1}')
    (tmp_path / "a.py").write_text("print(1)")
    code, stdout, stderr = run(arguments, tmp_path)
    assert code == 0
    warnings = [line for line in (stdout + stderr).splitlines() if line.startswith("warning: ")]
    assert warnings == ([f"warning: {told}"] if told else [])
