from dataclasses import replace

import pytest
from report_history import example

from e2e_runner.errors import NothingSelected
from e2e_runner.model import Plan, RunRecord, Shard
from e2e_runner.selection import keep_outstanding, keep_shard

PLAN = Plan(examples=tuple(map(example, ("a.py", "b.py", "c.py"))), warnings=("before",))
NOTHING = Plan(examples=())
LAST = RunRecord(id="20260101-000000-000000", started=1000.0, exit_code=1)


def paths(plan: Plan) -> list[str]:
    return [each.path for each in plan.examples]


def test_shards_share_out_a_plan() -> None:
    durations = {"a.py": 3.0, "b.py": 1.0, "c.py": 1.0, "elsewhere.py": 90.0}
    parts = [keep_shard(PLAN, Shard(index=n, count=2), durations) for n in (1, 2)]
    assert [paths(part) for part in parts] == [["a.py"], ["b.py", "c.py"]]
    assert parts[1].shard.startswith("shard 2/2: 2 of 3 examples, balanced by the history (basis ")
    assert parts[0].warnings == ("before",)


def test_a_shard_may_be_empty() -> None:
    plan = keep_shard(PLAN, Shard(index=4, count=4), {})
    assert paths(plan) == []
    assert plan.shard.startswith("shard 4/4: 0 of 3 examples, of equal count (basis ")


def test_a_timings_file_that_knows_nothing_is_told_of() -> None:
    known = keep_shard(PLAN, Shard(index=1, count=2), {"a.py": 1.0}, file="t.json")
    assert "balanced by t.json" in known.shard
    assert known.warnings == ("before",)
    unknown = keep_shard(PLAN, Shard(index=1, count=2), {"x.py": 1.0}, file="t.json")
    assert unknown.warnings == ("before", "--timings t.json knows none of the 3 examples")
    assert paths(unknown) == ["a.py", "c.py"]


def test_a_plan_without_examples_stays_as_it_is() -> None:
    assert keep_shard(NOTHING, Shard(index=1, count=2), {}) == NOTHING


def test_what_is_outstanding_is_kept() -> None:
    plan = keep_outstanding(PLAN, {"c.py", "gone.py"}, {"a.py", "c.py"}, LAST, now=2000.0)
    assert paths(plan) == ["c.py"]
    assert plan.shard == "last failed: 1 of 3 examples"
    both = keep_outstanding(replace(PLAN, shard="shard 1/2"), {"c.py"}, (), LAST, now=2000.0)
    assert both.shard == "shard 1/2; last failed: 1 of 3 examples"


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
