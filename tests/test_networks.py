"""Networks of their own for scripts: as root and as an ordinary user, in each containment tier.

What is to hold everywhere is in network_scenarios.py, which runs as the user in question.
"""

import asyncio
import contextlib
import errno
import json
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import IS_ROOT, NOBODY, TIERS, Project, in_tier, project, wait_gone, wait_until
from network_scenarios import SCENARIOS

from e2e_runner.supervise import linux, netns
from e2e_runner.supervise.child import StartError
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.launch import Spawner

PROGRAM = Path(__file__).parent / "network_scenarios.py"
SETTINGS = [
    *TIERS,
    pytest.param(("process-group", None)),
    pytest.param(
        ("process-group", NOBODY), marks=pytest.mark.skipif(not IS_ROOT, reason="needs root")
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


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda param: "-".join(map(str, param)))
def played(request: pytest.FixtureRequest) -> Iterator[Played]:
    tier, user = request.param
    with in_tier(tier, user) as made:
        yield play(made, tier, *SCENARIOS)
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
