import itertools
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from harness import wait_until
from report_history import CUT, RUN, history, started

from e2e_runner.errors import UsageError
from e2e_runner.events import AttemptFinished, Event, RunFinished
from e2e_runner.history import History
from e2e_runner.history_file import NAME, open_to_write
from e2e_runner.model import (
    NetworkMode,
    NetworkTier,
    Past,
    Result,
    ResultRecord,
    RunInfo,
    RunRecord,
    Status,
)
from e2e_runner.recorder import Recorder

ISOLATED, HOST = NetworkMode.ISOLATED, NetworkMode.HOST


def no_warning(message: str) -> None:
    pytest.fail(f"warned: {message}")


def run_of(number: int) -> RunInfo:
    return replace(RUN, id=f"2026010{number // 10}-00000{number % 10}", started=1000.0 + number)


def record(
    state: Path, events: Iterable[Event], *, most_runs: int = 1000, most_results: int = 1000
) -> None:
    recorder = Recorder(state, warn=no_warning, most_runs=most_runs, most_results=most_results)
    for event in events:
        recorder.handle(event)
    recorder.close()


def record_runs(state: Path, *runs: Sequence[Result]) -> None:
    """Record a run for each of `runs`, after those that are there."""
    with History.open(state) as known:
        first = len(known.runs())
    for number, results in enumerate(runs, start=first):
        record(state, history(results, run=run_of(number)))


def result(path: str = "a.py", status: Status = Status.PASSED, **more: object) -> Result:
    made = Result(path=path, status=status, attempts=1, network=HOST)
    return replace(made, **more)  # type: ignore[arg-type]


def past_after(state: Path, *results: Result) -> Past:
    """Give the past of a.py after a run with each of these results, in this order."""
    record_runs(state, *([each] for each in results))
    with History.open(state) as known:
        return known.past()["a.py"]


# --- what is kept --------------------------------------------------------------------------------


def test_a_project_without_a_history_has_an_empty_one(tmp_path: Path) -> None:
    for state in (tmp_path, tmp_path / "missing"):
        with History.open(state) as known:
            assert (known.runs(), known.results(), known.paths()) == ([], [], [])
            assert (known.past(), known.past(["a.py"]), known.outstanding()) == ({}, {}, set())
    assert list(tmp_path.iterdir()) == []


def test_a_run_and_its_verdicts_are_kept(tmp_path: Path) -> None:
    run = replace(RUN, network=NetworkTier.USER_NAMESPACE)
    passed = result(
        reason="fine",
        duration=1.5,
        cpu=0.5,
        max_rss=7,
        attempts=2,
        repeats=3,
        repeats_passed=3,
        network=ISOLATED,
        listened=(8001, 8000),
    )
    failed = result("b.py", Status.FAILED, cause="exit", reason="exit code 1")
    events = history([passed, failed], run=run, exit_code=1, interrupted=True)
    begin = started([passed, failed], run=run)
    events[0] = replace(begin, plan=replace(begin.plan, cut=CUT))
    record(tmp_path, events)

    with History.open(tmp_path) as known:
        assert known.runs() == [
            RunRecord(
                id="run-1",
                started=RUN.started,
                duration=2.0,
                exit_code=1,
                interrupted=True,
                jobs=2,
                network="user-namespace",
                processes="cgroup",
                python=RUN.python,
                version="0.1.0",
                shard="1/2",
            )
        ]
        assert known.results() == [
            ResultRecord(
                run="run-1",
                started=RUN.started,
                path="b.py",
                status=Status.FAILED,
                cause="exit",
                reason="exit code 1",
                network=HOST,
            ),
            ResultRecord(
                run="run-1",
                started=RUN.started,
                path="a.py",
                status=Status.PASSED,
                reason="fine",
                duration=1.5,
                cpu=0.5,
                max_rss=7,
                attempts=2,
                repeats=3,
                repeats_passed=3,
                network=ISOLATED,
                listened=(8000, 8001),
            ),
        ]


