"""What ``e2e-run compare`` shows, line by line."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from past_runs import HOUR, START, past_run, verdicts

from e2e_runner import text
from e2e_runner.model import NetworkMode, ResultRecord
from e2e_runner.report.compare import document, render
from e2e_runner.report.style import Line, Style, paint
from e2e_runner.trends import Comparison, PastRun, compare

NOW = START + 24 * HOUR


def results(**examples: str) -> list[ResultRecord]:
    """Make a result of each example: a letter for its verdict, then its duration in seconds."""
    found = []
    for name, words in examples.items():
        letter, _, seconds = words.partition(" ")
        path = f"examples/{name}.py"
        (each,) = verdicts(letter, path=path, durations=[float(seconds or 1)])
        bad = letter in "ftb"
        found.append(replace(each, cause="exit", reason="exit code 1") if bad else each)
    return found


BEFORE = past_run(
    0,
    results(
        orders="p",
        users="f",
        routes="p 1.5",
        ticker="p 3",
        login="p",
        bots="f",
        old="p",
        stream="p",
        catalog="p",
    ),
)
AFTER = past_run(
    1,
    results(
        orders="t 60",
        users="p",
        routes="p 3",
        ticker="p 1.5",
        login="~",
        bots="f",
        new="f",
        stream="!",
        catalog="-",
    ),
)


def plain(lines: Iterable[Line]) -> list[str]:
    return [paint(line, color=False) for line in lines]


def compared(before: PastRun, after: PastRun) -> Comparison:
    return compare(before, after, strict=False)


def page(before: PastRun, after: PastRun, *, width: int = 80) -> list[str]:
    return plain(render(compared(before, after), now=NOW, width=width, strict=False))


def section(lines: Sequence[str], title: str) -> list[str]:
    start = next(number for number, line in enumerate(lines) if line.startswith(title))
    return [*lines[start : lines.index("", start)]]


def test_everything_that_may_change() -> None:
    assert page(BEFORE, AFTER) == [
        "                           Before                   After        Change",
        "─────────  ──────────────────────  ──────────────────────  ────────────",
        "Run        20260131-120000-0a1b2c  20260131-120001-0a1b2c",
        "Age                        24h00m                  23h00m",
        "passed                          7                       3            -4",
        "flaky                           0                       1            +1",
        "leaked                          0                       1            +1",
        "failed                          2                       2",
        "timeout                         0                       1            +1",
        "skipped                         0                       1            +1",
        "Pass rate                     78%                     62%  -15.3 points",
        "Duration                    10.0s                   10.0s",
        "",
        "Newly failing (2)",
        "  ✗ failed   examples/new.py  (new)",
        "             exit: exit code 1",
        "  ✗ timeout  examples/orders.py  (was passed)",
        "             exit: exit code 1",
        "",
        "Fixed (1)",
        "  ✓ passed   examples/users.py  (was failed)",
        "",
        "Newly flaky (1)",
        "  ! flaky    examples/login.py  (was passed)",
        "",
        "Newly leaked (1)",
        "  ! leaked   examples/stream.py  (was passed)",
        "",
        "Slower (1)",
        "  +100%  1.50s -> 3.00s  examples/routes.py",
        "",
        "Faster (1)",
        "  -50%  3.00s -> 1.50s  examples/ticker.py",
        "",
        "Still failing (1): bots.py",
        "Only in the first (1): old.py",
        "Only in the second (1): new.py",
        "Without a verdict now (1): catalog.py",
        "",
        "2 newly failing, 1 fixed, 1 still failing, 1 newly flaky, 1 newly leaked,",
        "  1 slower, 1 faster",
    ]


def test_nothing_changed() -> None:
    assert page(past_run(0, results(orders="p")), past_run(1, results(orders="p"))) == [
        "                           Before                   After  Change",
        "─────────  ──────────────────────  ──────────────────────  ──────",
        "Run        20260131-120000-0a1b2c  20260131-120001-0a1b2c",
        "Age                        24h00m                  23h00m",
        "passed                          1                       1",
        "Pass rate                    100%                    100%",
        "Duration                    10.0s                   10.0s",
        "",
        "Nothing is newly failing",
    ]


def test_what_else_differs_is_told() -> None:
    other = replace(
        AFTER,
        file="reports/after.json",
        run=replace(
            AFTER.run,
            exit_code=1,
            jobs=8,
            network="host",
            processes="",
            duration=20.0,
            started=0.0,
            version="0.2.0",
        ),
    )
    lines = page(BEFORE, other)
    assert lines[3] == "Age                        24h00m                   ?"
    assert section(lines, "Pass rate") == [
        "Pass rate                     78%                 62%  -15.3 points",
        "Duration                    10.0s               20.0s         +100%",
        "Exit code                       0                   1",
        "Jobs                            2                   8",
        "Network                 namespace                host",
        "Processes                  cgroup                   -",
        "e2e-run                     0.1.0               0.2.0",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exit_code": None, "duration": None}, "The second run did not come to its end: "),
        ({"interrupted": True}, "The second run was interrupted: "),
    ],
)
def test_a_run_without_an_end_is_told(changes: dict[str, Any], said: str) -> None:
    lines = page(BEFORE, replace(AFTER, run=replace(AFTER.run, **changes)))
    assert f"{said}what it lacks says nothing" in lines
    assert not any("The first run" in line for line in lines)


def test_long_lists_are_cut() -> None:
    before = past_run(0, results(**{f"e{n:03}": "p" for n in range(30)}))
    after = past_run(1, results(**{f"e{n:03}": "f" for n in range(30)}))
    lines = page(before, after)
    assert "Newly failing (30)" in lines
    assert "  … and 10 more" in lines
    assert lines[-1] == "30 newly failing"
    assert "Still failing (30): e000.py, e001.py, e002.py, e003.py, e004.py and 25 more" in page(
        after, after
    )
    slow = past_run(1, results(**{f"e{n:03}": "p 9" for n in range(30)}))
    assert "  … and 10 more" in page(before, slow)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_it_may_be(width: int) -> None:
    name = "日本語" * 20
    before = past_run(0, results(**{name: "p", "a" * 90: "p", "b" * 90: "f"}), file="x" * 300)
    after = past_run(1, results(**{name: "p 9", "a" * 90: "f", "b" * 90: "f"}))
    lines = page(before, after, width=width)
    assert max(map(text.cell_width, lines)) <= max(width, 60)


def test_nothing_from_outside_gets_to_the_terminal() -> None:
    (good,) = verdicts("p", path="\x1b[31m\n.py")
    bad = replace(verdicts("f", path=good.path)[0], reason="\x1b]0;title\x07 \u202e")
    before = past_run(0, [good], file="\x1b[1m.json")
    after = replace(
        past_run(1, [bad]), run=replace(past_run(1, []).run, python="\x1b", network="\n")
    )
    shown = page(before, after)
    assert all(text.one_line(line) == line for line in shown)


def test_colours_tell_good_from_bad() -> None:
    lines = render(compared(BEFORE, AFTER), now=NOW, width=80, strict=False)
    spans = {words.strip(): style for line in lines for words, style in line}
    assert spans["Newly failing (2)"] is Style.BAD
    assert spans["Fixed (1)"] is Style.OK
    assert spans["2 newly failing"] is Style.BAD


def test_the_document() -> None:
    told = replace(AFTER.results[0], network=NetworkMode.ISOLATED, attempts=2)
    after = replace(AFTER, results=(told, *AFTER.results[1:]), file="after.json")
    shape = json.loads(document(compared(BEFORE, after), exit_code=1))
    assert (shape["schema"], shape["exit_code"]) == ("e2e-run-compare/1", 1)
    assert shape["after"] == {
        "id": "20260131-120001-0a1b2c",
        "file": "after.json",
        "started": "2023-11-14T23:13:20.000+00:00",
        "duration": 10.0,
        "exit_code": 0,
        "interrupted": False,
        "jobs": 2,
        "isolation": {"network": "namespace", "processes": "cgroup"},
        "shard": None,
        "python": ".venv/bin/python",
        "version": "0.1.0",
        "totals": {
            "passed": 3,
            "flaky": 1,
            "leaked": 1,
            "failed": 2,
            "timeout": 1,
            "skipped": 1,
        },
        "pass_rate": 0.625,
    }
    assert shape["before"]["file"] is None
    lists = {name: each for name, each in shape.items() if isinstance(each, list)}
    names = {
        name: [change["path"].removeprefix("examples/").removesuffix(".py") for change in each]
        for name, each in lists.items()
    }
    assert names == {
        "newly_failing": ["new", "orders"],
        "fixed": ["users"],
        "still_failing": ["bots"],
        "newly_flaky": ["login"],
        "newly_leaked": ["stream"],
        "slower": ["routes"],
        "faster": ["ticker"],
        "added": ["new"],
        "removed": ["old"],
        "without_verdict": ["catalog"],
    }
    assert lists["newly_failing"][1]["after"] == {
        "status": "timeout",
        "cause": "exit",
        "reason": "exit code 1",
        "duration": 60.0,
        "attempts": 2,
        "network": "isolated",
    }
    assert lists["added"][0]["before"] is None


def test_what_a_report_does_not_tell_is_null() -> None:
    bare = PastRun(run=replace(BEFORE.run, id="", started=0.0, python="", version=""), results=())
    shape = json.loads(document(compared(bare, bare), exit_code=0))
    unknown = ("id", "started", "python", "version", "pass_rate")
    assert {shape["before"][key] for key in unknown} == {None}
