"""Runs whose examples want PostgreSQL: a server of their own, and one that is configured."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness import (
    IS_ROOT,
    NOBODY,
    Project,
    free_port,
    project,
    wait_gone,
    wait_lines,
    wait_until,
)
from servers import Server, running_server, some_binaries

CONNECT = """
import asyncio, asyncpg, os, sys

async def main():
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
"""
RUN = "\nasyncio.run(main())\n"


def script(body: str) -> str:
    """Make an example that connects as its environment says, and goes on with `body`."""
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return f"{CONNECT}{lines}{RUN}"


@pytest.fixture
def place() -> Iterator[Project]:
    with project() as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(some_binaries()) as running:
        yield running


@pytest.fixture
def untouched(server: Server) -> Iterator[Server]:
    """Check that a test leaves the databases and roles of the server as they were."""

    def state() -> list[str]:
        return server.sql(
            "SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles ORDER BY 1"
        )

    before = state()
    yield server
    assert state() == before


def folders_of(place: Project) -> list[Path]:
    """List what the runs of a project have left where temporary folders are made."""
    runs = [run.name for run in place.root.glob(".e2e-run/runs/*")]
    return [
        found
        for parent in ("/dev/shm", "/tmp")
        for run in runs
        for found in Path(parent).glob(f"*{run}*")
    ]


# --- embedded ------------------------------------------------------------------------------------


def test_each_example_has_a_server_of_its_own(place: Project) -> None:
    for name in ("one", "two"):
        place.write(
            f"examples/{name}.py",
            script(
                """
assert await connection.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = 'app'") == 0
await connection.execute("CREATE ROLE app LOGIN")
await connection.execute("ALTER SYSTEM SET work_mem = '1MB'")
await connection.execute("CREATE TABLE users (email text UNIQUE)")
await connection.execute("INSERT INTO users VALUES ('maria@example.com')")
print(await connection.fetchval("SELECT system_identifier FROM pg_control_system()"))
"""
            ),
        )
    done = place.run("-v")
    assert done.statuses == {"examples/one.py": "passed", "examples/two.py": "passed"}
    assert done.code == 0
    assert "PostgreSQL: embedded, a server for each of 2 examples" in done.stdout
    assert folders_of(place) == []


def test_a_script_is_told_of_its_server_in_every_usual_way(place: Project) -> None:
    place.write(
        "examples/told.py",
        """
import asyncio, asyncpg, os
from urllib.parse import urlsplit

async def main():
    url = urlsplit(os.environ["DATABASE_URL"])
    assert (url.hostname, str(url.port)) == (os.environ["PGHOST"], os.environ["PGPORT"])
    assert (url.username, url.password) == (os.environ["PGUSER"], os.environ["PGPASSWORD"])
    assert url.path == "/" + os.environ["PGDATABASE"]
    connection = await asyncpg.connect()  # by PG* alone
    assert await connection.fetchval("SELECT current_database()") == os.environ["PGDATABASE"]
    assert "test" in os.environ["PGDATABASE"]
    assert os.environ["DB_ADDRESS"] == f"{url.hostname}:{url.port}"
    assert not any("production" in value for value in os.environ.values())
    assert "PGSSLMODE" not in os.environ

