"""Which examples want PostgreSQL, and why."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.config import resolve
from e2e_runner.discovery import make_plan
from e2e_runner.discovery.postgres import (
    PLAIN_MARKS,
    marks_of,
    server_of_its_own,
    wants_postgres,
)
from e2e_runner.discovery.source import analyse_python, analyse_text
from e2e_runner.model import DatabaseDefinition, Example, Plan, PostgresSettings

MAPPED = marks_of(
    PostgresSettings(
        env={"DB_HOST": "{host}"},
        databases=(DatabaseDefinition(name="orm", env=("DB_NAME",)),),
    )
)


def _python(source: str) -> str:
    return analyse_python(source.encode(), MAPPED).postgres


def _text(source: str) -> str:
    return analyse_text(source.encode(), MAPPED).postgres


# --- one source ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import asyncpg", "imports asyncpg"),
        ("import os, psycopg2.extras", "imports psycopg2"),
        ("from psycopg_pool import ConnectionPool", "imports psycopg_pool"),
        ("from pydantic import BaseModel, PostgresDsn", "imports PostgresDsn"),
        (
            "def f():\n    try:\n        import pg8000\n    except ImportError: ...",
            "imports pg8000",
        ),
        (
            "from sqlalchemy import create_engine\ncreate_engine('postgresql+psycopg://h/x')",
            "uses sqlalchemy with PostgreSQL",
        ),
        (
            "import sqlalchemy.ext.asyncio as a\na.create(f'postgresql+asyncpg://{user}@h/x')",
            "uses sqlalchemy with PostgreSQL",
        ),
        (
            "from django.conf import settings\nx = {'ENGINE': 'django.db.backends.postgresql'}",
            "uses django with PostgreSQL",
        ),
        ("import os\nurl = os.environ['DATABASE_URL']", "reads DATABASE_URL"),
        ("import os\nos.getenv('PGHOST', 'localhost')", "reads PGHOST"),
        ("import os\nos.getenv('DB_HOST')", "reads DB_HOST"),
        ("import os\nos.getenv('DB_NAME')", "reads DB_NAME"),
        (
            "from pydantic_settings import BaseSettings\nclass S(BaseSettings):\n    db_host: str",
            "reads DB_HOST",
        ),
        ("import subprocess\nsubprocess.run(['psql', '-c', 'SELECT 1'])", "runs psql"),
        ("import os\nos.system('/usr/bin/pg_dump shop > x')", "runs pg_dump"),
        ("print 'Python 2'\nimport psycopg2", "imports psycopg2"),
        ("print 'Python 2'\nimport os; os.environ['DATABASE_URL']", "reads DATABASE_URL"),
        ("from e2e_runner.kit import databases, step", "uses e2e_runner.kit.databases"),
        (
            "from e2e_runner.kit import databases as d\nimport asyncpg",
            "uses e2e_runner.kit.databases",
        ),
        ("from e2e_runner import kit\nkit.databases('orm')", "uses e2e_runner.kit.databases"),
        ("import e2e_runner.kit as k\nk.databases()", "uses e2e_runner.kit.databases"),
        ("import e2e_runner.kit\ne2e_runner.kit.databases()", "uses e2e_runner.kit.databases"),
        ("from e2e_runner.kit import *\ndatabases()", "uses e2e_runner.kit.databases"),
        ("from e2e_runner.kit.isolation import databases", "uses e2e_runner.kit.databases"),
        ("print 'Python 2'\nfrom e2e_runner.kit import databases", "uses e2e_runner.kit.databases"),
    ],
)
def test_python_that_wants_postgres(source: str, reason: str) -> None:
    assert _python(source) == reason


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        '"""Uses DATABASE_URL, asyncpg and psql."""\nimport os',
        "# import asyncpg\nprint('a')",
        "print('set DATABASE_URL to postgresql://host/db')",
        "import sqlalchemy\nsqlalchemy.create_engine('sqlite:///x')",
        "import os, sqlalchemy\nos.getenv('DATABASE_URL', 'sqlite+aiosqlite:///x')",
        "url = 'postgresql://host/db'",
        "from .asyncpg import x",
        "psql = 'psqlx'",
        "PGHOST = 1",
        "from e2e_runner.kit import step, unique_name",
        "from e2e_runner import kit\nkit.step('databases')",
        "from e2e_runner.kit import *\nstep('a')",
        "from mine import databases\ndatabases()  # not e2e_runner.kit",
        "from .e2e_runner.kit import databases",
    ],
)
def test_python_that_does_not(source: str) -> None:
    assert _python(source) == ""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ('#!/bin/sh\npsql -c "SELECT 1"\n', "runs psql"),
        ("set -e; /usr/bin/pg_dump shop >x", "runs pg_dump"),
        ("x=$(psql -At)", "runs psql"),
        ("curl $DATABASE_URL", "reads DATABASE_URL"),
        ('echo "${PGHOST:-x}"', "reads PGHOST"),
        ("echo $DB_HOST", "reads DB_HOST"),
        ("const url = process.env.DATABASE_URL;", "reads DATABASE_URL"),
        ("if (process.env.PGHOST == 'x') {}", "reads PGHOST"),
        ("const { Client } = require('pg')", "uses pg"),
        ('import postgres from "postgres"', "uses postgres"),
        ("require 'pg'\nPG.connect", "uses pg"),
        ("$x = new PDO('pgsql:host=h');", "uses pgsql"),
    ],
)
def test_other_languages_that_want_postgres(source: str, reason: str) -> None:
    assert _text(source) == reason


@pytest.mark.parametrize(
    "source",
    [
        "echo 1",
        "# psql\n  // DATABASE_URL",
        "PGHOST=localhost\nexport PGPORT=1",
        "echo $MY_DATABASE_URL $DATABASE_URLS",
        "mypsql; psql2; psql-wrapper",
        "const pg = require('./pg')",
        "sqlite3 x; open(ENV['DATABASE_URL'] || 'sqlite:x')",
    ],
)
def test_other_languages_that_do_not(source: str) -> None:
    assert _text(source) == ""


@given(st.binary() | st.text().map(str.encode))
def test_whatever_a_source_holds_it_is_read(data: bytes) -> None:
    for text in (data, b"import asyncpg\n" + data, b"DATABASE_URL psql postgres " + data):
        for analyse in (analyse_python, analyse_text):
            assert "\n" not in analyse(text, MAPPED).postgres


# --- examples ------------------------------------------------------------------------------------


class Project:
    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, files: dict[str, str], config: str = "") -> "Project":
        (self.root / "e2e-run.toml").write_text(config)
        for path, text in files.items():
            file = self.root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return self

    def plan(self, *paths: str, **flags: object) -> Plan:
        return make_plan(resolve(flags, paths, {}, self.root, executable=sys.executable))

    def wishes(self, *paths: str) -> dict[str, str]:
        examples = self.plan(*(paths or (".",))).examples
        return {each.path: wants_postgres(each) for each in examples}

    def example(self, path: str, **flags: object) -> Example:
        (example,) = self.plan(path, **flags).examples
        return example


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def _metadata(*lines: str, body: str = "print(1)\n") -> str:
    block = "\n".join(["# /// script", "# [tool.e2e-run]", *(f"# {line}" for line in lines)])
    return f"{block}\n# ///\n{body}"


DATABASES = "[databases]\norm = { env = 'DB_NAME' }\nohlcv = {}\n"


def test_what_is_declared_decides(project: Project) -> None:
    project.write(
        {
            "a.py": _metadata("postgres = true"),
            "b.py": _metadata("postgres = false", body="import asyncpg\nprint(asyncpg)\n"),
            "c.py": _metadata("postgres = false", 'databases = ["x"]'),
            "d.py": _metadata('databases = ["x"]'),
            "e.py": "import asyncpg\nprint(asyncpg)\n",
            "f.py": "print(1)\n",
        }
    )
    assert project.wishes() == {
        "a.py": "declares postgres",
        "b.py": "",
        "c.py": "",
        "d.py": "declares databases",
        "e.py": "imports asyncpg",
        "f.py": "",
    }


def test_where_the_configuration_defines_databases_all_examples_get_them(project: Project) -> None:
    project.write(
        {
            "a.py": "print(1)\n",
            "b.py": _metadata("databases = []"),
            "c.py": _metadata('databases = ["ohlcv"]'),
            "d.py": _metadata("databases = []", body="import asyncpg\nprint(1)\n"),
        },
        DATABASES,
    )
    assert project.wishes() == {
        "a.py": "the configuration defines databases",
        "b.py": "",
        "c.py": "declares databases",
        "d.py": "imports asyncpg",
    }
    names = {
        each.path: [definition.name for definition in each.settings.databases]
        for each in project.plan(".").examples
    }
    assert names == {"a.py": ["orm", "ohlcv"], "b.py": [], "c.py": ["ohlcv"], "d.py": []}


def test_a_database_that_is_not_defined_is_a_problem(project: Project) -> None:
    project.write({"a.py": _metadata('databases = ["ohlvc", "orm", "zzz"]')}, DATABASES)
    example = project.example("a.py")
    assert [each.message for each in example.problems] == [
        "a.py:3: databases: 'ohlvc' is not defined; did you mean ohlcv?",
        "a.py:3: databases: 'zzz' is not defined; accepted: orm, ohlcv",
    ]


def test_where_none_is_defined_any_name_is_a_database(project: Project) -> None:
    project.write({"a.py": _metadata('databases = ["orm", "x"]')})
    assert project.example("a.py").settings.databases == (
        DatabaseDefinition(name="orm"),
        DatabaseDefinition(name="x"),
    )


def test_templates_of_a_script_are_beside_it(project: Project) -> None:
    lines = ["[tool.e2e-run.databases]", "orm = { template = ['a.sql', 'b.sql'] }"]
    project.write({"sub/x.py": _metadata(*lines), "sub/a.sql": ""})
    example = project.example("sub/x.py")
    (definition,) = example.settings.databases
    assert definition.template == (project.root / "sub" / "a.sql", project.root / "sub" / "b.sql")
    assert [each.message for each in example.problems] == [
        (
            "sub/x.py:3: databases.orm.template: 'b.sql' does not exist; accepted: files of SQL, "
            "relative to the script"
        )
    ]


def test_overrides_say_it_for_the_scripts_that_they_match(project: Project) -> None:
    config = "[[overrides]]\nmatch = 'a.py'\ndatabases = ['x']\n"
    project.write({"a.py": "print(1)\n", "b.py": "print(1)\n"}, config)
    assert project.wishes() == {"a.py": "declares databases", "b.py": ""}


def test_an_example_that_names_its_own_server_wants_no_other(project: Project) -> None:
    source = "import asyncpg\nprint(asyncpg)\n"
    url = 'env = { DATABASE_URL = "postgresql://db" }'
    project.write(
        {
            "a.py": _metadata(url, body=source),
            "b.py": _metadata('env = { PGHOST = "db" }', body=source),
            "c.py": _metadata('env = { DB_HOST = "db" }', body=source),
            "d.py": _metadata('env = { DB_PORT = "1" }', body=source),
            "e.py": _metadata(url, "postgres = true", body=source),
            "f.py": _metadata(url, 'databases = ["x"]', body=source),
        },
        "[postgres]\nenv = { DB_HOST = '{host}', DB_PORT = '{port}' }\n",
    )
    assert project.wishes() == {
        "a.py": "",
        "b.py": "",
        "c.py": "",
        "d.py": "imports asyncpg",
        "e.py": "declares postgres",
        "f.py": "declares databases",
    }
    origin = project.example("a.py").settings.origins["postgres"]
    assert origin.where == "a.py:3: env sets DATABASE_URL"


def test_helpers_are_followed_wherever_they_are_below_the_root(project: Project) -> None:
    project.write(
        {
            "examples/a.py": "import helper\nprint(1)\n",
            "examples/helper.py": "import deeper.store\nX = 1\n",
            "examples/deeper/store.py": "import psycopg\n",
            "examples/deeper/f.py": "import sub\nprint(1)\n",
            "examples/deeper/sub/__init__.py": "import other\n",  # not found from f.py
            "examples/deeper/sub/other.py": "import psycopg\n",
            "examples/b.py": "import pack\nprint(1)\n",
            "examples/pack/__init__.py": "from . import _inner\n",
            "examples/pack/_inner.py": "import os\nURL = os.getenv('DATABASE_URL')\n",
            "examples/c.py": "import sys\nsys.path.append('..')\nfrom app import api\nprint(1)\n",
            "examples/d.py": "from app import api\nprint(1)\n",
            "examples/e.py": "import circle_1\nprint(1)\n",
            "examples/circle_1.py": "import circle_2\n",
            "examples/circle_2.py": "import circle_1\n",
            "app/api.py": "from app.db import connect\n",
            "app/db.py": "import asyncpg\n",
        }
    )
    expected = {
        "examples/a.py": "examples/deeper/store.py imports psycopg",
        "examples/b.py": "examples/pack/_inner.py reads DATABASE_URL",
        "examples/c.py": "app/db.py imports asyncpg",
        "examples/d.py": "",
        "examples/e.py": "",
        "examples/deeper/f.py": "",
    }
    assert project.wishes("examples") == expected
    alone = {path: project.wishes(path)[path] for path in expected}
    assert alone == expected


def test_a_helper_beside_is_named_without_its_folder(project: Project) -> None:
    project.write({"examples/a.py": "import helper\n", "examples/helper.py": "import psycopg\n"})
    assert project.wishes("examples/a.py") == {"examples/a.py": "helper.py imports psycopg"}


def test_a_companion_shares_what_its_example_gets(project: Project) -> None:
    project.write(
        {
            "a.py": _metadata('needs = ["server.py"]'),
            "server.py": _metadata('serve = "tcp://127.0.0.1:8000"', body="import asyncpg\n"),
        }
    )
    assert wants_postgres(project.example("a.py")) == "needs server.py, which imports asyncpg"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('connect("postgresql://postgres:postgres@localhost:5432/postgres")', "localhost:5432"),
        ('connect("postgres+psycopg2://127.0.0.1/shop")', "127.0.0.1:5432"),
        ('psql "postgresql://[::1]:5433/shop"', "[::1]:5433"),
        ('connect(os.environ.get("DATABASE_URL", "postgresql://localhost/shop"))', ""),
        ('connect("postgresql://db.example:5432/shop")', ""),
        ('connect("postgresql://localhost.example/shop")', ""),
        ('connect(f"postgresql://{user}@localhost:5432/")', ""),
        ('connect("http://localhost:5432")', ""),
    ],
)
def test_a_server_that_the_source_goes_to_whatever_it_is_told(source: str, expected: str) -> None:
    assert server_of_its_own(source.encode(), PLAIN_MARKS) == expected


@pytest.mark.parametrize(
    ("flags", "address", "metadata", "warned"),
    [
        ({"network": "host"}, "localhost", "", True),
        ({"network": "host"}, "localhost", "postgres = false", False),
        ({}, "localhost", "", False),  # in a network of its own the server is there
        ({}, "127.0.0.1:5432", 'network = "isolated"', False),
        ({}, "localhost", 'network = "host"', True),
        ({}, "localhost", "ports = [5432]", True),
        ({}, "localhost", 'reach = ["localhost:5432"]', True),
        ({}, "localhost:5433", "", True),
        ({}, "localhost:5433", "postgres = false", False),
        ({"postgres": "embedded"}, "localhost", "", False),
        ({"postgres": "postgresql://db.example/shop"}, "localhost", "", True),
        ({"postgres": "off"}, "localhost", "", True),
    ],
)
def test_a_server_of_its_own_is_warned_of_where_it_is_not_the_one_given(
    tmp_path: Path, flags: dict[str, str], address: str, metadata: str, *, warned: bool
) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "a.py").write_text(
        f"# /// script\n# [tool.e2e-run]\n# {metadata}\n# ///\n"
        f'import asyncpg\nasyncpg.connect("postgresql://{address}/shop")\n'
    )
    warnings = make_plan(resolve(flags, (), {}, tmp_path)).warnings
    port = "" if ":" in address else ":5432"
    said = f"examples/a.py: goes to a PostgreSQL server of its own, {address}{port}, and not to the one"
    assert [each.startswith(said) for each in warnings] == ([True] if warned else [])
