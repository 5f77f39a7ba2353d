"""What the last verdicts on an example tell of its next run. Pure."""

from collections.abc import Sequence

from e2e_runner.model import NetworkMode, Past, ResultRecord, Status

WINDOW = 5  # verdicts that are looked at: enough for a median, few enough to follow a change

_OK = frozenset({Status.PASSED, Status.SERVED, Status.FLAKY, Status.LEAKED})
_OK_UNLESS_STRICT = frozenset({Status.FLAKY, Status.LEAKED})
_ENDED = _OK | {Status.FAILED}  # by itself, or because it was ready


def is_outstanding(status: Status, *, strict: bool = False) -> bool:
    """Tell whether an example with this last verdict still has to be put right.

    Only a verdict that says something of the example may be asked about: not `skipped`, not `not-run`.
    """
    return status not in _OK or (strict and status in _OK_UNLESS_STRICT)


def past_of(verdicts: Sequence[ResultRecord], *, network: NetworkMode | None = None) -> Past:
    """Add up the last verdicts on an example, newest first; none is `skipped` or `not-run`.

    The duration is the median of those that came to their end. Of an example that never did, it is
    the median of what it was given: it will take as long again. Ports are all that it was seen to
    listen on; they are complete once it was ok, as a failure may come before it listens. `network` is
    what was learned of it.

    >>> past_of([])
    Past(duration=None, failed=False, ports=(), observed=False, max_rss=None, network=None)
    """
    started = [each for each in verdicts if each.attempts]
    ended = [each.duration for each in started if each.status in _ENDED]
    durations = ended or [each.duration for each in started]
    sizes = [each.max_rss for each in started if each.max_rss is not None]
    return Past(
        duration=_median(durations) if durations else None,
        failed=bool(verdicts) and is_outstanding(verdicts[0].status),
        ports=tuple(sorted({port for each in started for port in each.listened})),
        observed=any(each.status in _OK for each in started),
        max_rss=max(sizes, default=None),
        network=network,
    )


def _median(values: Sequence[float]) -> float:
    """Give the median, of an even number the greater one; `statistics` takes long to import."""
    return sorted(values)[len(values) // 2]
