"""``e2e-run history``: how the examples fared in the runs so far.

``--json`` prints one document::

    {"schema": "e2e-run-history/1",
     "runs": 41,                         in the history
     "examples": [{
       "path": "examples/example_orders.py",
       "present": true,                  its file is still there
       "attention": "failing", "flaky", "slower", "mended" or "none",
       "runs": 40, "not_ok": 3, "failure_rate": 0.075,   of the last verdicts, at most --limit
       "flaky": true, "duration": seconds or null,
       "trend": {"before": seconds, "after": seconds} or null,
       "last": "failed", "last_run": "ID",
       "streak": 2, "since_run": "ID",   so many verdicts in a row are the same as the last one
       "verdicts": ["passed", ..., "failed"],            oldest first
       "network": "host" or null}],      learned: it fails in a network of its own
     "results": [{                       with EXAMPLE only, newest first
       "run": "ID", "started": "ISO 8601", "path": "...", "status": "failed", "cause": "exit" or null,
       "reason": "exit code 1", "duration": seconds, "cpu": seconds or null,
       "max_rss": bytes or null, "attempts": 1,
       "repeat": {"runs": 10, "passed": 9} or null, "network": "isolated", "host" or null,
       "listened": [8000]}]}

What was skipped or not run is no verdict and counts nowhere. An example is flaky where a verdict was
`flaky`, where some repeats of a run passed and some did not, or where its verdicts went from ok to
not ok, or back, three times or more; mended where it is ok now and was not in some verdict. A trend
is told when the last third of its durations differs from those before by more than a fifth, by more
than 0.2 s and by more than they vary anyway.

The exit code is 0; 2 when EXAMPLE is none or several; 3 when the history cannot be read; 4 when there
is none.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from e2e_runner.cli.options import resolve_given
from e2e_runner.errors import NothingSelected, UsageError
from e2e_runner.trends import USUAL_WINDOW, match_example, standings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from e2e_runner.config import Resolved
    from e2e_runner.history import History
    from e2e_runner.model import RunRecord

_MOST_NAMED = 10


@click.command("history")
@click.argument("example", required=False)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    default=USUAL_WINDOW,
    help=f"Looks at the last N verdicts on each example.  [default: {USUAL_WINDOW}]",
)
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON document.")
@click.option("--config", metavar="PATH", help="Reads this configuration file.")
def history_command(example: str | None, *, limit: int, as_json: bool, config: str | None) -> None:
    """Show how the examples fared so far, or one EXAMPLE run by run.

    What is failing comes first, then what is flaky, then what became slower. EXAMPLE is a path, the
    end of one, or any part of it that fits one example only.
    """
    from e2e_runner.history import History
    from e2e_runner.text import one_line

    resolved = resolve_given({"config": config}, (".",))
    for warning in resolved.warnings:
        click.echo(f"warning: {one_line(warning)}", err=True)
    with History.open(resolved.run.state_dir) as history:
        runs = history.runs()
        if not runs:
            raise NothingSelected(
                f"There is no history of {one_line(str(resolved.run.root))} yet",
                remedy="run its examples: each run adds to it",
            )
        if example is None:
            _all(history, runs, resolved, limit=limit, as_json=as_json)
        else:
            path = _choose(example, history.paths(), resolved.run.root)
            _one(history, path, runs, resolved, limit=limit, as_json=as_json)


def _all(
    history: "History",
    runs: "Sequence[RunRecord]",
    resolved: "Resolved",
    *,
    limit: int,
    as_json: bool,
) -> None:
    from e2e_runner.cli.showing import Page
    from e2e_runner.report.history import Overview, document, overview

    paths = history.paths()
    gone = [path for path in paths if not (resolved.run.root / path).exists()]
    verdicts = [each for path in paths for each in history.verdicts(path, limit=limit)]
    found = standings(verdicts, strict=resolved.run.strict, past=history.past(paths), window=limit)
    if as_json:
        click.echo(document(found, runs=len(runs), gone=gone))
        return
    judged = {each.path for each in found}
    shown = Overview(
        standings=[each for each in found if each.path not in gone],
        runs=len(runs),
        latest=runs[0].started,
        gone=gone,
        without_verdict=[path for path in paths if path not in judged and path not in gone],
    )
    page = Page.of_stdout(resolved.run.color)
    page.show(overview(shown, now=time.time(), width=page.width, strict=resolved.run.strict))


def _one(
    history: "History",
    path: str,
    runs: "Sequence[RunRecord]",
    resolved: "Resolved",
    *,
    limit: int,
    as_json: bool,
) -> None:
    from e2e_runner.cli.showing import Page
    from e2e_runner.report.history import detail, document

    strict = resolved.run.strict
    found = standings(
        history.verdicts(path, limit=limit), strict=strict, past=history.past([path]), window=limit
    )
    results = history.results(path=path, limit=limit)
    if as_json:
        gone = [] if (resolved.run.root / path).exists() else [path]
        click.echo(document(found, runs=len(runs), gone=gone, results=results))
        return
    standing = found[0] if found else None
    page = Page.of_stdout(resolved.run.color)
    page.show(detail(path, standing, results, now=time.time(), width=page.width, strict=strict))


def _choose(words: str, paths: "Sequence[str]", root: Path) -> str:
    """Find the path that is meant; raises UsageError where it is none, or not one only."""
    from e2e_runner.text import one_line, plural

    file = Path(os.path.abspath(words))  # noqa: PTH100 - a link names the example as the report does
    if file.is_relative_to(root) and (named := file.relative_to(root).as_posix()) in paths:
        return named
    matches = match_example(words, paths)
    if len(matches.paths) == 1:
        return matches.paths[0]
    shown = one_line(words)
    if matches.paths:
        more = len(matches.paths) - _MOST_NAMED
        raise UsageError(
            f"{shown!r} fits {plural(len(matches.paths), 'example')}",
            facts=(
                *map(one_line, matches.paths[:_MOST_NAMED]),
                *([f"and {more:,} more"] if more > 0 else []),
            ),
            remedy="name more of the path",
        )
    raise UsageError(
        f"No example of the history is {shown!r}",
        facts=tuple(f"it knows {one_line(path)}" for path in matches.alike),
        remedy="`e2e-run history` lists those that it knows",
    )
