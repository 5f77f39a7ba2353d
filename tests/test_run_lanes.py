"""Several examples at a time: what runs beside what, what is run again, and what the report says of it."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import Project, free_port, overrides, project, wait_gone, wait_lines

# Scripts that meet: each says that it is there, and waits until all are.
MEET = """
import pathlib, sys, time
me = pathlib.Path(__file__).stem
pathlib.Path(f"here-{{me}}").touch()
deadline = time.monotonic() + 20
while len(list(pathlib.Path().glob("here-*"))) < {count}:
    if time.monotonic() > deadline:
        sys.exit("nobody came")
    time.sleep(0.005)
"""

# Scripts that must not meet: each fails where the other has not left.
AVOID = """
import os, pathlib, time
os.close(os.open("inside", os.O_CREAT | os.O_EXCL))  # fails where somebody is inside
time.sleep(0.03)  # no synchronisation: time in which a mistake would show
os.remove("inside")
"""

# Fails the first time, and passes afterwards.
ON_RETRY = """
import pathlib, sys
with open(f"{pathlib.Path(__file__).stem}.runs", "a") as runs:
    runs.write("run\\n")
count = len(pathlib.Path(runs.name).read_text().splitlines())
print(f"this is run {count}")
sys.exit(FAILS_ON.get(count, 0))
"""

# Says which process it is, and stays.
STAYS = """
import os, threading
with open("pids", "a") as file: file.write(f"{os.getpid()}\\n")
threading.Event().wait()
"""


def fails_on(*runs: int) -> str:
    return ON_RETRY.replace("FAILS_ON", str(dict.fromkeys(runs, 1)))


@pytest.fixture
def made() -> Iterator[Project]:
    with project() as one:
        yield one


def configure(made: Project, settings: dict[str, Sequence[str]]) -> None:
    made.write("e2e-run.toml", f'python = "{made.python}"\n' + overrides(settings))


def events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def turns(file: Path) -> list[str]:
    """List what started and ended, in order."""
    named = {"example-started": "+", "example-finished": "-", "attempt-finished": "-"}
    return [
        named[event["event"]] + (event.get("path") or event["result"]["path"])
        for event in events(file)
        if event["event"] in named
    ]


def runs_of(made: Project, name: str) -> int:
    return len((made.root / f"{name}.runs").read_text(encoding="utf-8").splitlines())


# --- at the same time ----------------------------------------------------------------------------


def test_as_many_as_asked_for_run_at_the_same_time(made: Project) -> None:
    for name in "abcd":
        made.write(f"{name}.py", MEET.format(count=4))
    done = made.run(".", "-j", "4")
    assert set(done.statuses.values()) == {"passed"}, done.stdout
    assert done.report["run"]["jobs"] == 4
    assert done.code == 0


def test_no_more_run_than_asked_for(made: Project) -> None:
    for name in "abcdef":
        made.write(f"{name}.py", "print('hello')")
    log = made.root / "events.jsonl"
    done = made.run(".", "-j", "2", "--report", f"jsonl={log}")
    assert done.code == 0
    running = most = 0
    for each in turns(log):
        running += 1 if each[0] == "+" else -1
        most = max(most, running)
    assert most == 2


def test_one_at_a_time_keeps_the_order_of_the_paths(made: Project) -> None:
    for name in "cabd":
        made.write(f"{name}.py", "print('hello')")
    log = made.root / "events.jsonl"
    assert made.run(".", "-j", "1", "--report", f"jsonl={log}").code == 0
    assert turns(log) == [f"{sign}{name}.py" for name in "abcd" for sign in "+-"]


def test_many_examples_each_have_one_verdict(made: Project) -> None:
    for number in range(60):
        made.write(f"e{number:02}.py", f"import sys; sys.exit({number % 3 == 0})")
    log = made.root / "events.jsonl"
    done = made.run(".", "-j", "8", "--report", f"jsonl={log}")
    assert done.code == 1
    assert done.report["totals"] == {"passed": 40, "failed": 20}
    finished = [
        each["result"]["path"] for each in events(log) if each["event"] == "example-finished"
    ]
    assert sorted(finished) == [f"e{number:02}.py" for number in range(60)]


def test_few_descriptors_make_few_jobs(made: Project) -> None:
    for number in range(24):
        made.write(f"e{number:02}.py", f"import sys; sys.exit({number % 3 == 0})")
    limited = ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh"]
    done = made.run(".", "-j", "16", prefix=limited)
    assert done.report["totals"] == {"passed": 16, "failed": 8}, done.stderr
    assert done.report["run"]["jobs"] == 2


# --- what must not meet --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting", ['locks = ["gpu"]', "ports = [{port}]"], ids=["named lock", "port"]
)
def test_examples_with_a_common_lock_do_not_meet(setting: str, made: Project) -> None:
    configure(made, {"**": [setting.format(port=free_port())]})
    for name in "abcde":
        made.write(f"{name}.py", AVOID)
    done = made.run(".", "-j", "5")
    assert set(done.statuses.values()) == {"passed"}, done.stdout


def test_ports_in_the_source_are_locks(made: Project) -> None:
    port = free_port()
    for name in "abcde":
        made.write(f"{name}.py", f"PORT = {port}\naddress = ('127.0.0.1', {port})\n" + AVOID)
    done = made.run(".", "-j", "5")
    assert set(done.statuses.values()) == {"passed"}, done.stdout


def test_locks_of_companions_hold_for_what_needs_them(made: Project) -> None:
    made.write(
        "server.py",
        '# /// script\n# [tool.e2e-run]\n# serve = "log:ready"\n# locks = ["shared"]\n# ///\n'
        + AVOID.replace('os.remove("inside")', "")
        + "import atexit, signal\nprint('ready', flush=True)\n"
        "signal.sigwait([signal.SIGINT, signal.SIGTERM])\nos.remove('inside')\n",
    )
    for name in "abc":
        made.write(f"{name}.py", "print('hello')\n")
    configure(made, {"[abc].py": ['needs = ["server.py"]']})
    done = made.run("a.py", "b.py", "c.py", "-j", "6")
    assert done.report["run"]["jobs"] == 6
    assert set(done.statuses.values()) == {"passed"}, done.stdout


def test_exclusive_example_has_nothing_beside_it(made: Project) -> None:
    configure(made, {"alone.py": ["exclusive = true"]})
    for name in "abc":
        made.write(f"{name}.py", MEET.format(count=3))
    made.write(
        "alone.py",
        "import pathlib, os\n"
        "pids = [p for p in os.listdir('/proc') if p.isdigit()]\n"
        "def line(p):\n"
        "    try: return pathlib.Path('/proc', p, 'cmdline').read_bytes()\n"
        "    except OSError: return b''\n"
        "folder = os.fsencode(os.path.dirname(__file__))\n"
        "beside = [l for p in pids if int(p) != os.getpid() and folder in (l := line(p)) "
        "and b'.py' in l]\n"
        "assert not beside, beside\n",
    )
    done = made.run(".", "-j", "4")
    assert set(done.statuses.values()) == {"passed"}, done.stdout


def test_automatic_jobs_let_nobody_meet_whose_ports_are_unknown(made: Project) -> None:
    for name in "abcde":
        made.write(f"{name}.py", AVOID)
    done = made.run(".", env={"E2E_RUN_JOBS": "auto"})
    assert set(done.statuses.values()) == {"passed"}, done.stdout


def test_shown_output_of_automatic_jobs_does_not_mix(made: Project) -> None:
    for name in "ab":
        made.write(f"{name}.py", "print('hello')")
    done = made.run(".", "-s", env={"E2E_RUN_JOBS": "auto"})
    assert done.report["run"]["jobs"] == 1


def test_port_that_an_unknown_neighbour_takes_is_waited_for(made: Project) -> None:
    port = free_port()
    # What it takes is written nowhere in it.
    made.write(
        "a.py",
        "import os, pathlib, socket, time\n"
        "server = socket.create_server(('127.0.0.1', int(os.environ['SECRET'])))\n"
        "pathlib.Path('listening').touch()\n"
        "deadline = time.monotonic() + 20\n"
        "while 'attempt-finished' not in pathlib.Path('events.jsonl').read_text():\n"
        "    assert time.monotonic() < deadline\n"
        "    time.sleep(0.005)\n",
    )
    made.write(
        "b.py",
        "import os, socket, time, pathlib\n"
        "deadline = time.monotonic() + 20\n"
        "while not pathlib.Path('listening').exists():\n"
        "    assert time.monotonic() < deadline\n"
        "    time.sleep(0.005)\n"
        "server = socket.create_server(('127.0.0.1', int(os.environ['SECRET'])))\n",
    )
    log = made.root / "events.jsonl"
    done = made.run(".", "-j", "2", "--env", f"SECRET={port}", "--report", f"jsonl={log}")
    assert done.statuses == {"a.py": "passed", "b.py": "passed"}, done.stdout
    assert done.examples["b.py"]["attempts"] == 2
    (note,) = done.examples["b.py"]["notes"]
    assert note.startswith("passed alone; beside a.py: exit code 1")


def test_port_of_a_neighbour_is_no_leak(made: Project) -> None:
    port = free_port()
    wait = (
        "import os, pathlib, socket, time\n"
        "def wait(fact):\n"
        "    deadline = time.monotonic() + 20\n"
        "    while not fact():\n"
        "        assert time.monotonic() < deadline\n"
        "        time.sleep(0.005)\n"
    )
    made.write(
        "a.py",
        wait + "wait(lambda: pathlib.Path('b').exists())\n"
        "server = socket.create_server(('127.0.0.1', int(os.environ['SECRET'])))\n"
        "pathlib.Path('a').touch()\n"
        "wait(lambda: 'example-finished' in pathlib.Path('events.jsonl').read_text())\n",
    )
    made.write(
        "b.py",
        wait
        + f"PORT = {port}\npathlib.Path('b').touch()\nwait(lambda: pathlib.Path('a').exists())\n",
    )
    log = made.root / "events.jsonl"
    done = made.run(".", "-j", "2", "--env", f"SECRET={port}", "--report", f"jsonl={log}")
    assert done.statuses == {"a.py": "passed", "b.py": "passed"}, done.stdout


# --- again ---------------------------------------------------------------------------------------


def test_pass_on_a_retry_is_flaky(made: Project) -> None:
    made.write("a.py", fails_on(1))
    made.write("b.py", "print('hello')")
    made.write("c.py", "print('hello')")
    log = made.root / "events.jsonl"
    done = made.run(".", "-j", "1", "--retries", "2", "--report", f"jsonl={log}")
    assert done.statuses == {"a.py": "flaky", "b.py": "passed", "c.py": "passed"}
    assert done.code == 0
    flaky = done.examples["a.py"]
    assert flaky["attempts"] == 2
    assert flaky["reason"] == "exit code 1; passed on attempt 2, with nothing changed"
    assert "this is run 1" in (made.root / flaky["log"]).read_text(encoding="utf-8")
    second = made.root / flaky["log"].replace(".log", ".2.log")
    assert "this is run 2" in second.read_text(encoding="utf-8")
    # At the end, with nothing beside it.
    assert turns(log)[-2:] == ["+a.py", "-a.py"]
    assert turns(log)[:2] == ["+a.py", "-a.py"]


def test_flaky_is_not_ok_when_strict(made: Project) -> None:
    made.write("a.py", fails_on(1))
    assert made.run(".", "--retries", "1", "--strict").code == 1


def test_retries_of_single_examples(made: Project) -> None:
    configure(made, {"a.py": ["retries = 1"]})
    made.write("a.py", fails_on(1))
    made.write("b.py", fails_on(1))
    done = made.run(".")
    assert done.statuses == {"a.py": "flaky", "b.py": "failed"}


def test_retries_end(made: Project) -> None:
    made.write("a.py", fails_on(1, 2, 3, 4))
    done = made.run(".", "--retries", "2")
    assert done.statuses == {"a.py": "failed"}
    assert runs_of(made, "a") == 3
    assert done.code == 1


def test_difference_to_the_pass_is_said(made: Project) -> None:
    made.write(
        "a.py",
        MEET.format(count=2) + "import sys; sys.exit(len(list(pathlib.Path().glob('gone'))) == 0)",
    )
    made.write("b.py", MEET.format(count=2) + "pathlib.Path('gone').touch()")
    configure(made, {"a.py": ["retries = 1"]})
    # Whichever ends first: a.py either passes at once, or beside b.py no more.
    made.write("a.py", MEET.format(count=2) + fails_on(1))
    done = made.run(".", "-j", "2")
    assert done.examples["a.py"]["reason"] == (
        "exit code 1; passed on attempt 2, alone (it failed beside b.py)"
    )


def test_first_failure_ends_the_run_once_its_retry_has_failed(made: Project) -> None:
    made.write("a.py", fails_on(1, 2))
    made.write("b.py", "print('hello')")
    done = made.run(".", "-x", "--retries", "1", "-j", "1")
    assert done.statuses == {"a.py": "failed", "b.py": "not-run"}
    assert done.code == 1


def test_failure_that_a_retry_heals_does_not_end_the_run(made: Project) -> None:
    made.write("a.py", fails_on(1))
    made.write("b.py", "print('hello')")
    log = made.root / "events.jsonl"
    done = made.run(".", "-x", "--retries", "1", "-j", "1", "--report", f"jsonl={log}")
    assert done.statuses == {"a.py": "flaky", "b.py": "passed"}
    assert done.code == 0
    assert turns(log) == ["+a.py", "-a.py", "+a.py", "-a.py", "+b.py", "-b.py"]


def test_limit_of_failures_with_several_at_a_time(made: Project) -> None:
    for number in range(40):
        made.write(f"e{number:02}.py", "import sys; sys.exit(1)")
    done = made.run(".", "--max-fail", "3", "-j", "4")
    counts = done.report["totals"]
    assert 3 <= counts["failed"] <= 6  # those under way may fail too
    assert counts["failed"] + counts["not-run"] == 40


def test_repeats_all_pass(made: Project) -> None:
    made.write("a.py", fails_on())
    done = made.run(".", "--repeat", "3", "-j", "3")
    assert done.statuses == {"a.py": "passed"}
    assert runs_of(made, "a") == 3
    assert done.examples["a.py"]["repeat"] == {"runs": 3, "passed": 3}


def test_one_of_the_repeats_fails(made: Project) -> None:
    made.write("a.py", fails_on(2))
    done = made.run(".", "--repeat", "4")
    assert done.statuses == {"a.py": "failed"}
    assert runs_of(made, "a") == 4
    assert done.examples["a.py"]["repeat"] == {"runs": 4, "passed": 3}
    assert "3 of 4 passed; not ok: 2" in done.examples["a.py"]["notes"]
    assert done.code == 1


def test_dead_keeper_takes_nothing_of_its_neighbours_with_it(made: Project) -> None:
    made.write(
        "a.py",
        "import os, pathlib, signal, time\n"
        "deadline = time.monotonic() + 20\n"
        "while not pathlib.Path('up').exists():\n"
        "    assert time.monotonic() < deadline\n"
        "    time.sleep(0.005)\n"
        "os.kill(os.getppid(), signal.SIGKILL)\n",
    )
    # The daemon is reparented, and known to its keeper by then.
    made.write(
        "b.py",
        "import os, pathlib, select, signal, time\n"
        "r, w = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        os.write(w, b'%d ' % os.getpid())\n"
        "        time.sleep(60)\n"
        "    os._exit(0)\n"
        "daemon = int(os.read(r, 20))\n"
        "os.wait(), os.close(w)\n"
        "pathlib.Path('up').touch()\n"
        "deadline = time.monotonic() + 20\n"
        "while 'example-finished' not in pathlib.Path('events.jsonl').read_text():\n"
        "    assert time.monotonic() < deadline\n"
        "    time.sleep(0.005)\n"
        "assert select.select([r], [], [], 0)[0] == []  # nobody has ended it\n"
        "os.kill(daemon, signal.SIGKILL)\n",
    )
    log = made.root / "events.jsonl"
    how = ["-j", "2", "--containment", "process-group", "--report", f"jsonl={log}"]
    done = made.run(".", *how)
    assert done.statuses == {"a.py": "failed", "b.py": "passed"}, done.stdout


# --- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_run_is_ended_with_several_under_way(
    number: signal.Signals, code: int, made: Project
) -> None:
    for name in "abcd":
        made.write(f"{name}.py", STAYS)
    with made.running(".", "-j", "3") as running:
        wait_lines(made.root / "pids", 3)
        under_way = running.offspring()
        running.process.send_signal(number)
        done = running.outcome()
    assert done.code == code
    assert set(done.statuses.values()) == {"not-run"}
    wait_gone(under_way)
    assert made.survivors() == []


def test_killed_runner_takes_all_with_it(made: Project) -> None:
    for name in "abc":
        made.write(f"{name}.py", STAYS)
    with made.running(".", "-j", "3") as running:
        wait_lines(made.root / "pids", 3)
        under_way = running.offspring()
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        wait_gone(under_way)
    assert made.survivors() == []


def test_verdicts_known_by_then_stay(made: Project) -> None:
    made.write("a.py", "import sys; sys.exit(1)")
    made.write(
        "b.py",
        "import pathlib, threading\npathlib.Path('here').write_text('x\\n')\nthreading.Event().wait()\n",
    )
    with made.running(".", "-j", "1", "--retries", "3") as running:
        wait_lines(made.root / "here")
        running.process.send_signal(signal.SIGINT)
        done = running.outcome()
    assert done.statuses == {"a.py": "failed", "b.py": "not-run"}
    assert done.code == 130
