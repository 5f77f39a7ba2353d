"""What e2e-run costs: `make bench`, or `python benchmarks/overhead.py --help`.

Runs the `e2e-run` that is installed beside this interpreter, through its command line only, and prints
each figure beside its target:

* trivial scripts, one after another, against `xargs -P1` and against a hand-written pytest file;
* start-up, against importing click;
* the runner's peak memory, with and without a script that floods its output;
* the time from the kill decision to the verdict, for a script whose children ignore SIGTERM;
* with ``--scale``: whether 10,000 scripts cost more for each script, or more memory, than 300.

What is compared is interleaved in one run, and the figures are medians, so that a machine that slows
down or speeds up meanwhile does not favour one side.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from measure import (
    SCRIPT_PREFIX,
    BenchmarkError,
    Figure,
    as_json,
    interleave,
    read_proc,
    run,
    say,
    table,
)

MB = 1_000_000
PYTHON = sys.executable
E2E_RUN = str(Path(sys.executable).with_name("e2e-run"))
TIERS = ("cgroup", "pid-namespace", "scan")
CHILDREN = 200
_MARK = "E2E_BENCH_MARK"

FLOOD = """\
import sys
block = ("x" * 99 + "\\n") * 10_000
for _ in range({megabytes}):
    sys.stdout.write(block)
"""
STUBBORN = f"""\
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range({CHILDREN}):
    if os.fork() == 0:
        while True:
            signal.pause()
print("{CHILDREN} children", flush=True)
while True:
    signal.pause()
