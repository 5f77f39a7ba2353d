"""What a call of `e2e_runner.kit` costs: `make bench`, or `python benchmarks/kit.py --help`.

Each figure is the mean of many calls in a process of its own, and the median of that over the rounds:
by hand, where the call only prints to people; under a run, where it also writes a record to a file;
and that with all steps printed. Beside each stands how many times it takes what one `logging.info` into
a file takes, in a process of its own in the same rounds.
"""

import argparse
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from measure import BenchmarkError, Figure, as_json, interleave, run, say, table

LIMIT = 1000.0  # microseconds: a call costs less than a millisecond
BASELINE = "logging.info, to a file"

WORKER = """\
import os, sys, time
call, count, result = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.stdout = open("output", "a")
if call == "logging":
    import logging
    logging.basicConfig(filename="output", level=logging.INFO)
else:
    from e2e_runner import kit
def with_step():
    with kit.step("place orders"):
        pass
calls = {
    "logging": lambda: logging.info("place orders"),
    "print": lambda: print("place orders", flush=True),
    "with step(...)": with_step,
    "step(...)": lambda: kit.step("place orders"),
    "section": lambda: kit.section("Orders"),
    "metric": lambda: kit.metric("files processed", 3),
    "check, which passes": lambda: kit.check({"id": 1}, {"id": 1}, why="it is stored"),
    "unique_name": lambda: kit.unique_name("shop"),
    "wait_until, true at once": lambda: kit.wait_until(lambda: True),
    "success": lambda: kit.success("All orders placed"),
}
call = calls[call]
call()
began = time.perf_counter()
for _ in range(count):
    call()
seconds = time.perf_counter() - began
with open(result, "w") as file:
    print(seconds / count * 1e6, file=file)
"""

# What is measured: the call, and where it is made.
BY_HAND, UNDER_A_RUN, ALL_PRINTED = "by hand", "under a run", "under a run, verbose"
NARRATED = ("with step(...)", "step(...)", "section", "metric", "success")
OTHERS = ("check, which passes", "unique_name", "wait_until, true at once")
MEASURED = [
    *((call, where) for call in NARRATED for where in (BY_HAND, UNDER_A_RUN, ALL_PRINTED)),
    *((call, BY_HAND) for call in OTHERS),
]


def measure(work: Path, *, count: int, rounds: int) -> list[Figure]:
    """Time each call, and the baseline."""
    say(f"{count} calls of each")
    worker = work / "worker.py"
    worker.write_text(WORKER)
    sides = {
        BASELINE: partial(_time, worker, "logging", count, BY_HAND),
        "print, flushed, to a file": partial(_time, worker, "print", count, BY_HAND),
        **{
            f"{call}, {where}": partial(_time, worker, call, count, where)
            for call, where in MEASURED
        },
    }
    times = interleave(rounds, sides)
    median = {name: statistics.median(values) for name, values in times.items()}
    return [
        Figure(
            name=name,
            value=microseconds,
            unit="us",
            limit=None if name == BASELINE else LIMIT,
            note=""
            if name == BASELINE
            else f"{microseconds / median[BASELINE]:.2f} x logging.info",
        )
        for name, microseconds in median.items()
    ]


def _time(worker: Path, call: str, count: int, where: str) -> float:
    """Return the microseconds of a call."""
    result, records = worker.with_name("result"), worker.with_name("records")
    records.write_bytes(b"")
    told = where != BY_HAND
    extra = {"E2E_VERBOSE": "true" if where == ALL_PRINTED else ""}
    if told:
        extra["E2E_RUN_RECORDS"] = str(records)
    run([sys.executable, str(worker), call, str(count), str(result)], worker.parent, extra=extra)
    if told and records.read_bytes().count(b"\n") < count:
        raise BenchmarkError(f"{call}: {count} calls left fewer records")
    return float(result.read_text())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measures what the kit's calls cost.")
    parser.add_argument("--count", type=int, default=5000, help="calls of each (default: 5000)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.count < 1 or options.rounds < 1:
        parser.error("--count and --rounds are at least 1")
    count, rounds = (200, 2) if options.quick else (options.count, options.rounds)
    with tempfile.TemporaryDirectory(prefix="e2e-run-bench-") as folder:
        figures = measure(Path(folder), count=count, rounds=rounds)
    print(as_json(figures, "e2e-run-kit/1") if options.json else table(figures))


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
