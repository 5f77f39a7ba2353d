"""Examples that are told of in one block, as each would say the same. Pure.

What blocks one example often blocks many: no PostgreSQL, a port that is taken, no network. And an
interrupt ends all that run at the moment.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from e2e_runner import text
from e2e_runner.events import AttemptFinished
from e2e_runner.model import Result, Status
from e2e_runner.report.evidence import brief, facts
from e2e_runner.report.layout import cut, paragraph, status_style, status_words, took
from e2e_runner.report.paths import common_folder
from e2e_runner.report.style import Line, Style

_MOST_ONE_BY_ONE = 3  # interrupted examples; of more, none stands out
_INDENT = "  "
_INTERRUPTED = "interrupted"  # what they have in common

Earlier = Callable[[str], Sequence[AttemptFinished]]


def grouped(results: Iterable[Result], earlier: Earlier) -> list[list[Result]]:
    """Put together the results that are told of in one block, each group where its first one stands.

    `earlier` gives the attempts at an example before the one that counts.
    """
    groups: dict[object, list[Result]] = {}
    for result in results:
        common = _common(result) if not earlier(result.path) else None
        groups.setdefault(common or result.path, []).append(result)
    return [part for group in groups.values() for part in _parts(group)]


def _common(result: Result) -> object:
    """Give what a result shares with others; None where it has evidence of its own."""
    if result.status is Status.NOT_RUN and result.attempts:
        return _INTERRUPTED, ()
    if result.status is not Status.BLOCKED or result.output_tail or result.steps:
        return None
    return result.cause, tuple(facts(result))


def _parts(group: list[Result]) -> list[list[Result]]:
    few = group[0].status is Status.NOT_RUN and len(group) <= _MOST_ONE_BY_ONE
    return [[each] for each in group] if few else [group]


def block(group: Sequence[Result], *, width: int | None, strict: bool) -> Iterator[Line]:
    """Tell of a group of at least two; `width` None leaves long lines whole."""
    first = group[0]
    yield []
    yield [
        (status_words(first.status), status_style(first.status, strict=strict)),
        (f"  {text.plural(len(group), 'example')}", Style.BOLD),
        (f"  ({first.cause})" if first.cause else "", Style.DIM),
    ]
    yield from _interrupted(group, width) if not first.cause else _blocked(group, width)


def _blocked(group: Sequence[Result], width: int | None) -> Iterator[Line]:
    for label, words in facts(group[0]):
        kind = Style.LINK if label == "Advice" else Style.PLAIN
        yield from paragraph(f"{label}: {words}" if label else words, width, kind)
    for result in group:
        yield [(f"{2 * _INDENT}{text.one_line(result.path)}", Style.PLAIN)]
    if group[0].command:
        label = f"{_INDENT}By hand: "
        yield [(label, Style.DIM), (text.one_line(group[0].command), Style.PLAIN)]


def _interrupted(group: Sequence[Result], width: int | None) -> Iterator[Line]:
    paths = [text.one_line(each.path) for each in group]
    longest = max(map(text.cell_width, paths))
    for result, path in zip(group, paths, strict=True):
        at = f"{2 * _INDENT}{path}{' ' * (longest - text.cell_width(path))}"
        words = f"{_INDENT}{brief(result)}"
        if width is not None:
            words = cut(words, max(width - text.cell_width(at), len(_INDENT) + len(took(result))))
        yield [(at, Style.PLAIN), (words, Style.DIM)]
    folder = common_folder(each.log for each in group if each.log)
    if folder:
        yield [(f"{_INDENT}Logs:    ", Style.DIM), (text.one_line(folder), Style.PLAIN)]
