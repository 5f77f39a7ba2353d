"""What in a script's source wants a PostgreSQL server, and which examples want one. Pure."""

import ast
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from e2e_runner.addresses import DATABASE_URL, DEFAULT_PORT, is_postgres_url
from e2e_runner.model import (
    Example,
    ExampleSettings,
    NetworkMode,
    PostgresMode,
    PostgresSettings,
    Source,
)

# Top-level modules that only a program of PostgreSQL imports.
_DRIVERS = frozenset(
    {"aiopg", "asyncpg", "asyncpgsa", "pg8000", "pgdb", "pgvector", "postgresql", "psqlpy"}
    | {"psycopg", "psycopg2", "psycopg2cffi", "psycopg_pool", "procrastinate"}
)
# Those that speak to any database: they want PostgreSQL where a URL of one is written beside them.
_TOOLKITS = frozenset(
    {"alembic", "databases", "dj_database_url", "django", "edgy", "gino", "ormar", "peewee"}
    | {"piccolo", "playhouse", "pony", "records", "sqlalchemy", "sqlmodel", "tortoise"}
)
_PROGRAMS = (
    *("clusterdb", "createdb", "createuser", "dropdb", "dropuser", "pg_dump", "pg_dumpall"),
    *("pg_isready", "pg_restore", "pgbench", "psql", "reindexdb", "vacuumdb"),
)
_VARIABLES = (DATABASE_URL, "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE")
_ENGINES = frozenset(  # as Django and SQLAlchemy's `URL.create` name them
    {"django.db.backends.postgresql", "postgresql", "postgresql+asyncpg", "postgresql+pg8000"}
    | {"postgresql+psycopg", "postgresql+psycopg2", "postgresql+psycopg_async"}
)
_OTHER_DATABASE = re.compile(
    r"(?:cockroachdb|duckdb|mariadb|mongodb|mssql|mysql|oracle|sqlite3?)(?:\+\w+)?:", re.IGNORECASE
)
_LOCAL_URL = re.compile(
    rb"postgres(?:ql)?(?:\+\w+)?://(?:[^\s\"'/@{}]*@)?"
    rb"((?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(:\d{1,5})?)(?![\w.-])",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"^[ \t]*(?:#|//).*$", re.MULTILINE)
_DRIVERS_TEXT = re.compile(
    r"""(?:require\s*\(?|from\s+|import\s+)\s*(['"](?:pg|pg-native|pg-promise|postgres|slonik)['"])"""
    r"""|\b(pgsql:|pg_p?connect\b|dbi:Pg\b|PG\.connect\b|github\.com/(?:lib/pq|jackc/pgx))""",
    re.IGNORECASE,
)
_KIT = "e2e_runner.kit"
_OF_KIT = "databases"  # what makes databases there
_AT_COMMAND = r"""(?:^|[\s;&|({`"'/])"""

