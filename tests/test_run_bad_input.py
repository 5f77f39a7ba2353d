"""What a user, a disk or a pipe can do wrong: a clear message, the right exit code, no result lost."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from harness import IS_ROOT, NOBODY, Outcome, Project, in_tier, project

ODD_NAMES = [
    " leading blank.py",
    "two  blanks.py",
    "-dash.py",
    "--help.py",
    "[red]brackets[-red].py",
    "quote'single.py",
    'quote"double.py',
    "dollar$(touch oops).py",
    "semi;colon&amp.py",
    "back\\slash.py",
    "new\nline.py",
    "tab\tescape\x1b[31m.py",
    "percent%s{0}.py",
    "star*?.py",
    "umlaut-ä-価格-💹.py",
    os.fsdecode(b"latin-\xe9-\xff.py"),
    "x" * 250 + ".py",
]

needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")


@pytest.fixture
def made() -> Iterator[Project]:
    with project() as fresh:
        yield fresh


def assert_told(outcome: Outcome, code: int, *said: str) -> None:
    """The message went to stderr, whole, without a traceback."""
    assert (outcome.code, outcome.report) == (code, {}), outcome
    for part in said:
        assert part in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "All examples passed" not in outcome.stdout


def assert_not_set_up(outcome: Outcome, message: str) -> None:
    """The message went to stderr, and the reports tell that nothing ran, and why."""
    assert outcome.code == outcome.report["run"]["exit_code"] == 3
    assert outcome.statuses == {"passes.py": "not-run"}
    assert message in outcome.examples["passes.py"]["reason"]
    assert message in outcome.stderr
    assert "To fix this: " in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "All examples passed" not in outcome.stdout


def append(made: Project, text: str) -> None:
    config = made.root / "e2e-run.toml"
    config.write_text(config.read_text() + text)


# --- nothing to run ------------------------------------------------------------------------------


def test_a_path_that_does_not_exist(made: Project) -> None:
    assert_told(made.run("nowhere"), 2, "e2e-run: 'nowhere' does not exist", "To fix this: ")


def test_no_examples_folder(made: Project) -> None:
    assert_told(
        made.run(), 4, "There is nothing to run: ", "/examples is no folder", "To fix this: "
    )


def test_an_empty_folder(made: Project) -> None:
    (made.root / "empty").mkdir()
    outcome = made.run("empty")
    assert outcome.code == 4
    assert outcome.report["examples"] == []
    assert 'No example was selected in "empty".' in outcome.stdout
    assert not (made.root / ".e2e-run").exists()


# --- files that cannot be used -------------------------------------------------------------------


@needs_root
def test_files_that_cannot_be_read() -> None:
    with in_tier("scan", NOBODY) as made:
        secret = made.write("examples/secret.py", "print('never seen')")
        secret.chmod(0)
        os.chown(secret, 0, 0)
        made.write("examples/passes.py", "print('fine')")
        hidden = made.root / "examples" / "hidden"
        hidden.mkdir(mode=0o700)
        (hidden / "other.py").write_text("print('never seen')")
        outcome = made.run("examples")
    assert outcome.code == 1
    assert outcome.statuses == {"examples/passes.py": "passed", "examples/secret.py": "failed"}
    secret_one = outcome.examples["examples/secret.py"]
    assert "Permission denied" in secret_one["output_tail"]
    told = json.dumps([outcome.report["not_examples"], outcome.report["warnings"]])
    assert "examples/hidden" in told
    assert "Permission denied" in told


def test_no_such_interpreter(made: Project) -> None:
    made.write("passes.py", "print('fine')")
    outcome = made.run("--python", "/nonexistent/python", "passes.py")
    assert_told(outcome, 2, "/nonexistent/python")


def test_no_interpreter_for_a_suffix(made: Project) -> None:
    append(made, 'include = ["*.zz"]\ninterpreters = { ".zz" = "no-such-program" }\n')
    made.write("examples/one.zz", "anything")
    made.write("examples/two.py", "print('fine')")
    outcome = made.run("examples")
    assert outcome.code == 1
    assert outcome.statuses == {"examples/one.zz": "failed", "examples/two.py": "passed"}
    one = outcome.examples["examples/one.zz"]
    assert one["cause"] == "start-error"
    assert one["reason"] == (
        "could not be started: no-such-program cannot be run: No such file or directory"
    )


def test_a_working_folder_that_is_gone(made: Project) -> None:
    append(made, '[[overrides]]\nmatch = "one.py"\ncwd = "soon gone"\n')
    (made.root / "soon gone").mkdir()
    made.write("0.py", "import os\nos.rmdir('soon gone')")
    made.write("one.py", "print('fine')")
    made.write("two.py", "print('fine')")
    outcome = made.run("0.py", "one.py", "two.py")
    assert outcome.code == 1
    assert outcome.statuses == {"0.py": "passed", "one.py": "failed", "two.py": "passed"}
    assert outcome.examples["one.py"]["reason"] == (
        "could not be started: its working folder cannot be entered: No such file or directory"
    )


def test_an_environment_that_is_too_long(made: Project) -> None:
    append(made, f'[[overrides]]\nmatch = "one.py"\nargs = ["{"x" * 200_000}"]\n')
    made.write("one.py", "print('fine')")
    made.write("two.py", "print('fine')")
    outcome = made.run("one.py", "two.py")
    assert outcome.statuses == {"one.py": "failed", "two.py": "passed"}
    assert outcome.examples["one.py"]["reason"] == (
        "could not be started: its arguments and environment are too long for the system"
    )


def test_scripts_with_wrong_metadata_fail_and_the_others_run(made: Project) -> None:
    head, foot = "# /// script\n# [tool.e2e-run]\n", "# ///\nprint('fine')\n"
    made.write("examples/key.py", head + '# timeuot = "5s"\n' + foot)
    made.write("examples/value.py", head + '# timeout = "soon"\n' + foot)
    made.write("examples/toml.py", head + "# timeout = \n" + foot)
    made.write("examples/passes.py", "print('fine')")
    outcome = made.run("examples")
    assert outcome.code == 1
    causes = {path: example["cause"] for path, example in outcome.examples.items()}
    assert causes == {
        "examples/key.py": "bad-metadata",
        "examples/passes.py": None,
        "examples/toml.py": "bad-metadata",
        "examples/value.py": "bad-metadata",
    }
    assert outcome.statuses["examples/passes.py"] == "passed"
    key = outcome.examples["examples/key.py"]
    assert key["reason"].startswith("examples/key.py:3: timeuot: ")
    assert "timeout" in key["reason"].partition("timeuot")[2]
    assert outcome.examples["examples/value.py"]["reason"].startswith(
        "examples/value.py:3: timeout: "
    )


def test_odd_names(made: Project) -> None:
    for number, name in enumerate(ODD_NAMES):
        status = "import sys; sys.exit('it fails')" if number % 2 else "print('fine')"
        (made.root / "examples").mkdir(exist_ok=True)
        (made.root / "examples" / name).write_text(status)
    outcome = made.run("examples", "--report", f"junit={made.root / 'report.xml'}")
    assert outcome.code == 1
    assert len(outcome.examples) == len(ODD_NAMES)
    for number, name in enumerate(ODD_NAMES):
        example = outcome.examples[f"examples/{name}"]
        assert example["status"] == ("failed" if number % 2 else "passed"), example
        # What is printed to run it by hand really runs it.
        if "\udce9" not in name:
            done = subprocess.run(
                ["bash", "-c", example["command"]],
                cwd=made.root,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == number % 2, (example["command"], done.stderr)
    assert not (made.root / "oops").exists()
    assert not (made.root / "examples" / "oops").exists()
    # One line each, whatever the name holds.
    lines = [line for line in outcome.stdout.splitlines() if f"/{len(ODD_NAMES)}  " in line[:8]]
    assert len(lines) == len(ODD_NAMES)
    assert "\x1b" not in outcome.stdout


def test_an_odd_name_on_the_command_line(made: Project) -> None:
    for name in ODD_NAMES:
        (made.root / name).write_text("print('fine')")
    outcome = made.run("--", *ODD_NAMES)
    assert outcome.code == 0, outcome
    assert len(outcome.examples) == len(ODD_NAMES)


# --- configuration -------------------------------------------------------------------------------


def test_a_configuration_that_is_no_toml(made: Project) -> None:
    append(made, "timeout = = 5\n")
    assert_told(made.run("."), 2, "e2e-run: e2e-run.toml:2:11: not TOML: ")


def test_an_unknown_key(made: Project) -> None:
    append(made, 'timeuot = "5s"\n')
    assert_told(made.run("."), 2, "e2e-run.toml:2: timeuot", "timeout")


def test_a_bad_value(made: Project) -> None:
    append(made, 'timeout = "soon"\n')
    assert_told(made.run("."), 2, "e2e-run.toml:2: timeout", "soon", "90s")


def test_a_pattern_that_does_not_compile(made: Project) -> None:
    append(made, 'fail-on-output = ["("]\n')
    assert_told(made.run("."), 2, "e2e-run.toml:2: fail-on-output")


# --- reports -------------------------------------------------------------------------------------


def test_a_report_that_cannot_be_written_is_told_before_anything_runs(made: Project) -> None:
    made.write("marks.py", "open('ran', 'w').close()")
    for target, code in (
        ("json=/proc/nowhere/report.json", 3),
        (f"json={made.root}", 2),
        ("jsonl=", 2),
        ("pdf=report.pdf", 2),
        (f"junit={made.root}/marks.py/report.xml", 3),
    ):
        outcome = made.run("--report", target, "marks.py")
        assert_told(outcome, code, target.partition("=")[0])
    assert not (made.root / "ran").exists()
    assert not (made.root / ".e2e-run").exists()


def test_a_report_on_a_full_disk(made: Project) -> None:
    made.write("passes.py", "print('fine')")
    made.write("fails.py", "raise SystemExit(1)")
    passing = made.run("--report", "junit=/dev/full", "passes.py")
    failing = made.run("--report", "junit=/dev/full", "passes.py", "fails.py")
    streamed = made.run("--report", "jsonl=/dev/full", "passes.py")
    assert (passing.code, failing.code, streamed.code) == (3, 1, 3)
    for outcome, kind in ((passing, "junit"), (failing, "junit"), (streamed, "jsonl")):
        assert outcome.statuses["passes.py"] == "passed"
        assert "passed" in outcome.stdout
        assert (
            f"warning: the {kind} report /dev/full is not complete: No space left on device"
            in outcome.stdout
        )
        assert outcome.stderr == ""


# --- disks and folders ---------------------------------------------------------------------------


def on_small_disk(options: str) -> list[str]:
    """Give a prefix that mounts a small file system on the state folder, for one run only."""
    script = f'mount -t tmpfs -o {options} none .e2e-run && exec "$0" "$@"'
    return ["unshare", "--mount", "sh", "-c", script]


FILLS = """
import sys
for _ in range(300):
    print("x" * 1000)