def test_a_run_that_starts_nothing_leaves_no_trace(tmp_path: Path) -> None:
    run = replace(RUN, processes=None)
    record(tmp_path, history([result(status=Status.NOT_RUN)], run=run, exit_code=3))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_broke_off_has_no_end(tmp_path: Path) -> None:
    record(tmp_path, [*history([result()])[:-1]])
    with History.open(tmp_path) as known:
        assert [(run.duration, run.exit_code) for run in known.runs()] == [(None, None)]
        assert [each.path for each in known.results()] == ["a.py"]


def test_a_verdict_is_there_while_the_run_goes_on(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, warn=no_warning)
    try:
        for event in history([result()])[:-1]:
            recorder.handle(event)

        def known() -> list[ResultRecord]:
            with History.open(tmp_path) as found:
                return found.results()

        wait_until(known, "the verdict was written")
    finally:
        recorder.close()


@pytest.mark.parametrize("path", ["é/ü.py", "a\udcff.py", "a'b\n;.py", "\x1b[31m.py"])
def test_any_name_of_a_file_can_be_kept(tmp_path: Path, path: str) -> None:
    failed = result(path, Status.FAILED, reason="\udcff\x00 it", listened=(1,))
    record_runs(tmp_path, [failed, result("b.py")])
    with History.open(tmp_path) as known:
        assert known.paths() == sorted([path, "b.py"])
        assert known.past([path])[path].ports == (1,)
        assert [each.path for each in known.results(path=path)] == [path]
        assert known.results(path=path)[0].reason == "\\udcff\x00 it"
        assert known.outstanding() == {path}


def test_a_long_reason_is_cut(tmp_path: Path) -> None:
    record_runs(tmp_path, [result(reason="x" * 10_000)])
    with History.open(tmp_path) as known:
        assert known.results()[0].reason == "x" * 500


def test_results_are_asked_for_by_example_run_and_number(tmp_path: Path) -> None:
    record_runs(tmp_path, *([result("a.py"), result("b.py")] for _ in range(3)))
    with History.open(tmp_path) as known:
        assert len(known.results()) == 6
        assert [each.run for each in known.results(path="b.py", limit=2)] == [
            run_of(2).id,
            run_of(1).id,
        ]
        assert [each.path for each in known.results(run=run_of(0).id)] == ["b.py", "a.py"]
        assert len(known.results(run=run_of(0).id, path="a.py")) == 1
        assert [run.id for run in known.runs(2)] == [run_of(2).id, run_of(1).id]


def test_what_a_newer_version_wrote_between_is_passed_over(tmp_path: Path) -> None:
    record_runs(tmp_path, [result("a.py"), result("b.py")])
    with sqlite3.connect(tmp_path / NAME) as connection:
        connection.execute("UPDATE results SET status = 'quantum' WHERE path = 'a.py'")
        connection.execute(
            "UPDATE results SET network = 'moon', status = 'failed' WHERE path = 'b.py'"
        )
    connection.close()
    with History.open(tmp_path) as known:
        assert known.results() == []
        assert known.past() == {}
        assert known.outstanding() == {"b.py"}


# --- bounds --------------------------------------------------------------------------------------


def test_what_nobody_thought_of_is_one_warning(tmp_path: Path) -> None:
    told: list[str] = []
    recorder = Recorder(tmp_path, warn=told.append)
    for event in history([result(max_rss=2**64)]):  # more than a column can hold
        recorder.handle(event)
    (warning,) = told
    assert warning.startswith(f"the history {tmp_path / NAME} is not complete: OverflowError: ")


def test_the_oldest_runs_are_removed(tmp_path: Path) -> None:
    for number in range(5):
        record(tmp_path, history([result()], run=run_of(number)), most_runs=3)
    with History.open(tmp_path) as known:
        assert [run.id for run in known.runs()] == [run_of(n).id for n in (4, 3, 2)]
        assert {each.run for each in known.results()} == {run.id for run in known.runs()}


