"""Python's tracebacks in an output: frames of others folded away, and the last error. Pure.

Only what is surely a frame of a whole traceback is folded. The last frame of each traceback and the
lines of its exception always stay.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_HEADER = re.compile(
    r"(?P<margin>(?: *[|+] )?)(?P<group>Exception Group )?Traceback \(most recent call last\):"
)
_FRAME = re.compile(r'  File "(?P<file>[^"]+)", line \d+, in .+')
_REPEATED = re.compile(r"  \[Previous line repeated (?P<more>\d+) more times?\]")
_SOURCE = "    "  # what the lines below a frame begin with
_RAISED = re.compile(r"[A-Za-z_][\w.]*(?:: .*)?")

_FROZEN = re.compile(r"<frozen (?P<module>[\w.]+)>")
_INSTALLED = re.compile(r".*/(?:site|dist)-packages/(?P<module>[^/]+)")
_STANDARD = re.compile(r"(?:.*/)?lib/(?:python|pypy)3(?:\.\d+)?t?/(?P<module>[^/]+)")
_KIT = Path(__file__).parent.parent / "kit"
_MOST_NAMES = 4
_MOST_AFTER_ERROR = 12  # lines that are still of the error that ended the script


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A line that is shown, and how many lines of the output it stands for."""

    line: str
    count: int = 1


@dataclass(slots=True, kw_only=True)
class _Frame:
    """A frame of a traceback, with its lines of source."""

    lines: list[str]
    module: str  # of others that it is in; empty for one of the project
    repeated: int = 0  # times that it stands for besides


def fold(lines: Sequence[str], root: Path) -> list[Shown]:
    """Replace runs of frames that lie outside the project at `root` by a line that counts them."""
    shown: list[Shown] = []
    at = 0
    while at < len(lines):
        shown.append(Shown(line=lines[at]))
        header = _HEADER.fullmatch(lines[at])
        at += 1
        if header is None:
            continue
        margin = header["margin"].replace("+", "|")
        frames, end = _read(lines, at, margin, root)
        if frames and end < len(lines) and _ends_traceback(lines[end], margin):
            shown += _folded(frames, margin)
            at = end
    return shown


def last_error(lines: Sequence[str]) -> str:
    """Give the line of the exception of the last traceback; empty where it is not near the end."""
    for at in range(len(lines) - 1, -1, -1):
        header = _HEADER.fullmatch(lines[at])
        if header is None:
            continue
        margin = header["margin"].replace("+", "|")
        for number, line in enumerate(lines[at + 1 :], start=at + 1):
            said = line.removeprefix(margin)
            if said and not said[0].isspace():
                near = len(lines) - number <= _MOST_AFTER_ERROR
                return said if near and _RAISED.fullmatch(said) else ""
        return ""
    return ""


def _ends_traceback(line: str, margin: str) -> bool:
    """Tell whether this is a line of the exception; a syntax error begins with its place."""
    said = line.removeprefix(margin)
    return line.startswith(margin) and (said[:1].strip() != "" or said.startswith('  File "'))


def _read(lines: Sequence[str], start: int, margin: str, root: Path) -> tuple[list[_Frame], int]:
    """Read the frames from a line on; gives them with the first line that is of none."""
    frames: list[_Frame] = []
    at = start
    while at < len(lines) and lines[at].startswith(margin):
        line = lines[at].removeprefix(margin)
        frame, repeated = _FRAME.fullmatch(line), _REPEATED.fullmatch(line)
        if frame is not None:
            frames.append(_Frame(lines=[lines[at]], module=_module(frame["file"], root)))
        elif frames and repeated is not None:
            frames[-1].lines.append(lines[at])
            frames[-1].repeated += int(repeated["more"][:9])
        elif frames and line.startswith(_SOURCE):
            frames[-1].lines.append(lines[at])
        else:
            break
        at += 1
    return frames, at


def _folded(frames: Sequence[_Frame], margin: str) -> Iterator[Shown]:
    run: list[_Frame] = []
    for frame in frames[:-1]:
        if frame.module:
            run.append(frame)
            continue
        yield from _run(run, margin)
        run = []
        yield from _whole([frame])
    yield from _run(run, margin)
    yield from _whole(frames[-1:])


def _run(run: Sequence[_Frame], margin: str) -> Iterator[Shown]:
    count = sum(len(frame.lines) for frame in run)
    if count <= 1:
        yield from _whole(run)
        return
    frames = sum(1 + frame.repeated for frame in run)
    modules = list(dict.fromkeys(frame.module for frame in run))
    named = ", ".join(modules[:_MOST_NAMES])
    others = " and others" if len(modules) > _MOST_NAMES else ""
    noun = "frame" if frames == 1 else "frames"
    yield Shown(line=f"{margin}  … {frames:,} {noun} in {named}{others}", count=count)


def _whole(frames: Iterable[_Frame]) -> Iterator[Shown]:
    for frame in frames:
        yield from (Shown(line=line) for line in frame.lines)


def _module(file: str, root: Path) -> str:
    """Name the library that a file is of; empty for one of the project, and where that is in doubt.

    >>> _module("/usr/lib/python3.11/asyncio/base_events.py", Path("/srv/shop"))
    'asyncio'
    >>> _module("/srv/shop/.venv/lib/python3.11/site-packages/httpx/_client.py", Path("/srv/shop"))
    'httpx'
    >>> _module("/srv/shop/examples/a.py", Path("/srv/shop")), _module("asyncpg/x.pyx", Path("/srv"))
    ('', '')
    """
    frozen = _FROZEN.fullmatch(file)
    if frozen is not None:
        return frozen["module"].partition(".")[0]
    path = Path(file)
    if not path.is_absolute():
        return ""
    if path.is_relative_to(_KIT):
        return "e2e_runner"
    inside = path.relative_to(root) if path.is_relative_to(root) else path
    found = _INSTALLED.match(f"/{inside}") or _STANDARD.match(f"{inside}")
    return found["module"].removesuffix(".py") if found is not None else ""
