"""What is to hold of networks whoever the user and whichever the containment, run as a program.

Arguments: the containment tier ("" for the best), a folder, and the names of scenarios. Stdout is JSON:
the tiers, the notes, and for each scenario the traceback that it ended in, if any. The names "hold" and
"churn" stand for a run that goes on until it is killed.
"""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import free_port, is_living, wait_gone, wait_lines

from e2e_runner.model import Containment, NetworkTier
from e2e_runner.supervise.child import Child, Command, StartError, SupervisionLost
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.launch import Spawner
from e2e_runner.supervise.networks import Network, Refusals

SERVER = """
import socket, sys
address, port, ready, words = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
server = socket.create_server((address, int(port)), family=family)
with open(ready, "a") as file:
    print("ready", file=file)
while True:
    with server.accept()[0] as client:
        client.sendall(words.encode())
"""
# Goes away from its script in every way that a daemon knows, and listens.
DAEMON = f"import os\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n{SERVER}"
STATUS = "import sys; print(open('/proc/self/status').read(), file=open(sys.argv[1], 'w'))"
NETWORK = "import os, sys; print(os.readlink('/proc/self/ns/net'), file=open(sys.argv[1], 'a'))"
LOOK_UP = """
import socket, sys
try:
    found = socket.gethostbyname("db.internal.test")
except OSError:
    found = "unknown"
print(found, file=open(sys.argv[1], "a"))
"""
OTHER_IDS = """
import os, sys
status, file = os.stat(sys.argv[2]), open(sys.argv[1], "a")
try:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    now = (os.getuid(), os.getgid(), os.getgroups())
except PermissionError:
    now = ("refused",)
print(status.st_uid, status.st_gid, *now, file=file)
"""
ASK = """
import socket, sys
for what in sys.argv[2:]:
    kind, address, port = what.split(",")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, getattr(socket, kind)) as sock:
        try:
            if kind == "SOCK_DGRAM":
                sock.sendto(b"question", (address, int(port)))
            else:
                sock.connect((address, int(port)))
        except OSError as error:
            print(error.errno, file=open(sys.argv[1], "a"))
"""


@dataclass(kw_only=True)
class Scene:
    """One supervisor with its networks, and a folder."""

    supervisor: Supervisor
    spawner: Spawner
    folder: Path
    null: int
    started: list[Child] = field(default_factory=list)

    async def start(self, network: Network | None, code: str, *args: object) -> Child:
        """Start a script of Python."""
        child, _ = await self.supervisor.start(
            Command(
                argv=[sys.executable, "-I", "-S", "-c", code, *map(str, args)],
                env={
                    "PATH": os.environ["PATH"],
                    "E2E_RUN_ID": self.folder.name,
                    "E2E_RUN_EXAMPLE": uuid.uuid4().hex,
                },
                cwd=self.folder,
                stdin=self.null,
                stdout=self.null,
                stderr=2,
                network=network,
            )
        )
        self.started.append(child)
        return child

    async def run(self, network: Network | None, code: str, *args: object) -> int:
        """Run a script of Python to its end, and give the pid of the keeper that held it."""
        child = await self.start(network, code, *args)
        exited = await child.exited
        assert exited.exit.code == 0, exited
        self.release(child)
        return child.keeper

    async def serve(
        self, network: Network | None, address: str, port: int, words: str, code: str = SERVER
    ) -> Child:
        """Have a script listen, and wait until it does."""
        ready = self.folder / uuid.uuid4().hex
        child = await self.start(network, code, address, port, ready, words)
        await asyncio.to_thread(wait_lines, ready)
        return child

    def release(self, child: Child) -> None:
        self.started.remove(child)
        child.release()

    def lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text().splitlines()

    def maker(self) -> psutil.Process:
        """Find the network maker: the child of the spawner that is no keeper."""
        keepers = {keeper.pid for keeper in self.supervisor._keepers}
        (maker,) = [
            process
            for process in psutil.Process(self.spawner.process.pid).children()
            if process.pid not in keepers
        ]
        return maker


Scenario = Callable[[Scene], Coroutine[Any, Any, None]]
SCENARIOS: dict[str, Scenario] = {}  # for every user and tier
SPECIAL: dict[str, Scenario] = {}  # for surroundings that the test makes
# Seconds for an answer of the network maker, where it is to be missed.
IMPATIENT = {
    "whoever_asks_a_stopped_maker_gives_up": 2.0,
    "answers_count_that_came_while_nobody_looked": 3.0,
}


