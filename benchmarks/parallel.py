"""What running side by side costs and brings: `make bench`, or `python benchmarks/parallel.py --help`.

Every example here starts a server on the same port and talks to it for a second, as examples do. Runs
the `e2e-run` that is installed beside this interpreter, through its command line only, and prints each
figure beside its target:

* 24 of them with 8 jobs, each in a network of its own, as this user and, if that is root, as an
  ordinary one: against 24/8 times one of them by itself;
* the same with one job, and on the network of the machine, where the port is a lock;
* the same under `xargs -P8`, where the port is taken: how many live to tell;
* 500 at once, all listening on the port at the same moment, against `xargs -P500` with a port for each;
* what a network of its own costs a trivial script;
* trivial scripts with two jobs, against `xargs -P2`.

What is compared is interleaved in one run, and the figures are medians.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from measure import SCRIPT_PREFIX, BenchmarkError, Figure, as_json, interleave, run, say, table

PYTHON = sys.executable
E2E_RUN = str(Path(sys.executable).with_name("e2e-run"))
SCHEMA = "e2e-run-parallel/1"
NOBODY = 65534

# Listens, talks to itself for a second, and adds a byte to the file BENCH_LIVED. With BENCH_ALL it
# waits, listening, until that many have written to the file BENCH_BARRIER.
SERVER = """\
import os
import socket
import threading
import time

listener = socket.create_server(("127.0.0.1", {port}))
address = listener.getsockname()


def serve():
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(connection.recv(100).upper())


threading.Thread(target=serve, daemon=True).start()
wanted = int(os.environ.get("BENCH_ALL", "0"))
if wanted:
    with open(os.environ["BENCH_BARRIER"], "ab", buffering=0) as barrier:
        barrier.write(b".")
    while os.stat(os.environ["BENCH_BARRIER"]).st_size < wanted:
        time.sleep(0.2)
ends = time.monotonic() + 1
while time.monotonic() < ends:
    with socket.create_connection(address) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"
    time.sleep(0.05)
if lived := os.environ.get("BENCH_LIVED"):
    with open(lived, "ab", buffering=0) as file:
        file.write(b".")
