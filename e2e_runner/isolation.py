"""Which network an example gets, and whether that is what it failed of. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address

from e2e_runner.model import (
    Endpoint,
    ExampleSettings,
    NetworkMode,
    NetworkTier,
    Past,
    Status,
)
from e2e_runner.verdict import ILL, WELL

NETWORK = "network"  # the cause of what could not be given a network of its own
LOOPBACK = ("127.0.0.1", "::1")

_NO_NAMES = "no DNS in its network"
_NO_ROUTE = "no route beyond its network"
_REFUSED_SOMEWHERE = "something was refused that may be meant for a service of the machine"
_LACKING = {  # by cause
    "unreachable": _NO_ROUTE,
    "no-such-address": "its network lacks an address or a device of the machine's",
}

# Blocked by a companion, that is: what is blocked by anything else has nothing to do with the network.
_MAY_BE_HINDERED = ILL | {Status.BLOCKED}
_DATABASE = "database"
_REFUSED = frozenset({"connection-refused", _DATABASE})  # causes whose `port` was refused
_REACH = re.compile(r"reach = \[[^]]*\]")
_LOCAL_PORT = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\]):(\d+)")
_PORT = re.compile(r"\d{1,5}", re.ASCII)
_PORTS = 65536
_FIRST_OWN_ADDRESS = int(IPv4Address("127.1.0.1"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What is known of an attempt in a network of its own, once it is over."""

    status: Status
    cause: str | None = None  # as the rules over the output found it, with its details
    details: Mapping[str, str] = field(default_factory=dict)
    refused: int = 0  # TCP connections that its network refused
    no_route: int = 0  # packets that had nowhere to go
    datagrams: int = 0  # that nobody took
    local_resolver: bool = False  # names are resolved by a service of the machine, on loopback
    own_ports: frozenset[int] = frozenset()  # that the example serves, or means to
    source_ports: tuple[int, ...] = ()  # in its source and its environment
    service_ports: tuple[int, ...] = ()  # those of them that it only goes to
    host_ports: frozenset[int] = frozenset()  # listened on by the machine
    reached: frozenset[int] = frozenset()  # of the machine's ports, those that it gets to
    databases: int | None = None  # the port of its network at which it has a server to itself


def mode_for(settings: ExampleSettings, tier: NetworkTier, past: Past | None) -> NetworkMode:
    """Decide between ISOLATED and HOST for an example with such settings.

    Where there is no isolation, ISOLATED stays what it is: such an example is blocked, not run elsewhere.
    One that declares what it reaches is believed: what was learned before is of no account then.
    """
    if settings.network is not NetworkMode.AUTO:
        return settings.network
    learned = past is not None and past.network is NetworkMode.HOST and not settings.reach
    return NetworkMode.HOST if learned or tier is NetworkTier.HOST else NetworkMode.ISOLATED


def suspicion(signs: Signs) -> str:
    """Say in a few words why a verdict may be the doing of the isolation; empty where it is not.

    A refused connection alone is no sign: whoever waits for a server of its own has some. A pass may be
    one where the script leaves out what it cannot reach: it is doubted where that is a service that the
    machine has.
    """
    if signs.status in WELL:
        return _named(signs, signs.service_ports if signs.refused else ())
    if signs.status not in _MAY_BE_HINDERED:
        return ""
    if signs.cause == "dns":
        return _NO_NAMES
    if signs.cause in _LACKING:
        return _LACKING[signs.cause]
    return _beyond(signs) or _hidden(signs) or _refused(signs)


def shortfall(signs: Signs) -> str:
    """Say what a pass in isolation may have left out, with nothing to tell whether it did."""
    return _beyond(signs) if signs.status in WELL else ""


def _beyond(signs: Signs) -> str:
    """Say how it tried to get out of its network, in vain."""
    if signs.datagrams and signs.local_resolver:
        return _NO_NAMES
    return _NO_ROUTE if signs.no_route else ""


def _hidden(signs: Signs) -> str:
    """Say whose users and databases it looked for, in vain, on a server that stands in its place."""
    looked_for = signs.cause == _DATABASE and not {"database", "user"}.isdisjoint(signs.details)
    port = signs.databases
    return _of_the_machine(port) if looked_for and port in signs.host_ports else ""


def _refused(signs: Signs) -> str:
    """Say whose a refused connection may have been meant for."""
    told = _port(signs.details.get("port")) if signs.cause in _REFUSED else None
    if told is not None:
        # A port that is named nowhere was chosen at random, for a container perhaps.
        known = signs.own_ports | signs.reached | {*signs.source_ports}
        return _named(signs, (told,)) or ("" if told in known else _REFUSED_SOMEWHERE)
    # What is no TCP connection counts nowhere: a Unix socket with a name of the network, say.
    says_so = signs.cause == "connection-refused"
    if named := _named(signs, signs.source_ports if signs.refused or says_so else ()):
        return named
    # Without a server of its own it was somebody else's that it wanted.
    serves = signs.own_ports or signs.source_ports
    wanted = says_so or signs.datagrams or (signs.refused and not serves)
    return _REFUSED_SOMEWHERE if wanted else ""


