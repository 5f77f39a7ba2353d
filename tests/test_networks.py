"""Networks of their own for scripts: as root and as an ordinary user, in each containment tier.

What is to hold everywhere is in network_scenarios.py, which runs as the user in question.
"""

import asyncio
import contextlib
import errno
import json
import platform
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import (
    AS_USERS,
    IS_ROOT,
    NOBODY,
    TIERS,
    Project,
    in_tier,
    project,
    wait_gone,
    wait_until,
)
from network_scenarios import SCENARIOS
from servers import missing, some_binaries

from e2e_runner.supervise import linux, netns
from e2e_runner.supervise.child import StartError
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.launch import Spawner
from e2e_runner.supervise.networks import Networks

CONFINED = "confined"  # root without CAP_SYS_ADMIN, as in a container
CONTAINER = (  # what Docker leaves to root
    *("chown", "dac_override", "fsetid", "fowner", "mknod", "net_raw", "setgid", "setuid"),
    *("setfcap", "setpcap", "net_bind_service", "sys_chroot", "kill", "audit_write"),
)
PROGRAM = Path(__file__).parent / "network_scenarios.py"
SETTINGS = [
    *TIERS,
    pytest.param(("process-group", None)),
    pytest.param(
        ("process-group", NOBODY), marks=pytest.mark.skipif(not IS_ROOT, reason="needs root")
    ),
    *(
        pytest.param((tier, CONFINED), marks=pytest.mark.skipif(not IS_ROOT, reason="needs root"))
        for tier in ("cgroup", "pid-namespace")
    ),
]
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What the scenarios came to in one setting."""

    tier: str
    network: str
    notes: list[str]
    outcomes: dict[str, str]


def start(
    made: Project, tier: str, *names: str, prefix: Sequence[str] = ()
) -> subprocess.Popen[str]:
    who: dict[str, Any] = (
        {} if made.user is None else {"user": made.user, "group": made.user, "extra_groups": []}
    )
    return subprocess.Popen(
        [*prefix, str(made.python), str(PROGRAM), tier, str(made.root), *names],
        env=made.environment(),
        cwd=made.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        **who,
    )


def play(made: Project, tier: str, *names: str, prefix: Sequence[str] = ()) -> Played:
    with start(made, tier, *names, prefix=prefix) as process:
        try:
            stdout, _ = process.communicate(timeout=110)
        finally:
            process.kill()
    assert process.returncode == 0
    said = json.loads(stdout)
    assert said["found"] is not None, said["outcomes"]
    contained, network, notes = said["found"]
    return Played(tier=contained, network=network, notes=notes, outcomes=said["outcomes"])


def holding(*capabilities: str) -> list[str]:
    """Give a prefix: what it is put before runs as root with these capabilities alone."""
    return bounded("-all", *(f"+{each}" for each in capabilities))


def bounded(*changes: str) -> list[str]:
    """Give a prefix that takes capabilities from root, or adds them, in the words of setpriv."""
    program = shutil.which("setpriv") or missing("setpriv (util-linux)")
    return [program, *(f"--{of}={','.join(changes)}" for of in ("bounding-set", "inh-caps"))]


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda param: "-".join(map(str, param)))
def played(request: pytest.FixtureRequest) -> Iterator[Played]:
    tier, user = request.param
    prefix = holding(*CONTAINER) if user == CONFINED else ()
    with in_tier(tier, None if user == CONFINED else user) as made:
        yield play(made, tier, *SCENARIOS, prefix=prefix)
        assert made.survivors() == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(played: Played, name: str) -> None:
    if played.outcomes[name]:
        pytest.fail(played.outcomes[name], pytrace=False)


@needs_root
def test_root_needs_no_user_namespace() -> None:
    with project() as made:
        found = play(made, "scan", "keepers_are_used_again")
    assert (found.network, found.notes) == ("namespace", [])


@needs_root
@pytest.mark.parametrize("tier", ["pid-namespace", "scan"])
def test_an_ordinary_user_needs_one(tier: str) -> None:
    with in_tier(tier, NOBODY) as made:
        found = play(made, tier, "keepers_are_used_again")
    assert found.network == "user-namespace"
    assert found.notes == [
        {
            "pid-namespace": "network namespace: the processes are contained in a user namespace here",
            "scan": "network namespace: unshare: Operation not permitted (it needs CAP_SYS_ADMIN)",
        }[tier]
    ]


@needs_root
@pytest.mark.parametrize(
    ("changes", "network", "notes"),
    [
        (
            ["-sys_admin"],
            "user-namespace",
            ["network namespace: unshare: Operation not permitted (it needs CAP_SYS_ADMIN)"],
        ),
        (
            ["-net_admin"],
            "user-namespace",
            ["network namespace: raise lo: Operation not permitted (it needs CAP_NET_ADMIN)"],
        ),
        (
            ["-net_admin", "-setfcap"],
            "host",
            [
                "network namespace: raise lo: Operation not permitted (it needs CAP_NET_ADMIN)",
                f"user namespace: {linux.UID_MAP}: Operation not permitted (root needs CAP_SETFCAP for it)",
            ],
        ),
    ],
    ids=str,
)
def test_what_root_lacks_is_named(changes: list[str], network: str, notes: list[str]) -> None:
    with project() as made:
        name = "no_networks_are_said" if network == "host" else "keepers_are_used_again"
        found = play(made, "scan", name, prefix=bounded(*changes))
    assert found.outcomes[name] == ""
    assert (found.network, found.notes) == (network, notes)


# --- who scripts are in a user namespace ---------------------------------------------------------


@needs_root
@pytest.mark.parametrize("tier", ["scan", "pid-namespace"])
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ([], "root_may_be_anybody"),
        (["-setuid"], "root_is_itself_alone"),
        (["-setgid"], "root_is_itself_alone"),
    ],
    ids=["all", "no-setuid", "no-setgid"],
)
def test_root_in_a_user_namespace(tier: str, changes: list[str], name: str) -> None:
    with project() as made:
        found = play(made, tier, name, prefix=bounded("-sys_admin", *changes))
    assert found.outcomes[name] == ""
    assert (found.tier, found.network) == (tier, "user-namespace")


@needs_root
def test_all_ranges_of_ids_are_kept() -> None:
    code = (
        "import os, subprocess, sys\n"
        "from e2e_runner.supervise import linux\n"
        "linux.unshare(linux.CLONE_NEWUSER)\n"
        "print(os.getpid(), flush=True)\n"
        "sys.stdin.readline()\n"
        "linux.enter_user_namespace()\n"
        "print(open('/proc/self/uid_map').read() + open('/proc/self/gid_map').read())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="ascii",
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pid = process.stdout.readline().strip()
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text("0 0 7\n70 1000 1\n65534 65534 1\n")
        said, _ = process.communicate("go on\n", timeout=30)
    assert process.returncode == 0
    kept = [("0", "0", "7"), ("70", "70", "1"), ("65534", "65534", "1")]
    assert [tuple(line.split()) for line in said.strip().splitlines()] == kept * 2


@needs_root
def test_a_confined_root_has_databases_in_networks() -> None:
    some_binaries()
    with project() as made:
        made.write(
            "examples/asks.py",
            "# /// script\n# [tool.e2e-run]\n# postgres = true\n# ///\n"
            "import socket\nsocket.create_connection(('localhost', 5432)).close()\n",
        )
        outcome = made.run("examples", env=AS_USERS, prefix=holding(*CONTAINER))
    [example] = outcome.examples.values()
    assert (example["status"], example["network"]) == ("passed", "isolated"), outcome.stdout


# --- limits --------------------------------------------------------------------------------------


def limited(**limits: int) -> list[str]:
    """Give a prefix: what it is put before runs as root of a user namespace with limits of its own."""
    writes = [f"echo {value} > /proc/sys/user/{name}" for name, value in limits.items()]
    script = " && ".join([*writes, 'exec "$@"'])
    return ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]


@needs_root
@pytest.mark.parametrize("name", ["closed_networks_are_given_back", "too_few_networks_are_said"])
def test_networks_are_limited(name: str) -> None:
    with project() as made:
        found = play(made, "scan", name, prefix=limited(max_net_namespaces=20))
    assert found.outcomes[name] == ""
    assert (
        found.network == "user-namespace"
    )  # from this one, nobody finds back to the network of the host


@needs_root
def test_networks_can_be_forbidden_by_limits() -> None:
    with project() as made:
        prefix = limited(max_net_namespaces=0, max_user_namespaces=0)
        found = play(made, "scan", "no_networks_are_said", prefix=prefix)
    assert found.outcomes["no_networks_are_said"] == ""
    assert found.notes == [
        "network namespace: unshare: No space left on device (user.max_net_namespaces=0)",
        "user namespace: unshare: No space left on device (user.max_user_namespaces=0)",
    ]


@needs_root
def test_a_user_namespace_without_networks_is_none() -> None:
    with project() as made:
        prefix = limited(max_net_namespaces=0)
        found = play(made, "scan", "no_networks_are_said", prefix=prefix)
    assert found.outcomes["no_networks_are_said"] == ""
    assert found.notes[1] == (
        "user namespace: network namespace: unshare: No space left on device"
        " (user.max_net_namespaces=0)"
    )


@pytest.mark.parametrize(
    ("setting", "number", "words"),
    [
        (
            "kernel.apparmor_restrict_unprivileged_userns=1",
            errno.EPERM,
            " (kernel.apparmor_restrict_unprivileged_userns=1 forbids it)",
        ),
        ("kernel.apparmor_restrict_unprivileged_userns=0", errno.EPERM, ""),
        (
            "kernel.unprivileged_userns_clone=0",
            errno.EPERM,
            " (kernel.unprivileged_userns_clone=0 forbids it)",
        ),
        ("kernel.unprivileged_userns_clone=1", errno.EPERM, ""),
        ("kernel.unprivileged_userns_clone=0", errno.ENOSPC, ""),
    ],
)
def test_what_forbids_user_namespaces_is_named(
    setting: str, number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, value = setting.partition("=")
    file = tmp_path / name.replace(".", "/")
    file.parent.mkdir()
    file.write_text(f"{value}\n")
    monkeypatch.setattr(netns, "_SYSCTL", tmp_path)
    assert netns._forbidding(OSError(number, "refused", "unshare")) == words


@needs_root
def test_a_network_has_the_unprivileged_ports_of_the_host() -> None:
    name = "ordinary_users_keep_their_ports"
    write = "echo 80 > /proc/sys/net/ipv4/ip_unprivileged_port_start"
    with project() as made:
        prefix = ["unshare", "--net", "sh", "-c", f'{write} && exec "$@"', "sh"]
        found = play(made, "scan", name, prefix=prefix)
    assert found.outcomes[name] == ""


def test_descriptors_are_limited() -> None:
    with project() as made:
        prefix = ["prlimit", "--nofile=48:48"]
        found = play(made, "scan", "too_few_descriptors_are_said", prefix=prefix)
    assert found.outcomes["too_few_descriptors_are_said"] == ""


def test_the_soft_limit_of_descriptors_is_raised_for_the_runner() -> None:
    with project() as made:
        prefix = ["prlimit", "--nofile=128:"]
        found = play(made, "scan", "many_are_open_at_once", prefix=prefix)
    assert found.outcomes["many_are_open_at_once"] == ""


# Denies setns(2) into a user namespace, and to nobody else than the program that it starts.
NO_WAY_IN = """
import ctypes, os, struct, sys
number = int(sys.argv[1])
filter = b"".join(struct.pack("=HBBI", *line) for line in (
    (0x20, 0, 0, 0),            # load the number of the system call
    (0x15, 0, 3, number),       # setns?
    (0x20, 0, 0, 24),           # load the kind of namespace
    (0x15, 0, 1, 0x10000000),   # CLONE_NEWUSER?
    (0x06, 0, 0, 0x00050001),   # EPERM
    (0x06, 0, 0, 0x7FFF0000),   # allow
))
held = ctypes.create_string_buffer(filter)
program = struct.pack("@HP", len(filter) // 8, ctypes.addressof(held))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)      # PR_SET_NO_NEW_PRIVS
if libc.prctl(22, 2, program, 0, 0) != 0:  # PR_SET_SECCOMP
    sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("tier", ["scan", "pid-namespace", "cgroup"])
def test_a_user_namespace_that_no_keeper_gets_into_is_none(tier: str) -> None:
    numbers = {"x86_64": 308, "aarch64": 268}
    if platform.machine() not in numbers:
        pytest.skip("the number of setns(2) is not known here")
    if tier == "cgroup" and not IS_ROOT:
        pytest.skip("needs root")
    deny = [sys.executable, "-c", NO_WAY_IN, str(numbers[platform.machine()])]
    prefix = [*bounded("-sys_admin"), *deny] if IS_ROOT else deny
    with project() as made:
        found = play(made, tier, "no_networks_are_said", prefix=prefix)
    assert found.outcomes["no_networks_are_said"] == ""
    why = {
        "pid-namespace": "no process could be forked: fork in the user namespace of the run:",
    }.get(tier, "containment: setns:")
    assert (found.tier, found.network) == (tier, "host")
    assert (
        found.notes[-1]
        == f"user namespace: nothing can be started there: {why} Operation not permitted"
    )


# --- who dies first ------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", TIERS)
def test_a_killed_runner_leaves_nothing(setting: tuple[str, int | None]) -> None:
    tier, user = setting
    with in_tier(tier, user) as made, start(made, tier, "hold") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert len(made.survivors()) >= 8  # the runner, the spawner, the maker, keepers and scripts
        assert len(cgroups_of(made)) == (tier == "cgroup")
        process.kill()
        wait_until(lambda: not made.survivors(), "nothing was left")
        wait_until(lambda: not cgroups_of(made), "the cgroup was gone")


def cgroups_of(made: Project) -> list[Path]:
    own = linux.own_cgroup()
    return [] if own is None else list(own.glob(f"e2e-run-test-{made.root.name}-*"))


@pytest.mark.parametrize("who", ["maker", "spawner", "keeper"])
@pytest.mark.parametrize("setting", [p for p in TIERS if "cgroup" not in str(p.values)])
def test_whoever_is_killed_before_the_runner_nothing_is_left(
    setting: tuple[str, int | None], who: str
) -> None:
    tier, user = setting
    with in_tier(tier, user) as made, start(made, tier, "hold") as process:
        assert process.stdout is not None
        maker = int(process.stdout.readline())
        (spawner,) = psutil.Process(process.pid).children()
        keepers = [child for child in spawner.children() if child.pid != maker]
        victim = {"maker": psutil.Process(maker), "spawner": spawner, "keeper": keepers[0]}[who]
        victim.kill()
        wait_gone([victim])
        process.kill()
        wait_until(lambda: not made.survivors(), "nothing was left")


@pytest.mark.parametrize("setting", [p for p in TIERS if "cgroup" not in str(p.values)])
def test_a_runner_may_be_killed_at_any_moment(setting: tuple[str, int | None]) -> None:
    tier, user = setting
    with in_tier(tier, user) as made:
        for lines in (0, 1, 2, 5, 11):
            with start(made, tier, "churn") as process:
                assert process.stdout is not None
                for _ in range(lines):
                    assert process.stdout.readline()
                process.kill()
                wait_until(lambda: not made.survivors(), f"nothing was left, after {lines}")
            for folder in made.root.glob("churn"):
                folder.rename(made.root / f"churned-{lines}")


# --- who does not answer -------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [p for p in TIERS if "cgroup" not in str(p.values)])
def test_whoever_asks_a_stopped_maker_gives_up(setting: tuple[str, int | None]) -> None:
    tier, user = setting
    name = "whoever_asks_a_stopped_maker_gives_up"
    with in_tier(tier, user) as made:
        assert play(made, tier, name).outcomes[name] == ""


# Shortens the patience with the network maker, and is e2e-run otherwise.
IMPATIENT = """
import functools, runpy, sys
from e2e_runner.supervise.client import Supervisor
Supervisor.open = functools.partial(Supervisor.open, patience=3)
del sys.argv[:sys.argv.index("e2e_runner")]
runpy.run_module("e2e_runner", run_name="__main__", alter_sys=True)
"""
STOPS_THE_MAKER = """
import psutil, signal
keeper = psutil.Process().parent()
for process in keeper.parent().children():
    if process != keeper:  # keepers are continued when they are wanted
        process.send_signal(signal.SIGSTOP)
"""


def test_answers_count_that_came_while_nobody_looked() -> None:
    name = "answers_count_that_came_while_nobody_looked"
    with project() as made:
        assert play(made, "scan", name).outcomes[name] == ""


def test_examples_run_on_the_host_network_once_the_maker_is_stopped() -> None:
    with project() as made:
        made.write("examples/a.py", STOPS_THE_MAKER)
        for name in ("b", "c", "d", "e"):
            made.write(f"examples/{name}.py", "print(1)\n")
        outcome = made.run(
            *("--containment", "scan", "--jobs", "1", "examples"),
            env=AS_USERS,
            prefix=[sys.executable, "-c", IMPATIENT],
        )
        assert made.survivors() == []
    assert set(outcome.statuses.values()) == {"passed"}, outcome.stdout
    networks = [example["network"] for example in outcome.examples.values()]
    assert networks[0] == "isolated"
    assert networks[2:] == ["host"] * 3  # one may have been made ahead


def test_a_maker_that_never_says_anything_is_given_up() -> None:
    async def work() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            networks = Networks(patience=0.01)
            networks.attach(ours)
            await networks.found()
            assert networks.tier == "host"
            assert networks.notes == ("the process that makes networks does not answer",)
            with pytest.raises(StartError, match="does not answer"):
                await networks.open()
            await networks.close()
        assert ours.fileno() == -1

    asyncio.run(asyncio.wait_for(work(), 30))


# --- without networks ----------------------------------------------------------------------------


def test_a_supervisor_that_was_not_asked_for_networks_has_none(tmp_path: Path) -> None:
    async def work() -> None:
        with contextlib.closing(Spawner()) as spawner:
            async with Supervisor.open(
                spawner,
                wanted=None,
                run_id=f"test-{uuid.uuid4().hex[:12]}",
                scratch=tmp_path / "scratch",
                log=tmp_path / "log",
            ) as supervisor:
                assert supervisor.networks.tier == "host"
                assert supervisor.networks.notes == ()
                with pytest.raises(StartError):
                    await supervisor.networks.open()

    asyncio.run(asyncio.wait_for(work(), 30))