"""
TRIVIAL = 'print("script {number}")\n'

# Becomes an ordinary user and then the command.
AS_USER = (
    f"import os, sys; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def make_scripts(folder: Path, count: int, text: str) -> Path:
    """Write `count` scripts; return their folder, which is a project of its own."""
    folder.mkdir()
    (folder / "e2e-run.toml").touch()
    for number in range(1, count + 1):
        script = folder / f"{SCRIPT_PREFIX}_{number:05}.py"
        script.write_text(text.replace("{number}", str(number)))
    return folder


class Bench:
    """Runs folders of scripts in this or that way, and checks that each did what it was to do."""

    def __init__(self, work: Path, port: int) -> None:
        """Work in a folder; the scripts want this port."""
        self.work = work
        self.server = SERVER.replace("{port}", str(port))
        self.count = 0

    def e2e_run(
        self,
        folder: Path,
        *options: str,
        network: str,
        as_user: bool = False,
        extra: Mapping[str, str] | None = None,
    ) -> float:
        """Run a folder with e2e-run; return the seconds. All pass, and none leaves anything."""
        report = self.work / "reports" / f"{network}.json"
        shutil.rmtree(report.parent, ignore_errors=True)
        report.parent.mkdir()
        argv = [E2E_RUN, "--python", PYTHON, "--color", "never", "--network", network]
        argv += [*options, "--report", f"json={report}", str(folder)]
        if as_user:
            os.chown(report.parent, NOBODY, NOBODY)
            argv = [PYTHON, "-c", AS_USER, *argv]
        done = run(argv, self.work, extra=extra)
        totals = json.loads(report.read_text())["totals"]
        if {name for name, count in totals.items() if count} != {"passed"}:
            raise BenchmarkError(f"not all passed: {totals}\n{done.output[-2000:]}")
        return done.seconds

    def xargs(
        self,
        folder: Path,
        jobs: int,
        *,
        codes: tuple[int, ...] = (0,),
        extra: Mapping[str, str] | None = None,
    ) -> tuple[float, int]:
        """Run a folder with xargs; return the seconds, and how many servers lived to tell."""
        names = self.work / "names"
        names.write_bytes(b"\0".join(os.fsencode(path) for path in sorted(folder.glob("*.py"))))
        argv = ["xargs", "-0", f"-P{jobs}", "-n1", "-a", str(names), PYTHON]
        lived = self.work / "lived"
        lived.write_bytes(b"")
        done = run(argv, self.work, codes=codes, extra={"BENCH_LIVED": str(lived), **(extra or {})})
        return done.seconds, lived.stat().st_size

    def barrier(self, count: int) -> dict[str, str]:
        """Make the variables that let `count` scripts wait for each other."""
        self.count += 1
        file = self.work / f"barrier_{self.count}"
        return {"BENCH_ALL": str(count), "BENCH_BARRIER": str(file)}


# --- what is measured ----------------------------------------------------------------------------


def measure_side_by_side(bench: Bench, *, count: int, jobs: int, rounds: int) -> list[Figure]:
    """Time servers that all want one port: side by side, one by one, with locks, under xargs."""
    say(f"{count} servers on one port, {jobs} jobs")
    one = make_scripts(bench.work / "one", 1, bench.server)
    folder = make_scripts(bench.work / "servers", count, bench.server)
    script = next(one.glob("*.py"))
    side = ("-j", str(jobs))
    sides = {
        "script": lambda: run([PYTHON, str(script)], bench.work).seconds,
        "e2e-run, one": lambda: bench.e2e_run(one, network="isolated"),
        "namespaces": lambda: bench.e2e_run(folder, *side, network="isolated"),
    }
    if _other_user_works(bench.work):
        owned = make_scripts(bench.work / "owned", count, bench.server)
        os.chown(owned, NOBODY, NOBODY)
        sides["as a user"] = lambda: bench.e2e_run(owned, *side, network="isolated", as_user=True)
    times = interleave(rounds, sides)
    median = {name: statistics.median(values) for name, values in times.items()}
    say("  one by one, with locks, under xargs")
    median["one job"] = bench.e2e_run(folder, "-j", "1", network="isolated")
    median["locks"] = bench.e2e_run(folder, *side, network="host")
    seconds, survivors = bench.xargs(folder, jobs, codes=(0, 123))
    in_turns = count / jobs
    figures = [
        Figure(name="one server, by itself", value=median["script"], unit="s"),
        Figure(name="one server, e2e-run", value=median["e2e-run, one"], unit="s"),
        Figure(name=f"{count} servers, -j 1", value=median["one job"], unit="s"),
        Figure(
            name=f"{count} servers, -j {jobs}, namespaces", value=median["namespaces"], unit="s"
        ),
        Figure(name=f"{count} servers, -j {jobs}, locks", value=median["locks"], unit="s"),
        Figure(
            name=f"{count} servers, xargs -P{jobs}",
            value=seconds,
            unit="s",
            note=f"{survivors} of {count} lived",
        ),
    ]
    for name, words in (("namespaces", "namespaces"), ("as a user", "as an ordinary user")):
        values = [each / in_turns / median["script"] for each in times.get(name, ())]
        figures.append(
            Figure(
                name=f"{words} / ({count}/{jobs} x one by itself)",
                value=statistics.median(values) if values else None,
                unit="x",
                limit=1.3,
                note=f"in single rounds {min(values):.2f} to {max(values):.2f}"
                if values
                else "no other user gets to this interpreter from here",
            )
        )
    return [
        *figures,
        Figure(
            name=f"namespaces / ({count}/{jobs} x one, e2e-run)",
            value=median["namespaces"] / (in_turns * median["e2e-run, one"]),
            unit="x",
        ),
        Figure(
            name=f"-j 1 / ({count} x one by itself)",
            value=median["one job"] / (count * median["script"]),
            unit="x",
        ),
        Figure(
            name=f"locks / ({count} x one by itself)",
            value=median["locks"] / (count * median["script"]),
            unit="x",
        ),
    ]


def _other_user_works(work: Path) -> bool:
    """Whether this user may become an ordinary one, who can start what is installed here."""
    command = [PYTHON, "-c", AS_USER, E2E_RUN, "--version"]
    return os.geteuid() == 0 and run(command, work, codes=(0, 1)).code == 0


def measure_at_once(bench: Bench, *, count: int) -> list[Figure]:
    """Time servers that all listen on one port at the same moment."""
    say(f"{count} servers on one port at once")
    same = make_scripts(bench.work / "at_once", count, bench.server)
    # With port 0 the system gives each another one.
    apart = make_scripts(bench.work / "apart", count, SERVER.replace("{port}", "0"))
    waiting = {"E2E_RUN_TIMEOUT": "10m"}
    seconds = bench.e2e_run(
        same, "-j", str(count), network="isolated", extra={**waiting, **bench.barrier(count)}
    )
    other, survivors = bench.xargs(apart, count, extra=bench.barrier(count))
    if survivors != count:
        raise BenchmarkError(f"{survivors} of {count} lived under xargs, each with its own port")
    return [
        Figure(name=f"{count} on one port at once", value=seconds, unit="s"),
        Figure(name=f"{count} ports, xargs -P{count}", value=other, unit="s"),
        Figure(name=f"{count} at once / xargs -P{count}", value=seconds / other, unit="x"),
    ]


def measure_isolation(bench: Bench, *, count: int, rounds: int) -> list[Figure]:
    """Time trivial scripts in networks of their own against the same on the machine's."""
    say(f"{count} trivial scripts, isolated and not")
    folder = make_scripts(bench.work / "isolation", count, TRIVIAL)
    times = interleave(
        rounds,
        {
            network: partial(bench.e2e_run, folder, "-j", "1", network=network)
            for network in ("isolated", "host")
        },
    )
    pairs = [
        (one - other) / count * 1000
        for one, other in zip(times["isolated"], times["host"], strict=True)
    ]
    return [
        *(
            Figure(name=f"{count} scripts, {name}", value=statistics.median(times[name]), unit="s")
            for name in times
        ),
        Figure(
            name="a network of its own, each script",
            value=statistics.median(pairs),
            unit="ms",
            limit=5.0,
            note=f"in single rounds {min(pairs):.1f} to {max(pairs):.1f}",
        ),
    ]


