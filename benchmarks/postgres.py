"""What e2e-run's PostgreSQL costs: `make bench`, or `python benchmarks/postgres.py --help`.

Prints each figure beside its target, where there is one:

* ``start``: a server of e2e-run's own, with an empty and with a filled cache, until it answers; against
  `initdb` and `pg_ctl -w start` with the same settings, in the same folder in memory;
* ``server``: a copy of a server with a database of 16 MB, against one of an empty server;
* ``database``: a clone of a database of 16 MB on a server that others use too, against the bare
  `CREATE DATABASE ... STRATEGY FILE_COPY`, in memory and on the disk;
* ``sweep``: `e2e-run sweep-dbs` of 300 databases against a pipeline of two psql, with fsync on a disk;
* ``run``: ten trivial examples with a server each, with one server for all, and without PostgreSQL.

What is compared is interleaved in one run, and the figures are medians, so that a machine that slows
down or speeds up meanwhile does not favour one side. Most of the time goes to the disk that the
sweep's servers are copied to, twice for each side: `--only` leaves out parts, `--databases` makes it smaller.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from by_hand import (
    MEMORY,
    NOT_DURABLE,
    Postgres,
    client_environment,
    initdb,
    installed,
    is_in_memory,
    make_folder,
    serving,
)
from measure import BenchmarkError, Figure, as_json, interleave, run, say, table, turns

from e2e_runner.addresses import to_url
from e2e_runner.dbnames import attempt_name, quote_identifier, token_of
from e2e_runner.embedded import CannotStart, EmbeddedServer, EmbeddedServers
from e2e_runner.errors import SetupError
from e2e_runner.model import DatabaseDefinition, ServerAddress
from e2e_runner.postgres.connection import connected
from e2e_runner.postgres.making import Making
from e2e_runner.postgres.pool import Connections
from e2e_runner.postgres.shared import SharedServer
from e2e_runner.rundir import RunDir, new_run_id, open_run
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.launch import Spawner

MB = 1 << 20
PYTHON = sys.executable
E2E_RUN = str(Path(sys.executable).with_name("e2e-run"))
TEMPLATE = 16 * MB  # the size of the database that is cloned
EXAMPLES = 10
_ROOM = 1 << 30  # bytes that have to be free in memory, or on a disk beside what is put there
_EACH = 8 * MB  # of an empty database
_FIRST_WITH_STRATEGY = 15  # major version
_MAKERS = 4  # connections
_DEAD = "20260102_030405_0a1b2c"  # the token of a run that is long over

# What a person types: DROP DATABASE works in no function, so one psql writes it for the other.
PIPELINE = (
    "{psql} -X -At -c \"SELECT format('DROP DATABASE %I;', datname) FROM pg_database"
    " WHERE starts_with(datname, 'test_e2e_')\" | {psql} -X -q -v ON_ERROR_STOP=1"
)
EXAMPLE = """\
# /// script
# [tool.e2e-run]
# postgres = {wanted}
# ///
print("example {number}")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where is measured, with what, and how often."""

    disk: Path
    memory: Path | None
    installations: Sequence[Postgres]
    rounds: int
    databases: int

    @property
    def scratch(self) -> Path:
        """The faster of the folders."""
        return self.memory or self.disk

    @property
    def configured(self) -> Postgres | None:
        """What serves where a server is configured: the first that can be started by hand."""
        able = [each for each in self.installations if not each.obstacle]
        return next((each for each in able if each.major >= _FIRST_WITH_STRATEGY), None)


Times = Mapping[str, Sequence[float]]


def milliseconds(times: Times, name: str, *, label: str = "", limit: float | None = None) -> Figure:
    """Give the median of one side."""
    values = [seconds * 1000 for seconds in times[name]]
    note = f"from {min(values):.0f} to {max(values):.0f}"
    return Figure(
        name=label or name, value=statistics.median(values), unit="ms", limit=limit, note=note
    )


def ratio(times: Times, over: str, under: str, *, label: str, limit: float | None = None) -> Figure:
    """Compare the medians of two sides; the note tells what single rounds came to."""
    pairs = [a / b for a, b in zip(times[over], times[under], strict=True)]
    return Figure(
        name=label,
        value=statistics.median(times[over]) / statistics.median(times[under]),
        unit="x",
        limit=limit,
        note=f"in single rounds {min(pairs):.2f} to {max(pairs):.2f}",
    )


def absent(name: str, why: str, *, unit: str = "x") -> list[Figure]:
    """Say that something cannot be measured here."""
    return [Figure(name=name, value=None, unit=unit, note=f"not available here: {why}")]


# --- servers of our own --------------------------------------------------------------------------


def measure_start(bench: Bench) -> list[Figure]:
    """Time the start of a server of our own, in every installation."""
    figures = []
    for postgres in bench.installations:
        say(f"start of PostgreSQL {postgres.version}, {postgres.where}")
        figures += asyncio.run(_measure_start(bench, postgres))
    return figures or absent("start", "no PostgreSQL server is installed")


async def _measure_start(bench: Bench, postgres: Postgres) -> list[Figure]:
    name = f"start {postgres.version}"
    further: list[float] = []
    with _folder(bench.disk, "start") as work:
        async with _a_run(work) as (supervisor, run_dir):
            in_memory = True

            async def ours(cache: Path, *, twice: bool) -> float:
                nonlocal in_memory
                # Anew each time, as a run does: it looks for the programs and asks for their version.
                environ = _environment(postgres, cache)
                async with EmbeddedServers.open(supervisor, run_dir, environ=environ) as servers:
                    seconds, server = await _timed(servers.start)
                    in_memory = in_memory and server.data.is_relative_to(MEMORY)
                    if twice:
                        further.append((await _timed(servers.start))[0])
                    return seconds

            async def cold() -> float:
                with _folder(work, "cold") as cache:
                    return await ours(cache, twice=False)

            async def warm() -> float:
                return await ours(work / "cache", twice=True)

            async def by_hand() -> float:
                with _folder(bench.scratch, "by-hand") as parent:
                    began = time.perf_counter()
                    data, password = initdb(postgres, make_folder(parent, "s"), as_embedded=True)
                    with serving(postgres, data, password):
                        return time.perf_counter() - began

            await warm()  # fills the cache
            further.clear()
            sides = {"cold": cold, "warm": warm}
            if not postgres.obstacle:
                sides["by hand"] = by_hand
            times = await _interleave(bench.rounds, sides)
    times["further"] = further
    word = "" if in_memory else ", on disk"
    limit = {"ms": 150.0, "x": 0.25} if in_memory else {}
    figures = [
        milliseconds(times, "warm", label=f"{name}, warm cache{word}", limit=limit.get("ms")),
        milliseconds(times, "further", label=f"{name}, further ones of the run{word}"),
        milliseconds(times, "cold", label=f"{name}, cold cache{word}"),
    ]
    if postgres.obstacle:
        return figures + absent(f"{name}, warm / by hand", postgres.obstacle)
    return [
        *figures,
        milliseconds(times, "by hand", label=f"{name}, initdb + pg_ctl"),
        ratio(times, "warm", "by hand", label=f"{name}, warm / by hand", limit=limit.get("x")),
        ratio(times, "cold", "by hand", label=f"{name}, cold / by hand"),
    ]


def measure_server(bench: Bench) -> list[Figure]:
    """Time the copy of a server that holds a database, in every installation."""
    figures = []
    for postgres in bench.installations:
        say(f"copies of a server of PostgreSQL {postgres.version}")
        figures += asyncio.run(_measure_server(bench, postgres))
    return figures or absent("copy of a server", "no PostgreSQL server is installed")


async def _measure_server(bench: Bench, postgres: Postgres) -> list[Figure]:
    name = f"server {postgres.version}"
    with _folder(bench.disk, "server") as work:
        environ = _environment(postgres, work / "cache")
        async with (
            _a_run(work) as (supervisor, run_dir),
            EmbeddedServers.open(supervisor, run_dir, environ=environ) as servers,
        ):
            _, origin = await _timed(servers.start)
            await _execute(origin.admin, "CREATE DATABASE filled")
            await _fill(replace(origin.admin, database="filled"))
            filled = await origin.freeze()

            async def start(template: str) -> float:
                which = filled if template == "filled" else None
                seconds, server = await _timed(lambda: servers.start(which))
                await server.stop()
                return seconds

            times = await _interleave(
                bench.rounds, {"filled": lambda: start("filled"), "empty": lambda: start("empty")}
            )
    return [
        milliseconds(times, "empty", label=f"{name}, empty"),
        milliseconds(times, "filled", label=f"{name}, with 16 MB"),
        ratio(times, "filled", "empty", label=f"{name}, with 16 MB / empty"),
    ]


@contextlib.asynccontextmanager
async def _a_run(work: Path) -> AsyncIterator[tuple[Supervisor, RunDir]]:
    """Have what a run has when its first server is wanted."""
    with (
        contextlib.closing(Spawner()) as spawner,
        open_run(work / "state", new_run_id(time.time())) as run_dir,
    ):
        async with Supervisor.open(
            spawner,
            wanted=None,
            run_id=run_dir.id,
            scratch=run_dir.scratch,
            log=run_dir.spawner_log,
        ) as supervisor:
            yield supervisor, run_dir


def _environment(postgres: Postgres, cache: Path) -> dict[str, str]:
    path = f"{postgres.folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return dict(os.environ) | {"PATH": path, "XDG_CACHE_HOME": str(cache)}


async def _timed(start: Callable[[], Awaitable[EmbeddedServer]]) -> tuple[float, EmbeddedServer]:
    began = time.perf_counter()
    try:
        server = await start()
    except CannotStart as error:
        raise BenchmarkError(str(error)) from error
    return time.perf_counter() - began, server


# --- a server that others use too ----------------------------------------------------------------


def measure_database(bench: Bench) -> list[Figure]:
    """Time clones of a database on a server in memory, and on one on the disk as it is by default."""
    postgres = bench.configured
    if postgres is None:
        return absent("clone of a database", "no PostgreSQL from 15 on that can be started by hand")
    figures = []
    for place, parent, settings in (
        ("in memory", bench.memory, NOT_DURABLE),
        ("on disk, durable", bench.disk, {}),
    ):
        say(f"clones of a database, {place}")
        if parent is None:
            figures += absent(f"clone {place}", f"no room in {MEMORY}")
            continue
        with _a_server(postgres, parent, settings) as address:
            figures += asyncio.run(_measure_database(bench, address, place))
    return figures


async def _measure_database(bench: Bench, address: ServerAddress, place: str) -> list[Figure]:
    token = token_of(new_run_id(time.time()))
    definition = DatabaseDefinition(name="bench", template=(Path("/bench.sql"),))
    numbers = iter(range(1, 1_000_000))

    async def fill(template: ServerAddress, _: DatabaseDefinition) -> None:
        await _fill(template)

    async with (
        SharedServer.open(
            address, admin=None, token=token, patterns=(), protect=(), fill=fill, warn=print
        ) as server,
        connected(address) as connection,
    ):
        making = Making(Connections(address), server.facts)
        await server.take_back(await server.give(next(numbers), [definition]), keep=False)
        template = str(
            await connection.fetchval(
                "SELECT datname FROM pg_database WHERE starts_with(datname, $1)",
                f"{attempt_name(token, 0)}_t",
            )
        )

        async def give() -> float:
            began = time.perf_counter()
            given = await server.give(next(numbers), [definition])
            seconds = time.perf_counter() - began
            await server.take_back(given, keep=False)
            return seconds

        async def statement(make: Callable[[], Awaitable[object]]) -> float:
            began = time.perf_counter()
            await make()
            seconds = time.perf_counter() - began
            await connection.execute("DROP DATABASE bench_clone")
            return seconds

        bare = (
            f"CREATE DATABASE bench_clone TEMPLATE {quote_identifier(template)} STRATEGY FILE_COPY"
        )
        times = await _interleave(
            2 * bench.rounds,
            {
                "given": give,
                "e2e-run's statement": lambda: statement(
                    lambda: making.make_database(
                        connection, "bench_clone", owner=address.user, template=template
                    )
                ),
                "bare": lambda: statement(lambda: connection.execute(bare)),
            },
        )
    return [
        milliseconds(times, "bare", label=f"clone {place}, bare statement"),
        milliseconds(times, "e2e-run's statement", label=f"clone {place}, e2e-run's statement"),
        milliseconds(times, "given", label=f"clone {place}, with its role"),
        ratio(
            times,
            "e2e-run's statement",
            "bare",
            label=f"clone {place}, e2e-run's statement / bare",
            limit=1.3,
        ),
        ratio(times, "given", "bare", label=f"clone {place}, with its role / bare", limit=1.3),
    ]


def measure_sweep(bench: Bench) -> list[Figure]:
    """Time the sweep of many databases, each time on a fresh copy of the same server."""
    postgres, name = bench.configured, f"sweep of {bench.databases}"
    if postgres is None:
        return absent(name, "no PostgreSQL from 15 on that can be started by hand")
    psql = postgres.psql
    if psql is None:
        return absent(name, "no psql")
    if is_in_memory(bench.disk):
        return absent(name, f"{bench.disk} lies in memory; TMPDIR may name a folder on a disk")
    size = bench.databases * _EACH
    # A state, and a copy of it.
    parent = bench.memory if bench.memory and _free(bench.memory) > size + _ROOM else bench.disk
    if _free(bench.disk) < 2 * size + _ROOM:
        return absent(name, f"no room in {bench.disk}")
    say(f"{bench.databases} databases to sweep")
    with _folder(parent, "state") as kept:
        home = make_folder(kept, "s")
        data, password = initdb(postgres, home, as_embedded=False)
        with serving(postgres, data, password, NOT_DURABLE) as address:
            asyncio.run(_leak(address, bench.databases))
        idle: dict[str, list[float]] = {"sweep": [], "psql": []}

        def side(which: str) -> float:
            with _folder(bench.disk, "sweep") as folder:
                copy = make_folder(folder, "s")
                run(["cp", "-a", str(data), str(copy / "data")], folder)
                os.sync()  # what is written to the disk meanwhile is the servers' doing
                (folder / "e2e-run.toml").touch()
                with serving(postgres, copy / "data", password) as address:
                    argv = _dropping(which, address, psql)
                    extra = client_environment(address)
                    seconds = run(argv, folder, extra=extra).seconds
                    left = asyncio.run(_left(address))
                    if left:
                        raise BenchmarkError(f"{which} left {left} databases")
                    idle[which].append(run(argv, folder, extra=extra).seconds)
                    return seconds

        times = interleave(
            max(1, bench.rounds // 3),
            {"sweep": lambda: side("sweep"), "psql": lambda: side("psql")},
        )
    apart = {
        which: [all_ - nothing for all_, nothing in zip(times[which], idle[which], strict=True)]
        for which in times
    }
    faster = statistics.median(times["psql"]) / statistics.median(times["sweep"])
    whole = ratio(times, "sweep", "psql", label=f"{name}, sweep-dbs / psql pipeline", limit=1 / 2.5)
    each = statistics.median(apart["sweep"]) / bench.databases
    return [
        milliseconds(times, "psql", label=f"{name}, psql pipeline"),
        milliseconds(times, "sweep", label=f"{name}, sweep-dbs"),
        replace(whole, note=f"{faster:.2f} times faster; {whole.note}"),
        milliseconds(idle, "psql", label=f"{name}, psql with nothing to drop"),
        milliseconds(idle, "sweep", label=f"{name}, sweep-dbs with nothing to drop"),
        ratio(apart, "sweep", "psql", label=f"{name}, the same without what that takes"),
        Figure(name=f"{name}, each database", value=each * 1000, unit="ms"),
    ]


def _dropping(which: str, address: ServerAddress, psql: str) -> list[str]:
    if which == "psql":
        return ["sh", "-c", PIPELINE.format(psql=psql)]
    url = to_url(address, with_password=True)
    return [E2E_RUN, "sweep-dbs", "--yes", "--postgres", url]


async def _leak(address: ServerAddress, count: int) -> None:
    """Leave databases, as a run that died would."""
    names = iter([attempt_name(_DEAD, number) for number in range(1, count + 1)])

    async def make() -> None:
        async with connected(address) as connection:
            for name in names:
                sql = f"CREATE DATABASE {quote_identifier(name)} STRATEGY FILE_COPY"
                await connection.execute(sql)

    async with asyncio.TaskGroup() as group:
        for _ in range(_MAKERS):
            group.create_task(make())


async def _left(address: ServerAddress) -> int:
    async with connected(address) as connection:
        return int(
            await connection.fetchval(
                "SELECT count(*) FROM pg_database WHERE starts_with(datname, 'test_e2e_')"
            )
        )


# --- whole runs ----------------------------------------------------------------------------------


def measure_run(bench: Bench) -> list[Figure]:
    """Time runs of trivial examples that want PostgreSQL, by where they get it."""
    if not bench.installations:
        return absent("run", "no PostgreSQL server is installed", unit="ms")
    say(f"runs of {EXAMPLES} examples")
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(_folder(bench.disk, "run"))
        wanting = _examples(work / "wanting", wanted=True)
        others = _examples(work / "others", wanted=False)
        extra = {"XDG_CACHE_HOME": str(work / "cache")}

        def once(folder: Path, postgres: str) -> float:
            options = ("--python", PYTHON, "--color", "never", "--postgres", postgres)
            return run([E2E_RUN, *options, str(folder)], work, extra=extra).seconds / EXAMPLES

        sides: dict[str, Callable[[], float]] = {
            "without": lambda: once(others, "auto"),
            "embedded": lambda: once(wanting, "embedded"),
        }
        if bench.configured is not None:
            if bench.memory is not None:
                fast = stack.enter_context(_a_server(bench.configured, bench.memory, NOT_DURABLE))
                sides["URL"] = lambda: once(wanting, to_url(fast, with_password=True))
            slow = stack.enter_context(_a_server(bench.configured, bench.disk, {}))
            sides["URL, durable"] = lambda: once(wanting, to_url(slow, with_password=True))
        sides["embedded"]()  # fills the cache
        times = interleave(max(1, bench.rounds // 2), sides)
    labels = {
        "without": "an example, postgres = false",
        "embedded": "an example, a server of its own",
        "URL": "an example, one server in memory",
        "URL, durable": "an example, one server on disk, durable",
    }
    figures = [milliseconds(times, name, label=labels[name]) for name in times]
    return [
        *figures,
        *(
            ratio(times, "embedded", name, label=f"an example, its own server / {name}")
            for name in times
            if name != "embedded"
        ),
    ]


def _examples(folder: Path, *, wanted: bool) -> Path:
    folder.mkdir()
    (folder / "e2e-run.toml").touch()
    for number in range(1, EXAMPLES + 1):
        text = EXAMPLE.format(wanted=str(wanted).lower(), number=number)
        (folder / f"example_{number:02}.py").write_text(text)
    return folder


# --- shared --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _folder(parent: Path, name: str) -> Iterator[Path]:
    """Have a folder that others may pass through for the length of the block."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=parent) as folder:
        path = Path(folder)
        path.chmod(0o711)
        yield path


