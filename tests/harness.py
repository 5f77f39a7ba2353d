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
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
CHILDREN = Path(__file__).resolve().parent / "children"
NOBODY = 65534


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
        for name in ("CI", "NO_COLOR", "FORCE_COLOR", "VIRTUAL_ENV", "PYTHONDEVMODE"):
            env.pop(name, None)
        env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), _site_packages()])
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        return env | dict(extra or {})

    def start(
        self, *args: str, env: Mapping[str, str] | None = None, stdout: Any = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """Start e2e-run in the project; its own output is piped."""
        who: dict[str, Any] = (
            {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}
        )
        return subprocess.Popen(
            self.command(*args),
            cwd=self.root,
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            **who,
        )

    def run(
        self, *args: str, env: Mapping[str, str] | None = None, timeout: float = 100
    ) -> Outcome:
        """Run e2e-run to its end, with a JSON report."""
        report = self.root / f"report-{uuid.uuid4().hex}.json"
        process = self.start(*args, "--report", f"json={report}", env=env)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        finally:
            process.kill()
            process.wait()
        content = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
        return Outcome(code=process.returncode, stdout=stdout, stderr=stderr, report=content)

    def survivors(self) -> list[psutil.Process]:
        """List the living processes that run with this project's interpreter."""
        return [
            process
            for process in psutil.process_iter()
            if str(self.python) in _command_line(process)
            and process.status() != psutil.STATUS_ZOMBIE
        ]


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
