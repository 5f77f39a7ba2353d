"""What the benchmarks share: commands run and measured from the outside, and figures beside targets."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SCRIPT_PREFIX = "bench_script"  # processes whose command line names it are the benchmark's own
_POLL_SECONDS = 0.005
_WITHHELD = ("E2E_RUN", "PG", "DATABASE_URL")  # what names of variables begin with


class BenchmarkError(Exception):
    """A command that was to be measured did not do what it was to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number; `limit` is the most that the target allows, `value` None: not available."""

    name: str
    value: float | None
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none or nothing was measured."""
        if self.limit is None or self.value is None:
            return None
        return self.value <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One command that ended: seconds, exit code, output, peak memory in bytes.

    `max_rss` is that of the command or of the largest process that it waited for.
    """

    seconds: float
    code: int
    output: str
    max_rss: int
    helper_rss: int = 0  # the largest other process of e2e-run, when asked for


def run(
    argv: Sequence[str],
    cwd: Path,
    *,
    codes: tuple[int, ...] = (0,),
    extra: Mapping[str, str] | None = None,
    watch: bool = False,
) -> Finished:
    """Run a command; raise `BenchmarkError` with its output when its exit code is another one.

    The caller's settings of e2e-run and of PostgreSQL's clients do not reach it; `extra` does. It is
    terminated when this call is interrupted.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_WITHHELD)}
    helpers = _Helpers()
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env={**environment, **(extra or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            with helpers.watched(process.pid) if watch else contextlib.nullcontext():
                _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode not in codes:
        raise BenchmarkError(f"{' '.join(argv[:6])} exited {process.returncode}:\n{text[-2000:]}")
    return Finished(
        seconds=seconds,
        code=process.returncode,
        output=text,
        max_rss=usage.ru_maxrss * 1024,
        helper_rss=helpers.peak,
    )


def say(message: str) -> None:
    """Show progress, away from the figures."""
    print(message, file=sys.stderr, flush=True)


class _Helpers:
    """Polls the peak memory of a process's descendants, apart from the benchmark's own scripts."""

    def __init__(self) -> None:
        self.peak = 0

    @contextlib.contextmanager
    def watched(self, pid: int) -> Iterator[None]:
        """Poll while the block lasts."""
        ended = threading.Event()

        def poll() -> None:
            while not ended.wait(_POLL_SECONDS):
                for child in _descendants(pid):
                    self.peak = max(self.peak, _peak_memory(child))

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in read_proc(task / "children").split():
                found += [int(child), *_descendants(int(child))]
    return found


def _peak_memory(pid: int) -> int:
    if SCRIPT_PREFIX.encode() in read_proc(f"/proc/{pid}/cmdline"):
        return 0
    for line in read_proc(f"/proc/{pid}/status").splitlines():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def read_proc(path: str | Path) -> bytes:
    """Return what a file below /proc holds; nothing when its process has gone or is not ours."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def interleave(rounds: int, sides: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Call every side once a round, starting with another one each time."""
    results: dict[str, list[float]] = {name: [] for name in sides}
    for name in turns(rounds, sides):
        results[name].append(sides[name]())
    return results


def turns(rounds: int, sides: Collection[str]) -> Iterator[str]:
    """Give the names of the sides in the order in which `interleave` calls them."""
    names = list(sides)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            say(f"  round {number + 1} of {rounds}: {name}")
            yield name


def table(figures: Sequence[Figure]) -> str:
    """Lay the figures out, each beside its target."""
    rows = [("figure", "measured", "target", "", "")]
    for figure in figures:
        value = "-" if figure.value is None else _number(figure.value, figure.unit)
        target = "" if figure.limit is None else f"<= {_number(figure.limit, figure.unit)}"
        verdict = {True: "ok", False: "MISSED", None: ""}[figure.met]
        rows.append((figure.name, value, target, verdict, figure.note))
    w = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{r[0]:{w[0]}}  {r[1]:>{w[1]}}  {r[2]:>{w[2]}}  {r[3]:{w[3]}}  {r[4]}".rstrip()
        for r in rows
    )


def _number(value: float, unit: str) -> str:
    digits = 1 if unit in {"ms", "MB"} else 2
    return f"{value:.{digits}f} {unit}"


def as_json(figures: Sequence[Figure], schema: str = "e2e-run-overhead/1") -> str:
    """Give the figures as one JSON document."""
    rows = [{**asdict(figure), "met": figure.met} for figure in figures]
    return json.dumps({"schema": schema, "figures": rows}, indent=2)
