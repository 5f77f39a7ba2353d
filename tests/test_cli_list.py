import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from e2e_runner.cli import probing
from e2e_runner.cli.list_ import list_command
from e2e_runner.cli.listing import Machine
from e2e_runner.cli.options import run_options
from e2e_runner.errors import ConfigError, SetupError, UsageError
from e2e_runner.model import Containment, NetworkTier, Plan, RunSettings
from e2e_runner.postgres.binaries import PROGRAMS, Found
from e2e_runner.settings import SETTINGS, Scope

METADATA = """\
# /// script
# [tool.e2e-run]
# timeout = "2m"
# ports = [8000]
# tags = ["slow"]
# ///
print("http://localhost:8001")
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    examples = tmp_path / "examples"
    examples.mkdir()
    (examples / "example_orders.py").write_text(METADATA)
    (examples / "example_ws_ticker.py").write_text("import demo_data\nprint(1)\n")
    (examples / "demo_data.py").write_text("print(1)\n")
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("E2E_RUN_") or name == "VIRTUAL_ENV":
            monkeypatch.delenv(name)
    return tmp_path


def _list(*args: str) -> Result:
    return CliRunner().invoke(list_command, args, catch_exceptions=True)


def test_what_would_run_and_what_would_not() -> None:
    result = _list("--skip-websocket")
    assert result.exit_code == 0
    assert (
        result.stdout
        == """\
Would run 1 example:
  examples/example_orders.py  2m; needs port 8000; uses port 8001; slow

Would not run:
  examples/example_ws_ticker.py  tagged websocket (--skip-websocket)

Not examples:
  examples/demo_data.py  imported by example_ws_ticker.py

