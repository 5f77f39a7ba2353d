import dataclasses
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from e2e_runner.kinds import Merge
from e2e_runner.layers import Given, choose, read_environment, read_flags, suggestion
from e2e_runner.model import (
    DatabaseDefinition,
    ExampleSettings,
    HttpProbe,
    LogProbe,
    Origin,
    PostgresMode,
    PostgresSettings,
    ReportFormat,
    RunSettings,
    ServerAddress,
    Shard,
    Source,
    TcpProbe,
)
from e2e_runner.parsers import (
    NestedError,
    UnknownKeyError,
    integer,
    parse_arguments,
    parse_command,
    parse_database_pattern,
    parse_databases,
    parse_duration,
    parse_environment,
    parse_flag,
    parse_glob,
    parse_interpreters,
    parse_positive_duration,
    parse_probe,
    parse_report,
    parse_server,
    parse_server_url,
    parse_shard,
    parse_size,
    parse_templates,
    parse_wanted_databases,
    parse_wants_postgres,
    quoted,
)
from e2e_runner.settings import EXAMPLE_SETTINGS, RUN_SETTINGS, SETTINGS, Scope, Setting, within

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


# --- the table -----------------------------------------------------------------------------------


def test_the_table_names_exactly_the_fields_of_the_run_settings() -> None:
    fields = {field.name for field in dataclasses.fields(RunSettings)}
    made = {"root", "config_file", "state_dir", "origins"}  # not given, but found
    names = {setting.parameter for setting in RUN_SETTINGS if "." not in setting.name}
    names -= {"config", "skip_websocket", "keep_databases", "databases"}
    assert (names - {"report"}) | {"reports", "postgres"} == fields - made


def test_the_table_names_exactly_the_fields_of_the_postgres_settings() -> None:
    fields = {field.name for field in dataclasses.fields(PostgresSettings)}
    names = {setting.name.removeprefix("postgres.").replace("-", "_") for setting in RUN_SETTINGS}
    assert fields - names == {"mode"}  # of `postgres.url`
    assert fields & {setting.parameter for setting in EXAMPLE_SETTINGS} == {"env", "databases"}


def test_the_table_names_exactly_the_fields_of_the_example_settings() -> None:
    fields = {field.name for field in dataclasses.fields(ExampleSettings)} - {"origins"}
    assert {setting.parameter for setting in EXAMPLE_SETTINGS} == fields


@pytest.mark.parametrize("scope", list(Scope))
def test_names_are_unique_within_a_scope(scope: Scope) -> None:
    names = [setting.name for setting in SETTINGS if scope in setting.scopes]
    assert len(names) == len(within(scope))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_has_one_sentence_of_help_and_a_flag_where_it_says_so(
    setting: Setting,
) -> None:
    assert setting.help.endswith(".")
    assert setting.help[0].isupper()
    assert bool(setting.flags) == (Scope.FLAG in setting.scopes)
    assert setting.kind.accepted


_OF_EACH_KIND = {setting.kind.parse: setting for setting in SETTINGS}.values()


@given(anything)
def test_a_parser_accepts_or_raises_value_error(value: object) -> None:
    for setting in _OF_EACH_KIND:
        note(setting.name)
        try:
            setting.kind.parse(value)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017 - the message is what is tested


# --- durations and sizes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1h", 3600.0),
        ("1h2m3s4ms", 3723.004),
        ("1.5m", 90.0),
        ("0.25", 0.25),
        (" 2M ", 120.0),
        (90, 90.0),
        (1.5, 1.5),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "s",
        "1d",
        "1m30",
        "30s1m",
        "-1",
        "1e3",
        "\u0661s",
        "1 m",
        True,
        None,
        -1,
        "9" * 400,
        float("nan"),
        float("inf"),
        10**400,
        [1],
        "400000h",
        "1m 30s",
    ],
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match=r"not a duration|longer than a year"):
        parse_duration(value)


def test_a_timeout_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no time at all"):
        parse_positive_duration("0s")


@given(st.integers(0, 1000), st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_written_duration_reads_back(hours: int, minutes: int, seconds: int, millis: int) -> None:
    text = f"{hours}h{minutes}m{seconds}s{millis}ms"
    expected = hours * 3600 + minutes * 60 + seconds + millis / 1000
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("64MiB", 64 * 1024**2),
        ("1GB", 10**9),
        ("1.5 KiB", 1536),
        ("2048", 2048),
        (2048, 2048),
        ("2048B", 2048),
        ("1tib", 1024**4),
    ],
)
def test_sizes(text: object, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "value", ["", "MiB", "1XB", "-1", "1e6", 1023, "2PB", 2**80, True, 1.5, None, "9" * 400, "64M"]
)
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match=r"not a size|out of range"):
        parse_size(value)