# A file that a test framework or a person never hands to Python costs a handful of searches.
_NEEDLES = (
    *(b"postgres", b"psycopg", b"asyncpg", b"aiopg", b"pg8000", b"psqlpy", b"procrastinate"),
    *(b"psql", b"pg_", b"pgdb", b"pgvector", b"pgbench", b"createdb", b"dropdb", b"createuser"),
    *(b"dropuser", b"clusterdb", b"reindexdb", b"vacuumdb", b"PostgresDsn", b"dbi:Pg", b"PG."),
    *(b"'pg", b'"pg', b"pgsql", b"lib/pq", b"jackc/pgx", b"pydantic_settings", b"e2e_runner"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What marks a script that wants PostgreSQL: some of that is the project's to say."""

    variables: frozenset[str]
    needles: tuple[bytes, ...]
    text: re.Pattern[str]

    def may_be_in(self, data: bytes) -> bool:
        """Say whether a source may hold a mark: cheap, and no for most."""
        return any(needle in data for needle in self.needles)


def marks_of(settings: PostgresSettings) -> Marks:
    """Give the marks of a run: every script's, and the variables that its settings map."""
    mapped = [name for each in settings.databases for name in each.env]
    variables = frozenset((*_VARIABLES, *settings.env, *mapped))
    # A variable of a shell that is assigned to is not read.
    names = "|".join(map(re.escape, sorted(variables)))
    programs = "|".join(map(re.escape, _PROGRAMS))
    return Marks(
        variables=variables,
        needles=(*_NEEDLES, *(name.encode() for name in sorted(variables))),
        text=re.compile(
            rf"(?<![A-Za-z0-9_])(?P<variable>{names})(?![A-Za-z0-9_]|[ \t]*=[^=])"
            rf"|{_AT_COMMAND}(?P<program>{programs})(?=[\s\"'`)]|$)",
            re.MULTILINE,
        ),
    )


def postgres_in_nodes(
    nodes: Collection[ast.AST], imports: Iterable[tuple[int, str]], marks: Marks
) -> str:
    """Say what in a Python script wants PostgreSQL; an empty string where nothing does."""
    modules = sorted(name for level, name in imports if level == 0)
    tops = {name.partition(".")[0] for name in modules}
    if _uses_kit(nodes, modules):
        return f"uses {_KIT}.{_OF_KIT}"
    if drivers := sorted(tops & _DRIVERS):
        return f"imports {drivers[0]}"
    if "pydantic.PostgresDsn" in modules:
        return "imports PostgresDsn"
    texts = [
        node.value
        for node in nodes
        if type(node) is ast.Constant and type(node.value) is str and node.value
    ]
    toolkits = sorted(tops & _TOOLKITS)
    if toolkits and any(is_postgres_url(text) or text in _ENGINES for text in texts):
        return f"uses {toolkits[0]} with PostgreSQL"
    if programs := list(filter(None, map(_program, texts))):
        return f"runs {programs[0]}"
    read = [text for text in texts if text in marks.variables]
    if "pydantic_settings" in tops:
        read += _fields(nodes, marks.variables)
    return _reads(read, other_database=any(_OTHER_DATABASE.match(text) for text in texts))


def postgres_in_text(text: str, marks: Marks) -> str:
    """Say what in a script of any other language wants PostgreSQL; an empty string for nothing."""
    code = _COMMENT.sub("", text)
    if found := _DRIVERS_TEXT.search(code):
        return f"uses {(found[1] or found[2]).strip(':').strip(chr(39) + chr(34))}"
    matches = list(marks.text.finditer(code))
    programs = [match["program"] for match in matches if match["program"]]
    if programs:
        return f"runs {programs[0]}"
    read = [match["variable"] for match in matches if match["variable"]]
    return _reads(read, other_database=_OTHER_DATABASE.search(code) is not None)


def server_of_its_own(data: bytes, marks: Marks) -> str:
    """Give the address on this machine that a source names, where no variable can stand before it.

    >>> server_of_its_own(b'connect("postgresql://maria@localhost:5432/shop")', PLAIN_MARKS)
    'localhost:5432'
    """
    found = _LOCAL_URL.search(data)
    if found is None or any(name.encode() in data for name in marks.variables):
        return ""
    host = found[1].decode()
    return host if found[2] else f"{host}:{DEFAULT_PORT}"


def misses_its_server(own: str, settings: ExampleSettings, server: PostgresSettings) -> bool:
    """Tell whether an example that goes to a server at `own` misses the one that it is given.

    In a network of its own an embedded one is where everybody looks for it, unless the example takes that
    port itself. Whether it gets such a network is known as far as the settings say so.
    """
    if not own or settings.postgres is False:
        return False
    is_there = (
        settings.network is not NetworkMode.HOST
        and server.mode in {PostgresMode.AUTO, PostgresMode.EMBEDDED}
        and server.url is None
        and own.endswith(f":{DEFAULT_PORT}")
        and DEFAULT_PORT not in settings.ports
        and DEFAULT_PORT not in {each.port for each in settings.reach}
    )
    return not is_there


def _uses_kit(nodes: Iterable[ast.AST], modules: Collection[str]) -> bool:
    """Say whether a script uses what makes databases, by whatever name it has imported the kit."""
    if f"{_KIT}.{_OF_KIT}" in modules or f"{_KIT}.isolation" in modules:
        return True
    return _KIT in modules and any(
        (isinstance(node, ast.Attribute) and node.attr == _OF_KIT)
        or (isinstance(node, ast.Name) and node.id == _OF_KIT and f"{_KIT}.*" in modules)
        for node in nodes
    )


def _program(text: str) -> str:
    """Give the program of PostgreSQL that a command begins with; an empty string for another."""
    first = text.partition(" ")[0].rpartition("/")[2]
    return first if first in _PROGRAMS else ""


def _fields(nodes: Iterable[ast.AST], variables: Collection[str]) -> Iterator[str]:
    """Find the variables that pydantic reads into fields of the same name."""
    for node in nodes:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id.upper()
            if name in variables:
                yield name


def _reads(names: Iterable[str], *, other_database: bool) -> str:
    """Name the variable that is read; ``DATABASE_URL`` is everybody's, not PostgreSQL's alone."""
    for name in names:
        if name != DATABASE_URL or not other_database:
            return f"reads {name}"
    return ""


PLAIN_MARKS = marks_of(PostgresSettings())


# --- examples ------------------------------------------------------------------------------------


def wants_postgres(example: Example) -> str:
    """Say why an example wants PostgreSQL, as in "imports asyncpg"; an empty string for no.

    What is declared decides; then the databases that it gets, its source, and its companions, which
    share what it is given.
    """
    settings = example.settings
    if settings.postgres is not None:
        return "declares postgres" if settings.postgres else ""
    if settings.databases:
        origin = settings.origins.get("databases")
        if origin is not None and origin.source is Source.CONFIG:
            return "the configuration defines databases"
        return "declares databases"
    if example.found_postgres:
        return example.found_postgres
    for companion in example.companions:
        if reason := wants_postgres(companion):
            return f"needs {companion.path}, which {_of_another(reason)}"
    return ""


def _of_another(reason: str) -> str:
    """Make a reason follow "which"."""
    return "gets databases" if reason.startswith("the configuration") else reason
