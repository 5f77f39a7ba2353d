import time

import hypothesis
from hypothesis import given
from hypothesis import strategies as st
from report_history import RUN, history, play, started

from e2e_runner.events import (
    AttemptFinished,
    ExampleFinished,
    ExampleStarted,
    Interrupted,
    OutputWritten,
    Phase,
    PhaseChanged,
    RunFinished,
    StepFinished,
    StepStarted,
    Warned,
)
from e2e_runner.model import Result, Status
from e2e_runner.state import OpenStep, Running, RunState


def test_an_example_from_start_to_verdict() -> None:
    result = Result(path="a.py", status=Status.PASSED, attempts=1)
    state = RunState()
    state.apply(started([result]))
    assert (state.run, state.selected, state.done) == (RUN, 1, 0)

    state.apply(ExampleStarted(at=1.0, path="a.py", limit=60.0))
    assert state.running == {
        "a.py": Running(path="a.py", since=1.0, limit=60.0, phase_since=1.0),
    }
    state.apply(PhaseChanged(at=2.5, path="a.py", phase=Phase.WAITING_FOR_PORT, detail="port 8000"))
    assert state.running["a.py"] == Running(
        path="a.py",
        since=1.0,
        limit=60.0,
        phase=Phase.WAITING_FOR_PORT,
        phase_since=2.5,
        detail="port 8000",
    )
    state.apply(OutputWritten(at=2.6, path="a.py", text="hello"))
    state.apply(ExampleFinished(at=3.0, result=result))
    assert state.running == {}
    assert state.results == {"a.py": result}
    assert (state.done, state.counts[Status.PASSED], state.now) == (1, 1, 3.0)


def test_earlier_attempts_that_were_not_ok_are_kept_the_last_few_of_them() -> None:
    state = RunState()
    state.apply(started([Result(path="a.py", status=Status.PASSED)]))

    def attempt(number: int, status: Status) -> AttemptFinished:
        state.apply(ExampleStarted(at=number, path="a.py", limit=60.0, attempt=number))
        assert state.running["a.py"].attempt == number
        result = Result(path="a.py", status=status, attempts=1)
        event = AttemptFinished(at=number, number=number, result=result, again="once more")
        state.apply(event)
        assert state.running == {}
        return event

    assert state.failed_attempts("a.py") == ()
    attempt(1, Status.PASSED)
    attempt(2, Status.LEAKED)
    first = attempt(3, Status.FAILED)
    assert state.failed_attempts("a.py") == (first,)
    others = [attempt(number, Status.TIMEOUT) for number in range(4, 1000)]
    assert state.failed_attempts("a.py") == tuple(others[-5:])
    assert (state.done, state.results) == (0, {})


def test_the_innermost_step_is_the_one_that_began_last_and_is_open() -> None:
    state = RunState()
    state.apply(ExampleStarted(at=1.0, path="a.py", limit=60.0))

    def begin(at: float, step: int) -> None:
        state.apply(StepStarted(at=at, path="a.py", step=step, title=f"step {step}"))

    def finish(at: float, step: int) -> None:
        event = StepFinished(at=at, path="a.py", step=step, title=f"step {step}", duration=1.0)
        state.apply(event)

    def innermost() -> OpenStep | None:
        return state.running["a.py"].step

    assert innermost() is None
    begin(2.0, 0)
    begin(3.0, 1)
    begin(4.0, 2)
    assert innermost() == OpenStep(step=2, title="step 2", since=4.0)
    finish(5.0, 1)
    assert innermost() == OpenStep(step=2, title="step 2", since=4.0)
    finish(6.0, 2)
    assert innermost() == OpenStep(step=0, title="step 0", since=2.0)
    state.apply(PhaseChanged(at=6.5, path="a.py", phase=Phase.STOPPING))
    assert state.running["a.py"].steps == (OpenStep(step=0, title="step 0", since=2.0),)
    finish(7.0, 0)
    finish(7.0, 5)
    assert innermost() is None
    state.apply(StepStarted(at=8.0, path="gone.py", step=0, title="x"))
    assert set(state.running) == {"a.py"}


def test_deselected_examples_are_skipped_from_the_start() -> None:
    state = RunState()
    state.apply(started([], deselected={"b.py": "tag websocket"}))
    assert state.results["b.py"] == Result(
        path="b.py", status=Status.SKIPPED, reason="tag websocket", tags=("slow",)
    )
    assert (state.selected, state.done, state.counts[Status.SKIPPED]) == (0, 0, 1)


def test_a_second_result_replaces_the_first() -> None:
    state = RunState()
    state.apply(started([], deselected={"b.py": "tag websocket"}))
    again = Result(path="b.py", status=Status.SKIPPED, reason="tag websocket")
    state.apply(ExampleFinished(at=1.0, result=again))
    assert state.counts[Status.SKIPPED] == 1
    assert state.results == {"b.py": again}


def test_warnings_interruptions_and_the_end() -> None:
    state = RunState()
    warned = Warned(at=1.0, message="port 8000 is taken")
    interrupted = Interrupted(at=2.0, signal="SIGINT", count=1)
    finished = RunFinished(at=3.0, exit_code=130, interrupted=True)
    for event in (warned, ExampleStarted(at=1.0, path="a", limit=1.0), interrupted, finished):
        state.apply(event)
    assert state.warnings == [warned]
    assert state.interruptions == [interrupted]
    assert state.finished == finished
    assert state.running == {}


def test_a_phase_of_something_that_is_over_is_ignored() -> None:
    state = RunState()
    state.apply(PhaseChanged(at=1.0, path="a.py", phase=Phase.KILLING))
    assert state.running == {}


@hypothesis.settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(list(Status)))))
def test_counts_always_add_up_to_the_results(finished: list[tuple[str, Status]]) -> None:
    state = RunState()
    for path, status in finished:
        state.apply(ExampleFinished(at=0.0, result=Result(path=path, status=status)))
        statuses = [result.status for result in state.results.values()]
        assert dict(state.counts) == {status: statuses.count(status) for status in Status}


def test_ten_thousand_examples_cost_little() -> None:
    results = [
        Result(path=f"examples/{n}.py", status=Status.PASSED, attempts=1) for n in range(10_000)
    ]
    events = history(results)
    begun = time.process_time()
    state = play(events, [])
    assert time.process_time() - begun < 2
    assert state.counts[Status.PASSED] == 10_000