@given(st.integers(1, 65535))
def test_ports_from_text_and_numbers(port: int) -> None:
    parse = integer(least=1, most=65535)
    assert parse(port) == parse(str(port)) == port


@pytest.mark.parametrize(
    "value", [0, 65536, "0", "", "80a", True, 80.0, None, "\u0668\u0660", "9" * 5000]
)
def test_what_is_no_port(value: object) -> None:
    with pytest.raises(ValueError, match=r"whole number|out of range"):
        integer(least=1, most=65535)(value)


# --- probes and other text -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "probe"),
    [
        ("http://127.0.0.1:8000/health", HttpProbe(url="http://127.0.0.1:8000/health")),
        ("https://localhost", HttpProbe(url="https://localhost")),
        ("tcp://127.0.0.1:8000", TcpProbe(host="127.0.0.1", port=8000)),
        ("tcp://[::1]:8000", TcpProbe(host="::1", port=8000)),
        ("log:ready in \\d+ms", LogProbe(pattern="ready in \\d+ms")),
        ("log: started: yes", LogProbe(pattern="started: yes")),
    ],
)
def test_probes(text: str, probe: object) -> None:
    assert parse_probe(text) == probe


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8000",
        "ftp://host:1",
        "tcp://host",
        "tcp://:80",
        "tcp://h:0",
        "tcp://h:1/x",
        "log:",
        "log:(",
        "http://",
        "http://[::1",
        "http://host:99999",
        "http://a b/",
        "tcp://u@h:1",
    ],
)
def test_what_is_no_probe(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_probe(text)


def test_environment_variables_from_tables_and_flags() -> None:
    assert parse_environment({"A": "x", "PORT": 8000, "RATE": 0.5}) == {
        "A": "x",
        "PORT": "8000",
        "RATE": "0.5",
    }
    assert parse_environment(("A=x=y", "B=")) == {"A": "x=y", "B": ""}


@pytest.mark.parametrize("value", [{"A": True}, {"": "x"}, {"A=B": "x"}, "A", {"A": ["x"]}, 3])
def test_what_are_no_environment_variables(value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_environment(value)


def test_commands_are_split_as_a_shell_would() -> None:
    assert parse_command("bash -e 'a b'") == ("bash", "-e", "a b")
    assert parse_command(["node", 8]) == ("node", "8")
    with pytest.raises(ValueError, match="No closing quotation"):
        parse_command("bash '")


def test_arguments_keep_repeats() -> None:
    assert parse_arguments(["-v", "-v", 3]) == ("-v", "-v", "3")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "true"),
        ([True, 1.5, "a"], "[true, 1.5, 'a']"),
        ({"port": 8000, "on": False}, "{ port = 8000, on = false }"),
        ({}, "{}"),
        (date(2026, 11, 21), "2026-11-21"),
        ("x" * 100, f"'{'x' * 58}…"),
    ],
)
def test_a_rejected_value_is_shown_as_toml_has_it(value: object, shown: str) -> None:
    assert quoted(value) == shown


@pytest.mark.parametrize("value", ["-1", -1, "0", "-99999999999", "11"])
def test_a_whole_number_that_is_too_small_or_too_large_is_out_of_range(value: object) -> None:
    with pytest.raises(ValueError, match=f"{quoted(value)} is out of range"):
        integer(least=1, most=10)(value)


@pytest.mark.parametrize("value", ["--1", "1.0", "- 1", "", True, 1.0, None])
def test_what_is_no_whole_number(value: object) -> None:
    with pytest.raises(ValueError, match="is not a whole number"):
        integer(least=1, most=10)(value)


def test_shards() -> None:
    assert parse_shard("2/4") == Shard(index=2, count=4)
    for wrong in ("3", "5/4", "0/4", "-1/4", "1/x"):
        with pytest.raises(ValueError, match="is"):
            parse_shard(wrong)
    with pytest.raises(ValueError, match="'3' is not I/N"):
        parse_shard("3")