asyncio.run(main())
""",
    )
    config = place.root / "e2e-run.toml"
    config.write_text(config.read_text() + '[postgres]\nenv = { DB_ADDRESS = "{host}:{port}" }\n')
    done = place.run(
        env={
            "DATABASE_URL": "postgresql://app:secret@production.example/shop",
            "PGHOST": "production.example",
            "PGSSLMODE": "verify-full",
            "PGTARGETSESSIONATTRS": "read-only",
            "DB_ADDRESS": "production.example:5432",
            "SQLALCHEMY_DATABASE_URI": "postgresql+psycopg2://app@production.example/shop",
        }
    )
    assert done.statuses == {"examples/told.py": "passed"}, done.stdout
    [line] = [line for line in done.stdout.splitlines() if "kept from the examples" in line]
    assert "DATABASE_URL" in line
    assert "--postgres env" in line
    assert "secret" not in done.stdout


def test_the_application_address_reaches_no_example_at_all(place: Project) -> None:
    place.write(
        "examples/plain.sh",
        'test -z "$DATABASE_URL$PGHOST" || { env | grep -E "^(DATABASE_URL|PG)"; exit 1; }\n',
    )
    place.write("e2e-run.toml", (place.root / "e2e-run.toml").read_text() + 'include = ["*.sh"]\n')
    place.write(
        "examples/none.py", "import os\nassert 'PGHOST' not in dict(os.environ)\nprint(1)\n"
    )
    extra = {"DATABASE_URL": "postgresql://production.example/shop", "PGHOST": "production.example"}
    done = place.run("--postgres", "off", env=extra)
    assert set(done.statuses.values()) == {"passed"}, done.stdout


def test_a_database_left_behind_is_named(place: Project) -> None:
    place.write(
        "examples/leaks.py",
        script("await connection.execute('CREATE DATABASE fullon2_test_ab12cd34')"),
    )
    done = place.run()
    example = done.examples["examples/leaks.py"]
    assert example["status"] == "leaked"
    assert [leak["name"] for leak in example["leaks"]] == ["fullon2_test_ab12cd34"]
    assert example["leaks"][0]["kind"] == "database"
    assert done.code == 0
    assert place.run("--strict").code == 1


def test_a_script_may_make_its_own_database_anew(place: Project) -> None:
    place.write(
        "examples/resets.py",
        script(
            """
name = os.environ["PGDATABASE"]
await connection.close()
admin = await asyncpg.connect(database="postgres")
await admin.execute(f'DROP DATABASE "{name}"')
await admin.execute(f'CREATE DATABASE "{name}"')
"""
        ),
    )
    assert place.run("--strict").statuses == {"examples/resets.py": "passed"}


def test_the_command_to_run_by_hand_leads_to_no_production(place: Project) -> None:
    place.write("examples/fails.py", "raise SystemExit(1)\n")
    done = place.run(env={"DATABASE_URL": "postgresql://production.example/shop"})
    command = done.examples["examples/fails.py"]["command"]
    assert "env -u DATABASE_URL ./" in command or "env -u DATABASE_URL ../" in command, command


def test_what_a_companion_alone_is_told_reaches_no_other_example(place: Project) -> None:
    port = free_port()
    place.write(
        "examples/_server.py",
        f"""
# /// script
# [tool.e2e-run]
# serve = "tcp://127.0.0.1:{port}"
# databases = {{ svc = {{ env = "SVC_NAME" }} }}
# ///
import os, socket
assert os.environ["SVC_NAME"].startswith("test_e2e_")
server = socket.create_server(("127.0.0.1", {port}))
while True:
    server.accept()
""",
    )
    place.write(
        "examples/a.py",
        '# /// script\n# [tool.e2e-run]\n# needs = ["_server.py"]\n# ///\nprint("hello")\n',
    )
    place.write("examples/b.py", "import os\nassert 'SVC_NAME' not in dict(os.environ)\nprint(1)\n")
    done = place.run(env={"SVC_NAME": "production"})
    assert done.statuses == {"examples/a.py": "passed", "examples/b.py": "passed"}, done.stdout


def test_a_script_may_stop_its_own_server(place: Project) -> None:
    place.write(
        "examples/stops.py",
        script(
            """
pid = int(await connection.fetchval("SELECT split_part(pg_read_file('postmaster.pid'), E'\\\\n', 1)"))
os.kill(pid, 2)
await asyncio.wait_for(gone(connection), 20)
"""
        ).replace(
            "async def main():",
            "async def gone(connection):\n"
            "    event = asyncio.Event()\n"
            "    connection.add_termination_listener(lambda _: event.set())\n"
            "    await event.wait()\n\n"
            "async def main():",
        ),
    )
    place.write("examples/then.py", script("assert await connection.fetchval('SELECT 1') == 1"))
    done = place.run()
    assert done.statuses == {"examples/stops.py": "passed", "examples/then.py": "passed"}, (
        done.stdout
    )
    assert (
        "warning: examples/stops.py: Whether it left databases behind is not known" in done.stdout
    )
    assert folders_of(place) == []


def test_named_databases_are_filled_once_and_fresh_for_each(place: Project) -> None:
    place.write("sql/schema.sql", "CREATE TABLE users (id serial, email text UNIQUE);\n")
    place.write("sql/data.sql", "INSERT INTO users (email) VALUES ('maria@example.com');\n")
    place.write(
        "fill.sh",
        'test "$(command -v "${PYTHON##*/}")" = "$PYTHON" || exit 9\necho filled >> filled.txt; psql -qc "CREATE TABLE candles (at int)"\n',
    )
    psql = some_binaries() / "psql"
    config = (place.root / "e2e-run.toml").read_text()
    place.write(
        "e2e-run.toml",
        f"""{config}