def _named(signs: Signs, ports: Iterable[int]) -> str:
    """Say which of the `ports` is one of the machine's services, and not led to."""
    foreign = signs.host_ports - signs.own_ports - signs.reached
    return next((_of_the_machine(port) for port in ports if port in foreign), "")


def _of_the_machine(port: int | None) -> str:
    return f'localhost:{port} is a service of the machine: declare reach = ["localhost:{port}"]'


def _port(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def spares_the_machine(signs: Signs) -> bool:
    """Tell whether the example must not be run on the network of the machine after all.

    Where it has a PostgreSQL server to itself, another of the machine's may stand there: what the
    example does to the one that is its own, it would do to that.
    """
    return signs.databases is not None and signs.databases in signs.host_ports


def remedy(suspect: str) -> str:
    """Say what would settle whether a failure is the doing of the isolation, by its suspicion.

    >>> remedy("no DNS in its network")
    'If it failed by its isolation, declare what it uses of the machine (`reach` in its metadata), or \
let it run on the network of the machine (network = "host").'
    """
    named = _REACH.search(suspect)
    declare = (
        f"declare {named[0]} in its metadata"
        if named
        else "declare what it uses of the machine (`reach` in its metadata)"
    )
    return (
        f"If it failed by its isolation, {declare}, or let it run on the network of the machine "
        '(network = "host").'
    )


def ports_in(environ: Mapping[str, str]) -> tuple[int, ...]:
    """List the ports of this machine that variables name.

    >>> ports_in({"REDIS_URL": "redis://localhost:6379/0", "SMTP_PORT": "1025", "HOME": "/home/me"})
    (6379, 1025)
    """
    found: dict[int, None] = {}
    for name, value in environ.items():
        told = _LOCAL_PORT.findall(value)
        if name.endswith("PORT"):
            told.append(value)
        found.update((int(port), None) for port in told if _PORT.fullmatch(port))
    return tuple(port for port in found if 0 < port < _PORTS)


# --- names and addresses -------------------------------------------------------------------------


def addresses_of(endpoints: Iterable[Endpoint]) -> dict[str, tuple[str, ...]]:
    """Give the addresses at which each host of `endpoints` is reached in a network of its own.

    localhost is what it always is, an address is itself, and a name gets one of 127.1.0.0/16.

    >>> addresses_of([Endpoint(host="db.internal", port=5432), Endpoint(host="::1", port=1)])
    {'db.internal': ('127.1.0.1',), '::1': ('::1',)}
    """
    given: dict[str, tuple[str, ...]] = {}
    names = 0
    for host in dict.fromkeys(each.host for each in endpoints):
        if host == "localhost":
            given[host] = LOOPBACK
        elif is_address(host):
            given[host] = (host,)
        else:
            given[host] = (str(IPv4Address(_FIRST_OWN_ADDRESS + names)),)
            names += 1
    return given


def is_address(host: str) -> bool:
    """Tell whether a host is an IP address, and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def hosts_file(addresses: Mapping[str, tuple[str, ...]], usual: str) -> str:
    """Write a hosts file in which the names among `addresses` lead there.

    `usual` is that of the machine, whose other lines it keeps.

    >>> print(hosts_file({"db": ("127.1.0.1",)}, "10.0.0.7 db db2 # ours"), end="")
    127.0.0.1 localhost
    ::1 localhost ip6-localhost ip6-loopback
    127.1.0.1 db
    10.0.0.7 db2
    """
    names = {host: at for host, at in addresses.items() if host not in at and host != "localhost"}
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {name}" for name, given in names.items() for address in given]
    hidden = {"localhost", *(name.lower() for name in names)}
    for line in usual.splitlines():
        address, *known = line.partition("#")[0].split() or [""]
        if kept := [name for name in known if name.lower() not in hidden]:
            lines.append(f"{address} {' '.join(kept)}")
    return "".join(f"{line}\n" for line in lines)


def resolves_here(resolv_conf: str) -> bool:
    """Tell whether resolv.conf(5) names a resolver on this machine's loopback; without one it does.

    >>> resolves_here("nameserver 127.0.0.53"), resolves_here("nameserver 10.0.0.2")
    (True, False)
    """
    servers = [
        words[1]
        for line in resolv_conf.splitlines()
        if len(words := line.split()) > 1 and words[0] == "nameserver"
    ]
    plain = [server.partition("%")[0] for server in servers]
    return not plain or any(is_address(each) and ip_address(each).is_loopback for each in plain)