def test_only_so_many_verdicts_are_kept_in_whole_runs(tmp_path: Path) -> None:
    suite = [result(f"{n}.py") for n in range(4)]
    for number in range(5):
        record(tmp_path, history(suite, run=run_of(number)), most_results=10)
    with History.open(tmp_path) as known:
        assert [run.id for run in known.runs()] == [run_of(4).id, run_of(3).id]
        assert len(known.results()) == 8


def test_the_newest_run_stays_however_large(tmp_path: Path) -> None:
    record_runs(tmp_path, [result()])
    record(
        tmp_path,
        history([result(f"{n}.py") for n in range(20)], run=run_of(7)),
        most_results=5,
        most_runs=1,
    )
    with History.open(tmp_path) as known:
        assert [run.id for run in known.runs()] == [run_of(7).id]
        assert len(known.results()) == 20


def test_a_large_history_stays_small_on_the_disk(tmp_path: Path) -> None:
    suite = [result(f"examples/folder/{n}.py", reason="exit code 1" * 4) for n in range(500)]
    sizes = []
    for number in range(8):
        record(tmp_path, history(suite, run=run_of(number)), most_results=1000)
        sizes.append((tmp_path / NAME).stat().st_size)
    assert sizes[-1] == sizes[4]  # what was removed makes room
    assert sizes[-1] < 400_000


# --- what it tells -------------------------------------------------------------------------------


def test_the_duration_is_the_median_of_the_last(tmp_path: Path) -> None:
    durations = (90.0, 90.0, 1.0, 2.0, 90.0, 3.0, 2.5)
    assert past_after(tmp_path, *(result(duration=each) for each in durations)).duration == 2.5


def test_an_example_that_was_stopped_does_not_tell_how_long_it_takes(tmp_path: Path) -> None:
    stopped = result(status=Status.TIMEOUT, duration=60.0)
    past = past_after(tmp_path, result(duration=2.0), stopped, stopped)
    assert past == Past(duration=2.0, failed=True, observed=True)
    assert past_after(tmp_path, *([stopped] * 5)).duration == 60.0


def test_what_was_not_started_tells_nothing_but_that_it_failed(tmp_path: Path) -> None:
    blocked = result(status=Status.BLOCKED, attempts=0, duration=0.0, network=None)
    assert past_after(tmp_path, blocked) == Past(failed=True)
    past = past_after(tmp_path, result(duration=2.0), blocked)
    assert (past.duration, past.failed) == (2.0, True)


def test_skipped_and_not_run_are_no_verdicts(tmp_path: Path) -> None:
    nothing = [
        result(status=status, attempts=0, network=None)
        for status in (Status.SKIPPED, Status.NOT_RUN)
    ]
    failed = result(status=Status.FAILED, duration=3.0)
    past = past_after(tmp_path, failed, *(nothing * 4))
    assert (past.duration, past.failed) == (3.0, True)
    with History.open(tmp_path) as known:
        assert known.outstanding() == {"a.py"}


def test_ports_add_up_over_attempts_and_runs(tmp_path: Path) -> None:
    failed = result(status=Status.FAILED, listened=(8000,))
    past = past_after(tmp_path, failed)
    assert (past.ports, past.observed) == ((8000,), False)  # it may have failed before it listened
    attempt = AttemptFinished(at=0.5, number=1, result=result(listened=(8002,)), again="retry 1")
    flaky = result(status=Status.FLAKY, listened=(8001,))
    events = history([flaky], run=run_of(50))
    record(tmp_path, [events[0], attempt, *events[1:]])
    with History.open(tmp_path) as known:
        past = known.past()["a.py"]
        assert (past.ports, past.observed) == ((8000, 8001, 8002), True)
    past = past_after(tmp_path, *[result()] * 5)
    assert (past.ports, past.observed) == ((), True)  # it has changed


