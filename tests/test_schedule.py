import heapq
import itertools
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.schedule import MEMORY_RESERVE, PATIENCE, Schedule, Task, port_lock

GIB = 1024**3


def task(key: str, duration: float | None = None, **more: Any) -> Task:
    return Task(key=key, duration=duration, **more)


def locked(key: str, locks: str, duration: float | None = None, **more: Any) -> Task:
    """Make a task whose locks are single letters."""
    return task(key, duration, locks=frozenset(locks), **more)


def start_all(schedule: Schedule, *, memory: int | None = None) -> list[str]:
    """Start what may start now."""
    keys = []
    while (found := schedule.next(memory=memory)) is not None:
        keys.append(found.key)
    return keys


def one_by_one(tasks: Iterable[Task]) -> list[str]:
    """Give the order in which tasks run with one job."""
    return [key for starts in by_turns(Schedule(tasks, jobs=1)) for key in starts]


def by_turns(schedule: Schedule) -> list[list[str]]:
    """Run to the end, where the one that was started first ends first; give what was started at once."""
    starts = [start_all(schedule)]
    while schedule.running:
        schedule.done(next(iter(schedule.running)))
        starts.append(start_all(schedule))
    assert not schedule.waiting
    return [each for each in starts if each]


def makespan(tasks: Iterable[Task], jobs: int) -> float:
    """Run to the end by a clock; give the time that it took."""
    schedule = Schedule(tasks, jobs=jobs)
    now, ends, count = 0.0, list[tuple[float, int, str]](), 0
    while schedule.waiting or schedule.running:
        while (found := schedule.next()) is not None:
            count += 1
            heapq.heappush(ends, (now + (found.duration or 0), count, found.key))
        now, _, key = heapq.heappop(ends)
        schedule.done(key)
    return now


def lower_bound(tasks: list[Task], jobs: int) -> float:
    """No schedule can be shorter: what runs alone, and the most pressing limit of the rest."""
    alone = [each for each in tasks if each.exclusive]
    rest = [each for each in tasks if not each.exclusive]
    names = {name for each in rest for name in each.locks}
    chains = [sum(each.duration or 0 for each in rest if name in each.locks) for name in names]
    area = sum((each.duration or 0) * min(each.weight, jobs) for each in rest)
    longest = max((each.duration or 0 for each in rest), default=0)
    return sum(each.duration or 0 for each in alone) + max([longest, area / jobs, *chains])


# --- the order -----------------------------------------------------------------------------------


def test_with_no_durations_the_given_order_is_kept() -> None:
    keys = [str(number) for number in random.Random(4).sample(range(1000), 1000)]  # noqa: S311 - no secret
    assert one_by_one(task(key) for key in keys) == keys


def test_with_one_job_locks_weights_and_exclusive_ones_change_nothing() -> None:
    tasks = [
        locked("a", "x"),
        task("b", exclusive=True),
        locked("c", "xy", weight=3),
        task("d"),
        locked("e", "x", exclusive=True),
    ]
    assert one_by_one(tasks) == ["a", "b", "c", "d", "e"]


def test_failed_ones_then_unknown_ones_then_the_longest() -> None:
    tasks = [
        *(
            task("short", 1.0),
            task("long", 9.0),
            task("new"),
            task("failed short", 1.0, failed=True),
        ),
        *(task("longer", 10.0), task("newer"), task("failed", 5.0, failed=True)),
        *(task("failed at once", failed=True), task("as long", 9.0)),
    ]
    assert one_by_one(tasks) == [
        *("failed at once", "failed", "failed short", "new", "newer"),
        *("longer", "long", "as long", "short"),
    ]


def test_a_chain_is_as_long_as_all_that_want_its_lock() -> None:
    tasks = [task("long", 5.0), task("middle", 3.5), *(locked(f"l{n}", "x", 2.0) for n in range(4))]
    schedule = Schedule(tasks, jobs=2)
    assert start_all(schedule) == ["l0", "long"]  # 8 seconds, 5 seconds
    schedule.done("l0")
    assert start_all(schedule) == ["l1"]  # 6 seconds still
    schedule.done("long")
    assert start_all(schedule) == ["middle"]
    schedule.done("l1")
    assert start_all(schedule) == ["l2"]


