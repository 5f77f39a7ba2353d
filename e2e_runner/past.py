"""What the last verdicts on an example tell of its next run. Pure."""

from collections import Counter
from collections.abc import Collection, Sequence

from e2e_runner.model import NetworkMode, Past, ResultRecord, Status
from e2e_runner.verdict import is_bad, is_ok

_CHOSEN = 32768  # the system chooses from here on (ip(7), net.ipv4.ip_local_port_range)

WINDOW = 5  # verdicts that are looked at: enough for a median, few enough to follow a change


def past_of(verdicts: Sequence[ResultRecord], *, network: NetworkMode | None = None) -> Past:
    """Add up the last verdicts on an example, newest first; none is `skipped` or `not-run`.

    The duration is the median of those that came to their end. Of an example that never did, it is
    the median of what it was given: it will take as long again. Ports are all that it was seen to
    listen on, but for those that the system chose; they are complete once it was ok, as a failure may
    come before it listens. `network` is what was learned of it.

    >>> past_of([])
    Past(duration=None, failed=False, ports=(), observed=False, max_rss=None, network=None)
    """
    started = [each for each in verdicts if each.attempts]
    ended = [each.duration for each in started if each.status is not Status.TIMEOUT]
    durations = ended or [each.duration for each in started]
    sizes = [each.max_rss for each in started if each.max_rss is not None]
    return Past(
        duration=_median(durations) if durations else None,
        failed=bool(verdicts) and is_bad(verdicts[0].status, strict=False),
        ports=_own_ports([each.listened for each in started if each.listened]),
        observed=any(is_ok(each.status, strict=False) for each in started),
        max_rss=max(sizes, default=None),
        network=network,
    )


def _own_ports(seen: Sequence[Collection[int]]) -> tuple[int, ...]:
    """List the ports that an example takes, by those of its runs: the system does not choose one twice.

    >>> _own_ports([(8000, 50051, 45123), (8000, 50051, 39877)])
    (8000, 50051)
    """
    times = Counter(port for ports in seen for port in set(ports))
    known = (port for port, n in times.items() if port < _CHOSEN or n > 1 or len(seen) == 1)
    return tuple(sorted(known))


def _median(values: Sequence[float]) -> float:
    """Give the median, of an even number the greater one; `statistics` takes long to import."""
    return sorted(values)[len(values) // 2]
