from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_history import CUT, example

from e2e_runner.errors import NothingSelected
from e2e_runner.model import CutBy, NotExample, Plan, RunRecord, Shard, ShardCut
from e2e_runner.selection import keep_outstanding, keep_shard

PLAN = Plan(examples=tuple(map(example, ("a.py", "b.py", "c.py"))), warnings=("before",))
NOTHING = Plan(examples=())
LAST = RunRecord(id="20260101-000000-000000", started=1000.0, exit_code=1)


def paths(plan: Plan) -> list[str]:
    return [each.path for each in plan.examples]


def test_shards_share_out_a_plan() -> None:
    durations = {"a.py": 3.0, "b.py": 1.0, "c.py": 1.0, "elsewhere.py": 90.0}
    parts = [keep_shard(PLAN, Shard(index=n, count=2), durations, by=CutBy.HISTORY) for n in (1, 2)]
    assert [paths(part) for part in parts] == [["a.py"], ["b.py", "c.py"]]
    assert parts[1].shard.startswith("shard 2/2: 2 of 3 examples, balanced by the history (basis ")
    assert parts[0].warnings == ("before",)
    cuts = [part.cut for part in parts]
    assert cuts[0] is not None
    assert cuts == [
        ShardCut(index=n, count=2, basis=cuts[0].basis, by=CutBy.HISTORY) for n in (1, 2)
    ]
    assert f"(basis {cuts[0].basis})" in parts[0].shard


def test_a_shard_that_is_not_balanced_says_why() -> None:
    plan = keep_shard(PLAN, Shard(index=1, count=2), {}, by=CutBy.COUNT, why="no file")
    assert plan.cut is not None
    assert plan.cut.by is CutBy.COUNT
    assert (
        plan.shard
        == f"shard 1/2: 2 of 3 examples, of equal count (basis {plan.cut.basis}): no file"
    )


NAMES = st.sampled_from("abcdefgh").map("{}.py".format)
SECONDS = st.floats(min_value=0, max_value=100)


@given(
    st.sets(NAMES, min_size=1),
    st.integers(min_value=1, max_value=5),
    st.sampled_from([CutBy.TIMINGS, CutBy.COUNT]),
    st.dictionaries(NAMES, SECONDS),
    st.lists(st.sets(NAMES), min_size=5, max_size=5),
)
def test_machines_with_the_same_facts_run_each_example_once(
    names: set[str], count: int, by: CutBy, timings: dict[str, float], failed: list[set[str]]
) -> None:
    """Whatever their histories say of what failed, of which each has another."""
    suite = Plan(examples=tuple(map(example, sorted(names))))
    parts = [
        keep_shard(suite, Shard(index=n, count=count), timings, by=by, file="t.json")
        for n in range(1, count + 1)
    ]
    assert sorted(path for part in parts for path in paths(part)) == sorted(names)
    assert len({(part.cut.count, part.cut.basis, part.cut.by) for part in parts if part.cut}) == 1
    for part, outstanding in zip(parts, failed, strict=False):
        if outstanding & {*paths(part)}:
            left = keep_outstanding(part, outstanding, (), LAST, now=2000.0)
            assert {*paths(left)} == outstanding & {*paths(part)}
            assert (left.cut, left.shard) == (part.cut, part.shard)


def test_a_shard_may_be_empty() -> None:
    plan = keep_shard(PLAN, Shard(index=4, count=4), {}, by=CutBy.HISTORY)
    assert paths(plan) == []
    assert plan.shard.startswith("shard 4/4: 0 of 3 examples, of equal count (basis ")


def test_a_timings_file_that_knows_nothing_is_told_of() -> None:
    known = keep_shard(
        PLAN, Shard(index=1, count=2), {"a.py": 1.0}, by=CutBy.TIMINGS, file="t.json"
    )
    assert "balanced by t.json" in known.shard
    assert known.warnings == ("before",)
    unknown = keep_shard(
        PLAN, Shard(index=1, count=2), {"x.py": 1.0}, by=CutBy.TIMINGS, file="t.json"
    )
    assert unknown.cut is not None
    assert unknown.cut.by is CutBy.COUNT
    assert unknown.warnings == ("before", "--timings t.json knows none of the 3 examples")
    assert paths(unknown) == ["a.py", "c.py"]


def test_a_plan_without_examples_stays_as_it_is() -> None:
    assert keep_shard(NOTHING, Shard(index=1, count=2), {}, by=CutBy.HISTORY) == NOTHING


def test_what_is_outstanding_is_kept() -> None:
    plan = keep_outstanding(PLAN, {"c.py", "gone.py"}, {"a.py", "c.py"}, LAST, now=2000.0)
    assert paths(plan) == ["c.py"]
    assert (plan.cut, plan.shard) == (None, "")
    assert plan.last_failed == "last failed: 1 of 3 examples"
    part = replace(PLAN, cut=CUT, shard="shard 1/2")
    both = keep_outstanding(part, {"c.py"}, (), LAST, now=2000.0)
    assert (both.cut, both.shard) == (CUT, "shard 1/2")
    assert both.last_failed == "last failed: 1 of 3 examples"


def test_nothing_outstanding_says_what_is_known() -> None:
    with pytest.raises(NothingSelected) as caught:
        keep_outstanding(PLAN, (), {"a.py", "b.py", "c.py"}, LAST, now=1075.0)
    assert str(caught.value) == (
        "Nothing is outstanding: the last verdict on 3 selected examples was ok.\n"
        "  last run: 20260101-000000-000000, 1m15s ago, exit code 1\n"
        "To fix this: run without --last-failed"
    )
    killed = replace(LAST, exit_code=None)
    with pytest.raises(NothingSelected) as caught:
        keep_outstanding(PLAN, {"x.py", "y\n.py"}, (), killed, now=1075.0)
    assert str(caught.value) == (
        "Nothing is outstanding.\n"
        "  last run: 20260101-000000-000000, 1m15s ago, without an end\n"
        "  without a verdict yet: a.py, b.py, c.py\n"
        "  outstanding, but not selected: x.py, y\\n.py\n"
        "To fix this: run without --last-failed"
    )


def test_nothing_outstanding_in_a_shard_is_an_empty_plan() -> None:
    part = replace(PLAN, cut=CUT, shard="shard 1/2")
    plan = keep_outstanding(part, {"elsewhere.py"}, (), LAST, now=2000.0)
    assert (paths(plan), plan.cut, plan.shard) == ([], CUT, "shard 1/2")
    assert plan.last_failed == "last failed: 0 of 3 examples"


def test_what_is_no_example_any_more_is_not_outstanding() -> None:
    helper = NotExample(path="d.py", reason="imported by a.py")
    plan = replace(PLAN, not_examples=(helper,))
    with pytest.raises(NothingSelected) as caught:
        keep_outstanding(plan, {"d.py", "x.py"}, ("a.py", "b.py", "c.py"), LAST, now=1075.0)
    assert "outstanding, but not selected: x.py\n" in str(caught.value)
    with pytest.raises(NothingSelected) as caught:
        keep_outstanding(plan, {"d.py"}, ("a.py", "b.py", "c.py"), LAST, now=1075.0)
    assert "not selected" not in str(caught.value)