def test_runs_of_shards_may_be_left_out(tmp_path: Path) -> None:
    record_runs(tmp_path, [result(duration=1.0)])
    events = history([result(duration=9.0), result("b.py")], run=run_of(7))
    begin = started([result(), result("b.py")], run=run_of(7))
    events[0] = replace(begin, plan=replace(begin.plan, cut=CUT))
    record(tmp_path, events)
    with History.open(tmp_path) as known:
        assert {path: past.duration for path, past in known.past().items()} == {
            "a.py": 9.0,
            "b.py": 0.0,
        }
        whole = known.past(whole_runs=True)
        assert {path: past.duration for path, past in whole.items()} == {"a.py": 1.0}


def test_the_largest_memory_of_the_last_is_told(tmp_path: Path) -> None:
    sizes = (9, None, 3, 7, 5, 1)
    assert past_after(tmp_path, *(result(max_rss=each) for each in sizes)).max_rss == 7


def test_outstanding_adds_up_over_partial_runs(tmp_path: Path) -> None:
    failed = (Status.FAILED, Status.TIMEOUT, Status.BLOCKED)
    suite = [result(f"{n}.py", status) for n, status in enumerate(failed)]
    record_runs(tmp_path, suite, [result("9.py", Status.FAILED)], [result("0.py")])
    with History.open(tmp_path) as known:
        assert known.outstanding() == {"1.py", "2.py", "9.py"}


def test_strict_counts_leaked_and_flaky_as_outstanding(tmp_path: Path) -> None:
    record_runs(
        tmp_path, [result("a.py", Status.LEAKED), result("b.py", Status.FLAKY), result("c.py")]
    )
    with History.open(tmp_path) as known:
        assert known.outstanding() == set()
        assert known.outstanding(strict=True) == {"a.py", "b.py"}


# --- the network learned -------------------------------------------------------------------------

SUSPECT = result(status=Status.FAILED, network=ISOLATED, isolation_suspect="no route to 1.2.3.4")


def record_fallback(state: Path, last: Result, run: RunInfo) -> None:
    """Record an attempt that failed in a network of its own, and the verdict on the host network."""
    events = history([last], run=run)
    attempt = AttemptFinished(at=0.5, number=1, result=SUSPECT, again="on the host network")
    record(state, [*events[:-2], attempt, *events[-2:]])


def learned(state: Path) -> NetworkMode | None:
    with History.open(state) as known:
        return known.past()["a.py"].network


def test_the_host_network_is_learned_and_forgotten(tmp_path: Path) -> None:
    record_fallback(tmp_path, result(), run_of(0))
    assert learned(tmp_path) is HOST
    record_runs(tmp_path, *([result()] for _ in range(6)))  # runs that follow what was learned
    assert learned(tmp_path) is HOST
    record_runs(tmp_path, [replace(SUSPECT, isolation_suspect="")])
    assert learned(tmp_path) is HOST
    record_runs(tmp_path, [result(network=ISOLATED)])
    assert learned(tmp_path) is None
    record_fallback(tmp_path, result(status=Status.LEAKED), run_of(9))
    assert learned(tmp_path) is HOST


def test_nothing_is_learned_where_there_was_no_network_to_be_had(tmp_path: Path) -> None:
    events = history([result()], run=run_of(0))
    none = replace(SUSPECT, status=Status.BLOCKED, network=None)
    attempt = AttemptFinished(at=0.5, number=1, result=none, again="on the host network")
    record(tmp_path, [*events[:-2], attempt, *events[-2:]])
    assert learned(tmp_path) is None


def test_the_host_network_is_not_learned_where_it_was_no_help(tmp_path: Path) -> None:
    record_fallback(tmp_path, result(status=Status.FAILED), run_of(0))
    assert learned(tmp_path) is None
    record_runs(tmp_path, [SUSPECT], [result(network=ISOLATED)], [result()])
    assert learned(tmp_path) is None


