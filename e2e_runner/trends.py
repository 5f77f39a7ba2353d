"""What many verdicts on an example say together, and what changed from one run to another. Pure.

A verdict is what an example came to that was started or was to be: `skipped` and `not-run` are none.
"""

import difflib
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeGuard

from e2e_runner.model import NetworkMode, Past, ResultRecord, RunRecord, Status
from e2e_runner.verdict import is_bad

USUAL_WINDOW = 50  # verdicts of an example that are looked at

_NO_VERDICT = frozenset({Status.SKIPPED, Status.NOT_RUN})
_TIMED = frozenset({Status.PASSED, Status.SERVED, Status.LEAKED})  # ended as it should, at once
_WELL = frozenset({Status.PASSED, Status.SERVED})  # one verdict: what an example is decides which
_RELATIVE = 0.2  # of a duration, below which no change is told
_ABSOLUTE = 0.2  # seconds, same
_RELATIVE_BLINDLY = 0.5  # same, where it is not known how much durations vary
_ABSOLUTE_BLINDLY = 0.5  # seconds, same
_CERTAIN = 3.0  # standard errors that a change must exceed
_FEWEST_TIMED = 6  # durations that a trend is told of
_MOST_RECENT = 10  # durations that count as the recent ones
_AGREEMENT = 0.75  # of pairs of an earlier and a recent duration, on which is the greater
_FEWEST_DIFFERENCES = 3  # that tell how much durations vary
# The upper quartile of the distance of two equally distributed normal values, in their deviation.
_QUARTILE_OF_DIFFERENCES = 1.6268
_MEDIAN_ERROR = 1.2533  # the standard error of a median, compared with that of a mean
_FLAKY_CHANGES = 3  # from ok to not ok or back: to break something and mend it makes two
_MOST_CANDIDATES = 10
_CLOSE = 0.8  # of names that read alike


def is_verdict(status: Status) -> bool:
    """Tell whether a status says anything of the example."""
    return status not in _NO_VERDICT


# --- durations -----------------------------------------------------------------------------------


def is_timed(result: ResultRecord) -> bool:
    """Tell whether a duration is that of one run to a good end, so that others compare with it."""
    alone = result.repeats == 1
    return result.status in _TIMED and alone and result.duration > 0


def spread(durations: Sequence[float]) -> float | None:
    """Estimate the standard deviation of durations, in seconds; None where they are too few.

    They are in the order of time: neighbours are compared, so that a lasting change in between does
    not count as spread, nor does one that is far out.
    """
    differences = [abs(b - a) for a, b in itertools.pairwise(durations)]
    if len(differences) < _FEWEST_DIFFERENCES:
        return None
    upper = statistics.quantiles(differences, n=4, method="inclusive")[2]
    return upper / _QUARTILE_OF_DIFFERENCES


