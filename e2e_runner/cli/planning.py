"""The plan of a run in the light of earlier runs: what `run` and `list` have in common."""

import os
import time
from collections.abc import Iterable, Mapping
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
from e2e_runner.model import CutBy, Past, Plan, RunRecord, RunSettings, Shard

if TYPE_CHECKING:
    from e2e_runner.config import Resolved

# Set by most services; by Azure Pipelines; by Jenkins and TeamCity.
_CI_VARIABLES = ("CI", "TF_BUILD", "BUILD_NUMBER")
_WHY_IN_CI = "histories in CI may differ; --timings FILE balances by time"


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


def make_planned(resolved: "Resolved", *, environ: Mapping[str, str], mend: bool) -> Planned:
    """Make the plan, and narrow it to a shard and to what failed the last time, as was asked for.

    `mend` moves a damaged history aside. Whatever is wrong with it is a warning. Raises UsageError for
    a timings file that cannot be used, NothingSelected when nothing is outstanding
    in the whole suite.
    """
    run = resolved.run
    plan = make_plan(resolved)
    cut_by = None if run.shard is None else _choose_cut(run, environ)
    told = _ask_history(run, plan, balanced=cut_by is CutBy.HISTORY, mend=mend)
    if told.warning:
        plan = replace(plan, warnings=(*plan.warnings, told.warning))
    if run.shard is not None and cut_by is not None:
        plan = _keep_shard(plan, run, run.shard, cut_by, told.durations)
    if run.last_failed and plan.examples and not told.warning:
        from e2e_runner.selection import keep_outstanding

        if told.last is None:
            raise NothingSelected(
                "There is no history yet, so it is not known what failed the last time.",
                facts=(f"looked for {run.state_dir / NAME}",),
                remedy="run without --last-failed first",
            )
        there = _still_there(run, told.outstanding)
        plan = keep_outstanding(plan, there, told.past.keys(), told.last, now=time.time())
    return Planned(plan=plan, past=told.past, usable=told.usable)


def _choose_cut(run: RunSettings, environ: Mapping[str, str]) -> CutBy:
    """Choose what a shard is cut by.

    The machines of CI are new or restore a cache, each by itself: cut by their histories, some examples
    would be in two of the shards and others in none.
    """
    from e2e_runner.report.display import is_set

    if run.timings is not None:
        return CutBy.TIMINGS
    in_ci = any(is_set(environ, name) for name in _CI_VARIABLES)
    return CutBy.COUNT if in_ci else CutBy.HISTORY


def _keep_shard(
    plan: Plan, run: RunSettings, shard: Shard, by: CutBy, history: Mapping[str, float]
) -> Plan:
    from e2e_runner.selection import keep_shard

    if run.timings is not None:
        from e2e_runner.timings import read_timings

        return keep_shard(plan, shard, read_timings(run.timings), by=by, file=run.timings.name)
    return keep_shard(plan, shard, history, by=by, why=_WHY_IN_CI if by is CutBy.COUNT else "")


def _still_there(run: RunSettings, paths: Iterable[str]) -> frozenset[str]:
    """Leave out what was removed or renamed. The history keeps it: another branch may have it."""
    return frozenset(path for path in paths if os.path.lexists(run.root / path))


def _ask_history(run: RunSettings, plan: Plan, *, balanced: bool, mend: bool) -> _Told:
    """Ask for what is needed: the durations only when shards are `balanced` by them."""
    identity = None
    try:
        with History.open(run.state_dir) as history:
            identity = history.identity
            paths = [example.path for example in plan.examples]
            whole = history.past(paths if balanced else (), whole_runs=True)
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
