"""``e2e-run compare``: two runs side by side, and what changed from one to the other.

``--json`` prints one document::

    {"schema": "e2e-run-compare/1", "exit_code": 1,
     "before": {"id": "...", "file": "a.json" or null, "started": "ISO 8601", "duration": 12.3,
                "exit_code": 0, "interrupted": false, "jobs": 2,
                "isolation": {"network": "namespace", "processes": "cgroup"}, "shard": null,
                "python": "...", "version": "...", "totals": {"passed": 7}, "pass_rate": 1.0},
     "after": {... as before},
     "newly_failing": [{
       "path": "...",
       "before": {"status": "passed", "cause": null, "reason": "", "duration": 1.93,
                  "attempts": 1, "network": "isolated"} or null,
       "after": {... as before} or null}],
     "fixed": [...], "still_failing": [...], "newly_flaky": [...], "newly_leaked": [...],
     "slower": [...], "faster": [...],   by the seconds lost or won, most first
     "added": [...], "removed": [...], "without_verdict": [...]}

What is not told of a run, as in a report that was written by hand, is null. What was skipped or not
run is no verdict: an example that fails and had none before is newly failing, one that has none any
more is in ``without_verdict``. An example is slower or faster by more than a fifth, by more than
0.2 s, and by more than it varies as far as the history knows.

The exit code is 1 when an example is newly failing, else 0; 2 when a run is unknown or a report
cannot be read; 3 when the history cannot be read; 4 when there are no two runs yet.
"""

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from e2e_runner.cli.options import resolve_given
from e2e_runner.errors import NothingSelected, SetupError, UsageError
from e2e_runner.trends import PastRun, compare, spreads

if TYPE_CHECKING:
    from e2e_runner.history import History

_NEWLY_FAILING = 1
_LAST, _BEFORE_LAST = "last", "last~1"
_WINDOW = 20  # durations of an example that tell how much it varies


@click.command("compare")
@click.argument("before", metavar="[RUN", required=False)
@click.argument("after", metavar="[RUN]]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON document.")
@click.option("--config", metavar="PATH", help="Reads this configuration file.")
@click.pass_context
def compare_command(
    context: click.Context,
    /,
    *,
    before: str | None,
    after: str | None,
    as_json: bool,
    config: str | None,
) -> None:
    """Show what changed from one run to another.

    RUN is the beginning of a run's id, `last`, `last~1` (the one before it), or the path of a `json`
    report. Without a second one it is `last`, or where that is the first, `last` after the one before
    it; without any the last two are compared.
    """
    from e2e_runner.text import one_line

    resolved = resolve_given({"config": config}, (".",))
    for warning in resolved.warnings:
        click.echo(f"warning: {one_line(warning)}", err=True)
    sides, known = _look(before, after, resolved.run.state_dir)
    strict = resolved.run.strict
    found = compare(*sides, strict=strict, spreads=known)
    code = _NEWLY_FAILING if found.newly_failing else 0
    if as_json:
        from e2e_runner.report.compare import document

        click.echo(document(found, exit_code=code))
    else:
        from e2e_runner.cli.showing import Page
        from e2e_runner.report.compare import render

        page = Page.of_stdout(resolved.run.color)
        page.show(render(found, now=time.time(), width=page.width, strict=strict))
    context.exit(code)


def _look(
    before: str | None, after: str | None, state_dir: Path
) -> tuple[tuple[PastRun, PastRun], dict[str, float]]:
    """Read both runs, and how much the durations of their examples vary.

    Two reports are compared without a history where it cannot be read.
    """
    from e2e_runner.history import History
    from e2e_runner.text import one_line

    names = (_BEFORE_LAST if before is None else before, _LAST if after is None else after)
    reports = [_report(name) if _is_path(name) else None for name in names]
    first, second = reports
    with contextlib.ExitStack() as stack:
        try:
            history = stack.enter_context(History.open(state_dir))
            if before is None:
                _check_two(history, state_dir)
            sides = (
                first or _remembered(names[0], history),
                second or _remembered(names[1], history),
            )
            if after is None and first is None and sides[0].run.id == sides[1].run.id:
                _check_two(history, state_dir)
                sides = (_remembered(_BEFORE_LAST, history), sides[1])
            return sides, _spreads(sides, history)
        except SetupError as error:
            if first is None or second is None:
                raise
            click.echo(f"warning: {one_line(error.message)}", err=True)
            return (first, second), {}


def _check_two(history: "History", state_dir: Path) -> None:
    """Raise NothingSelected where there is no run before the last one."""
    from e2e_runner.text import one_line

    if len(history.runs(2)) < 2:  # noqa: PLR2004 - a run and the one before it
        raise NothingSelected(
            "There are no two runs to compare yet",
            facts=(f"the history is kept in {one_line(str(state_dir))}",),
            remedy="run the examples twice, or name two `json` reports",
        )


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(".json")


def _remembered(name: str, history: "History") -> PastRun:
    try:
        run = history.find_run(name)
    except UsageError:
        if Path(name).is_file():
            return _report(name)
        raise
    return PastRun(run=run, results=tuple(history.results(run=run.id)))


def _report(name: str) -> PastRun:
    """Read a report; raises UsageError."""
    from e2e_runner.report.reading import NotAReport, read_report
    from e2e_runner.text import one_line

    try:
        run, results = read_report(Path(name).read_bytes())
    except OSError as error:
        raise UsageError(
            f"The report {one_line(name)} cannot be read: {error.strerror or error}",
            remedy="name a report that `--report json=PATH` wrote",
        ) from error
    except NotAReport as error:
        raise UsageError(
            f"{one_line(name)} {error}", remedy="name a report that `--report json=PATH` wrote"
        ) from error
    return PastRun(run=run, results=results, file=name)


def _spreads(sides: tuple[PastRun, PastRun], history: "History") -> dict[str, float]:
    first, second = ({result.path for result in side.results} for side in sides)
    return spreads(
        each for path in sorted(first & second) for each in history.verdicts(path, limit=_WINDOW)
    )
