"""Servers for the length of a block: started, waited for, and stopped however the block ends."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from e2e_runner.kit._blocks import Block, BlockError

if TYPE_CHECKING:  # they load asyncio, which the kit does not before a block is entered
    from collections.abc import AsyncIterator

_MAX_PORT = 65535


class ServerNotReady(BlockError):  # noqa: N818 - what it is, in the words of the one who waits
    """A server did not become ready, or ended before the block that it served; the text says it all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that is ready."""

    host: str  # by which this machine gets to it
    port: int  # 0 where none is known
    pid: int | None  # None where it is not known
    log_file: Path | None  # removed with the server; None where another process has it
    _scheme: str = "http"
    _read_log: Callable[[], str] = field(repr=False, compare=False, default=lambda: "")

    @property
    def url(self) -> str:
        """Where it is, as in "http://127.0.0.1:8000"; empty where no port is known."""
        if not self.port:
            return ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{self.port}"

    @property
    def log(self) -> str:
        """What it has written so far, stdout and stderr: the last mebibyte. Also after its end."""
        return self._read_log()


def serve(
    app: str,
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    ready: str | None = None,
    timeout: float = 20.0,
    grace: float = 5.0,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    args: Sequence[str] = (),
) -> Block[Server]:
    """Serve an ASGI application ``"package.module:attribute"`` with uvicorn for the length of a block.

    `port` 0 is any that is free. It is ready when `ready`, a path as ``"/health"``, is answered with a
    status below 400; without one, when it listens. `timeout` is how many seconds that may take, `grace` how
    many it has to stop. `env` are variables beside those of ``os.environ`` when the block is entered;
    `cwd` is where the module is looked for, by default the folder of the script; `args` are further
    options of uvicorn.

    Entering raises ServerNotReady: the port is taken, the server ended, or the time is over. So does
    leaving, when the server ended by itself meanwhile. Raises ValueError.
    """
    if ":" not in app:
        raise ValueError(f'an application is "package.module:attribute", not {app!r}')
    argv = (sys.executable, "-m", "uvicorn", app, "--host", host, "--port", "{port}", *args)
    return _block(
        argv,
        port=port,
        host=host,
        ready=ready,
        timeout=timeout,
        grace=grace,
        env=env,
        cwd=cwd,
    )


def serve_command(
    argv: Sequence[str | os.PathLike[str]],
    *,
    port: int | None = None,
    ready: str | None = None,
    host: str = "127.0.0.1",
    timeout: float = 20.0,
    grace: float = 5.0,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> Block[Server]:
    """Run a server in the foreground for the length of a block.

    It is ready when `ready` says so: ``"http://..."`` is answered with a status below 400,
    ``"tcp://HOST:PORT"`` accepts a connection, ``"log:REGEX"`` matches a line of its output, or a path such
    as ``"/health"`` is answered at `port`. Without `ready` it is when it listens at `port` of `host`. One of
    them is needed. `port` 0 is any that is free. With a `port`, ``{port}`` in the words of `argv`, in
    `ready` and in the values of `env` stands for its number. It is stopped by SIGTERM. All else is as
    with `serve`.
    """
    if isinstance(argv, str | bytes) or not argv:
        raise ValueError(f"a command is a list of words, as in [sys.executable, ...]; not {argv!r}")
    return _block(
        tuple(os.fspath(word) for word in argv),
        port=port,
        host=host,
        ready=ready,
        timeout=timeout,
        grace=grace,
        env=env,
        cwd=cwd,
    )


def companion(script: str | os.PathLike[str], *, timeout: float = 20.0) -> Block[Server]:
    """Have the companion of this example, a script beside it, for the length of a block.

    Under ``e2e-run`` the run has started it, since the metadata says ``needs = ["server.py"]``; by hand it
    is started here, with this interpreter, and stopped at the end. When it is ready, and where it is, its own
    metadata says: `serve`, else the first of `ports`.

    Entering raises ServerNotReady, and E2ERunError for a configuration that cannot be used.
    """
    _require_above_zero(timeout)
    file = _script_folder() / script

    @asynccontextmanager
    async def hold() -> "AsyncIterator[Server]":
        from e2e_runner.kit import _handed_companion

        server = _handed_companion.given(file)
        if server is not None:
            yield server
            return
        from e2e_runner.kit import _companion

        async with _companion.running(file, timeout=timeout) as server:
            yield server

    return Block(hold)


def _block(
    argv: tuple[str, ...],
    *,
    port: int | None,
    host: str,
    ready: str | None,
    timeout: float,
    grace: float,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
) -> Block[Server]:
    from e2e_runner.kit import _serving

    if port is not None and not 0 <= port <= _MAX_PORT:
        raise ValueError(f"port={port!r}: a number from 0 to {_MAX_PORT} is needed")
    _require_above_zero(timeout)
    if grace < 0:
        raise ValueError(f"grace={grace!r}: a number of seconds is needed")
    order = _serving.Order(
        argv=argv,
        port=port,
        host=host,
        ready=ready,
        timeout=timeout,
        grace=grace,
        env=dict(env or {}),
        cwd=_script_folder() / (cwd or ""),
    )
    _ = order.at(port).probe  # what is wrong with it is said here, not when the block is entered

    @asynccontextmanager
    async def hold() -> "AsyncIterator[Server]":
        async with _serving.running(order) as server:
            yield server

    return Block(hold)


def reachable(host: str) -> str:
    """Give the address by which this machine gets to a server that listens on `host`."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, never bound


def _require_above_zero(timeout: float) -> None:
    if not timeout > 0:
        raise ValueError(f"timeout={timeout!r}: a number of seconds above 0 is needed")


def _script_folder() -> Path:
    """Give the folder of the script that runs; the working folder where there is none."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(file).absolute().parent if file else Path.cwd()
