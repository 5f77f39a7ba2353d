"""The evidence on one example, in words: what every human-readable report says about it."""

from typing import assert_never

from e2e_runner import text
from e2e_runner.model import Leak, LeakedDatabase, LeakedPort, LeakedProcess, Result, Status
from e2e_runner.report.screen import render
from e2e_runner.verdict import JUDGED_CAUSES

_OUTPUT_LINES = 20
_MOST_LEAKS = 10


def leak_words(leak: Leak) -> str:
    """Name one thing that was left behind.

    >>> leak_words(LeakedProcess(pid=7, command="uvicorn app:app", ports=(8000,)))
    'process 7 (uvicorn app:app), listening on port 8000'
    """
    match leak:
        case LeakedProcess():
            name = "a process" if leak.pid is None else f"process {leak.pid}"
            words = f"{name} ({text.one_line(leak.command)})"
            if leak.ports:
                noun = "port" if len(leak.ports) == 1 else "ports"
                words += f", listening on {noun} {', '.join(map(str, leak.ports))}"
            return words
        case LeakedPort():
            owner = f", held by {text.one_line(leak.owner)}" if leak.owner else ""
            return f"port {leak.port}{owner}"
        case LeakedDatabase():
            owner = f", owned by {text.one_line(leak.owner)}" if leak.owner else ""
            doubt = f"; {text.one_line(leak.doubt)}" if leak.doubt else ""
            kept = f"; not dropped: {text.one_line(leak.kept)}" if leak.kept else ""
            return f"database {text.one_line(leak.name)}{owner}{doubt}{kept}"
        case _:
            assert_never(leak)


def last_lines(result: Result, *, most: int | None = _OUTPUT_LINES) -> tuple[str, list[str]]:
    """Give the end of the output as a terminal would show it, and a heading that says what it is.

    At most `most` lines; None is all that was kept. Output that a terminal would show nothing of gives no lines.
    """
    lines = render(result.output_tail)
    while lines and not lines[0]:
        lines.pop(0)
    earlier = 0 if most is None else max(len(lines) - most, 0)
    lines = lines[earlier:]
    if not lines:
        return "It wrote no output", []
    if not earlier and not result.output_cut:
        return "Output", lines
    if result.output_cut:
        left_out = (
            f"more than {text.plural(earlier, 'earlier line')}" if earlier else "earlier output"
        )
    else:
        left_out = text.plural(earlier, "earlier line")
    place = "in the log" if result.log else "not shown"
    return f"Output, its last {text.plural(len(lines), 'line')} (… {left_out} {place})", lines


def facts(result: Result) -> list[tuple[str, str]]:
    """Give what is known besides the output, as label and text; the reason comes first.

    The text may have lines: advice may quote what to write into a file.
    """
    found: list[tuple[str, str]] = []
    names_leaks_only = result.status is Status.LEAKED and result.leaks
    if result.reason and not names_leaks_only:
        found.append(("", _safe_lines(result.reason)))
    found += [("Advice", _safe_lines(hint)) for hint in result.hints]
    # A port is named with the process that listens on it.
    told = {port for k in result.leaks if isinstance(k, LeakedProcess) for port in k.ports}
    leaks = [k for k in result.leaks if not (isinstance(k, LeakedPort) and k.port in told)]
    found += [("Left behind", leak_words(leak)) for leak in leaks[:_MOST_LEAKS]]
    if len(leaks) > _MOST_LEAKS:
        found.append(("Left behind", f"and {len(leaks) - _MOST_LEAKS:,} more"))
    found += [("Note", _safe_lines(note)) for note in result.notes]
    if result.output_dropped:
        dropped = text.size(result.output_dropped)
        found.append(("Note", f"{dropped} from the middle of the output were dropped"))
    return found


def note(result: Result) -> str:
    """Give the one line on a result: the reason, after a cause that tells more than it does."""
    told = result.status in {Status.FAILED, Status.TIMEOUT} and result.cause not in JUDGED_CAUSES
    reason = flat(result.reason)
    if not told or result.cause is None:
        return reason
    return ": ".join(part for part in (text.one_line(result.cause), reason) if part)


def flat(words: str) -> str:
    """Put several lines on one, and make them safe to print."""
    return " ".join(text.one_line(line.strip()) for line in words.splitlines())


def _safe_lines(words: str) -> str:
    return "\n".join(text.one_line(line.rstrip()) for line in words.splitlines())


def places(result: Result) -> list[tuple[str, str]]:
    """Give where to look on and what to run, as label and text."""
    found: list[tuple[str, str]] = []
    if result.log:
        found.append(("Log", text.one_line(result.log)))
    if result.command:
        found.append(("By hand", text.one_line(result.command)))
    return found
