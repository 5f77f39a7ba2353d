"""Supervision apart from a run: folders of calls that died are removed, and no others."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from harness import REPOSITORY, wait_lines, wait_until

from e2e_runner import apart
from e2e_runner.errors import SetupError
from e2e_runner.supervise.launch import Spawner

LONG_AGO = 1000.0  # seconds


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_folder_is_there_for_the_block_only(scratch: Path) -> None:
    with apart.state_folder("test") as folder:
        assert list(scratch.iterdir()) == [folder]
    assert list(scratch.iterdir()) == []


def test_unusable_temporary_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(SetupError, match="cannot be used"), apart.state_folder("test"):
        pass


def test_supervision_leaves_nothing(scratch: Path) -> None:
    async def main() -> Path | None:
        spawner = Spawner()
        try:
            with apart.state_folder("test") as state:
                async with apart.supervised(spawner, state) as (supervisor, run_dir):
                    assert run_dir.folder.is_relative_to(state)
                    cgroups = supervisor.cgroups
                    assert cgroups is None or cgroups.is_dir()
        finally:
            spawner.close()
        return cgroups

    cgroups = asyncio.run(main())
    assert cgroups is None or not cgroups.exists()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("age", "content", "stays"),
    [(LONG_AGO, "", False), (0.0, "", True), (LONG_AGO, "somebody's file", True)],
)
def test_empty_folder_goes_when_it_is_old(
    *, age: float, content: str, stays: bool, scratch: Path
) -> None:
    left = scratch / "e2e-run-test-left"
    left.mkdir()
    if content:
        (left / "file").write_text(content)
    os.utime(left, (time.time() - age,) * 2)
    with apart.state_folder("test"):
        assert left.exists() is stays


def test_folder_of_another_kind_or_a_link_is_left_alone(scratch: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (scratch / "e2e-run-test-link").symlink_to(target)
    (scratch / "e2e-run-other-left").mkdir()
    for path in (target, scratch / "e2e-run-other-left"):
        os.utime(path, (time.time() - LONG_AGO,) * 2)
    with apart.state_folder("test"):
        pass
    assert {path.name for path in scratch.iterdir()} == {"e2e-run-test-link", "e2e-run-other-left"}
    assert target.is_dir()


def test_call_that_is_killed_with_its_helpers_is_cleared_by_the_next(
    scratch: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    source = f"""
import asyncio
from e2e_runner import apart
from e2e_runner.supervise.launch import Spawner
async def main():
    spawner = Spawner()
    with apart.state_folder("test") as state:
        async with apart.supervised(spawner, state):
            open({str(ready)!r}, "w").write("ready\\n")
            await asyncio.Event().wait()
asyncio.run(main())
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(scratch)}
    with subprocess.Popen([sys.executable, "-c", source], env=environment) as process:
        try:
            wait_lines(ready)
            helpers = psutil.Process(process.pid).children(recursive=True)
            for helper in helpers:
                helper.send_signal(signal.SIGSTOP)  # so that none cleans up meanwhile
        finally:
            process.kill()
    for helper in helpers:
        helper.kill()
    wait_until(lambda: not any(map(psutil.pid_exists, [h.pid for h in helpers])), "they were gone")
    assert list(scratch.glob("e2e-run-test-*")) != []
    with apart.state_folder("test"):
        pass
    assert list(scratch.iterdir()) == []