[databases]
orm = {{ env = ["DB_NAME", "DB_TEST_NAME"], template = ["sql/schema.sql", "sql/data.sql"] }}
ohlcv = {{ env = "DB_OHLCV_NAME", suffix = "_ohlcv", command = "bash fill.sh" }}
""",
    )
    body = """
import asyncio, asyncpg, os

async def main():
    assert os.environ["DB_NAME"] == os.environ["DB_TEST_NAME"] == os.environ["PGDATABASE"]
    assert os.environ["DB_OHLCV_NAME"] == os.environ["DB_NAME"] + "_ohlcv"
    orm = await asyncpg.connect(database=os.environ["DB_NAME"])
    assert await orm.fetchval("SELECT count(*) FROM users") == 1
    await orm.execute("INSERT INTO users (email) VALUES ('fixed@example.com')")
    await orm.execute("ALTER TABLE users ADD COLUMN age int")
    ohlcv = await asyncpg.connect(database=os.environ["DB_OHLCV_NAME"])
    assert await ohlcv.fetchval("SELECT count(*) FROM candles") == 0
    await ohlcv.execute("INSERT INTO candles VALUES (1)")

asyncio.run(main())
"""
    place.write("examples/one.py", body)
    place.write("examples/two.py", body)
    path = {
        "PATH": f"{psql.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": str(place.python),
    }
    done = place.run(env=path)
    assert done.statuses == {"examples/one.py": "passed", "examples/two.py": "passed"}, done.stdout
    assert (place.root / "filled.txt").read_text() == "filled\n"


def test_a_template_that_cannot_be_filled_blocks_those_that_need_it(place: Project) -> None:
    place.write("schema.sql", "CREATE TABLE a (x int);\nCREATE TABEL b (x int);\n")
    config = (place.root / "e2e-run.toml").read_text()
    place.write(
        "e2e-run.toml", f'{config}\n[databases]\norm = {{ env = "DB", template = "schema.sql" }}\n'
    )
    place.write("examples/needs.py", script("pass"))
    place.write(
        "examples/needs_none.py",
        "# /// script\n# [tool.e2e-run]\n# databases = []\n# postgres = true\n# ///\n"
        + script("await connection.execute('CREATE TABLE t (x int)')"),
    )
    done = place.run()
    assert done.statuses == {"examples/needs.py": "blocked", "examples/needs_none.py": "passed"}, (
        done.stdout
    )
    blocked = done.examples["examples/needs.py"]
    assert blocked["cause"] == "database"
    assert "schema.sql" in blocked["reason"]
    assert "TABEL" in blocked["reason"]
    assert done.code == 3


def test_a_run_without_postgresql_loads_no_driver_and_starts_nothing(place: Project) -> None:
    place.write("examples/plain.py", "print('hello')\n")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "e2e_runner", "-q"],
        cwd=place.root,
        env=place.environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "asyncpg" not in loaded
    assert not any(name.startswith("e2e_runner.postgres") for name in loaded)
    assert "e2e_runner.engine" in loaded


def test_a_companion_shares_the_databases_of_its_example(place: Project) -> None:
    port = free_port()
    place.write(
        "examples/_server.py",
        f"""
# /// script
# [tool.e2e-run]
# serve = "tcp://127.0.0.1:{port}"
# ///
import asyncio, asyncpg, os

async def main():
    connection = await asyncpg.connect()
    await connection.execute("CREATE TABLE made_by_companion (x int)")
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", {port})
    await server.serve_forever()