def test_reports_and_interpreters_and_flags() -> None:
    assert parse_report("junit=a=b.xml") == (ReportFormat.JUNIT, "a=b.xml")
    assert parse_interpreters({".sh": "bash -e"}) == {".sh": "bash -e"}
    assert [parse_flag(value) for value in ("1", "No", True, "off")] == [True, False, True, False]
    for parse, value in (
        (parse_report, "xml=x"),
        (parse_report, "json="),
        (parse_interpreters, {"sh": "bash"}),
        (parse_interpreters, {".sh": 1}),
        (parse_flag, 1),
        (parse_glob, "!x"),
    ):
        with pytest.raises(ValueError, match=r".+"):
            parse(value)


# --- PostgreSQL ----------------------------------------------------------------------------------


def test_servers_by_name_and_by_url() -> None:
    assert parse_server(" Embedded ") is PostgresMode.EMBEDDED
    assert parse_server("env") is PostgresMode.ENV
    expected = ServerAddress(host="db", port=5432, user="u", password="p", database="u")  # noqa: S106 - same
    assert parse_server("postgresql+asyncpg://u:p@db\n") == expected
    assert parse_server_url("postgres://u:p@db") == expected


@pytest.mark.parametrize(
    "value",
    [
        "url",
        "host=db password=pw",
        "mysql://u:pw@db",
        "postgres://u:pw/@db",
        {"x": "pw"},
        "",
        None,
        1,
    ],
)
def test_what_is_no_server_is_refused_without_its_password(value: object) -> None:
    for parse in (parse_server, parse_server_url, parse_wants_postgres):
        with pytest.raises(ValueError, match=r".+") as caught:
            parse(value if parse is not parse_wants_postgres else {"url": value})
        assert "pw" not in str(caught.value)


def test_a_misspelt_name_of_a_server_is_quoted() -> None:
    with pytest.raises(ValueError, match=r"^'embeded' is neither"):
        parse_server("embeded")


def test_patterns_of_databases() -> None:
    for pattern in ("shop_test_", "*_e2e_*", "x*", "täst"):
        assert parse_database_pattern(pattern) == pattern
    for pattern, reason in (
        ("abc", "too short"),
        ("", "too short"),
        ("*", "every"),
        ("**", "every"),
    ):
        with pytest.raises(ValueError, match=reason):
            parse_database_pattern(pattern)


def test_templates_of_variables() -> None:
    assert parse_templates({"A": "{host}:{x}", "B": 1}) == {"A": "{host}:{x}", "B": "1"}
    with pytest.raises(NestedError, match="literal brace is doubled") as caught:
        parse_templates({"A": "{"})
    assert caught.value.path == ("A",)


def test_definitions_of_databases() -> None:
    table = {
        "orm": {"env": ["DB_NAME", "DB_TEST_NAME"]},
        "ohlcv": {"env": "DB_OHLCV_NAME", "template": "sql/ohlcv.sql", "command": "make 'a b'"},
        "raw": {"suffix": "-2", "template": ["a.sql", "b.sql"]},
    }
    assert parse_databases(table) == (
        DatabaseDefinition(name="orm", env=("DB_NAME", "DB_TEST_NAME")),
        DatabaseDefinition(
            name="ohlcv",
            env=("DB_OHLCV_NAME",),
            template=(Path("sql/ohlcv.sql"),),
            command=("make", "a b"),
        ),
        DatabaseDefinition(name="raw", suffix="-2", template=(Path("a.sql"), Path("b.sql"))),
    )
    assert parse_wanted_databases(table) == parse_databases(table)
    assert parse_wanted_databases(["orm", "orm", "x"]) == ("orm", "x")
    assert parse_wanted_databases([]) == ()


@pytest.mark.parametrize(
    ("table", "path", "reason"),
    [
        ({"orm": 1}, "orm", "1 is not a table"),
        ({"host": {}}, "host", "a placeholder of its own"),
        ({"a b": {}}, "a b", "no name for a database"),
        ({"a" * 24: {}}, "a" * 24, "no name for a database"),
        ({"orm": {"env": "A B"}}, "orm.env", "not a name of an environment variable"),
        ({"orm": {"suffix": "é"}}, "orm.suffix", "is no suffix"),
        ({"orm": {"suffix": "x" * 25}}, "orm.suffix", "is no suffix"),
        ({"orm": {"command": ""}}, "orm.command", "runs nothing"),
        ({"orm": {"template": [1]}}, "orm.template", "not a string"),
        ({"orm": {}, "x": {"suffix": ""}}, "x", "would be that of orm"),
        ({"orm": {"env": "A"}, "x": {"env": "A"}}, "x.env", "A is given by orm already"),
    ],
)
def test_what_are_no_definitions(table: object, path: str, reason: str) -> None:
    with pytest.raises(NestedError, match=reason) as caught:
        parse_databases(table)
    assert ".".join(caught.value.path) == path


