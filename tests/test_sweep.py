"""Sweeps of real servers: what may go goes, and nothing else, whatever happens meanwhile."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import servers
from harness import wait_until
from servers import BUILT_IN, create, remove, run

from e2e_runner.dbnames import attempt_name, lease_key
from e2e_runner.errors import SetupError
from e2e_runner.model import ServerAddress
from e2e_runner.postgres.connection import connected
from e2e_runner.stop import Stop
from e2e_runner.sweep import Survey, drop, look
from e2e_runner.sweep_plan import Criteria, SweepKind, SweepOutcome, SweepStep, Swept

DEAD = "20261121_094345_0a1b2c"
LIVE = "20261121_094345_ffffff"


@pytest.fixture(scope="module", params=servers.VERSIONS)
def shared(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    with servers.running_server(servers.binaries(request.param)) as running:
        running.sql("CREATE ROLE plain LOGIN CREATEDB")
        yield running


@pytest.fixture
def server(shared: servers.Server) -> Iterator[servers.Server]:
    """Give the server of this module, with nothing on it from the test before."""
    yield shared
    assert servers.dropped_beyond(shared, BUILT_IN) == []


one_version = servers.on_one_version("shared")


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have so few drops at once that some are not begun yet when the first ones end."""
    monkeypatch.setattr("e2e_runner.sweep.MOST_CONNECTIONS", 6)


@dataclass(slots=True)
class Done:
    """What a sweep said and did."""

    survey: Survey
    results: tuple[Swept, ...] = ()
    steps: list[SweepStep] = field(default_factory=list)

    @property
    def listed(self) -> set[str]:
        return {each.database.name for each in self.survey.plan.candidates}

    @property
    def outcomes(self) -> dict[str, str]:
        return {each.name: each.outcome.value for each in self.results}

    @property
    def reasons(self) -> dict[str, str]:
        return {each.name: each.reason for each in self.results}


async def sweeping(
    address: ServerAddress,
    criteria: Criteria | None = None,
    *,
    between: Coroutine[Any, Any, None] | None = None,
    patience: float = 10.0,
    stop: Stop | None = None,
) -> Done:
    """Look, do what is to happen `between` the list and the drops, and drop."""
    done = Done(await look(address, criteria or Criteria()))
    if between is not None:
        await between
    done.results = await drop(done.survey, done.steps.append, stop or Stop(), patience=patience)
    return done


def sweep(server: servers.Server, criteria: Criteria | None = None, **how: Any) -> Done:
    return run(sweeping(server.address(), criteria, **how))


@contextlib.asynccontextmanager
async def lease(server: servers.Server, token: str) -> AsyncIterator[None]:
    async with connected(server.address()) as connection:
        await connection.execute(f"SELECT pg_advisory_lock({lease_key(token)})")
        yield


# --- what goes and what stays --------------------------------------------------------------------


def test_what_runs_left_is_dropped_with_its_roles(server: servers.Server) -> None:
    role, idle = attempt_name(DEAD, 1), attempt_name(DEAD, 2)
    server.sql(f"CREATE ROLE {role} LOGIN CREATEDB")
    server.sql(f"CREATE ROLE {idle}")
    create(server, role, f"{role}_ohlcv", "made_by_a_script", more=f"OWNER {role}")
    create(server, "shop")
    done = sweep(server)
    assert done.listed == {role, f"{role}_ohlcv", "made_by_a_script"}
    assert set(done.outcomes.values()) == {"dropped"}
    assert {each.name for each in done.results if each.kind is SweepKind.ROLE} == {role, idle}
    assert server.databases() == BUILT_IN | {"shop"}
    assert server.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'test%'") == []
    assert all(candidate.database.size for candidate in done.survey.plan.candidates)
    remove(server, "shop")


@one_version
def test_a_live_run_loses_nothing(server: servers.Server) -> None:
    alive, dead = attempt_name(LIVE, 1), attempt_name(DEAD, 1)
    create(server, alive, dead, "shop")

    async def do() -> Done:
        async with lease(server, LIVE):
            return await sweeping(server.address(), Criteria(patterns=("test_",), force=True))

    done = run(do())
    assert done.outcomes == {dead: "dropped"}
    assert {each.database.name: each.why for each in done.survey.plan.spared} == {
        alive: "its run is alive"
    }
    assert server.databases() == BUILT_IN | {alive, "shop"}
    assert sweep(server).outcomes == {alive: "dropped"}  # now that the lease is free
    remove(server, "shop")


