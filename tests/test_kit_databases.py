"""Scripts that make databases with the kit: by hand and under the runner, on every kind of server."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import (
    IS_ROOT,
    NOBODY,
    Outcome,
    Project,
    free_port,
    ordinary_python,
    project,
    wait_until,
)
from hypothesis import given
from hypothesis import strategies as st
from servers import Server, binaries, path_with, running_server, some_binaries

from e2e_runner.dbnames import MAX_NAME, is_given
from e2e_runner.kit import DatabasesUnavailable, databases
from e2e_runner.kit._environment import Environment
from e2e_runner.kit.isolation import IsolatedDatabase, IsolatedDatabases

PRODUCTION = {
    "DATABASE_URL": "postgresql://app:secret@production.example/shop",
    "PGHOSTADDR": "192.0.2.1",
    "PGSSLMODE": "verify-full",
    "SQLALCHEMY_DATABASE_URI": "postgresql+psycopg2://app@production.example/shop",
    "DB_NAME": "production",
}
CONFIG = """
[postgres]
env = { DB_ADDRESS = "{host}:{port}", DB_USER = "{user}", DB_OTHER = "{ohlcv}" }

[databases]
orm = { env = "DB_NAME", template = ["sql/schema.sql", "sql/data.sql"] }
ohlcv = { env = "DB_OHLCV_NAME", suffix = "_ohlcv", command = "sh fill.sh" }
"""
# What the stories ask a server with, in synchronous and asynchronous ones.
TOOLS = """
import asyncio, asyncpg, json, os, sys
from concurrent.futures import ThreadPoolExecutor

def value(url, statement):
    async def ask():
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(ask())).result()

def say(**facts):
    print(json.dumps(facts), flush=True)
