"""What runs with --last-failed, --shard and --timings, and what the history then holds."""

import json
import re
from collections.abc import Iterator

import pytest
from harness import Outcome, Project, project, wait_until

from e2e_runner.history import History
from e2e_runner.history_file import NAME
from e2e_runner.model import NetworkMode, Status

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
    assert len({re.findall("basis ([0-9a-f]+)", " ".join(lines))[0] for lines in said}) == 1


def test_shards_are_of_equal_count_until_the_whole_suite_ran(made: Project) -> None:
    done = shards(made, 2)
    assert [sorted(ran(each)) for each in done] == [["a", "c"], ["b", "d"]]
    assert all("of equal count" in each.stdout for each in done)
    with History.open(made.root / ".e2e-run") as known:
        assert [run.shard.partition(":")[0] for run in known.runs()] == ["shard 2/2", "shard 1/2"]

    made.run()
    done = shards(made, 3)  # the first ones change nothing about the cut of the last
    assert sorted(name for each in done for name in ran(each)) == list(NAMES)
    assert all("balanced by the history" in each.stdout for each in done)


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
    assert "; last failed: 2 of 2 examples" in done[0].stdout


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
