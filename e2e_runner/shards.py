"""Cuts a suite into parts that take about the same time, for several machines. Pure.

Every machine cuts the whole suite by itself and takes its own part. So the same facts must always give
the same parts; a short digest of them, the basis, lets a person see that they were the same.
"""

import hashlib
import heapq
import statistics
from collections.abc import Mapping

from e2e_runner.model import CutBy, Shard, ShardCut
from e2e_runner.text import plural

_UNKNOWN = 1.0  # seconds that each example counts when no duration is known: parts of equal count
_DIGITS = 6  # of the basis


def partition(durations: Mapping[str, float | None], count: int) -> tuple[tuple[str, ...], ...]:
    """Cut examples into `count` parts, each in the given order; some are empty when there are few.

    `durations` are seconds by path; one that is not known (None) counts as the median of the others.
    The longest goes first, to the part that has least so far: the longest part takes at most 4/3 of
    what the best cut would.

    >>> partition({"a": 4.0, "b": 1.0, "c": None, "d": 3.0}, 2)
    (('a', 'b'), ('c', 'd'))
    """
    known = [each for each in durations.values() if each is not None]
    usual = statistics.median(known) if known else _UNKNOWN
    lengths = {path: usual if each is None else each for path, each in durations.items()}
    parts: list[set[str]] = [set() for _ in range(count)]
    # Paths, so that what has no order of its own (equal lengths) does not depend on the caller's.
    loads = [(0.0, 0, index) for index in range(count)]
    heapq.heapify(loads)
    for path in sorted(lengths, key=lambda path: (-lengths[path], path)):
        load, size, index = loads[0]
        parts[index].add(path)
        heapq.heapreplace(loads, (load + lengths[path], size + 1, index))
    return tuple(tuple(path for path in durations if path in part) for part in parts)


def basis(durations: Mapping[str, float | None]) -> str:
    """Digest what a suite is cut by: the paths and their durations, in any order.

    >>> basis({"a": 4.0, "b": None}) == basis({"b": None, "a": 4.0}) != basis({"a": 4.0})
    True
    """
    facts = "".join(f"{path!a}: {durations[path]!r}\n" for path in sorted(durations))
    return hashlib.sha256(facts.encode()).hexdigest()[:_DIGITS]


def cut(shard: Shard, durations: Mapping[str, float | None], *, by: CutBy) -> ShardCut:
    """Say from what a shard is cut. `by` is where the durations are from, if any is known.

    >>> cut(Shard(index=2, count=4), {"a": None}, by=CutBy.HISTORY).by
    <CutBy.COUNT: 'count'>
    """
    known = any(each is not None for each in durations.values())
    return ShardCut(
        index=shard.index,
        count=shard.count,
        basis=basis(durations),
        by=by if known else CutBy.COUNT,
    )


def describe(
    made: ShardCut, size: int, durations: Mapping[str, float | None], *, source: str, why: str = ""
) -> str:
    """Say what part of a suite a shard of `size` examples is, and by what it was cut.

    `source` names where the durations are from; `why` says why they are not used.

    >>> durations = {"a": 4.0, "b": 1.0, "c": None}
    >>> made = cut(Shard(index=2, count=4), durations, by=CutBy.TIMINGS)
    >>> describe(made, 1, durations, source="timings.json")
    'shard 2/4: 1 of 3 examples, balanced by timings.json (basis d0b0e5), 1 not in it'
    """
    how = "of equal count" if made.by is CutBy.COUNT else f"balanced by {source}"
    words = f"shard {made}: {size} of {plural(len(durations), 'example')}, {how}"
    words += f" (basis {made.basis})"
    if made.by is CutBy.COUNT:
        return f"{words}: {why}" if why else words
    unknown = sum(each is None for each in durations.values())
    return f"{words}, {unknown} not in it" if unknown else words