asyncio.run(main())
""",
    )
    place.write(
        "examples/client.py",
        '# /// script\n# [tool.e2e-run]\n# needs = ["_server.py"]\n# ///\n'
        + script("await connection.execute('INSERT INTO made_by_companion VALUES (1)')"),
    )
    done = place.run("examples/client.py")
    assert done.statuses == {"examples/client.py": "passed"}, done.stdout


def test_databases_of_a_failed_example_are_kept_when_asked(place: Project) -> None:
    place.write(
        "examples/fails.py",
        script("await connection.execute('CREATE TABLE evidence (x int)')\nsys.exit(1)"),
    )
    place.write("examples/passes.py", script("pass"))
    done = place.run("--keep-databases")
    assert done.statuses == {"examples/fails.py": "failed", "examples/passes.py": "passed"}
    [line] = [line for line in done.stdout.splitlines() if "e2e-run postgres" in line]
    folder = place.root / line.split("e2e-run postgres ")[1].strip()
    assert (folder / "PG_VERSION").exists() or list(folder.glob("*/PG_VERSION"))
    assert len(list(place.root.glob(".e2e-run/runs/*/examples/*.postgres"))) == 1


def test_one_embedded_server_for_the_run(place: Project) -> None:
    for name in ("one", "two"):
        place.write(
            f"examples/{name}.py",
            script(
                f"""
await connection.execute("CREATE TABLE users (x int)")
await connection.execute("CREATE DATABASE left_by_{name}")
"""
            ),
        )
    config = (place.root / "e2e-run.toml").read_text()
    place.write("e2e-run.toml", f'{config}[postgres]\nscope = "run"\n')
    done = place.run()
    assert set(done.statuses.values()) == {"leaked"}, done.stdout
    for name in ("one", "two"):
        leaks = done.examples[f"examples/{name}.py"]["leaks"]
        assert [leak["name"] for leak in leaks] == [f"left_by_{name}"]
    assert "embedded, one server for 2 examples" in done.stdout


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
def test_an_ordinary_user_has_embedded_servers_too() -> None:
    with project(user=NOBODY) as place:
        place.write("examples/one.py", script("await connection.execute('CREATE TABLE t (x int)')"))
        done = place.run(env={"HOME": str(place.root)})
        assert done.statuses == {"examples/one.py": "passed"}, done.stdout
        assert folders_of(place) == []


# --- the run ends early ---------------------------------------------------------------------------


WAITS = script(
    """
await connection.execute("CREATE DATABASE left_open")
pid = await connection.fetchval("SELECT pg_backend_pid()")
async with connection.transaction():
    await connection.execute("CREATE TABLE half (x int)")
    with open(os.environ["READY"], "w") as ready:
        ready.write(f"{pid}\\n")
    await asyncio.sleep(3600)
"""
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_embedded_servers_die_with_the_run(place: Project, number: signal.Signals) -> None:
    place.write("examples/waits.py", WAITS)
    ready = place.root / "ready"
    with place.running(env={"READY": str(ready)}) as running:
        [pid] = wait_lines(ready)
        backend = psutil.Process(int(pid))
        servers = [backend, *backend.parents()[:1], *running.offspring()]
        running.process.send_signal(number)
        done = running.outcome()
        wait_gone(servers)
    if number is not signal.SIGKILL:
        assert done.code == 128 + number
        assert done.statuses == {"examples/waits.py": "not-run"}
    wait_until(lambda: not folders_of(place), "the folders were gone")
    assert place.survivors() == []


# --- a configured server -------------------------------------------------------------------------


def test_on_a_configured_server_leaks_are_attributed_and_dropped(
    place: Project, untouched: Server
) -> None:
    for name in ("one", "two"):
        leaked = f'"left by ""{name}"""'
        place.write(
            f"examples/{name}.py",
            script(
                f"""
await connection.execute("CREATE TABLE users (email text UNIQUE)")
await connection.execute("INSERT INTO users VALUES ('maria@example.com')")
await connection.execute('CREATE DATABASE ' + {leaked!r})
"""
            ),
        )
    place.write("examples/tidy.py", script("await connection.execute('CREATE TABLE t (x int)')"))
    done = place.run("--postgres", untouched.url())
    assert done.statuses == {
        "examples/one.py": "leaked",
        "examples/tidy.py": "passed",
        "examples/two.py": "leaked",
    }, done.stdout
    for name in ("one", "two"):
        [leak] = done.examples[f"examples/{name}.py"]["leaks"]
        assert leak["name"] == f'left by "{name}"'
        assert leak["doubt"] is None
        assert leak["kept"] is None
    assert str(untouched.address()) in done.stdout


