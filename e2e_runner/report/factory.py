"""Which reporters a run has."""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TextIO, assert_never

from e2e_runner.model import ReportFormat, RunSettings
from e2e_runner.report.console import ConsoleOptions, ConsoleReporter
from e2e_runner.report.display import Verbosity, use_color, use_live, use_width
from e2e_runner.report.reporter import Reporter
from e2e_runner.report.sink import Sink
from e2e_runner.report.targets import OpenTarget, open_reports


def make_reporters(
    run: RunSettings,
    *,
    stream: TextIO | None,
    environ: Mapping[str, str],
    clock: Callable[[], float] = time.monotonic,
) -> list[Reporter]:
    """Make the reporters of a run, in the order in which they are to be called.

    Call it before the run starts: it claims the report paths, and raises UsageError or SetupError for
    one that cannot be written. The console comes last, so that it can say which report was lost.
    `stream` is where the console writes; None, as with a closed stdout, keeps it silent. `clock` is
    monotonic. Whoever called this closes each reporter once.
    """
    files = [_file_reporter(target, strict=run.strict) for target in open_reports(run.reports)]
    return [*files, _console(run, stream=stream, environ=environ, clock=clock, others=files)]


def _file_reporter(target: OpenTarget, *, strict: bool) -> Reporter:
    # Each is imported only when it is asked for.
    match target.format:
        case ReportFormat.JSON:
            from e2e_runner.report.document import DocumentReporter
            from e2e_runner.report.json_report import render_json

            return DocumentReporter(target, render_json)
        case ReportFormat.JSONL:
            from e2e_runner.report.jsonl import JsonlReporter

            return JsonlReporter(target)
        case ReportFormat.JUNIT:
            from e2e_runner.report.document import DocumentReporter
            from e2e_runner.report.junit import render_junit

            return DocumentReporter(target, partial(render_junit, strict=strict))
        case _:
            assert_never(target.format)


def _console(
    run: RunSettings,
    *,
    stream: TextIO | None,
    environ: Mapping[str, str],
    clock: Callable[[], float],
    others: list[Reporter],
) -> ConsoleReporter:
    isatty, columns = _look_at(stream)
    verbosity = Verbosity.of(verbose=run.verbose, quiet=run.quiet)
    width = use_width(environ=environ, terminal_columns=columns)
    options = ConsoleOptions(
        verbosity=verbosity,
        strict=run.strict,
        color=use_color(run.color, isatty=isatty, environ=environ),
        live=use_live(
            isatty=isatty, environ=environ, verbosity=verbosity, no_capture=run.no_capture
        ),
        width=width,
        fit=width if isatty else None,
        root=run.root,
        paths=run.paths,
    )
    return ConsoleReporter(Sink(stream), options, environ=environ, clock=clock, others=others)


def _look_at(stream: TextIO | None) -> tuple[bool, int | None]:
    """Tell whether a stream is a terminal, and how many columns it has."""
    if stream is None:
        return False, None
    try:
        isatty = stream.isatty()
        return isatty, os.get_terminal_size(stream.fileno()).columns if isatty else None
    except (OSError, ValueError):  # closed, or no descriptor behind it
        return False, None