def test_a_chain_loses_its_place_as_it_becomes_shorter() -> None:
    tasks = [task("long", 5.0), *(locked(f"l{n}", "x", 3.0) for n in range(3)), task("last", 1.0)]
    schedule = Schedule(tasks, jobs=2)
    assert start_all(schedule) == ["l0", "long"]
    schedule.done("l0")
    schedule.add(task("longer", 7.0))
    assert start_all(schedule) == ["longer"]  # 6 seconds are left of the chain


def test_what_comes_in_later_makes_its_chain_longer() -> None:
    schedule = Schedule([task("first", 9.0), task("a", 5.0), locked("b", "x", 1.0)], jobs=2)
    schedule.next()
    schedule.add(locked("c", "xy", 6.0))
    assert start_all(schedule) == ["c"]
    schedule.done("first")
    assert start_all(schedule) == ["a"]


def test_exclusive_ones_come_last_and_alone() -> None:
    tasks = [
        *(task("alone", 99.0, exclusive=True), task("a", 1.0), task("new alone", exclusive=True)),
        *(task("b", 1.0), task("c", 1.0)),
    ]
    assert by_turns(Schedule(tasks, jobs=2)) == [["a", "b"], ["c"], ["new alone"], ["alone"]]


def test_exclusive_ones_that_failed_come_first() -> None:
    tasks = [
        *(task("a", failed=True), task("alone", failed=True, exclusive=True), task("b")),
        task("last", exclusive=True),
    ]
    assert by_turns(Schedule(tasks, jobs=2)) == [["alone"], ["a", "b"], ["last"]]


def test_an_exclusive_one_that_failed_and_comes_in_later_waits_for_nothing_new() -> None:
    schedule = Schedule((task(str(number)) for number in range(10)), jobs=2)
    assert start_all(schedule) == ["0", "1"]
    schedule.add(task("alone", failed=True, exclusive=True))
    schedule.done("1")
    assert start_all(schedule) == []
    schedule.done("0")
    assert start_all(schedule) == ["alone"]
    schedule.done("alone")
    assert start_all(schedule) == ["2", "3"]


def test_an_exclusive_one_waits_for_the_rest_of_a_chain() -> None:
    chain = [str(number) for number in range(3 * PATIENCE)]
    tasks = [task("alone", exclusive=True), *(locked(key, "x") for key in chain)]
    assert by_turns(Schedule(tasks, jobs=4)) == [*([key] for key in chain), ["alone"]]


# --- what may run side by side -------------------------------------------------------------------


def test_no_two_with_a_common_lock() -> None:
    tasks = [locked("a", "xy"), locked("b", "x"), locked("c", "yz"), locked("d", "z"), task("e")]
    assert by_turns(Schedule(tasks, jobs=8)) == [["a", "d", "e"], ["b"], ["c"]]


def test_a_port_is_a_lock() -> None:
    assert port_lock(8000) == "port:8000"


def test_companions_count() -> None:
    tasks = [task("a", weight=2), task("b", weight=2), task("c"), task("d")]
    schedule = Schedule(tasks, jobs=3)
    assert start_all(schedule) == ["a", "c"]
    schedule.done("c")
    assert start_all(schedule) == ["d"]
    schedule.done("a")
    assert start_all(schedule) == ["b"]


def test_one_that_is_heavier_than_all_jobs_runs_alone() -> None:
    tasks = [task("a"), task("heavy", weight=99), task("b")]
    assert by_turns(Schedule(tasks, jobs=4)) == [["a", "b"], ["heavy"]]


def test_the_same_locks_at_another_weight_are_the_same_locks() -> None:
    tasks = [locked("a", "x", weight=2), locked("b", "x"), locked("c", "x", weight=2)]
    assert by_turns(Schedule(tasks, jobs=4)) == [["a"], ["b"], ["c"]]


# --- nothing starves -----------------------------------------------------------------------------


