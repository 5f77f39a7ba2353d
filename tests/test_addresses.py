import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.addresses import (
    APPLICATION_VARIABLES,
    complete,
    fill,
    from_environment,
    is_postgres_url,
    parse_url,
    placeholders,
    to_url,
    variables,
    without_application,
)
from e2e_runner.model import DatabaseDefinition, PostgresSettings, ServerAddress

SECRET = "s3cr3t"  # noqa: S105 - of no server


def address(*, word: str | None = None, **more: object) -> ServerAddress:
    given: dict[str, object] = {"host": "db", "port": 5432, "user": "maria", "database": "maria"}
    return ServerAddress(**{**given, **more, "password": word})  # type: ignore[arg-type]


# --- URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://maria@db", address()),
        ("postgres://maria:pw@db:6432/shop", address(word="pw", port=6432, database="shop")),
        ("POSTGRESQL+asyncpg://maria@db/shop", address(database="shop")),
        ("postgres+psycopg2://maria@db", address()),
        ("postgresql://maria:p%40ss%2Fword@db", address(word="p@ss/word")),
        ("postgresql://maria:p@ss@db", address(word="p@ss")),
        ("postgresql://maria:p#a+b@db", address(word="p#a+b")),
        ("postgresql://maria:@db", address()),
        ("postgresql://maria@db/s%C3%A9%20%2F", address(database="sé /")),
        ("postgresql://maria@[::1]:5433/x", address(host="::1", port=5433, database="x")),
        ("postgresql://maria@[fe80::1%25eth0]", address(host="fe80::1%eth0")),
        ("postgresql://maria@%2Frun%2Fpostgresql", address(host="/run/postgresql")),
        ("postgresql://maria@%2Frun%2Fpg:5433", address(host="/run/pg", port=5433)),
        ("postgresql://maria@/x?host=/run/pg", address(host="/run/pg", database="x")),
        ("postgresql://?host=db&user=maria&password=pw", address(word="pw")),
        ("postgresql://maria@/?host=db&port=7&dbname=x", address(port=7, database="x")),
        ("postgresql://maria@db?hostaddr=10.0.0.1", address(host="10.0.0.1")),
        (
            "postgresql://maria@db?sslmode=require&application_name=a%20b",
            address(options={"sslmode": "require", "application_name": "a b"}),
        ),
        ("postgresql://maria@db?ssl=true", address(options={"sslmode": "require"})),
        ("postgresql://maria@db?ssl=verify-full", address(options={"sslmode": "verify-full"})),
        ("postgresql://maria@db?sslmode=", address()),
    ],
)
def test_urls(url: str, expected: ServerAddress) -> None:
    assert parse_url(url) == expected


def test_who_names_no_user_is_the_one_passed_in() -> None:
    assert parse_url("postgresql://db", user="maria") == address()
    assert parse_url("postgresql://db/x", user="maria") == address(database="x")
    assert parse_url("postgresql://db") == address(user="", database="")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://maria@db/x", "no URL of a PostgreSQL server"),
        ("postgresql:maria@db", "no URL of a PostgreSQL server"),
        ("", "no URL of a PostgreSQL server"),
        ("postgresql://a,b/x", "several hosts"),
        ("postgresql://a:1,b:2/x", "several hosts"),
        ("postgresql:///x?host=a,b", "several hosts"),
        (f"postgresql://u:{SECRET}/x@db", "percent-encoded"),
        (f"postgresql://u:1/{SECRET}@db/x", "percent-encoded"),
        (f"postgresql://u:{SECRET}?x@db/x", "NAME=VALUE"),
        (f"postgresql://u:{SECRET}%zz@db/x", "two hexadecimal digits"),
        (f"postgresql://u:{SECRET}%ff@db/x", "not UTF-8"),
        (f"postgresql://u:{SECRET}%00@db/x", "NUL"),
        (f"postgresql://u:{SECRET} x@db/x", "no spaces"),
        (f"postgresql://u:{SECRET}@db:port/x", "port is no number from 1 to 65535"),
        (f"postgresql://u:{SECRET}@db:0", "port is no number"),
        (f"postgresql://u:{SECRET}@db:65536", "port is no number"),
        (f"postgresql://u:{SECRET}@db:\u0661", "port is no number"),
        (f"postgresql://u:{SECRET}@::1/x", "in brackets"),
        (f"postgresql://u:{SECRET}@[::1/x", "do not pair"),
        (f"postgresql://u:{SECRET}@[::1]5/x", "do not pair"),
        ("postgresql:///?service=x", "service files are not read"),
        ("postgresql://db/x?&", "NAME=VALUE"),
    ],
)
def test_what_is_no_url_is_refused_without_a_word_of_the_password(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_url(url)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(), st.text())
def test_any_text_is_read_or_refused_in_one_line(before: str, after: str) -> None:
    for text in (before, f"postgresql://{before}", f"postgres://u:{SECRET}{before}@h/{after}"):
        try:
            parse_url(text)
        except ValueError as error:
            assert SECRET not in str(error)  # noqa: PT017 - the message is what is tested
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - same