print("the end", file=sys.stderr)
"""


@needs_root
@pytest.mark.parametrize("containment", ["cgroup", "pid-namespace"])
def test_a_log_disk_that_fills_up(made: Project, containment: str) -> None:
    (made.root / ".e2e-run").mkdir()
    made.write("0_passes.py", "print('fine')")
    made.write("1_fills.py", FILLS)
    made.write("2_says_nothing.py", "pass")
    made.write("3_prints.py", "print('no room for this')")
    names = ["0_passes.py", "1_fills.py", "2_says_nothing.py", "3_prints.py"]
    outcome = made.run(
        "--containment", containment, *names, prefix=on_small_disk("size=128k"), cwd=made.root
    )
    assert outcome.code == 1
    assert list(outcome.statuses) == names
    assert outcome.statuses["0_passes.py"] == "passed"
    assert outcome.statuses["1_fills.py"] == "failed"
    assert outcome.statuses["2_says_nothing.py"] == "passed"
    assert outcome.statuses["3_prints.py"] == "failed"
    # The script could not even write why it died: the log it would say so in has no room.
    (told,) = (w for w in outcome.stdout.splitlines() if w.startswith("warning: 1_fills.py: "))
    assert told.endswith("/1_fills.py.log: No space left on device")
    assert "Example Results Summary" in outcome.stdout
    assert "Traceback" not in outcome.stderr
    assert made.survivors() == []


@needs_root
def test_a_disk_that_fills_up_while_a_flood_is_cut(made: Project) -> None:
    (made.root / ".e2e-run").mkdir()
    made.write("0_floods.py", FILLS * 3 + "\nimport time\ntime.sleep(0.5)\n" + FILLS)
    made.write("1_passes.py", "print('fine')")
    outcome = made.run(
        "--max-output",
        "100KiB",
        "0_floods.py",
        "1_passes.py",
        prefix=on_small_disk("size=160k"),
    )
    assert set(outcome.statuses) == {"0_floods.py", "1_passes.py"}
    assert "Traceback" not in outcome.stderr
    assert outcome.code in {0, 1}


@needs_root
def test_a_disk_without_room_for_a_log(made: Project) -> None:
    (made.root / ".e2e-run").mkdir()
    for number in range(12):
        made.write(f"examples/{number:02}.py", "print('fine')")
    outcome = made.run("examples", prefix=on_small_disk("size=1m,nr_inodes=14"))
    assert len(outcome.statuses) == 12
    failed = [e for e in outcome.examples.values() if e["status"] == "failed"]
    assert failed
    assert outcome.code == 1
    for example in failed:
        assert example["cause"] == "start-error"
        assert "No space left on device" in example["reason"]
    assert outcome.stderr == ""


def test_a_log_that_may_not_grow(made: Project) -> None:
    made.write("0_fills.py", FILLS)
    made.write("1_passes.py", "print('fine')")
    limited = ["sh", "-c", 'ulimit -f 400; exec "$0" "$@"']
    outcome = made.run("0_fills.py", "1_passes.py", prefix=limited)
    assert (outcome.code, outcome.statuses["1_passes.py"]) == (1, "passed")
    assert outcome.statuses["0_fills.py"] == "failed"


@needs_root
def test_a_state_folder_that_cannot_be_written() -> None:
    with in_tier("scan", NOBODY) as made:
        made.write("passes.py", "print('fine')")
        (made.root / ".e2e-run").mkdir(mode=0o755)
        outcome = made.run("passes.py")
    assert_not_set_up(outcome, ".e2e-run cannot be used: Permission denied.")


def test_a_state_folder_that_is_a_file(made: Project) -> None:
    made.write("passes.py", "print('fine')")
    made.write(".e2e-run", "a file")
    assert_not_set_up(made.run("passes.py"), ".e2e-run cannot be used: Not a directory.")


def test_no_temporary_folder(made: Project) -> None:
    made.write("passes.py", "print('fine')")
    outcome = made.run("passes.py", env={"TMPDIR": "/nonexistent"})
    # Python falls back to /tmp where TMPDIR cannot be used.
    assert outcome.code == 0


def test_a_working_directory_that_was_removed(made: Project) -> None:
    gone = made.root / "gone"
    gone.mkdir()
    script = 'cd gone && rmdir ../gone && exec "$0" "$@"'
    outcome = made.run("--config", "x.toml", prefix=["sh", "-c", script])
    assert_told(outcome, 3, "The working directory cannot be used", "To fix this: ")


# --- where the output goes -----------------------------------------------------------------------


def run_shell(made: Project, line: str, *names: str) -> tuple[int, dict[str, Any], str]:
    """Run e2e-run in a shell line that says where its output goes."""
    report = made.root / "report.json"
    command = shlex.join(made.command(*names, "--report", f"json={report}"))
    done = subprocess.run(
        ["bash", "-c", line.format(command=command)],
        cwd=made.root,
        env=made.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, json.loads(report.read_text()), done.stderr


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("{command} >&-", id="stdout closed"),
        pytest.param("{command} >&- 2>&-", id="stdout and stderr closed"),
        pytest.param("{command} <&- >&- 2>&-", id="all closed"),
        pytest.param("{command} > /dev/full", id="stdout full"),
        pytest.param("{command} > >(head -c 1 > /dev/null)", id="reader leaves"),
        pytest.param("{command} > >(exec true)", id="no reader"),
    ],
)
def test_nobody_listens(made: Project, line: str) -> None:
    made.write("0_fails.py", "print('output ' * 1000)\nraise SystemExit(1)\n")
    made.write("1_passes.py", "import sys\nprint('fine')\nassert sys.stdin.read() == ''\n")
    made.write("2_passes.py", "print('fine')")
    code, report, stderr = run_shell(made, line, "0_fails.py", "1_passes.py", "2_passes.py")
    assert code == 1
    assert [e["status"] for e in report["examples"]] == ["failed", "passed", "passed"]
    log = made.root / report["examples"][1]["log"]
    assert log.read_text() == "fine\n"
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr


# --- our own mistakes ----------------------------------------------------------------------------


def test_an_error_of_our_own_is_kept_and_loses_no_result(made: Project) -> None:
    for name in ("0.py", "1.py", "2.py"):
        made.write(name, "print('fine')")
    # Fails when the temporary folder of the second script is made, in a way that nobody expects.
    made.write(
        "early/sitecustomize.py",
        "import re, sys\n"
        "def hook(event, args):\n"
        "    if event == 'os.mkdir' and re.search(r'/e2e-run-[^/]+/2$', str(args[0])):\n"
        "        raise RuntimeError('a bug of ours')\n"
        "sys.addaudithook(hook)\n",
    )
    path = os.pathsep.join([str(made.root / "early"), made.environment()["PYTHONPATH"]])
    outcome = made.run("0.py", "1.py", "2.py", env={"PYTHONPATH": path})
    assert outcome.code == 70
    assert set(outcome.statuses) == {"0.py", "1.py", "2.py"}
    assert outcome.statuses["2.py"] == "not-run"
    assert "All examples passed" not in outcome.stdout
    assert "Example Results Summary" in outcome.stdout
    (kept,) = (made.root / ".e2e-run").glob("internal-error-*.txt")
    assert "RuntimeError: a bug of ours" in kept.read_text()
    assert str(kept) in outcome.stderr
    assert "e2e-run: internal error: RuntimeError: a bug of ours\n" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert made.survivors() == []
