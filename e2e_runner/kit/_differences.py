"""What differs between what was expected and what came, in words. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from e2e_runner.kit._words import cut, said, shown
from e2e_runner.text import one_line, plural

_ONE_LINE = 100  # characters of two values that are shown side by side, and no more is said
_SHORT = 80  # of a value within a line
_WINDOW = 60  # characters of a long text, around the place where it differs
_LONGEST_VALUE = 300  # of a value on a line of its own
_LONGEST_COMPARED = 10_000  # of an item of a list
_MOST_ALIGNED = 1000  # items of lists that are aligned, which takes the square of that
_MOST_LINES = 20  # of differences
_DEEPEST = 8  # nested containers that are compared one by one


def _type(value: object) -> str:
    return type(value).__name__


def _shown(value: object, most: int) -> str:
    return one_line(shown(value, most))


def incomparable(actual: object, expected: object, error: Exception) -> str:
    """Say why two values cannot be compared."""
    compared = f"cannot compare {_type(actual)} with {_type(expected)} by =="
    if hasattr(actual, "tolist") or hasattr(expected, "tolist"):
        return (
            f"{compared}, which compares the items of arrays one by one; "
            f"compare x.tolist(), or check(bool((x == y).all())): {said(error)}"
        )
    return f"{compared}: {said(error)}"


def words(actual: object, expected: object) -> str:
    """Say what was expected and what came; the first line can stand alone."""
    if _whole(expected) == _whole(actual):
        return (
            f"expected {_shown(expected, _LONGEST_VALUE)}, and got what looks alike but is not equal "
            f"({_type(expected)} expected, {_type(actual)} came)"
        )
    plain = f"expected {_shown(expected, _SHORT)}, got {_shown(actual, _SHORT)}"
    if isinstance(actual, bool) and isinstance(expected, str):
        return f"{plain}; if that text says why, name it: check(..., why=...)"
    lengths = len(_whole(expected)), len(_whole(actual))
    if sum(lengths) <= _ONE_LINE:
        return plain
    differences = _first(_differences(actual, expected, ""))
    if not differences and max(lengths) <= _SHORT:
        return plain
    first, *others = differences or [plain]
    return "\n".join(
        [
            first,
            f"  expected: {_shown(expected, _LONGEST_VALUE)}",
            f"  got:      {_shown(actual, _LONGEST_VALUE)}",
            *(f"  {line}" for line in others),
        ]
    )


def _first(lines: Iterator[str]) -> list[str]:
    """Keep the first lines, and say when there are more."""
    kept: list[str] = []
    for line in lines:
        if len(kept) == _MOST_LINES:
            return [*kept[:-1], "and more"]
        kept.append(line)
    return kept


def _differences(actual: object, expected: object, path: str) -> Iterator[str]:
    """Say where two values differ, one line for each place; `path` leads to them."""
    if path.count("[") < _DEEPEST:
        match actual, expected:
            case (Mapping(), Mapping()):
                yield from _in_mappings(actual, expected, path)
                return
            case (AbstractSet(), AbstractSet()):
                yield from _in_sets(actual, expected, path)
                return
            case (str(), str()):
                yield from _in_texts(actual, expected, path)
                return
            case (bytes(), bytes()):
                yield from _in_texts(actual, expected, path)
                return
            case (list() | tuple(), list() | tuple()):
                yield from _in_sequences(actual, expected, path)
                return
    if path:
        yield f"{path}: expected {_shown(expected, _SHORT)}, got {_shown(actual, _SHORT)}"


def _in_mappings(
    actual: Mapping[Any, Any], expected: Mapping[Any, Any], path: str
) -> Iterator[str]:
    for key, value in expected.items():
        where = f"{path}[{_shown(key, _SHORT)}]"
        if key not in actual:
            yield f"{where} is missing: expected {_shown(value, _SHORT)}"
        elif not _equal(actual[key], value):
            yield from _differences(actual[key], value, where)
    for key, value in actual.items():
        if key not in expected:
            yield f"{path}[{_shown(key, _SHORT)}] was not expected: {_shown(value, _SHORT)}"


def _in_sets(actual: AbstractSet[Any], expected: AbstractSet[Any], path: str) -> Iterator[str]:
    at = f"{path}: " if path else ""
    yield from sorted(f"{at}missing: {_shown(each, _SHORT)}" for each in expected - actual)
    yield from sorted(f"{at}not expected: {_shown(each, _SHORT)}" for each in actual - expected)


def _in_sequences(actual: Sequence[Any], expected: Sequence[Any], path: str) -> Iterator[str]:
    if type(actual) is not type(expected):
        yield f"{path or 'it'} is a {_type(actual)}, expected a {_type(expected)}"
    if len(actual) == len(expected):
        for index, (came, wanted) in enumerate(zip(actual, expected, strict=True)):
            if not _equal(came, wanted):
                yield from _differences(came, wanted, f"{path}[{index}]")
        return
    from difflib import SequenceMatcher

    yield f"{path}{': ' if path else ''}expected {plural(len(expected), 'item')}, got {len(actual):,}"
    came_texts, wanted_texts = (list(map(_whole, each)) for each in (actual, expected))
    if max(len(actual), len(expected)) > _MOST_ALIGNED:
        yield f"{path}[{_parting(came_texts, wanted_texts)}] is the first that differs"
        return
    # Where items came or went, those behind them are not compared with their neighbours.
    matcher = SequenceMatcher(None, wanted_texts, came_texts, autojunk=False)
    for tag, start, end, at, until in matcher.get_opcodes():
        if tag == "equal":
            continue
        for index in range(start, end):
            yield f"{path}[{index}] is missing: expected {_shown(expected[index], _SHORT)}"
        for index in range(at, until):
            yield f"{path}[{index}] was not expected: {_shown(actual[index], _SHORT)}"


def _in_texts(actual: str | bytes, expected: str | bytes, path: str) -> Iterator[str]:
    at = f"{path}: " if path else ""
    if isinstance(actual, str) and isinstance(expected, str) and "\n" in expected.strip():
        from difflib import unified_diff

        before, after = expected.splitlines(), actual.splitlines()
        diff = unified_diff(before, after, "expected", "got", n=1, lineterm="")
        if lines := [cut(one_line(line), _LONGEST_VALUE) for line in diff]:
            yield f"{at}the texts differ"
            yield from lines
            return
    if max(len(actual), len(expected)) <= _SHORT:
        yield f"{at}expected {expected!r}, got {actual!r}"
        return
    start = max(_parting(actual, expected) - _WINDOW // 2, 0)
    wanted, came = expected[start : start + _WINDOW], actual[start : start + _WINDOW]
    since = f"from character {start:,} on, " if start else ""
    yield f"{at}{since}expected {wanted!r}, got {came!r}"


def _parting(actual: Sequence[Any], expected: Sequence[Any]) -> int:
    """Give the index of the first difference."""
    pairs = enumerate(zip(actual, expected, strict=False))
    shorter = min(len(actual), len(expected))
    return next((index for index, (came, wanted) in pairs if came != wanted), shorter)


def _whole(value: object) -> str:
    return _shown(value, _LONGEST_COMPARED)


def _equal(one: object, other: object) -> bool:
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - of a class that we know nothing of
        return False
