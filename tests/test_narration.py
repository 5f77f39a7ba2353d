from collections.abc import Sequence

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_history import RUN, started

from e2e_runner.events import (
    ExampleStarted,
    MetricReported,
    StepFinished,
    StepStarted,
)
from e2e_runner.model import Metric, Step, StepOutcome
from e2e_runner.narration import MOST_METRICS, MOST_STEPS, Narration
from e2e_runner.records import (
    MetricTold,
    Record,
    SectionBegan,
    StepBegan,
    StepEnded,
    SummaryTold,
)
from e2e_runner.state import RunState

OK, FAILED, UNFINISHED = StepOutcome.OK, StepOutcome.FAILED, StepOutcome.UNFINISHED
START = 1000.0  # on the clock of the records


def began(at: float, step: int, title: str, within: int | None = None) -> StepBegan:
    return StepBegan(at=START + at, step=step, title=title, within=within)


def ended(at: float, step: int, error: str = "") -> StepEnded:
    return StepEnded(at=START + at, step=step, error=error)


def cancelled(at: float, step: int) -> StepEnded:
    return StepEnded(at=START + at, step=step, error="cancelled", cancelled=True)


def told(*records: Record, now: float = 100.0) -> Narration:
    narration = Narration("a.py", started=START)
    narration.add(records, now=now, at=now)
    return narration


def place(narration: Narration, elapsed: float = 100.0) -> str | None:
    step = narration.place(elapsed)
    return None if step is None else step.title


def test_a_story_of_sections_steps_metrics_and_a_summary() -> None:
    narration = told(
        SectionBegan(at=START, title="Users"),
        began(1, 1, "log in"),
        ended(1.5, 1),
        SectionBegan(at=START + 2, title="Orders"),
        began(2, 2, "place orders"),
        began(2.25, 3, "order 1", within=2),
        ended(2.5, 3, "refused"),
        ended(3, 2),
        MetricTold(at=START + 3, name="orders", value=4),
        MetricTold(at=START + 3, name="done", value=True),
        MetricTold(at=START + 3, name="orders", value=5),
        SummaryTold(at=START + 3, text="not yet"),
        SummaryTold(at=START + 3, text="All orders placed"),
    )
    story = narration.end(4.0, ended_well=True)
    assert story.steps == (
        Step(title="log in", started=1, duration=0.5, outcome=OK, section="Users"),
        Step(title="place orders", started=2, duration=1, outcome=OK, section="Orders"),
        Step(
            title="order 1",
            started=2.25,
            duration=0.25,
            outcome=FAILED,
            depth=1,
            section="Orders",
            error="refused",
        ),
    )
    assert story.metrics == (Metric(name="orders", value=5), Metric(name="done", value=True))
    assert (story.summary, story.happened_in) == ("All orders placed", None)
    assert narration.notes() == []


def test_events_say_the_same_at_the_time_of_the_run() -> None:
    narration = Narration("a.py", started=START)
    events = narration.add(
        [
            SectionBegan(at=START, title="Users"),
            MetricTold(at=START, name="n", value=1),
            began(1, 1, "log in"),
            MetricTold(at=START, name="n", value=2),
            began(1, 2, "ask", within=1),
            ended(1.5, 2, "401"),
        ],
        now=2.0,
        at=7.5,
    )
    assert events == [
        StepStarted(at=7.5, path="a.py", step=0, title="log in", section="Users"),
        StepStarted(at=7.5, path="a.py", step=1, title="ask", depth=1, section="Users"),
        StepFinished(at=7.5, path="a.py", step=1, title="ask", depth=1, duration=0.5, error="401"),
        MetricReported(at=7.5, path="a.py", metric=Metric(name="n", value=2)),
    ]
    again = narration.add([MetricTold(at=START, name="n", value=2)], now=2.0, at=8)
    assert again == [], "it is known"


