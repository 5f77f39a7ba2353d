"""``e2e-run [PATH]...``: discover, run, report, exit."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from e2e_runner.cli.options import resolve_given, run_options, take_environment
from e2e_runner.errors import E2ERunError

if TYPE_CHECKING:
    from e2e_runner.supervise.launch import Spawner

_EXIT_INTERNAL = 70


@click.command("run")
@run_options
@click.pass_context
def run_command(context: click.Context, /, paths: tuple[str, ...], **flags: Any) -> None:
    """Run the examples of a project as its end-to-end tests.

    PATH is a script or a folder to search; default: `paths` of the config, else examples/.
    """
    from e2e_runner.supervise.launch import Spawner

    told: list[int] = []
    try:
        # First of all: it starts while the rest is imported.
        with contextlib.closing(Spawner()) as spawner:
            code = _run(flags, paths, spawner, told)
    except KeyboardInterrupt:
        # One more Ctrl-C than the run has waited for: the helper processes clear away by themselves.
        if not told:
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = told[0]
    context.exit(code)


def _run(flags: dict[str, Any], paths: tuple[str, ...], spawner: "Spawner", told: list[int]) -> int:
    """Run and give the exit code, which is put into `told` as soon as the run is over and reported."""
    import asyncio

    from e2e_runner.cli.listeners import Listeners
    from e2e_runner.cli.planning import make_planned
    from e2e_runner.engine import run_plan
    from e2e_runner.hints import load_rules
    from e2e_runner.report import make_reporters
    from e2e_runner.verdict import with_lost_reports

    resolved = resolve_given(flags, paths)
    run = resolved.run
    # Claimed before anything runs: a report that cannot be written is told now, not after an hour.
    reporters = make_reporters(run, stream=sys.stdout, environ=os.environ)
    listeners = Listeners(reporters, told)
    try:
        planned = make_planned(resolved, environ=os.environ, mend=True)
        if planned.usable:
            listeners.record(run)
        code = asyncio.run(
            run_plan(
                planned.plan,
                run,
                spawner=spawner,
                load_rules=load_rules,
                environ=take_environment(),
                emit=listeners.emit,
                past=planned.past,
            )
        )
    except E2ERunError:
        raise
    except Exception as error:  # noqa: BLE001 - the one place where our own errors end
        code = _internal_error(error, run.state_dir)
    finally:
        if told:  # what is left is short
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        listeners.close()
    if any(reporter.problems for reporter in reporters):
        code = with_lost_reports(code)
    return code


def _internal_error(error: Exception, state_dir: Path) -> int:
    """Keep the traceback of an error of our own, and ask for a report."""
    import traceback

    trace = "".join(traceback.format_exception(error))
    place = state_dir / f"internal-error-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    try:
        place.write_text(trace, encoding="utf-8", errors="backslashreplace")
    except OSError:  # then the terminal has to do
        click.echo(trace, err=True)
    else:
        click.echo(f"e2e-run: internal error: {_last_words(error)}", err=True)
        click.echo(f"  The traceback is kept in {place}", err=True)
    click.echo("To help: report this, with the traceback and the script that caused it.", err=True)
    return _EXIT_INTERNAL


def _last_words(error: BaseException) -> str:
    """Name the error that it all began with: that inside a group, as a group of tasks raises it."""
    import traceback

    from e2e_runner.text import one_line

    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return one_line("".join(traceback.format_exception_only(error)).strip().splitlines()[0])