def test_one_that_wants_two_locks_gets_them_though_they_never_are_free_together() -> None:
    schedule = Schedule([locked("a", "a")], jobs=3)
    [holder] = start_all(schedule)
    schedule.add(locked("both", "ab"))
    turns = 0
    for turns in range(1, PATIENCE + 2):
        assert start_all(schedule) == []
        schedule.add(locked(str(turns), "b" if turns % 2 else "a"))
        started = start_all(schedule)  # whenever one becomes free, the other is in use
        schedule.done(holder)
        if not started:
            break
        [holder] = started
    assert start_all(schedule) == ["both"]
    assert turns > 2


def test_a_heavy_one_gets_its_room_though_light_ones_would_always_fit() -> None:
    schedule = Schedule([task("0"), task("heavy", weight=2)], jobs=2)
    for number in range(PATIENCE):
        schedule.add(task(f"{number} more"))
    assert len(start_all(schedule)) == 2
    for _ in range(PATIENCE - 1):
        schedule.done(next(iter(schedule.running)))
        assert len(start_all(schedule)) == 1
    schedule.add(task("too late"))
    for expected in ([], ["heavy"], ["too late"]):
        schedule.done(next(iter(schedule.running)))
        assert start_all(schedule) == expected


def reserve_for(schedule: Schedule, late: Task) -> None:
    """Let a task in, and have it passed over too often."""
    schedule.add(late)
    assert schedule.next() is None
    group = schedule._groups[late.locks, late.weight, False]
    for _ in range(PATIENCE):
        schedule._pass_over(group)


def test_what_does_not_delay_the_one_that_is_reserved_for_goes_on() -> None:
    schedule = Schedule([locked("a", "x"), locked("b", "y", weight=2)], jobs=8)
    assert start_all(schedule) == ["a", "b"]
    reserve_for(schedule, locked("both", "xy"))
    schedule.add(locked("x", "x"))
    schedule.add(task("free"))
    schedule.done("a")
    assert start_all(schedule) == ["free"]  # x is free, and kept
    schedule.done("b")
    assert start_all(schedule) == ["both"]
    schedule.done("both")
    assert start_all(schedule) == ["x"]


def test_room_is_kept_for_a_heavy_one_that_waits_for_a_lock_too() -> None:
    schedule = Schedule([locked("a", "x"), task("b")], jobs=3)
    assert start_all(schedule) == ["a", "b"]
    reserve_for(schedule, locked("heavy", "x", weight=3))
    schedule.add(task("c"))
    assert start_all(schedule) == []
    schedule.done("b")
    assert start_all(schedule) == []
    schedule.done("a")
    assert start_all(schedule) == ["heavy"]


def test_those_that_are_reserved_for_have_their_turns() -> None:
    schedule = Schedule([locked("a", "x"), locked("b", "z")], jobs=8)
    assert start_all(schedule) == ["a", "b"]
    reserve_for(schedule, locked("first", "xy"))
    reserve_for(schedule, locked("second", "xz"))
    schedule.add(locked("x", "x"))
    schedule.done("a")
    assert start_all(schedule) == ["first"]
    schedule.done("first")
    assert start_all(schedule) == []  # x is free, and kept
    schedule.done("b")
    assert start_all(schedule) == ["second"]


# --- memory --------------------------------------------------------------------------------------


def test_nothing_starts_beside_others_where_memory_is_short() -> None:
    schedule = Schedule([task("a"), task("b"), task("c")], jobs=3)
    assert start_all(schedule, memory=MEMORY_RESERVE - 1) == ["a"]
    assert start_all(schedule, memory=MEMORY_RESERVE) == ["b", "c"]


def test_a_task_is_expected_to_take_half_as_much_again_as_it_did() -> None:
    schedule = Schedule([task("a"), task("b", memory=2 * GIB)], jobs=2)
    assert start_all(schedule, memory=3 * GIB - 1) == ["a"]
    assert start_all(schedule, memory=3 * GIB) == ["b"]


def test_what_was_just_started_has_not_taken_its_memory_yet() -> None:
    tasks = [task(key, memory=GIB) for key in "abcd"]
    schedule = Schedule(tasks, jobs=4)
    assert start_all(schedule, memory=3 * GIB) == ["a", "b"]
    schedule.done("a")
    assert start_all(schedule, memory=3 * GIB) == ["c", "d"]


