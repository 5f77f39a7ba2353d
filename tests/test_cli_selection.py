"""What runs with --last-failed, --shard and --timings, and what the history then holds."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence

import pytest
from harness import Outcome, Project, project, wait_until
from report_history import history

from e2e_runner.history import History
from e2e_runner.history_file import NAME
from e2e_runner.model import NetworkMode, Result, Status
from e2e_runner.recorder import Recorder

# Fails as long as a file is there.
MAY_FAIL = """
import pathlib, sys
sys.exit(pathlib.Path(__file__).with_suffix(".broken").exists())
"""
NAMES = ("a", "b", "c", "d")


@pytest.fixture
def made() -> Iterator[Project]:
    with project() as made:
        for name in NAMES:
            made.write(f"examples/{name}.py", MAY_FAIL)
        yield made


def break_(made: Project, *names: str) -> None:
    for name in NAMES:
        (made.root / f"examples/{name}.broken").unlink(missing_ok=True)
    for name in names:
        made.write(f"examples/{name}.broken", "")


def ran(done: Outcome) -> dict[str, str]:
    """Give the statuses of what was selected, by the name of the example."""
    return {path[len("examples/") : -len(".py")]: status for path, status in done.statuses.items()}


def header(done: Outcome) -> list[str]:
    """Give the indented lines below the first."""
    lines = done.stdout.splitlines()[1:]
    return [line.strip() for line in lines[: lines.index("")] if line.startswith("  ")]


# --- --last-failed --------------------------------------------------------------------------------


def test_last_failed_runs_what_is_outstanding_over_several_runs(made: Project) -> None:
    break_(made, "a", "c")
    assert ran(made.run("-k", "a.py")) == {"a": "failed"} | dict.fromkeys("bcd", "skipped")
    assert ran(made.run("-k", "c.py"))["c"] == "failed"

    done = made.run("--last-failed")
    assert done.code == 1
    assert ran(done) == {"a": "failed", "c": "failed"}
    assert "last failed: 2 of 4 examples" in done.stdout
    assert "skipped" not in done.stdout

    break_(made, "c")
    assert ran(made.run("--last-failed")) == {"a": "passed", "c": "failed"}
    assert ran(made.run("--last-failed", "--skip", "websocket")) == {"c": "failed"}
    break_(made)
    assert made.run("--last-failed").code == 0

    done = made.run("--last-failed")
    assert done.code == 4
    assert done.stdout == ""
    assert re.fullmatch(
        r"e2e-run: Nothing is outstanding: the last verdict on 2 selected examples was ok\.\n"
        r"  last run: \d{8}-\d{6}-\w{6}, \d+s ago, exit code 0\n"
        r"  without a verdict yet: examples/b\.py, examples/d\.py\n"
        r"To fix this: run without --last-failed\n",
        done.stderr,
    ), done.stderr


def test_without_a_history_nothing_is_known_to_have_failed(made: Project) -> None:
    done = made.run("--last-failed")
    assert done.code == 4
    assert done.stderr == (
        "e2e-run: There is no history yet, so it is not known what failed the last time.\n"
        f"  looked for {made.root / '.e2e-run' / NAME}\n"
        "To fix this: run without --last-failed first\n"
    )
    assert not (made.root / ".e2e-run").exists()


def test_what_was_removed_is_not_outstanding_until_it_is_back(made: Project) -> None:
    break_(made, "a", "b")
    made.run()
    file = made.root / "examples/b.py"
    source = file.read_text("utf-8")
    file.unlink()
    assert ran(made.run("--last-failed")) == {"a": "failed"}

    break_(made, "b")
    assert ran(made.run("--last-failed")) == {"a": "passed"}
    done = made.run("--last-failed")
    assert done.code == 4
    assert "Nothing is outstanding: the last verdict on 3 selected examples was ok." in done.stderr
    assert "examples/b.py" not in done.stderr

    made.write("examples/b.py", source)  # as another branch may have it
    elsewhere = made.run("--last-failed", "-k", "c.py")
    assert "outstanding, but not selected: examples/b.py" in elsewhere.stderr
    assert ran(made.run("--last-failed")) == {"b": "failed"}


def test_what_became_a_helper_is_not_outstanding(made: Project) -> None:
    break_(made, "b")
    made.run()
    made.write("examples/b.py", "VALUE = 1\n")
    made.write("examples/a.py", "import b\nassert b.VALUE\n")
    done = made.run("--last-failed")
    assert done.code == 4
    assert "examples/b.py" not in done.stderr


def test_list_shows_what_failed_the_last_time(made: Project) -> None:
    break_(made, "b")
    made.run()
    with made.start("list", "--last-failed", "--json") as listing:
        document = json.loads(listing.communicate(timeout=60)[0])
    assert [each["path"] for each in document["examples"]] == ["examples/b.py"]
    assert document["deselected"] == []


def test_strict_runs_decide_what_is_outstanding_for_strict_ones(made: Project) -> None:
    made.write("examples/a.py", "import subprocess\nsubprocess.Popen(['sleep', '100'])\n")
    assert ran(made.run())["a"] == "leaked"
    assert made.run("--last-failed").code == 4
    assert ran(made.run("--last-failed", "--strict")) == {"a": "leaked"}


# --- shards ---------------------------------------------------------------------------------------


def shards(made: Project, count: int, *args: str) -> list[Outcome]:
    return [made.run("--shard", f"{n}/{count}", *args) for n in range(1, count + 1)]


def cut_of(done: Outcome) -> dict[str, object]:
    """Give what the report says of the shard."""
    shard: dict[str, object] = done.report["run"]["shard"]
    assert shard is not None
    return shard


def remember(made: Project, seconds: Mapping[str, float]) -> None:
    """Have a history tell how long examples took."""
    state_dir = made.root / ".e2e-run"
    state_dir.mkdir()
    recorder = Recorder(state_dir, warn=pytest.fail)
    for event in history(
        [
            Result(path=f"examples/{name}.py", status=Status.PASSED, duration=each, attempts=1)
            for name, each in seconds.items()
        ]
    ):
        recorder.handle(event)


@pytest.fixture
def machines() -> Iterator[Sequence[Project]]:
    """Have three with the same suite: one knows all of it, one nothing, one a part."""
    known: list[dict[str, float]] = [{"a": 1, "b": 1, "c": 1, "d": 9}, {}, {"c": 5, "a": 1}]
    with contextlib.ExitStack() as stack:
        found = []
        for seconds in known:
            machine = stack.enter_context(project())
            for name in NAMES:
                machine.write(f"examples/{name}.py", MAY_FAIL)
            if seconds:
                remember(machine, seconds)
            found.append(machine)
        yield found


def run_matrix(
    machines: Sequence[Project], environment: Mapping[str, str], *args: str
) -> list[Outcome]:
    """Run one shard on each machine."""
    return [
        machine.run("--shard", f"{number}/{len(machines)}", *args, env=environment)
        for number, machine in enumerate(machines, start=1)
    ]


def test_shards_run_each_example_once(made: Project) -> None:
    report = {
        "schema": "e2e-run/1",
        "examples": [
            {"path": f"examples/{name}.py", "attempts": 1, "duration": seconds}
            for name, seconds in zip(NAMES, (1.0, 2.0, 9.0, 1.5), strict=True)
        ],
    }
    made.write("before.json", json.dumps(report))
    done = shards(made, 2, "--timings", "before.json")
    assert [ran(each) for each in done] == [{"c": "passed"}, dict.fromkeys("abd", "passed")]
    assert all(each.code == 0 for each in done)
    said = [header(each) for each in done]
    for number, (lines, count) in enumerate(zip(said, (1, 3), strict=True), start=1):
        assert re.search(
            rf"shard {number}/2: {count} of 4 examples, balanced by before\.json "
            r"\(basis [0-9a-f]{6}\)",
            " ".join(lines),
        )
    (basis,) = {re.findall("basis ([0-9a-f]+)", " ".join(lines))[0] for lines in said}
    assert [cut_of(each) for each in done] == [
        {"index": n, "count": 2, "basis": basis, "by": "timings"} for n in (1, 2)
    ]


def test_machines_of_a_ci_matrix_run_each_example_once_whatever_their_histories(
    machines: Sequence[Project],
) -> None:
    ran_in_ci = run_matrix(machines, {"CI": "true"})
    assert sorted(name for each in ran_in_ci for name in ran(each)) == list(NAMES)
    assert {cut_of(each)["by"] for each in ran_in_ci} == {"count"}
    assert len({cut_of(each)["basis"] for each in ran_in_ci}) == 1
    for each in ran_in_ci:
        assert each.code == 0
        assert (
            "of equal count (basis {}): histories in CI may differ; --timings FILE balances by time"
        ).format(cut_of(each)["basis"]) in " ".join(header(each))

    # Had each of them cut by its own history, it would have been otherwise.
    ran_by_history = run_matrix(machines, {})
    assert sorted(name for each in ran_by_history for name in ran(each)) != list(NAMES)
    assert len({cut_of(each)["basis"] for each in ran_by_history}) > 1


@pytest.mark.parametrize("variable", ["CI", "TF_BUILD", "BUILD_NUMBER"])
def test_list_knows_a_machine_of_ci_and_what_it_would_run(
    machines: Sequence[Project], variable: str
) -> None:
    told = []
    for number, machine in enumerate(machines, start=1):
        shard = f"{number}/{len(machines)}"
        with machine.start("list", "--shard", shard, "--json", env={variable: "17"}) as listing:
            told.append(json.loads(listing.communicate(timeout=60)[0]))
    assert sorted(each["path"] for one in told for each in one["examples"]) == [
        f"examples/{name}.py" for name in NAMES
    ]
    assert {one["shard"]["by"] for one in told} == {"count"}


def test_one_file_balances_the_shards_of_machines_with_other_histories(
    machines: Sequence[Project],
) -> None:
    seconds = dict(zip(NAMES, (1.0, 2.0, 9.0, 1.5), strict=True))
    table = json.dumps({f"examples/{name}.py": each for name, each in seconds.items()})
    for machine in machines:
        machine.write("timings.json", table)
    done = run_matrix(machines, {"CI": "true"}, "--timings", "timings.json")
    assert [sorted(ran(each)) for each in done] == [["c"], ["b"], ["a", "d"]]
    assert {cut_of(each)["by"] for each in done} == {"timings"}
    assert len({cut_of(each)["basis"] for each in done}) == 1


def test_shards_are_of_equal_count_until_the_whole_suite_ran(made: Project) -> None:
    done = shards(made, 2)
    assert [sorted(ran(each)) for each in done] == [["a", "c"], ["b", "d"]]
    assert all("of equal count" in each.stdout for each in done)
    with History.open(made.root / ".e2e-run") as known:
        assert [run.shard for run in known.runs()] == ["2/2", "1/2"]

    made.run()
    done = shards(made, 3)  # the first ones change nothing about the cut of the last
    assert sorted(name for each in done for name in ran(each)) == list(NAMES)
    assert all("balanced by the history" in each.stdout for each in done)
    assert [cut_of(each)["by"] for each in done] == ["history"] * 3


def test_a_shard_too_many_is_no_failure(made: Project) -> None:
    done = shards(made, 6)
    assert [each.code for each in done] == [0] * 6
    assert sorted(name for each in done for name in ran(each)) == list(NAMES)
    empty = [each for each in done if not ran(each)]
    assert len(empty) == 2
    for each in empty:
        assert "There are more shards than examples: none is in this one." in each.stdout
        assert each.report["run"]["exit_code"] == 0
    with made.start("list", "--shard", "6/6") as listing:
        listing.communicate(timeout=60)
    assert listing.returncode == 0


def test_a_shard_of_nothing_is_nothing(made: Project) -> None:
    assert made.run("--shard", "1/2", "-k", "zzz").code == 4


def test_each_example_is_in_one_shard_whatever_failed_where(made: Project) -> None:
    break_(made, "a", "b", "c")
    made.run()
    done = shards(made, 2, "--last-failed", "--timings", made.write("t.json", "{}").name)
    assert sorted(name for each in done for name in ran(each)) == ["a", "b", "c"]
    assert header(done[0])[-1] == "last failed: 2 of 2 examples"
    assert all(each.report["run"]["last_failed"] for each in done)


def test_nothing_outstanding_in_a_shard_is_no_failure(made: Project) -> None:
    break_(made, "a")
    made.run()
    args = ("--last-failed", "--timings", made.write("t.json", "{}").name)
    assert [sorted(ran(each)) for each in shards(made, 2, *args)] == [["a"], []]
    empty = made.run("--shard", "2/2", *args)
    assert empty.code == 0, empty.stderr
    assert "Nothing is outstanding in this shard." in empty.stdout
    assert "last failed: 0 of 2 examples" in empty.stdout
    with made.start("list", "--shard", "2/2", "--last-failed") as listing:
        listing.communicate(timeout=60)
    assert listing.returncode == 0


def test_timings_that_cannot_be_used_are_an_error(made: Project) -> None:
    done = made.run("--shard", "1/2", "--timings", "nowhere.json")
    assert done.code == 2
    assert "e2e-run: --timings " in done.stderr
    assert "nowhere.json: cannot be read: No such file or directory." in done.stderr
    made.write("t.toml", '"examples/x.py" = 1\n')
    done = made.run("--shard", "1/2", "--timings", "t.toml")
    assert done.code == 0
    assert "warning: --timings t.toml knows none of the 4 examples" in done.stdout


# --- what a run leaves in the history -------------------------------------------------------------


def test_a_run_is_in_the_history(made: Project) -> None:
    break_(made, "b")
    done = made.run("--network", "host", "-k", "b.py")
    with History.open(made.root / ".e2e-run") as known:
        (run,) = known.runs()
        (verdict,) = known.results()
    assert (run.id, run.exit_code, run.interrupted) == (done.report["run"]["id"], 1, False)
    assert run.duration == pytest.approx(done.report["run"]["duration"], abs=1e-3)
    told = done.examples["examples/b.py"]
    assert (verdict.path, verdict.status, verdict.cause) == (
        "examples/b.py",
        Status.FAILED,
        told["cause"],
    )
    assert verdict.duration == pytest.approx(told["duration"], abs=1e-3)
    assert (verdict.attempts, verdict.network) == (1, NetworkMode.HOST)


def test_an_interrupted_run_is_in_the_history(made: Project) -> None:
    made.write(
        "examples/b.py", "import pathlib, time\npathlib.Path('started').touch()\ntime.sleep(100)\n"
    )
    with made.running("--jobs", "1") as running:
        wait_until((made.root / "examples/started").exists, "the second example ran")
        running.process.terminate()
        assert running.outcome().code == 143
    with History.open(made.root / ".e2e-run") as known:
        (run,) = known.runs()
        verdicts = {each.path: each.status for each in known.results()}
        assert known.outstanding() == set()
    assert (run.exit_code, run.interrupted) == (143, True)
    assert verdicts == {
        "examples/a.py": Status.PASSED,
        "examples/b.py": Status.NOT_RUN,
        "examples/c.py": Status.NOT_RUN,
        "examples/d.py": Status.NOT_RUN,
    }


def test_a_run_with_nothing_to_do_leaves_no_trace(made: Project) -> None:
    assert made.run("-k", "zzz").code == 4
    assert not (made.root / ".e2e-run").exists()
