import itertools

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_runner.model import Color, Status
from e2e_runner.report.display import (
    Details,
    Verbosity,
    shown,
    use_color,
    use_live,
    use_width,
)
from e2e_runner.verdict import is_bad

QUIET, NORMAL, VERBOSE = Verbosity.QUIET, Verbosity.NORMAL, Verbosity.VERBOSE


@pytest.mark.parametrize(
    ("verbose", "quiet", "verbosity"),
    [
        (0, False, NORMAL),
        (1, False, VERBOSE),
        (3, False, VERBOSE),
        (0, True, QUIET),
        (1, True, QUIET),
    ],
)
def test_verbosity(verbose: int, *, quiet: bool, verbosity: Verbosity) -> None:
    assert Verbosity.of(verbose=verbose, quiet=quiet) is verbosity


# status, verbosity, strict, started -> line, details, row
@pytest.mark.parametrize(
    ("status", "verbosity", "strict", "started", "line", "details", "row"),
    [
        (Status.PASSED, QUIET, False, True, False, Details.NONE, False),
        (Status.PASSED, NORMAL, False, True, True, Details.NONE, False),
        (Status.SERVED, VERBOSE, True, True, True, Details.NONE, False),
        (Status.LEAKED, QUIET, False, True, False, Details.NONE, True),
        (Status.LEAKED, NORMAL, False, True, True, Details.SHORT, True),
        (Status.LEAKED, QUIET, True, True, True, Details.FULL, True),
        (Status.FLAKY, NORMAL, False, True, True, Details.SHORT, True),
        (Status.FLAKY, NORMAL, True, True, True, Details.FULL, True),
        (Status.FAILED, QUIET, False, True, True, Details.FULL, True),
        (Status.FAILED, NORMAL, False, False, True, Details.FULL, True),
        (Status.TIMEOUT, NORMAL, False, True, True, Details.FULL, True),
        (Status.BLOCKED, QUIET, False, False, True, Details.FULL, True),
        (Status.SKIPPED, QUIET, False, False, False, Details.NONE, False),
        (Status.SKIPPED, NORMAL, False, False, True, Details.NONE, False),
        (Status.NOT_RUN, QUIET, False, False, False, Details.NONE, True),
        (Status.NOT_RUN, NORMAL, False, False, False, Details.NONE, True),
        (Status.NOT_RUN, VERBOSE, False, False, True, Details.NONE, True),
        (Status.NOT_RUN, QUIET, False, True, True, Details.FULL, True),
    ],
)
def test_what_is_shown(
    status: Status,
    verbosity: Verbosity,
    *,
    strict: bool,
    started: bool,
    line: bool,
    details: Details,
    row: bool,
) -> None:
    found = shown(status, verbosity=verbosity, strict=strict, started=started)
    assert (found.line, found.details, found.row) == (line, details, row)


def test_rules_in_the_whole_space() -> None:
    for status, strict, started in itertools.product(Status, [False, True], [False, True]):
        by_verbosity = [
            shown(status, verbosity=verbosity, strict=strict, started=started)
            for verbosity in Verbosity
        ]
        lines = [found.line for found in by_verbosity]
        assert lines == sorted(lines), "more verbosity never hides a line"
        pending = status is Status.NOT_RUN and not started
        if is_bad(status, strict=strict) and not pending:
            assert all(found.line and found.row for found in by_verbosity)
            assert {found.details for found in by_verbosity} == {Details.FULL}
        else:
            assert Details.FULL not in {found.details for found in by_verbosity}


@pytest.mark.parametrize(
    ("choice", "isatty", "environ", "color"),
    [
        (Color.AUTO, True, {}, True),
        (Color.AUTO, False, {}, False),
        (Color.AUTO, True, {"NO_COLOR": "1"}, False),
        (Color.AUTO, True, {"NO_COLOR": "0"}, False),
        (Color.AUTO, True, {"NO_COLOR": ""}, True),
        (Color.AUTO, False, {"FORCE_COLOR": "1"}, True),
        (Color.AUTO, True, {"FORCE_COLOR": "0"}, False),
        (Color.AUTO, False, {"FORCE_COLOR": ""}, False),
        (Color.AUTO, True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (Color.AUTO, True, {"TERM": "dumb"}, False),
        (Color.AUTO, True, {"TERM": "dumb", "FORCE_COLOR": "1"}, True),
        (Color.AUTO, True, {"TERM": "xterm", "CI": "true"}, True),
        (Color.ALWAYS, False, {"NO_COLOR": "1", "TERM": "dumb"}, True),
        (Color.NEVER, True, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_colors(choice: Color, *, isatty: bool, environ: dict[str, str], color: bool) -> None:
    assert use_color(choice, isatty=isatty, environ=environ) is color


@pytest.mark.parametrize(
    ("isatty", "environ", "verbosity", "no_capture", "live"),
    [
        (True, {"TERM": "xterm"}, NORMAL, False, True),
        (True, {"TERM": "xterm"}, VERBOSE, False, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, NORMAL, False, True),
        (True, {"TERM": "xterm", "CI": "false"}, NORMAL, False, True),
        (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, NORMAL, False, False),
        (True, {"TERM": "xterm"}, QUIET, False, False),
        (True, {"TERM": "xterm"}, NORMAL, True, False),
        (True, {"TERM": "xterm", "CI": "true"}, NORMAL, False, False),
        (True, {"TERM": "dumb"}, NORMAL, False, False),
        (True, {}, NORMAL, False, False),
    ],
)
def test_live_region(
    *, isatty: bool, environ: dict[str, str], verbosity: Verbosity, no_capture: bool, live: bool
) -> None:
    found = use_live(isatty=isatty, environ=environ, verbosity=verbosity, no_capture=no_capture)
    assert found is live


@pytest.mark.parametrize(
    ("environ", "columns", "width"),
    [
        ({}, None, 80),
        ({}, 120, 120),
        ({"COLUMNS": "100"}, 120, 100),
        ({"COLUMNS": "100"}, None, 100),
        ({"COLUMNS": "wide"}, 120, 120),
        ({"COLUMNS": "0"}, None, 80),
        ({"COLUMNS": "-5"}, None, 80),
        ({"COLUMNS": "7"}, None, 40),
        ({}, 10, 40),
        ({}, 999, 200),
        ({"COLUMNS": "9" * 5000}, None, 200),
    ],
)
def test_width(environ: dict[str, str], columns: int | None, width: int) -> None:
    assert use_width(environ=environ, terminal_columns=columns) == width


@hypothesis.settings(deadline=None)
@given(st.text(), st.none() | st.integers(0, 10_000))
def test_width_is_always_usable(asked: str, columns: int | None) -> None:
    assert 40 <= use_width(environ={"COLUMNS": asked}, terminal_columns=columns) <= 200
