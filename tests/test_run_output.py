"""What a run shows, keeps and returns: capture, logs, exit codes, and what a script is given."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Project, overrides, project

from e2e_runner.text import strip_ansi

SPEAKS = """
import os
for n in range(3):
    os.write(1, b"out %d\\n" % n)
    os.write(2, b"err %d\\n" % n)
"""


@pytest.fixture
def made() -> Iterator[Project]:
    with project() as fresh:
        yield fresh


def configure(made: Project, *lines: str, **settings: list[str]) -> None:
    """Write the configuration; each keyword is the stem of a script, with lines of its override."""
    made.write(
        "e2e-run.toml",
        "\n".join(
            [
                f'python = "{made.python}"',
                *lines,
                overrides({f"{stem}.py": own for stem, own in settings.items()}),
            ]
        ),
    )


def log_of(made: Project, example: dict[str, object]) -> Path:
    return made.root / str(example["log"])


# --- what is shown -------------------------------------------------------------------------------


def test_a_run_where_all_is_well_says_so(made: Project) -> None:
    made.write("examples/one.py", "print('hidden')")
    made.write("examples/two.py", "print('hidden')")
    outcome = made.run()
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("e2e-run ")
    assert [line[:14] for line in lines[1:3]] == ["1/2  ✓ passed ", "2/2  ✓ passed "]
    assert "Example Results Summary" in lines
    assert lines[-2].startswith("2 passed in ")
    assert lines[-1] == "All examples passed"
    assert "hidden" not in outcome.stdout
    assert "\x1b" not in outcome.stdout
    assert outcome.stderr == ""


def test_without_capture_output_is_shown_and_kept(made: Project) -> None:
    made.write("one.py", SPEAKS)
    made.write("three.py", "print('no end of line', end='')")
    made.write("two.py", "print('the last')")
    outcome = made.run("-s", "one.py", "three.py", "two.py")
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    first = lines.index("out 0")
    written = ["out 0", "err 0", "out 1", "err 1", "out 2", "err 2"]
    assert lines[first : first + 6] == written
    assert lines[first + 6].startswith("1/3  ✓ passed ")
    # The next line of e2e-run's own begins on a line of its own.
    after = lines.index("no end of line") + 1
    assert lines[after].startswith("2/3  ✓ passed ")
    assert log_of(made, outcome.examples["one.py"]).read_text().splitlines() == written


def test_without_capture_output_is_shown_as_it_comes(made: Project) -> None:
    made.write(
        "asks.py",
        "import os\nos.mkfifo('go')\nprint('before', flush=True)\nopen('go').read()\nprint('after')\n",
    )
    with made.running("-s", "asks.py") as running:
        stdout = running.process.stdout
        assert stdout is not None
        while stdout.readline() != "before\n":
            pass
        (made.root / "go").write_text("go")
        outcome = running.outcome()
    assert outcome.code == 0
    assert outcome.stdout.startswith("after\n")


def test_a_flood_without_capture_is_shown_whole_and_kept_in_part(made: Project) -> None:
    made.write("floods.py", "for n in range(60_000): print(f'line {n}')\n")
    outcome = made.run("-s", "--max-output", "64KiB", "floods.py")
    assert outcome.code == 0
    assert log_of(made, outcome.examples["floods.py"]).stat().st_size < 100 * 1024
    assert "line 0\n" in outcome.stdout
    assert "line 59999\n" in outcome.stdout


def test_quiet_shows_what_is_not_ok_and_the_totals(made: Project) -> None:
    made.write("fails.py", "raise SystemExit('no luck')")
    made.write("passes.py", "print('fine')")
    outcome = made.run("-q", "fails.py", "passes.py")
    assert outcome.code == 1
    assert "passes.py" not in outcome.stdout
    assert "│ no luck" in outcome.stdout
    assert outcome.stdout.splitlines()[-1].startswith("1 passed, 1 failed in ")
    fine = made.run("-q", "passes.py")
    assert [line[:8] for line in fine.stdout.splitlines()] == ["1 passed", "All exam"]


def test_verbose_shows_the_phases(made: Project) -> None:
    made.write("passes.py", "print('fine')")
    outcome = made.run("-v", "passes.py")
    assert "passes.py: started, at most 60s" in outcome.stdout
    assert "passes.py: running" in outcome.stdout


def test_colours_are_as_asked(made: Project) -> None:
    made.write("passes.py", "print('fine')")
    plain = made.run("passes.py", env={"NO_COLOR": "1", "FORCE_COLOR": "1"})
    coloured = made.run("passes.py", env={"FORCE_COLOR": "1"})
    always = made.run("--color", "always", "passes.py", env={"NO_COLOR": "1"})
    assert "\x1b" not in plain.stdout
    assert "\x1b[32m" in coloured.stdout
    assert "\x1b[32m" in always.stdout
    assert "All examples passed" in strip_ansi(always.stdout)


def test_the_printed_command_runs_it_by_hand(made: Project) -> None:
    made.write("a folder/it's.py", "import os, sys\nprint(sys.argv[1:], os.environ['GIVEN'])\n")
    configure(made)
    config = made.root / "e2e-run.toml"
    config.write_text(
        config.read_text()
        + '[[overrides]]\nmatch = "**/it*.py"\nargs = ["a b", "$HOME"]\nenv = { GIVEN = "x y" }\n'
    )
    outcome = made.run("a folder")
    (example,) = outcome.examples.values()
    assert example["status"] == "passed"
    done = subprocess.run(
        ["sh", "-c", example["command"]],
        cwd=made.root,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "['a b', '$HOME'] x y\n"
    assert done.stdout == log_of(made, example).read_text()


# --- what is kept --------------------------------------------------------------------------------


def test_streams_can_be_kept_apart(made: Project) -> None:
    configure(made, 'capture = "separate"')
    made.write("speaks.py", SPEAKS + "raise SystemExit(1)\n")
    outcome = made.run("speaks.py")
    example = outcome.examples["speaks.py"]
    out = log_of(made, example)
    err = out.with_name(out.name.replace(".out.", ".err."))
    assert out.read_text() == "out 0\nout 1\nout 2\n"
    assert err.read_text() == "err 0\nerr 1\nerr 2\n"
    assert example["output_tail"] == "out 0\nout 1\nout 2\nerr 0\nerr 1\nerr 2\n"


def test_the_middle_of_a_flood_is_dropped_and_told(made: Project) -> None:
    made.write(
        "floods.py",
        "for n in range(20_000): print(f'line {n}')\nraise SystemExit('the last words')\n",
    )
    outcome = made.run("--max-output", "64KiB", "floods.py")
    example = outcome.examples["floods.py"]
    log = log_of(made, example).read_text()
    assert log.startswith("line 0\n")
    assert log.endswith("the last words\n")
    assert "e2e-run dropped" in log
    assert example["output_dropped"] > 100_000
    assert "from the middle of the output were dropped" in outcome.stdout


def test_a_script_may_remove_its_own_log(made: Project) -> None:
    made.write(
        "removes.py",
        "import os, shutil, sys\n"
        "shutil.rmtree(os.path.dirname(os.readlink('/proc/self/fd/1')))\n"
        "print('still running')\n"
        "sys.exit(int(sys.argv[1]))\n",
    )
    made.write("passes.py", "print('fine')")
    for code, status in ((0, "passed"), (1, "failed")):
        configure(made, removes=[f'args = ["{code}"]'])
        outcome = made.run("removes.py", "passes.py", "passes.py")
        assert outcome.statuses == {"removes.py": status, "passes.py": "passed"}
        assert outcome.code == code
        assert outcome.stderr == ""


def test_a_script_may_remove_its_temporary_folder(made: Project) -> None:
    made.write(
        "removes.py",
        "import os, shutil, tempfile\n"
        "shutil.rmtree(tempfile.gettempdir())\n"
        "shutil.rmtree(os.path.dirname(tempfile.gettempdir()))\n",
    )
    made.write("passes.py", "print('fine')")
    outcome = made.run("removes.py", "passes.py")
    assert outcome.statuses["removes.py"] == "passed"
    assert outcome.statuses["passes.py"] in {"passed", "failed"}
    assert outcome.stderr == ""


def test_only_the_last_runs_are_kept(made: Project) -> None:
    configure(made, "keep-runs = 2")
    made.write("passes.py", "print('fine')")
    ids = [made.run("passes.py").report["run"]["id"] for _ in range(3)]
    kept = {folder.name for folder in (made.root / ".e2e-run" / "runs").iterdir()}
    assert len(kept) == 2
    assert ids[2] in kept
    assert (made.root / ".e2e-run" / ".gitignore").read_text() == "*\n"


def test_all_reports_agree(made: Project) -> None:
    made.write("fails.py", "raise SystemExit('no luck')")
    made.write("passes.py", "print('fine')")
    outcome = made.run("--report", "jsonl=events.jsonl", "--report", "junit=r/j.xml", ".")
    events = [json.loads(line) for line in (made.root / "events.jsonl").read_text().splitlines()]
    finished = [event["result"] for event in events if event["event"] == "example-finished"]
    assert {result["path"]: result["status"] for result in finished} == outcome.statuses
    assert 'failures="1"' in (made.root / "r" / "j.xml").read_text()
    assert outcome.report["totals"] == {"passed": 1, "failed": 1}
    assert outcome.report["run"]["exit_code"] == outcome.code == 1


# --- exit codes ----------------------------------------------------------------------------------


def test_output_that_may_not_be(made: Project) -> None:
    configure(made, 'fail-on-output = ["^WARNING: ", "Deprecat(ed|ion)"]')
    made.write("warns.py", "print('ok so far')\nprint('WARNING: old ways')")
    made.write("says.py", "print('no WARNING: here')")
    made.write("fails.py", "print('WARNING: x')\nraise SystemExit(3)")
    outcome = made.run("warns.py", "says.py", "fails.py")
    assert outcome.code == 1
    assert outcome.statuses == {"warns.py": "failed", "says.py": "passed", "fails.py": "failed"}
    warns = outcome.examples["warns.py"]
    assert (warns["cause"], warns["exit_code"]) == ("output", 0)
    assert warns["reason"] == "output matched fail-on-output: WARNING:"
    assert outcome.examples["fails.py"]["reason"] == "exit code 3"


def test_strict_fails_what_leaks(made: Project) -> None:
    made.child("daemon.py")
    lenient = made.run("daemon.py")
    strict = made.run("--strict", "daemon.py")
    assert (lenient.code, lenient.statuses) == (0, {"daemon.py": "leaked"})
    assert (strict.code, strict.statuses) == (1, {"daemon.py": "leaked"})
    said = "No failures, but 1 example leaked (--strict counts that as a failure)"
    assert lenient.stdout.splitlines()[-1] == said
    assert said not in strict.stdout
    assert "All examples passed" not in lenient.stdout + strict.stdout
    assert made.survivors() == []


def test_the_first_failure_can_end_the_run(made: Project) -> None:
    for number in range(5):
        made.write(f"{number}.py", f"raise SystemExit({number} % 2)")
    names = [f"{number}.py" for number in range(5)]
    fast = made.run("-x", *names)
    shutil.rmtree(made.root / ".e2e-run")  # with the history: what failed last time comes first
    twice = made.run("--max-fail", "2", *names)
    assert (fast.code, twice.code) == (1, 1)
    assert list(fast.statuses.values()) == ["passed", "failed", "not-run", "not-run", "not-run"]
    assert list(twice.statuses.values()) == ["passed", "failed", "passed", "failed", "not-run"]
    assert fast.examples["2.py"]["reason"] == "--fail-fast"
    assert twice.examples["4.py"]["reason"] == "--max-fail 2"
    assert "Stopped early: 3 examples without a verdict: 2.py, 3.py, 4.py" in fast.stdout
    assert fast.report["run"]["interrupted"] is False


def test_another_exit_code_can_be_expected(made: Project) -> None:
    configure(made, exits=["expect-exit = 3"], zero=["expect-exit = 3"], dies=["expect-exit = 9"])
    made.write("exits.py", "raise SystemExit(3)")
    made.write("zero.py", "print('fine')")
    made.write("dies.py", "import os\nos.kill(os.getpid(), 9)")
    outcome = made.run("exits.py", "zero.py", "dies.py")
    assert outcome.statuses == {"exits.py": "passed", "zero.py": "failed", "dies.py": "failed"}
    assert outcome.examples["exits.py"]["reason"] == "exit code 3, as expected"
    assert outcome.examples["zero.py"]["reason"] == "exit code 0, expected 3"
    assert outcome.examples["dies.py"]["signal"] == "SIGKILL"


def test_everything_skipped_is_nothing_selected(made: Project) -> None:
    configure(made, one=['skip = "not today"'], two=['tags = ["slow"]'])
    made.write("one.py", "raise SystemExit(1)")
    made.write("two.py", "raise SystemExit(1)")
    outcome = made.run("--skip", "slow", "one.py", "two.py")
    assert outcome.code == 4
    assert "No example was selected" in outcome.stdout
    assert "not today" in outcome.stdout


# --- what a script is given ----------------------------------------------------------------------

TELLS = """
import json, os, sys, tempfile
print(json.dumps({
    "argv": sys.argv[1:], "cwd": os.getcwd(), "stdin": sys.stdin.read(), "env": dict(os.environ),
    "tmp": tempfile.gettempdir(), "session": os.getsid(0) == os.getpid(),
    "fds": sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1],
    "cgroup": open("/proc/self/cgroup").read(),
}))
open(os.path.join(tempfile.gettempdir(), "litter"), "w").close()
"""


def told(made: Project, example: dict[str, object]) -> dict[str, object]:
    content: dict[str, object] = json.loads(log_of(made, example).read_text())
    return content


def test_a_script_is_given_what_is_promised(made: Project) -> None:
    made.write("folder/plain.py", TELLS)
    outcome = made.run("folder/plain.py", env={"FROM_CALLER": "1", "MPLBACKEND": "TkAgg"})
    example = outcome.examples["folder/plain.py"]
    seen = told(made, example)
    assert (seen["argv"], seen["stdin"]) == ([], "")
    assert seen["cwd"] == str((made.root / "folder").resolve())
    assert seen["session"] is True
    assert seen["fds"] == [0, 1, 2]
    env = seen["env"]
    assert isinstance(env, dict)
    wanted = {
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "TkAgg",
        "FROM_CALLER": "1",
        "E2E_RUN": "1",
        "E2E_RUN_ID": outcome.report["run"]["id"],
        "E2E_RUN_EXAMPLE": "folder/plain.py",
    }
    assert {name: env[name] for name in wanted} == wanted
    assert env["TMPDIR"] == seen["tmp"]
    assert not Path(str(seen["tmp"])).parent.exists()


def test_settings_reach_the_script(made: Project) -> None:
    configure(
        made,
        'env = { FROM_CONFIG = "config", BOTH = "config" }',
        full=[
            'args = ["one", "two words", ""]',
            'stdin = "line 1\\nzwölf\\n"',
            'cwd = "project"',
            'env = { BOTH = "override", E2E_RUN_EXAMPLE = "mine" }',
        ],
    )
    made.write("folder/full.py", TELLS)
    config = made.root / "e2e-run.toml"
    config.write_text(config.read_text().replace('"full.py"', '"folder/full.py"'))
    outcome = made.run("folder/full.py", "--env", "FROM_FLAG=a=b")
    seen = told(made, outcome.examples["folder/full.py"])
    env = seen["env"]
    assert isinstance(env, dict)
    assert seen["argv"] == ["one", "two words", ""]
    assert seen["stdin"] == "line 1\nzwölf\n"
    assert seen["cwd"] == str(made.root.resolve())
    assert (env["FROM_CONFIG"], env["BOTH"], env["FROM_FLAG"]) == ("config", "override", "a=b")
    assert env["E2E_RUN_EXAMPLE"] == "mine"


def test_other_languages(made: Project) -> None:
    configure(made, 'include = ["*.sh"]')
    made.write("examples/greets.sh", 'echo "shell $BASH_VERSION $0"; exit 7')
    made.write("examples/passes.py", "print('fine')")
    outcome = made.run()
    assert outcome.statuses == {"examples/greets.sh": "failed", "examples/passes.py": "passed"}
    assert outcome.examples["examples/greets.sh"]["exit_code"] == 7


def test_usage_is_measured(made: Project) -> None:
    made.write(
        "works.py",
        "import time\nblock = bytearray(80_000_000)\n"
        "end = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n",
    )
    example = made.run("works.py").examples["works.py"]
    assert 0.2 <= example["cpu"] < 2
    assert 80_000_000 < example["max_rss"] < 200_000_000
    assert example["duration"] >= 0.2
