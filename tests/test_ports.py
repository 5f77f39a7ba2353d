import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from harness import free_port
from hypothesis import given
from hypothesis import strategies as st
from insides import inside, users

from e2e_runner.model import OnPortConflict, PortOwner, ProcessInfo
from e2e_runner.ports import (
    Outcome,
    advice,
    bindable,
    describe,
    earlier_run,
    leftover,
    listening,
    listening_ports_of,
    netlink,
    owners,
    ownership,
    process_info,
    sockets,
    stop_leftover,
    taken,
)

WILDCARD = "0.0.0.0"  # noqa: S104 - a test listens on it for an instant

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what only Linux tells")
root = pytest.mark.skipif(os.geteuid() != 0, reason="starts processes of another user")

LISTEN = """
import ctypes, os, signal, socket, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
if "leave" in sys.argv:
    assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET
if "fork" in sys.argv and os.fork() == 0:
    signal.pause()
print(server.getsockname()[1], flush=True)
signal.pause()
"""

Start = Callable[..., tuple[subprocess.Popen[str], int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that listens, and give it with its port."""
    with contextlib.ExitStack() as stack:

        def listen(
            *options: str,
            host: str = "127.0.0.1",
            env: dict[str, str] | None = None,
            argv0: str = sys.executable,
            port: int = 0,
        ) -> tuple[subprocess.Popen[str], int]:
            process = subprocess.Popen(
                [argv0, "-c", LISTEN, host, str(port), *options],
                executable=sys.executable,
                # An interpreter that runs under another name cannot find its library by it.
                env={**os.environ, "PYTHONHOME": sys.base_prefix, **(env or {})},
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
            )
            stack.enter_context(process)
            stack.callback(_end, process)
            assert process.stdout is not None
            return process, int(process.stdout.readline())

        yield listen


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def test_a_free_port_is_not_taken() -> None:
    assert taken([free_port()]) == {}


def test_the_owner_of_a_taken_port_is_named(start: Start) -> None:
    before = time.time()
    process, port = start()
    free = free_port()

    found = taken([port, free])

    assert list(found) == [port]
    (owner,) = found[port]
    assert owner.addresses == ("127.0.0.1",)
    assert owner.uid == (os.getuid() if sys.platform == "linux" else None)
    assert owner.process is not None
    assert owner.process.pid == process.pid
    assert owner.process.command.startswith(f"{sys.executable} -c ")
    assert owner.process.user == psutil.Process().username()
    assert owner.process.ports == (port,)
    assert abs(owner.process.started - before) < 5
    assert owner.earlier_run is None
    assert owner.note == ""


@pytest.mark.parametrize("address", ["127.0.0.1", WILDCARD, "::1", "::", "::ffff:127.0.0.1"])
def test_loopback_and_wildcard_servers_are_in_the_way(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        server = socket.socket(family)
        server.bind((address, 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        server.listen()
        port = server.getsockname()[1]
        (owner,) = taken([port])[port]
        assert owner.addresses == (address,)
        assert owner.process is not None
        assert owner.process.pid == os.getpid()


@linux
def test_a_server_on_another_address_is_listed_and_not_in_the_way() -> None:
    with socket.create_server(("127.0.0.9", 0)) as server:
        port = server.getsockname()[1]
        assert taken([port]) == {}
        (owner,) = owners([port])
    assert owner.addresses == ("127.0.0.9",)
    assert owner.note == (
        "only on 127.0.0.9, which is in the way of a server on every address, "
        "not of one on 127.0.0.1"
    )


@linux
def test_a_server_on_the_ipv6_loopback_only_is_in_the_way_and_says_where_it_is() -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        port = server.getsockname()[1]
        (owner,) = taken([port])[port]
    assert describe(owner, time.time()).endswith(
        "s ago: only on ::1, which is in the way of a server on localhost or on every address, "
        "not of one on 127.0.0.1"
    )


def test_sockets_of_one_process_on_both_families_are_one_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as four:
        port = four.getsockname()[1]
        try:
            six = socket.create_server(("::1", port), family=socket.AF_INET6)
        except OSError:
            pytest.skip("no IPv6 here")
        with six:
            (owner,) = owners([port])
    assert owner.addresses == ("127.0.0.1", "::1")


@linux
def test_of_processes_that_share_a_socket_the_oldest_is_named(start: Start) -> None:
    process, port = start("fork")
    (owner,) = owners([port])
    assert owner.process is not None
    assert owner.process.pid == process.pid
    assert owner.note == "shared with 1 more process"


@linux
def test_processes_that_share_a_port_by_so_reuseport_are_listed_each() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as first:
        port = first.getsockname()[1]
        code = f"import socket; s = socket.create_server(('127.0.0.1', {port}), reuse_port=True); print(flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as second:
            assert second.stdout is not None
            second.stdout.readline()
            pids = {owner.process.pid for owner in owners([port]) if owner.process}
            assert pids == {os.getpid(), second.pid}
            second.communicate(b"\n")


NOT_TOLD = (
    "nothing is seen to listen on it, but it cannot be bound, "
    "and the system does not tell which process holds it"
)


def test_a_port_that_is_bound_but_not_listened_on_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "bound_rows", lambda: iter(()))  # as a kernel before 6.8 has it
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        assert not bindable(port)
        (owner,) = taken([port])[port]
    assert owner.process is None
    assert describe(owner, 0.0) == f"port {port} is taken: {NOT_TOLD}"
    assert advice(owner, policy=OnPortConflict.FAIL) == (
        "Stop what has bound the port without listening on it, or choose another port, "
        "or wait for it with --on-port-conflict wait."
    )


def _kernel_tells_of_bound_sockets() -> bool:
    release = os.uname().release.split(".")
    return sys.platform == "linux" and tuple(map(int, release[:2])) >= (6, 8)


@pytest.mark.skipif(not _kernel_tells_of_bound_sockets(), reason="needs Linux 6.8")
@pytest.mark.parametrize("address", ["127.0.0.1", WILDCARD, "::1"])
def test_the_process_that_bound_a_port_without_listening_is_named(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as bound:
        try:
            bound.bind((address, 0))
        except OSError:
            pytest.skip("no IPv6 here")
        port = bound.getsockname()[1]
        (owner,) = taken([port])[port]
    assert owner.process is not None
    assert owner.process.pid == os.getpid()
    assert owner.addresses == ()
    note, _, where = owner.note.partition("; ")
    assert note == "has bound it and does not listen"
    assert where.startswith("only on ::1, " if address == "::1" else "")
    assert advice(owner, policy=None) == f"Stop it (kill {os.getpid()})."


def test_no_query_for_bound_sockets_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Iterator[tuple[int, bytes, int, int]]:
        raise OSError(93, "Protocol not supported")

    monkeypatch.setattr(sockets, "bound_rows", refuse)
    assert sockets.bound([8000]) == ()


@linux
def test_a_port_held_by_a_connection_names_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with client, accepted:
            port = client.getsockname()[1]
            (owner,) = taken([port])[port]
    assert owner.process is not None
    assert owner.process.pid == os.getpid()
    assert owner.note == "holds it by a connection"


@linux
def test_who_ends_during_the_look_is_no_invisible_owner(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, port = start()
    looks = 0

    def holders_later(inodes: Collection[int]) -> dict[int, list[int]]:
        nonlocal looks
        looks += 1
        if looks == 1:
            _end(process)
        return sockets.holders(inodes)

    monkeypatch.setattr(ownership, "holders", holders_later)
    assert taken([port]) == {}
    assert looks == 1  # the second look finds no socket, whose process would be looked for


@linux
def test_a_process_that_stays_hidden_is_told_after_a_second_look(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port = start()
    looks = []

    def hides_all(inodes: Collection[int]) -> dict[int, list[int]]:
        looks.append(inodes)
        return {}

    monkeypatch.setattr(ownership, "holders", hides_all)
    (owner,) = owners([port])
    assert owner.process is None
    assert "not visible from here, as in another container" in owner.note
    assert len(looks) == 2


def test_a_privileged_port_is_bindable_or_refused_but_not_taken() -> None:
    assert bindable(1)


@linux
def test_the_look_costs_less_than_a_millisecond() -> None:
    port = free_port()
    times = []
    for _ in range(50):
        begin = time.process_time()  # what others do meanwhile is not its cost
        taken([port])
        times.append(time.process_time() - begin)
    assert sorted(times)[25] < 0.001


@linux
def test_netlink_proc_and_psutil_see_the_same_sockets() -> None:
    with socket.create_server(("127.0.0.1", 0)), socket.create_server((WILDCARD, 0)) as wildcard:
        port = wildcard.getsockname()[1]
        by_netlink = {row for row in listening() if row.port == port}
        by_proc = {row for row in sockets._listening_proc("/proc/net") or [] if row.port == port}
        by_psutil = {row for row in sockets._listening_psutil() if row.port == port}
        by_process = {row for row in sockets._listening_by_process() if row.port == port}
    assert by_netlink == by_proc
    assert len(by_netlink) == 1
    expected = sockets.Listener(port=port, address=WILDCARD, pid=os.getpid())
    assert by_psutil == by_process == {expected}


@linux
def test_the_way_of_other_systems_gives_the_same_owner(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, port = start(env={"E2E_RUN": "1", "E2E_RUN_ID": "r1", "E2E_RUN_PROJECT": "/p"})
    monkeypatch.setattr(sockets, "_LINUX", False)
    monkeypatch.setattr(ownership, "_LINUX", False)
    (owner,) = taken([port], earlier=_tag)[port]
    assert owner.process is not None
    assert (owner.process.pid, owner.process.ports) == (process.pid, (port,))
    assert (owner.uid, owner.earlier_run) == (None, "r1")


@linux
def test_other_systems_see_what_cannot_be_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_LINUX", False)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        (owner,) = taken([port])[port]
    assert owner.note == NOT_TOLD


@given(address=st.ip_addresses(), port=st.integers(0, 65535), uid=st.integers(0, 2**32 - 1))
def test_a_line_of_the_kernel_table_is_parsed(address, port: int, uid: int) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - ipaddress union
    words = struct.unpack(f"={len(address.packed) // 4}I", address.packed)
    printed = "".join(f"{word:08X}" for word in words)
    line = f"  0: {printed}:{port:04X} 0:0000 0A 0:0 00:0 0 {uid} 0 4711 1 0 100 0 0 10 0\n"
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    assert sockets.parse_row(line.encode()) == (
        True,
        sockets.Listener(
            port=port, address=socket.inet_ntop(family, address.packed), uid=uid, inode=4711
        ),
    )


# --- processes that are not visible, and container proxies ---------------------------------------

ASK = """
import json, os, pwd, sys
import psutil
from e2e_runner.ports import taken
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for owner in taken([int(sys.argv[1])])[int(sys.argv[1])]:
    pid = owner.process.pid if owner.process else None
    print(json.dumps([pid, owner.uid, owner.note]))
"""


def _ask_as_nobody(port: int) -> tuple[int | None, int, str]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(port)], check=True, capture_output=True, text=True
    )
    pid, uid, note = json.loads(done.stdout)
    return pid, uid, note


@linux
@root
def test_a_socket_of_another_user_is_told_by_its_user(start: Start) -> None:
    _, port = start()
    assert _ask_as_nobody(port) == (
        None,
        0,
        "its process is not visible to you: it belongs to user root (uid 0)",
    )


@linux
def test_a_docker_proxy_is_told_as_a_container(start: Start) -> None:
    options = ["-proto", "tcp", "-container-ip", "172.17.0.2", "-container-port", "80"]
    _, port = start(*options, argv0="/usr/bin/docker-proxy", host=WILDCARD)
    (owner,) = taken([port])[port]
    assert owner.note == "published by a container (docker-proxy for 172.17.0.2:80)"
    assert advice(owner, policy=OnPortConflict.FAIL) == (
        f"Stop the container that publishes the port (docker ps --filter publish={port} names it)."
    )


@linux
@root
def test_a_docker_proxy_of_root_is_found_by_its_arguments(start: Start) -> None:
    port = free_port()
    options = f"-host-port {port} -container-ip 172.17.0.2 -container-port 80".split()
    process, _ = start(*options, argv0="docker-proxy", port=port)
    assert _ask_as_nobody(port) == (
        process.pid,
        0,
        "published by a container (docker-proxy for 172.17.0.2:80)",
    )


# --- tags ----------------------------------------------------------------------------------------

TAGS = {"E2E_RUN": "1", "E2E_RUN_ID": "r1", "E2E_RUN_PROJECT": "/p"}


def _tag(pid: int) -> str | None:
    return earlier_run(pid, project="/p", is_live=lambda run_id: run_id == "live")


def test_the_tag_of_an_earlier_run_is_recognised(start: Start) -> None:
    process, port = start(env=TAGS)
    (owner,) = taken([port], earlier=_tag)[port]
    assert owner.earlier_run == "r1"
    assert describe(owner, process_started(owner) + 60).endswith(
        "started 1m00s ago, left by an earlier run"
    )
    assert advice(owner, policy=OnPortConflict.FAIL) == (
        f"Run again with --free-ports to have it stopped, or stop it yourself: kill {process.pid}."
    )


def process_started(owner: PortOwner) -> float:
    assert owner.process is not None
    return owner.process.started


@pytest.mark.parametrize(
    "env",
    [
        {**TAGS, "E2E_RUN_ID": "live"},
        {**TAGS, "E2E_RUN_ID": ""},
        {**TAGS, "E2E_RUN": "10"},
        {**TAGS, "E2E_RUN_PROJECT": "/p2"},
        {**TAGS, "E2E_RUN_PROJECT": "/"},
        {"MY_E2E_RUN": "1", "E2E_RUN_ID": "r1", "E2E_RUN_PROJECT": "/p"},
        {"OTHER": "E2E_RUN=1", "E2E_RUN_ID": "r1", "E2E_RUN_PROJECT": "/p"},
    ],
)
def test_anything_but_the_exact_tag_of_an_ended_run_proves_nothing(
    env: dict[str, str], start: Start
) -> None:
    environment = dict.fromkeys(TAGS, "") | env
    process, _ = start(env=environment)
    assert _tag(process.pid) is None


def test_an_ended_process_carries_no_tag(start: Start) -> None:
    process, _ = start(env=TAGS)
    _end(process)
    assert _tag(process.pid) is None
    assert ownership._environment_psutil(process.pid) == {}


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_]{1,8}", fullmatch=True),
        st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    )
)
def test_an_environment_is_parsed_into_exact_pairs(environment: dict[str, str]) -> None:
    raw = b"".join(f"{name}={value}".encode() + b"\0" for name, value in environment.items())
    assert ownership.parse_environment(raw) == environment


# --- words ---------------------------------------------------------------------------------------

SERVER = ProcessInfo(pid=4242, command="python server.py", started=1000.0, user="maria")
OWNER = PortOwner(port=8000, addresses=(WILDCARD,), process=SERVER)
HIDDEN = PortOwner(
    port=5432,
    addresses=("127.0.0.1",),
    process=None,
    uid=113,
    note="its process is not visible to you: it belongs to user postgres (uid 113)",
)


@pytest.mark.parametrize(
    ("owner", "said"),
    [
        (
            OWNER,
            "port 8000 is taken by pid 4242 (python server.py), user maria, started 2h00m ago",
        ),
        (
            replace(OWNER, earlier_run="r1"),
            "port 8000 is taken by pid 4242 (python server.py), user maria, started 2h00m ago, left by an earlier run",
        ),
        (
            replace(OWNER, process=replace(SERVER, command="a\x1b[2J\n", user="")),
            r"port 8000 is taken by pid 4242 (a\x1b[2J\n), started 2h00m ago",
        ),
        (
            replace(OWNER, process=replace(SERVER, command="", user="", started=9000.0)),
            "port 8000 is taken by pid 4242, started 0s ago",
        ),
        (
            replace(OWNER, process=replace(SERVER, command="", user="", started=8198.3)),
            "port 8000 is taken by pid 4242, started 1s ago",
        ),
        (
            HIDDEN,
            "port 5432 is taken: its process is not visible to you: it belongs to user postgres (uid 113)",
        ),
    ],
)
def test_an_owner_is_said_in_words(owner: PortOwner, said: str) -> None:
    assert describe(owner, 8200.0) == said


@pytest.mark.parametrize(
    ("policy", "more"),
    [
        (OnPortConflict.FAIL, ", or wait for it with --on-port-conflict wait"),
        (OnPortConflict.WAIT, ", or let the example wait longer with a longer --timeout"),
        (OnPortConflict.SKIP, ""),
        (None, ""),
    ],
)
def test_advice_fits_the_policy_in_force(policy: OnPortConflict | None, more: str) -> None:
    assert advice(OWNER, policy=policy) == f"Stop it (kill 4242){more}."


@pytest.mark.parametrize(
    ("user", "said"),
    [
        (1000, "As the owner or as root, `e2e-run ports 5432` names the process: stop it there."),
        (0, "Stop it where it runs, such as in another container, or choose another port."),
        (113, "Stop it where it runs, such as in another container, or choose another port."),
    ],
)
def test_nobody_is_told_to_become_who_they_are(
    user: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert advice(HIDDEN, policy=None) == said
    note = "its process is not visible from here, as in another container: it belongs to uid 113"
    if user != 1000:
        assert advice(replace(HIDDEN, note=note), policy=None) == said


def test_why_a_process_is_not_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert ownership._not_visible(None) == "its process is not visible to you"
    assert ownership._not_visible(4_000_000_123) == (
        "its process is not visible to you: it belongs to uid 4000000123"
    )
    assert ownership._not_visible(1000).startswith(
        "its process is not visible from here, as in another container: it belongs to "
    )


# --- the ports of processes ----------------------------------------------------------------------


def test_ports_of_processes(start: Start) -> None:
    first, port = start()
    second, other = start()
    ended, _ = start()
    _end(ended)
    pids = [first.pid, second.pid, ended.pid, os.getppid()]
    assert listening_ports_of(pids) == {first.pid: (port,), second.pid: (other,)}
    assert sockets._ports_of_psutil(first.pid) == (port,)
    assert sockets._ports_of_psutil(ended.pid) == ()


# --- processes in network namespaces of their own -------------------------------------------------


@linux
@pytest.mark.parametrize("user", users())
@pytest.mark.parametrize("asked", ["proc", "netlink"])
def test_ports_inside_a_network_namespace(start: Start, user: int | None, asked: str) -> None:
    ours, port = start()
    with inside(user) as other, inside(user) as third, other.diagnosis() as diagnosis:
        channel = diagnosis if asked == "netlink" else None
        other.listen(8000).close()  # it keeps it itself
        third.listen(port).close()
        assert listening_ports_of([other.pid], channel) == {other.pid: (8000,)}
        other.listen(80, "::1").close()
        other.listen(5432, "127.0.0.9").close()
        assert listening_ports_of([ours.pid, other.pid, third.pid], channel) == {
            ours.pid: (port,),
            other.pid: (80, 5432, 8000),
            third.pid: (port,),
        }
        assert {row.port for row in listening(diagnosis)} == {80, 5432, 8000}
        info = process_info(other.pid)
        assert info is not None
        assert info.ports == (80, 5432, 8000)


@linux
@root
def test_processes_that_share_a_namespace_are_told_apart() -> None:
    code = "import socket; s = socket.create_server(('', 8001)); print(flush=True); input()"
    with (
        inside() as first,
        first.listen(8000),
        subprocess.Popen(
            ["nsenter", f"--net=/proc/{first.pid}/ns/net", sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as second,
    ):
        assert second.stdout is not None
        second.stdout.readline()
        expected = {first.pid: (8000,), second.pid: (8001,)}
        assert listening_ports_of([first.pid, second.pid]) == expected
        second.communicate(b"\n")


@linux
def test_the_listeners_of_a_namespace_are_those_of_its_socket_alone() -> None:
    with inside() as other, other.diagnosis() as diagnosis, socket.create_server(("", 0)):
        assert listening(diagnosis) == ()
        with other.listen(8000):
            (row,) = listening(diagnosis)
            assert (row.port, row.address, row.uid) == (8000, "127.0.0.1", os.geteuid())
            # What a query left unread is not taken for the answer of the next.
            next(netlink.listening_rows(diagnosis))
            assert listening(diagnosis) == (row,)


@linux
def test_a_namespace_without_sockets_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with inside() as other:
        read: list[str] = []
        rows = sockets._rows

        def noted(file: str) -> Iterator[tuple[bool, sockets.Listener]]:
            read.append(file)
            return rows(file)

        monkeypatch.setattr(sockets, "_rows", noted)
        folder = f"/proc/{other.pid}/net"
        assert sockets._listening_proc(folder) == []
        assert read == []
        with other.listen(8000):
            (row,) = sockets._listening_proc(folder) or []
            assert (row.port, read) == (8000, [f"{folder}/tcp"])
    assert sockets._listening_proc(folder) is None


@linux
def test_a_namespace_that_cannot_be_counted_is_read(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "tcp").write_bytes(Path("/proc/net/tcp").read_bytes())
        rows = sockets._listening_proc(str(tmp_path)) or []
        assert server.getsockname()[1] in {row.port for row in rows}


@linux
@pytest.mark.parametrize("user", users())
def test_who_listens_in_another_namespace_is_no_owner_of_a_port_here(
    start: Start, user: int | None
) -> None:
    ours, port = start()
    other_port = free_port()
    with inside(user) as other, other.listen(port), other.listen(other_port):
        (owner,) = taken([port, other_port])[port]
        assert owner.process is not None
        assert owner.process.pid == ours.pid
        assert owner.note == ""
        assert owners([other_port]) == ()
        assert bindable(other_port)


@linux
@root
def test_who_took_a_socket_of_ours_into_another_namespace_is_its_owner(start: Start) -> None:
    process, port = start("leave")
    (owner,) = taken([port])[port]
    assert owner.process is not None
    assert (owner.process.pid, owner.addresses) == (process.pid, ("127.0.0.1",))


# --- stopping leftovers --------------------------------------------------------------------------


@pytest.fixture(params=["pidfd", "start time"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test both with pidfds and as on a system without them."""
    if request.param == "start time":
        monkeypatch.setattr(leftover, "_HAS_PIDFD", False)


def _stop(owner: PortOwner, grace: float = 5.0) -> Outcome:
    return asyncio.run(stop_leftover(owner, earlier=_tag, grace=grace))


def _owner_of(port: int) -> PortOwner:
    (owner,) = taken([port], earlier=_tag)[port]
    return owner


@pytest.mark.usefixtures("way")
def test_a_leftover_is_terminated(start: Start) -> None:
    process, port = start(env=TAGS)
    assert _stop(_owner_of(port)) is Outcome.TERMINATED
    assert process.wait() == -15
    assert taken([port]) == {}


@pytest.mark.usefixtures("way")
def test_a_stubborn_leftover_is_killed_after_its_grace(start: Start) -> None:
    process, port = start("stubborn", env=TAGS)
    assert _stop(_owner_of(port), grace=0.05) is Outcome.KILLED
    assert process.wait() == -9


@pytest.mark.usefixtures("way")
def test_a_leftover_that_is_gone_is_no_error(start: Start) -> None:
    process, port = start(env=TAGS)
    owner = _owner_of(port)
    _end(process)
    assert _stop(owner) is Outcome.GONE


@pytest.mark.usefixtures("way")
def test_a_process_that_took_over_the_pid_is_left_alone(start: Start) -> None:
    process, port = start(env=TAGS)
    owner = _owner_of(port)
    assert owner.process is not None
    older = replace(owner, process=replace(owner.process, started=owner.process.started - 60))
    other_run = replace(owner, earlier_run="r0")
    assert _stop(older) is Outcome.NOT_THE_SAME
    assert _stop(other_run) is Outcome.NOT_THE_SAME
    assert process.poll() is None


def test_what_carries_no_tag_is_never_stopped(start: Start) -> None:
    process, port = start()
    owner = _owner_of(port)
    with pytest.raises(ValueError, match="not left by an earlier run"):
        _stop(owner)
    assert process.poll() is None


def test_what_became_of_a_leftover_is_said() -> None:
    assert [outcome.stopped for outcome in Outcome] == [True, True, True, False, False, False]


def test_the_table_needs_no_psutil() -> None:
    code = (
        "import sys; from e2e_runner.ports import taken; taken([1]); print('psutil' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.stdout == "False\n"