"""
WAYS = ["with", "async with"]


def indented(text: str, depth: int) -> str:
    return "".join(f"{' ' * depth}{line}\n" for line in text.strip().splitlines())


def story(body: str, *, way: str = "with", names: str = "'orm', 'ohlcv'", after: str = "") -> str:
    """Make a script whose block holds `body`, and which goes on with `after`."""
    head = "from tools import *\nfrom e2e_runner.kit import databases, DatabasesUnavailable\n"
    if way == "with":
        return f"{head}with databases({names}) as dbs:\n{indented(body, 4)}{after}\n"
    return (
        f"{head}async def main():\n    async with databases({names}) as dbs:\n"
        f"{indented(body, 8)}{indented(after, 4)}\nasyncio.run(main())\n"
    )


@pytest.fixture
def place() -> Iterator[Project]:
    with project() as made:
        yield prepared(made)


def prepared(place: Project) -> Project:
    place.write("e2e-run.toml", (place.root / "e2e-run.toml").read_text() + CONFIG)
    place.write("sql/schema.sql", "CREATE TABLE users (email text UNIQUE);\n")
    place.write("sql/data.sql", "INSERT INTO users VALUES ('maria@example.com');\n")
    place.write("fill.sh", f'exec "{place.python}" fill.py\n')
    place.write(
        "fill.py",
        "import asyncio, asyncpg\nasync def main():\n    connection = await asyncpg.connect()\n"
        "    await connection.execute('CREATE TABLE candles AS SELECT generate_series(1, 9)')\n"
        "asyncio.run(main())\n",
    )
    place.write("tools.py", TOOLS)
    place.write("examples/tools.py", TOOLS)
    temporary = place.root / "tmp"
    temporary.mkdir()
    if place.user is not None:
        os.chown(temporary, place.user, place.user)
    return place


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(some_binaries()) as running:
        running.sql("CREATE ROLE maker LOGIN CREATEDB CREATEROLE")
        running.sql("CREATE ROLE plain LOGIN CREATEDB")
        running.sql("CREATE ROLE nobody_special LOGIN")
        running.sql("GRANT nobody_special TO plain")  # who may make databases for it
        yield running


@pytest.fixture
def untouched(server: Server) -> Iterator[Server]:
    """Check that a test leaves the databases and roles of the server as they were."""
    before = (server.databases(), server.roles())
    yield server
    assert (server.databases(), server.roles()) == before


def environment(place: Project, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    usual = {"TMPDIR": str(place.root / "tmp"), "HOME": str(place.root), "XDG_CACHE_HOME": ""}
    if place.user is None:
        usual.pop("HOME")  # where the cluster that is copied is cached
        usual.pop("XDG_CACHE_HOME")
    return place.environment({**usual, **(extra or {})})


def start(
    place: Project, *words: str, env: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start a script of the project by hand."""
    who: dict[str, Any] = {}
    if place.user is not None:
        who = {"user": place.user, "group": place.user, "extra_groups": []}
    return subprocess.Popen(
        [str(place.python), "-W", "default", *words],  # which tells of what was not closed
        cwd=place.root,
        env=environment(place, env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        **who,
    )


def finish(process: "subprocess.Popen[str]") -> Outcome:
    stdout, stderr = process.communicate(timeout=100)
    return Outcome(code=process.returncode, stdout=stdout, stderr=stderr)


def by_hand(place: Project, *words: str, env: Mapping[str, str] | None = None) -> Outcome:
    """Run a script of the project by hand, and see that nothing of it is left."""
    with start(place, *words, env=env) as process:
        done = finish(process)
    assert left_of(place) == []
    return done


def said(done: Outcome) -> list[dict[str, Any]]:
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def left_of(place: Project) -> list[str]:
    """Name the processes and the temporary folders that scripts run by hand have left."""
    folders = [path.name for path in (place.root / "tmp").iterdir()]
    for mark in Path("/dev/shm").glob("e2e-run-*/*"):
        with contextlib.suppress(OSError):
            if mark.is_file() and str(place.root) in mark.read_text(errors="replace"):
                folders.append(str(mark.parent))
    return [*folders, *(str(process) for process in place.survivors())]


def does_not_answer(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


# --- the environment ------------------------------------------------------------------------------

names = st.sampled_from(["E2E_TEST_A", "E2E_TEST_B", "E2E_TEST_C"])
tables = st.dictionaries(names, st.none() | st.text("xyz", max_size=2), max_size=3)


@given(base=tables, layers=st.lists(tables, min_size=1, max_size=5), data=st.data())
def test_layers_of_the_environment_are_undone_in_any_order(
    base: dict[str, str | None], layers: list[dict[str, str | None]], data: st.DataObject
) -> None:
    environ = Environment()
    # The case may be broken off wherever something is drawn: what is open then is undone all the same.
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as all_:
        for name in ("E2E_TEST_A", "E2E_TEST_B", "E2E_TEST_C"):
            patch.delenv(name, raising=False)
        for name, value in base.items():
            if value is not None:
                patch.setenv(name, value)
        before = dict(os.environ)
        open_: list[tuple[dict[str, str | None], contextlib.ExitStack]] = []
        waiting = list(layers)
        while waiting or open_:
            if waiting and (not open_ or data.draw(st.booleans())):
                layer = waiting.pop()
                stack = all_.enter_context(contextlib.ExitStack())
                stack.enter_context(environ.layer(layer))
                open_.append((layer, stack))
            else:
                open_.pop(data.draw(st.integers(0, len(open_) - 1)))[1].close()
            expected: dict[str, str | None] = {**before}
            for layer, _ in open_:
                expected |= layer
            assert dict(os.environ) == {k: v for k, v in expected.items() if v is not None}
            assert environ.without_layers() == before
        assert dict(os.environ) == before


class Vanishing(dict[bytes, bytes]):
    """What `os.environ` holds; a variable is unset once its name was read, as by another thread."""

    def __iter__(self) -> Iterator[bytes]:
        names = list(super().__iter__())
        self.pop(b"E2E_TEST_A", None)
        return iter(names)


def test_a_variable_that_is_unset_meanwhile_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2E_TEST_B", "b")
    before = dict(os.environ)
    held = Vanishing({os.fsencode(k): os.fsencode(v) for k, v in before.items()})
    held[b"E2E_TEST_A"] = b"a"
    monkeypatch.setattr(os.environ, "_data", held)
    assert Environment().without_layers() == before
    assert b"E2E_TEST_A" not in held


def test_a_variable_that_stays_is_never_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2E_TEST_A", "base")
    unset: list[object] = []
    monkeypatch.setattr(os, "unsetenv", unset.append)
    environ = Environment()
    seen = []
    with environ.layer({"E2E_TEST_A": "1"}):
        with environ.layer({"E2E_TEST_A": "2"}):
            seen.append(os.environ["E2E_TEST_A"])
        seen.append(os.environ["E2E_TEST_A"])
    assert (*seen, os.environ["E2E_TEST_A"]) == ("2", "1", "base")
    assert unset == []


# --- names and values ----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["", "a\0b", "a\nb", "\ud800"])
def test_names_that_cannot_be(wrong: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a database"):
        databases(wrong)


def test_a_name_is_asked_for_once() -> None:
    with pytest.raises(ValueError, match="named twice: a, b, a"):
        databases("a", "b", "a")


@pytest.mark.parametrize("wrong", [["a", "b"], 5, None, b"a"])
def test_a_name_is_a_text(wrong: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^databases\(.*\): names are texts, one after the other, as"
    ):
        databases(wrong)


def test_what_a_block_gives_is_a_mapping_that_hides_passwords() -> None:
    one = IsolatedDatabase(
        name="one",
        host="h",
        port=1,
        user="u",
        password="hidden",  # noqa: S106 - of nobody
        url="postgresql://u:hidden@h/one",
    )
    found = IsolatedDatabases({"a": one, "b": one})
    assert (list(found), len(found), found["a"], found.first) == (["a", "b"], 2, one, one)
    assert "hidden" not in repr(found)
    with pytest.raises(KeyError, match="'c' is no database of this block, which has 'a', 'b'"):
        found["c"]
    assert found.get("c") is None
    assert "c" not in found


# --- by hand, on a server of its own --------------------------------------------------------------

CHECKED = """
import application  # which reads the environment at import
assert application.NAME == dbs["orm"].name == os.environ["PGDATABASE"], application.NAME
assert os.environ["DB_OHLCV_NAME"] == dbs["ohlcv"].name == os.environ["DB_OTHER"]
assert os.environ["DB_ADDRESS"] == f"{dbs['orm'].host}:{dbs['orm'].port}"
assert os.environ["DATABASE_URL"] == dbs["orm"].url == dbs.first.url
assert (os.environ["PGUSER"], os.environ.get("PGPASSWORD")) == (dbs["orm"].user, dbs["orm"].password)
assert value(dbs["orm"].url, "SELECT count(*) FROM users") == 1
assert value(dbs["ohlcv"].url, "SELECT count(*) FROM candles") == 9
assert value(None, "SELECT current_database()") == dbs["orm"].name  # by PG* alone
assert not any("production" in each for each in os.environ.values())
assert "PGHOSTADDR" not in os.environ and "PGSSLMODE" not in os.environ
say(name=dbs["orm"].name, port=dbs["orm"].port)
"""


@pytest.mark.parametrize("which", ["system", "wheel"])
@pytest.mark.parametrize("way", WAYS)
def test_by_hand_a_server_comes_and_goes_with_the_block(
    place: Project, way: str, which: str
) -> None:
    place.write("application.py", "import os\nNAME = os.environ['DB_NAME']\n")
    place.write(
        "story.py",
        "import os\nbefore = dict(os.environ)\n"
        + story(CHECKED, way=way, after="assert dict(os.environ) == before"),
    )
    env = PRODUCTION | {"PATH": path_with(binaries(which))}
    [facts] = said(by_hand(place, "story.py", env=env))
    assert is_given(facts["name"])
    assert does_not_answer(facts["port"])


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
def test_by_hand_an_ordinary_user_has_one_too() -> None:
    if ordinary_python() is None:
        pytest.skip("no interpreter here can be run by an ordinary user")
    with project(user=NOBODY) as made:
        place = prepared(made)
        place.write("application.py", "import os\nNAME = os.environ['DB_NAME']\n")
        place.write("story.py", story(CHECKED))
        [facts] = said(by_hand(place, "story.py", env=PRODUCTION))
        assert does_not_answer(facts["port"])


@pytest.mark.parametrize("way", WAYS)
def test_an_exception_in_the_block_is_the_one_that_is_seen(place: Project, way: str) -> None:
    before = "import os\nbefore = dict(os.environ)\n"
    caught = story("raise LookupError('no such order')", way=way)
    place.write(
        "story.py",
        f"{before}try:\n{indented(caught, 4)}finally:\n    assert dict(os.environ) == before\n",
    )
    done = by_hand(place, "story.py", env=PRODUCTION)
    assert done.code == 1
    assert done.stderr.endswith("LookupError: no such order\n")
    assert "During handling" not in done.stderr
    assert "direct cause" not in done.stderr


def test_blocks_within_each_other_have_databases_of_their_own(place: Project) -> None:
    body = """
value(dbs["orm"].url, "INSERT INTO users VALUES ('bob@example.com')")
with databases("orm") as inner:
    assert inner["orm"].url != dbs["orm"].url
    assert os.environ["DATABASE_URL"] == inner["orm"].url
    assert os.environ["DB_OHLCV_NAME"] == dbs["ohlcv"].name  # of which the inner one says nothing
    assert value(inner["orm"].url, "SELECT count(*) FROM users") == 1
    with databases("new") as third:
        assert value(third["new"].url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    assert os.environ["DATABASE_URL"] == inner["orm"].url
assert os.environ["DATABASE_URL"] == dbs["orm"].url
assert value(dbs["orm"].url, "SELECT count(*) FROM users") == 2
"""
    place.write(
        "story.py",
        "import os\nbefore = dict(os.environ)\n"
        + story(body, after="say(same=dict(os.environ) == before)"),
    )
    assert said(by_hand(place, "story.py", env=PRODUCTION)) == [{"same": True}]


CONCURRENT = """
import asyncio, os
from tools import say
from e2e_runner.kit import databases

before = dict(os.environ)
before.pop("E2E_RUN_DATABASES", None)

async def one(ready, release):
    async with databases("orm") as dbs:
        ready.set()
        await release.wait()
        return dbs["orm"].url

async def main():
    events = [(asyncio.Event(), asyncio.Event()) for _ in range(3)]
    tasks = [asyncio.create_task(one(*each)) for each in events]
    for ready, _ in events:
        await ready.wait()
    for _, release in events:  # the first that was entered is left first
        release.set()
    urls = await asyncio.gather(*tasks)
    after = dict(os.environ)
    after.pop("E2E_RUN_DATABASES", None)
    assert after == before
    say(urls=len(set(urls)))

asyncio.run(main())
"""


def test_blocks_at_the_same_time_have_databases_of_their_own(place: Project) -> None:
    place.write("story.py", CONCURRENT)
    assert said(by_hand(place, "story.py")) == [{"urls": 3}]


def test_two_scripts_at_once(place: Project, untouched: Server) -> None:
    place.write("story.py", story("say(name=dbs['orm'].name)\nsys.stdin.read()"))
    for env in ({}, {"E2E_RUN_POSTGRES": untouched.url()}):
        with contextlib.ExitStack() as stack:
            both = [stack.enter_context(start(place, "story.py", env=env)) for _ in range(2)]
            done = [finish(process) for process in both]
        first, second = (said(each)[0]["name"] for each in done)
        assert first != second
        assert left_of(place) == []


def test_without_a_file_the_configuration_of_the_working_directory_counts(place: Project) -> None:
    place.write(
        "story.py",
        story("say(names=list(dbs), orm=os.environ['DB_NAME'] == dbs['orm'].name)", names=""),
    )
    code = (place.root / "story.py").read_text()
    expected = [{"names": ["orm", "ohlcv"], "orm": True}]
    assert said(by_hand(place, "-c", code)) == expected
    assert said(by_hand(place, "story.py")) == expected


def test_without_any_configuration_there_is_one_database(place: Project) -> None:
    (place.root / "e2e-run.toml").unlink()
    place.write(
        "story.py",
        story("say(names=list(dbs), same=dbs[''].url == os.environ['DATABASE_URL'])", names=""),
    )
    assert said(by_hand(place, "story.py")) == [{"names": [""], "same": True}]


def test_metadata_and_overrides_of_the_script_count(place: Project) -> None:
    config = place.root / "e2e-run.toml"
    config.write_text(
        f'{config.read_text()}\n[[overrides]]\nmatch = "examples/story.py"\n'
        'databases = { orm = { env = "OTHER_NAME" } }\n'
    )
    body = "say(names=list(dbs), other=os.environ.get('OTHER_NAME') == dbs.first.name)"
    place.write("examples/story.py", story(body, names=""))
    assert said(by_hand(place, "examples/story.py")) == [{"names": ["orm"], "other": True}]
    metadata = '# /// script\n# [tool.e2e-run]\n# databases = ["ohlcv"]\n# ///\n'
    place.write("examples/story.py", metadata + story(body, names=""))
    assert said(by_hand(place, "examples/story.py")) == [{"names": ["ohlcv"], "other": False}]


LONG = "x" * 63
ODD = ["we \"quote\" and \\ 'it'", "Ünïcödé 数据库 🐘", LONG, f"{LONG}y", "%s {0} $1"]


@pytest.mark.parametrize("where", ["by hand", "configured"])
def test_names_of_any_kind(place: Project, untouched: Server, where: str) -> None:
    place.write(
        "story.py",
        story(
            "say(names=[each.name for each in dbs.values()], same=all("
            "value(each.url, 'SELECT current_database()') == each.name for each in dbs.values()))",
            names=", ".join(map(repr, ODD)),
        ),
    )
    env = {} if where == "by hand" else {"E2E_RUN_POSTGRES": untouched.url()}
    [facts] = said(by_hand(place, "story.py", env=env))
    assert facts["same"]
    assert len(set(facts["names"])) == len(ODD)
    assert all(len(name.encode()) <= MAX_NAME and is_given(name) for name in facts["names"])


# --- by hand, on a configured server ---------------------------------------------------------------


@pytest.mark.parametrize("user", ["postgres", "maker", "plain"])
@pytest.mark.parametrize("way", WAYS)
def test_by_hand_on_a_configured_server(
    place: Project, untouched: Server, user: str, way: str
) -> None:
    place.write("application.py", "import os\nNAME = os.environ['DB_NAME']\n")
    place.write("story.py", story(CHECKED, way=way))
    env = PRODUCTION | {"E2E_RUN_POSTGRES": untouched.url(user=user)}
    [facts] = said(by_hand(place, "story.py", env=env))
    assert facts["port"] == untouched.port


def test_by_hand_the_variables_of_the_application_count_when_asked(
    place: Project, untouched: Server
) -> None:
    place.write(
        "story.py",
        story(
            "with databases('orm') as inner:\n"
            "    say(ports=[dbs.first.port, inner.first.port], users=dbs.first.user != 'postgres')"
        ),
    )
    env = {"E2E_RUN_POSTGRES": "env", "DATABASE_URL": untouched.url()}
    assert said(by_hand(place, "story.py", env=env)) == [
        {"ports": [untouched.port] * 2, "users": True}
    ]


def test_what_the_script_drops_itself_is_no_error(place: Project, untouched: Server) -> None:
    body = """
admin = dbs["ohlcv"].url.rpartition("/")[0] + "/postgres"
value(admin, f'DROP DATABASE "{dbs["orm"].name}" WITH (FORCE)')
"""
    place.write("story.py", story(body))
    assert said(by_hand(place, "story.py")) == []
    assert said(by_hand(place, "story.py", env={"E2E_RUN_POSTGRES": untouched.url()})) == []


def test_sessions_that_are_open_do_not_keep_a_database(place: Project, untouched: Server) -> None:
    body = """
async def hold():
    return [await asyncpg.connect(each.url) for each in dbs.values()]
loop = asyncio.new_event_loop()
held = loop.run_until_complete(hold())
"""
    place.write("story.py", story(body, after="os._exit(0)"))
    done = by_hand(place, "story.py", env={"E2E_RUN_POSTGRES": untouched.url()})
    assert (done.code, done.stderr) == (0, "")


# --- what cannot be had ---------------------------------------------------------------------------


def unavailable(done: Outcome) -> str:
    """Give the text of the error that ended a script, which is the only one."""
    assert done.code == 1, done.stdout
    assert "During handling" not in done.stderr
    assert "direct cause" not in done.stderr
    assert "never retrieved" not in done.stderr
    # Of the kit's own ways the traceback shows the block alone.
    assert done.stderr.count("/e2e_runner/") <= 2, done.stderr  # enter, and value
    return done.stderr.rpartition("DatabasesUnavailable: ")[2]


def test_a_server_that_is_not_there(place: Project) -> None:
    place.write("story.py", story("say()"))
    url = f"postgresql://maria:hidden@127.0.0.1:{(port := free_port())}/shop"
    text = unavailable(by_hand(place, "story.py", env={"E2E_RUN_POSTGRES": url}))
    assert f"maria@127.0.0.1:{port}" in text
    assert "connection refused" in text
    assert "E2E_RUN_POSTGRES=embedded" in text
    assert "hidden" not in text


def test_no_programs_of_a_server(place: Project) -> None:
    hidden = "import e2e_runner.postgres.binaries as places\nplaces._PLACES = places._WHEELS = ()\n"
    place.write("story.py", hidden + story("say()"))
    text = unavailable(by_hand(place, "story.py", env={"PATH": str(place.root)}))
    assert "pip install" in text
    assert "E2E_RUN_POSTGRES=URL" in text


def test_a_user_who_may_make_no_databases(place: Project, untouched: Server) -> None:
    place.write("story.py", story("say()"))
    env = {"E2E_RUN_POSTGRES": untouched.url(user="nobody_special")}
    text = unavailable(by_hand(place, "story.py", env=env))
    assert "nobody_special may not create databases" in text
    assert "CREATEDB" in text


@pytest.mark.parametrize("where", ["embedded", "configured"])
def test_a_template_that_cannot_be_loaded(place: Project, untouched: Server, where: str) -> None:
    place.write("sql/data.sql", "INSERT INTO users VALUES (1);\nCREATE TABEL b (x int);\n")
    place.write("story.py", story("say()"))
    env = {} if where == "embedded" else {"E2E_RUN_POSTGRES": untouched.url()}
    text = unavailable(by_hand(place, "story.py", env=env))
    assert "sql/data.sql" in text
    assert "database 'orm'" in text
    assert 'syntax error at or near "TABEL"' in text
    assert "line 2" in text


@pytest.mark.parametrize("runner", [False, True])
def test_a_command_that_fails_is_quoted(place: Project, *, runner: bool) -> None:
    place.write("fill.sh", "echo connecting to $DB_OHLCV_NAME\necho no candles for 2026\nexit 3\n")
    place.write("examples/story.py", story("say()"))
    if runner:
        example = place.run("examples/story.py").examples["examples/story.py"]
        text = example["reason"]
        log = text.rpartition("; its output: ")[2].removesuffix(")")
        assert (place.root / log).read_text().endswith("no candles for 2026\n")
    else:
        text = unavailable(by_hand(place, "examples/story.py"))
        assert "its output" not in text  # it goes with the script
    assert "command of database 'ohlcv' (sh fill.sh): exit code 3: no candles for 2026" in text
    assert "its last lines: connecting to " in text


@pytest.mark.parametrize(
    ("env", "metadata", "words"),
    [
        ({"E2E_RUN_POSTGRES": "off"}, "", "wants no PostgreSQL"),
        ({}, "postgres = false", "postgres = false"),
        ({}, "timeout = 'soon'", "timeout: 'soon' is not a duration"),
        ({"E2E_RUN_POSTGRES": "env"}, "", "neither DATABASE_URL nor PGHOST"),
        ({"E2E_RUN_DATABASES": "nonsense"}, "", "E2E_RUN_DATABASES cannot be read"),
        ({"E2E_RUN": "1"}, "", "leave out --postgres off"),
    ],
)
def test_what_the_configuration_rules_out(
    place: Project, env: dict[str, str], metadata: str, words: str
) -> None:
    head = f"# /// script\n# [tool.e2e-run]\n# {metadata}\n# ///\n" if metadata else ""
    place.write("story.py", head + story("say()"))
    assert words in unavailable(by_hand(place, "story.py", env=env))


@pytest.mark.parametrize("runner", [False, True])
def test_a_misspelt_name_is_an_error_and_another_one_an_empty_database(
    place: Project, *, runner: bool
) -> None:
    body = """
assert value(dbs["orm"].url, "SELECT count(*) FROM users") == 1
for name in "orn", "orm2", "archive":
    empty = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert value(dbs[name].url, empty) == 0
try:
    databases("archive", "ohclv").__enter__()
except DatabasesUnavailable as error:
    lines = str(error).splitlines()
    assert lines[0] == "'ohclv' is not defined; did you mean 'ohlcv'?", error
    assert lines[1] == "  Defined: 'ohlcv', 'orm'.", error
    assert lines[2].startswith("To fix this: write databases('ohlcv')"), error
else:
    raise SystemExit("it was there")
"""
    place.write("examples/story.py", story(body, names="'orm', 'orn', 'orm2', 'archive'"))
    if runner:
        done = place.run("--strict", "examples/story.py")
        assert done.statuses == {"examples/story.py": "passed"}, done.stdout
    else:
        assert said(by_hand(place, "examples/story.py")) == []


def test_the_error_can_be_caught_and_the_environment_is_as_before(place: Project) -> None:
    place.write(
        "story.py",
        "import os\nbefore = dict(os.environ)\nfrom e2e_runner.kit import *\ntry:\n"
        "    with databases('orm'): pass\nexcept DatabasesUnavailable as error:\n"
        "    assert error.__cause__ is None and error.__suppress_context__\n"
        "    assert dict(os.environ) == before\nelse:\n    raise SystemExit('it was there')\n",
    )
    url = f"postgresql://maria@127.0.0.1:{free_port()}/shop"
    assert said(by_hand(place, "story.py", env=PRODUCTION | {"E2E_RUN_POSTGRES": url})) == []
    assert issubclass(DatabasesUnavailable, Exception)


# --- signals --------------------------------------------------------------------------------------

# Tells each stage when it begins, so that a signal can come in the middle of it.
STAGES = """
import functools
import e2e_runner.databases, e2e_runner.embedded, e2e_runner.postgres.fill
import e2e_runner.postgres.private, e2e_runner.postgres.shared, e2e_runner.kit._host
def told(owner, name, stage):
    inner = getattr(owner, name)
    async def outer(*args, **more):
        print(stage, flush=True)
        return await inner(*args, **more)
    setattr(owner, name, functools.wraps(inner)(outer))
told(e2e_runner.embedded.EmbeddedServers, "prepare", "preparing")
told(e2e_runner.embedded.EmbeddedServers, "start", "starting")
told(e2e_runner.postgres.private, "make_databases", "making")
told(e2e_runner.postgres.fill, "fill", "filling")
told(e2e_runner.postgres.shared.SharedServer, "give", "giving")
told(e2e_runner.databases.Databases, "release", "releasing")
print("entering", flush=True)
"""


def signalled(
    place: Project, stage: str, number: signal.Signals, env: Mapping[str, str]
) -> tuple[int, str]:
    """Run the story and send it a signal when it says `stage`; gives its exit code and stderr."""
    with start(place, "story.py", env=env) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[0] == stage:
                process.send_signal(number)
                break
        else:
            pytest.fail(f"it never came to {stage}: {process.communicate()[1]}")
        done = finish(process)
    return done.code, done.stderr


EMBEDDED_STAGES = ["entering", "preparing", "starting", "making", "filling", "inside", "releasing"]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]


def write_interrupted(place: Project, stage: str) -> None:
    stays = "" if stage == "releasing" else "import time\ntime.sleep(600)"
    place.write("story.py", STAGES + story(f"print('inside', flush=True)\n{stays}"))


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("stage", EMBEDDED_STAGES)
def test_by_hand_a_signal_at_any_moment_leaves_nothing(
    place: Project, stage: str, number: signal.Signals
) -> None:
    write_interrupted(place, stage)
    code, stderr = signalled(place, stage, number, {})
    expected = {signal.SIGINT: {-2, 1, 130}, signal.SIGTERM: {143, -15}, signal.SIGKILL: {-9}}
    # A signal that comes as the last thing is done may find the script at its end.
    assert code in expected[number] | ({0} if stage == "releasing" else set()), stderr
    assert "never retrieved" not in stderr
    wait_until(lambda: left_of(place) == [], "nothing was left")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("stage", ["giving", "filling", "inside", "releasing"])
def test_by_hand_a_signal_leaves_nothing_on_a_configured_server(
    place: Project, untouched: Server, stage: str, number: signal.Signals
) -> None:
    write_interrupted(place, stage)
    env = {"E2E_RUN_POSTGRES": untouched.url()}
    before = untouched.databases() | untouched.roles()
    signalled(place, stage, number, env)
    wait_until(lambda: left_of(place) == [], "nothing was left")
    if number is signal.SIGKILL:
        # The server goes on for a moment with what it was asked for; the next call sees to the rest.
        place.write("next.py", story("say()", names="'orm'"))
        wait_until(
            lambda: (
                said_no_error(by_hand(place, "next.py", env=env))
                and untouched.databases() | untouched.roles() == before
            ),
            "the next call had cleaned up",
        )
    assert untouched.databases() | untouched.roles() == before


def said_no_error(done: Outcome) -> bool:
    assert done.code == 0, done.stderr
    return True


# --- under the runner -----------------------------------------------------------------------------

# All that a script may ask for, checked by itself.
UNDER_RUNNER = """
value(dbs["orm"].url, "INSERT INTO users VALUES ('bob@example.com')")
assert dbs["orm"].name == given, (dbs["orm"].name, given)  # what the run has made
child = [sys.executable, "child.py"]
first = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE).stdout)
assert first != dbs["orm"].url
async with databases("orm", "extra") as more:
    assert os.environ["DB_NAME"] == more["orm"].name != dbs["orm"].name
    assert len({dbs["orm"].url, dbs["ohlcv"].url, more["orm"].url, more["extra"].url}) == 4
    assert value(more["orm"].url, "SELECT count(*) FROM users") == 1
    assert value(more["extra"].url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    held = await asyncpg.connect(more["orm"].url)  # which does not keep it
assert os.environ["DB_NAME"] == dbs["orm"].name
async with databases("ohlcv") as more:
    assert value(more["ohlcv"].url, "SELECT count(*) FROM candles") == 9
    assert os.environ["DB_OHLCV_NAME"] == more["ohlcv"].name != dbs["ohlcv"].name
assert value(dbs["orm"].url, "SELECT count(*) FROM users") == 2
"""
CHILD = """
import json
from e2e_runner.kit import databases
from tools import value
with databases("orm") as dbs:
    assert value(dbs["orm"].url, "SELECT count(*) FROM users") == 1
    value(dbs["orm"].url, "INSERT INTO users VALUES ('carol@example.com')")
    print(json.dumps(dbs["orm"].url))
"""


def write_runner_story(place: Project) -> None:
    head = "import os, subprocess\ngiven = os.environ['DB_NAME']\nbefore = dict(os.environ)\n"
    after = "del before['E2E_RUN_DATABASES']\nnow = dict(os.environ)\ndel now['E2E_RUN_DATABASES']\nassert now == before"
    place.write(
        "examples/story.py",
        head + story(UNDER_RUNNER, way="async with", after=f"global before\n{after}"),
    )
    place.write("examples/child.py", CHILD)
    place.write("examples/at_once.py", CONCURRENT)


@pytest.mark.parametrize("scope", ["example", "run"])
def test_under_the_runner_with_a_server_that_it_brings(place: Project, scope: str) -> None:
    write_runner_story(place)
    done = place.run(
        "--strict",
        "examples/story.py",
        "examples/at_once.py",
        env={"E2E_RUN_POSTGRES_SCOPE": scope},
    )
    assert set(done.statuses.values()) == {"passed"}, done.stdout
    assert done.code == 0


@pytest.mark.parametrize("user", ["postgres", "maker", "plain"])
def test_under_the_runner_on_a_configured_server(
    place: Project, untouched: Server, user: str
) -> None:
    write_runner_story(place)
    done = place.run(
        *("--strict", "--postgres", untouched.url(user=user)),
        *("examples/story.py", "examples/at_once.py"),
    )
    assert set(done.statuses.values()) == {"passed"}, done.stdout
    assert "warning" not in done.stdout


def test_children_beside_each_other_take_different_databases(place: Project) -> None:
    place.write("examples/child.py", CHILD)
    place.write(
        "examples/siblings.py",
        "# /// script\n# [tool.e2e-run]\n# postgres = true\n# ///\nimport subprocess, sys\n"
        "both = [subprocess.Popen([sys.executable, 'child.py'], stdout=subprocess.PIPE) for _ in '12']\n"
        "urls = {each.communicate()[0] for each in both}\n"
        "assert [each.returncode for each in both] == [0, 0]\nassert len(urls) == 2, urls\n",
    )
    done = place.run("--strict", "examples/siblings.py")
    assert done.statuses == {"examples/siblings.py": "passed"}, done.stdout


def test_a_script_that_imports_the_kit_is_given_databases(place: Project) -> None:
    (place.root / "e2e-run.toml").write_text(f'python = "{place.python}"\n')
    place.write(
        "examples/helper.py",
        "from e2e_runner import kit\ndef have(name):\n    return kit.databases(name)\n",
    )
    place.write(
        "examples/story.py",
        "import os\nfrom helper import have\ngiven = os.environ['PGDATABASE']\n"
        "with have('any') as dbs:\n    assert dbs['any'].name == given\n",
    )
    done = place.run("--strict", "examples/story.py")
    assert done.statuses == {"examples/story.py": "passed"}, done.stdout


def test_a_run_without_postgresql_says_so(place: Project) -> None:
    place.write("examples/story.py", story("say()"))
    done = place.run("--postgres", "off", "examples/story.py")
    assert done.statuses == {"examples/story.py": "failed"}
    output = done.examples["examples/story.py"]["output_tail"]
    assert "This run gives the script no PostgreSQL" in output
    assert "leave out --postgres off" in output
    assert "postgres = true" in output


def test_databases_of_a_failed_story_are_kept_when_asked(place: Project, server: Server) -> None:
    body = "value(dbs['orm'].url, 'CREATE TABLE evidence (x int)')\nraise SystemExit(1)"
    place.write("examples/fails.py", story(body, way="async with"))
    done = place.run("--keep-databases", "examples/fails.py")
    assert done.statuses == {"examples/fails.py": "failed"}
    assert "e2e-run postgres" in done.stdout
    before = server.databases(), server.roles()
    done = place.run("--keep-databases", "--postgres", server.url(), "examples/fails.py")
    made = sorted(server.databases() - before[0])
    kept = [name for name in made if "_r0_t" not in name]  # but for the templates
    try:
        assert len(kept) == 2
        assert server.sql("SELECT count(*) FROM evidence", database=kept[0]) == ["0"]
    finally:
        for name in made:
            server.sql(f'DROP DATABASE "{name}"')
        for role in sorted(server.roles() - before[1], reverse=True):
            server.sql(f'DROP ROLE "{role}"')
    assert (server.databases(), server.roles()) == before


@pytest.mark.parametrize("user", ["postgres", "plain"])
def test_what_a_story_leaves_that_ends_without_a_word_is_attributed(
    place: Project, untouched: Server, user: str
) -> None:
    place.write(
        "examples/ends.py",
        story("with databases('orm') as more:\n    os._exit(0)"),
    )
    done = place.run("--postgres", untouched.url(user=user), "examples/ends.py")
    assert done.statuses == {"examples/ends.py": "leaked"}, done.stdout
    [leak] = done.examples["examples/ends.py"]["leaks"]
    assert leak["kind"] == "database"
    assert is_given(leak["name"])
    assert (leak["doubt"], leak["kept"]) == (None, None)


def test_a_further_database_that_may_not_be_made_is_an_error(
    place: Project, untouched: Server
) -> None:
    place.write("examples/story.py", story("with databases('orm') as more:\n    pass"))
    done = place.run(
        *("--postgres", untouched.url(user="nobody_special"), "examples/story.py"),
        env={"E2E_RUN_POSTGRES_ADMIN_URL": untouched.url(user="plain")},
    )
    assert done.statuses == {"examples/story.py": "failed"}, done.stdout
    output = done.examples["examples/story.py"]["output_tail"]
    assert "A further database cannot be made on the run's server" in output
    assert "permission denied to create database" in output
    assert "the first block that asks for a name needs no further one" in output


def test_a_further_database_that_cannot_be_dropped_is_a_warning(
    place: Project, untouched: Server
) -> None:
    body = """
with databases("orm") as more:
    name = more["orm"].name
    value(dbs["orm"].url, f'ALTER DATABASE "{name}" IS_TEMPLATE true')
value(dbs["orm"].url, f'ALTER DATABASE "{name}" IS_TEMPLATE false')
raise SystemExit(f"name: {name}")
"""
    place.write("examples/story.py", story(body))
    done = place.run("--postgres", untouched.url(), "examples/story.py")
    output = done.examples["examples/story.py"]["output_tail"]
    name = output.rpartition("name: ")[2].strip()
    assert f"e2e-run: database {name} stays: " in output
    assert "marked as a template" in output


def test_a_further_database_whose_command_fails_is_an_error_with_its_output(
    place: Project,
) -> None:
    body = """
open("../fill.sh", "w").write("echo no candles; echo for 2026; exit 3")
try:
    databases("ohlcv").__enter__()
except DatabasesUnavailable as error:
    assert "exit code 3: for 2026 (its last lines: no candles | for 2026)" in str(error), error
else:
    raise SystemExit("it was filled")
"""
    place.write("examples/story.py", story(body))
    place.write("fill.sh", "true\n")
    done = place.run("--strict", "examples/story.py")
    assert done.statuses == {"examples/story.py": "passed"}, done.stdout


def test_a_further_database_that_cannot_be_filled_is_dropped(
    place: Project, untouched: Server
) -> None:
    body = """
value(dbs["orm"].url, "SELECT 1")
open("../sql/data.sql", "a").write("CREATE TABEL b (x int);")
try:
    databases("orm").__enter__()
except DatabasesUnavailable as error:
    assert "sql/data.sql" in str(error) and "TABEL" in str(error), error
else:
    raise SystemExit("it was filled")
"""
    place.write("examples/story.py", story(body))
    for more in ([], ["--postgres", untouched.url()]):
        place.write("sql/data.sql", "")
        done = place.run("--strict", *more, "examples/story.py")
        assert done.statuses == {"examples/story.py": "passed"}, done.stdout


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
def test_under_the_runner_as_an_ordinary_user() -> None:
    if ordinary_python() is None:
        pytest.skip("no interpreter here can be run by an ordinary user")
    with project(user=NOBODY) as made:
        place = prepared(made)
        write_runner_story(place)
        done = place.run("--strict", "examples/story.py", env={"HOME": str(place.root)})
        assert done.statuses == {"examples/story.py": "passed"}, done.stdout


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_ends_early_leaves_nothing(place: Project, number: signal.Signals) -> None:
    place.write(
        "examples/waits.py",
        story(
            "with databases('orm') as more:\n    open(os.environ['READY'], 'w').write(str(dbs.first.port))\n    sys.stdin.read()\n    import time\n    time.sleep(600)"
        ),
    )
    ready = place.root / "ready"
    with place.running("examples/waits.py", env={"READY": str(ready)}) as running:
        wait_until(lambda: ready.exists() and ready.read_text(), "the story was ready")
        offspring = running.offspring()
        running.process.send_signal(number)
        running.outcome()
    wait_until(lambda: not any(map(psutil.Process.is_running, offspring)), "all had ended")
    assert does_not_answer(int(ready.read_text()))
    assert place.survivors() == []


def test_a_run_in_a_run_has_databases_of_its_own(place: Project) -> None:
    place.write("inner/e2e-run.toml", "")
    place.write("inner/story.py", "import os\nprint(os.environ.get('E2E_RUN_DATABASES'))\n")
    place.write(
        "examples/outer.py",
        "# /// script\n# [tool.e2e-run]\n# postgres = true\n# ///\nimport subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'e2e_runner', '-s', '--postgres', 'off', '../inner/story.py'],"
        " stdout=subprocess.PIPE, text=True, check=True)\nassert 'None' in done.stdout, done.stdout\n",
    )
    done = place.run("--strict", "examples/outer.py")
    assert done.statuses == {"examples/outer.py": "passed"}, done.stdout


def test_importing_the_kit_is_cheap() -> None:
    code = "import sys, e2e_runner.kit; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"asyncio", "asyncpg", "click", "httpx", "psutil", "rich"}
    assert not heavy & set(done.stdout.split())