_words = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20
)
_hosts = (
    st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True)
    | st.ip_addresses().map(str)
    | _words.map(lambda text: "/" + text.replace(",", ""))
)
_option_names = _words.filter(
    lambda name: (
        name not in {"host", "hostaddr", "port", "user", "password", "dbname", "service", "ssl"}
    )
)


@given(
    st.builds(
        ServerAddress,
        host=_hosts,
        port=st.integers(1, 65535),
        user=_words,
        password=st.none() | _words,
        database=_words,
        options=st.dictionaries(_option_names, _words, max_size=3),
    )
)
def test_what_is_written_reads_back(original: ServerAddress) -> None:
    assert parse_url(to_url(original, with_password=True)) == original
    plain = parse_url(to_url(original, with_password=False, database="x", scheme="postgres"))
    assert (plain.password, plain.database, plain.host) == (None, "x", original.host)


def test_urls_are_written_as_every_driver_reads_them() -> None:
    socket = address(host="/run/pg", port=5433, word="p w", database="a/b")
    assert to_url(socket, with_password=True) == (
        "postgresql://maria:p%20w@/a%2Fb?host=/run/pg&port=5433"
    )
    secure = address(host="::1", options={"sslmode": "require"})
    assert to_url(secure, with_password=True) == (
        "postgresql://maria@[::1]:5432/maria?sslmode=require"
    )


def test_a_host_that_is_not_named_is_a_socket_where_there_is_one() -> None:
    unnamed = parse_url("postgresql:///?port=5433")
    sockets = {"/var/run/postgresql/.s.PGSQL.5433", "/tmp/.s.PGSQL.5432"}
    found = complete(unnamed, user="maria", exists=sockets.__contains__)
    assert found == address(host="/var/run/postgresql", port=5433)
    assert complete(unnamed, user="maria").host == "localhost"
    assert complete(address(), user="root", exists=sockets.__contains__) == address()


# --- the application's variables -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected", "decided"),
    [
        ({"DATABASE_URL": " postgres://maria@db\n"}, address(), "DATABASE_URL"),
        (
            {"DATABASE_URL": "postgres://maria@db", "PGHOST": "x", "PGPORT": "1"},
            address(),
            "DATABASE_URL",
        ),
        (
            {
                "DATABASE_URL": "postgres:///",
                "PGHOST": "db",
                "PGUSER": "maria",
                "PGPASSWORD": "pw",
                "PGSSLMODE": "require",
            },
            address(word="pw", options={"sslmode": "require"}),
            "DATABASE_URL",
        ),
        ({"PGHOST": "db", "PGUSER": "maria"}, address(), "PGHOST"),
        (
            {"DATABASE_URL": "sqlite:///x", "PGHOSTADDR": "10.0.0.1", "PGUSER": "maria"},
            address(host="10.0.0.1"),
            "PGHOSTADDR",
        ),
        (
            {"PGPORT": "5433", "PGUSER": "maria", "PGDATABASE": "x"},
            address(host="", port=5433, database="x"),
            "PGPORT",
        ),
    ],
)
def test_the_variables_of_the_caller(
    environ: dict[str, str], expected: ServerAddress, decided: str
) -> None:
    assert from_environment(environ) == (expected, decided)