@pytest.mark.parametrize(
    ("records", "where"),
    [
        ([], None),
        ([began(1, 1, "a"), ended(2, 1)], None),
        ([began(1, 1, "a")], "a"),
        ([began(1, 1, "a"), began(2, 2, "b", within=1)], "b"),
        ([began(1, 1, "a"), began(2, 2, "b", within=1), ended(3, 2)], "a"),
        ([began(1, 1, "a"), began(2, 2, "b", within=1), ended(3, 2, "no")], "a"),
        # Around each other: the innermost, which ends first when an exception passes.
        ([began(1, 1, "a"), began(2, 2, "b", 1), ended(3, 2, "no"), ended(3, 1, "no")], "b"),
        ([began(1, 1, "a"), ended(3, 1, "no")], "a"),
        ([began(1, 1, "a"), ended(3, 1, "no"), began(4, 2, "b"), ended(5, 2)], None),
        ([began(1, 1, "a"), ended(3, 1, "no"), began(4, 2, "b"), ended(5, 2, "no")], "b"),
        ([began(1, 1, "a"), ended(3, 1, "no"), began(4, 2, "b")], "b"),
        # Beside each other: the first that failed, as the others are often cancelled for it.
        ([began(1, 1, "a"), began(1, 2, "b"), ended(3, 2, "no"), ended(3, 1, "cancelled")], "b"),
        ([began(1, 1, "a"), began(1, 2, "b"), ended(3, 2, "no"), cancelled(3, 1)], "b"),
        # What is cancelled for a failure is not where that came from, however deep it is.
        (
            [
                *(
                    began(1, 1, "all"),
                    began(1, 2, "a", 1),
                    began(1, 3, "b", 1),
                    began(2, 4, "c", 3),
                ),
                *(ended(3, 2, "no"), cancelled(4, 4), cancelled(4, 3), ended(5, 1, "no")),
            ],
            "a",
        ),
        # A time limit around a step cancels that first.
        ([began(1, 1, "a"), began(2, 2, "b", 1), cancelled(3, 2), ended(3, 1, "Timeout")], "b"),
        ([began(1, 1, "a"), cancelled(3, 1)], "a"),
        ([began(1, 1, "a"), cancelled(3, 1), began(4, 2, "b"), ended(5, 2)], None),
        ([began(1, 1, "a"), began(1, 2, "b"), ended(3, 2)], "a"),
        # One number for every step: the next one ends the one before.
        ([began(1, 1, "a"), began(2, 1, "b")], "b"),
        ([began(1, 1, "a"), began(2, 1, "b"), ended(3, 1)], None),
        ([ended(1, 1, "no")], None),
        ([began(1, 1, "a", within=1)], "a"),
        ([began(1, 1, "  ")], "untitled"),
    ],
)
def test_where_it_failed(records: Sequence[Record], where: str | None) -> None:
    narration = told(*records)
    assert place(narration) == where
    story = narration.end(100.0, ended_well=False)
    if where is None:
        assert story.happened_in is None
    else:
        assert story.happened_in is not None
        assert story.steps[story.happened_in].title == where
    assert told(*records).end(100.0, ended_well=True).happened_in is None


def test_a_step_that_was_cancelled_did_not_fail() -> None:
    narration = told(began(1, 1, "a"))
    (event,) = narration.add([cancelled(2, 1)], now=100.0, at=2)
    assert event == StepFinished(
        at=2, path="a.py", step=0, title="a", duration=1.0, error="cancelled", cancelled=True
    )
    story = narration.end(100.0, ended_well=True)
    assert [(step.outcome, step.error) for step in story.steps] == [
        (StepOutcome.UNFINISHED, "cancelled")
    ]


def test_what_is_told_while_it_is_being_stopped_changes_nothing_of_where_that_was() -> None:
    narration = told(began(1, 1, "orders"), began(2, 2, "wait", within=1))
    narration.stop(50.0)
    narration.add(
        [
            ended(51, 2, "SystemExit: 143"),
            ended(51, 1, "SystemExit: 143"),
            began(51, 3, "clean up"),
            ended(52, 3, "no"),
            began(52, 4, "clean more"),
        ],
        now=53.0,
        at=53.0,
    )
    assert narration.place(60.0) == Step(
        title="wait", started=2, duration=48, outcome=UNFINISHED, depth=1
    )
    story = narration.end(60.0, ended_well=False)
    assert story.happened_in == 1
    assert [(step.title, step.duration, step.outcome) for step in story.steps] == [
        ("orders", 49, UNFINISHED),
        ("wait", 48, UNFINISHED),
        ("clean up", 1, FAILED),
        ("clean more", 8, UNFINISHED),
    ]


def test_what_is_stopped_between_two_steps_happened_in_none() -> None:
    narration = told(began(1, 1, "a"), ended(2, 1, "no"))
    narration.stop(50.0)
    narration.add([began(51, 3, "clean up")], now=52.0, at=52.0)
    assert narration.place(60.0) is None
    assert narration.end(60.0, ended_well=False).happened_in is None


def test_what_was_not_ended_lasted_to_the_end() -> None:
    records = [began(1, 1, "a"), began(2, 2, "b", within=1)]
    well = told(*records).end(10.0, ended_well=True)
    assert [(step.duration, step.outcome) for step in well.steps] == [(9, OK), (8, OK)]
    badly = told(*records).end(10.0, ended_well=False)
    assert [step.outcome for step in badly.steps] == [UNFINISHED, UNFINISHED]