def test_the_url_in_the_configuration_and_in_the_environment(
    place: Project, untouched: Server
) -> None:
    place.write(
        "examples/one.py",
        script(f"assert os.environ['PGPORT'] == '{untouched.port}', os.environ['PGPORT']"),
    )
    assert place.run(env={"E2E_RUN_POSTGRES": untouched.url()}).code == 0
    done = place.run("--postgres", "env", env={"DATABASE_URL": untouched.url()})
    assert done.code == 0
    assert "kept from the examples" not in done.stdout
    assert place.run("--postgres", "embedded", env={"DATABASE_URL": untouched.url()}).code == 1
    config = (place.root / "e2e-run.toml").read_text()
    place.write("e2e-run.toml", f'{config}[postgres]\nurl = "{untouched.url()}"\n')
    assert place.run().code == 0


def test_a_server_that_is_not_there_blocks_those_that_want_it(place: Project) -> None:
    place.write("examples/one.py", script("pass"))
    place.write("examples/plain.py", "print('hello')\n")
    done = place.run("--postgres", f"postgresql://maria:hidden@127.0.0.1:{free_port()}/shop")
    assert done.statuses == {"examples/one.py": "blocked", "examples/plain.py": "passed"}
    assert done.code == 3
    blocked = done.examples["examples/one.py"]
    assert blocked["cause"] == "database"
    assert "cannot be reached" in blocked["reason"]
    assert any("--postgres embedded" in hint for hint in blocked["hints"])
    assert "hidden" not in done.stdout


def test_a_server_that_goes_away_in_the_middle_blocks_the_rest(place: Project) -> None:
    place.write("examples/a_first.py", script("pass"))
    place.write(
        "examples/b_kills.py",
        "import os\nprint('imports asyncpg not')\nos.kill(int(os.environ['SERVER']), 3)\n",
    )
    place.write("examples/c_last.py", script("pass"))
    with running_server(some_binaries()) as server:
        done = place.run("--postgres", server.url(), env={"SERVER": str(server.pid)})
    assert done.statuses["examples/a_first.py"] == "passed"
    assert done.statuses["examples/b_kills.py"] == "passed"
    assert done.statuses["examples/c_last.py"] in {"blocked", "failed"}
    assert done.code in {1, 3}


def test_after_sigkill_the_next_run_cleans_up(place: Project, untouched: Server) -> None:
    place.write("examples/waits.py", WAITS)
    place.write("examples/passes.py", script("pass"))
    ready = place.root / "ready"
    with place.running(
        "--postgres", untouched.url(), "examples/waits.py", env={"READY": str(ready)}
    ) as running:
        wait_lines(ready)
        offspring = running.offspring()
        running.process.kill()
        running.process.wait()
        wait_gone(offspring)
    assert "left_open" in untouched.databases()
    done = place.run("--postgres", untouched.url(), "examples/passes.py")
    assert done.code == 0, done.stdout
    assert "left_open" not in untouched.databases()


def test_two_runs_on_one_server_lose_nothing_that_is_alive(
    place: Project, untouched: Server
) -> None:
    place.write(
        "examples/waits.py",
        script(
            """
await connection.execute("CREATE TABLE precious (x int)")
await connection.execute("CREATE DATABASE fullon2_test_alive")
with open(os.environ["READY"], "w") as ready:
    ready.write("ready\\n")
await asyncio.get_running_loop().run_in_executor(None, lambda: open(os.environ["GO"]).read())
await connection.execute("INSERT INTO precious VALUES (1)")
await connection.execute("DROP DATABASE fullon2_test_alive")
"""
        ),
    )
    place.write("examples/other.py", script("await connection.execute('CREATE TABLE t (x int)')"))
    ready, go = place.root / "ready", place.root / "go"
    os.mkfifo(go)
    with place.running(
        "--postgres",
        untouched.url(),
        "examples/waits.py",
        env={"READY": str(ready), "GO": str(go)},
    ) as running:
        wait_lines(ready)
        other = place.run("--postgres", untouched.url(), "examples/other.py")
        swept = subprocess.run(
            place.command(
                "sweep-dbs",
                "--postgres",
                untouched.url(),
                "--yes",
                "--json",
                "--pattern",
                "fullon2_test_*",
            ),
            cwd=place.root,
            env=place.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        go.write_text("go")
        done = running.outcome()
    assert other.code == 0, other.stdout
    assert swept.returncode == 0, swept.stderr
    assert json.loads(swept.stdout)
    assert done.statuses == {"examples/waits.py": "passed"}, done.stdout
