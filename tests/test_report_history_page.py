"""What ``e2e-run history`` shows, line by line."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from past_runs import HOUR, LETTERS, START, run_id, verdicts

from e2e_runner import text
from e2e_runner.model import NetworkMode, Past, ResultRecord, Status
from e2e_runner.report.history import Overview, detail, document, overview
from e2e_runner.report.style import Line, Style, fits_encoding, for_encoding, paint
from e2e_runner.trends import chronological, standings

NOW = START + 24 * HOUR
FASTER = [2.0] * 12 + [1.0] * 6
SLOWER = [1.0] * 12 + [2.0] * 6
ORDERS = verdicts("p" * 6 + "f" * 3, path="examples/orders.py")
USERS = verdicts("pfppf~pps", path="examples/users.py", durations=[0.123] * 9)
ROUTES = verdicts("p" * 18, path="examples/routes.py", durations=SLOWER)
TICKER = verdicts("p!p", path="examples/streams/ticker.py")
EVERYTHING = [*ORDERS, *USERS, *ROUTES, *TICKER]


def plain(lines: Iterable[Line]) -> list[str]:
    return [paint(line, color=False) for line in lines]


def page(
    results: Iterable[ResultRecord],
    *,
    width: int = 80,
    strict: bool = False,
    past: dict[str, Past] | None = None,
    gone: Sequence[str] = (),
    without_verdict: Sequence[str] = (),
) -> list[Line]:
    shown = Overview(
        standings=standings(results, strict=strict, past=past),
        runs=18,
        latest=NOW - 7200,
        gone=gone,
        without_verdict=without_verdict,
    )
    return overview(shown, now=NOW, width=width, strict=strict)


def one(
    results: Sequence[ResultRecord], *, width: int = 80, past: Past | None = None
) -> list[Line]:
    path = results[0].path
    found = standings(results, strict=False, past={path: past} if past else None)
    newest = chronological(results)[::-1]
    return detail(path, found[0] if found else None, newest, now=NOW, width=width, strict=False)


# --- all examples --------------------------------------------------------------------------------


def test_what_needs_attention_stands_first() -> None:
    past = {"examples/users.py": Past(network=NetworkMode.HOST)}
    assert plain(page(EVERYTHING, past=past)) == [
        "4 examples, 18 runs, the last 2h00m ago",
        "",
        "Example              Runs  Not ok   Time  Trend  Last               Verdicts",
        "───────────────────  ────  ──────  ─────  ─────  ─────────────────  ────────────",
        "Not ok (1)",
        "…/orders.py             9     33%  1.00s         ✗ failed x3        ······✗✗✗",
        "Flaky (1)",
        "…/users.py              9     22%  123ms         ✓ served x3, host  ·✗··✗~···",
        "Slower (1)",
        "…/routes.py            18      0%  2.00s  +100%  ✓ passed x18       ············",
        "Steady (1)",
        "…/streams/ticker.py     3      0%  1.00s         ✓ passed           ·!·",
        "",
        "· ok  ~ flaky  ! leaked  ✗ failed  (the newest at the right)",
        "x3 says that the last three verdicts are the same",
    ]


def test_a_page_without_troubles_has_no_sections() -> None:
    assert plain(page(TICKER)) == [
        "1 example, 18 runs, the last 2h00m ago",
        "",
        "Example                     Runs  Not ok   Time  Last      Verdicts",
        "──────────────────────────  ────  ──────  ─────  ────────  ────────",
        "examples/streams/ticker.py     3      0%  1.00s  ✓ passed  ·!·",
        "",
        "· ok  ! leaked  (the newest at the right)",
    ]


def test_a_failing_example_may_be_flaky_too() -> None:
    line = plain(page(verdicts("pfpfpf")))[4:6]
    assert line == [
        "Not ok (1)",
        "examples/orders.py     6     50%  1.00s  ✗ failed, flaky  ·✗·✗·✗",
    ]


def test_strict_counts_leaks() -> None:
    line = plain(page(TICKER, strict=True))[5]
    assert line == "examples/streams/ticker.py     3     33%  1.00s  ✓ passed  ·!·"


def test_what_failed_once_is_not_steady() -> None:
    lines = plain(page([*verdicts("fp", path="a.py"), *verdicts("ppp", path="b.py")]))
    assert lines[4:8] == [
        "Ok again (1)",
        "a.py        2     50%  1.00s  ✓ passed     ✗·",
        "Steady (1)",
        "b.py        3      0%  1.00s  ✓ passed x3  ···",
    ]


def test_a_streak_is_one_of_the_same_verdict_and_explained() -> None:
    lines = plain(page([*verdicts("~fp~", path="a.py"), *verdicts("f" * 9, path="b.py")]))
    assert lines[4:] == [
        "Not ok (1)",
        "b.py        9    100%         ✗ failed x9  ✗✗✗✗✗✗✗✗✗",
        "Flaky (1)",
        "a.py        4     25%  1.00s  ! flaky      ~✗·~",
        "",
        "· ok  ~ flaky  ✗ failed  (the newest at the right)",
        "x3 says that the last three verdicts are the same",
    ]


def test_what_is_not_listed_is_named() -> None:
    gone = [f"examples/old_{number}.py" for number in range(7)]
    lines = plain(page(TICKER, gone=gone, without_verdict=["examples/new.py"]))[-3:]
    assert lines == [
        "Without a verdict so far (1): examples/new.py",
        "Not listed, as the file is gone (7): examples/old_0.py, examples/old_1.py,",
        "  examples/old_2.py, examples/old_3.py, examples/old_4.py and 2 more",
    ]


def test_nothing_but_what_is_gone() -> None:
    assert plain(page([], gone=["a.py"])) == [
        "0 examples, 18 runs, the last 2h00m ago",
        "",
        "Not listed, as the file is gone (1): a.py",
    ]


def test_of_very_many_examples_only_those_that_need_attention_are_listed() -> None:
    few = [each for n in range(60) for each in verdicts("p", path=f"examples/e{n}.py")]
    assert not any("not listed" in line for line in plain(page(few)))
    lines = plain(page([*few, *ORDERS]))
    assert lines[4:] == [
        "Not ok (1)",
        "examples/orders.py     9     33%  1.00s  ✗ failed x3  ······✗✗✗",
        "… and 60 steady ones, not listed: name one, or see --json",
        "",
        "· ok  ✗ failed  (the newest at the right)",
        "x3 says that the last three verdicts are the same",
    ]


def test_a_long_history_shows_its_end() -> None:
    letters = "f" + "p" * 30 + "t"
    wide = plain(page(verdicts(letters), width=120))
    assert wide[5].endswith("·" * 19 + "T")
    narrow = plain(page(verdicts(letters, path=f"examples/{'long' * 8}.py"), width=80))
    assert narrow[5].endswith("  " + "·" * 9 + "T")


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_it_may_be(width: int) -> None:
    names = ["examples/a_rather_long_name_of_an_example.py", "examples/日本語の例.py", "b.py"]
    results = [each for name in names for each in verdicts("pfpfpf" * 5, path=name)]
    least = 70  # what the figures of one example take, and the least of a name
    lines = plain(page(results, width=width))
    assert max(map(text.cell_width, lines)) <= max(width, least)


def test_nothing_from_outside_gets_to_the_terminal() -> None:
    name = "examples/\x1b[31mred\n\u202e.py"
    shown = "\n".join(plain([*page(verdicts("pf", path=name)), *one(verdicts("pf", path=name))]))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\\x1b[31mred\\n\\u202e.py" in shown


def test_it_can_be_written_in_ascii() -> None:
    assert not fits_encoding("ascii")
    shown = "\n".join(plain([*page(EVERYTHING), *one(USERS)]))
    written = for_encoding(shown, "ascii", symbols=False).decode()
    assert "?" not in written
    assert "------xxx" in written


def test_colours_tell_good_from_bad() -> None:
    spans = {words: style for line in page(EVERYTHING) for words, style in line}
    assert spans["✗✗✗"] is Style.BAD
    assert spans["~"] is Style.WARN
    assert spans["···"] is Style.DIM


# --- one example ---------------------------------------------------------------------------------


def test_one_example_run_by_run() -> None:
    results = [
        *ORDERS[-4:-1],
        replace(
            ORDERS[-1],
            cause="unique-violation",
            reason='exit code 1 in step "sign up Tina" and a lot more that was said of it',
            attempts=3,
            network=NetworkMode.HOST,
        ),
    ]
    assert plain(one(results, past=Past(network=NetworkMode.HOST))) == [
        "examples/orders.py",
        "  Failed in each of the last 3 runs, since 18h00m ago (run 20260131-120006-0a1b2c)",
        "  Not ok in 3 of the last 4 runs (75%)",
        "  It takes 1.00s",
        "  Learned: it fails in a network of its own, and is run on the host network",
        "  ·✗✗✗",
        "",
        "Run                        Age  Verdict    Time  Tries  Network",
        "──────────────────────  ──────  ────────  ─────  ─────  ───────",
        "20260131-120008-0a1b2c  16h00m  ✗ failed  1.00s      3  host",
        '    unique-violation: exit code 1 in step "sign up Tina" and a lot more that was',
        "    said of it",
        "20260131-120007-0a1b2c  17h00m  ✗ failed  1.00s",
        "20260131-120006-0a1b2c  18h00m  ✗ failed  1.00s",
        "20260131-120005-0a1b2c  19h00m  ✓ passed  1.00s",
    ]


def test_a_short_reason_stands_beside_its_verdict() -> None:
    (failed,) = verdicts("f")
    lines = plain(one([replace(failed, cause="assertion", reason="exit code 1")]))
    assert lines[-1] == "20260131-120000-0a1b2c  24h00m  ✗ failed  1.00s  assertion: exit code 1"


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (verdicts("f"), ["Failed in the last run, 24h00m ago (run 20260131-120000-0a1b2c)"]),
        (verdicts("pp"), ["Passed in each of the last 2 runs"]),
        (
            verdicts("fp"),
            [
                "Passed in the last run, 23h00m ago (run 20260131-120001-0a1b2c)",
                "Not ok in 1 of the last 2 runs (50%)",
            ],
        ),
        (verdicts("p~"), ["Flaky: its verdicts change, and nothing tells why"]),
        (ROUTES, ["Slower: it takes 2.00s, and took 1.00s (+100%)"]),
        (
            verdicts("p" * 18, durations=FASTER),
            ["Faster: it takes 1.00s, and took 2.00s (-50%)"],
        ),
        (verdicts("-n"), ["It never came to a verdict"]),
    ],
)
def test_the_summary(results: list[ResultRecord], said: list[str]) -> None:
    lines = plain(one(results))
    for words in said:
        assert f"  {words}" in lines


def test_repeats_are_counted() -> None:
    (failed,) = verdicts("f")
    lines = plain(one([replace(failed, repeats=10, repeats_passed=9)]))
    assert "9/10 ok" in lines[-1]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(LETTERS)),
            st.text(max_size=30),
            st.floats(0, 1e6),
            st.integers(0, 5),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(40, 200),
)
def test_any_history_can_be_shown(drawn: list[tuple[str, str, float, int]], width: int) -> None:
    results = [
        replace(
            verdicts("p" * number + letter)[-1], reason=reason, duration=duration, attempts=attempts
        )
        for number, (letter, reason, duration, attempts) in enumerate(drawn)
    ]
    lines = plain([*one(results, width=width), *page(results, width=width)])
    assert all(text.one_line(line) == line for line in lines)
    assert max(map(text.cell_width, lines)) <= max(width, 90)


# --- the document of --json ----------------------------------------------------------------------


def test_the_document() -> None:
    past = {"examples/orders.py": Past(network=NetworkMode.HOST)}
    found = standings([*ORDERS, *ROUTES], strict=False, past=past)
    shape = json.loads(document(found, runs=18, gone=["examples/routes.py"]))
    assert shape.keys() == {"schema", "runs", "examples"}
    assert (shape["schema"], shape["runs"]) == ("e2e-run-history/1", 18)
    orders, routes = shape["examples"]
    assert orders == {
        "path": "examples/orders.py",
        "present": True,
        "attention": "failing",
        "runs": 9,
        "not_ok": 3,
        "failure_rate": 0.3333,
        "flaky": False,
        "duration": 1.0,
        "trend": None,
        "last": "failed",
        "last_run": run_id(8),
        "streak": 3,
        "since_run": run_id(6),
        "verdicts": ["passed"] * 6 + ["failed"] * 3,
        "network": "host",
    }
    assert routes["present"] is False
    assert routes["trend"] == {"before": 1.0, "after": 2.0}


def test_the_document_of_one_example_has_its_results() -> None:
    (failed,) = verdicts("f")
    told = replace(
        failed,
        cause="exit",
        reason="exit code 1",
        cpu=0.5,
        max_rss=1024,
        attempts=2,
        repeats=10,
        repeats_passed=9,
        network=NetworkMode.ISOLATED,
        listened=(8000,),
    )
    shape = json.loads(document([], runs=1, results=[told, failed]))
    assert shape["results"][0] == {
        "run": run_id(0),
        "started": "2023-11-14T22:13:20.000+00:00",
        "path": "examples/orders.py",
        "status": "failed",
        "cause": "exit",
        "reason": "exit code 1",
        "duration": 1.0,
        "cpu": 0.5,
        "max_rss": 1024,
        "attempts": 2,
        "repeat": {"runs": 10, "passed": 9},
        "network": "isolated",
        "listened": [8000],
    }
    assert shape["results"][1]["repeat"] is None


def test_every_verdict_has_a_symbol() -> None:
    judged = [status for status in Status if status not in {Status.SKIPPED, Status.NOT_RUN}]
    letters = "".join(letter for letter in LETTERS if LETTERS[letter] in judged)
    assert plain(page(verdicts(letters)))[-3].endswith("  ··✗TB~!")