def test_with_nothing_running_something_starts_whatever_memory_there_is() -> None:
    schedule = Schedule([task("a", memory=99 * GIB), task("b")], jobs=2)
    assert start_all(schedule, memory=0) == ["a"]
    schedule.done("a")
    assert start_all(schedule, memory=0) == ["b"]


# --- looking and leaving -------------------------------------------------------------------------


def test_what_waits_and_what_runs_can_be_seen() -> None:
    schedule = Schedule([task("a"), task("b", 1.0), task("c")], jobs=2)
    assert start_all(schedule) == ["a", "c"]
    assert list(schedule.running) == ["a", "c"]
    assert list(schedule.waiting) == ["b"]


def test_a_key_is_taken_once_at_a_time() -> None:
    schedule = Schedule([task("a"), task("b")], jobs=1)
    for key in ("a", "b"):
        with pytest.raises(ValueError, match=f"a task '{key}' waits or runs already"):
            schedule.add(task(key))
        schedule.next()
    schedule.done("a")
    schedule.add(task("a"))
    assert list(schedule.waiting) == ["b", "a"]
    with pytest.raises(KeyError):
        schedule.done("b")


def test_what_was_not_started_is_given_back_in_order() -> None:
    tasks = [task("short", 1.0), task("new"), task("alone", exclusive=True), task("long", 2.0)]
    schedule = Schedule([*tasks, locked("failed", "x", failed=True)], jobs=2)
    schedule.next()
    assert [each.key for each in schedule.remove_all()] == ["new", "long", "short", "alone"]
    assert not schedule.waiting
    assert schedule.next() is None
    schedule.add(locked("later", "x"))
    assert schedule.next() is None  # its lock is still in use
    schedule.done("failed")
    assert start_all(schedule) == ["later"]


def test_what_comes_next_can_be_looked_at() -> None:
    tasks = [task(str(number), float(number)) for number in range(20)]
    schedule = Schedule([*tasks, locked("x", "x", 30.0), locked("y", "x", 29.0)], jobs=1)
    assert [each.key for each in schedule.peek(4)] == ["x", "y", "19", "18"]
    assert len(schedule.waiting) == 22
    assert schedule.peek(0) == []
    assert len(schedule.peek(99)) == 22


# --- properties ----------------------------------------------------------------------------------


DURATIONS = st.one_of(st.none(), st.floats(0, 1000), st.integers(0, 3).map(float))


@st.composite
def suites(draw: st.DrawFn, *, most: int = 30) -> list[Task]:
    timed = draw(st.booleans())
    return [
        Task(
            key=str(number),
            duration=draw(DURATIONS) if timed else None,
            failed=draw(st.integers(0, 9)) == 0,
            weight=draw(st.sampled_from([1, 1, 1, 2, 3, 99])),
            locks=draw(st.frozensets(st.sampled_from("abcd"), max_size=3)),
            exclusive=draw(st.integers(0, 9)) == 0,
            memory=draw(st.sampled_from([0, 0, GIB])),
        )
        for number in range(draw(st.integers(0, most)))
    ]


def assert_safe(running: Iterable[Task], jobs: int) -> None:
    """Fail where two run side by side that must not."""
    now = list(running)
    names = [name for each in now for name in each.locks]
    assert len(names) == len(set(names)) or len(now) == 1
    assert sum(min(each.weight, jobs) for each in now) <= jobs
    assert len(now) == 1 or not any(each.exclusive for each in now)


