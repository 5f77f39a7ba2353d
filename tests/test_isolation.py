"""Which network an example gets, and what makes its isolation suspect."""

from dataclasses import replace

import pytest
import report_history
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.isolation import (
    Signs,
    addresses_of,
    hosts_file,
    is_address,
    mode_for,
    resolves_here,
    shortfall,
    spares_the_machine,
    suspicion,
)
from e2e_runner.model import Endpoint, NetworkMode, NetworkTier, Past, Status

AUTO, ISOLATED, HOST = NetworkMode.AUTO, NetworkMode.ISOLATED, NetworkMode.HOST
BAD_ON_HOST = Past(network=HOST)


@pytest.mark.parametrize(
    ("wanted", "tier", "past", "mode"),
    [
        (AUTO, NetworkTier.NAMESPACE, None, ISOLATED),
        (AUTO, NetworkTier.USER_NAMESPACE, None, ISOLATED),
        (AUTO, NetworkTier.HOST, None, HOST),
        (AUTO, NetworkTier.NAMESPACE, Past(), ISOLATED),
        (AUTO, NetworkTier.NAMESPACE, Past(network=ISOLATED), ISOLATED),
        (AUTO, NetworkTier.NAMESPACE, BAD_ON_HOST, HOST),
        (AUTO, NetworkTier.HOST, Past(network=ISOLATED), HOST),
        (ISOLATED, NetworkTier.NAMESPACE, BAD_ON_HOST, ISOLATED),
        (ISOLATED, NetworkTier.HOST, None, ISOLATED),  # it will be blocked
        (HOST, NetworkTier.NAMESPACE, Past(network=ISOLATED), HOST),
    ],
)
def test_the_network_of_an_example(
    wanted: NetworkMode, tier: NetworkTier, past: Past | None, mode: NetworkMode
) -> None:
    settings = replace(report_history.example("a.py").settings, network=wanted)
    assert mode_for(settings, tier, past) is mode


def test_what_declares_what_it_reaches_is_believed() -> None:
    usual = report_history.example("a.py").settings
    declares = replace(usual, reach=(Endpoint(host="localhost", port=6379),))
    assert mode_for(declares, NetworkTier.NAMESPACE, BAD_ON_HOST) is ISOLATED
    assert mode_for(declares, NetworkTier.HOST, BAD_ON_HOST) is HOST


FAILED = Signs(status=Status.FAILED)
REDIS = 'localhost:6379 is a service of the machine: declare reach = ["localhost:6379"]'
SOMEWHERE = "something was refused that may be meant for a service of the machine"
LACKS = "its network lacks an address or a device of the machine's"
ASKS_REDIS = Signs(
    status=Status.FAILED,
    cause="connection-refused",
    details={"port": "6379"},
    refused=1,
    host_ports=frozenset({22, 6379}),
)
POSTGRES = 'localhost:5432 is a service of the machine: declare reach = ["localhost:5432"]'
OTHER_SERVER = Signs(
    status=Status.FAILED,
    cause="database",
    details={"user": "maria"},
    host_ports=frozenset({22, 5432}),
    databases=5432,
)
SILENT = replace(ASKS_REDIS, cause=None, details={}, source_ports=(8000, 6379))


@pytest.mark.parametrize(
    ("signs", "why"),
    [
        # an end that has nothing to do with it
        (FAILED, ""),
        (replace(FAILED, status=Status.TIMEOUT), ""),
        (replace(FAILED, refused=40, source_ports=(8000,)), ""),
        (replace(FAILED, datagrams=3), SOMEWHERE),
        # names
        (replace(FAILED, cause="dns"), "no DNS in its network"),
        (replace(FAILED, cause="dns", no_route=2), "no DNS in its network"),
        (replace(FAILED, datagrams=2, local_resolver=True), "no DNS in its network"),
        # routes
        (replace(FAILED, no_route=1), "no route beyond its network"),
        (replace(FAILED, status=Status.TIMEOUT, no_route=9), "no route beyond its network"),
        (replace(FAILED, cause="unreachable"), "no route beyond its network"),
        (replace(FAILED, cause="no-such-address"), LACKS),
        # what no counter knows: a Unix socket whose name is one of the network
        (replace(FAILED, cause="connection-refused"), SOMEWHERE),
        # services of the machine
        (ASKS_REDIS, REDIS),
        (replace(ASKS_REDIS, cause="database"), REDIS),
        (replace(ASKS_REDIS, cause="assertion"), SOMEWHERE),  # whose `port` was not refused
        (replace(ASKS_REDIS, refused=0), REDIS),
        (replace(ASKS_REDIS, host_ports=frozenset({22})), SOMEWHERE),  # chosen at random
        (replace(ASKS_REDIS, host_ports=frozenset({22}), source_ports=(6379,)), ""),
        (replace(ASKS_REDIS, own_ports=frozenset({6379})), ""),
        (replace(ASKS_REDIS, reached=frozenset({6379})), ""),
        (replace(ASKS_REDIS, details={"port": "8000"}, source_ports=(6379, 8000)), ""),
        # where no port is told, the source has to name one
        (SILENT, REDIS),
        (replace(SILENT, cause="timeout-in-client"), REDIS),
        (replace(SILENT, status=Status.TIMEOUT), REDIS),
        (replace(SILENT, cause="connection-refused", details={"port": "?"}), REDIS),
        (replace(SILENT, refused=0), ""),
        (replace(SILENT, own_ports=frozenset({8000, 6379})), ""),
        (replace(SILENT, source_ports=(8000,), own_ports=frozenset({8000})), ""),
        # none is named anywhere, and it serves nothing that it may have waited for, or says as much
        (replace(SILENT, source_ports=(8000,)), ""),
        (replace(SILENT, source_ports=(), host_ports=frozenset()), SOMEWHERE),
        (
            replace(
                SILENT, source_ports=(), own_ports=frozenset({8000}), cause="connection-refused"
            ),
            SOMEWHERE,
        ),
        (replace(SILENT, own_ports=frozenset({8000})), REDIS),
        (replace(SILENT, reached=frozenset({22, 6379})), ""),
        # its own server stands where that of the machine is, whose users and databases it wants
        (OTHER_SERVER, POSTGRES),
        (replace(OTHER_SERVER, details={"database": "shop"}), POSTGRES),
        (replace(OTHER_SERVER, details={"name": "planets"}), ""),
        (replace(OTHER_SERVER, cause="unique-violation"), ""),
        (replace(OTHER_SERVER, databases=5433), ""),
        (replace(OTHER_SERVER, databases=None), ""),
        (replace(OTHER_SERVER, host_ports=frozenset({22})), ""),
        # a companion may be hindered as the script may
        (replace(SILENT, status=Status.BLOCKED), REDIS),
    ],
)
def test_what_makes_the_isolation_suspect(signs: Signs, why: str) -> None:
    assert suspicion(signs) == why


