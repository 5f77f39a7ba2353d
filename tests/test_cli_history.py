"""``e2e-run history`` as people and jobs call it."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from harness import Outcome, Project, project
from past_runs import record, result, run_id

from e2e_runner.cli.history_ import history_command
from e2e_runner.errors import E2ERunError

NAMES = ["examples/orders.py", "examples/users.py", "examples/users_bulk.py"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project with examples and no history, and go there."""
    monkeypatch.chdir(tmp_path)
    for name in (*(name for name in os.environ if name.startswith("E2E_RUN")), "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "e2e-run.toml").touch()
    (tmp_path / "examples").mkdir()
    for name in NAMES:
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def ran(root: Path) -> Path:
    """Let that project have four runs behind it: what each example came to is a letter a run."""
    verdicts = {NAMES[0]: "pppf", NAMES[1]: "pfpf", NAMES[2]: "pppp", "examples/gone.py": "ffff"}
    for number in range(4):
        results = [result(letters[number], path=path) for path, letters in verdicts.items()]
        record(root / ".e2e-run", number, results, exit_code=1)
    return root


def history(*args: str) -> Result:
    done = CliRunner().invoke(history_command, args)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def complaint(*args: str) -> E2ERunError:
    with pytest.raises(E2ERunError) as caught:
        history(*args)
    return caught.value


def documented(*args: str) -> dict[str, Any]:
    shape: dict[str, Any] = json.loads(history(*args, "--json").stdout)
    return shape


# --- all examples --------------------------------------------------------------------------------


@pytest.mark.usefixtures("ran")
def test_all_examples() -> None:
    lines = history().stdout.splitlines()
    assert lines[0].startswith("3 examples, 4 runs, the last ")
    assert lines[2:] == [
        "Example                 Runs  Not ok   Time  Last             Verdicts",
        "──────────────────────  ────  ──────  ─────  ───────────────  ────────",
        "Not ok (2)",
        "examples/orders.py         4     25%  1.00s  ✗ failed         ···✗",
        "examples/users.py          4     50%  1.00s  ✗ failed, flaky  ·✗·✗",
        "Steady (1)",
        "examples/users_bulk.py     4      0%  1.00s  ✓ passed x4      ····",
        "",
        "· ok  ✗ failed  (the newest at the right)",
        "x3 says that the last three verdicts are the same",
        "Not listed, as the file is gone (1): examples/gone.py",
    ]


@pytest.mark.usefixtures("ran")
def test_limit_counts_verdicts() -> None:
    shape = documented("--limit", "3")
    assert {each["path"]: (each["runs"], each["not_ok"]) for each in shape["examples"]} == {
        NAMES[0]: (3, 1),
        NAMES[1]: (3, 2),
        NAMES[2]: (3, 0),
        "examples/gone.py": (3, 3),
    }


def test_runs_of_a_few_examples_leave_the_others_alone(root: Path) -> None:
    for number in range(30):
        path = NAMES[0] if number == 0 else NAMES[1]
        record(root / ".e2e-run", number, [result("f", path=path)])
    assert [each["runs"] for each in documented("--limit", "5")["examples"]] == [5, 1]


@pytest.mark.usefixtures("ran")
def test_json_tells_of_all() -> None:
    shape = documented()
    assert (shape["schema"], shape["runs"]) == ("e2e-run-history/1", 4)
    present = {each["path"]: each["present"] for each in shape["examples"]}
    assert present == {**dict.fromkeys(NAMES, True), "examples/gone.py": False}
    assert "results" not in shape


def test_strict_projects_count_leaks(root: Path) -> None:
    record(root / ".e2e-run", 0, [result("!")])
    assert documented()["examples"][0]["attention"] == "none"
    (root / "e2e-run.toml").write_text("strict = true\n")
    assert documented()["examples"][0]["attention"] == "failing"


def test_it_follows_the_width_and_the_colours_asked_for(
    ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b" not in history().stdout
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[2m···\x1b[0m\x1b[1;31m✗\x1b[0m" in history().stdout
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("COLUMNS", "200")
    long = f"examples/{'long' * 20}.py"
    (ran / long).touch()
    record(ran / ".e2e-run", 9, [result("p", path=long)])
    assert long in history().stdout


# --- one example ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize(
    "words", ["examples/orders.py", "./examples/orders.py", "orders", "ORD", "orders.py"]
)
def test_one_example(words: str) -> None:
    lines = history(words).stdout.splitlines()
    assert lines[0] == "examples/orders.py"
    assert lines[1].startswith("  Failed in the last run, ")
    assert [line.split()[0] for line in lines if line.startswith("2026")] == [
        run_id(number) for number in (3, 2, 1, 0)
    ]
    assert "    assertion: exit code 1" in lines or lines[-4].endswith("assertion: exit code 1")


def test_an_example_is_named_as_from_where_one_is(
    ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ran / "examples")
    assert history("users.py").stdout.startswith("examples/users.py\n")
    assert history(str(ran / NAMES[2])).stdout.startswith("examples/users_bulk.py\n")


@pytest.mark.usefixtures("ran")
def test_an_example_whose_file_is_gone_is_still_told_of() -> None:
    assert history("gone").stdout.startswith("examples/gone.py\n")
    assert documented("gone")["examples"][0]["present"] is False


@pytest.mark.usefixtures("ran")
def test_json_of_one_example_has_its_results() -> None:
    shape = documented("orders", "--limit", "2")
    assert [each["path"] for each in shape["examples"]] == [NAMES[0]]
    assert [(each["run"], each["status"]) for each in shape["results"]] == [
        (run_id(3), "failed"),
        (run_id(2), "passed"),
    ]


def test_an_example_without_a_verdict(root: Path) -> None:
    record(root / ".e2e-run", 0, [result("n"), result("p", path=NAMES[1])])
    assert "  It never came to a verdict" in history("orders").stdout
    assert "Without a verdict so far (1): examples/orders.py" in history().stdout
    assert documented("orders")["examples"] == []


@pytest.mark.usefixtures("ran")
def test_words_that_fit_several_examples() -> None:
    error = complaint("user")
    assert error.exit_code == 2
    assert str(error) == (
        "'user' fits 2 examples\n"
        "  examples/users.py\n"
        "  examples/users_bulk.py\n"
        "To fix this: name more of the path"
    )


@pytest.mark.usefixtures("ran")
def test_words_that_fit_none() -> None:
    error = complaint("oders.py")
    assert error.exit_code == 2
    assert str(error) == (
        "No example of the history is 'oders.py'\n"
        "  it knows examples/orders.py\n"
        "To fix this: `e2e-run history` lists those that it knows"
    )


def test_very_many_that_fit_are_cut(root: Path) -> None:
    record(root / ".e2e-run", 0, [result("p", path=f"examples/e{n}.py") for n in range(30)])
    error = complaint("examples/e")
    assert len(error.facts) == 11
    assert error.facts[-1] == "and 20 more"


# --- histories that are not to be had ------------------------------------------------------------


def test_no_history(root: Path) -> None:
    error = complaint()
    assert error.exit_code == 4
    assert str(error) == (
        f"There is no history of {root} yet\nTo fix this: run its examples: each run adds to it"
    )
    assert complaint("orders", "--json").exit_code == 4


def _garbage(file: Path) -> None:
    file.write_bytes(b"nonsense" * 1000)


def _torn(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(5000)


def _foreign(file: Path) -> None:
    file.unlink()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE tax (year)")


def _newer(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_garbage, "is damaged"),
        (_torn, "is damaged"),
        (_foreign, "is damaged: it is a database of another kind"),
        (_newer, "was written by a newer version of e2e-run"),
        (_folder, "cannot be used: it is a folder"),
    ],
)
def test_a_history_that_cannot_be_read(ran: Path, spoil: Any, said: str) -> None:
    file = ran / ".e2e-run" / "history.db"
    for beside in ran.glob(".e2e-run/history.db-*"):
        beside.unlink()
    spoil(file)
    for args in ((), ("orders",), ("--json",)):
        error = complaint(*args)
        assert error.exit_code == 3
        assert str(file) in error.message
        assert said in error.message
        assert error.remedy
    assert file.exists()  # to read it changes nothing


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
    assert history().exit_code == 0


# --- the real thing ------------------------------------------------------------------------------


@pytest.fixture
def made() -> Iterator[Project]:
    with project() as made:
        made.write("examples/passes.py", "print('ok')\n")
        # Its verdict changes from run to run.
        made.write(
            "examples/turns.py",
            "import pathlib, sys\n"
            "flag = pathlib.Path(__file__).with_name('flag')\n"
            "if flag.exists():\n    flag.unlink()\n    sys.exit(3)\n"
            "flag.touch()\n",
        )
        yield made


def call(made: Project, args: Sequence[str]) -> Outcome:
    with made.start(*args) as process:
        stdout, stderr = process.communicate(timeout=60)
    return Outcome(code=process.returncode, stdout=stdout, stderr=stderr)


def test_real_runs_are_remembered(made: Project) -> None:
    assert call(made, ["history"]).code == 4
    for _ in range(4):
        made.run()
    done = call(made, ["history"])
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith("2 examples, 4 runs, the last ")
    turns = next(line for line in done.stdout.splitlines() if "turns.py" in line)
    assert turns.endswith("·✗·✗")
    assert "✗ failed, flaky" in turns
    told = call(made, ["history", "turns", "--limit", "1"]).stdout
    assert "exit: exit code 3" in told


def test_a_damaged_history_is_told_without_a_traceback(made: Project) -> None:
    made.write(".e2e-run/history.db", "nonsense" * 1000)
    done = call(made, ["history"])
    assert (done.code, done.stdout) == (3, "")
    assert done.stderr.startswith("e2e-run: The history ")
    assert "Traceback" not in done.stderr


def test_a_reader_who_goes_is_no_error(made: Project) -> None:
    made.run()
    read, write = os.pipe()
    os.close(read)
    with made.start("history", stdout=write) as process:
        os.close(write)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
