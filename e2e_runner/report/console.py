"""The console: one line for each finished example, then the evidence, the table and the totals."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never

from e2e_runner import text
from e2e_runner.events import (
    AttemptFinished,
    Event,
    ExampleFinished,
    ExampleStarted,
    Interrupted,
    MetricReported,
    OutputWritten,
    PhaseChanged,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
    Warned,
)
from e2e_runner.model import Result
from e2e_runner.report import layout
from e2e_runner.report.display import Details, Shown, Verbosity, shown
from e2e_runner.report.live import LiveRegion
from e2e_runner.report.paths import common_folder
from e2e_runner.report.progress import Progress, progress
from e2e_runner.report.region import region
from e2e_runner.report.reporter import Reporter
from e2e_runner.report.sink import Sink
from e2e_runner.report.style import Line, Style, paint
from e2e_runner.report.table import table
from e2e_runner.report.terminal import Terminal
from e2e_runner.report.together import block, grouped
from e2e_runner.state import RunState
from e2e_runner.verdict import is_bad

_LONGEST_BEGUN = 64 * 1024  # characters of a line that are waited with


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleOptions:
    """How the console speaks; every choice is made already."""

    verbosity: Verbosity
    strict: bool
    color: bool
    live: bool
    width: int  # columns of the summary table
    fit: (
        int | None
    )  # columns that lines are cut or wrapped to; None in a log, which keeps them whole
    root: Path
    paths: Sequence[Path] = ()  # what was asked for, to be named when nothing was found there


class ConsoleReporter:
    """Tells a person of the run as it goes. `clock` is monotonic; `others` may have lost a report."""

    def __init__(
        self,
        sink: Sink,
        options: ConsoleOptions,
        *,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        others: Sequence[Reporter] = (),
    ) -> None:
        self.problems: tuple[str, ...] = ()  # a terminal that went away loses nobody's results
        self._options = options
        self._clock = clock
        self._others = others
        self._environ = environ
        self._zero = 0.0  # the clock when the run started
        self._state: RunState | None = None
        self._folder = ""  # that all examples lie in
        self._at_line_start = True
        self._labelled = False  # output, by the example that wrote it
        self._begun: dict[str, str] = {}  # the line that an example has not ended yet, by its path
        self._terminal = Terminal(sink, make_region=self._make_region if options.live else None)

    def handle(self, event: Event, state: RunState) -> None:
        """Say what the event calls for at this verbosity."""
        self._state = state
        match event:
            case RunStarted():
                self._zero = self._clock() - event.at
                self._folder = common_folder(example.path for example in event.plan.examples)
                self._labelled = event.run.jobs > 1
                self._start(event)
            case (
                ExampleStarted()
                | PhaseChanged()
                | StepStarted()
                | StepFinished()
                | MetricReported()
            ):
                self._follow(event)
            case OutputWritten():
                self._pass_through(event)
            case AttemptFinished():
                self._finish_attempt(event, state)
            case ExampleFinished():
                self._finish_example(event.result, state)
            case Warned():
                if self._options.verbosity is not Verbosity.QUIET:
                    self._say([layout.warning(event.message, event.path)])
            case Interrupted():
                self._say([_interruption(event)])
            case RunFinished():
                self._finish(state)
            case _:
                assert_never(event)

    def close(self) -> None:
        """Write what is left."""
        self._terminal.close()

    def _start(self, event: RunStarted) -> None:
        verbosity = self._options.verbosity
        if verbosity is Verbosity.QUIET:
            return
        self._say(layout.header(event.run, event.plan, width=self._options.fit))
        self._say(layout.warning(message) for message in event.plan.warnings)
        if verbosity is Verbosity.VERBOSE:
            for out in event.plan.deselected:
                words = f"skipped  {text.one_line(out.example.path)}: {text.one_line(out.reason)}"
                self._say([[(words, Style.DIM)]])

    def _follow(self, event: Progress) -> None:
        if self._options.verbosity is Verbosity.VERBOSE:
            self._say(progress(event))

    def _finish_attempt(self, event: AttemptFinished, state: RunState) -> None:
        """Tell of an attempt that is not the last: with -v in any case, else if it was not ok."""
        self._end_output(event.result.path)
        self._follow(event)
        options = self._options
        if options.verbosity is Verbosity.NORMAL and is_bad(event.result.status, strict=False):
            line = layout.attempt_failed(
                event, state, width=options.fit, strict=options.strict, folder=self._folder
            )
            self._say([line])

    def _finish_example(self, result: Result, state: RunState) -> None:
        self._end_output(result.path)
        if not self._shown(result).line:
            return
        lines = [
            layout.finished(
                result,
                state,
                width=self._options.fit,
                strict=self._options.strict,
                folder=self._folder,
            )
        ]
        if self._options.verbosity is Verbosity.VERBOSE:
            lines += layout.remarks(result)
        self._say(lines)

    def _finish(self, state: RunState) -> None:
        self._terminal.end_region()
        options = self._options
        strict = options.strict
        if state.selected:
            told = self._tell_details(state)
            if options.verbosity is not Verbosity.QUIET:
                self._say([[]])
                self._say(table(state, width=options.width, strict=strict))
                self._say([[]])
            elif told:
                self._say([[]])
            self._say([layout.totals(state, strict=strict)])
            if options.verbosity is not Verbosity.QUIET:
                self._say(layout.passive_files(state.plan))
        else:
            self._say(layout.nothing_selected(state.plan, paths=options.paths, root=options.root))
        for reporter in self._others:
            self._say(layout.warning(problem) for problem in reporter.problems)
        self._say(layout.conclusion(state, strict=strict))

    def _tell_details(self, state: RunState) -> bool:
        """Give the evidence on each example that needs it; False when none does."""
        options = self._options
        results = sorted(state.results.values(), key=lambda result: result.path)
        needing = [each for each in results if self._shown(each).details is not Details.NONE]
        for group in grouped(needing, state.failed_attempts):
            if len(group) > 1:
                self._say(block(group, width=options.fit, strict=options.strict))
                continue
            (result,) = group
            self._say(
                layout.details(
                    result,
                    width=options.fit,
                    strict=options.strict,
                    with_output=self._shown(result).details is Details.FULL,
                    root=options.root,
                    earlier=state.failed_attempts(result.path),
                )
            )
        return bool(needing)

    def _shown(self, result: Result) -> Shown:
        return shown(
            result.status,
            verbosity=self._options.verbosity,
            strict=self._options.strict,
            started=result.attempts > 0,
        )

    def _say(self, lines: Iterable[Line]) -> None:
        """Write whole lines, on lines of their own."""
        words = "".join(f"{paint(line, color=self._options.color)}\n" for line in lines)
        if not words:
            return
        self._terminal.write(words if self._at_line_start else f"\n{words}")
        self._at_line_start = True

    def _pass_through(self, event: OutputWritten) -> None:
        """Show output as it comes; where examples run side by side, in lines that say whose they are."""
        output = event.text
        if self._labelled:
            written = self._begun.pop(event.path, "") + event.text
            output, newline, rest = written.rpartition("\n")
            output = self._label(event.path, output) if newline else ""
            if len(rest) > _LONGEST_BEGUN:
                output += self._label(event.path, rest)
            elif rest:
                self._begun[event.path] = rest
        if output:
            self._terminal.write(output)
            self._at_line_start = output.endswith("\n")

    def _end_output(self, path: str) -> None:
        """Show the end of an output that lacks a newline."""
        rest = self._begun.pop(path, "")
        if rest:
            self._terminal.write(self._label(path, rest))

    def _label(self, path: str, output: str) -> str:
        name = text.one_line(path.removeprefix(f"{self._folder}/"))
        label = paint([(f"{name} │", Style.DIM)], color=self._options.color)
        return "".join(f"{label} {line}\n" for line in output.split("\n"))

    def _make_region(self, sink: Sink) -> LiveRegion:
        options = self._options
        painter = partial(self._paint, strict=options.strict)
        return LiveRegion(sink, painter, color=options.color, environ=self._environ)

    def _paint(self, width: int, height: int, *, strict: bool) -> list[Line]:
        if self._state is None:
            return []
        now = self._clock() - self._zero
        return region(self._state, now=now, width=width, height=height, strict=strict)


def _interruption(event: Interrupted) -> Line:
    words = "stopping what runs; once more kills it" if event.count == 1 else "killing what runs"
    return [(f"{event.signal}: ", Style.WARN), (words, Style.PLAIN)]