def test_one_attempt_alone_is_no_verdict_on_another_example(tmp_path: Path) -> None:
    events = history([result(), result("b.py")])
    attempt = AttemptFinished(at=0.5, number=1, result=SUSPECT, again="on the host network")
    record(tmp_path, [events[0], attempt, *events[1:]])
    with History.open(tmp_path) as known:
        assert {path: past.network for path, past in known.past().items()} == {
            "a.py": HOST,
            "b.py": None,
        }


# --- runs by name --------------------------------------------------------------------------------


@pytest.fixture
def three_runs(tmp_path: Path) -> Path:
    for run_id in ("20260101-1-aa", "20260102-1-ab", "20260102-1-abc"):
        record(tmp_path, history([result()], run=replace(RUN, id=run_id)))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("last", "20260102-1-abc"),
        ("last~0", "20260102-1-abc"),
        ("last~1", "20260102-1-ab"),
        ("last~2", "20260101-1-aa"),
        ("20260101", "20260101-1-aa"),
        ("20260102-1-ab", "20260102-1-ab"),  # a whole id, though another begins with it
        ("20260102-1-abc", "20260102-1-abc"),
    ],
)
def test_a_run_is_found_by_name(three_runs: Path, name: str, wanted: str) -> None:
    with History.open(three_runs) as known:
        assert known.find_run(name).id == wanted


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("last~3", "There is no run 'last~3' in the history.\n  it has 3 runs; the newest are:\n"),
        ("2026%", "There is no run '2026%' in the history."),
        ("", "There is no run '' in the history."),
        ("last~-1", "There is no run 'last~-1'"),
        ("x\n", "There is no run 'x\\\\n'"),
        ("\udcff", "There is no run "),  # an argument that is no UTF-8
        (
            "2026",
            "'2026' is the beginning of 3 runs.\n  20260102-1-abc\n  20260102-1-ab\n  20260101-1-aa\n",
        ),
    ],
)
def test_a_name_that_is_no_run_is_told(three_runs: Path, name: str, message: str) -> None:
    with History.open(three_runs) as known, pytest.raises(UsageError) as caught:
        known.find_run(name)
    assert str(caught.value).startswith(message)


def test_an_empty_history_has_no_last_run(tmp_path: Path) -> None:
    with History.open(tmp_path) as known, pytest.raises(UsageError, match="run `e2e-run` first"):
        known.find_run("last")


# --- at once -------------------------------------------------------------------------------------


def test_a_history_that_other_runs_make_just_now_is_not_taken_for_damaged(tmp_path: Path) -> None:
    together = threading.Barrier(6)

    def make(state_dir: Path) -> tuple[int, int]:
        together.wait(timeout=30)
        opened = open_to_write(state_dir)
        opened.connection.close()
        return opened.identity

    with ThreadPoolExecutor(together.parties) as threads:
        for number in range(40):
            state_dir = tmp_path / str(number)
            state_dir.mkdir()
            made = set(threads.map(make, [state_dir] * together.parties))
            assert len(made) == 1


def test_runs_at_the_same_time_all_write(tmp_path: Path) -> None:
    runs = [
        (
            Recorder(tmp_path, warn=no_warning),
            history([result(f"{n}.py") for n in range(30)], run=run_of(number)),
        )
        for number in range(6)
    ]
    for step in itertools.zip_longest(*(events for _, events in runs)):
        for (recorder, _), event in zip(runs, step, strict=True):
            if not isinstance(event, RunFinished):
                recorder.handle(event)
    for recorder, events in runs:
        recorder.handle(events[-1])
    with History.open(tmp_path) as known:
        assert len(known.runs()) == 6
        assert all(run.exit_code == 0 for run in known.runs())
        assert len(known.results()) == 180