1 example to run, 1 deselected, 1 not examples
"""
    )


def test_every_line_fits_80_columns_unless_a_path_does_not(project: Path) -> None:
    deep = project / "examples" / ("folder_" * 6) / ("deeper_" * 3)
    deep.mkdir(parents=True)
    (deep / "example.py").write_text(METADATA.replace('"slow"', '"a", "b", "c", "d"'))
    (deep / "bad.py").write_text("# /// script\n# [tool.e2e-run]\n# x = 1\n# ///\nprint(1)\n")
    result = _list("-v")
    assert result.exit_code == 0
    long = [line for line in result.stdout.splitlines() if len(line) > 80]
    assert all(len(line.split()) == 1 or line.split()[-1].startswith("examples/") for line in long)
    assert "      bad metadata:\n" in result.stdout


def test_names_are_never_interpreted_nor_control_the_terminal(project: Path) -> None:
    (project / "examples" / "[red]a\x1b[31m\nb.py").write_text("print(1)\n")
    result = _list("-k", "red")
    assert "  examples/[red]a\\x1b[31m\\nb.py  60s\n" in result.stdout


def test_verbose_shows_every_setting_with_its_origin(project: Path) -> None:
    (project / "pyproject.toml").write_text("[tool.e2e-run]\ngrace = '2s'\nstrict = true\n")
    result = _list("-v", "--timeout", "9", "examples/example_orders.py")
    for line in (
        "      strict = yes  (config: pyproject.toml:3)",
        "      keep-runs = 20  (default)",
        "      containment = auto  (default)",
        "      timeout = 9s  (flag: --timeout)",
        "      grace = 2s  (config: pyproject.toml:2)",
        "      ports = 8000  (metadata: examples/example_orders.py:4)",
        "      stdin = /dev/null  (default)",
    ):
        assert line in result.stdout.splitlines()


def test_verbose_probes_the_machine_and_writes_nothing_into_the_project(project: Path) -> None:
    before = sorted(project.rglob("*"))
    result = _list("-v", "examples/example_orders.py")
    lines = result.stdout.splitlines()
    assert lines[0] == "On this machine:"
    assert lines[1].strip() in {f"processes: {tier}" for tier in Containment}
    assert any(line.strip() in {f"network: {tier}" for tier in NetworkTier} for line in lines)
    assert "      jobs: 1" in lines
    (where,) = [line.strip() for line in lines if line.startswith("      runs on ")]
    assert where.startswith(("runs on a network of its own: ", "runs on the host network: "))
    assert sorted(project.rglob("*")) == before


def test_verbose_says_which_postgresql_the_machine_has(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "examples" / "example_orders.py").write_text("import asyncpg\nprint(asyncpg)\n")
    said = "PostgreSQL: embedded, for 1 example"
    folder = project / "postgresql" / "bin"
    folder.mkdir(parents=True)
    for name in PROGRAMS:
        (folder / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    shown = " ".join(_list("-v").stdout.split())
    assert f"{said}, from PATH ({folder})" in shown
    monkeypatch.setattr(probing, "find_binaries", lambda _: Found(binaries=(), looked_in=()))
    shown = " ".join(_list("-v").stdout.split())
    assert f"{said}; they will be blocked, as no PostgreSQL server is installed here" in shown
    assert json.loads(_list("-v", "--json").stdout)["postgres"].startswith("embedded, for 1 ")


def test_a_tier_that_cannot_be_had_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(_: Plan, run: RunSettings) -> Machine:
        raise SetupError(f"{run.containment} is not to be had.", facts=("it is not",))

    monkeypatch.setattr(probing, "probe", probe)
    monkeypatch.setenv("E2E_RUN_CONTAINMENT", "cgroup")
    result = _list("-v")
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: a run cannot be set up here: cgroup is not to be had.\n  it is not\n"
    )
    assert result.stdout.startswith("Settings of the run:\n")


def test_who_wants_postgres_and_why_without_a_password(project: Path) -> None:
    (project / "examples" / "example_orders.py").write_text("import asyncpg\nprint(asyncpg)\n")
    (project / "e2e-run.toml").write_text(
        "[postgres]\nurl = 'postgresql://u:s3cr3t@db/x'\nadmin-url = 'postgresql://r:s3cr3t@db/x'\n"
        "env = { DB_URL = '{url}' }\n[databases]\norm = {}\nohlcv = {}\n"
    )
    script = "examples/example_orders.py"
    result = _list("-v", script)
    for line in (
        "      postgres.url = postgresql://u@db:5432/x  (config: e2e-run.toml:2)",
        "      postgres.admin-url = postgresql://r@db:5432/x  (config: e2e-run.toml:3)",
        "      postgres.env = DB_URL={url}  (config: e2e-run.toml:4)",
        "      databases = orm, ohlcv  (config: e2e-run.toml:5)",
        f"  {script}  60s; PostgreSQL: orm ohlcv",
        "      wants PostgreSQL: the configuration defines databases",
        "      postgres = as its databases and its source say  (default)",
    ):
        assert line in result.stdout.splitlines()
    document = json.loads(_list("-v", "--json", script).stdout)
    (example,) = document["examples"]
    assert (example["postgres"], example["databases"]) == (
        "the configuration defines databases",
        ["orm", "ohlcv"],
    )
    assert document["settings"]["postgres.url"]["value"] == "postgresql://u@db:5432/x"
    assert "s3cr3t" not in result.output + json.dumps(document)


def test_json(project: Path) -> None:
    result = _list("--json", "--only", "slow", "--python", sys.executable)
    document = json.loads(result.stdout)
    orders = document["examples"][0]
    assert orders == {
        "path": "examples/example_orders.py",
        "file": f"{project}/examples/example_orders.py",
        "command": [sys.executable, f"{project}/examples/example_orders.py"],
        "cwd": f"{project}/examples",
        "timeout": 120.0,
        "grace": 5.0,
        "tags": ["slow"],
        "ports": [8000],
        "found_ports": [8001],
        "learned_ports": [],
        "last_duration": None,
        "failed_last_time": False,
        "network": "auto",
        "network_learned": None,
        "reach": [],
        "exclusive": False,
        "locks": [],
        "retries": 0,
        "serve": None,
        "needs": [],
        "expect_exit": 0,
        "postgres": None,
        "databases": [],
        "problems": [],
    }
    (ticker,) = document.pop("deselected")
    assert (ticker["path"], ticker["reason"]) == (
        "examples/example_ws_ticker.py",
        "not tagged slow (--only)",
    )
    assert document == {
        "schema": "e2e-run-list/1",
        "root": str(project),
        "config": None,
        "python": sys.executable,
        "shard": None,
        "last_failed": False,
        "examples": [orders],
        "not_examples": [
            {"path": "examples/demo_data.py", "reason": "imported by example_ws_ticker.py"}
        ],
        "warnings": [],
    }


def test_json_with_origins(project: Path) -> None:
    (project / "examples" / "s.py").write_text(
        "# /// script\n# [tool.e2e-run]\n# serve = 'tcp://[::1]:80'\n# env = {A = 1}\n# ///\nf()\n"
    )
    document = json.loads(_list("--json", "-v", "examples/s.py").stdout)
    settings = document["examples"][0]["settings"]
    assert settings["serve"] == {
        "value": "tcp://[::1]:80",
        "source": "metadata",
        "where": "examples/s.py:3",
    }
    assert settings["env"]["value"] == {"A": "1"}
    assert settings["timeout"] == {"value": 60.0, "source": "default", "where": ""}
    assert document["settings"]["verbose"]["source"] == "flag"
    assert document["settings"]["paths"] == {
        "value": [f"{project}/examples/s.py"],
        "source": "flag",
        "where": "PATH",
    }


def test_names_that_are_no_text_survive_json(project: Path) -> None:
    name = os.fsdecode(b"examples/\xff.py")
    (project / name).write_text("print(1)\n")
    document = json.loads(_list("--json", "-k", "\udcff").stdout)
    assert [each["path"] for each in document["examples"]] == [name]


def test_nothing_to_run_exits_4() -> None:
    result = _list("-k", "nothing like this")
    assert result.exit_code == 4
    assert result.stdout.endswith("\n0 examples to run, 2 deselected, 1 not examples\n")
    assert _list("-k", "nothing like this", "--json").exit_code == 4


def test_warnings_go_to_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2E_RUN_TIMOUT", "1")
    result = _list()
    assert result.stderr == (
        "warning: E2E_RUN_TIMOUT is set, but is no variable of e2e-run; "
        "did you mean E2E_RUN_TIMEOUT?\n"
    )


def test_mistakes_are_raised_as_they_stand(project: Path) -> None:
    assert isinstance(_list("nope").exception, UsageError)
    assert isinstance(_list("--timeout", "soon").exception, UsageError)
    (project / "e2e-run.toml").write_text("x = 1\n")
    assert isinstance(_list().exception, ConfigError)
    assert _list("--no-such-option").exit_code == 2


def test_a_name_that_begins_with_a_dash_is_given_after_two(project: Path) -> None:
    (project / "-x.py").write_text("print(1)\n")
    assert "  -x.py  60s\n" in _list("--", "-x.py").stdout


# --- the options ---------------------------------------------------------------------------------


@click.command()
@run_options
def _run(paths: tuple[str, ...], **flags: object) -> None:
    given = {name: value for name, value in flags.items() if value not in (None, (), 0)}
    click.echo(json.dumps([paths, given]))


def test_every_flag_of_the_table_is_an_option_with_help_and_units() -> None:
    options = {param.name: param for param in _run.params if isinstance(param, click.Option)}
    flags = {each.parameter: each for each in SETTINGS if Scope.FLAG in each.scopes}
    assert options.keys() == flags.keys()
    for name, option in options.items():
        assert tuple(option.opts) == flags[name].flags
        assert option.help
        assert option.is_flag or option.count or option.metavar


def test_help_shows_units_and_defaults() -> None:
    text = CliRunner().invoke(_run, ["--help"], terminal_width=200).stdout
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "-t, --timeout DURATION Stops an example after this time. [default: 60s]" in lines
    assert "--report FORMAT=PATH Writes a report: json, jsonl or junit. [default: none]" in lines
    assert any(line.startswith("--on-port-conflict fail|wait|skip") for line in lines)
    assert any(line.startswith("-x, --fail-fast ") for line in lines)
    assert any(line.startswith("-j, --jobs N|auto Runs ") for line in lines)
    assert any(line.startswith("--shard I/N Runs one part of the suite, ") for line in lines)


def test_what_is_not_given_says_nothing_and_what_is_comes_as_it_stands() -> None:
    assert json.loads(CliRunner().invoke(_run, []).stdout) == [[], {}]
    args = [
        "-t",
        "1m",
        "--only",
        "a",
        "--only",
        "b",
        "-x",
        "-vv",
        "-s",
        "--env",
        "A=1",
        "--skip-websocket",
        "x",
        "y",
    ]
    assert json.loads(CliRunner().invoke(_run, args).stdout) == [
        ["x", "y"],
        {
            "timeout": "1m",
            "only": ["a", "b"],
            "fail_fast": True,
            "verbose": 2,
            "no_capture": True,
            "env": ["A=1"],
            "skip_websocket": True,
        },
    ]


def test_importing_the_options_is_light() -> None:
    code = (
        "import sys, click; before = set(sys.modules); import e2e_runner.cli.options; "
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # ast comes with click, which imports inspect; urllib with pathlib.
    heavy = {"asyncio", "rich", "httpx", "psutil", "tomllib", "difflib", "json"}
    assert heavy.isdisjoint(eval(done.stdout))  # noqa: S307 - a list that this test printed


def test_full_disk_below_the_output_is_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print('hello')\n")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "e2e_runner", "list", "--json", tmp_path],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        3,
        "e2e-run: the output cannot be written: No space left on device\n",
    )