@pytest.mark.parametrize("status", [Status.PASSED, Status.SERVED, Status.LEAKED])
@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (Signs(status=Status.PASSED, no_route=1, datagrams=1, local_resolver=True), ""),
        (Signs(status=Status.PASSED, refused=9), ""),
        (replace(SILENT, service_ports=(6379,)), REDIS),  # it may have left out what asks Redis
        (SILENT, ""),  # or serves there itself, for a moment
        (replace(SILENT, service_ports=(6379,), refused=0), ""),
        (replace(SILENT, service_ports=(6379,), own_ports=frozenset({6379})), ""),
    ],
)
def test_what_a_pass_may_have_left_out(status: Status, seen: Signs, why: str) -> None:
    assert suspicion(replace(seen, status=status)) == why


@pytest.mark.parametrize("status", [Status.PASSED, Status.SERVED, Status.LEAKED])
def test_what_a_pass_may_have_left_out_for_all_one_knows(status: Status) -> None:
    assert shortfall(Signs(status=status, no_route=1)) == "no route beyond its network"
    seen = Signs(status=status, datagrams=1, local_resolver=True)
    assert shortfall(seen) == "no DNS in its network"
    assert shortfall(replace(seen, local_resolver=False)) == ""
    assert shortfall(Signs(status=status, refused=9)) == ""
    assert shortfall(replace(seen, status=Status.FAILED)) == ""


def test_the_machine_is_spared_where_a_server_of_its_own_stands_for_one_of_the_machine() -> None:
    assert spares_the_machine(replace(FAILED, databases=5432, host_ports=frozenset({5432})))
    assert not spares_the_machine(replace(FAILED, databases=5432, host_ports=frozenset({22})))
    assert not spares_the_machine(replace(FAILED, host_ports=frozenset({5432})))


@pytest.mark.parametrize("status", [Status.SKIPPED, Status.NOT_RUN])
def test_what_did_not_run_is_never_suspect(status: Status) -> None:
    signs = replace(ASKS_REDIS, no_route=1, datagrams=1, local_resolver=True, status=status)
    assert suspicion(signs) == ""


HOSTS = st.sampled_from(["localhost", "127.0.0.1", "::1", "10.1.2.3", "db", "redis", "a.b.c"])


@given(st.lists(st.builds(Endpoint, host=HOSTS, port=st.integers(1, 65535))))
def test_each_host_has_its_own_addresses(endpoints: list[Endpoint]) -> None:
    given = addresses_of(endpoints)
    assert given.keys() == {each.host for each in endpoints}
    names = {host: at for host, at in given.items() if host != "localhost" and not is_address(host)}
    assert len(set(names.values())) == len(names)
    assert all(at[0].startswith("127.1.") for at in names.values())
    assert given.get("localhost", ("127.0.0.1", "::1")) == ("127.0.0.1", "::1")


def test_two_hundred_names_and_more_have_addresses() -> None:
    given = addresses_of(Endpoint(host=f"name{n}", port=1) for n in range(1, 301))
    assert given["name255"] == ("127.1.0.255",)
    assert given["name300"] == ("127.1.1.44",)


def test_the_hosts_file_keeps_what_it_does_not_change() -> None:
    usual = (
        "127.0.0.1\tlocalhost\n# a comment\n\n127.0.1.1 box.lan box\n10.0.0.7 DB.internal other\n"
    )
    addresses = addresses_of(
        [
            Endpoint(host="db.internal", port=5432),
            Endpoint(host="localhost", port=6379),
            Endpoint(host="10.0.0.9", port=80),
        ]
    )
    assert hosts_file(addresses, usual).splitlines() == [
        "127.0.0.1 localhost",
        "::1 localhost ip6-localhost ip6-loopback",
        "127.1.0.1 db.internal",
        "127.0.1.1 box.lan box",
        "10.0.0.7 other",
    ]


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("", True),
        ("search lan\nnameserver 127.0.0.53\noptions edns0\n", True),
        ("nameserver ::1\n", True),
        ("nameserver 10.0.0.2\nnameserver 127.0.0.1\n", True),
        ("nameserver 10.0.0.2\n", False),
        ("nameserver fe80::1%eth0\n", False),
        ("# nameserver 127.0.0.1\nnameserver 10.0.0.2\nnameserver\n", False),
    ],
)
def test_where_names_are_resolved(text: str, *, here: bool) -> None:
    assert resolves_here(text) is here
