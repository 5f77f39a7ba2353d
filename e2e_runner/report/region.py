"""What the live region shows: what runs now, and how far the run is. Pure: time and size are arguments."""

from collections.abc import Iterator, Sequence

from e2e_runner import text
from e2e_runner.events import Phase
from e2e_runner.model import Status
from e2e_runner.report.paths import common_folder, shorten_alike
from e2e_runner.report.style import Line, Span, Style
from e2e_runner.state import Running, RunState
from e2e_runner.verdict import is_bad

_MOST_RUNNING = 8  # in a terminal of usual height; in a taller one, a third of it
_BAR = 24
_CLOSE_TO_LIMIT = 0.8
_SPINNER = "-\\|/"
_BESIDE_PATH = 6  # columns: spinner and gaps
_LONGEST_TITLE = 40  # columns
_WORTH_TELLING = 1.0  # seconds that a step lasts


def region(state: RunState, *, now: float, width: int, height: int, strict: bool) -> list[Line]:
    """Give the lines of the region at the time `now`, none wider than `width`, at most `height`."""
    if state.run is None or state.finished is not None:
        return []
    now_running = tuple(state.running.values())  # one step, while another thread may apply an event
    running = sorted(now_running, key=lambda example: example.since)
    most = min(max(_MOST_RUNNING, height // 3), max(height - 1, 0))
    if len(running) > most:  # what is left out takes a line
        most = min(most, max(height - 2, 0))
    lines = _running(running[:most], now=now, width=width)
    if len(running) > most:
        rest = f"… and {len(running) - most} more" if lines else f"{len(running)} running"
        lines.append([(f"  {rest}", Style.DIM)])
    lines.append(_progress(state, now=now, strict=strict))
    return [_cut(line, width) for line in lines[-height:]]


def _running(examples: Sequence[Running], *, now: float, width: int) -> list[Line]:
    """Give a line each, in columns. Paths give way before what an example does, down to two fifths."""
    doing = [_doing(example, now=now) for example in examples]
    clocks = [
        f"{text.duration(max(now - example.since, 0.0)):>6} of {text.limit(example.limit)}"
        for example in examples
    ]
    clock = max(map(len, clocks), default=0)
    taken = clock + max(map(text.cell_width, doing), default=0) + _BESIDE_PATH
    names = [text.one_line(example.path) for example in examples]
    folder = common_folder(example.path for example in examples)
    paths = shorten_alike(names, folder, max(width - taken, width * 2 // 5))
    widest = max(map(text.cell_width, paths), default=0)
    spin = _SPINNER[int(now * 4) % len(_SPINNER)]
    lines: list[Line] = []
    for example, path, elapsed, does in zip(examples, paths, clocks, doing, strict=True):
        late = now - example.since > example.limit * _CLOSE_TO_LIMIT
        lines.append(
            [
                (f"{spin} ", Style.LINK),
                (path + " " * (widest - text.cell_width(path)), Style.PLAIN),
                (f"  {elapsed:<{clock}}", Style.WARN if late else Style.DIM),
                (f"  {does}", Style.DIM),
            ]
        )
    return lines


def _doing(example: Running, *, now: float) -> str:
    """Say what it does: the step that it is in, while nothing more is known than that it runs."""
    parts = [f"attempt {example.attempt}"] if example.attempt > 1 else []
    if example.phase is Phase.RUNNING and example.step is not None:
        step = example.step
        lasts = now - step.since
        since = f" {text.age(lasts)}" if lasts >= _WORTH_TELLING else ""
        parts.append(f"▸ {text.shorten(text.one_line(step.title), _LONGEST_TITLE)}{since}")
    elif example.phase:
        detail = f": {text.one_line(example.detail)}" if example.detail else ""
        parts.append(f"{example.phase.value}{detail}")
    return ", ".join(parts)


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
