"""Runs the real e2e-run on real folders, as this user or as an ordinary one, and reads what it reports."""

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from e2e_runner.supervise import linux

REPOSITORY = Path(__file__).resolve().parent.parent
CHILDREN = Path(__file__).resolve().parent / "children"
NOBODY = 65534
_OF_CI = ("CI", "TF_BUILD", "BUILD_NUMBER")
IS_ROOT = os.geteuid() == 0

# What the tests run e2e-run with unless they say otherwise: on the network of the machine, one example
# at a time. An empty variable counts as not set: AS_USERS has the defaults that users have.
ON_HOST = {"E2E_RUN_NETWORK": "host", "E2E_RUN_JOBS": "1"}
AS_USERS = dict.fromkeys(ON_HOST, "")

_NEEDS_ROOT = pytest.mark.skipif(not IS_ROOT, reason="needs root")
# What a fixture is given: the tier, and the user to run as (None: this process's own).
TIERS = [
    pytest.param(("cgroup", None), marks=_NEEDS_ROOT),
    pytest.param(("pid-namespace", None)),
    pytest.param(("scan", None)),
    pytest.param(("cgroup", NOBODY), marks=_NEEDS_ROOT),
    pytest.param(("pid-namespace", NOBODY), marks=_NEEDS_ROOT),
    pytest.param(("scan", NOBODY), marks=_NEEDS_ROOT),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run of e2e-run did."""

    code: int
    stdout: str
    stderr: str
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def examples(self) -> dict[str, dict[str, Any]]:
        return {example["path"]: example for example in self.report["examples"]}

    @property
    def statuses(self) -> dict[str, str]:
        return {path: example["status"] for path, example in self.examples.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A run under way."""

    process: subprocess.Popen[str]
    report: Path

    def outcome(self, *, timeout: float = 100) -> Outcome:
        """Wait for the end of the run."""
        stdout, stderr = self.process.communicate(timeout=timeout)
        written = self.report.exists() and self.report.stat().st_size > 0
        return Outcome(
            code=self.process.returncode,
            stdout=stdout or "",
            stderr=stderr or "",
            report=json.loads(self.report.read_text(encoding="utf-8")) if written else {},
        )

    def offspring(self) -> list[psutil.Process]:
        """List every process that descends from e2e-run: the spawner first, then keepers and scripts."""
        return psutil.Process(self.process.pid).children(recursive=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A folder of its own with an interpreter of its own name, by which survivors are found."""

    root: Path
    python: Path
    user: int | None = None  # uid to run as; None: this process's own

    def write(self, name: str, text: str) -> Path:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        if self.user is not None:
            for made in (file, *file.parents):
                if made == self.root:
                    break
                os.chown(made, self.user, self.user)
        return file

    def child(self, name: str) -> Path:
        """Copy a misbehaving child, and the helpers of the children, into the project."""
        for helper in CHILDREN.glob("_*.py"):
            shutil.copy(helper, self.root / helper.name)
        shutil.copy(CHILDREN / name, self.root / name)
        return self.root / name

    def command(self, *args: str) -> list[str]:
        runner = sys.executable if self.user is None else str(ordinary_python())
        return [runner, "-m", "e2e_runner", *args]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("E2E_RUN")}
        for name in (*_OF_CI, "NO_COLOR", "FORCE_COLOR", "VIRTUAL_ENV", "PYTHONDEVMODE"):
            env.pop(name, None)
        env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), _site_packages()])
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        return env | ON_HOST | dict(extra or {})

    def start(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        stdout: Any = subprocess.PIPE,
        prefix: Sequence[str] = (),
        **more: Any,
    ) -> subprocess.Popen[str]:
        """Start e2e-run in the project; its own output is piped.

        `prefix` is a command that is handed the one of e2e-run; `more` is for Popen.
        """
        who: dict[str, Any] = (
            {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}
        )
        usual: dict[str, Any] = {
            "cwd": self.root,
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.PIPE,
            "start_new_session": True,
        }
        return subprocess.Popen(
            [*prefix, *self.command(*args)],
            env=self.environment(env),
            stdout=stdout,
            encoding="utf-8",
            errors="replace",
            **{**usual, **who, **more},
        )

    @contextlib.contextmanager
    def running(self, *args: str, **how: Any) -> "Iterator[Running]":
        """Run e2e-run, with a JSON report, in the background of the block; see `start`."""
        report = self.root / f"report-{uuid.uuid4().hex}.json"
        with self.start("--report", f"json={report}", *args, **how) as process:
            try:
                yield Running(process=process, report=report)
            finally:
                process.kill()

    def run(self, *args: str, timeout: float = 100, **how: Any) -> Outcome:
        """Run e2e-run to its end, with a JSON report; see `start`."""
        with self.running(*args, **how) as running:
            return running.outcome(timeout=timeout)

    def survivors(self) -> list[psutil.Process]:
        """List the living processes that run with this project's interpreter."""
        return [
            process
            for process in psutil.process_iter()
            if str(self.python) in _command_line(process) and is_living(process)
        ]

    def cgroups(self) -> list[Path]:
        """List those of this project's runs; other runs may be under way on this machine."""
        own = linux.own_cgroup()
        if own is None:
            return []
        runs = self.root.glob(".e2e-run/runs/*")
        return [folder for run in runs if (folder := own / f"e2e-run-{run.name}").exists()]


@contextlib.contextmanager
def project(*, user: int | None = None) -> Iterator[Project]:
    """Make a project in a folder that any user may reach; end what is left of it afterwards."""
    root = Path(tempfile.mkdtemp(prefix="e2e-test-"))
    try:
        python = root / f"python-{uuid.uuid4().hex[:12]}"
        base = sys.executable if user is None else str(ordinary_python())
        python.symlink_to(Path(base).resolve())
        if user is not None:
            os.chown(root, user, user)
        root.chmod(0o755)
        made = Project(root=root, python=python, user=user)
        made.write("e2e-run.toml", f'python = "{python}"\n')
        yield made
        for process in made.survivors():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    finally:
        shutil.rmtree(root, ignore_errors=True)


@functools.cache
def ordinary_python() -> Path | None:
    """Find an interpreter of this version that an ordinary user may run, with our packages."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                [name, "-c", "import click, psutil, rich, e2e_runner"],
                env={"PYTHONPATH": os.pathsep.join([str(REPOSITORY), _site_packages()])},
                cwd="/",
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                capture_output=True,
                check=False,
            )
            if done.returncode == 0:
                return Path(name)
    return None


@contextlib.contextmanager
def in_tier(tier: str, user: int | None) -> Iterator[Project]:
    """Make a project for runs in a containment tier by a user; skip where that cannot be had."""
    if user is not None and ordinary_python() is None:
        pytest.skip("no interpreter here can be run by an ordinary user")
    with contextlib.ExitStack() as stack:
        if tier == "cgroup" and user is not None:
            stack.enter_context(delegated_cgroup(user))
        yield stack.enter_context(project(user=user))


@contextlib.contextmanager
def delegated_cgroup(user: int) -> Iterator[Path]:
    """Put this process into a cgroup that `user` owns, as systemd does for a user's session."""
    own = linux.own_cgroup()
    if own is None:
        pytest.skip("no cgroup v2 is mounted")
    session = own / f"e2e-test-{os.getpid()}"
    session.mkdir()
    try:
        for file in (session, session / "cgroup.procs"):
            os.chown(file, user, user)
        (session / "cgroup.procs").write_text(str(os.getpid()))
        yield session
    finally:
        (own / "cgroup.procs").write_text(str(os.getpid()))
        for folder in session.glob("e2e-run-*"):
            folder.rmdir()
        session.rmdir()


def wait_until(fact: Callable[[], object], what: str, *, seconds: float = 20) -> None:
    """Look until an observable fact holds; fail, saying `what` did not come, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:g}s in vain until {what}")
        time.sleep(0.005)


def wait_lines(file: Path, count: int = 1) -> list[str]:
    """Wait until a file has so many whole lines, such as the pids of children that are ready."""

    def lines() -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return file.read_text(encoding="utf-8").split("\n")[:-1]
        return []

    wait_until(lambda: len(lines()) >= count, f"{file.name} had {count} lines")
    return lines()


def wait_gone(processes: Iterable[psutil.Process], *, seconds: float = 20) -> None:
    """Wait until none of the processes lives any more."""

    def living() -> list[psutil.Process]:
        return [process for process in processes if is_living(process)]

    wait_until(lambda: not living(), "they were gone", seconds=seconds)


def is_living(process: psutil.Process) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """Find a TCP port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def overrides(settings: Mapping[str, Sequence[str]]) -> str:
    """Write TOML overrides: file name -> lines."""
    return "".join(
        f'[[overrides]]\nmatch = "{name}"\n' + "\n".join(lines) + "\n"
        for name, lines in settings.items()
    )


def _site_packages() -> str:
    return str(Path(psutil.__file__).parent.parent)


def _command_line(process: psutil.Process) -> str:
    try:
        return "\0".join(process.cmdline())
    except psutil.Error:
        return ""