"""
BASELINE = """\
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(Path({folder!r}).glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script(script):
    subprocess.run([sys.executable, script], check=True)
"""


def e2e_run(folder: Path, *options: str) -> list[str]:
    """Make the command line that runs a folder with e2e-run."""
    return [E2E_RUN, "--python", PYTHON, "--color", "never", *options, str(folder)]


def make_scripts(folder: Path, count: int) -> Path:
    """Write `count` scripts that print one line; return their folder, which is a project of its own."""
    folder.mkdir()
    (folder / "e2e-run.toml").touch()
    for number in range(1, count + 1):
        (folder / f"{SCRIPT_PREFIX}_{number:05}.py").write_text(f'print("script {number}")\n')
    return folder


def make_script(folder: Path, text: str) -> Path:
    """Write one script into a project of its own; return the folder."""
    make_scripts(folder, 0)
    (folder / f"{SCRIPT_PREFIX}.py").write_text(text)
    return folder


# --- what is measured ----------------------------------------------------------------------------


def measure_overhead(work: Path, *, count: int, rounds: int) -> list[Figure]:
    """Time the same scripts through e2e-run, xargs and a hand-written pytest file."""
    say(f"{count} trivial scripts, one after another")
    scripts = make_scripts(work / "overhead", count)
    names = work / "names"
    names.write_bytes(b"\0".join(os.fsencode(path) for path in sorted(scripts.glob("*.py"))))
    baseline = work / "test_baseline.py"
    baseline.write_text(BASELINE.format(folder=str(scripts)))
    pytest = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(work)]
    # The baseline is given its best case: no plug-ins that this environment happens to hold.
    bare = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    times = interleave(
        rounds,
        {
            "e2e-run": lambda: run(e2e_run(scripts), work).seconds,
            "xargs": lambda: (
                run(["xargs", "-0", "-P1", "-n1", "-a", str(names), PYTHON], work).seconds
            ),
            "pytest": lambda: run([*pytest, str(baseline)], work, extra=bare).seconds,
        },
    )
    median = {name: statistics.median(values) for name, values in times.items()}
    pairs = [e2e / xargs for e2e, xargs in zip(times["e2e-run"], times["xargs"], strict=True)]
    spread = f"in single rounds {min(pairs):.2f} to {max(pairs):.2f}"
    ratio = median["pytest"] / median["xargs"]
    return [
        *(
            Figure(name=f"{name}, {count} scripts", value=seconds, unit="s")
            for name, seconds in median.items()
        ),
        Figure(
            name="e2e-run / xargs -P1",
            value=median["e2e-run"] / median["xargs"],
            unit="x",
            limit=1.15,
            note=spread,
        ),
        Figure(name="pytest / xargs -P1", value=ratio, unit="x"),
        Figure(
            name="e2e-run / pytest",
            value=median["e2e-run"] / median["pytest"],
            unit="x",
            limit=1.0,
        ),
    ]


def measure_startup(work: Path, *, rounds: int) -> list[Figure]:
    """Time `e2e-run --version` against the import of the library that its command line needs."""
    say("start-up")
    times = interleave(
        rounds,
        {
            "e2e-run --version": lambda: run([E2E_RUN, "--version"], work).seconds,
            "import click": lambda: run([PYTHON, "-c", "import click"], work).seconds,
        },
    )
    median = {name: statistics.median(values) for name, values in times.items()}
    return [
        *(Figure(name=name, value=seconds * 1000, unit="ms") for name, seconds in median.items()),
        Figure(
            name="--version / import click",
            value=median["e2e-run --version"] / median["import click"],
            unit="x",
            limit=1.5,
        ),
    ]


def measure_memory(work: Path, *, megabytes: int) -> list[Figure]:
    """Measure the peak memory of the runner and of its largest helper, with and without a flood."""
    say(f"memory during a flood of {megabytes} MB")
    quiet = run(e2e_run(make_scripts(work / "quiet", 1)), work, watch=True)
    flood = run(
        e2e_run(make_script(work / "flood", FLOOD.format(megabytes=megabytes))), work, watch=True
    )
    growth = flood.max_rss - quiet.max_rss
    return [
        Figure(name="runner's peak, no flood", value=quiet.max_rss / MB, unit="MB"),
        Figure(
            name=f"runner's peak, {megabytes} MB flood",
            value=flood.max_rss / MB,
            unit="MB",
            limit=80,
        ),
        Figure(name="growth by the flood", value=growth / MB, unit="MB", limit=10),
        Figure(name="largest helper, no flood", value=quiet.helper_rss / MB, unit="MB"),
        Figure(name="largest helper, flood", value=flood.helper_rss / MB, unit="MB"),
    ]


def measure_kill(work: Path, *, rounds: int) -> list[Figure]:
    """Time the end of a script with many children that ignore SIGTERM, in each containment tier."""
    folder = make_script(work / "stubborn", STUBBORN)
    figures = []
    for tier in TIERS:
        say(f"killing {CHILDREN} children: {tier}")
        name = f"kill {CHILDREN} children, {tier}"
        limit = None if tier == "scan" else 100.0
        times = []
        missing = ""
        for _ in range(rounds):
            seconds, missing = _kill_once(folder, work, tier)
            if seconds is None:
                break
            times.append(seconds * 1000)
        figures.append(
            Figure(
                name=name,
                value=statistics.median(times) if times else None,
                unit="ms",
                limit=limit,
                note=missing or f"at most {max(times):.0f}",
            )
        )
    return figures


def _kill_once(folder: Path, work: Path, tier: str) -> tuple[float | None, str]:
    """Return the seconds from the kill decision to the verdict, or None and why there are none."""
    events, report = work / "events.jsonl", work / "report.json"
    mark = uuid.uuid4().hex
    reports = ("--report", f"jsonl={events}", "--report", f"json={report}")
    done = run(
        e2e_run(folder, "--timeout", "1500ms", "--grace", "100ms", *reports),
        work,
        codes=(1, 2, 3),
        extra={"E2E_RUN_CONTAINMENT": tier, _MARK: mark},
    )
    survivors = _kill_survivors(mark)
    if survivors:
        raise BenchmarkError(f"{tier}: {survivors} of {CHILDREN} children survived the run")
    if done.code != 1:
        return None, f"not available here: {done.output.strip().splitlines()[0]}"
    document = json.loads(report.read_text())
    in_force = document["run"]["isolation"]["processes"]
    if in_force != tier:
        return None, f"not available here: {in_force} was used instead"
    if f"{CHILDREN} children" not in document["examples"][0]["output_tail"]:
        raise BenchmarkError(f"{tier}: the script had no time to start its children")
    lines: list[dict[str, Any]] = [json.loads(line) for line in events.read_text().splitlines()]
    killing = next(line["at"] for line in lines if line.get("phase") == "killing")
    finished = next(line["at"] for line in lines if line["event"] == "example-finished")
    return finished - killing, ""


def _kill_survivors(mark: str) -> int:
    """Kill what carries this round's mark, and count it."""
    wanted = f"{_MARK}={mark}".encode()
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and wanted in read_proc(entry / "environ").split(b"\0"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)
                count += 1
    return count


def measure_scale(work: Path, *, few: int, many: int, rounds: int) -> list[Figure]:
    """Compare the time for each script, start-up apart, and the runner's memory at two sizes."""
    say(f"{few} scripts against {many}")
    one = make_scripts(work / "one", 1)
    small = make_scripts(work / "few", few)
    large = make_scripts(work / "many", many)
    startups = [run(e2e_run(one), work) for _ in range(3)]
    before = [run(e2e_run(small), work) for _ in range(rounds)]
    at_many = run(e2e_run(large), work)
    after = [run(e2e_run(small), work) for _ in range(rounds)]
    startup = statistics.median(done.seconds for done in startups)
    at_few = statistics.median(done.seconds for done in before + after)
    each_few = (at_few - startup) / (few - 1)
    each_many = (at_many.seconds - startup) / (many - 1)
    memory_few = statistics.median(done.max_rss for done in before + after)
    return [
        Figure(name=f"each of {few} scripts", value=each_few * 1000, unit="ms"),
        Figure(name=f"each of {many} scripts", value=each_many * 1000, unit="ms"),
        Figure(
            name=f"each of {many} / each of {few}", value=each_many / each_few, unit="x", limit=1.1
        ),
        Figure(name=f"runner's peak, {few} scripts", value=memory_few / MB, unit="MB"),
        Figure(name=f"runner's peak, {many} scripts", value=at_many.max_rss / MB, unit="MB"),
        Figure(
            name="growth by more scripts",
            value=(at_many.max_rss - memory_few) / MB,
            unit="MB",
            limit=10,
        ),
    ]


# --- the command ---------------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures what e2e-run costs.")
    parser.add_argument("--count", type=int, default=300, help="trivial scripts (default: 300)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--scale", action="store_true", help="also 300 against 10,000 scripts")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    if arguments.count < 1 or arguments.rounds < 1:
        parser.error("--count and --rounds are at least 1")
    return arguments


def main() -> None:
    """Measure and print."""
    options = _arguments()
    quick = options.quick
    count, rounds = (min(options.count, 40), 2) if quick else (options.count, options.rounds)
    with tempfile.TemporaryDirectory(prefix="e2e-run-bench-") as folder:
        work = Path(folder)
        figures = measure_overhead(work, count=count, rounds=rounds)
        figures += measure_startup(work, rounds=3 if quick else 15)
        figures += measure_memory(work, megabytes=20 if quick else 200)
        figures += measure_kill(work, rounds=1 if quick else rounds)
        if options.scale:
            few, many = (20, 200) if quick else (300, 10_000)
            figures += measure_scale(work, few=few, many=many, rounds=1 if quick else 2)
    print(as_json(figures) if options.json else table(figures))


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
