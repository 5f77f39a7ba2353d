"""What scripts tell of themselves, through the real runner: steps, metrics, and any nonsense."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import IS_ROOT, NOBODY, Project, overrides, project, wait_lines

TELL = """
import json, os, time
fd = os.open(os.environ["E2E_RUN_RECORDS"], os.O_WRONLY | os.O_APPEND)
def tell(record, **more):
    at = more.pop("at", time.monotonic())
    os.write(fd, (json.dumps({"record": record, "at": at} | more) + "\\n").encode())
"""


@pytest.fixture
def made() -> Iterator[Project]:
    with project() as fresh:
        yield fresh


def configure(made: Project, **settings: list[str]) -> None:
    """Write the configuration; each keyword is the stem of a script, with lines of its override."""
    own = overrides({f"{stem}.py": lines for stem, lines in settings.items()})
    made.write("e2e-run.toml", f'python = "{made.python}"\n{own}')


def told(example: dict[str, object]) -> list[tuple[str, str]]:
    steps = example["steps"]
    assert isinstance(steps, list)
    return [(step["title"], step["outcome"]) for step in steps]


# --- a story -------------------------------------------------------------------------------------


def test_a_story_is_in_the_reports(made: Project) -> None:
    made.write(
        "orders.py",
        TELL + 'tell("section", title="Users")\n'
        'tell("step", step=1, title="log in")\n'
        'tell("step-ended", step=1)\n'
        'tell("section", title="Orders")\n'
        'tell("step", step=2, title="place orders")\n'
        'tell("step", step=3, title="order 1", within=2)\n'
        'tell("step-ended", step=3)\n'
        'tell("metric", name="files processed", value=3)\n'
        'tell("metric", name="orders", value=5)\n'
        'tell("summary", text="All orders placed")\n',
    )
    events = made.root / "events.jsonl"
    outcome = made.run("orders.py", "--report", f"jsonl={events}")
    assert outcome.code == 0
    example = outcome.examples["orders.py"]
    titles = [(step["section"], step["title"], step["depth"]) for step in example["steps"]]
    assert titles == [
        ("Users", "log in", 0),
        ("Orders", "place orders", 0),
        ("Orders", "order 1", 1),
    ]
    assert {outcome for _, outcome in told(example)} == {"ok"}
    for step in example["steps"]:
        assert 0 < step["started"] < example["duration"]
        assert 0 <= step["duration"] <= example["duration"] - step["started"] + 1e-5
    second = example["steps"][1]
    assert second["started"] + second["duration"] == pytest.approx(example["duration"], abs=1e-5)
    assert example["metrics"] == {"files processed": 3, "orders": 5}
    assert (example["summary"], example["happened_in"]) == ("All orders placed", None)
    assert example["notes"] == []
    (row,) = [line for line in outcome.stdout.splitlines() if line.startswith("orders.py")]
    assert row.endswith("  files processed: 3, orders: 5")
    assert "log in" not in outcome.stdout
    names = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    assert names[3:-2] == [
        *("step-started", "step-finished", "step-started", "step-started", "step-finished"),
        *("metric-reported", "metric-reported"),
    ]


def test_verbose_shows_each_step_and_quiet_none(made: Project) -> None:
    made.write(
        "tells.py",
        TELL + 'tell("step", step=1, title="log in")\n'
        'tell("step", step=2, title="ask", within=1)\n'
        'tell("step-ended", step=2, error="AssertionError: 401")\n'
        'tell("step-ended", step=1)\n'
        'tell("metric", name="users", value=1200)\n'
        'tell("summary", text="done")\n',
    )
    outcome = made.run("-v", "tells.py")
    lines = [line.partition("tells.py: ")[2] for line in outcome.stdout.splitlines()]
    shown = [line for line in lines if line]
    assert shown[2:4] == ["▸ log in", "  ▸ ask"]
    assert shown[4].startswith("  ✗ ask (")
    assert shown[4].endswith("): AssertionError: 401")
    assert shown[5] == "users: 1,200"
    assert "\n    done\n" in outcome.stdout
    assert "1 step failed, yet it exited 0; users: 1,200\n" in outcome.stdout
    quiet = made.run("-q", "tells.py")
    assert [line[:8] for line in quiet.stdout.splitlines()] == ["1 passed", "All exam"]


# --- where it failed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("raise SystemExit(3)", 'exit code 3 in step "order 2"'),
        ("os._exit(4)", 'exit code 4 in step "order 2"'),
        ("os.kill(os.getpid(), 9)", 'killed by SIGKILL (signal 9) in step "order 2"'),
    ],
)
def test_a_failure_names_the_step_and_shows_the_last_ones(
    made: Project, end: str, reason: str
) -> None:
    made.write(
        "fails.py",
        TELL + 'for n in range(6):\n    tell("step", step=n, title=f"prepare {n}")\n'
        '    tell("step-ended", step=n)\n'
        'tell("step", step=7, title="place orders")\n'
        f'tell("step", step=8, title="order 2", within=7)\n{end}\n',
    )
    outcome = made.run("fails.py")
    assert outcome.code == 1
    example = outcome.examples["fails.py"]
    assert (example["status"], example["reason"]) == ("failed", reason)
    assert example["happened_in"] == 7
    assert told(example)[-3:] == [
        ("prepare 5", "ok"),
        ("place orders", "unfinished"),
        ("order 2", "unfinished"),
    ]
    lines = outcome.stdout.splitlines()
    start = lines.index("  Steps, the last 5 of 8:")
    assert [line.split("  ")[2:4][0] for line in lines[start + 1 : start + 5]] == [
        *("✓ prepare 3", "✓ prepare 4", "✓ prepare 5", "▸ place orders")
    ]
    assert lines[start + 5].startswith("      ▸ order 2 ")
    assert lines[start + 5].endswith("  unfinished")


def test_a_failed_step_is_named_with_its_error(made: Project) -> None:
    made.write(
        "fails.py",
        TELL + 'tell("step", step=1, title="all")\n'
        'tell("step", step=2, title="log in\\x1b[31m", within=1)\n'
        'tell("step-ended", step=2, error="CheckFailed: expected 200\\ngot 401")\n'
        'tell("step-ended", step=1, error="CheckFailed: expected 200\\ngot 401")\n'
        "raise SystemExit(1)\n",
    )
    outcome = made.run("fails.py")
    example = outcome.examples["fails.py"]
    assert example["reason"] == 'exit code 1 in step "log in\\x1b[31m"'
    assert example["steps"][example["happened_in"]]["title"] == "log in\x1b[31m"
    assert "\x1b" not in outcome.stdout
    assert outcome.stdout.count("CheckFailed: expected 200 got 401\n") == 2


def test_a_timeout_says_in_which_step_whatever_is_told_afterwards(made: Project) -> None:
    made.write(
        "hangs.py",
        TELL + "import signal, sys\n"
        "def stop(*_):\n"
        '    tell("step-ended", step=2, error="SystemExit: 143")\n'
        '    tell("step-ended", step=1)\n'
        '    tell("step", step=3, title="clean up")\n'
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        'tell("step", step=1, title="place orders")\n'
        'tell("step", step=2, title="wait", within=1)\n'
        "signal.pause()\n",
    )
    configure(made, hangs=['timeout = "3s"', 'grace = "20s"'])
    outcome = made.run("hangs.py")
    example = outcome.examples["hangs.py"]
    assert example["status"] == "timeout"
    said, _, lasted = example["reason"].partition(" (for ")
    assert said == 'timed out after 3s in step "wait"'
    assert lasted.endswith("s)")
    assert told(example) == [
        ("place orders", "unfinished"),
        ("wait", "unfinished"),
        ("clean up", "unfinished"),
    ]
    assert example["happened_in"] == 1
    assert outcome.stdout.index("▸ clean up") < outcome.stdout.index("▸ wait")


def test_a_timeout_names_the_step_that_it_happened_in(made: Project) -> None:
    made.write(
        "slow.py",
        TELL + "import itertools\nbegun = time.monotonic()\n"
        "for number in itertools.count():\n"
        "    while time.monotonic() < begun + number / 100: pass\n"
        '    tell("step-ended", step=number)\n'
        '    tell("step", step=number + 1, title=f"step {number + 1}")\n',
    )
    configure(made, slow=['timeout = "2s"'])
    example = made.run("slow.py").examples["slow.py"]
    # It goes on telling while it is stopped: the last step is another, as a rule.
    named = example["steps"][example["happened_in"]]
    assert example["reason"].startswith(f'timed out after 2s in step "{named["title"]}" (for ')


def test_an_interruption_says_in_which_step(made: Project) -> None:
    made.write(
        "waits.py",
        TELL + 'tell("step", step=1, title="wait for it")\n'
        "open('ready', 'w').write('ready\\n')\nimport signal\nsignal.pause()\n",
    )
    with made.running("waits.py") as running:
        wait_lines(made.root / "ready")
        running.process.send_signal(signal.SIGINT)
        outcome = running.outcome()
    assert outcome.code == 130
    reason = outcome.examples["waits.py"]["reason"]
    assert reason.startswith("interrupted after ")
    assert ' in step "wait for it" (for ' in reason


@pytest.mark.parametrize("strict", [[], ["--strict"]])
def test_records_make_no_verdict_better_or_worse(made: Project, strict: list[str]) -> None:
    made.write(
        "sad.py",
        TELL + 'for n in range(2):\n    tell("step", step=n, title="x")\n'
        '    tell("step-ended", step=n, error="no")\n',
    )
    made.write("happy.py", TELL + 'tell("summary", text="fine")\nraise SystemExit(1)\n')
    outcome = made.run(*strict, "sad.py", "happy.py")
    assert outcome.statuses == {"sad.py": "passed", "happy.py": "failed"}
    assert "2 steps failed, yet it exited 0\n" in outcome.stdout


def test_times_that_lie_stay_within_the_script(made: Project) -> None:
    made.write(
        "lies.py",
        TELL + 'tell("step", step=1, title="long ago", at=1)\n'
        'tell("step-ended", step=1, at=999_999_999)\n'
        'tell("step", step=2, title="far ahead", at=999_999_999)\n',
    )
    example = made.run("lies.py").examples["lies.py"]
    first, second = example["steps"]
    assert first["started"] == 0
    assert 0 < first["duration"] <= example["duration"]
    assert second["started"] + second["duration"] <= example["duration"] + 1e-5


# --- who is given a file -------------------------------------------------------------------------


def test_each_example_has_a_file_and_companions_have_none(made: Project) -> None:
    note = (
        "import os\nopen({file!r}, 'a').write(os.environ.get('E2E_RUN_RECORDS', 'none') + '\\n')\n"
    )
    made.write(
        "server.py",
        note.format(file="server") + "import time\nprint('ready', flush=True)\ntime.sleep(60)\n",
    )
    made.write(
        "client.py",
        note.format(file="client")
        + "path = os.environ['E2E_RUN_RECORDS']\n"
        + "assert not path.startswith(os.environ['TMPDIR'] + '/')\n"
        + "open(path, 'a').close()\n",
    )
    configure(made, server=['serve = "log:ready"'], client=['needs = ["server.py"]'])
    outcome = made.run("client.py", env={"E2E_RUN_RECORDS": "/somewhere", "E2E_RUN_DATABASES": "x"})
    assert outcome.statuses["client.py"] == "passed"
    assert (made.root / "server").read_text() == "none\n"
    given = (made.root / "client").read_text().strip()
    assert given not in {"none", "/somewhere"}
    assert not Path(given).parent.exists(), "it goes with the run"
    assert "warning" not in outcome.stdout + outcome.stderr


def test_an_untouched_file_serves_again_and_a_used_one_never(made: Project) -> None:
    names = [f"quiet{n}.py" for n in range(4)] + [f"used{n}.py" for n in range(4)]
    for name in names:
        tell = 'tell("step", step=1, title="x")\n' if name.startswith("used") else ""
        made.write(name, TELL + f"{tell}print(os.environ['E2E_RUN_RECORDS'])\n")
    outcome = made.run(*names)
    assert set(outcome.statuses.values()) == {"passed"}
    files = [
        (made.root / example["log"]).read_text() for _, example in sorted(outcome.examples.items())
    ]
    assert len(set(files[:4])) <= 2
    assert len(set(files[4:])) == 4
    assert [len(example["steps"]) for _, example in sorted(outcome.examples.items())] == [
        *([0] * 4),
        *([1] * 4),
    ]


@pytest.mark.skipif(not IS_ROOT, reason="needs root")
def test_a_script_that_drops_its_privileges_tells_too(made: Project) -> None:
    drop = f"import json, os, time\nos.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    made.write("drops.py", drop + TELL + 'tell("step", step=1, title="as nobody")\n')
    example = made.run("drops.py").examples["drops.py"]
    assert told(example) == [("as nobody", "ok")], example["output_tail"]


# --- nonsense ------------------------------------------------------------------------------------

ABUSE = {
    "removes it": "os.unlink(path)",
    "puts a pipe there": "os.unlink(path); os.mkfifo(path)",
    "puts a folder there": "os.unlink(path); os.makedirs(path + '/a/b')",
    "puts a link there": "os.unlink(path); os.symlink('/dev/zero', path)",
    "moves it away": "os.rename(path, 'away')",
    "locks it": "import fcntl; fcntl.flock(fd, fcntl.LOCK_EX); fcntl.lockf(fd, fcntl.LOCK_EX)",
    "makes it unreadable": "os.chmod(path, 0)",
    "leaves a hole": "os.truncate(path, 1 << 40)",
    "writes into the distance": "other = os.open(path, os.O_WRONLY); os.pwrite(other, b'x', 1 << 40)",
    "empties it": "os.truncate(path, 0)",
    "writes binary": "os.write(fd, bytes(range(256)) * 4000)",
    "writes deep JSON": "os.write(fd, b'[' * 10_000 + b'\\n' + b'{\"a\":' * 2000 + b'\\n')",
    "forks": "[os.fork() for _ in range(3)]",
    "breaks off in a line": 'os.write(fd, b\'{"record": "step", "at": 1\')',
}


@pytest.mark.parametrize("tell_first", [True, False])
def test_whatever_a_script_does_to_its_file_nothing_breaks(
    made: Project, *, tell_first: bool
) -> None:
    for number, does in enumerate(ABUSE.values()):
        first = 'tell("step", step=1, title="told")\n' if tell_first else ""
        made.write(
            f"abuse{number:02}.py",
            TELL + f"path = os.environ['E2E_RUN_RECORDS']\n{first}{does}\n",
        )
    outcome = made.run(".")
    wrong = {path: each for path, each in outcome.examples.items() if each["status"] != "passed"}
    assert {path: each["reason"] for path, each in wrong.items()} == {}
    assert outcome.code == 0
    if tell_first:
        # Who empties the file or makes a hole before it is read takes back what was told.
        kept = sum(("told", "ok") in told(each) for each in outcome.examples.values())
        assert kept >= len(ABUSE) - 3


def test_nonsense_alone_is_counted_in_a_note(made: Project) -> None:
    made.write("babbles.py", TELL + "os.write(fd, b'hello\\nworld\\n')\n")
    made.write("mixes.py", TELL + "os.write(fd, b'hello\\n')\ntell('summary', text='x')\n")
    outcome = made.run("babbles.py", "mixes.py")
    assert outcome.examples["babbles.py"]["notes"] == [
        "wrote 2 lines to the file in E2E_RUN_RECORDS, none of which is a record"
    ]
    assert outcome.examples["mixes.py"]["notes"] == []


def test_a_gigabyte_in_one_line_costs_no_memory(made: Project) -> None:
    made.write(
        "floods.py",
        TELL + 'tell("step", step=1, title="before")\n'
        "for _ in range(1024): os.write(fd, b'x' * 1024**2)\n"
        "open('flooded', 'w').write('flooded\\n')\n"
        "os.mkfifo('go')\nopen('go').read()\n",
    )
    with made.running("floods.py") as running:
        wait_lines(made.root / "flooded")
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        (peak,) = [int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM:")]
        subprocess.run(
            ["sh", "-c", "until [ -p go ]; do :; done; : > go"], cwd=made.root, check=True
        )
        outcome = running.outcome()
    example = outcome.examples["floods.py"]
    assert outcome.code == 0
    assert told(example) == [("before", "ok")]
    assert example["notes"] == ["wrote more than 4.0 MiB of records: the rest is ignored"]
    assert peak < 80_000  # KiB


def test_a_hundred_thousand_records_are_read_in_part_and_hold_up_nobody(made: Project) -> None:
    made.write(
        "chatters.py",
        TELL + "data = b''.join(\n"
        '    b\'{"record": "metric", "at": 1, "name": "n%d", "value": %d}\\n\' % (n % 300, n)\n'
        "    for n in range(100_000)\n"
        ")\n"
        "for start in range(0, len(data), 4096): os.write(fd, data[start:start + 4096])\n"
        "for n in range(2000): tell('step', step=n, title='x')\n",
    )
    outcome = made.run("chatters.py")
    assert outcome.code == 0
    example = outcome.examples["chatters.py"]
    assert len(example["metrics"]) == 200
    assert len(example["notes"]) == 2
    assert example["notes"][0] == "wrote more than 4.0 MiB of records: the rest is ignored"
    assert example["notes"][1].startswith("told more than 200 metrics: ")


def test_more_steps_than_are_kept_are_told_in_a_note(made: Project) -> None:
    made.write(
        "steps.py",
        TELL + "for n in range(1500):\n"
        "    tell('step', step=n, title=f'step {n}')\n"
        "    tell('step-ended', step=n)\n"
        "tell('step', step=1, title='the last')\nraise SystemExit(1)\n",
    )
    example = made.run("steps.py").examples["steps.py"]
    assert example["reason"] == 'exit code 1 in step "the last"'
    assert len(example["steps"]) == 1001
    assert example["steps"][example["happened_in"]]["title"] == "the last"
    assert example["notes"] == ["told of 1,501 steps: the first 1,000 are kept"]


def test_what_a_leftover_process_tells_is_taken_within_the_life_of_the_script(
    made: Project,
) -> None:
    made.write(
        "leaves.py",
        TELL + "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    while True: tell('step', step=os.getpid(), title='left')\n",
    )
    outcome = made.run("leaves.py")
    example = outcome.examples["leaves.py"]
    assert example["status"] == "leaked"
    for step in example["steps"]:
        assert step["started"] + step["duration"] <= example["duration"] + 1e-5
    assert made.survivors() == []


def test_ten_processes_tell_at_once(made: Project) -> None:
    made.write(
        "many.py",
        TELL + "pids = []\n"
        "for n in range(10):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        for k in range(50):\n"
        "            tell('step', step=n * 100 + k, title=f'{n} {k}')\n"
        "            tell('step-ended', step=n * 100 + k)\n"
        "        os._exit(0)\n"
        "    pids.append(pid)\n"
        "for pid in pids: os.waitpid(pid, 0)\n",
    )
    example = made.run("many.py").examples["many.py"]
    assert sorted(told(example)) == sorted((f"{n} {k}", "ok") for n in range(10) for k in range(50))
    assert all(step["depth"] == 0 for step in example["steps"])
