"""What a survey of real servers sees, as a superuser and as a user who may do little."""

from collections.abc import Iterator

import pytest
import servers
from servers import run

from e2e_runner.dbnames import KEPT, attempt_name, lease_key
from e2e_runner.model import DatabaseFacts, ServerState
from e2e_runner.postgres.connection import connected
from e2e_runner.postgres.survey import busy_roles, sizes, survey

TOKEN = "20261121_094345_0a1b2c"  # noqa: S105 - of a run


@pytest.fixture(scope="module", params=servers.VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    with servers.running_server(servers.binaries(request.param)) as running:
        running.sql("CREATE ROLE plain LOGIN")
        yield running


one_version = servers.on_one_version("server")


def look(server: servers.Server, *, user: str = "postgres", measured: bool = False) -> ServerState:
    async def ask() -> ServerState:
        async with connected(server.address(user=user)) as connection:
            state = await survey(connection)
            if measured:
                oids = [each.oid for each in state.databases]
                state = await survey(connection, sizes_of=oids)
            return state

    return run(ask())


def facts(server: servers.Server, name: str, *, user: str = "postgres") -> DatabaseFacts:
    (found,) = [each for each in look(server, user=user).databases if each.name == name]
    return found


USERS = pytest.mark.parametrize("user", ["postgres", "plain"])


@USERS
def test_a_fresh_server(server: servers.Server, user: str) -> None:
    state = look(server, user=user)
    found = {each.name: each for each in state.databases}
    assert {"postgres", "template0", "template1"} <= found.keys()
    assert found["template0"].is_template
    assert not found["template0"].allows_connections
    assert found["postgres"].owner == "postgres"
    assert found["postgres"].sessions == 0  # our own is none
    assert not found["postgres"].half_dropped


@USERS
def test_every_obstacle_is_seen(server: servers.Server, user: str) -> None:
    names = ("slotted", "subscribed", "prepared", "closed", "halfway", "occupied")
    servers.create(server, *names)
    server.sql("ALTER DATABASE closed ALLOW_CONNECTIONS false")
    server.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'halfway'")

    async def look_while_occupied() -> ServerState:
        async with (
            connected(server.address(database="occupied")),
            connected(server.address(database="occupied")),
            connected(server.address(user=user)) as connection,
        ):
            return await survey(connection)

    try:
        with servers.obstructed(
            server, slot="slotted", subscription="subscribed", prepared="prepared"
        ):
            found = {each.name: each for each in run(look_while_occupied()).databases}
        assert found["slotted"].slots == ("inactive",)
        assert found["subscribed"].subscriptions == ("sub",)
        assert found["prepared"].prepared == 1
        assert not found["closed"].allows_connections
        assert found["halfway"].half_dropped
        assert found["occupied"].sessions == 2
        assert found["slotted"].sessions == found["prepared"].sessions == 0
    finally:
        servers.remove(server, *names)


@USERS
def test_leases_are_seen_in_every_database(server: servers.Server, user: str) -> None:
    keys = [lease_key(TOKEN), 1, -1, -(2**63), 2**63 - 1, 2**32]

    async def hold_and_look() -> ServerState:
        async with (
            connected(server.address()) as holder,
            connected(server.address(database="template1")) as other,
            connected(server.address(user=user)) as connection,
        ):
            for key in keys:
                await holder.execute(f"SELECT pg_advisory_lock({key})")
            await other.execute("SELECT pg_advisory_lock(77)")
            await other.execute("SELECT pg_advisory_lock(1, 2)")  # two keys: never a lease
            return await survey(connection)

    assert run(hold_and_look()).leases == {*keys, 77}
    assert look(server).leases == frozenset()


def test_roles_of_runs_are_told_from_others(server: servers.Server) -> None:
    ours = attempt_name(TOKEN, 1)
    server.sql(f"CREATE ROLE {ours} LOGIN")
    server.sql("CREATE ROLE e2e_of_somebody")
    try:
        assert look(server, user="plain").roles == (ours,)

        async def busy() -> frozenset[str]:
            async with (
                connected(server.address(user=ours)),
                connected(server.address()) as connection,
            ):
                return await busy_roles(connection, [ours, "e2e_of_somebody"])

        assert run(busy()) == {ours}
    finally:
        server.sql(f"DROP ROLE {ours}")
        server.sql("DROP ROLE e2e_of_somebody")


@USERS
def test_whose_sessions_there_are_and_what_was_kept_is_for_all_to_see(
    server: servers.Server, user: str
) -> None:
    of_role, of_database = TOKEN, "20261121_094345_ffffff"
    role, database = attempt_name(of_role, 1), attempt_name(of_database, 2)
    server.sql(f"CREATE ROLE {role} LOGIN")
    server.sql(f"CREATE DATABASE {database}")
    server.sql(f"CREATE DATABASE kept OWNER {role}")
    server.sql(f"COMMENT ON ROLE {role} IS '{KEPT}'")
    try:

        async def look_while_busy() -> ServerState:
            async with (
                connected(server.address(user=role)),
                connected(server.address(database=database)),
                connected(server.address(user=user)) as connection,
            ):
                return await survey(connection)

        state = run(look_while_busy())
        assert state.busy == {of_role, of_database}
        assert [each.name for each in state.databases if each.kept] == ["kept"]
        server.sql(f"COMMENT ON DATABASE {database} IS '{KEPT}'")
        assert facts(server, database, user=user).kept
        assert look(server, user=user).busy == frozenset()
    finally:
        server.sql("DROP DATABASE kept")
        server.sql(f"DROP DATABASE {database}")
        server.sql(f"DROP ROLE {role}")


@one_version
def test_a_locked_catalog_does_not_hold_a_survey_up(
    server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_while_locked() -> ServerState:
        async with connected(server.address()) as connection:
            async with servers.locked_catalog(server):
                with monkeypatch.context() as hurried:
                    hurried.setattr("e2e_runner.postgres.survey.SURVEY_PATIENCE", 0.3)
                    with pytest.raises(TimeoutError, match=r"within 0\.3 s; somebody may have"):
                        await survey(connection)
            return await survey(connection)  # over the same connection

    assert run(look_while_locked()).databases


def test_ages_and_sizes_are_for_who_may_know(server: servers.Server) -> None:
    server.sql("CREATE DATABASE young")
    server.sql("REVOKE CONNECT ON DATABASE young FROM public")
    try:
        (young,) = [d for d in look(server, measured=True).databases if d.name == "young"]
        assert young.age is not None
        assert young.age < 60
        assert young.size is not None
        assert young.size > 1_000_000
        told = look(server, user="plain", measured=True)
        (little,) = [each for each in told.databases if each.name == "young"]
        assert little.age is None
        assert little.size is None
        assert {d.name for d in told.databases if d.size is not None} >= {"postgres"}
    finally:
        server.sql("DROP DATABASE young")


def test_the_age_in_a_tablespace(server: servers.Server) -> None:
    folder = server.sockets / "space"
    folder.mkdir()
    servers.hand_over(folder)
    server.sql(f"CREATE TABLESPACE space LOCATION '{folder}'")
    server.sql("CREATE DATABASE elsewhere TABLESPACE space")
    try:
        age = facts(server, "elsewhere").age
        assert age is not None
        assert age < 60
    finally:
        server.sql("DROP DATABASE elsewhere")
        server.sql("DROP TABLESPACE space")


def test_ages_from_commits_where_files_are_not_to_be_seen(server: servers.Server) -> None:
    with servers.running_server(
        server.binaries, settings={"track_commit_timestamp": "on"}
    ) as tracking:
        tracking.sql("CREATE ROLE plain LOGIN")
        tracking.sql("CREATE DATABASE young")
        age = facts(tracking, "young", user="plain").age
        assert age is not None
        assert age < 60
        assert facts(tracking, "template0", user="plain").age is None


def test_a_name_that_is_no_utf8_hides_nothing(server: servers.Server) -> None:
    server.sql("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    server.sql(
        "DO $$ BEGIN PERFORM set_config('client_encoding', 'LATIN1', false); END $$;",
        database="latin",
    )
    # A name is stored in the encoding of the database from which it was given.
    server.sql('CREATE DATABASE "caf\u00e9"', database="latin")
    try:
        names = {each.name for each in look(server).databases}
        assert "caf\udce9" in names
        assert "postgres" in names
    finally:
        server.sql('DROP DATABASE "caf\u00e9"', database="latin")
        server.sql("DROP DATABASE latin")


@one_version
@pytest.mark.parametrize("name", ['a"b', "line\nfeed", "snow ☃ man", "x'; DROP", "\u202etxt"])
def test_names_come_as_they_are(server: servers.Server, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    server.sql(f"CREATE DATABASE {quoted}")
    try:
        assert facts(server, name).name == name
    finally:
        server.sql(f"DROP DATABASE {quoted}")


@one_version
def test_only_some(server: servers.Server) -> None:
    oid = facts(server, "postgres").oid

    async def ask() -> tuple[ServerState, ServerState, dict[int, int]]:
        async with connected(server.address()) as connection:
            return (
                await survey(connection, only=[oid]),
                await survey(connection, only=[]),
                await sizes(connection, [oid, 4_000_000_000]),  # the second was dropped meanwhile
            )

    some, none, measured = run(ask())
    assert [each.name for each in some.databases] == ["postgres"]
    assert none.databases == ()
    assert measured.keys() == {oid}