def spreads(results: Iterable[ResultRecord]) -> dict[str, float]:
    """Estimate by path how much durations vary, where enough of them are known; see `spread`."""
    durations: dict[str, list[float]] = {}
    for result in chronological(results):
        if is_timed(result):
            durations.setdefault(result.path, []).append(result.duration)
    found = {path: spread(each) for path, each in durations.items()}
    return {path: each for path, each in found.items() if each is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long something took before, and how long it takes now, in seconds."""

    before: float
    after: float

    @property
    def change(self) -> float:
        """Give the change as a part of what it took before: 0.5 is half as long again."""
        return self.after / self.before - 1


def pace(
    before: Sequence[float], after: Sequence[float], *, spread: float | None = None
) -> Pace | None:
    """Compare durations by their medians; None where the difference may be noise.

    With a `spread`, a standard deviation in seconds, it is told when it is more than a fifth, more
    than 0.2 s and more than three standard errors; without, when it is more than half and than 0.5 s.
    """
    if not before or not after:
        return None
    found = Pace(before=statistics.median(before), after=statistics.median(after))
    difference = abs(found.after - found.before)
    shorter = min(found.before, found.after)
    if spread is None:
        least = max(_ABSOLUTE_BLINDLY, _RELATIVE_BLINDLY * shorter)
    else:
        error = spread * math.sqrt(1 / len(before) + 1 / len(after)) * _MEDIAN_ERROR
        least = max(_ABSOLUTE, _RELATIVE * shorter, _CERTAIN * error)
    return found if difference > least and found.before > 0 else None


def trend(durations: Sequence[float]) -> Pace | None:
    """Compare the last third of durations, at most ten, with those before; None: no certain change.

    They are in the order of time. What is now fast, now slow, in turn, has no trend: besides the
    medians, three quarters of the single durations must say the same.
    """
    if len(durations) < _FEWEST_TIMED:
        return None
    count = min(len(durations) // 3, _MOST_RECENT)
    before, after = durations[:-count], durations[-count:]
    found = pace(before, after, spread=spread(durations))
    if found is None:
        return None
    slower = sum((b > a) + (b == a) / 2 for a in before for b in after) / (len(before) * count)
    agreed = slower if found.change > 0 else 1 - slower
    return found if agreed >= _AGREEMENT else None


# --- one example over many runs ------------------------------------------------------------------


class Attention(StrEnum):
    """What an example's history asks for, most urgent first."""

    FAILING = "failing"  # its last verdict is not ok
    FLAKY = "flaky"
    SLOWER = "slower"
    MENDED = "mended"  # ok now, and not in all of the verdicts that are looked at
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the last verdicts on an example say together."""

    path: str
    verdicts: tuple[ResultRecord, ...]  # oldest first; never empty
    bad: int  # how many of them are not ok
    flaky: bool  # see `is_flaky`
    streak: int  # how many of the last ones are the same; passed and served are
    duration: float | None  # seconds that it takes nowadays, as a rule
    trend: Pace | None  # None: its duration did not certainly change
    network: NetworkMode | None = None  # HOST: learned that it fails in a network of its own
    attention: Attention

    @property
    def last(self) -> ResultRecord:
        """Give the latest verdict."""
        return self.verdicts[-1]

    @property
    def since(self) -> ResultRecord:
        """Give the first of the last ones that are the same."""
        return self.verdicts[-self.streak]

    @property
    def failure_rate(self) -> float:
        """Give the part of the verdicts that are not ok, from 0 to 1."""
        return self.bad / len(self.verdicts)


def standings(
    results: Iterable[ResultRecord],
    *,
    strict: bool,
    past: Mapping[str, Past] | None = None,
    window: int = USUAL_WINDOW,
) -> tuple[Standing, ...]:
    """Sum up each example by its last `window` verdicts; what needs attention comes first.

    Examples without a verdict are left out. `strict` counts flaky and leaked ones as not ok. The
    order of `results` does not matter.
    """
    known = past or {}
    verdicts: dict[str, list[ResultRecord]] = {}
    for result in results:
        if is_verdict(result.status):
            verdicts.setdefault(result.path, []).append(result)
    found = [
        _standing(path, chronological(each)[-window:], strict=strict, past=known.get(path))
        for path, each in verdicts.items()
    ]
    order = list(Attention)
    return tuple(
        sorted(
            found,
            key=lambda each: (order.index(each.attention), -_weight(each), each.path),
        )
    )


def chronological(results: Iterable[ResultRecord]) -> list[ResultRecord]:
    """Order results by the start of their runs, oldest first."""
    return sorted(results, key=lambda result: (result.started, result.run))


def _standing(
    path: str, verdicts: Sequence[ResultRecord], *, strict: bool, past: Past | None
) -> Standing:
    bad = [is_bad(each.status, strict=strict) for each in verdicts]
    durations = [each.duration for each in verdicts if is_timed(each)]
    moved = trend(durations)
    usual = statistics.median(durations) if durations else None
    flaky = is_flaky(verdicts, strict=strict)
    if bad[-1]:
        attention = Attention.FAILING
    elif flaky:
        attention = Attention.FLAKY
    elif moved is not None and moved.change > 0:
        attention = Attention.SLOWER
    elif any(bad):
        attention = Attention.MENDED
    else:
        attention = Attention.NONE
    return Standing(
        path=path,
        verdicts=tuple(verdicts),
        bad=sum(bad),
        flaky=flaky,
        streak=_streak([each.status for each in verdicts]),
        duration=moved.after if moved else usual,
        trend=moved,
        network=past.network if past else None,
        attention=attention,
    )


def is_flaky(verdicts: Sequence[ResultRecord], *, strict: bool) -> bool:
    """Tell whether an example comes to this one time and to that another time, for no known reason.

    So it is where a verdict was `flaky`, where some of its repeats in a run passed and some did not,
    or where its verdicts went from ok to not ok, or back, three times or more: to break an example
    once, and to mend it, makes two. The verdicts are in the order of time.
    """
    bad = [is_bad(each.status, strict=strict) for each in verdicts]
    changes = sum(a != b for a, b in itertools.pairwise(bad))
    return changes >= _FLAKY_CHANGES or any(
        each.status is Status.FLAKY or 0 < each.repeats_passed < each.repeats for each in verdicts
    )


def _streak(statuses: Sequence[Status]) -> int:
    same = _WELL if statuses[-1] in _WELL else {statuses[-1]}
    return sum(1 for _ in itertools.takewhile(same.__contains__, reversed(statuses)))


def _weight(standing: Standing) -> float:
    """Say how much an example stands out among those that ask for the same."""
    match standing.attention:
        case Attention.FAILING:
            return standing.streak
        case Attention.FLAKY | Attention.MENDED:
            return standing.failure_rate
        case Attention.SLOWER:
            return standing.trend.change if standing.trend else 0
        case Attention.NONE:
            return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """The examples that a person may have meant: one, or several among which to choose."""

    paths: tuple[str, ...]  # the one that is meant, or those that the words fit equally well
    alike: tuple[str, ...] = ()  # where none fits: some that read alike


def match_example(words: str, paths: Iterable[str]) -> Matches:
    """Find the example that is meant: by its path, else by the end of it, else by any part of it.

    The end is one or several whole names, the last of them with its suffix or without.

    >>> match_example("orders", ["examples/orders.py", "examples/old_orders.py"]).paths
    ('examples/orders.py',)
    """
    known = sorted(set(paths))
    wanted = words.removeprefix("./").strip("/")
    folded = wanted.casefold()
    if not wanted:
        return Matches(paths=())
    tests = (
        lambda path: path == words,
        lambda path: f"/{path}".endswith(f"/{wanted}") or _stem(f"/{path}").endswith(f"/{wanted}"),
        lambda path: folded in path.casefold(),
    )
    for test in tests:
        found = tuple(path for path in known if test(path))
        if found:
            return Matches(paths=found)
    names = {path.rpartition("/")[2]: path for path in reversed(known)}
    near = difflib.get_close_matches(
        wanted.rpartition("/")[2], names, n=_MOST_CANDIDATES, cutoff=_CLOSE
    )
    return Matches(paths=(), alike=tuple(names[name] for name in near))


def _stem(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}"


# --- one run against another ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """A run and what came of its examples."""

    run: RunRecord
    results: tuple[ResultRecord, ...]
    file: str = ""  # the report that tells of it; empty: the history does


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What came of a run in figures."""

    counts: Mapping[Status, int]  # those that occurred
    verdicts: int
    ok: int

    @property
    def pass_rate(self) -> float | None:
        """Give the part of the verdicts that are ok, from 0 to 1; None where there are none."""
        return self.ok / self.verdicts if self.verdicts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One example in two runs; None where a run does not know it."""

    path: str
    before: ResultRecord | None
    after: ResultRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What changed from one run to another, each by path."""

    before: PastRun
    after: PastRun
    totals_before: Totals
    totals_after: Totals
    newly_failing: tuple[Change, ...]  # also those without a verdict before
    fixed: tuple[Change, ...]  # and neither flaky nor leaked
    still_failing: tuple[Change, ...]
    newly_flaky: tuple[Change, ...]
    newly_leaked: tuple[Change, ...]
    slower: tuple[Change, ...]
    faster: tuple[Change, ...]
    added: tuple[Change, ...]  # unknown to the run before
    removed: tuple[Change, ...]
    without_verdict: tuple[Change, ...]  # known to both; had a verdict, and has none now


def compare(
    before: PastRun,
    after: PastRun,
    *,
    strict: bool,
    spreads: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare two runs. `strict` counts flaky and leaked examples as not ok.

    `spreads` tells by path how much durations vary: standard deviations in seconds, see `spread`.
    """
    first = {result.path: result for result in before.results}
    second = {result.path: result for result in after.results}
    changes = [
        Change(path=path, before=first.get(path), after=second.get(path))
        for path in sorted(first.keys() | second.keys())
    ]

    def bad(result: ResultRecord | None) -> bool:
        return _has_verdict(result) and is_bad(result.status, strict=strict)

    def well(result: ResultRecord | None) -> bool:
        return _has_verdict(result) and not is_bad(result.status, strict=True)

    def newly(status: Status) -> tuple[Change, ...]:
        return tuple(
            change
            for change in changes
            if change.after is not None
            and change.after.status is status
            and not bad(change.after)
            and (change.before is None or change.before.status is not status)
        )

    paces = [(change, pace_of(change, spreads)) for change in changes]
    return Comparison(
        before=before,
        after=after,
        totals_before=totals(before.results, strict=strict),
        totals_after=totals(after.results, strict=strict),
        newly_failing=tuple(c for c in changes if bad(c.after) and not bad(c.before)),
        fixed=tuple(c for c in changes if bad(c.before) and well(c.after)),
        still_failing=tuple(c for c in changes if bad(c.before) and bad(c.after)),
        newly_flaky=newly(Status.FLAKY),
        newly_leaked=newly(Status.LEAKED),
        slower=_by_change([(c, p) for c, p in paces if p is not None and p.change > 0]),
        faster=_by_change([(c, p) for c, p in paces if p is not None and p.change < 0]),
        added=tuple(c for c in changes if c.before is None),
        removed=tuple(c for c in changes if c.after is None),
        without_verdict=tuple(
            c
            for c in changes
            if _has_verdict(c.before) and c.after is not None and not _has_verdict(c.after)
        ),
    )


def totals(results: Iterable[ResultRecord], *, strict: bool) -> Totals:
    """Count verdicts."""
    statuses = [result.status for result in results]
    verdicts = [status for status in statuses if is_verdict(status)]
    return Totals(
        counts={status: statuses.count(status) for status in Status if status in statuses},
        verdicts=len(verdicts),
        ok=sum(not is_bad(status, strict=strict) for status in verdicts),
    )


def pace_of(change: Change, spreads: Mapping[str, float] | None = None) -> Pace | None:
    """Compare the durations of an example in two runs; None where they differ by chance at most."""
    before, after = change.before, change.after
    if before is None or after is None or not is_timed(before) or not is_timed(after):
        return None
    return pace([before.duration], [after.duration], spread=(spreads or {}).get(change.path))


def _by_change(changes: Iterable[tuple[Change, Pace]]) -> tuple[Change, ...]:
    """Order by the seconds lost or won, most first."""
    ordered = sorted(changes, key=lambda item: -abs(item[1].after - item[1].before))
    return tuple(change for change, _ in ordered)


def _has_verdict(result: ResultRecord | None) -> TypeGuard[ResultRecord]:
    return result is not None and is_verdict(result.status)