@given(suite=suites(), later=suites(most=5), jobs=st.integers(1, 9), data=st.data())
def test_each_starts_once_and_none_where_it_must_not(
    suite: list[Task], later: list[Task], jobs: int, data: st.DataObject
) -> None:
    coming = [replace(each, key=f"later {each.key}") for each in later]
    known = {each.key: each for each in (*suite, *coming)}
    schedule = Schedule(suite, jobs=jobs)
    started: list[str] = []
    while schedule.waiting or schedule.running or coming:
        one_more = data.draw(st.booleans())
        if coming and one_more:
            schedule.add(coming.pop())
        memory = data.draw(st.sampled_from([None, None, 0, GIB, 8 * GIB]))
        soon = schedule.peek(3)
        assert len(soon) <= 3
        assert all(each.key in schedule.waiting for each in soon)
        while (found := schedule.next(memory=memory)) is not None:
            assert found is known[found.key]
            started.append(found.key)
            assert_safe(schedule.running.values(), jobs)
            if jobs > 1 and found.exclusive and not found.failed:
                assert all(e.exclusive and not e.failed for e in schedule.waiting.values())
        # Nothing waits where nothing runs, and no job is idle for nothing.
        assert schedule.running or not schedule.waiting
        if schedule.running:
            schedule.done(data.draw(st.sampled_from(sorted(schedule.running))))
    assert sorted(started) == sorted(known)


@given(suite=suites(), jobs=st.integers(1, 9), data=st.data())
def test_the_same_calls_give_the_same_answers(
    suite: list[Task], jobs: int, data: st.DataObject
) -> None:
    one, other = Schedule(suite, jobs=jobs), Schedule(suite, jobs=jobs)
    while one.waiting:
        found = one.next()
        assert other.next() is found
        if found is None:
            key = data.draw(st.sampled_from(sorted(one.running)))
            one.done(key)
            other.done(key)


@given(suite=suites(), jobs=st.integers(2, 9), data=st.data())
def test_a_light_one_without_locks_never_waits_where_there_is_room(
    suite: list[Task], jobs: int, data: st.DataObject
) -> None:
    light = [replace(each, weight=1, exclusive=False) for each in suite]
    schedule = Schedule(light, jobs=jobs)
    while schedule.waiting:
        start_all(schedule)
        free = [each for each in schedule.waiting.values() if not each.locks]
        assert not free or len(schedule.running) == jobs
        schedule.done(data.draw(st.sampled_from(sorted(schedule.running))))


@given(suite=suites(), jobs=st.integers(1, 9))
def test_what_is_left_is_given_in_the_order_of_one_job(suite: list[Task], jobs: int) -> None:
    plain = [replace(each, locks=frozenset(), weight=1, exclusive=False) for each in suite]
    left = Schedule(plain, jobs=jobs).remove_all()
    assert [each.key for each in left] == one_by_one(plain)
    assert Schedule(plain, jobs=jobs).peek(len(plain)) == left


@given(
    kinds=st.lists(
        st.tuples(st.frozensets(st.sampled_from("abc")), st.sampled_from([1, 1, 2, 3])),
        min_size=20,
        max_size=60,
    ),
    jobs=st.integers(2, 5),
    data=st.data(),
)
def test_the_first_in_order_starts_after_a_bounded_number_of_rounds(
    kinds: list[tuple[frozenset[str], int]], jobs: int, data: st.DataObject
) -> None:
    # With no durations the order is the given one. A round is over when all have ended that ran at
    # its start. In each the first one that waits is passed over once at least, or starts; before it
    # come only those that were reserved for before, one of a kind at most.
    tasks = [
        Task(key=f"{n:02}", duration=None, locks=k, weight=w) for n, (k, w) in enumerate(kinds)
    ]
    schedule = Schedule(tasks, jobs=jobs)
    most = PATIENCE + len(set(kinds)) + 2
    first, rounds, at_start = "", 0, set[str]()
    while schedule.waiting:
        start_all(schedule)
        now = next(iter(schedule.waiting), "")
        if now != first:
            first, rounds, at_start = now, 0, set(schedule.running)
        elif not at_start & schedule.running.keys():
            rounds, at_start = rounds + 1, set(schedule.running)
        assert rounds <= most
        schedule.done(data.draw(st.sampled_from(sorted(schedule.running))))


# --- how soon all ends ---------------------------------------------------------------------------


