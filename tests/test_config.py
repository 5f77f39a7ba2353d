import os
import sys
from pathlib import Path

import pytest

from e2e_runner.config import Resolved, resolve
from e2e_runner.errors import ConfigError, NothingSelected, UsageError
from e2e_runner.model import (
    Color,
    Containment,
    DatabaseDefinition,
    OnPortConflict,
    Origin,
    PostgresMode,
    PostgresScope,
    PostgresSettings,
    ReportFormat,
    ReportTarget,
    ServerAddress,
    Source,
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "examples").mkdir(parents=True)
    (folder / "examples" / "example_a.py").write_text("print(1)\n")
    return folder


def _config(folder: Path, text: str, name: str = "pyproject.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def _resolve(
    cwd: Path,
    *paths: str,
    environ: dict[str, str] | None = None,
    executable: str | None = None,
    **flags: object,
) -> Resolved:
    return resolve(flags, paths, environ or {}, cwd, executable=executable)


# --- where the configuration is ------------------------------------------------------------------


def test_without_configuration_the_working_directory_is_the_root(project: Path) -> None:
    run = _resolve(project).run
    assert (run.root, run.config_file) == (project, None)
    assert run.state_dir == project / ".e2e-run"
    assert run.paths == (project / "examples",)
    assert (run.max_output, run.keep_runs, run.color) == (64 * 1024**2, 20, Color.AUTO)
    assert (run.containment, run.max_fail, run.strict) == (None, None, False)


def test_the_table_is_searched_upwards_past_files_without_it(project: Path) -> None:
    file = _config(project, "[tool.e2e-run]\nstrict = true\n")
    _config(project / "examples", "[project]\nname = 'inner'\n")
    run = _resolve(project / "examples", ".").run
    assert (run.config_file, run.root, run.strict) == (file, project, True)
    assert run.origins["strict"] == Origin(source=Source.CONFIG, where="pyproject.toml:2")


def test_the_first_path_comes_before_the_working_directory(project: Path, tmp_path: Path) -> None:
    file = _config(project, "[tool.e2e-run]\n")
    other = tmp_path / "other"
    other.mkdir()
    _config(other, "strict = true\n", "e2e-run.toml")
    assert _resolve(other, "../project/examples").run.config_file == file
    assert _resolve(other, str(project / "examples" / "example_a.py")).run.root == project


def test_both_files_in_one_folder_give_a_warning(project: Path) -> None:
    _config(project, "[tool.e2e-run]\n")
    own = _config(project, "strict = true\n", "e2e-run.toml")
    resolved = _resolve(project)
    assert resolved.run.config_file == own
    assert resolved.warnings == (
        "e2e-run.toml and pyproject.toml both configure e2e-run: e2e-run.toml is used",
    )


def test_a_named_file_may_have_any_name_and_either_form(project: Path, tmp_path: Path) -> None:
    _config(project, "[tool.e2e-run]\ncolor = 'never'\n")
    for text in ("color = 'always'\n", "[tool.e2e-run]\ncolor = 'always'\n"):
        file = _config(project, text, "ci.toml")
        for run in (
            _resolve(tmp_path, config=str(file)).run,
            _resolve(project, environ={"E2E_RUN_CONFIG": "ci.toml"}).run,
        ):
            assert (run.config_file, run.color, run.root) == (file, Color.ALWAYS, project)


