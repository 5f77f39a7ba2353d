"""Servers that scripts start: real processes and ports, by hand and under the real runner."""

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import (
    REPOSITORY,
    TIERS,
    Project,
    free_port,
    in_tier,
    is_living,
    project,
    wait_gone,
    wait_lines,
    wait_until,
)

from e2e_runner.handover import companion_url, encode_companions
from e2e_runner.kit.servers import Server, ServerNotReady, companion, serve, serve_command
from e2e_runner.model import HttpProbe, LogProbe, TcpProbe

APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    status = 200 if scope["path"] == "/health" else 404
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
"""
# Answers any GET but /missing and says when it is stopped; GET /die has it die with code 3.
SERVER = """
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(3)
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        self.wfile.write(os.environ.get("GREETING", "hello").encode())
def stop(number, frame):
    print(f"stopped by {signal.Signals(number).name}", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("listening", flush=True)
server.serve_forever()
"""
DEAF = """
import signal, socket, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    signal.pause()
"""
# A worker in a session of its own that heeds nothing, and a server that ends when it is told to.
FORKS = """
import os, signal, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(f"worker {os.getpid()}", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, source in {
        "app.py": APP,
        "server.py": SERVER,
        "deaf.py": DEAF,
        "forks.py": FORKS,
        "bad.py": "raise RuntimeError('\x1b[31mboom')\n",
    }.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    return tmp_path


@pytest.fixture(autouse=True)
def scratch(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Give the temporary folder; see that no helper process or folder is left by a test."""
    tmp_path_factory.getbasetemp()  # in the usual temporary folder, and not in this
    scratch = Path(tempfile.mkdtemp(prefix="e2e-scratch-"))
    scratch.chmod(0o1777)  # for projects of an ordinary user too
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.delenv("E2E_RUN", raising=False)
    children = set(psutil.Process().children())
    yield scratch
    assert set(psutil.Process().children()) <= children
    scratch.rmdir()  # nothing is in it


def command(name: str, folder: Path, *words: str, **how: Any) -> Any:
    """Give the block of a server of the folder."""
    return serve_command([sys.executable, folder / name, "{port}", *words], cwd=folder, **how)


def fetch(server: Server, path: str = "/") -> str:
    with urllib.request.urlopen(server.url + path, timeout=20) as answer:  # noqa: S310 - ours
        text: str = answer.read().decode()
        return text


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


# --- ready and stopped ---------------------------------------------------------------------------


def test_application_is_served_until_the_end_of_the_block(folder: Path) -> None:
    port = free_port()
    with serve("app:app", port=port, ready="/health", cwd=folder) as server:
        assert (server.url, server.host, server.port) == (
            f"http://127.0.0.1:{port}",
            "127.0.0.1",
            port,
        )
        assert fetch(server, "/health") == "hello"
        assert server.pid is not None
        assert f"Started server process [{server.pid}]" in server.log
        assert server.log_file is not None
        assert server.log_file.read_text() == server.log
        process = psutil.Process(server.pid)
    assert not is_living(process)
    assert not accepts(port)
    assert "Finished server process" in server.log
    assert not server.log_file.exists()


def test_async_with_and_any_free_port(folder: Path) -> None:
    async def main() -> tuple[Server, Server]:
        async with (
            serve("app:app", port=0, cwd=folder, args=["--log-level", "warning"]) as one,
            command("server.py", folder, port=0, ready="/") as two,
        ):
            assert accepts(one.port)
            assert await asyncio.to_thread(fetch, two) == "hello"
            return one, two

    one, two = asyncio.run(main())
    assert one.port != two.port
    assert one.log == ""  # as `args` asks
    assert two.log.splitlines()[0] == "listening"
    assert "stopped by SIGTERM" in two.log.splitlines()


@pytest.mark.parametrize(
    "ready",
    ["http://127.0.0.1:{port}/", "tcp://127.0.0.1:{port}", "log:^listening$", "/", None],
)
def test_ways_to_be_ready(ready: str | None, folder: Path) -> None:
    with command("server.py", folder, port=free_port(), ready=ready) as server:
        assert fetch(server) == "hello"


@pytest.mark.parametrize("ready", ["http://127.0.0.1:{}/", "tcp://127.0.0.1:{}", "log:listening"])
def test_address_is_that_of_the_probe_or_the_one_it_listens_on(ready: str, folder: Path) -> None:
    port = free_port()
    argv = [sys.executable, str(folder / "server.py"), str(port)]
    with serve_command(argv, ready=ready.format(port)) as server:
        assert server.url == f"http://127.0.0.1:{port}"
        assert fetch(server) == "hello"


def test_server_without_a_port(folder: Path) -> None:
    argv = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
    with serve_command(argv, ready="log:up", cwd=folder) as server:
        assert (server.port, server.url) == (0, "")


def test_environment_is_that_of_the_entry_and_what_is_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = command("server.py", folder, port=0, ready="/")
    monkeypatch.setenv("GREETING", "of the entry")
    with block as server:
        assert fetch(server) == "of the entry"
    with command("server.py", folder, port=0, ready="/", env={"GREETING": "port {port}"}) as server:
        assert fetch(server) == f"port {server.port}"


def test_secrets_of_the_environment_are_not_told(folder: Path) -> None:
    secrets = {"JWT_SECRET": "hunter2", "SHOP": "postgresql://maria:hunter2@db/shop", "LEVEL": "1"}
    with (
        pytest.raises(ServerNotReady) as raised,
        command("bad.py", folder, port=0, ready="/", env=secrets),
    ):
        pytest.fail("entered")
    told = str(raised.value)
    assert "hunter2" not in told
    assert "JWT_SECRET='***' SHOP='postgresql://maria:***@db/shop' LEVEL=1 " in told


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: serve("app"), "package.module:attribute"),
        (lambda: serve("app:app", port=70000), "0 to 65535"),
        (lambda: serve("app:app", timeout=0), "above 0"),
        (lambda: serve("app:app", grace=-1), "grace=-1"),
        (lambda: serve("app:app", ready="ftp://x"), "names no probe"),
        (lambda: serve_command(["x"]), "neither `port` nor `ready`"),
        (lambda: serve_command(["x"], ready="/health"), "needs `port`"),
        (lambda: serve_command("x --port 1", port=1), "list of words"),
        (lambda: serve_command([], port=1), "list of words"),
        (lambda: companion("x.py", timeout=0), "above 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


# --- not ready -----------------------------------------------------------------------------------


def why_not(block: Any) -> str:
    with pytest.raises(ServerNotReady) as caught, block:
        pytest.fail("it is not ready")
    return str(caught.value)


def test_port_that_is_taken_names_its_owner(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        text = why_not(serve("app:app", port=port, cwd=folder))
    assert f"port {port} is taken by pid {os.getpid()} (" in text
    assert "started" in text.splitlines()[0]
    assert f"Stop it (kill {os.getpid()})" in text


@pytest.mark.parametrize(
    ("app", "parts"),
    [
        (
            "nope:app",
            ('Could not import module "nope"', "see that the module nope can be imported"),
        ),
        ("app:nope", ('Attribute "nope" not found',)),
        ("bad:app", ("| RuntimeError: boom", "the last 30 lines of its log")),
    ],
)
def test_application_that_cannot_be_loaded(app: str, parts: tuple[str, ...], folder: Path) -> None:
    text = why_not(serve(app, port=free_port(), cwd=folder))
    assert text.startswith("the server ended before it was ready: exit code ")
    assert f"command: (cd {folder} && {sys.executable} -m uvicorn {app} " in text
    assert [part for part in parts if part not in text] == []
    assert "\x1b" not in text


def test_uvicorn_that_is_not_installed(folder: Path) -> None:
    (folder / "uvicorn.py").write_text("raise ModuleNotFoundError(\"No module named 'uvicorn'\")")
    text = why_not(serve("app:app", port=free_port(), cwd=folder))
    assert "-m pip install uvicorn, or start another server by serve_command()" in text


def test_privileged_port(folder: Path) -> None:
    source = (
        "import sys; sys.exit('[Errno 13] error while attempting to bind on address: "
        "permission denied')"
    )
    text = why_not(serve_command([sys.executable, "-c", source], port=81, cwd=folder))
    assert "port 81 takes privileges: choose one from 1024 on, or port=0 for any" in text


def test_program_that_is_not_there(folder: Path) -> None:
    text = why_not(serve_command(["/no/such/program"], port=free_port(), cwd=folder))
    assert "/no/such/program cannot be run: No such file or directory" in text


def test_time_that_is_over_says_what_was_seen(folder: Path) -> None:
    text = why_not(command("server.py", folder, port=free_port(), ready="/missing", timeout=3))
    first, second, *rest = text.splitlines()
    assert first == "the server was not ready within 3s"
    assert second.endswith("/missing: last answer: 404 Not Found")
    assert "  | listening" in rest


def test_server_that_puts_itself_in_the_background(folder: Path) -> None:
    port = free_port()
    source = (
        "import os, signal, socket, sys\nl = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "if os.fork() == 0: os.setsid(); signal.pause()"
    )
    argv = [sys.executable, "-c", source, "{port}"]
    text = why_not(serve_command(argv, port=port, ready="log:never", cwd=folder))
    assert "exit code 0" in text
    assert "have it run in the foreground" in text
    assert not accepts(port)


def test_stranger_who_takes_the_port_meanwhile_is_not_taken_for_the_server(folder: Path) -> None:
    port = free_port()
    # It is told to listen by the server, once that was started, and outlives it.
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    stranger = folder / "stranger.py"
    stranger.write_text(
        f"import socket, signal\nopen({str(fifo)!r}).read()\n"
        f"listener = socket.create_server(('127.0.0.1', {port}))\nsignal.pause()\n"
    )
    source = f"import signal; open({str(fifo)!r}, 'w').close(); signal.pause()"
    with subprocess.Popen([sys.executable, str(stranger)]) as process:
        try:
            text = why_not(
                serve_command(
                    [sys.executable, "-c", source],
                    ready=f"tcp://127.0.0.1:{port}",
                    timeout=4,
                    cwd=folder,
                )
            )
        finally:
            process.kill()
    assert "the server was not ready within 4s" in text
    assert f"port {port} is taken by pid {process.pid} (" in text


def test_port_that_only_the_server_finds_taken_is_in_its_log(folder: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken:
        other = taken.getsockname()[1]
        argv = [sys.executable, str(folder / "server.py"), str(other)]
        text = why_not(serve_command(argv, port=free_port(), cwd=folder))
    assert "Address already in use" in text
    assert "see who has the port: e2e-run ports" in text


# --- the end -------------------------------------------------------------------------------------


def test_server_that_died_fails_a_story_that_went_well(folder: Path) -> None:
    with (
        pytest.raises(ServerNotReady) as caught,
        command("server.py", folder, port=0, ready="/") as server,
        contextlib.suppress(OSError, http.client.HTTPException),
    ):
        fetch(server, "/die")
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(
        f"the server at port {server.port} ended by itself before the end of its block: "
        "exit code 3 after "
    )
    assert "  | listening" in rest


def test_death_of_the_server_is_a_note_to_what_the_story_raised(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises((OSError, http.client.HTTPException)) as caught,
        command("server.py", folder, port=0, ready="/") as server,
    ):
        fetch(server, "/die")
    (note,) = caught.value.__notes__
    assert note.startswith(f"meanwhile the server at port {server.port} ended by itself")
    assert "exit code 3" in note
    assert "  | listening" in capsys.readouterr().err


def test_killed_server_is_told_by_its_signal(folder: Path) -> None:
    with (
        pytest.raises(ServerNotReady, match="killed by SIGKILL after"),
        command("server.py", folder, port=0, ready="/") as server,
    ):
        os.kill(server.pid, signal.SIGKILL)


def test_log_is_shown_when_the_block_is_left_by_an_exception(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = {"PYTHONDEVMODE": ""}  # or it warns of its open socket when it is stopped
    with (
        pytest.raises(ZeroDivisionError),
        command("server.py", folder, port=0, ready="log:listening", env=quiet) as server,
    ):
        raise ZeroDivisionError
    assert capsys.readouterr().err == (
        f"the block of the server at port {server.port} was left by ZeroDivisionError\n"
        "  its log:\n"
        "  | listening\n"
        "  | stopped by SIGTERM\n"
    )


@pytest.mark.parametrize("code", [None, 0])
def test_log_is_not_shown_for_an_exit_that_is_none(
    code: int | None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), command("server.py", folder, port=0, ready="/"):
        sys.exit(code)
    assert capsys.readouterr().err == ""


def test_server_that_does_not_stop_is_killed_with_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with command("deaf.py", folder, port=0, grace=0.2) as server:
        process = psutil.Process(server.pid)
    assert not is_living(process)
    error = capsys.readouterr().err
    assert error.startswith("the server did not stop within 200ms of SIGTERM, and was killed: (cd ")


def test_what_a_server_forks_ends_with_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command("forks.py", folder, port=0, ready="log:worker") as server:
        worker = psutil.Process(int(server.log.split()[-1]))
    assert not is_living(worker)
    assert "the server left processes behind, and was killed" in capsys.readouterr().err


def test_log_of_a_server_that_floods_is_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from e2e_runner.kit import _serving

    monkeypatch.setattr(_serving, "_LARGEST_LOG", 1 << 20)
    source = "import os\nprint('up', flush=True)\nwhile True: os.write(1, b'x' * 999 + b'\\n')"
    argv = [sys.executable, "-c", source]
    with serve_command(argv, ready="log:^up", cwd=folder) as server:
        file = server.log_file
        assert file is not None
        head = file.with_name(f"{file.name}.head")
        wait_until(head.exists, "its middle was dropped")
        assert len(server.log) <= 1 << 20


# --- scripts of their own ------------------------------------------------------------------------

STORY = """
import os, pathlib, signal, sys, threading, urllib.request
from e2e_runner.kit.servers import serve_command
with serve_command([sys.executable, "{server}", "{{port}}"], port=0, ready="log:.") as server:
    with open("ready", "a") as file:
        file.write(f"{{server.pid}}\\n")
    {then}
print("after")
"""


def write_story(folder: Path, then: str, server: str = "server.py") -> Path:
    file = folder / "story.py"
    file.write_text(STORY.format(server=server, then=then), encoding="utf-8")
    return file


@contextlib.contextmanager
def by_hand(file: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if "E2E_RUN" not in name}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", str(file)],
        cwd=file.parent,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)]
)
def test_signal_to_the_script_stops_the_server_gracefully(
    number: signal.Signals, code: int, folder: Path
) -> None:
    with by_hand(write_story(folder, "threading.Event().wait()")) as process:
        (pid,) = wait_lines(folder / "ready")
        server = psutil.Process(int(pid))
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert "the block of the server" in stderr
    wait_gone([server])


@pytest.mark.parametrize("server", ["server.py", "deaf.py", "forks.py"])
def test_nothing_survives_a_script_that_is_killed(server: str, folder: Path, scratch: Path) -> None:
    if server == "deaf.py":
        source = (
            (folder / server)
            .read_text()
            .replace("while True", "print('up', flush=True)\nwhile True")
        )
        (folder / server).write_text(source)
    with by_hand(write_story(folder, "threading.Event().wait()", server)) as process:
        wait_lines(folder / "ready")
        living = psutil.Process(process.pid).children(recursive=True)
        assert len(living) >= 3  # the spawner, a keeper and the server
        process.kill()
        process.communicate(timeout=30)
    wait_gone(living)
    wait_until(lambda: not list(scratch.iterdir()), "its folders were removed")


def test_forked_child_does_not_keep_the_server_of_a_killed_script(
    folder: Path, scratch: Path
) -> None:
    then = (
        "pid = os.fork()\n    if pid == 0:\n        open('child', 'w').write(f'{os.getpid()}\\n')\n"
        "        os.read(0, 1)\n        os._exit(0)\n    threading.Event().wait()"
    )
    file = write_story(folder, then.replace("os.read(0, 1)", "signal.pause()"))
    with by_hand(file) as process:
        (pid,) = wait_lines(folder / "ready")
        (child,) = wait_lines(folder / "child")
        server, forked = psutil.Process(int(pid)), psutil.Process(int(child))
        process.kill()
        process.wait(30)
        wait_gone([server])
        assert is_living(forked)  # it is the script's own
        wait_until(lambda: not list(scratch.iterdir()), "its folders were removed")
        forked.kill()


def test_forked_child_that_ends_leaves_the_server_alone(folder: Path) -> None:
    then = (
        "pid = os.fork()\n    if pid:\n        assert os.waitpid(pid, 0)[1] == 0\n"
        "        assert urllib.request.urlopen(server.url).read() == b'hello'\n"
        "        assert server.log_file.exists()"
    )
    with by_hand(write_story(folder, then)) as process:
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (0, "after\nafter\n", "")


# --- under the runner ----------------------------------------------------------------------------


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> Iterator[tuple[Project, str]]:
    name, user = request.param
    with in_tier(name, user) as made:
        yield made, name


ONE_USER_EACH = [TIERS[0], TIERS[4], TIERS[5]]  # of each tier one, and both users


def runner_story(made: Project, then: str) -> None:
    made.write("_server.py", SERVER)
    made.write("story.py", STORY.format(server="_server.py", then=then))


def test_under_the_runner_it_passes_with_nothing_left(tier: tuple[Project, str]) -> None:
    made, name = tier
    runner_story(made, "assert urllib.request.urlopen(server.url).read() == b'hello'")
    ran = made.run("--containment", name, "story.py")
    example = ran.examples["story.py"]
    assert (ran.code, example["status"], example["leaks"]) == (0, "passed", []), ran.stdout
    assert made.survivors() == []


# The time limit is waited for: the ends above and below are those of every tier for both users.
@pytest.mark.parametrize("tier", ONE_USER_EACH, indirect=True)
def test_under_the_runner_it_times_out_with_nothing_left(tier: tuple[Project, str]) -> None:
    made, name = tier
    runner_story(made, "threading.Event().wait()")
    ran = made.run("--containment", name, "--timeout", "4s", "story.py")
    example = ran.examples["story.py"]
    assert (ran.code, example["status"], example["leaks"]) == (1, "timeout", []), ran.stdout
    # It had the time to end by itself, which shows the log of the server.
    assert "was left by SystemExit" in example["output_tail"]
    assert made.survivors() == []


def test_under_the_runner_it_dies_with_the_runner(tier: tuple[Project, str]) -> None:
    made, name = tier
    runner_story(made, "threading.Event().wait()")
    with made.running("--containment", name, "story.py") as running:
        wait_lines(made.root / "ready")
        offspring = running.offspring()
        running.process.kill()
        running.outcome()
    wait_gone(offspring)
    wait_until(lambda: made.survivors() == [], "nothing ran on")


# --- companions ----------------------------------------------------------------------------------

ASKS = """
# /// script
# [tool.e2e-run]
# needs = ["_server.py"]
# ///
import urllib.request
from e2e_runner.kit.servers import companion
with companion("_server.py") as server:
    print(server.url, urllib.request.urlopen(server.url).read().decode(), bool(server.pid))
    print(server.log.split())
"""


def with_metadata(port: int, declared: str) -> str:
    return (
        f"# /// script\n# [tool.e2e-run]\n# {declared}\n# args = ['{port}']\n"
        f"# env = {{ GREETING = 'hi' }}\n# ///\n{SERVER}"
    )


@pytest.mark.parametrize("declared", ['serve = "http://127.0.0.1:{}/"', "ports = [{}]"])
def test_companion_by_hand_and_under_the_runner(declared: str) -> None:
    port = free_port()
    with project() as made:
        made.write("_server.py", with_metadata(port, declared.format(port)))
        story = made.write("story.py", ASKS)
        with by_hand(story) as process:
            stdout, stderr = process.communicate(timeout=30)
        assert (process.returncode, stderr) == (0, "")
        assert stdout.splitlines()[0] == f"http://127.0.0.1:{port} hi True"
        assert "listening" in stdout.splitlines()[1]
        ran = made.run("-s", "story.py")
        assert (ran.code, ran.statuses) == (0, {"story.py": "passed"}), ran.stdout
        assert f"http://127.0.0.1:{port} hi False" in ran.stdout


def test_the_run_says_where_a_companion_is_and_no_more_is_read() -> None:
    port = free_port()
    with project() as made:
        made.write("_server.py", with_metadata(port, f'serve = "http://0.0.0.0:{port}/"'))
        # By another way to the same file, as a link to the folder is.
        (made.root / "link").symlink_to(made.root)
        made.write(
            "story.py",
            ASKS.replace('companion("_server.py")', 'companion("link/_server.py")') + "import sys\n"
            "assert not {'e2e_runner.config', 'e2e_runner.discovery', 'httpx'} & {*sys.modules}\n",
        )
        ran = made.run("-s", "story.py")
        assert (ran.code, ran.statuses) == (0, {"story.py": "passed"}), ran.stdout
        assert f"http://127.0.0.1:{port} hi False" in ran.stdout


def test_a_companion_that_only_its_log_tells_of_has_no_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "server.py"
    monkeypatch.setenv("E2E_RUN", "1")
    for probe, ports, url in (
        (LogProbe(pattern="up"), (), ""),
        (LogProbe(pattern="up"), (81,), "http://127.0.0.1:81"),
        (TcpProbe(host="::", port=82), (), "http://[::1]:82"),
        (HttpProbe(url="https://shop.example/health"), (), "https://shop.example:443"),
    ):
        told = encode_companions({file: companion_url(probe, ports)})
        monkeypatch.setenv("E2E_RUN_COMPANIONS", told)
        with companion(file) as server:
            assert (server.url, server.pid, server.log) == (url, None, "")


def test_companion_that_is_not_there(tmp_path: Path) -> None:
    text = why_not(companion(tmp_path / "none.py"))
    assert text.startswith(f"there is no companion {tmp_path}/none.py\nTo fix this: ")


def test_companion_that_says_nothing_about_itself(tmp_path: Path) -> None:
    file = tmp_path / "silent.py"
    file.write_text("print('hello')\n")
    text = why_not(companion(file))
    assert f"{file} declares neither `serve` nor `ports`" in text
    assert '# serve = "http://127.0.0.1:8000/"' in text


def test_companion_with_bad_metadata(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text("# /// script\n# [tool.e2e-run]\n# serve = 'ftp://x'\n# ///\n")
    assert "wrong.py:3: serve: " in why_not(companion(file))


def test_companion_that_the_run_was_not_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "server.py"
    file.write_text(with_metadata(port := free_port(), f"ports = [{port}]"))
    monkeypatch.setenv("E2E_RUN", "1")
    text = why_not(companion(file))
    assert text.startswith(f"the run has not started the companion {file}\n")
    assert 'needs = ["server.py"]' in text
