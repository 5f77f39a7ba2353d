"""A server is ready when it answers itself: nobody who takes its port meanwhile stands in for it."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import NOBODY, Project, free_port, in_tier, overrides, wait_until

IDLE = "import pathlib, signal\npathlib.Path('up').touch()\nsignal.pause()\n"
CLIENT = "import socket\nsocket.create_connection(('127.0.0.1', {port})).close()\n"
IN_THE_KIT = """
import sys
from e2e_runner.kit import serve_command
with serve_command([sys.executable, "idle.py"], ready="tcp://127.0.0.1:{port}", timeout=3):
    print("entered")
"""


@contextlib.contextmanager
def stranger(port: int, after: Path) -> Iterator[None]:
    """Take a port, as this process, once a file is there; never answer, but accept."""
    listener: list[socket.socket] = []

    def take() -> None:
        wait_until(after.exists, "the server had begun", seconds=60)
        listener.append(socket.create_server(("127.0.0.1", port)))

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield
    finally:
        after.touch()
        thread.join()
        for each in listener:
            each.close()


_NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    project: Project
    tier: str

    def write(self, name: str, text: str) -> None:
        self.project.write(name, text)

    def configure(self, **settings: list[str]) -> None:
        """Write the configuration; each keyword is the stem of a script, with lines of its override."""
        own = overrides({f"{stem}.py": lines for stem, lines in settings.items()})
        self.write("e2e-run.toml", f'python = "{self.project.python}"\n{own}')

    def run(self, name: str) -> dict[str, Any]:
        return self.project.run(name, "--containment", self.tier).examples[name]


PLACES = [
    pytest.param(("scan", None), id="scan-self"),
    # Where others than this user have no number, all look like the one without a name: this one.
    pytest.param(("pid-namespace", NOBODY), id="pid-namespace-nobody", marks=_NEEDS_ROOT),
    pytest.param(("scan", NOBODY), id="scan-nobody", marks=_NEEDS_ROOT),
]
# For those who ask as a server that is an example does, and wait for its time limit as well.
in_most_places = pytest.mark.parametrize("made", PLACES[:2], indirect=True)


@pytest.fixture(params=PLACES)
def made(request: pytest.FixtureRequest) -> Iterator[Place]:
    tier, user = request.param
    with in_tier(tier, user) as project:
        made = Place(project=project, tier=tier)
        made.write("idle.py", IDLE)
        yield made


def test_a_server_is_not_ready_by_the_answer_of_another(made: Place) -> None:
    port = free_port()
    made.configure(idle=['timeout = "3s"', f'serve = "tcp://127.0.0.1:{port}"'])
    with stranger(port, made.project.root / "up"):
        example = made.run("idle.py")
    assert (example["status"], example["cause"]) == ("timeout", "not-ready")
    assert f"another answers in its place: port {port} is taken" in example["reason"]


@in_most_places
def test_a_companion_is_not_ready_by_the_answer_of_another(made: Place) -> None:
    port = free_port()
    made.write("client.py", CLIENT.format(port=port))
    made.configure(
        idle=['timeout = "3s"', f'serve = "tcp://127.0.0.1:{port}"'],
        client=['needs = ["idle.py"]'],
    )
    with stranger(port, made.project.root / "up"):
        example = made.run("client.py")
    assert (example["status"], example["cause"]) == ("blocked", "companion-not-ready")
    assert f"another answers in its place: port {port} is taken" in example["reason"]


@in_most_places
def test_a_server_of_the_kit_is_not_ready_by_the_answer_of_another(made: Place) -> None:
    port = free_port()
    made.write("story.py", IN_THE_KIT.format(port=port))
    with stranger(port, made.project.root / "up"):
        example = made.run("story.py")
    assert example["status"] == "failed"
    assert f"another answers in its place: port {port} is taken" in example["output_tail"]
    assert "entered" not in example["output_tail"]


def test_a_companion_that_died_fails_a_story_that_went_well(made: Place) -> None:
    port = free_port()
    made.write(
        "server.py",
        "import socket, sys\n"
        f"listener = socket.create_server(('127.0.0.1', {port}))\n"
        "for _ in range(2): listener.accept()[0].close()\n"  # the run that looks, and the story
        "sys.exit(7)\n",
    )
    made.write(
        "story.py",
        "import socket\n"
        f"asked = socket.create_connection(('127.0.0.1', {port}))\n"
        "while True:\n"
        f"    try: socket.create_connection(('127.0.0.1', {port})).close()\n"
        "    except OSError: break\n",
    )
    made.configure(server=[f'serve = "tcp://127.0.0.1:{port}"'], story=['needs = ["server.py"]'])
    example = made.run("story.py")
    assert (example["status"], example["cause"]) == ("failed", "companion-died")
    assert example["reason"] == "companion server.py ended by itself: exit code 7"