@pytest.mark.parametrize(
    "environ",
    [{}, {"PGHOST": ""}, {"PGPASSWORD": "pw"}, {"PGSSLMODE": "require"}, {"DATABASE_URL": "x"}],
)
def test_no_server_is_named(environ: dict[str, str]) -> None:
    assert from_environment(environ) is None


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"PGSERVICE": "prod", "PGHOST": "db"}, "^PGSERVICE is set"),
        ({"PGHOST": "a,b"}, "^PGHOST and other PG. variables: several hosts"),
        ({"PGHOST": "a", "PGPORT": "x"}, "^PGHOST and .* port is no number"),
        ({"DATABASE_URL": f"postgres://u:{SECRET}@a,b"}, "^DATABASE_URL: several hosts"),
    ],
)
def test_variables_that_cannot_be_used_are_named(environ: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        from_environment(environ)
    assert SECRET not in str(caught.value)


def test_only_what_leads_to_databases_is_withheld() -> None:
    environ = {
        "PATH": "/bin",
        "PGTZ": "UTC",
        "DATABASE_URL": "postgres://prod",
        "PGPASSWORD": SECRET,
        "PGHOST": "",
        "DB_HOST": "prod",
        "DB_NAME": "shop",
        "URI": "postgresql+asyncpg://prod/shop",
        "E2E_RUN_POSTGRES": "postgres://admin@db",
        "E2E_RUN_ID": "x",
    }
    settings = PostgresSettings(
        env={"DB_HOST": "{host}", "DB_PORT": "{port}"},
        databases=(DatabaseDefinition(name="orm", env=("DB_NAME",)),),
    )
    environ["DB_X"] = "x"
    own = [DatabaseDefinition(name="x", env=("DB_X",))]
    withheld = without_application(environ, settings, own)
    assert withheld.environ == {"PATH": "/bin", "PGTZ": "UTC", "E2E_RUN_ID": "x"}
    assert withheld.names == ("DATABASE_URL", "PGPASSWORD", "DB_HOST", "DB_NAME", "DB_X", "URI")


def test_a_script_is_told_nothing_of_the_caller_that_its_server_does_not_say() -> None:
    told = variables(address(options={"sslmode": "require"}), {}, [], {})
    assert told.keys() - set(APPLICATION_VARIABLES) == set()
    assert told["PGSSLMODE"] == "require"
    assert "PGPASSWORD" not in told


def test_a_script_is_told_of_its_server_in_the_names_that_it_reads() -> None:
    told = variables(
        address(word="p/w", database="t1"),
        {"orm": "t1", "ohlcv": "t1_ohlcv"},
        [
            DatabaseDefinition(name="orm", env=("DB_NAME", "DB_TEST_NAME")),
            DatabaseDefinition(name="ohlcv", env=("DB_OHLCV_NAME",)),
        ],
        {
            "OTHER": "{other}",
            "DB": "{user}:{password}@{host}:{port} {database} {ohlcv} {{}}",
            "SHOP_URL": "{url}",
        },
    )
    assert told == {
        "DATABASE_URL": "postgresql://maria:p%2Fw@db:5432/t1",
        "PGHOST": "db",
        "PGPORT": "5432",
        "PGUSER": "maria",
        "PGPASSWORD": "p/w",
        "PGDATABASE": "t1",
        "DB_NAME": "t1",
        "DB_TEST_NAME": "t1",
        "DB_OHLCV_NAME": "t1_ohlcv",
        "DB": "maria:p/w@db:5432 t1 t1_ohlcv {}",
        "SHOP_URL": "postgresql://maria:p%2Fw@db:5432/t1",
    }


@pytest.mark.parametrize("template", ["{", "}", "{host", "{host!r}", "{host:>3}", "{}", "{a.b}"])
def test_templates_that_are_none(template: str) -> None:
    with pytest.raises(ValueError, match="a literal brace is doubled"):
        placeholders(template)


@given(st.text())
def test_doubled_braces_are_literal(text: str) -> None:
    template = text.replace("{", "{{").replace("}", "}}")
    assert placeholders(template) == ()
    assert fill(template, {}) == text


def test_which_urls_are_of_postgresql() -> None:
    assert is_postgres_url("postgres+asyncpg://")
    assert not is_postgres_url("postgresqlx://")
