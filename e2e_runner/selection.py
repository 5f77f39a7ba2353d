"""Narrows a plan: to one shard of the suite, and to what was not ok the last time. Pure.

The shard comes first. Machines may know of different failures, yet each example must be in exactly one
of their shards.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from e2e_runner import shards
from e2e_runner.errors import NothingSelected
from e2e_runner.model import CutBy, Plan, RunRecord, Shard
from e2e_runner.text import age, one_line, plural

_MOST_NAMED = 5
_HISTORY = "the history"


def keep_shard(
    plan: Plan,
    shard: Shard,
    durations: Mapping[str, float],
    *,
    by: CutBy,
    file: str = "",
    why: str = "",
) -> Plan:
    """Keep the examples of one shard; a plan without any stays as it is.

    `durations` are seconds by path, of the timings `file` or of the history; `why` says why there are
    none.
    """
    if not plan.examples:
        return plan
    known = {example.path: durations.get(example.path) for example in plan.examples}
    made = shards.cut(shard, known, by=by)
    kept = {*shards.partition(known, shard.count)[shard.index - 1]}
    warnings = plan.warnings
    if file and not any(path in durations for path in known):
        of = plural(len(known), "example")
        warnings = (*warnings, f"--timings {one_line(file)} knows none of the {of}")
    return replace(
        plan,
        examples=tuple(each for each in plan.examples if each.path in kept),
        cut=made,
        shard=shards.describe(made, len(kept), known, source=one_line(file) or _HISTORY, why=why),
        warnings=warnings,
    )


def keep_outstanding(
    plan: Plan, outstanding: Collection[str], known: Collection[str], last: RunRecord, *, now: float
) -> Plan:
    """Keep the examples of a plan whose last verdict was not ok; it has at least one.

    Of the `outstanding`, those that were found to be no examples any more are not outstanding. `known`
    are those that the history tells of, `last` is its last run, `now` is in seconds since the epoch.
    Raises NothingSelected when none is left, but of a shard: what is outstanding may be in another.
    """
    kept = tuple(each for each in plan.examples if each.path in outstanding)
    if not kept and plan.cut is None:
        left = {*outstanding} - {each.path for each in plan.not_examples}
        raise _nothing_outstanding(plan, left, known, last, now=now)
    words = f"last failed: {len(kept)} of {plural(len(plan.examples), 'example')}"
    return replace(plan, examples=kept, last_failed=words)


def _nothing_outstanding(
    plan: Plan, outstanding: Collection[str], known: Collection[str], last: RunRecord, *, now: float
) -> NothingSelected:
    facts = [f"last run: {last.id}, {age(now - last.started)} ago, {_ending(last)}"]
    new = [each.path for each in plan.examples if each.path not in known]
    if new:
        facts.append(f"without a verdict yet: {_named(new)}")
    if outstanding:
        facts.append(f"outstanding, but not selected: {_named(sorted(outstanding))}")
    ok = len(plan.examples) - len(new)
    return NothingSelected(
        f"Nothing is outstanding: the last verdict on {plural(ok, 'selected example')} was ok."
        if ok
        else "Nothing is outstanding.",
        facts=tuple(facts),
        remedy="run without --last-failed",
    )


def _ending(run: RunRecord) -> str:
    return "without an end" if run.exit_code is None else f"exit code {run.exit_code}"


def _named(paths: list[str]) -> str:
    more = len(paths) - _MOST_NAMED
    named = ", ".join(map(one_line, paths[:_MOST_NAMED]))
    return f"{named} and {more} more" if more > 0 else named
