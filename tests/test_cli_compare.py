"""``e2e-run compare`` as people and jobs call it."""

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import past_runs
import pytest
import report_history
from click.testing import CliRunner, Result
from harness import Project, project
from past_runs import record, result, run_id

from e2e_runner.cli.compare import compare_command
from e2e_runner.errors import E2ERunError
from e2e_runner.report.json_report import render_json
from e2e_runner.state import RunState

ORDERS, USERS = "examples/orders.py", "examples/users.py"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project without a history, and go there."""
    monkeypatch.chdir(tmp_path)
    for name in (*(name for name in os.environ if name.startswith("E2E_RUN")), "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "e2e-run.toml").touch()
    return tmp_path


def remember(root: Path, number: int, letters: str, *, duration: float = 1.0) -> None:
    """Add a run to the history: a letter for each of the two examples."""
    results = [
        result(letter, path=path, duration=duration)
        for letter, path in zip(letters, (ORDERS, USERS), strict=True)
    ]
    record(root / ".e2e-run", number, results)


def report(file: Path, letters: str) -> str:
    """Have the reporter write such a run."""
    results = [
        result(letter, path=path) for letter, path in zip(letters, (ORDERS, USERS), strict=True)
    ]
    state = RunState()
    for event in report_history.history(results, run=past_runs.info(0)):
        state.apply(event)
    file.write_text("".join(render_json(state)))
    return file.name


def compare(*args: str) -> Result:
    done = CliRunner().invoke(compare_command, args)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def complaint(*args: str) -> E2ERunError:
    with pytest.raises(E2ERunError) as caught:
        compare(*args)
    return caught.value


def documented(*args: str) -> dict[str, Any]:
    shape: dict[str, Any] = json.loads(compare(*args, "--json").stdout)
    return shape


def ids(*args: str) -> tuple[str, str]:
    """Tell which runs were compared."""
    shape = documented(*args)
    return shape["before"]["id"], shape["after"]["id"]


# --- which runs ----------------------------------------------------------------------------------


@pytest.fixture
def ran(root: Path) -> Path:
    """Let the project have three runs behind it."""
    for number, letters in enumerate(("pp", "pf", "fp")):
        remember(root, number, letters)
    return root


@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize(
    ("args", "numbers"),
    [
        ((), (1, 2)),
        (("last~2",), (0, 2)),
        (("last",), (1, 2)),
        ((run_id(2),), (1, 2)),
        (("last", "last"), (2, 2)),
        (("last~2", "last~1"), (0, 1)),
        (("last", "last~2"), (2, 0)),
        ((run_id(0), run_id(1)), (0, 1)),
        (("20260131-120001", "last"), (1, 2)),
    ],
)
def test_runs_are_found_in_the_history(args: tuple[str, ...], numbers: tuple[int, int]) -> None:
    assert ids(*args) == tuple(map(run_id, numbers))


def test_a_run_and_a_report(ran: Path) -> None:
    name = report(ran / "other.json", "tt")
    shape = documented(name, "last")
    assert (shape["before"]["file"], shape["after"]["file"]) == (name, None)
    assert [each["path"] for each in shape["fixed"]] == [USERS]
    assert [each["path"] for each in shape["still_failing"]] == [ORDERS]


def test_reports_need_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report(tmp_path / "a.json", "pp")
    (tmp_path / "sub").mkdir()
    report(tmp_path / "sub" / "b", "pf")
    assert compare("a.json", "sub/b").exit_code == 1
    shutil.move("sub/b", "b")
    done = compare("a.json", "b")
    assert done.exit_code == 1
    assert "Newly failing (1)" in done.stdout
    assert not (tmp_path / ".e2e-run").exists()


@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("last~7", "There is no run 'last~7' in the history."),
        ("nonsense", "There is no run 'nonsense' in the history."),
        ("", "There is no run '' in the history."),
        ("\udcff", r"There is no run '\\udcff' in the history."),
        ("2026", "'2026' is the beginning of 3 runs."),
        ("missing.json", "The report missing.json cannot be read: No such file or directory"),
        ("./", "The report ./ cannot be read: Is a directory"),
    ],
)
def test_a_run_that_is_none(name: str, said: str) -> None:
    error = complaint(name)
    assert error.exit_code == 2
    assert error.message == said
    assert error.remedy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "bad.json is empty"),
        ("{", "bad.json is no JSON, or was cut off: "),
        ('{"schema": "e2e-run/7"}', 'bad.json has the schema "e2e-run/7" of another version; '),
        ('{"schema": "e2e-run/1", "examples": [{"path": "a"}]}', "bad.json has in examples[0] "),
    ],
)
def test_a_report_that_is_none(root: Path, text: str, said: str) -> None:
    report(root / "good.json", "pp")
    (root / "bad.json").write_text(text)
    for args in (("bad.json", "good.json"), ("good.json", "bad.json")):
        error = complaint(*args)
        assert error.exit_code == 2
        assert error.message.startswith(said)
        assert error.remedy == "name a report that `--report json=PATH` wrote"


def test_no_two_runs_yet(root: Path) -> None:
    for number in range(2):
        error = complaint()
        assert error.exit_code == 4
        assert error.message == "There are no two runs to compare yet"
        remember(root, number, "pp")
        if not number:
            assert complaint("last").message == error.message
    assert compare().exit_code == 0


def test_a_third_run_is_one_too_many() -> None:
    assert compare("a", "b", "c").exit_code == 2


# --- what changed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [("pp", "pp", 0), ("pp", "pf", 1), ("ff", "ff", 0), ("ff", "pp", 0), ("pp", "!~", 0)],
)
def test_the_exit_code_is_1_when_something_is_newly_failing(
    root: Path, before: str, after: str, code: int
) -> None:
    remember(root, 0, before)
    remember(root, 1, after)
    assert compare().exit_code == code
    done = compare("--json")
    assert done.exit_code == code
    assert json.loads(done.stdout)["exit_code"] == code


def test_strict_projects_fail_of_leaks(root: Path) -> None:
    remember(root, 0, "pp")
    remember(root, 1, "!~")
    (root / "e2e-run.toml").write_text("strict = true\n")
    assert compare().exit_code == 1


def test_the_page(root: Path) -> None:
    remember(root, 0, "pf")
    remember(root, 1, "fp")
    lines = compare().stdout.splitlines()
    assert lines[0].split() == ["Before", "After", "Change"]
    assert [*lines[2].split()] == ["Run", run_id(0), run_id(1)]
    assert lines[-8:] == [
        "Newly failing (1)",
        "  ✗ failed   examples/orders.py  (was passed)",
        "             assertion: exit code 1",
        "",
        "Fixed (1)",
        "  ✓ passed   examples/users.py  (was failed)",
        "",
        "1 newly failing, 1 fixed",
    ]


def test_what_varies_anyway_is_not_slower(root: Path) -> None:
    for number, seconds in enumerate((1.0, 1.0, 1.0, 1.0, 1.0, 2.0)):
        remember(root, number, "pp", duration=seconds)
    assert [each["path"] for each in documented()["slower"]] == [ORDERS, USERS]
    for number, seconds in enumerate((1.0, 2.2, 1.0, 2.1, 1.0, 2.0), start=6):
        remember(root, number, "pp", duration=seconds)
    shape = documented()
    assert shape["after"]["totals"] == {"passed": 2}
    assert shape["slower"] == []


# --- histories that are not to be had ------------------------------------------------------------


def test_a_damaged_history(ran: Path) -> None:
    for file in ran.glob(".e2e-run/history.db*"):
        file.write_bytes(b"nonsense" * 1000)
    error = complaint()
    assert error.exit_code == 3
    assert "is damaged" in error.message
    report(ran / "a.json", "pp")
    assert complaint("a.json").exit_code == 3
    done = compare("a.json", "a.json")
    assert done.exit_code == 0
    assert done.stderr.startswith("warning: The history ")
    assert "Nothing is newly failing" in done.stdout


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        yield


def test_a_history_that_another_process_holds(ran: Path) -> None:
    with locked(ran / ".e2e-run" / "history.db"):
        error = complaint()
    assert error.exit_code == 3
    assert "is locked by another process" in error.message


# --- the real thing ------------------------------------------------------------------------------


@pytest.fixture
def made() -> Iterator[Project]:
    with project() as made:
        yield made


def test_real_runs_and_their_reports(made: Project) -> None:
    made.write("examples/steady.py", "print('ok')\n")
    breaks = made.write("examples/breaks.py", "print('ok')\n")
    made.run("--report", "json=before.json")
    breaks.write_text("raise SystemExit(3)\n")
    made.write("examples/new.py", "print('ok')\n")
    made.run("--report", "json=after.json")
    for args in ((), ("before.json", "after.json"), ("last~1", "after.json")):
        with made.start("compare", *args) as process:
            stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (1, "")
        assert "  ✗ failed   examples/breaks.py  (was passed)" in stdout
        assert "             exit: exit code 3" in stdout
        assert "Only in the second (1): new.py" in stdout
        assert stdout.splitlines()[-1].startswith("1 newly failing")
