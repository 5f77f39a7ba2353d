"""What the live region shows: what runs now, and how far the run is. Pure: time and size are arguments."""

from collections.abc import Iterator

from e2e_runner import text
from e2e_runner.events import Phase
from e2e_runner.model import Status
from e2e_runner.report.paths import shorten_path
from e2e_runner.report.style import Line, Span, Style
from e2e_runner.state import Running, RunState
from e2e_runner.verdict import is_bad

_MOST_RUNNING = 8
_BAR = 24
_CLOSE_TO_LIMIT = 0.8
_SPINNER = "-\\|/"
_LONGEST_TITLE = 40  # columns
_WORTH_TELLING = 1.0  # seconds that a step lasts


def region(state: RunState, *, now: float, width: int, height: int, strict: bool) -> list[Line]:
    """Give the lines of the region at the time `now`, none wider than `width`, at most `height`."""
    if state.run is None or state.finished is not None:
        return []
    running = tuple(state.running.values())  # one step, while another thread may apply an event
    most = max(min(_MOST_RUNNING, height - 2), 1)
    lines = [_running(example, now=now, width=width) for example in running[:most]]
    if len(running) > most:
        lines.append([(f"  … and {len(running) - most} more", Style.DIM)])
    lines.append(_progress(state, now=now, strict=strict))
    return [_cut(line, width) for line in lines[-height:]]


def _running(example: Running, *, now: float, width: int) -> Line:
    elapsed = max(now - example.since, 0.0)
    late = elapsed > example.limit * _CLOSE_TO_LIMIT
    doing = _doing(example, now=now)
    clock = f"{text.duration(elapsed):>6} of {text.limit(example.limit)}"
    spin = _SPINNER[int(now * 4) % len(_SPINNER)]
    room = max(width - len(clock) - text.cell_width(doing) - 8, width // 3)
    return [
        (f"{spin} ", Style.LINK),
        (shorten_path(text.one_line(example.path), room), Style.PLAIN),
        (f"  {clock}", Style.WARN if late else Style.DIM),
        (f"  {doing}", Style.DIM),
    ]


def _doing(example: Running, *, now: float) -> str:
    """Say what it does: the step that it is in, while nothing more is known than that it runs."""
    if example.phase is Phase.RUNNING and example.step is not None:
        step = example.step
        lasts = now - step.since
        since = f" {text.age(lasts)}" if lasts >= _WORTH_TELLING else ""
        return f"▸ {text.shorten(text.one_line(step.title), _LONGEST_TITLE)}{since}"
    phase = example.phase.value if example.phase else ""
    return f"{phase}: {text.one_line(example.detail)}" if example.detail else phase


def _progress(state: RunState, *, now: float, strict: bool) -> Line:
    filled = _BAR * state.done // state.selected if state.selected else 0
    bad = sum(n for status, n in state.counts.items() if is_bad(status, strict=strict))
    line: list[Span] = [
        ("━" * filled, Style.BAD if bad else Style.OK),
        ("─" * (_BAR - filled), Style.DIM),
        (f" {state.done}/{state.selected}", Style.PLAIN),
    ]
    ran_ok = sum(
        count
        for status, count in state.counts.items()
        if status is not Status.SKIPPED and not is_bad(status, strict=strict)
    )
    line.append((f"  {ran_ok} ok", Style.OK if ran_ok else Style.DIM))
    if bad:
        line.append((f", {bad} not ok", Style.BAD))
    line.append((f"  {text.duration(max(now, 0.0))}", Style.DIM))
    return line


def _cut(line: Line, width: int) -> Line:
    """Cut a line at the width, so that it never takes a second row."""
    return list(_fitting(line, width))


def _fitting(line: Line, width: int) -> Iterator[Span]:
    left = width
    for words, style in line:
        columns = text.cell_width(words)
        if columns > left:
            if left > 1:
                yield text.shorten(words, left), style
            return
        yield words, style
        left -= columns