def measure_two_jobs(bench: Bench, *, count: int, rounds: int) -> list[Figure]:
    """Time trivial scripts with two jobs, against xargs."""
    say(f"{count} trivial scripts, two jobs")
    folder = make_scripts(bench.work / "two_jobs", count, TRIVIAL)
    times = interleave(
        rounds,
        {
            "e2e-run -j 2": lambda: bench.e2e_run(folder, "-j", "2", network="auto"),
            "xargs -P2": lambda: bench.xargs(folder, 2)[0],
        },
    )
    pairs = [a / b for a, b in zip(times["e2e-run -j 2"], times["xargs -P2"], strict=True)]
    median = {name: statistics.median(values) for name, values in times.items()}
    return [
        *(
            Figure(name=f"{name}, {count} scripts", value=seconds, unit="s")
            for name, seconds in median.items()
        ),
        Figure(
            name="e2e-run -j 2 / xargs -P2",
            value=median["e2e-run -j 2"] / median["xargs -P2"],
            unit="x",
            limit=1.2,
            note=f"in single rounds {min(pairs):.2f} to {max(pairs):.2f}",
        ),
    ]


# --- the command ---------------------------------------------------------------------------------


PARTS = ("side-by-side", "at-once", "isolation", "two-jobs")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures what running side by side costs.")
    parser.add_argument("--count", type=int, default=300, help="trivial scripts (default: 300)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--port", type=int, default=8000, help="that all want (default: 8000)")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure only this")
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
    parts = options.part or PARTS
    count, rounds = (min(options.count, 20), 2) if quick else (options.count, options.rounds)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="e2e-run-bench-") as folder:
        Path(folder).chmod(0o755)  # another user has to get to its scripts
        bench = Bench(Path(folder), options.port)
        if "side-by-side" in parts:
            figures += measure_side_by_side(
                bench, count=6 if quick else 24, jobs=3 if quick else 8, rounds=rounds
            )
        if "at-once" in parts:
            figures += measure_at_once(bench, count=20 if quick else 500)
        if "isolation" in parts:
            figures += measure_isolation(bench, count=count, rounds=rounds)
        if "two-jobs" in parts:
            figures += measure_two_jobs(bench, count=count, rounds=rounds)
    print(as_json(figures, SCHEMA) if options.json else table(figures))


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
