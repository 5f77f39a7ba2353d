"""A real PgBouncer in front of a real server, for the tests."""

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import servers
from harness import free_port

from e2e_runner.model import ServerAddress

_ADMINS = (
    "/usr/sbin",
    "/usr/local/sbin",
    "/opt/homebrew/sbin",
)  # seldom on an ordinary user's PATH


@functools.cache
def pgbouncer_program() -> Path | None:
    """Find PgBouncer, on PATH or where packages put it."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_ADMINS))
    found = shutil.which("pgbouncer", path=path)
    return Path(found) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PgBouncer:
    """A running PgBouncer, which lets every role of its server in without a password."""

    port: int
    pid: int
    log: Path

    def address(self, *, user: str = servers.ADMIN, database: str = "postgres") -> ServerAddress:
        return ServerAddress(
            host="127.0.0.1", port=self.port, user=user, password=None, database=database
        )

    def url(self, *, user: str = servers.ADMIN, database: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"


@contextlib.contextmanager
def running_pgbouncer(
    server: servers.Server,
    *,
    mode: str = "transaction",
    settings: Mapping[str, str] | None = None,
) -> Iterator[PgBouncer]:
    """Run PgBouncer in front of `server` for the length of the block.

    `mode` is its pool_mode: session, transaction or statement; `settings` are more of its
    configuration. Skips the test where there is no PgBouncer; in CI that fails it. It dies with the
    tests, however they end, and with the block, even one that has stopped or killed it.
    """
    program = pgbouncer_program() or servers.missing("PgBouncer")
    folder = Path(tempfile.mkdtemp(prefix="e2e-test-pgbouncer-"))
    try:
        port = free_port()
        log = folder / "log"
        (folder / "users.txt").write_text(f'"{servers.ADMIN}" ""\n')
        (folder / "pgbouncer.ini").write_text(_configuration(server, folder, port, mode, settings))
        folder.chmod(0o755)  # for the user that it drops to; no secret is in it
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_dies_with_us(), str(program), str(folder / "pgbouncer.ini")],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd="/",
            )
        try:
            _wait_ready(process, log)
            yield PgBouncer(port=port, pid=process.pid, log=log)
        finally:
            process.kill()  # it holds nothing that is worth a polite end
            process.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _configuration(
    server: servers.Server,
    folder: Path,
    port: int,
    mode: str,
    settings: Mapping[str, str] | None,
) -> str:
    options = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "pool_mode": mode,
        # Roles come and go during a test: whom the file does not name, the server is asked about.
        "auth_type": "trust",
        "auth_file": str(folder / "users.txt"),
        "auth_user": servers.ADMIN,
        "server_tls_sslmode": "disable",
        **(settings or {}),
    }
    lines = [f"{name} = {value}" for name, value in options.items()]
    return "\n".join(
        ["[databases]", f"* = host=127.0.0.1 port={server.port}", "[pgbouncer]", *lines, ""]
    )


def _dies_with_us() -> list[str]:
    """Give the words that start it as a plain user, which it insists on, and tie it to our life."""
    words = []
    if os.geteuid() == 0:
        words += ["--reuid=65534", "--regid=65534", "--clear-groups"]
    if setpriv := shutil.which("setpriv"):
        return [setpriv, "--pdeathsig=KILL", *words, "--"]
    assert not words, "setpriv (util-linux) is needed to start PgBouncer as root"
    return []


def _wait_ready(process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(1500):
        if b"process up" in log.read_bytes():
            return
        if process.poll() is not None:
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
    pytest.fail(f"PgBouncer did not start: {log.read_text(errors='replace')}")