@contextlib.contextmanager
def _a_server(
    postgres: Postgres, parent: Path, settings: Mapping[str, str]
) -> Iterator[ServerAddress]:
    with _folder(parent, "server") as folder:
        data, password = initdb(postgres, make_folder(folder, "s"), as_embedded=False)
        os.sync()
        with serving(postgres, data, password, settings) as address:
            yield address


async def _interleave(
    rounds: int, sides: Mapping[str, Callable[[], Awaitable[float]]]
) -> dict[str, list[float]]:
    results: dict[str, list[float]] = {name: [] for name in sides}
    for name in turns(rounds, sides):
        results[name].append(await sides[name]())
    return results


async def _execute(address: ServerAddress, sql: str) -> None:
    async with connected(address) as connection:
        await connection.execute(sql)


async def _fill(address: ServerAddress) -> None:
    """Fill a database until it has the size of the template."""
    async with connected(address) as connection:
        await connection.execute("CREATE TABLE filler (id int, text text)")
        while True:
            size = await connection.fetchval("SELECT pg_database_size(current_database())")
            if size >= TEMPLATE:
                return
            await connection.execute(
                "INSERT INTO filler SELECT n, repeat('x', 1000) FROM generate_series(1, 400) n"
            )


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


PARTS: Mapping[str, Callable[[Bench], list[Figure]]] = {
    "start": measure_start,
    "server": measure_server,
    "database": measure_database,
    "sweep": measure_sweep,
    "run": measure_run,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures what e2e-run's PostgreSQL costs.")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="measure this part; repeatable"
    )
    parser.add_argument(
        "--databases", type=int, default=300, help="databases to sweep (default: 300)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    if arguments.databases < 1 or arguments.rounds < 1:
        parser.error("--databases and --rounds are at least 1")
    return arguments


def main() -> None:
    """Measure and print."""
    options = _arguments()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    before = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(_folder(Path(tempfile.gettempdir()), "e2e-run-bench"))
        memory = None
        if MEMORY.is_dir() and _free(MEMORY) > _ROOM:
            memory = stack.enter_context(_folder(MEMORY, "e2e-run-bench"))
        bench = Bench(
            disk=disk,
            memory=memory,
            installations=installed(),
            rounds=2 if options.quick else options.rounds,
            databases=min(options.databases, 30) if options.quick else options.databases,
        )
        figures: list[Figure] = []
        try:
            for name in options.only or PARTS:
                began = time.monotonic()
                figures += PARTS[name](bench)
                say(f"{name}: {time.monotonic() - began:.0f} s")
        except BenchmarkError:
            say(table(figures))  # what was measured so far
            raise
    for when, load in (("before", before), ("after", os.getloadavg()[0])):
        note = f"of {os.cpu_count()} processors"
        figures.append(Figure(name=f"load {when}, 1 minute", value=load, unit="", note=note))
    print(as_json(figures, "e2e-run-postgres/1") if options.json else table(figures))


if __name__ == "__main__":
    try:
        main()
    except (BenchmarkError, SetupError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
