"""The network of one attempt: opened when it is first wanted, and led to what the example may reach."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from e2e_runner.isolation import addresses_of, hosts_file, is_address, resolves_here
from e2e_runner.model import Endpoint, Example
from e2e_runner.relay import Relay
from e2e_runner.supervise.child import StartError, SupervisionLost
from e2e_runner.supervise.networks import Network, Networks, Refusals

_HOSTS = Path("/etc/hosts")
_RESOLV_CONF = Path("/etc/resolv.conf")
# Where a machine has no IPv6, localhost is 127.0.0.1 alone.
_NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


class NoNetwork(Exception):  # noqa: N818 - a finding about the surroundings
    """A network of its own cannot be had, or not led where it must; the text says why, in one clause."""


class OwnNetwork:
    """The network of one attempt, for `close` to give back. It is opened only once."""

    def __init__(self, networks: Networks, *, write_file: Callable[[str], Path]) -> None:
        """Open nothing yet; `write_file` keeps a text for the length of the run, and may raise OSError."""
        self._networks = networks
        self._write_file = write_file
        self._opening: asyncio.Task[Network] | None = None
        self._relays: dict[Relay, Endpoint] = {}
        self._addresses: Mapping[str, tuple[str, ...]] = {}
        self._hosts_file: Path | None = None
        self._closed = False

    async def network(self) -> Network:
        """Give the network. Raises NoNetwork."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._networks.open())
        try:
            # Shielded: the server of its databases waits for it too.
            return await asyncio.shield(self._opening)
        except (OSError, StartError, SupervisionLost) as error:
            raise NoNetwork(_words(error)) from error

    @property
    def reached(self) -> frozenset[Endpoint]:
        """What is led to, as the example names it."""
        return frozenset(self._relays.values())

    @property
    def troubles(self) -> tuple[str, ...]:
        """Say what could not be reached, and why."""
        return tuple(dict.fromkeys(each for relay in self._relays for each in relay.troubles))

    async def lead(self, services: Mapping[Endpoint, Endpoint]) -> None:
        """Lead it to services of the machine: as the example names them -> where they are.

        Done once, before anything of the example is started. Raises NoNetwork.
        """
        if not services:
            return
        network = await self.network()
        self._addresses = addresses_of(services)
        try:
            if any(not is_address(host) and host != "localhost" for host in self._addresses):
                text = await asyncio.to_thread(_read, _HOSTS)
                self._hosts_file = self._write_file(hosts_file(self._addresses, text))
                network.hosts_file = self._hosts_file
        except OSError as error:
            raise NoNetwork(f"its hosts file cannot be written: {_words(error)}") from error
        heard: set[tuple[str, int]] = set()
        for named, target in services.items():
            for address in self._addresses[named.host]:
                if (address, named.port) not in heard:
                    heard.add((address, named.port))
                    await self._listen(network, address, named, target)

    async def _listen(
        self, network: Network, address: str, named: Endpoint, target: Endpoint
    ) -> None:
        try:
            listener = await network.listen(address, named.port)
        except OSError as error:
            if named.host == "localhost" and address == "::1" and error.errno in _NO_SUCH_ADDRESS:
                return
            raise NoNetwork(f"{named} cannot be led there: {_words(error)}") from error
        except SupervisionLost as error:
            raise NoNetwork(str(error)) from error
        self._relays[Relay(listener, target, name=str(named))] = named

    async def connect(self, host: str, port: int) -> socket.socket:
        """Connect to a server inside. Raises OSError."""
        try:
            network = await self.network()
            if host == "localhost" or is_address(host):
                return await network.connect(host, port)
            found = self._addresses.get(host) or await _resolved(host, port)
            failure: OSError = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            for address in found:
                try:
                    return await network.connect(address, port)
                except OSError as error:
                    failure = error
            raise failure
        except (NoNetwork, SupervisionLost) as error:
            raise OSError(errno.ENETDOWN, str(error)) from error

    async def refusals(self) -> Refusals:
        """Tell what the network has refused by now; nothing where that cannot be known."""
        with contextlib.suppress(NoNetwork, OSError, SupervisionLost):
            return await (await self.network()).refusals()
        return Refusals(connections=0, no_route=0, datagrams=0)

    async def close(self) -> None:
        """End what leads out of it and let go of it; closing twice is no error."""
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*(relay.close() for relay in self._relays))
        if self._opening is not None:
            with contextlib.suppress(OSError, StartError, SupervisionLost):
                (await self._opening).close()
        if self._hosts_file is not None:
            with contextlib.suppress(OSError):
                self._hosts_file.unlink()


def reach_of(example: Example) -> tuple[Endpoint, ...]:
    """List the services of the machine that an example and its companions reach, each once."""
    parts = (example, *example.companions)
    return tuple(dict.fromkeys(each for part in parts for each in part.settings.reach))


def has_local_resolver() -> bool:
    """Tell whether this machine resolves names by a service on its own loopback."""
    with contextlib.suppress(OSError):
        return resolves_here(_read(_RESOLV_CONF))
    return True


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""


async def _resolved(host: str, port: int) -> tuple[str, ...]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(str(address[0]) for *_, address in found)


def _words(error: OSError | StartError | SupervisionLost) -> str:
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)
    return str(error)
