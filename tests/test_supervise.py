"""Supervision in this process: the supervisor, its spawner and keepers, and what they say to each other."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import IS_ROOT, is_living, wait_gone, wait_lines, wait_until
from hypothesis import given
from hypothesis import strategies as st
from servers import missing

from e2e_runner.errors import SetupError
from e2e_runner.model import Containment
from e2e_runner.supervise import linux
from e2e_runner.supervise.child import Child, Command, StartError, SupervisionLost
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.containment import reclaim_cgroup
from e2e_runner.supervise.launch import Spawner
from e2e_runner.supervise.wire import Reader, send

TIERS = [
    pytest.param(Containment.CGROUP, marks=pytest.mark.skipif(not IS_ROOT, reason="needs root")),
    Containment.PID_NAMESPACE,
    Containment.SCAN,
    Containment.PROCESS_GROUP,
]
each_tier = pytest.mark.parametrize("tier", TIERS)

HANG = "import signal\nwhile True: signal.pause()"
# Tells this test that it is ready, by its host's pid, as the own one differs in a namespace.
STUBBORN = "trap '' TERM; echo ready >> ready; while :; do sleep 1; done"


@contextlib.asynccontextmanager
async def supervised(
    folder: Path, tier: Containment | None
) -> AsyncIterator[tuple[Supervisor, Spawner]]:
    scratch = folder / "scratch"
    scratch.mkdir()
    run_id = f"test-{uuid.uuid4().hex[:12]}"
    with contextlib.closing(Spawner()) as spawner:
        async with Supervisor.open(
            spawner, wanted=tier, run_id=run_id, scratch=scratch, log=folder / "spawner.log"
        ) as supervisor:
            yield supervisor, spawner
        cgroups = supervisor.cgroups
    if cgroups is not None and cgroups.exists():
        reclaim_cgroup(cgroups, run_id)
        pytest.fail("the cgroup of the run was left behind")
    if spawner.process.returncode == 0:
        assert not scratch.exists()
    assert (folder / "spawner.log").read_text() == ""


def command(folder: Path, *argv: str, env: dict[str, str] | None = None) -> Command:
    null = os.open(os.devnull, os.O_RDWR)
    _OPEN.append(null)
    environment = {"PATH": os.environ["PATH"], **(env or {})}
    return Command(argv=argv, env=environment, cwd=folder, stdin=null, stdout=null, stderr=null)


_OPEN: list[int] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _OPEN:
        os.close(_OPEN.pop())


async def ended(child: Child) -> tuple[int | None, int | None, bool]:
    exited = await child.exited
    return exited.exit.code, exited.exit.signal, exited.left


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work()

    asyncio.run(bounded())


# --- the life of a script ------------------------------------------------------------------------


@each_tier
def test_ends_are_told_as_they_are(tier: Containment, tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, tier) as (supervisor, _):
            assert supervisor.tier is tier
            seen = []
            for script in ("exit 0", "exit 137", "kill -SEGV $$", "kill -9 $$"):
                child, at = await supervisor.start(command(tmp_path, "sh", "-c", script))
                seen.append(await ended(child))
                assert (await child.exited).at >= at
                child.release()
            assert seen == [
                (0, None, False),
                (137, None, False),
                (None, signal.SIGSEGV, False),
                (None, signal.SIGKILL, False),
            ]

    run(work)


@each_tier
def test_a_keeper_that_nothing_was_left_to_is_used_again(tier: Containment, tmp_path: Path) -> None:
    async def keeper_of(supervisor: Supervisor, script: str) -> int:
        child, _ = await supervisor.start(command(tmp_path, "sh", "-c", script))
        await child.exited
        if script != "exit 0":
            assert not await child.wait_empty(0)
            assert await child.kill()
            await child.empty
        child.release()
        return child.keeper

    async def work() -> None:
        async with supervised(tmp_path, tier) as (supervisor, _):
            clean = [await keeper_of(supervisor, "exit 0") for _ in range(3)]
            assert len(set(clean)) == 1
            assert await keeper_of(supervisor, "sleep 60 & exit 3") == clean[0]
            assert await keeper_of(supervisor, "exit 0") != clean[0]

    run(work)


@each_tier
def test_everything_is_listed_signalled_and_killed(tier: Containment, tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, tier) as (supervisor, _):
            script = f"({STUBBORN}) & ({STUBBORN}) & {STUBBORN}"
            child, _ = await supervisor.start(command(tmp_path, "sh", "-c", script))
            await asyncio.to_thread(wait_lines, tmp_path / "ready", 3)
            processes = [psutil.Process(pid) for pid in await child.pids()]
            assert len([p for p in processes if p.name() == "sh"]) >= 3
            assert child.keeper not in [process.pid for process in processes]
            child.signal(signal.SIGTERM)
            assert await child.pids()
            assert not child.exited.done()
            assert await child.kill()
            code, number, _ = await ended(child)  # the others may have died a moment after it
            assert (code, number) == (None, signal.SIGKILL)
            await child.empty
            assert not any(map(is_living, processes))
            assert await child.pids() == []
            child.release()

    run(work)


@each_tier
def test_a_script_can_be_signalled_alone(tier: Containment, tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, tier) as (supervisor, _):
            script = f"({STUBBORN.replace('TERM', 'INT')}) & exec sleep 60"
            child, _ = await supervisor.start(command(tmp_path, "bash", "-c", script))
            await asyncio.to_thread(wait_lines, tmp_path / "ready")
            child.signal_alone(signal.SIGTERM)
            assert await ended(child) == (None, signal.SIGTERM, True)
            child.signal_alone(signal.SIGTERM)  # it has ended
            assert not child.empty.done()
            assert await child.kill()
            child.release()

    run(work)


@pytest.mark.parametrize("end", ["let go", "killed"])
def test_the_spawner_removes_the_folders_that_it_was_told_of(end: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, Containment.SCAN) as (supervisor, spawner):
            for name in ("made", "never-made"):
                supervisor.remove_at_end(tmp_path / name)
            (tmp_path / "made" / "sub").mkdir(parents=True)
            if end == "killed":
                spawner.process.kill()
                await asyncio.to_thread(spawner.process.wait)
                with pytest.raises(SupervisionLost):
                    supervisor.remove_at_end(tmp_path / "late")

    run(work)
    assert (tmp_path / "made").exists() == (end == "killed")


@each_tier
def test_a_stopped_script_can_be_terminated(tier: Containment, tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, tier) as (supervisor, _):
            child, _ = await supervisor.start(
                command(tmp_path, "sh", "-c", "echo >> ready; kill -STOP $$; sleep 60")
            )
            await asyncio.to_thread(wait_lines, tmp_path / "ready")
            child.signal(signal.SIGTERM)
            assert await ended(child) == (None, signal.SIGTERM, False)
            child.release()

    run(work)


@each_tier
def test_the_end_of_the_block_is_the_end_of_everything(tier: Containment, tmp_path: Path) -> None:
    before = psutil.Process().children(recursive=True)  # such as the tracker of `multiprocessing`
    living = leave_open(tier, tmp_path, release=True)
    assert not any(map(is_living, living))
    assert psutil.Process().children(recursive=True) == before


def test_a_child_that_nobody_released_ends_at_once_with_the_block(tmp_path: Path) -> None:
    before = time.monotonic()
    living = leave_open(Containment.SCAN, tmp_path, release=False)
    assert not any(map(is_living, living))
    assert time.monotonic() - before < 10  # without waiting for the patience of the spawner


@each_tier
def test_a_keeper_that_was_stopped_ends_at_once_with_the_block(
    tier: Containment, tmp_path: Path
) -> None:
    before = time.monotonic()
    processes: list[psutil.Process] = []

    async def work() -> None:
        async with supervised(tmp_path, tier) as (supervisor, _):
            child, _ = await supervisor.start(command(tmp_path, sys.executable, "-c", HANG))
            processes.extend(psutil.Process(pid) for pid in await child.pids())
            os.kill(child.keeper, signal.SIGSTOP)

    run(work)
    assert processes
    assert not any(map(is_living, processes))
    assert time.monotonic() - before < 10  # without waiting for the patience of the spawner


def leave_open(tier: Containment, folder: Path, *, release: bool) -> list[psutil.Process]:
    """Leave the block while something lives that a script started; gives what lived then."""
    living: list[psutil.Process] = []

    async def work() -> None:
        async with supervised(folder, tier) as (supervisor, _):
            child, _ = await supervisor.start(command(folder, "sh", "-c", f"{STUBBORN} &"))
            await child.exited
            await asyncio.to_thread(wait_lines, folder / "ready")
            living.extend(psutil.Process(pid) for pid in await child.pids())
            assert living
            if release:
                child.release()

    run(work)
    return living


# --- what cannot be started ----------------------------------------------------------------------


@each_tier
def test_a_start_that_fails_says_why_and_costs_nothing(tier: Containment, tmp_path: Path) -> None:
    (tmp_path / "no-program").write_text("no #! line\0")
    (tmp_path / "no-program").chmod(0o755)
    (tmp_path / "no-permission").write_text("#!/bin/sh\n")

    async def work() -> None:
        async with supervised(tmp_path, tier) as (supervisor, _):
            said = {}
            for name, wanted in {
                "missing": command(tmp_path, "/nonexistent/program"),
                "permission": command(tmp_path, str(tmp_path / "no-permission")),
                "format": command(tmp_path, str(tmp_path / "no-program")),
                "cwd": command(tmp_path / "nowhere", "true"),
                "long": command(tmp_path, "true", "x" * 200_000),
            }.items():
                with pytest.raises(StartError) as caught:
                    await supervisor.start(wanted)
                said[name] = str(caught.value)
            assert said == {
                "missing": "/nonexistent/program cannot be run: No such file or directory",
                "permission": f"{tmp_path}/no-permission cannot be run: Permission denied",
                "format": f"{tmp_path}/no-program cannot be run: Exec format error",
                "cwd": "its working folder cannot be entered: No such file or directory",
                "long": "its arguments and environment are too long for the system",
            }
            child, _ = await supervisor.start(command(tmp_path, "true"))
            assert await ended(child) == (0, None, False)
            child.release()

    run(work)


def test_a_tier_that_cannot_be_had_names_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        with pytest.raises(SetupError) as caught:
            async with supervised(tmp_path, Containment.CGROUP):
                pass
        assert caught.value.facts[0].startswith("cgroup: ")

    # Without a cgroup2 in /proc/self/mountinfo there is none to be found: a private mount namespace.
    if not IS_ROOT:
        pytest.skip("needs root")
    wrapper = tmp_path / "python"
    wrapper.write_text(
        "#!/bin/sh\nexec unshare --mount sh -c "
        '\'umount -a -t cgroup2; exec "$0" "$@"\' '
        f'{sys.executable} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(wrapper))
    run(work)


# --- who dies first ------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", [p for p in TIERS if p is not Containment.PROCESS_GROUP])
def test_a_killed_keeper_is_told_and_its_script_killed(tier: Containment, tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, tier) as (supervisor, _):
            child, _ = await supervisor.start(command(tmp_path, sys.executable, "-c", HANG))
            processes = [psutil.Process(pid) for pid in await child.pids()]
            assert processes
            os.kill(child.keeper, signal.SIGKILL)
            with pytest.raises(SupervisionLost):
                await child.exited
            child.signal(signal.SIGTERM)  # nobody is there to take it, and nobody minds
            assert await child.pids() == [] or tier is Containment.PID_NAMESPACE
            assert not await child.kill()
            await supervisor.abandon(child)
            wait_gone(processes)
            child.release()
            another, _ = await supervisor.start(command(tmp_path, "true"))
            assert await ended(another) == (0, None, False)
            another.release()

    run(work)


@each_tier
def test_a_killed_spawner_is_told_to_who_needs_it(tier: Containment, tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, tier) as (supervisor, spawner):
            child, _ = await supervisor.start(command(tmp_path, sys.executable, "-c", HANG))
            processes = [psutil.Process(pid) for pid in await child.pids()]
            spawner.process.kill()
            await asyncio.to_thread(spawner.process.wait)
            with pytest.raises(SupervisionLost, match="the spawner process was killed"):
                await supervisor.start(command(tmp_path, "true"))
            # The script's own keeper does its work all the same.
            assert await child.kill()
            assert (await ended(child))[:2] == (None, signal.SIGKILL)
            child.release()
            wait_gone(processes)

    run(work)


def test_a_keeper_that_died_while_nothing_was_its_own_is_not_used(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, Containment.SCAN) as (supervisor, _):
            child, _ = await supervisor.start(command(tmp_path, "true"))
            await child.exited
            child.release()
            os.kill(child.keeper, signal.SIGKILL)
            await asyncio.to_thread(wait_until, lambda: child._keeper.gone, "its end was seen")
            another, _ = await supervisor.start(command(tmp_path, "true"))
            assert await ended(another) == (0, None, False)
            assert another.keeper != child.keeper
            another.release()

    run(work)


def test_whoever_stops_waiting_for_a_keeper_leaves_it_to_the_next(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, Containment.SCAN) as (supervisor, _):
            coming = supervisor._coming[False]
            starting = asyncio.create_task(supervisor.start(command(tmp_path, "true")))
            coming.add_done_callback(lambda _: starting.cancel())  # at the same moment
            with pytest.raises(asyncio.CancelledError):
                await starting
            child, _ = await supervisor.start(command(tmp_path, "true"))
            assert child._keeper is coming.result()
            await child.exited
            child.release()

    run(work)


def test_a_spawner_that_was_stopped_goes_on(tmp_path: Path) -> None:
    async def work() -> None:
        async with supervised(tmp_path, Containment.SCAN) as (supervisor, spawner):
            spawner.process.send_signal(signal.SIGSTOP)
            for child, _ in await asyncio.gather(
                *(supervisor.start(command(tmp_path, "true")) for _ in range(3))
            ):
                assert await ended(child) == (0, None, False)
                child.release()

    run(work)


def test_a_runner_that_goes_before_an_answer_leaves_nothing(tmp_path: Path) -> None:
    null = command(tmp_path, "true").stdin
    with contextlib.closing(Spawner()) as spawner:
        setup = ("setup", "scan", f"test-{uuid.uuid4().hex[:12]}")
        send(spawner.sock, (*setup, str(tmp_path / "scratch"), str(tmp_path / "log"), False))
        assert answer(spawner.sock)[:2] == ("tier", "scan")
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                send(spawner.sock, ("keeper", None, False), (theirs.fileno(),))
            _, keeper = answer(spawner.sock)
            assert answer(ours) == ("ready",)
            argv = [os.fsencode(word) for word in (sys.executable, "-I", "-S", "-c", HANG)]
            send(ours, ("start", argv, {}, os.fsencode(tmp_path), False, None), (null,) * 3)
            _, script, _ = answer(ours)
            orphan = psutil.Process(script)
            os.kill(keeper, signal.SIGKILL)
            wait_gone([psutil.Process(keeper)])
        assert orphan.ppid() == spawner.process.pid
        spawner.process.send_signal(
            signal.SIGSTOP
        )  # so that it finds the question and the end at once
        ours, theirs = socket.socketpair()
        with ours, theirs:
            send(spawner.sock, ("keeper", None, False), (theirs.fileno(),))
    try:
        assert spawner.process.returncode == 0
        assert not is_living(orphan)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.kill()


def answer(sock: socket.socket) -> tuple[Any, ...]:
    """Wait for one message."""
    reader = Reader()
    while True:
        reader.fill(sock)
        assert not reader.ended
        for message in reader.messages():
            return message


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
def test_a_script_that_may_not_be_signalled_keeps_its_keeper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setpriv = shutil.which("setpriv") or missing("setpriv (util-linux)")
    wrapper = tmp_path / "python"
    without = "--bounding-set=-kill --inh-caps=-kill"
    wrapper.write_text(f'#!/bin/sh\nexec {setpriv} {without} {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    os.mkfifo(tmp_path / "go")
    becomes = (
        "import os\n"
        "go, ready = os.open('go', os.O_RDWR), open('ready', 'w')\n"
        "os.setuid(65534)\n"
        "print(file=ready, flush=True)\n"
        "os.read(go, 1)\n"
    )

    async def work() -> None:
        async with supervised(tmp_path, Containment.SCAN) as (supervisor, _):
            child, _ = await supervisor.start(command(tmp_path, sys.executable, "-c", becomes))
            await asyncio.to_thread(wait_lines, tmp_path / "ready")
            child.signal_alone(signal.SIGTERM)
            child.signal(signal.SIGTERM)
            assert len(await child.pids()) == 1
            (tmp_path / "go").write_text("!")
            assert await ended(child) == (0, None, False)
            child.release()

    monkeypatch.setattr(sys, "executable", str(wrapper))
    run(work)


# --- cgroups of dead runs ------------------------------------------------------------------------


@pytest.mark.skipif(not IS_ROOT, reason="needs a cgroup")
def test_only_the_cgroup_of_the_named_run_is_reclaimed() -> None:
    own = linux.own_cgroup()
    if own is None:
        pytest.skip("no cgroup v2 is mounted")
    run_id = f"test-{uuid.uuid4().hex[:12]}"
    folder = own / f"e2e-run-{run_id}"
    (folder / "7" / "made-by-the-script").mkdir(parents=True)
    reclaim_cgroup(folder, "another")
    reclaim_cgroup(folder / "7", run_id)
    assert (folder / "7" / "made-by-the-script").exists()
    reclaim_cgroup(folder, run_id)
    assert not folder.exists()
    reclaim_cgroup(folder, run_id)  # already gone is success


@pytest.mark.skipif(not IS_ROOT, reason="needs a cgroup")
def test_a_cgroup_that_nothing_could_be_forked_into_is_removed() -> None:
    own = linux.own_cgroup()
    if own is None:
        pytest.skip("no cgroup v2 is mounted")
    parent = own / f"e2e-run-test-{uuid.uuid4().hex[:12]}"
    parent.mkdir()
    code = (
        "import os, resource, sys\n"
        "from e2e_runner.supervise.containment import Cgroup\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
        "os.setuid(65534)\n"
        "try:\n"
        "    Cgroup(sys.argv[1]).fork()\n"
        "except BlockingIOError as error:\n"
        "    print(error.filename, os.listdir(os.path.dirname(sys.argv[1])).count('1'))\n"
    )
    try:
        os.chown(parent, 65534, 65534)
        said = subprocess.check_output(
            [sys.executable, "-c", code, str(parent / "1")], encoding="utf-8"
        )
    finally:
        parent.rmdir()
    assert said.split() == ["clone3", "0"]


# --- messages ------------------------------------------------------------------------------------

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner),
    max_leaves=10,
)
messages = st.lists(st.lists(values, min_size=1).map(tuple), max_size=5)


@given(messages, st.integers(1, 200))
def test_messages_arrive_whole_however_they_are_cut(
    sent: list[tuple[Any, ...]], piece: int
) -> None:
    ours, theirs = socket.socketpair()
    far, near = socket.socketpair()
    with ours, theirs, far, near:
        for message in sent:
            send(ours, message)
        ours.close()
        reader = Reader()
        received: list[tuple[Any, ...]] = []
        while data := theirs.recv(piece):
            far.send(data)
            reader.fill(near)
            received.extend(reader.messages())
        assert received == sent
        assert not reader.ended
        far.close()
        reader.fill(near)
        assert reader.ended


def test_descriptors_ride_along() -> None:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with ours, theirs:
        # Larger than the socket takes at once: the descriptors go with the first part.
        body = "x" * 10_000
        send(ours, ("take", body), (reading, writing))
        os.close(reading)
        os.close(writing)
        reader = Reader()
        reader.fill(theirs)
        assert list(reader.messages()) == [("take", body)]
        first, second = reader.take_fds(2)
        assert not os.get_inheritable(first)
        os.write(second, b"through")
        assert os.read(first, 10) == b"through"
        os.close(first)
        os.close(second)
        assert reader.fds == []


def test_a_peer_that_is_gone_is_an_error_and_no_signal() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(BrokenPipeError):
        send(ours, ("hello",))


# --- /proc ---------------------------------------------------------------------------------------


def test_descendants_are_listed_parents_first(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"sh -c 'echo $$ >> {ready}; sleep 60; :' & wait"

    async def work() -> None:
        process = await asyncio.create_subprocess_exec("sh", "-c", script)
        (inner,) = await asyncio.to_thread(wait_lines, ready)
        found = linux.descendants(os.getpid())
        assert found.index(process.pid) < found.index(int(inner))
        assert linux.parents()[int(inner)] == process.pid
        for pid in linux.descendants(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        await process.wait()
        assert process.pid not in linux.parents()

    run(work)
