"""Filling a database from files and by a command."""

import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from servers import Server, binaries, missing, path_with, run, run_program, running_server

from e2e_runner.model import DatabaseDefinition, ServerAddress
from e2e_runner.postgres import fill as module
from e2e_runner.postgres.fill import FillFailed, fill

DUMP = """\
SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);
CREATE TABLE public.bars (symbol text, at date);
COPY public.bars (symbol, at) FROM stdin;
AAPL\t2026-01-01
é😀\t\\N
\\.
"""
PLAIN = """\
CREATE TABLE ticks (i int);
CREATE FUNCTION two() RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    RETURN 2;  -- a semicolon; and another
END
$$;
INSERT INTO ticks SELECT two() FROM generate_series(1, 3);
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(binaries("system")) as running:
        yield running


@pytest.fixture
def address(server: Server) -> Iterator[ServerAddress]:
    server.sql("CREATE DATABASE to_fill")
    yield server.address(database="to_fill")
    server.sql("DROP DATABASE to_fill")


@pytest.fixture
def with_psql(server: Server) -> dict[str, str]:
    """An environment of the caller in which another server is named, too."""
    return {
        "PATH": path_with(server.binaries),
        "PGHOST": "db.invalid",
        "PGSERVICE": "production",
        "PGOPTIONS": "-c default_transaction_read_only=on",
        "DATABASE_URL": "postgresql://db.invalid/production",
    }


def filled(
    address: ServerAddress,
    folder: Path,
    environment: Mapping[str, str],
    *,
    files: Mapping[str, str | bytes] | None = None,
    **definition: Any,
) -> Coroutine[Any, Any, None]:
    template = []
    for name, text in (files or {}).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        template.append(file)
    return fill(
        address,
        DatabaseDefinition(name="bars", template=tuple(template), **definition),
        run_program=run_program,
        log=folder / "log",
        environment=environment,
        root=folder,
        env_mapping={"DB_HOST": "{host}:{port}"},
    )


def reason(filling: Coroutine[Any, Any, None]) -> str:
    with pytest.raises(FillFailed) as met:
        run(filling)
    return str(met.value)


def test_psql_reads_files_in_order_with_data_commands_and_includes(
    server: Server, address: ServerAddress, tmp_path: Path, with_psql: dict[str, str]
) -> None:
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "more.sql").write_text("INSERT INTO bars VALUES ('MSFT', now());\n")
    files = {"sql/1.sql": DUMP, "sql/2.sql": "\\ir more.sql\n\\echo done\n", "3.sql": PLAIN}
    run(filled(address, tmp_path, with_psql, files=files))
    assert server.sql("SELECT symbol FROM bars ORDER BY at", database="to_fill") == [
        *("AAPL", "MSFT", "é😀")
    ]
    assert server.sql("SELECT sum(i) FROM ticks", database="to_fill") == ["6"]


def test_without_psql_the_driver_reads_plain_sql(
    server: Server, address: ServerAddress, tmp_path: Path
) -> None:
    run(filled(address, tmp_path, {"PATH": ""}, files={"1.sql": "\ufeff" + PLAIN}))
    assert server.sql("SELECT sum(i) FROM ticks", database="to_fill") == ["6"]


@pytest.mark.parametrize("text", [DUMP, "\\echo hello\n", "copy t\nfrom STDIN;\n"])
def test_without_psql_what_only_psql_knows_is_refused(
    address: ServerAddress, tmp_path: Path, text: str
) -> None:
    assert reason(filled(address, tmp_path, {"PATH": ""}, files={"a.sql": text})) == (
        "template a.sql of database 'bars': it has data or commands for psql (COPY ... FROM stdin, "
        "or a line with a backslash), and psql is not on PATH: install PostgreSQL's client programs"
    )


BROKEN = "CREATE TABLE a (i int);\n\n-- é\nINSERT INTO nowhere VALUES (1);\nSELECT 1;\n"


def test_the_line_of_an_error_is_named(
    address: ServerAddress, tmp_path: Path, with_psql: dict[str, str]
) -> None:
    by_driver = reason(filled(address, tmp_path, {"PATH": ""}, files={"b/a.sql": BROKEN}))
    assert by_driver == (
        "template b/a.sql of database 'bars': line 4: "
        'relation "nowhere" does not exist (SQLSTATE 42P01)'
    )
    by_psql = reason(filled(address, tmp_path, with_psql, files={"b/a.sql": BROKEN}))
    assert by_psql.startswith(
        "template b/a.sql of database 'bars': line 4: ERROR:  relation \"nowhere\" does not exist"
    )


def test_a_dump_with_owners_gets_the_advice_to_leave_them_out(
    address: ServerAddress, tmp_path: Path, with_psql: dict[str, str]
) -> None:
    dump = "CREATE TABLE t (i int);\nALTER TABLE t OWNER TO maria;\n"
    for environment in ({"PATH": ""}, with_psql):
        said = reason(filled(address, tmp_path, environment, files={"a.sql": dump}))
        assert 'role "maria" does not exist' in said
        assert said.endswith("; pg_dump --no-owner --no-privileges leaves roles out")
        run(filled(address, tmp_path, {"PATH": ""}, files={"a.sql": "DROP TABLE IF EXISTS t"}))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _: None, "No such file or directory"),
        (Path.mkdir, "Is a directory"),
    ],
)
@pytest.mark.parametrize("has_psql", [True, False])
def test_a_file_that_cannot_be_read(
    *,
    address: ServerAddress,
    tmp_path: Path,
    with_psql: dict[str, str],
    make: Callable[[Path], None],
    expected: str,
    has_psql: bool,
) -> None:
    make(tmp_path / "a.sql")
    definition = DatabaseDefinition(name="bars", template=(tmp_path / "a.sql",))
    filling = fill(
        address,
        definition,
        run_program=run_program,
        log=tmp_path / "log",
        environment=with_psql if has_psql else {"PATH": ""},
        root=tmp_path / "elsewhere",
    )
    assert reason(filling) == f"template {tmp_path}/a.sql of database 'bars': {expected}"


def test_a_file_that_is_not_utf8(address: ServerAddress, tmp_path: Path) -> None:
    said = reason(filled(address, tmp_path, {"PATH": ""}, files={"a.sql": b"-- \xe9\n"}))
    assert said == "template a.sql of database 'bars': it is not UTF-8 (byte 3)"


def test_an_extension_that_is_not_trusted_is_named_with_what_to_do(
    server: Server, address: ServerAddress, tmp_path: Path, with_psql: dict[str, str]
) -> None:
    server.sql("CREATE ROLE filler LOGIN")
    server.sql("ALTER DATABASE to_fill OWNER TO filler")
    address = replace(address, user="filler")
    if not server.sql("SELECT 1 FROM pg_available_extensions WHERE name = 'file_fdw'"):
        missing("file_fdw")
    program = str(server.binaries / "psql")
    try:
        for environment, definition in (
            ({"PATH": ""}, {"files": {"a.sql": "CREATE EXTENSION file_fdw;"}}),
            (with_psql, {"files": {"a.sql": "CREATE EXTENSION file_fdw;"}}),
            (with_psql, {"command": (program, "-c", "CREATE EXTENSION file_fdw")}),
        ):
            said = reason(filled(address, tmp_path, environment, **definition))
            assert 'permission denied to create extension "file_fdw"' in said
            assert said.endswith(
                "; extension file_fdw is not trusted, and a template is filled without a "
                "superuser's rights: have an administrator create it in template1, or mark it "
                'trusted, or use an embedded server (postgres = "embedded")'
            )
    finally:
        server.sql("ALTER DATABASE to_fill OWNER TO postgres")
        server.sql("DROP ROLE filler")


REMEDY = "make the dump without --create (-C), and take out what concerns other databases and roles"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("SELECT 1;\n\\connect newapp\nSELECT 2;\n", 2, "\\connect"),
        ("SELECT 1; \\c newapp\n", 1, "\\c"),
        ("\ufeff-- a dump\n\n drop  database\nIF EXISTS app;", 3, "DROP DATABASE"),
        ("CREATE /* ! */ DATABASE app TEMPLATE template0;", 1, "CREATE /* ! */ DATABASE"),
        ("SET x.y = 'it''s; \\';ALTER DATABASE app SET x TO y;", 1, "ALTER DATABASE"),
        (DUMP + "DROP ROLE maria;", 8, "DROP ROLE"),
        ("SELECT $$;$$, $x$ ' $$ $x$;\nDROP USER maria;", 2, "DROP USER"),
        ("SELECT 1;\nDROP OWNED BY maria;", 2, "DROP OWNED"),
        ("REASSIGN OWNED BY maria TO app;", 1, "REASSIGN OWNED"),
        ("ALTER SYSTEM SET fsync = off;", 1, "ALTER SYSTEM"),
        ("SELECT 'never closed;\nDROP DATABASE app;", 2, "DROP DATABASE"),
        ("SELECT 'DROP DATABASE app' \\gexec\n", 1, "DROP DATABASE"),
        ("\\echo it's\nDROP DATABASE app;", 2, "DROP DATABASE"),
    ],
)
@pytest.mark.parametrize("has_psql", [True, False])
def test_a_file_that_leaves_its_database_is_refused_before_anything_runs(
    *,
    server: Server,
    address: ServerAddress,
    tmp_path: Path,
    with_psql: dict[str, str],
    text: str,
    line: int,
    what: str,
    has_psql: bool,
) -> None:
    environment = with_psql if has_psql else {"PATH": ""}
    files = {"0.sql": "CREATE TABLE first (i int);", "a.sql": text}
    how = (
        "leaves for another database"
        if what.startswith("\\")
        else ("reaches beyond the database that it fills")
    )
    assert reason(filled(address, tmp_path, environment, files=files)) == (
        f"template a.sql of database 'bars': line {line}: {what} {how}: {REMEDY}"
    )
    assert server.sql("SELECT to_regclass('first')", database="to_fill") == [""]


def test_an_included_file_is_looked_at_too(
    address: ServerAddress, tmp_path: Path, with_psql: dict[str, str]
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "1.sql").write_text("\\ir 2.sql\n\\ir 1.sql\n")
    (tmp_path / "more" / "2.sql").write_text("SELECT 1;\nDROP DATABASE app;\n")
    said = reason(filled(address, tmp_path, with_psql, files={"a.sql": "\\i 'more/1.sql'\n"}))
    assert said == (
        "template a.sql of database 'bars': more/1.sql, which it includes: 2.sql, which it includes: "
        f"line 2: DROP DATABASE reaches beyond the database that it fills: {REMEDY}"
    )


HARMLESS = """\
-- DROP DATABASE app;
/* \\connect app
ALTER SYSTEM */
CREATE TABLE notes (database text, "DROP DATABASE x;" text, drop_database int);
INSERT INTO notes VALUES ('; DROP DATABASE app;', E'it\\'s; DROP DATABASE app;', 1);
CREATE FUNCTION f() RETURNS text LANGUAGE plpgsql AS $body$
BEGIN
    -- it's
    DROP DATABASE app;
END $body$;
COMMENT ON TABLE notes IS 'CREATE DATABASE of notes';
COPY notes (database) FROM stdin;
DROP DATABASE app;
\\connect
;
DROP ROLE maria
\\.
\\copy notes (database) from stdin
DROP DATABASE app;
\\.
\\conninfo
DROP USER MAPPING IF EXISTS FOR CURRENT_USER SERVER nowhere;
"""


def test_what_only_looks_as_if_it_left_its_database_is_let_through(
    server: Server, address: ServerAddress, tmp_path: Path, with_psql: dict[str, str]
) -> None:
    run(filled(address, tmp_path, with_psql, files={"a.sql": HARMLESS, "b.sql": ""}))
    assert server.sql("SELECT count(*) FROM notes", database="to_fill") == ["6"]


@pytest.mark.parametrize("has_psql", [True, False])
def test_a_dump_in_the_custom_format_is_told_apart(
    *,
    server: Server,
    address: ServerAddress,
    tmp_path: Path,
    with_psql: dict[str, str],
    has_psql: bool,
) -> None:
    dump = tmp_path / "app.dump"
    subprocess.run([server.binaries / "pg_dump", "-Fc", "-f", dump, "-d", server.url()], check=True)
    environment = with_psql if has_psql else {"PATH": ""}
    said = reason(filled(address, tmp_path, environment, files={"a.dump": dump.read_bytes()}))
    assert said == (
        "template a.dump of database 'bars': it is a dump in the custom format: use "
        'command = "pg_restore ..." for it, or make a plain dump (without -Fc)'
    )


TELL = """
import os, sys
for name in ("DATABASE_URL", "PGHOST", "PGDATABASE", "PGSERVICE", "PGOPTIONS", "DB_HOST", "DB_NAME"):
    print(name, os.environ.get(name))
print(os.getcwd())
"""


def test_a_command_is_told_of_the_database_and_runs_in_the_root(
    server: Server, address: ServerAddress, tmp_path: Path, with_psql: dict[str, str]
) -> None:
    command = (sys.executable, "-c", TELL)
    run(filled(address, tmp_path, with_psql, command=command, env=("DB_NAME",)))
    assert (tmp_path / "log").read_text().splitlines() == [
        f"DATABASE_URL {server.url(database='to_fill')}",
        "PGHOST 127.0.0.1",
        "PGDATABASE to_fill",
        "PGSERVICE None",
        "PGOPTIONS None",
        f"DB_HOST 127.0.0.1:{server.port}",
        "DB_NAME to_fill",
        str(tmp_path),
    ]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            ("sh", "-c", "seq 9; exit 3"),
            "exit code 3: 9 (its last lines: 5 | 6 | 7 | 8 | 9; its output: log)",
        ),
        (
            (sys.executable, "-c", "print('psql:a.sql:1: ERROR:  no'); print('LINE 1'); exit(1)"),
            (
                "exit code 1: psql:a.sql:1: ERROR:  no (its last lines: psql:a.sql:1: ERROR:  no | LINE 1; "
                "its output: log)"
            ),
        ),
        (
            (sys.executable, "-c", "raise LookupError('no (see\\nthere)')"),
            (
                "exit code 1: LookupError: no (see (its last lines: Traceback (most recent call last): | "
                'File "<string>", line 1, in <module> | LookupError: no (see | there); its output: log)'
            ),
        ),
        (
            (sys.executable, "-c", "print('x' * 5000); exit(1)"),
            f"exit code 1: {'x' * 99}…{'x' * 100} (its output: log)",
        ),
        (("sh", "-c", "kill -9 $$"), "killed by signal 9"),
        (("no-such-program",), "no-such-program is not on PATH"),
    ],
)
def test_a_command_that_fails(
    address: ServerAddress,
    tmp_path: Path,
    with_psql: dict[str, str],
    command: tuple[str, ...],
    expected: str,
) -> None:
    (tmp_path / "log").write_text("of somebody else\n")
    said = reason(filled(address, tmp_path, with_psql, command=command))
    assert said == f"command of database 'bars' ({' '.join(command)}): {expected}"


def test_a_command_is_looked_up_on_the_path_of_the_environment(
    address: ServerAddress, tmp_path: Path
) -> None:
    own = tmp_path / "bin" / "python"
    own.parent.mkdir()
    own.write_text("#!/bin/sh\necho my own python\n")
    own.chmod(0o755)
    environment = {"PATH": path_with(own.parent)}
    run(filled(address, tmp_path, environment, command=("python", "-V")))
    assert (tmp_path / "log").read_text() == "my own python\n"


def test_a_command_that_takes_too_long_is_stopped(
    address: ServerAddress,
    tmp_path: Path,
    with_psql: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    said = reason(filled(address, tmp_path, with_psql, command=("sleep", "1000")))
    assert said == "command of database 'bars' (sleep 1000): not done within 0.3 s"


def test_a_program_that_cannot_be_started(
    address: ServerAddress, tmp_path: Path, with_psql: dict[str, str]
) -> None:
    class StartError(Exception):
        """As the orchestration raises it, of no kind that is known here."""

    async def refuses(*_: object, **__: object) -> int:
        raise StartError("no processes left")

    definition = DatabaseDefinition(name="bars", command=("true",))
    filling = fill(
        address,
        definition,
        run_program=refuses,
        log=tmp_path / "log",
        environment=with_psql,
        root=tmp_path,
    )
    assert reason(filling) == "command of database 'bars' (true): no processes left"


def test_a_server_that_is_not_there(tmp_path: Path, address: ServerAddress) -> None:
    nowhere = ServerAddress(
        host="127.0.0.1", port=1, user="app", password=None, database=address.database
    )
    said = reason(filled(nowhere, tmp_path, {"PATH": ""}, files={"a.sql": "SELECT 1"}))
    assert said.startswith("template a.sql of database 'bars': app@127.0.0.1:1")