@given(
    parts=st.lists(st.lists(st.floats(0.01, 1.0), min_size=0, max_size=7), min_size=2, max_size=8)
)
def test_longest_first_is_within_its_proven_bound_of_the_best(parts: list[list[float]]) -> None:
    # Each machine of the best schedule is busy from 0 to 1: cut there, so the best takes 1 second.
    jobs = len(parts)
    pieces: list[float] = []
    for cuts in parts:
        edges = [0.0, *sorted(cuts), 1.0]
        pieces += [later - earlier for earlier, later in itertools.pairwise(edges)]
    tasks = [task(str(number), length) for number, length in enumerate(pieces)]
    assert makespan(tasks, jobs) <= 4 / 3 - 1 / (3 * jobs) + 1e-6


Draw = Callable[[random.Random], float]
LENGTHS: dict[str, Draw] = {
    "lognormal": lambda rng: rng.lognormvariate(0, 1.2),
    "pareto": lambda rng: rng.paretovariate(1.3),
    "uniform": lambda rng: rng.uniform(0.1, 3),
}


def locks_of(rng: random.Random, **likely: float) -> frozenset[str]:
    return frozenset(name for name, chance in likely.items() if rng.random() < chance)


SORTS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "plain": lambda _: {},
    "one port": lambda rng: {"locks": locks_of(rng, a=0.15)},
    "some ports": lambda rng: {"locks": locks_of(rng, a=0.1, b=0.1, c=0.05, d=0.02)},
    "some alone": lambda rng: {"exclusive": rng.random() < 0.03},
}


def skewed_suite(sort: str, lengths: str, seed: int) -> tuple[list[Task], int]:
    rng = random.Random(seed)  # noqa: S311 - no secret
    jobs, count = rng.randint(2, 8), rng.randint(24, 300)
    tasks = [
        task(str(number), LENGTHS[lengths](rng), **SORTS[sort](rng)) for number in range(count)
    ]
    return tasks, jobs


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("sort", SORTS)
def test_skewed_suites_end_within_a_tenth_of_the_lower_bound(sort: str, lengths: str) -> None:
    for seed in range(100):
        tasks, jobs = skewed_suite(sort, lengths, seed)
        assert makespan(tasks, jobs) <= 1.1 * lower_bound(tasks, jobs), f"{seed=} {jobs=}"


@pytest.mark.parametrize("lengths", LENGTHS)
def test_companions_cost_little(lengths: str) -> None:
    # The lower bound is out of reach here: a job stays idle where only a heavy one is left.
    ratios = []
    for seed in range(100):
        tasks, jobs = skewed_suite("plain", lengths, seed)
        rng = random.Random(seed)  # noqa: S311 - no secret
        tasks = [replace(each, weight=rng.choice([1, 1, 1, 2])) for each in tasks]
        ratios.append(makespan(tasks, jobs) / lower_bound(tasks, jobs))
    assert sorted(ratios)[94] <= 1.1
    assert max(ratios) <= 4 / 3


# --- what it costs -------------------------------------------------------------------------------


def calls_made(run: Callable[[], object]) -> int:
    """Count the calls that `run` makes, into C too: a measure of work that no clock disturbs."""
    count = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def work_of(count: int, jobs: int, locks: Callable[[int], set[str]]) -> int:
    tasks = [
        task(str(n), n * 7919 % 1000 / 10, locks=frozenset(locks(n)), weight=1 + (n % 9 == 0))
        for n in range(count)
    ]

    def run() -> None:
        schedule = Schedule(tasks, jobs=jobs)
        while schedule.waiting:
            while schedule.next():
                schedule.peek(2)
            schedule.done(next(iter(schedule.running)))

    return calls_made(run)


@pytest.mark.parametrize("jobs", [1, 8])
@pytest.mark.parametrize(
    "locks",
    [
        lambda _: set(),
        lambda _: {"one"},
        lambda n: {f"own {n}"},
        lambda n: {"one", f"own {n}"},
        lambda n: {f"five {n % 5}", f"seven {n % 7}"},
    ],
    ids=["none", "one", "own", "one and own", "pairs"],
)
def test_four_times_as_many_cost_about_four_times_as_much(
    jobs: int, locks: Callable[[int], set[str]]
) -> None:
    few, many = work_of(300, jobs, locks), work_of(1200, jobs, locks)
    assert many <= 4 * 1.5 * few
