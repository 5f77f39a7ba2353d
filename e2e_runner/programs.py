"""Runs programs that are no examples, such as those that fill a template, under the same supervision."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from e2e_runner.supervise.child import Command, StartError, SupervisionLost
from e2e_runner.supervise.client import Supervisor

_NOT_STARTED = 127


async def run_program(
    supervisor: Supervisor,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
) -> int:
    """Run a program to its end; gives its exit code, or minus the number of the signal that killed it.

    Its output is added to `log`, and so is the reason where it cannot be started (127, as a shell has
    it). When the caller is cancelled, or the run dies, everything that it started dies too. Raises
    OSError for the log.
    """
    source = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            child, _ = await supervisor.start(
                Command(argv=argv, env=env, cwd=cwd, stdin=source, stdout=output, stderr=output)
            )
        except (StartError, SupervisionLost) as error:
            os.write(output, f"{error}\n".encode(errors="replace"))
            return _NOT_STARTED
        finally:
            os.close(output)
    finally:
        os.close(source)
    try:
        ended = (await child.exited).exit
        if not child.empty.done():
            await child.kill()
    except SupervisionLost:
        return -signal.SIGKILL  # nobody saw how it ended: no success
    finally:
        child.release()
    return ended.code if ended.code is not None else -(ended.signal or 0)