@one_version
def test_a_live_run_that_lost_its_lease_is_known_by_its_sessions(server: servers.Server) -> None:
    role = attempt_name(LIVE, 1)
    server.sql(f"CREATE ROLE {role} LOGIN CREATEDB")
    create(server, role, f"{role}_bars", "made_by_its_script", more=f"OWNER {role}")
    create(server, f"{attempt_name(LIVE, 0)}_t1")

    async def do() -> Done:
        async with connected(server.address(user=role)):
            return await sweeping(server.address())

    done = run(do())
    assert done.outcomes == {}
    assert len(done.survey.plan.spared) == 4
    assert set(sweep(server).outcomes.values()) == {"dropped"}


@one_version
def test_a_sweep_of_a_server_with_a_locked_catalog_ends(
    server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2e_runner.postgres.survey.SURVEY_PATIENCE", 0.3)

    async def do() -> None:
        async with servers.locked_catalog(server):
            await look(server.address(), Criteria())

    with pytest.raises(SetupError, match="does not say what it holds") as met:
        run(do())
    assert "could not be read within 0.3 s" in met.value.facts[0]


@one_version
def test_a_run_that_begins_between_list_and_drop_loses_nothing(server: servers.Server) -> None:
    name = attempt_name(LIVE, 1)
    create(server, name)

    async def do() -> Done:
        async with contextlib.AsyncExitStack() as stack:

            async def begin() -> None:
                await stack.enter_async_context(lease(server, LIVE))

            return await sweeping(server.address(), between=begin())

    done = run(do())
    assert done.outcomes == {name: "spared"}
    assert done.reasons == {name: "it changed since it was listed: its run is alive"}
    assert name in server.databases()
    remove(server, name)


def test_every_row_of_what_must_stay(server: servers.Server) -> None:
    stay = {
        "test_template": "it is marked as a template",
        "test_closed": "it allows no connections, which somebody decided",
        "test_slot": "a replication slot needs it: inactive",
        "test_sub": "a subscription is in it: sub",
        "test_prepared": "it has 1 prepared transaction",
        "test_busy": "it has 1 session; --force ends them",
        "test_protected": "it is protected",
        "test_mine": "it is the one that the address names, or that this sweep is connected to",
    }
    create(server, *stay, "test_half", "test_plain", "shop")
    server.sql("ALTER DATABASE test_template IS_TEMPLATE true")
    server.sql("ALTER DATABASE test_closed ALLOW_CONNECTIONS false")
    server.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'test_half'")

    async def do() -> Done:
        async with connected(server.address(database="test_busy")):
            return await sweeping(
                server.address(database="test_mine"),
                Criteria(patterns=("test_",), protect=("test_protected",)),
            )

    with servers.obstructed(
        server, slot="test_slot", subscription="test_sub", prepared="test_prepared"
    ):
        done = run(do())
    assert {each.database.name: each.why for each in done.survey.plan.spared} == stay
    assert done.outcomes == {"test_half": "dropped", "test_plain": "dropped"}
    assert server.databases() == BUILT_IN | stay.keys() | {"shop"}
    server.sql("ALTER DATABASE test_template IS_TEMPLATE false")
    remove(server, *stay, "shop")


def test_force_ends_sessions(server: servers.Server) -> None:
    create(server, "test_busy")

    async def do() -> Done:
        async with connected(server.address(database="test_busy")):
            return await sweeping(server.address(), Criteria(patterns=("test_",), force=True))

    assert run(do()).outcomes == {"test_busy": "dropped"}
    assert server.databases() == BUILT_IN


NAMES = ['test_a"b', "test_line\nfeed", "test_snow ☃", "test_'; DROP DATABASE shop; --"]
NAMES += ["test_\u202etxt", "test_\x1b[31m", "test_" + "é" * 29, "test_" + "x" * 58]


@one_version
def test_any_name_goes_and_its_like_stays(server: servers.Server) -> None:
    like = ["testXa", "shop", "Test_a", "xtest_"]
    create(server, *NAMES, *like)
    done = sweep(server, Criteria(patterns=("test_",)))
    assert done.listed == set(NAMES)
    assert server.databases() == BUILT_IN | set(like)
    remove(server, *like)


# --- what others do meanwhile --------------------------------------------------------------------


def test_what_somebody_else_does_between_list_and_drop(server: servers.Server) -> None:
    names = ["test_gone", "test_anew", "test_renamed", "test_busy", "test_template", "test_plain"]
    create(server, *names, "shop")

    async def do() -> Done:
        async with contextlib.AsyncExitStack() as stack:

            async def meddle() -> None:
                other = await stack.enter_async_context(connected(server.address()))
                await other.execute("DROP DATABASE test_gone")
                await other.execute("DROP DATABASE test_anew")
                await other.execute("CREATE DATABASE test_anew")
                await other.execute("ALTER DATABASE test_renamed RENAME TO precious")
                await other.execute("ALTER DATABASE test_template IS_TEMPLATE true")
                busy = server.address(database="test_busy")
                await stack.enter_async_context(connected(busy))

            return await sweeping(server.address(), Criteria(patterns=("test_",)), between=meddle())

    done = run(do())
    assert done.outcomes == {
        "test_gone": "gone",
        "test_anew": "gone",
        "test_renamed": "spared",
        "test_busy": "spared",
        "test_template": "spared",
        "test_plain": "dropped",
    }
    left = {"test_anew", "precious", "test_busy", "test_template", "shop"}
    assert server.databases() == BUILT_IN | left
    server.sql("ALTER DATABASE test_template IS_TEMPLATE false")
    remove(server, *left)


@one_version
def test_two_sweeps_at_once(server: servers.Server) -> None:
    names = [f"{attempt_name(DEAD, 1)}_{number}" for number in range(24)]
    create(server, *names)

    async def do() -> list[Done]:
        return await asyncio.gather(*(sweeping(server.address()) for _ in range(2)))

    both = run(do())
    assert server.databases() == BUILT_IN
    assert {outcome for done in both for outcome in done.outcomes.values()} <= {"dropped", "gone"}
    dropped = [n for done in both for n, what in done.outcomes.items() if what == "dropped"]
    assert sorted(dropped) == sorted(names)  # each by one of them


def test_lost_privileges(server: servers.Server) -> None:
    create(server, "test_mine", more="OWNER plain")
    create(server, "test_foreign", "shop")
    done = run(sweeping(server.address(user="plain"), Criteria(patterns=("test_",))))
    assert done.outcomes == {"test_mine": "dropped", "test_foreign": "failed"}
    assert done.reasons["test_foreign"] == "not allowed: must be owner of database test_foreign"
    remove(server, "test_foreign", "shop")


def test_a_role_that_still_owns_something_or_is_used_stays(server: servers.Server) -> None:
    owner, busy = attempt_name(DEAD, 1), attempt_name(LIVE, 2)
    for role in (owner, busy):
        server.sql(f"CREATE ROLE {role} LOGIN")
    server.sql(f"CREATE SCHEMA of_the_dead AUTHORIZATION {owner}")

    async def do(*, force: bool) -> Done:
        async with connected(server.address(user=busy)):
            return await sweeping(server.address(), Criteria(force=force))

    assert run(do(force=False)).outcomes == {owner: "spared"}
    done = run(do(force=True))
    assert done.outcomes == {owner: "spared", busy: "spared"}
    assert done.reasons[owner].startswith("something still depends on it: ")
    assert done.reasons[busy] == "it has sessions"
    server.sql("DROP SCHEMA of_the_dead")
    assert sweep(server).outcomes == {owner: "dropped", busy: "dropped"}


# --- servers in trouble --------------------------------------------------------------------------


@pytest.mark.usefixtures("few_at_once")
def test_a_hung_backend_is_reported_and_the_next_sweep_recovers(server: servers.Server) -> None:
    names = [f"test_{number}" for number in range(12)]
    create(server, *names, "shop")
    criteria = Criteria(patterns=("test_",))

    async def do() -> Done:
        async with contextlib.AsyncExitStack() as stack:

            async def hang() -> None:
                await stack.enter_async_context(servers.hung_session(server))

            # For the drops it runs out; for the last look before each it should not.
            return await sweeping(server.address(), criteria, between=hang(), patience=2.0)

    done = run(do())
    assert set(done.outcomes.values()) == {"failed"}
    hung = "no answer within 2 s, 2 times: a process of the server may be stopped or hung"
    not_tried = "not tried: the server does not answer drops any more"
    # A machine that is busy may not get to the last look in time either.
    unseen = "it could not be looked at again: no answer within 2 s"
    assert {hung, not_tried} <= set(done.reasons.values()) <= {hung, not_tried, unseen}
    halfway = server.sql("SELECT count(*) FROM pg_database WHERE datconnlimit = -2")
    assert int(halfway[0]) > 0
    again = sweep(server, criteria)
    assert set(again.outcomes.values()) == {"dropped"}
    assert server.databases() == BUILT_IN | {"shop"}
    remove(server, "shop")


def test_the_server_goes_away_in_the_middle() -> None:
    with servers.running_server(servers.binaries("system")) as mortal:
        create(mortal, *(f"test_{number}" for number in range(12)), "shop")

        async def kill() -> None:
            os.kill(mortal.pid, signal.SIGQUIT)
            with contextlib.suppress(OSError):
                while True:  # until nobody listens any more
                    _, writer = await asyncio.open_connection("127.0.0.1", mortal.port)
                    writer.close()

        done = sweep(mortal, Criteria(patterns=("test_",)), between=kill())
    assert len(done.outcomes) == 12
    assert set(done.outcomes.values()) == {"failed"}
    assert all(reason.startswith("not tried: ") for reason in done.reasons.values())


@one_version
def test_few_connections_are_enough(server: servers.Server) -> None:
    with servers.running_server(server.binaries, settings={"max_connections": "5"}) as small:
        names = [f"{attempt_name(DEAD, 1)}_{number}" for number in range(8)]
        for name in names:
            small.sql(f"CREATE DATABASE {name}")
        assert set(sweep(small).outcomes.values()) == {"dropped"}
        assert small.databases() == BUILT_IN


def refusal(address: ServerAddress) -> str:
    with pytest.raises(SetupError) as caught:
        run(look(address, Criteria()))
    assert caught.value.exit_code == 3
    return str(caught.value)


@one_version
def test_a_standby_and_a_read_only_server_are_refused(server: servers.Server) -> None:
    with servers.running_server(server.binaries, standby=True) as standby:
        said = refusal(standby.address())
    assert said.startswith(f"{standby.address()} is a standby: it can only be read\n")
    assert said.endswith("To fix this: name the primary server")
    settings = {"default_transaction_read_only": "on"}
    with servers.running_server(server.binaries, settings=settings) as read_only:
        said = refusal(read_only.address())
    assert "is read-only: default_transaction_read_only is on" in said


@one_version
def test_a_server_that_does_not_answer(server: servers.Server) -> None:
    said = refusal(server.address(user="nobody_at_all"))
    assert said.startswith("The PostgreSQL server cannot be reached\n  nobody_at_all@127.0.0.1:")
    assert 'role "nobody_at_all" does not exist' in said


# --- interrupts ----------------------------------------------------------------------------------


@one_version
@pytest.mark.usefixtures("few_at_once")
def test_a_first_interrupt_finishes_what_is_under_way(server: servers.Server) -> None:
    names = [f"{attempt_name(DEAD, 1)}_{number}" for number in range(12)]
    create(server, *names)

    async def do() -> tuple[Survey, tuple[Swept, ...]]:
        stop = Stop()

        def emit(step: SweepStep) -> None:
            if isinstance(step, Swept) and stop.signal is None:
                stop.request(signal.SIGINT)

        found = await look(server.address(), Criteria())
        return found, await drop(found, emit, stop)

    _, results = run(do())
    by_outcome = {
        what: {each.name for each in results if each.outcome is what} for what in SweepOutcome
    }
    assert by_outcome[SweepOutcome.DROPPED]
    assert by_outcome[SweepOutcome.LEFT]
    assert by_outcome[SweepOutcome.DROPPED] | by_outcome[SweepOutcome.LEFT] == set(names)
    assert server.databases() == BUILT_IN | by_outcome[SweepOutcome.LEFT]
    assert server.sql("SELECT count(*) FROM pg_database WHERE datconnlimit = -2") == ["0"]
    assert sweep(server).listed == by_outcome[SweepOutcome.LEFT]


@one_version
def test_a_second_interrupt_breaks_off(server: servers.Server) -> None:
    create(server, "test_stuck", "shop")

    async def do() -> tuple[Swept, ...]:
        found = await look(server.address(), Criteria(patterns=("test_",)))
        stop = Stop()

        def is_stuck() -> list[str]:
            return server.sql(servers.STUCK_DROP)

        async with servers.hung_session(server):
            dropping = asyncio.create_task(drop(found, lambda _: None, stop, patience=60))
            await asyncio.to_thread(wait_until, is_stuck, "a drop was under way")
            stop.request(signal.SIGINT)
            assert await asyncio.to_thread(is_stuck)
            assert not dropping.done()
            stop.request(signal.SIGINT)
            return await dropping

    (result,) = run(do())
    assert (result.outcome, result.reason) == (SweepOutcome.LEFT, "its drop was broken off")
    assert sweep(server, Criteria(patterns=("test_",))).outcomes == {"test_stuck": "dropped"}
    remove(server, "shop")


# --- at random, and many -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_exactly_what_may_go_is_gone(server: servers.Server, seed: int) -> None:
    """Random mixes of everything, with leases and sessions that real connections hold."""
    chance = random.Random(seed)  # noqa: S311 - nothing is secret
    tokens = [f"20261121_0943{number:02}_0a1b2c" for number in range(6)]
    alive = set(chance.sample(tokens, 3))
    role = attempt_name(chance.choice(tokens), 9)
    server.sql(f"CREATE ROLE {role}")
    may_go, must_stay = set[str](), {"foreign"}
    slots, busy, protected, marked, owned = (set[str]() for _ in range(5))
    dealt: list[tuple[str, str | None, str]] = []
    for number in range(14):
        token = chance.choice(tokens)
        ours = chance.random() < 0.6
        name = f"{attempt_name(token, 1)}_{number}" if ours else f"test_scratch_{number}"
        kind = chance.choice(["", "", "", "slot", "busy", "protected", "template", "owned"])
        {
            "slot": slots,
            "busy": busy,
            "protected": protected,
            "template": marked,
            "owned": owned,
        }.get(kind, set[str]()).add(name)
        dealt.append((name, token if ours else None, kind))
    # Sessions are a sign of life of the whole run.
    lively = alive | {token for _, token, kind in dealt if token and kind == "busy"}
    for name, mine, kind in dealt:
        live = mine in lively or (kind == "owned" and any(token in role for token in lively))
        (must_stay if live or kind not in {"", "owned"} else may_go).add(name)
    create(server, *may_go, *must_stay)
    for name in slots:
        server.sql(
            f"SELECT pg_create_logical_replication_slot('s_{name[-2:].strip('_')}', 'test_decoding')",
            database=name,
        )
    for name in owned:
        server.sql(f"ALTER DATABASE {name} OWNER TO {role}")
    for name in marked:
        server.sql(f"ALTER DATABASE {name} IS_TEMPLATE true")

    async def do() -> Done:
        async with contextlib.AsyncExitStack() as stack:
            for token in alive:
                await stack.enter_async_context(lease(server, token))
            for name in busy:
                await stack.enter_async_context(connected(server.address(database=name)))
            criteria = Criteria(patterns=("test_scratch_*",), protect=tuple(protected))
            return await sweeping(server.address(), criteria)

    done = run(do())
    assert done.listed == may_go
    assert server.databases() == BUILT_IN | must_stay
    server.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    for name in marked:
        server.sql(f"ALTER DATABASE {name} IS_TEMPLATE false")
    remove(server, *must_stay)
    server.sql(f"DROP ROLE IF EXISTS {role}")


@one_version
def test_very_many(server: servers.Server) -> None:
    """Five hundred in CI, where there is time to make them."""
    count = 500 if os.environ.get("CI") == "true" else 100
    names = [f"{attempt_name(DEAD, 1)}_{number}" for number in range(count)]
    create(server, *names, more="STRATEGY FILE_COPY")
    create(server, f"{attempt_name(LIVE, 1)}", "shop")

    async def do() -> Done:
        async with lease(server, LIVE):
            return await sweeping(server.address())

    done = run(do())
    assert done.listed == set(names)
    assert set(done.outcomes.values()) == {"dropped"}
    assert server.databases() == BUILT_IN | {attempt_name(LIVE, 1), "shop"}
    remove(server, attempt_name(LIVE, 1), "shop")