def test_an_unknown_key_of_a_definition_knows_the_others() -> None:
    with pytest.raises(UnknownKeyError) as caught:
        parse_databases({"orm": {"sufix": "x"}})
    assert caught.value.known == ("command", "env", "suffix", "template")


# --- sources -------------------------------------------------------------------------------------


def test_flags_that_are_not_given_say_nothing() -> None:
    flags: dict[str, object] = {"timeout": None, "only": (), "strict": False, "verbose": 0, "x": 1}
    assert read_flags(flags) == ({}, [])


def test_flags_name_the_option_in_problems_and_origins() -> None:
    values, problems = read_flags({"timeout": "2m", "max_fail": "0", "only": ("a", "b")})
    assert values["timeout"] == Given(
        value=120.0, origin=Origin(source=Source.FLAG, where="--timeout")
    )
    assert values["only"].value == ("a", "b")
    assert problems == [
        "--max-fail: '0' is out of range; accepted: a whole number of at least 1",
    ]


def test_environment_variables_are_read_and_lists_split_at_commas() -> None:
    values, problems, warnings = read_environment(
        {
            "E2E_RUN_TIMEOUT": "5s",
            "E2E_RUN_SKIP": "slow, websocket",
            "E2E_RUN_STRICT": "",
            "E2E_RUN_COLOR": "red",
            "E2E_RUN_TIMOUT": "1",
            "E2E_RUN_ID": "x",
            "E2E_RUN_JOBS": "4",
            "E2E_RUN_COLOUR": "always",
            "E2E_RUN_RANDOMIZE": "1",
        }
    )
    assert {name: each.value for name, each in values.items()} == {
        "jobs": 4,
        "timeout": 5.0,
        "skip": ("slow", "websocket"),
    }
    assert problems == ["E2E_RUN_COLOR: 'red' is not one of them; accepted: auto, always or never"]
    assert warnings == [
        "E2E_RUN_COLOUR is set, but is no variable of e2e-run; did you mean E2E_RUN_COLOR?",
        "E2E_RUN_RANDOMIZE is set, but is no variable of e2e-run: it is ignored",
        "E2E_RUN_TIMOUT is set, but is no variable of e2e-run; did you mean E2E_RUN_TIMEOUT?",
    ]


def test_suggestions_see_through_underscores_and_case() -> None:
    assert suggestion("max_output", ["max-output", "paths"]) == "; did you mean max-output?"
    assert suggestion("Timout", ["timeout"]) == "; did you mean timeout?"
    assert suggestion("zzz", ["timeout"]) == ""


# --- joining -------------------------------------------------------------------------------------

_BY_NAME = {setting.name: setting for setting in RUN_SETTINGS + EXAMPLE_SETTINGS}
_ORDER = [Source.FLAG, Source.ENVIRONMENT, Source.METADATA, Source.OVERRIDE, Source.CONFIG]


@given(st.lists(st.none() | st.integers(1, 9), min_size=5, max_size=5))
def test_the_strongest_source_wins(values: list[int | None]) -> None:
    layers = [
        {} if value is None else {"timeout": Given(value=value, origin=Origin(source=source))}
        for source, value in zip(_ORDER, values, strict=True)
    ]
    chosen = choose(_BY_NAME["timeout"], layers)
    present = [pair for pair in zip(values, _ORDER, strict=True) if pair[0] is not None]
    expected = present[0] if present else (60.0, Source.DEFAULT)
    assert (chosen.value, chosen.origin.source) == expected


def test_tables_merge_and_lists_add_up() -> None:
    def layers(name: str, *values: object) -> list[dict[str, Given]]:
        return [
            {name: Given(value=value, origin=Origin(source=source, where=f"at {source}"))}
            for source, value in zip(_ORDER, values, strict=False)
        ]

    env = choose(_BY_NAME["env"], layers("env", {"A": "1"}, {"A": "2", "B": "3"}))
    assert env.value == {"A": "1", "B": "3"}
    assert env.origin == Origin(source=Source.FLAG, where="at flag, at environment")
    tags = choose(_BY_NAME["tags"], layers("tags", ("b", "a"), ("a", "c")))
    assert tags.value == ("b", "a", "c")
    merged = {setting.name for setting in SETTINGS if setting.kind.merge is not Merge.REPLACE}
    assert merged == {
        *("env", "exclude", "fail-on-output", "include", "interpreters", "locks"),
        *("postgres.patterns", "postgres.protect", "reach", "report", "skip", "tags"),
    }