def scenario(work: Scenario) -> Scenario:
    SCENARIOS[work.__name__] = work
    return work


def special(work: Scenario) -> Scenario:
    SPECIAL[work.__name__] = work
    return work


async def answer(network: Network, host: str, port: int) -> str:
    with await network.connect(host, port) as client:
        return (await asyncio.get_running_loop().sock_recv(client, 100)).decode()


def own_network() -> str:
    return str(Path("/proc/self/ns/net").readlink())


def contents(file: str) -> str:
    return Path(file).read_text()


async def open_many(scene: Scene, count: int, into: list[Network]) -> None:
    for _ in range(count):
        into.append(await scene.supervisor.networks.open())  # noqa: PERF401 - those before an error too


async def made_ahead(scene: Scene) -> None:
    """Wait for what is made ahead of its use."""
    supervisor = scene.supervisor
    ahead = [supervisor.networks._ahead, *supervisor._coming.values()]
    await asyncio.wait([task for task in ahead if task is not None])


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone


def users_of(namespace: int) -> set[int]:
    """Find the processes of this run that are in a network namespace or hold it open."""
    wanted = os.fstat(namespace)
    found = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        folder = Path(f"/proc/{process.pid}")
        with contextlib.suppress(FileNotFoundError):
            for link in (folder / "ns/net", *(folder / "fd").iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    held = process.pid == os.getpid() and link.name == str(namespace)
                    if not held and os.path.samestat(link.stat(), wanted):
                        found.add(process.pid)
    return found


# --- what scripts see ----------------------------------------------------------------------------


@scenario
async def two_servers_have_the_same_port(scene: Scene) -> None:
    port = free_port()
    one, two = [await scene.supervisor.networks.open() for _ in range(2)]
    await scene.serve(one, "127.0.0.1", port, "one")
    await scene.serve(two, "127.0.0.1", port, "two")
    assert await answer(one, "127.0.0.1", port) == "one"
    assert await answer(two, "localhost", port) == "two"
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
    with pytest.raises(ConnectionRefusedError):
        await one.connect("::1", port)
    await scene.serve(one, "::1", port, "six")
    assert await answer(one, "::1", port) == "six"
    with pytest.raises(ConnectionRefusedError):
        await one.connect("localhost", port + 1)


@scenario
async def companions_share_a_network(scene: Scene) -> None:
    network = await scene.supervisor.networks.open()
    await scene.serve(network, "127.0.0.1", 8000, "companion")
    await scene.run(network, ASK, scene.folder / "errors", "SOCK_STREAM,127.0.0.1,8000")
    assert not (scene.folder / "errors").exists()
    assert (await network.refusals()).connections == 0


@scenario
async def a_script_on_the_network_of_the_host_stays_there(scene: Scene) -> None:
    for wanted in (True, False, True, False):
        network = await scene.supervisor.networks.open() if wanted else None
        await scene.run(network, NETWORK, scene.folder / "seen")
        if network is not None:
            network.close()
    seen = scene.lines("seen")
    host = own_network()
    assert (seen[1], seen[3]) == (host, host)
    assert host not in (seen[0], seen[2])


@scenario
async def keepers_are_used_again(scene: Scene) -> None:
    keepers = set()
    for _ in range(3):
        network = await scene.supervisor.networks.open()
        keepers.add(await scene.run(network, "pass"))
        network.close()
    assert len(keepers) == 1


@scenario
async def a_script_is_its_user_and_no_more(scene: Scene) -> None:
    network = await scene.supervisor.networks.open()
    await scene.run(network, STATUS, scene.folder / "inside")
    await scene.run(None, STATUS, scene.folder / "outside")

    def facts(name: str) -> dict[str, str]:
        lines = [line.partition(":") for line in scene.lines(name)]
        wanted = ["Uid", "Gid", "CapAmb", "NoNewPrivs", "Seccomp"]
        # Root has all capabilities in a user namespace, which are none outside of it.
        if os.geteuid() != 0 or scene.supervisor.networks.tier is NetworkTier.NAMESPACE:
            wanted += ["CapInh", "CapPrm", "CapEff"]
        return {key: value.strip() for key, _, value in lines if key in wanted}

    assert facts("inside") == facts("outside")
    assert facts("inside")["Uid"].split() == [str(os.geteuid())] * 4
    if os.geteuid() != 0:
        assert int(facts("inside")["CapEff"], 16) == 0
    made = (scene.folder / "inside").stat()
    assert (made.st_uid, made.st_gid) == (os.geteuid(), os.getegid())


@scenario
async def names_are_known_to_the_one_script(scene: Scene) -> None:
    hosts = scene.folder / "hosts"
    hosts.write_text("127.1.2.3 db.internal.test\n")
    before = contents("/etc/hosts")
    one, two = [await scene.supervisor.networks.open() for _ in range(2)]
    one.hosts_file = hosts
    for network in (one, two, one, None):
        await scene.run(network, LOOK_UP, scene.folder / "found")
    assert scene.lines("found") == ["127.1.2.3", "unknown", "127.1.2.3", "unknown"]
    assert contents("/etc/hosts") == before
    assert str(hosts) not in contents("/proc/self/mountinfo")
    hosts.unlink()  # nothing holds it


@scenario
async def names_that_cannot_be_had_are_a_failed_start(scene: Scene) -> None:
    network = await scene.supervisor.networks.open()
    network.hosts_file = scene.folder / "missing"
    with pytest.raises(StartError) as caught:
        await scene.run(network, "pass")
    assert str(caught.value) == (
        "the names of its services cannot be put into its /etc/hosts: No such file or directory"
    )
    network.hosts_file = None
    await scene.run(network, NETWORK, scene.folder / "seen")
    await scene.run(None, NETWORK, scene.folder / "seen")
    assert scene.lines("seen")[1] == own_network()


# --- what the runner does inside -----------------------------------------------------------------


@scenario
async def the_runner_listens_at_any_address(scene: Scene) -> None:
    network = await scene.supervisor.networks.open()
    loop = asyncio.get_running_loop()
    for address, port in {
        "127.0.0.1": 80,
        "127.1.2.3": 5432,
        "::1": 443,
        "10.1.2.3": 6379,
        "fd00::7": 6379,
        "0.0.0.0": 22,  # noqa: S104 - of a network without an outside
    }.items():
        with await network.listen(address, port) as listening:
            assert listening.getsockname()[:2] == (address, port)
            assert not listening.getblocking()
            code = "import socket, sys; socket.create_connection((sys.argv[1], sys.argv[2]))"
            await scene.run(network, code, address, port)
            accepted, _ = await loop.sock_accept(listening)
            accepted.close()
            with pytest.raises(OSError, match=rf"\[Errno {errno.EADDRINUSE}\]"):
                await network.listen(address, port)
    with await network.listen("10.1.2.3", 1), await network.listen("fd00::7", 1):
        pass  # an address that it has already
    for name in ("localhost", "db.internal"):
        with pytest.raises(ValueError, match=name):
            await network.listen(name, 1)
    with pytest.raises(ValueError, match=r"db\.internal"):
        await network.connect("db.internal", 1)
    assert await network.refusals() == Refusals(connections=0, no_route=0, datagrams=0)


@scenario
async def refusals_are_counted(scene: Scene) -> None:
    network, other = [await scene.supervisor.networks.open() for _ in range(2)]
    errors = scene.folder / "errors"
    for asked, numbers, expected in (
        (["SOCK_STREAM,127.0.0.1,9", "SOCK_STREAM,::1,9"], [errno.ECONNREFUSED] * 2, (2, 0, 0)),
        (["SOCK_STREAM,10.1.2.3,80", "SOCK_DGRAM,10.1.2.3,53"], [errno.ENETUNREACH] * 2, (0, 2, 0)),
        (
            ["SOCK_STREAM,2001:db8::1,80", "SOCK_DGRAM,2001:db8::1,53"],
            [errno.ENETUNREACH] * 2,
            (0, 2, 0),
        ),
        (["SOCK_DGRAM,127.0.0.53,53", "SOCK_DGRAM,::1,53"], [], (0, 0, 2)),
    ):
        before = await network.refusals()
        errors.write_text("")
        with pytest.raises(ConnectionRefusedError):  # our own are not counted
            await network.connect("localhost", 9)
        await scene.run(network, ASK, errors, *asked)
        after = await network.refusals()
        assert [int(line) for line in errors.read_text().split()] == numbers
        assert (
            after.connections - before.connections,
            after.no_route - before.no_route,
            after.datagrams - before.datagrams,
        ) == expected, asked
    assert await other.refusals() == Refusals(connections=0, no_route=0, datagrams=0)


# --- what is left --------------------------------------------------------------------------------


@scenario
async def what_hides_in_a_network_is_found_and_killed(scene: Scene) -> None:
    network = await scene.supervisor.networks.open()
    child = await scene.serve(network, "127.0.0.1", 8000, "daemon", DAEMON)
    if scene.supervisor.tier is not Containment.PROCESS_GROUP:
        assert (await child.exited).left
    (daemon,) = [psutil.Process(pid) for pid in await child.pids()]
    assert await answer(network, "127.0.0.1", 8000) == "daemon"
    child.signal(signal.SIGTERM)
    await asyncio.to_thread(wait_gone, [daemon])
    scene.release(child)
    child = await scene.serve(network, "127.0.0.1", 8000, "daemon", DAEMON)
    (daemon,) = [psutil.Process(pid) for pid in await child.pids()]
    assert await child.kill()
    assert not is_living(daemon)
    scene.release(child)


@scenario
async def nothing_holds_a_network_that_is_closed(scene: Scene) -> None:
    hosts = scene.folder / "hosts"
    hosts.write_text("127.1.2.3 db.internal.test\n")
    network = await scene.supervisor.networks.open()
    network.hosts_file = hosts
    pinned = os.dup(network.fileno())  # so that the number is not used again meanwhile
    try:
        child = await scene.serve(network, "127.0.0.1", 8000, "one")
        processes = set(await child.pids())
        assert processes <= users_of(pinned)
        with await network.listen("127.0.0.1", 80):
            await answer(network, "127.0.0.1", 8000)
        assert await child.kill()
        scene.release(child)
        await scene.run(network, "pass")
        network.close()
        network.close()  # harmless
        assert users_of(pinned) == set()
    finally:
        os.close(pinned)
    with pytest.raises(SupervisionLost, match="its network is closed"):
        await network.refusals()
    with pytest.raises(SupervisionLost, match="its network is closed"):
        await scene.start(network, "pass")


@scenario
async def whoever_stops_waiting_leaves_nothing(scene: Scene) -> None:
    networks = scene.supervisor.networks
    (await networks.open()).close()
    await made_ahead(scene)
    before = open_descriptors()
    for turns in range(12):
        opening = [asyncio.create_task(networks.open()) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in opening:
            task.cancel()
        for done in await asyncio.gather(*opening, return_exceptions=True):
            if isinstance(done, Network):
                done.close()
    network = await networks.open()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await network.refusals()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await network.listen("127.0.0.1", 80)
    await network.refusals()  # in order again
    network.close()
    await made_ahead(scene)
    assert len(open_descriptors()) == len(before)


@scenario
async def many_are_open_at_once(scene: Scene) -> None:
    networks = await asyncio.gather(*(scene.supervisor.networks.open() for _ in range(500)))
    assert len({os.fstat(network.fileno()).st_ino for network in networks}) == 500
    listening = await asyncio.gather(*(each.listen("127.0.0.1", 8000) for each in networks))
    for each in listening:
        each.close()
    for network in networks:
        network.close()


# --- who dies first ------------------------------------------------------------------------------


@scenario
async def a_killed_maker_is_told_and_examples_go_on(scene: Scene) -> None:
    network = await scene.supervisor.networks.open()
    child = await scene.serve(network, "127.0.0.1", 8000, "alive")
    connected = await network.connect("127.0.0.1", 8000)
    maker = scene.maker()
    maker.kill()
    await asyncio.to_thread(wait_gone, [maker])
    for ask in (network.refusals, lambda: network.connect("127.0.0.1", 8000)):
        with pytest.raises(SupervisionLost, match="the process that makes networks was killed"):
            await ask()
    with pytest.raises(SupervisionLost, match="the process that makes networks was killed"):
        await open_many(scene, 2, [])  # one may have been made ahead
    assert await asyncio.get_running_loop().sock_recv(connected, 100) == b"alive"
    connected.close()
    await scene.run(network, ASK, scene.folder / "errors", "SOCK_STREAM,127.0.0.1,8000")
    assert not (scene.folder / "errors").exists()
    await scene.run(None, "pass")
    assert await child.kill()
    scene.release(child)


@scenario
async def a_killed_keeper_takes_its_script_along(scene: Scene) -> None:
    network = await scene.supervisor.networks.open()
    child = await scene.serve(network, "127.0.0.1", 8000, "alive")
    processes = [psutil.Process(pid) for pid in await child.pids()]
    os.kill(child.keeper, signal.SIGKILL)
    with pytest.raises(SupervisionLost):
        await child.exited
    await scene.supervisor.abandon(child)
    wait_gone(processes)
    scene.release(child)
    assert is_living(scene.maker())
    await scene.serve(network, "127.0.0.1", 8000, "again")
    assert await answer(network, "127.0.0.1", 8000) == "again"


@scenario
async def a_killed_spawner_leaves_what_runs(scene: Scene) -> None:
    network = await scene.supervisor.networks.open()
    child = await scene.serve(network, "127.0.0.1", 8000, "alive")
    scene.spawner.process.kill()
    await asyncio.to_thread(scene.spawner.process.wait)
    assert await answer(network, "127.0.0.1", 8000) == "alive"
    assert await child.kill()
    scene.release(child)
    (await scene.supervisor.networks.open()).close()


# --- in surroundings of their own ----------------------------------------------------------------


@special
async def closed_networks_are_given_back(scene: Scene) -> None:
    """Where the system allows twenty networks, a hundred can be had one after the other."""
    hosts = scene.folder / "hosts"
    hosts.write_text("127.1.2.3 db.internal.test\n")
    deadline = asyncio.get_running_loop().time() + 40
    count = 0
    while count < 100:
        try:
            network = await scene.supervisor.networks.open()
        except StartError as error:
            # The kernel takes a network down in the background, a moment after its end.
            assert "user.max_net_namespaces" in str(error)  # noqa: PT017
            assert asyncio.get_running_loop().time() < deadline, f"stuck after {count}"
            await asyncio.sleep(0.01)
            continue
        network.hosts_file = hosts if count % 2 else None
        child = await scene.serve(network, "127.0.0.1", 8000, "held")
        listening = await network.listen("10.1.2.3", 80)
        assert await answer(network, "localhost", 8000) == "held"
        listening.close()
        assert await child.kill()
        scene.release(child)
        network.close()
        count += 1


@special
async def too_few_networks_are_said(scene: Scene) -> None:
    networks: list[Network] = []
    with pytest.raises(StartError) as caught:
        await open_many(scene, 30, networks)
    assert str(caught.value) == (
        "no network could be made: unshare: No space left on device (see user.max_net_namespaces)"
    )
    assert len(networks) > 10


@special
async def too_few_descriptors_are_said(scene: Scene) -> None:
    networks: list[Network] = []
    with pytest.raises(StartError) as caught:
        await open_many(scene, 64, networks)
    assert str(caught.value) == "no network could be made: Too many open files (see ulimit -n)"
    for network in networks:
        network.close()
    await scene.run(await scene.supervisor.networks.open(), "pass")


@special
async def ordinary_users_keep_their_ports(scene: Scene) -> None:
    """As where the host lets them have port 80, which a new network does not by itself."""
    network = await scene.supervisor.networks.open()
    setting = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    code = "import sys; print(open(sys.argv[1]).read().strip(), file=open(sys.argv[2], 'w'))"
    await scene.run(network, code, setting, scene.folder / "seen")
    assert scene.lines("seen") == ["80"] == contents(setting).split()


async def try_on_other_ids(scene: Scene) -> list[str]:
    """Look at a file of somebody else's and become somebody else; what came of it, inside and outside."""
    file = scene.folder / "of-somebody"
    file.touch()
    os.chown(file, 1234, 4321)
    seen = scene.folder / "seen"
    for network in (await scene.supervisor.networks.open(), None):
        await scene.run(network, OTHER_IDS, seen, file)
    return scene.lines("seen")


@special
async def root_may_be_anybody(scene: Scene) -> None:
    assert await try_on_other_ids(scene) == ["1234 4321 65534 65534 []"] * 2


@special
async def root_is_itself_alone(scene: Scene) -> None:
    inside, outside = await try_on_other_ids(scene)
    assert inside == "65534 65534 refused"
    shown = "65534 65534" if scene.supervisor.tier is Containment.PID_NAMESPACE else "1234 4321"
    assert outside == f"{shown} refused"


@special
async def whoever_asks_a_stopped_maker_gives_up(scene: Scene) -> None:
    networks = scene.supervisor.networks
    network = await networks.open()
    await made_ahead(scene)
    scene.maker().suspend()
    asked = [asyncio.create_task(network.refusals()) for _ in range(100)]  # more than at one time
    for task in asked:
        with pytest.raises(
            SupervisionLost, match="the process that makes networks does not answer"
        ):
            await task
    (await networks.open()).close()  # made ahead
    before = asyncio.get_running_loop().time()
    for _ in range(2):
        with pytest.raises(
            SupervisionLost, match="the process that makes networks does not answer"
        ):
            await networks.open()
    spent = asyncio.get_running_loop().time() - before
    assert spent < IMPATIENT["whoever_asks_a_stopped_maker_gives_up"]  # nobody waits for it again
    await scene.run(network, "pass")
    await scene.run(None, "pass")


@special
async def answers_count_that_came_while_nobody_looked(scene: Scene) -> None:
    """As where this process was stopped for longer than it has patience."""
    network = await scene.supervisor.networks.open()
    await made_ahead(scene)
    asked = [asyncio.create_task(network.diagnosis()) for _ in range(20)]
    await asyncio.sleep(0)
    time.sleep(IMPATIENT["answers_count_that_came_while_nobody_looked"])  # noqa: ASYNC251
    for task in asked:
        (await task).close()


@special
async def no_networks_are_said(scene: Scene) -> None:
    assert scene.supervisor.networks.tier is NetworkTier.HOST
    with pytest.raises(
        StartError, match=r"^there are no networks to be had: .*network namespace: "
    ):
        await scene.supervisor.networks.open()
    await scene.run(None, "pass")


# --- as a program --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def scene_in(
    folder: Path, tier: str, spawner: Spawner, *, patience: float = 20
) -> AsyncIterator[Scene]:
    os.mkdir(folder)  # noqa: PTH102 - as os.open
    null = os.open(os.devnull, os.O_RDWR)
    try:
        async with Supervisor.open(
            spawner,
            wanted=Containment(tier) if tier else None,
            run_id=f"test-{folder.parent.name}-{folder.name}",
            scratch=folder / "scratch",
            log=folder / "spawner.log",
            networks=True,
            patience=patience,
        ) as supervisor:
            yield Scene(supervisor=supervisor, spawner=spawner, folder=folder, null=null)
    finally:
        os.close(null)


async def perform(name: str, tier: str, folder: Path) -> tuple[Containment, NetworkTier, list[str]]:
    """Set a scene for one scenario, run it, and see that nothing is left of it."""
    before = open_descriptors()
    with contextlib.closing(Spawner()) as spawner:
        patience = IMPATIENT.get(name, 20)
        async with (
            asyncio.timeout(60),
            scene_in(folder / name, tier, spawner, patience=patience) as scene,
        ):
            offspring = psutil.Process().children(recursive=True)
            await (SCENARIOS | SPECIAL)[name](scene)
            offspring += psutil.Process().children(recursive=True)
            networks = scene.supervisor.networks
            found = (scene.supervisor.tier, networks.tier, list(networks.notes))
    wait_gone(offspring)  # a spawner that was killed waits for nobody
    assert open_descriptors() == before
    assert (folder / name / "spawner.log").read_text() == ""
    return found


async def main(tier: str, folder: Path, names: list[str]) -> None:
    if names in (["hold"], ["churn"]):
        await {"hold": hold, "churn": churn}[names[0]](tier, folder)
        return
    found = None
    outcomes = {}
    for name in names:
        try:
            found = await perform(name, tier, folder)
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - told to the test
            outcomes[name] = traceback.format_exc()
        else:
            outcomes[name] = ""
    sys.stdout.write(json.dumps({"found": found, "outcomes": outcomes}) + "\n")


async def hold(tier: str, folder: Path) -> None:
    """Have two networks with servers in them, tell of them, and wait to be killed."""
    with contextlib.closing(Spawner()) as spawner:
        async with scene_in(folder / "hold", tier, spawner) as scene:
            for _ in range(2):
                network = await scene.supervisor.networks.open()
                await scene.serve(network, "127.0.0.1", 8000, "held", DAEMON)
                await scene.serve(network, "127.0.0.1", 8001, "held")
            sys.stdout.write(f"{scene.maker().pid}\n")
            sys.stdout.flush()
            await asyncio.Event().wait()


async def churn(tier: str, folder: Path) -> None:
    """Open, use and close networks without end, a line for each."""
    with contextlib.closing(Spawner()) as spawner:
        async with scene_in(folder / "churn", tier, spawner) as scene:
            while True:
                network = await scene.supervisor.networks.open()
                child = await scene.start(network, DAEMON, "127.0.0.1", 8000, os.devnull, "")
                sys.stdout.write("started\n")
                sys.stdout.flush()
                await child.kill()
                scene.release(child)
                network.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