def test_times_are_taken_within_the_life_of_the_script() -> None:
    narration = told(
        began(-500, 1, "before"),
        ended(-400, 1),
        began(5, 2, "backwards"),
        ended(4, 2),
        began(500, 3, "after"),
        ended(900, 3),
        now=20.0,
    )
    story = narration.end(10.0, ended_well=True)
    assert [(step.started, step.duration) for step in story.steps] == [(0, 0), (5, 0), (10, 0)]


def test_steps_and_metrics_beyond_the_most_are_counted() -> None:
    narration = Narration("a.py", started=START)
    events = narration.add(
        (
            record
            for n in range(MOST_STEPS + 500)
            for record in (began(1, n, f"step {n}"), ended(1, n))
        ),
        now=2.0,
        at=2.0,
    )
    assert len(events) == 2 * MOST_STEPS
    for n in range(MOST_METRICS + 3):
        narration.add([MetricTold(at=START, name=f"m{n}", value=n)], now=2.0, at=2.0)
    narration.add([began(3, 7, "one more")], now=4.0, at=4.0)
    assert place(narration, 9.0) == "one more"
    assert narration.notes() == [
        "told of 1,501 steps: the first 1,000 are kept",
        "told more than 200 metrics: 3 values of others are left out",
    ]
    story = narration.end(9.0, ended_well=False)
    assert len(story.steps) == MOST_STEPS + 1
    assert story.happened_in == MOST_STEPS
    assert story.steps[-1].title == "one more"
    assert len(story.metrics) == MOST_METRICS


def test_steps_that_never_end_take_no_more_than_their_share() -> None:
    narration = told(*(began(1, n, "open", within=n - 1 if n else None) for n in range(5000)))
    story = narration.end(9.0, ended_well=False)
    assert len(story.steps) == MOST_STEPS
    assert story.happened_in == MOST_STEPS - 1


_IDS = st.integers(0, 4)
_TIMES = st.floats(START - 5, START + 30)
_WORDS = st.sampled_from(["", "a", "b", "c\n\x00"])
_RECORDS = st.one_of(
    st.builds(SectionBegan, at=_TIMES, title=_WORDS),
    st.builds(StepBegan, at=_TIMES, step=_IDS, title=_WORDS, within=st.none() | _IDS),
    st.builds(StepEnded, at=_TIMES, step=_IDS, error=_WORDS),
    st.builds(MetricTold, at=_TIMES, name=st.sampled_from(["x", "y"]), value=st.integers()),
    st.builds(SummaryTold, at=_TIMES, text=_WORDS),
)


@hypothesis.settings(deadline=None)
@given(
    batches=st.lists(st.lists(_RECORDS, max_size=8), max_size=6),
    stop=st.none() | st.integers(0, 5),
    elapsed=st.floats(0, 20),
    ended_well=st.booleans(),
)
def test_any_records_add_up_to_something_consistent(
    batches: list[list[Record]], stop: int | None, elapsed: float, *, ended_well: bool
) -> None:
    narration = Narration("a.py", started=START)
    state = RunState()
    state.apply(started([], run=RUN))
    state.apply(ExampleStarted(at=0.0, path="a.py", limit=60.0))
    was_in: Step | None = None
    begun = 0
    for number, records in enumerate(batches):
        now = elapsed * number / len(batches)
        for event in narration.add(records, now=now, at=now):
            begun += isinstance(event, StepStarted)
            before = len(state.running["a.py"].steps)
            state.apply(event)
            if isinstance(event, StepFinished):
                assert len(state.running["a.py"].steps) == before - 1, "it had begun"
                assert event.duration >= 0
        if stop is None or number < stop:
            # What the live view shows is what a timeout would name.
            shown, innermost = state.running["a.py"].step, narration.place(now)
            if shown is not None:
                assert innermost is not None
                assert shown.title == innermost.title
        if number == stop:
            narration.stop(now)
            was_in = narration.place(now)
    place_in = narration.place(elapsed)
    story = narration.end(elapsed, ended_well=ended_well)
    assert len(story.steps) == begun
    for step in story.steps:
        assert 0 <= step.started <= elapsed
        assert 0 <= step.duration <= elapsed - step.started + 1e-9
        assert (step.outcome is FAILED) == bool(step.error)
        assert step.title.strip()
    assert not ended_well or stop is not None or UNFINISHED not in {s.outcome for s in story.steps}
    if stop is not None and stop < len(batches):
        assert place_in == was_in
    if ended_well or place_in is None:
        assert story.happened_in is None
    else:
        assert story.happened_in is not None
        assert story.steps[story.happened_in].title == place_in.title
    assert len({metric.name for metric in story.metrics}) == len(story.metrics)
