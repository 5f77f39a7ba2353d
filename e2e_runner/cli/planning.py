"""The plan of a run in the light of earlier runs: what `run` and `list` have in common."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from e2e_runner.discovery import make_plan
from e2e_runner.errors import NothingSelected
from e2e_runner.history import History
from e2e_runner.history_file import (
    NAME,
    HistoryError,
    Trouble,
    flat,
    move_aside,
    moved_words,
)
from e2e_runner.model import Past, Plan, RunRecord, RunSettings, Shard

if TYPE_CHECKING:
    from e2e_runner.config import Resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, and what earlier runs tell of its examples, by path.

    A history that is not `usable` was told of in the plan's warnings.
    """

    plan: Plan
    past: Mapping[str, Past]
    usable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What a history tells."""

    past: Mapping[str, Past]
    durations: Mapping[str, float] = field(default_factory=dict)  # that shards are balanced by
    last: RunRecord | None = None
    outstanding: frozenset[str] = frozenset()
    warning: str = ""
    usable: bool = True


def make_planned(resolved: "Resolved", *, mend: bool) -> Planned:
    """Make the plan, and narrow it to a shard and to what failed the last time, as was asked for.

    `mend` moves a damaged history aside. Whatever is wrong with it is a warning. Raises UsageError for
    a timings file that cannot be used, NothingSelected when nothing is outstanding.
    """
    run = resolved.run
    plan = make_plan(resolved)
    told = _ask_history(run, plan, mend=mend)
    if told.warning:
        plan = replace(plan, warnings=(*plan.warnings, told.warning))
    if run.shard is not None:
        plan = _keep_shard(plan, run, run.shard, told)
    if run.last_failed and plan.examples and not told.warning:
        from e2e_runner.selection import keep_outstanding

        if told.last is None:
            raise NothingSelected(
                "There is no history yet, so it is not known what failed the last time.",
                facts=(f"looked for {run.state_dir / NAME}",),
                remedy="run without --last-failed first",
            )
        plan = keep_outstanding(
            plan, told.outstanding, told.past.keys(), told.last, now=time.time()
        )
    return Planned(plan=plan, past=told.past, usable=told.usable)


def _keep_shard(plan: Plan, run: RunSettings, shard: Shard, told: _Told) -> Plan:
    from e2e_runner.selection import keep_shard

    if run.timings is None:
        return keep_shard(plan, shard, told.durations)
    from e2e_runner.timings import read_timings

    return keep_shard(plan, shard, read_timings(run.timings), file=run.timings.name)


def _ask_history(run: RunSettings, plan: Plan, *, mend: bool) -> _Told:
    identity = None
    try:
        with History.open(run.state_dir) as history:
            identity = history.identity
            paths = [example.path for example in plan.examples]
            balanced = paths if run.shard is not None and run.timings is None else ()
            whole = history.past(balanced, whole_runs=True)
            outstanding = history.outstanding(strict=run.strict) if run.last_failed else set()
            last = history.runs(1)
            return _Told(
                past=history.past(paths),
                durations={
                    path: each.duration for path, each in whole.items() if each.duration is not None
                },
                last=last[0] if last else None,
                outstanding=frozenset(outstanding),
            )
    except HistoryError as error:
        consequence = "; so --last-failed leaves nothing out" if run.last_failed else ""
        if error.trouble is not Trouble.DAMAGED or not mend:
            usable = error.trouble is not Trouble.UNUSABLE
            return _Told(past={}, warning=f"{flat(error)}{consequence}", usable=usable)
        try:
            name = move_aside(run.state_dir, identity, time.time())
        except HistoryError as other:
            return _Told(past={}, warning=f"{flat(other)}{consequence}", usable=False)
        return _Told(past={}, warning=f"{moved_words(error, name)}{consequence}")