def test_a_named_file_that_cannot_be_used(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"^x\.toml: the configuration file does not exist"):
        _resolve(project, config="x.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        _resolve(project, config="examples")
    _config(project, "[project]\n")
    with pytest.raises(ConfigError, match=r"has no \[tool\.e2e-run\] table"):
        _resolve(project, config="pyproject.toml")


def test_what_is_not_toml_names_line_and_column(project: Path) -> None:
    _config(project, "[tool.e2e-run]\ntimeout = \n")
    with pytest.raises(ConfigError) as caught:
        _resolve(project)
    assert str(caught.value) == "pyproject.toml:2:11: not TOML: Invalid value"
    assert caught.value.exit_code == 2


def test_somebody_elses_broken_file_is_passed_over(project: Path) -> None:
    file = _config(project, "[tool.e2e-run]\n")
    _config(project / "examples", "[project\n")
    resolved = _resolve(project, "examples")
    assert resolved.run.config_file == file
    assert resolved.warnings == (
        (
            "examples/pyproject.toml:1:9: not TOML: Expected ']' at the end of a table declaration "
            "(passed over: it does not mention e2e-run)"
        ),
    )


def test_what_is_not_utf8_and_what_is_marked_as_utf8(project: Path) -> None:
    file = project / "e2e-run.toml"
    file.write_bytes(b"\xef\xbb\xbfstrict = true\r\n")
    assert _resolve(project).run.strict
    file.write_bytes(b"strict = true\n# \xff\n")
    with pytest.raises(ConfigError) as caught:
        _resolve(project)
    assert str(caught.value) == "e2e-run.toml:2: not UTF-8: byte 0xff; accepted: TOML in UTF-8"


def test_a_folder_in_place_of_the_file_cannot_be_read(project: Path) -> None:
    (project / "e2e-run.toml").mkdir()
    with pytest.raises(ConfigError, match=r"^e2e-run\.toml: cannot be read: Is a directory"):
        _resolve(project)


# --- what it says --------------------------------------------------------------------------------


def test_every_problem_is_told_at_once_with_its_line(project: Path) -> None:
    _config(
        project,
        """\
[tool.e2e-run]
timout = "2m"
grace = "soon"
serve = "tcp://a:1"
quiet = true
randomize = 4
paths = ["nowhere"]

[[tool.e2e-run.overrides]]
match = "*.py"
ports = [0]
max_output = 3
[[tool.e2e-run.overrides]]
tags = "a"
[[tool.e2e-run.overrides]]
match = "!x"
""",
    )
    with pytest.raises(ConfigError) as caught:
        _resolve(project)
    assert [line.split("; accepted")[0] for line in str(caught.value).splitlines()] == [
        "pyproject.toml:2: timout: unknown key; did you mean timeout?",
        "pyproject.toml:3: grace: 'soon' is not a duration",
        (
            "pyproject.toml:4: serve: is a setting of single examples: "
            "write it in their metadata or in an override"
        ),
        "pyproject.toml:5: quiet: is no key here: it is given on the command line, as --quiet",
        "pyproject.toml:6: randomize: unknown key",
        "pyproject.toml:11: ports: 0 is out of range",
        (
            "pyproject.toml:12: max_output: is a setting of the whole run: "
            "write it in the configuration file"
        ),
        "pyproject.toml:13: match: is missing",
        "pyproject.toml:16: match: '!x' negates, which is not supported",
    ]


def test_a_misspelt_table_is_told(project: Path) -> None:
    file = _config(project, "[project]\nname = 'x'\n[tool.e2e_run]\nstrict = true\n")
    resolved = _resolve(project)
    wrong = "pyproject.toml:3: [tool.e2e_run] is no table of e2e-run; did you mean [tool.e2e-run]?"
    assert (resolved.run.config_file, resolved.warnings) == (None, (wrong,))
    with pytest.raises(ConfigError) as caught:
        _resolve(project, config=str(file))
    assert str(caught.value).splitlines()[:2] == [
        "pyproject.toml: has no [tool.e2e-run] table",
        f"  {wrong}",
    ]
    file.unlink()
    _config(project, "\n[e2e-run]\nstrict = true\n", "e2e-run.toml")
    with pytest.raises(ConfigError) as caught:
        _resolve(project)
    assert str(caught.value) == (
        "e2e-run.toml:2: [e2e-run] is no table of e2e-run; did you mean [tool.e2e-run]?\n"
        "To fix this: correct the table's name, or write its keys without a table"
    )


def test_overrides_that_are_no_tables(project: Path) -> None:
    _config(project, "overrides = 3\n", "e2e-run.toml")
    with pytest.raises(ConfigError, match=r"^e2e-run\.toml:1: overrides: is not a list of tables"):
        _resolve(project)


def test_a_table_that_is_none(project: Path) -> None:
    _config(project, "[tool]\ne2e-run = 3\n")
    with pytest.raises(ConfigError, match=r"^pyproject\.toml:2: tool\.e2e-run: is not a table"):
        _resolve(project)


def test_flags_and_variables_are_checked_together(project: Path) -> None:
    with pytest.raises(UsageError) as caught:
        _resolve(
            project,
            environ={"E2E_RUN_GRACE": "x"},
            timeout="y",
            report=("xml=a",),
            quiet=True,
            verbose=1,
        )
    assert [line.split("; accepted")[0] for line in str(caught.value).splitlines()] == [
        "--report: there is no report format 'xml'",
        "--timeout: 'y' is not a duration",
        "E2E_RUN_GRACE: 'x' is not a duration",
        "--verbose and --quiet contradict each other: give one of them",
    ]


def test_precedence_of_the_settings_of_a_run(project: Path) -> None:
    _config(
        project,
        "on-port-conflict = 'wait'\ncolor = 'never'\nmax-fail = 3\n"
        "exclude = ['a']\ninterpreters = { '.sh' = 'sh' }\n",
        "e2e-run.toml",
    )
    run = _resolve(
        project,
        environ={"E2E_RUN_COLOR": "always", "E2E_RUN_MAX_FAIL": "2", "E2E_RUN_EXCLUDE": "b,c"},
        max_fail="1",
        exclude=("d",),
        containment="scan",
    ).run
    assert run.on_port_conflict is OnPortConflict.WAIT
    assert run.color is Color.ALWAYS
    assert run.max_fail == 1
    assert run.containment is Containment.SCAN
    assert run.exclude == ("d", "b", "c", "a")
    assert run.interpreters[".sh"] == "sh"
    assert run.interpreters[".js"] == "node"
    assert run.origins["color"] == Origin(source=Source.ENVIRONMENT, where="E2E_RUN_COLOR")
    assert run.origins["max-fail"] == Origin(source=Source.FLAG, where="--max-fail")
    assert run.origins["exclude"] == Origin(
        source=Source.FLAG, where="--exclude, E2E_RUN_EXCLUDE, e2e-run.toml:4"
    )


def test_skipped_tags_add_up_unless_a_stronger_source_selects_them(project: Path) -> None:
    _config(project, "skip = ['slow', 'gpu']\n", "e2e-run.toml")
    assert _resolve(project, skip_websocket=True).run.skip == ("websocket", "slow", "gpu")
    assert _resolve(project, skip=("a",)).run.skip == ("a", "slow", "gpu")
    assert _resolve(project, only=("slow",)).run.skip == ("gpu",)
    assert _resolve(project, only=("a",), skip=("a",)).run.skip == ("a", "slow", "gpu")


def test_report_paths_are_relative_to_where_they_are_written(project: Path) -> None:
    _config(project, "report = 'junit=out/a.xml'\n", "e2e-run.toml")
    run = _resolve(project / "examples", ".", report=("json=b.json",)).run
    assert run.reports == (
        ReportTarget(format=ReportFormat.JSON, file=project / "examples" / "b.json"),
        ReportTarget(format=ReportFormat.JUNIT, file=project / "out" / "a.xml"),
    )
    with pytest.raises(UsageError, match="json and jsonl would both be written to"):
        _resolve(project, report=("json=x", "jsonl=./x"))


# --- paths ---------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist_suggests_its_neighbour(project: Path) -> None:
    with pytest.raises(UsageError) as caught:
        _resolve(project, "examples/exampel_a.py")
    assert str(caught.value) == (
        "'examples/exampel_a.py' does not exist\n"
        f"  it was looked for in {project}\n"
        "To fix this: did you mean examples/example_a.py?"
    )
    with pytest.raises(UsageError, match=r"did you mean examples\?"):
        _resolve(project, "exampels/example_a.py")
    with pytest.raises(UsageError, match="e2e-run --help lists the commands"):
        _resolve(project, "zzz")


def test_a_path_that_is_neither_file_nor_folder(project: Path) -> None:
    os.mkfifo(project / "pipe.py")
    with pytest.raises(UsageError, match=r"pipe\.py is neither a file nor a folder"):
        _resolve(project, "pipe.py")


def test_a_missing_default_folder_is_nothing_to_run(tmp_path: Path) -> None:
    with pytest.raises(NothingSelected) as caught:
        _resolve(tmp_path)
    assert caught.value.exit_code == 4
    assert str(caught.value).splitlines()[:3] == [
        f"There is nothing to run: {tmp_path}/examples is no folder",
        "  no PATH was given",
        "  no configuration file was found",
    ]


def test_configured_paths_are_relative_to_the_configuration(project: Path) -> None:
    _config(project, "paths = ['examples/example_a.py', 'nope', 'no']\n", "e2e-run.toml")
    with pytest.raises(ConfigError) as caught:
        _resolve(project / "examples")
    assert str(caught.value).splitlines() == [
        f"{project}/e2e-run.toml:1: paths: '{name}' does not exist; "
        "accepted: files and folders, relative to e2e-run.toml"
        for name in ("nope", "no")
    ]
    _config(project, "paths = ['examples/example_a.py']\n", "e2e-run.toml")
    run = _resolve(project / "examples").run
    assert run.paths == (project / "examples" / "example_a.py",)
    assert run.origins["paths"] == Origin(source=Source.CONFIG, where="e2e-run.toml:1")


def test_dots_behind_a_symlink_lead_where_the_system_says(project: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "a.py").write_text("")
    (project / "link").symlink_to(tmp_path / "far" / "deep")
    assert _resolve(project, "link/../a.py").run.paths == (tmp_path.resolve() / "far" / "a.py",)
    assert _resolve(project, "examples/../examples").run.paths == (project / "examples",)


# --- the interpreter -----------------------------------------------------------------------------


def _venv(folder: Path) -> Path:
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return python


def test_the_interpreter_and_where_it_comes_from(project: Path, tmp_path: Path) -> None:
    resolved = _resolve(project, executable="/last/resort")
    assert resolved.run.python == "/last/resort"
    local = _venv(project / ".venv")
    assert _resolve(project).run.python == str(local)  # not what the symlink leads to
    active = _venv(tmp_path / "active")
    environ = {"VIRTUAL_ENV": str(tmp_path / "active")}
    assert _resolve(project, environ=environ).run.python == str(active)
    named = _resolve(project, environ=environ, python=".venv/bin/python")
    assert named.run.python == str(local)
    assert named.run.origins["python"] == Origin(source=Source.FLAG, where="--python")
    _config(project, "python = '.venv/bin/python'\n", "e2e-run.toml")
    assert _resolve(project / "examples", ".", environ=environ).run.python == str(local)


def test_a_virtual_environment_that_is_gone_is_a_warning(project: Path) -> None:
    resolved = _resolve(project, environ={"VIRTUAL_ENV": "/gone"}, executable="/x")
    assert resolved.run.python == "/x"
    assert resolved.warnings == ("VIRTUAL_ENV names /gone, which has no bin/python: it is ignored",)


def test_a_named_interpreter_must_be_one(project: Path) -> None:
    with pytest.raises(UsageError, match=r"^--python: the interpreter .*/nope does not exist"):
        _resolve(project, python="./nope")
    with pytest.raises(UsageError, match=r"^E2E_RUN_PYTHON: .*example_a\.py cannot be executed"):
        _resolve(project, environ={"E2E_RUN_PYTHON": "examples/example_a.py"})
    _config(project, "\npython = 'no-such-python'\n", "e2e-run.toml")
    with pytest.raises(UsageError, match=r"^e2e-run\.toml:2: there is no interpreter"):
        _resolve(project)


# --- PostgreSQL ----------------------------------------------------------------------------------

POSTGRES = """\
[tool.e2e-run]
keep-databases = true
[tool.e2e-run.postgres]
url = "postgresql://maria:pw@db/shop"
admin-url = "postgresql://root@db:5433/postgres"
scope = "run"
env = { DB_HOST = "{host}", DB_NAMES = "{orm} {{x}}" }
patterns = ["shop_test_*"]
protect = ["shop"]
[tool.e2e-run.databases]
orm = { env = "DB_NAME", template = "sql/orm.sql" }
ohlcv = {}
"""


def _server(host: str = "db", user: str = "maria", **more: object) -> ServerAddress:
    given: dict[str, object] = {"host": host, "port": 5432, "user": user, "password": None}
    return ServerAddress(**{**given, "database": user, **more})  # type: ignore[arg-type]


def test_without_a_word_of_postgres_it_is_embedded_and_the_caller_has_no_say(project: Path) -> None:
    caller = {"DATABASE_URL": "postgresql://prod", "PGHOST": "prod", "PGSERVICE": "prod"}
    assert _resolve(project, environ=caller).run.postgres == PostgresSettings()


def test_all_of_postgres_in_the_configuration(project: Path) -> None:
    _config(project, POSTGRES)
    (project / "sql").mkdir()
    (project / "sql" / "orm.sql").write_text("")
    run = _resolve(project).run
    assert run.postgres == PostgresSettings(
        mode=PostgresMode.URL,
        url=_server(database="shop", password="pw"),  # noqa: S106 - of no server
        admin_url=_server(user="root", port=5433, database="postgres"),
        scope=PostgresScope.RUN,
        env={"DB_HOST": "{host}", "DB_NAMES": "{orm} {{x}}"},
        patterns=("shop_test_*",),
        protect=("shop",),
        keep_databases=True,
        databases=(
            DatabaseDefinition(
                name="orm", env=("DB_NAME",), template=(project / "sql" / "orm.sql",)
            ),
            DatabaseDefinition(name="ohlcv"),
        ),
    )
    assert run.origins["postgres.scope"].where == "pyproject.toml:6"
    assert "pw" not in repr(run)


@pytest.mark.parametrize(
    ("flag", "variable", "config", "expected"),
    [
        (None, "", "", "auto"),
        (None, "", "postgres://db", "url db"),
        (None, "postgres://other", "postgres://db", "url other"),
        ("postgres://third", "embedded", "off", "url third"),
        ("embedded", "postgres://other", "", "embedded"),
        ("off", "", "postgres://db", "off"),
        ("auto", "", "postgres://db", "url db"),  # auto is the URL that e2e-run was given
        ("auto", "off", "embedded", "auto"),
        ("env", "", "postgres://db", "env prod"),
        (None, "", "env", "env prod"),
    ],
)
def test_which_server(
    project: Path, flag: str | None, variable: str, config: str, expected: str
) -> None:
    _config(project, f"[tool.e2e-run.postgres]\nurl = '{config}'\n" if config else "")
    environ = {"E2E_RUN_POSTGRES": variable, "DATABASE_URL": "postgres://prod"}
    postgres = _resolve(project, environ=environ, postgres=flag).run.postgres
    assert (
        f"{postgres.mode} {postgres.url.host}" if postgres.url else postgres.mode.value
    ) == expected


def test_the_variable_that_decided_is_named(project: Path) -> None:
    origins = _resolve(project, environ={"PGHOST": "db"}, postgres="env").run.origins
    assert origins["postgres.url"] == Origin(source=Source.FLAG, where="--postgres, PGHOST")


def test_variables_that_name_no_server_are_an_error_with_a_remedy(project: Path) -> None:
    with pytest.raises(UsageError, match=r"^--postgres: env: neither DATABASE_URL") as caught:
        _resolve(project, environ={"DATABASE_URL": "sqlite:///x"}, postgres="env")
    assert caught.value.facts == ("DATABASE_URL is set, but is no URL of a PostgreSQL server",)
    assert "auto" in caught.value.remedy
    with pytest.raises(UsageError, match=r"^PGSERVICE is set"):
        _resolve(project, environ={"PGSERVICE": "x", "E2E_RUN_POSTGRES": "env"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[tool.e2e-run]\npostgres = 'embedded'",
            (
                "pyproject.toml:2: postgres: is not a table; accepted: postgres.admin-url, postgres.env, "
                "postgres.patterns, postgres.protect, postgres.scope, postgres.url"
            ),
        ),
        (
            "[tool.e2e-run.postgres]\n\nurll = 'x'",
            ("pyproject.toml:3: postgres.urll: unknown key; did you mean postgres.url?"),
        ),
        (
            "[tool.e2e-run.postgres]\nurl = 'postgres://u:pw@db:x'",
            (
                "pyproject.toml:2: postgres.url: its port is no number from 1 to 65535; a %, /, :, ?, # or "
                "@ in a name or password is written %25, %2F, %3A, %3F, %23 or %40; accepted: auto, "
                "embedded, env, off or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
            ),
        ),
        (
            "[tool.e2e-run.postgres]\nenv = { A = '{hots}' }",
            ("pyproject.toml:2: postgres.env.A: {hots} is unknown; did you mean host?"),
        ),
        (
            "[tool.e2e-run.postgres.env]\nB = 'x'\nA = '{}'",
            (
                "pyproject.toml:3: postgres.env.A: a placeholder is {NAME}; a literal brace is doubled; "
                "accepted: NAME = VALUE with {host}, {port}, {user}, {password}, {database}, {url} and "
                "the names of databases in braces"
            ),
        ),
        (
            "[tool.e2e-run.databases.orm]\nenv = 'A'\nsufix = 'x'",
            ("pyproject.toml:3: databases.orm.sufix: unknown key; did you mean suffix?"),
        ),
        (
            "[tool.e2e-run.databases]\norm = { template = ['x.sql'] }",
            (
                "pyproject.toml:2: databases.orm.template: 'x.sql' does not exist; accepted: files of SQL, "
                "relative to pyproject.toml"
            ),
        ),
        (
            "[tool.e2e-run]\ndatabases = ['orm']",
            (
                "pyproject.toml:2: databases: ['orm'] is not a table; accepted: a table of databases, each "
                "with env (a variable or a list of them), suffix, template (a file of SQL or a list of "
                "them) and command, all optional"
            ),
        ),
    ],
)
def test_what_is_wrong_with_postgres_names_the_place(
    project: Path, text: str, message: str
) -> None:
    _config(project, text + "\n")
    with pytest.raises(ConfigError) as caught:
        _resolve(project)
    assert str(caught.value) == message


def test_overrides_may_name_what_a_template_uses(project: Path) -> None:
    _config(
        project,
        "[tool.e2e-run.postgres]\nenv = { A = '{orm}' }\n"
        "[[tool.e2e-run.overrides]]\nmatch = '*.py'\ndatabases = ['orm']\n",
    )
    assert _resolve(project).run.postgres.env == {"A": "{orm}"}
