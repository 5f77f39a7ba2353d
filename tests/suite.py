"""The examples of this repository in a project of their own, run under e2e-run and by hand."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import AS_USERS, REPOSITORY, Outcome, Project, Running, project

from e2e_runner.trees import MARK

PORT = 8000
STREAM_PORT = 8765  # of the market stream


def somebody_listens(port: int = PORT) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The examples in a project of their own."""

    project: Project

    @property
    def scratch(self) -> Path:
        return self.project.root / "scratch"

    def how(self, extra: dict[str, str] | None = None) -> dict[str, Any]:
        return {"env": AS_USERS | {"TMPDIR": str(self.scratch)} | (extra or {})}

    def arguments(self, *args: str) -> list[str]:
        return ["--strict", "--python", str(self.project.python), *args]

    def run(self, *args: str, env: dict[str, str] | None = None) -> Outcome:
        return self.project.run(*self.arguments(*args), **self.how(env))

    @contextlib.contextmanager
    def running(self, *args: str, env: dict[str, str] | None = None) -> Iterator[Running]:
        with self.project.running(*self.arguments(*args), **self.how(env)) as running:
            yield running

    def listed(self) -> dict[str, Any]:
        """Give what `list` says of the examples."""
        with self.project.start(
            *("list", "--json", "--python", str(self.project.python)), **self.how()
        ) as listing:
            told: dict[str, Any] = json.loads(listing.communicate(timeout=60)[0])
        return told

    @contextlib.contextmanager
    def by_hand(
        self, example: str, env: dict[str, str] | None = None
    ) -> Iterator["subprocess.Popen[str]"]:
        """Start a Python example without a runner."""
        file = self.project.root / "examples" / example
        with subprocess.Popen(
            [self.project.python, file],
            cwd=self.project.root,
            env=self.project.environment(self.how(env)["env"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def assert_nothing_is_left(self) -> None:
        assert self.project.survivors() == []
        assert not somebody_listens(PORT)
        assert not somebody_listens(STREAM_PORT)
        assert list(self.scratch.iterdir()) == []
        assert list(self.project.root.glob(".e2e-run/runs/*/.run/record.json")) == []
        assert self.folders_in_memory() == []
        assert self.project.cgroups() == []

    def folders_in_memory(self) -> list[Path]:
        """List those with the data of servers; a mark says which run each is of."""
        root = os.fsencode(self.project.root)
        found = []
        for mark in Path("/dev/shm").glob(f"e2e-run-*/{MARK}"):
            with contextlib.suppress(FileNotFoundError):  # other workers' runs come and go
                if root in mark.read_bytes():
                    found.append(mark.parent)
        return found


@contextlib.contextmanager
def example_suite() -> Iterator[Suite]:
    """Copy the examples as a checkout has them; needs the `demo_port` for as long as they run."""
    with project() as made:
        (made.root / "e2e-run.toml").unlink()
        shutil.copy(REPOSITORY / "pyproject.toml", made.root)
        shutil.copytree(
            REPOSITORY / "examples",
            made.root / "examples",
            ignore=shutil.ignore_patterns("__pycache__", ".e2e-run", ".rates.json"),
        )
        (made.root / "scratch").mkdir()
        yield Suite(project=made)


def assert_all_passed(done: Outcome) -> None:
    ran = {*done.statuses.values()} - {"skipped"}
    assert ran, done.stderr
    assert ran <= {"passed", "served"}, done.stdout
    assert done.stdout.rstrip().endswith("All examples passed")
    assert done.code == 0


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for the end of an example; gives its exit code and all that it printed."""
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout + stderr
