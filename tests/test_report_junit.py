import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import junitparser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import xunit2
from report_history import CUT, RUN, history, play

from e2e_runner.events import AttemptFinished, Event
from e2e_runner.model import (
    LeakedPort,
    Metric,
    NetworkMode,
    NetworkTier,
    Result,
    Status,
    Step,
    StepOutcome,
)
from e2e_runner.report.junit import Outcome, outcome, render_junit


def document(results: list[Result], *, strict: bool = False, **more: dict[str, str]) -> str:
    state = play(history(results, **more), [])  # type: ignore[arg-type]  # only dicts are passed here
    return "".join(render_junit(state, strict=strict))


def result(status: Status, path: str = "examples/sub/a.py", **more: object) -> Result:
    return Result(path=path, status=status, **more)  # type: ignore[arg-type]  # a test's shorthand


def parse(written: str | bytes) -> ET.Element:
    return ET.fromstring(written)  # noqa: S314 - the test has just written it


@pytest.mark.parametrize(
    ("status", "plain", "strict"),
    [
        (Status.PASSED, Outcome.PASSED, Outcome.PASSED),
        (Status.SERVED, Outcome.PASSED, Outcome.PASSED),
        (Status.FLAKY, Outcome.PASSED, Outcome.FAILURE),
        (Status.LEAKED, Outcome.PASSED, Outcome.FAILURE),
        (Status.FAILED, Outcome.FAILURE, Outcome.FAILURE),
        (Status.TIMEOUT, Outcome.FAILURE, Outcome.FAILURE),
        (Status.BLOCKED, Outcome.ERROR, Outcome.ERROR),
        (Status.NOT_RUN, Outcome.ERROR, Outcome.ERROR),
        (Status.SKIPPED, Outcome.SKIPPED, Outcome.SKIPPED),
    ],
)
def test_statuses_map_to_elements(status: Status, plain: Outcome, strict: Outcome) -> None:
    assert outcome(status, strict=False) is plain
    assert outcome(status, strict=True) is strict


def test_a_failure_tells_everything() -> None:
    failed = result(
        Status.FAILED,
        cause="exit",
        reason="exit code 1",
        duration=1.5,
        attempts=1,
        output_tail="10%\r100%\n\x1b[31mboom\x1b[0m <&> ]]>\n",
        hints=("Do this.",),
        leaks=(LeakedPort(port=8000, owner="pid 7"),),
        log="a.log",
        command="python a.py",
    )
    (case,) = parse(document([failed])).iter("testcase")
    assert case.attrib == {
        "classname": "examples.sub",
        "name": "a.py",
        "file": "examples/sub/a.py",
        "time": "1.500",
    }
    (failure,) = case
    assert failure.attrib == {"message": "exit code 1", "type": "exit"}
    assert failure.text == (
        "failed (exit)\n"
        "exit code 1\n"
        "Advice: Do this.\n"
        "Left behind: port 8000, held by pid 7: still taken\n"
        "Log: a.log\n"
        "By hand: python a.py\n"
        "Output:\n"
        "  100%\n"
        "  boom <&> ]]>"
    )


def test_a_failure_has_all_the_output_that_was_kept() -> None:
    lines = [f"line {n}" for n in range(300)]
    failed = result(Status.FAILED, attempts=1, output_tail="\n".join(lines), output_cut=True)
    (failure,) = parse(document([failed])).iter("failure")
    assert failure.text is not None
    assert failure.text.endswith(
        "Output, its last 300 lines (… earlier output not shown):\n"
        + "\n".join(f"  {line}" for line in lines)
    )


def test_metrics_are_properties_and_a_failure_lists_its_steps() -> None:
    failed = result(
        Status.FAILED,
        reason='exit code 1 in step "log in"',
        attempts=1,
        metrics=(
            Metric(name="orders <&>\x00", value=5),
            Metric(name="ratio", value=0.25),
            Metric(name="done", value=True),
        ),
        steps=(
            Step(title="prepare", started=0, duration=0.25, outcome=StepOutcome.OK),
            Step(title="log in", started=1, duration=1.5, outcome=StepOutcome.FAILED, error="401"),
        ),
        happened_in=1,
    )
    passed = result(Status.PASSED, "examples/b.py", metrics=(Metric(name="a", value="b"),))
    written = document([failed, passed])
    cases = list(parse(written).iter("testcase"))
    assert [[child.tag for child in case] for case in cases] == [
        ["properties"],
        ["properties", "failure"],
    ]
    assert {entry.get("name"): entry.get("value") for entry in cases[1].iter("property")} == {
        "orders <&>\\x00": "5",
        "ratio": "0.25",
        "done": "true",
    }
    failure = cases[1].find("failure")
    assert failure is not None
    assert failure.text is not None
    assert "\nSteps:\n  ✓ prepare  250ms\n  ✗ log in   1.50s  401\n" in failure.text
    (suite,) = junitparser.JUnitXml.fromstring(written.encode())
    assert [case.name for case in suite] == ["b.py", "a.py"]


def test_a_blocked_example_says_its_advice_once() -> None:
    written = document([result(Status.BLOCKED, reason="port 1 is taken", hints=("Stop it.",))])
    assert written.count("Stop it.") == 1
    (error,) = parse(written).iter("error")
    assert error.text == "blocked\nport 1 is taken\nAdvice: Stop it."


def test_what_leaked_and_passed_says_it_in_system_out() -> None:
    leaks = tuple(LeakedPort(port=port) for port in range(8000, 8300))
    leaked = result(Status.LEAKED, attempts=1, output_tail="done\n", leaks=leaks)
    (case,) = parse(document([leaked])).iter("testcase")
    (output,) = case
    assert output.tag == "system-out"
    assert output.text is not None
    lines = output.text.split("\n")
    assert lines[:2] == ["done", "Left behind: port 8000: still taken"]
    assert lines[-1] == "Left behind: and 290 more"
    assert len(lines) == 12


def test_counts_properties_and_the_parser_of_others(tmp_path: Path) -> None:
    results = [result(status, f"{status.value}.py") for status in Status]
    file = tmp_path / "junit.xml"
    file.write_text(document(results, deselected={"examples/z.py": "tag websocket"}))
    suites = junitparser.JUnitXml.fromfile(str(file))
    assert (suites.tests, suites.failures, suites.errors) == (10, 2, 2)
    (suite,) = suites
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (10, 2, 2, 2)
    assert suite.timestamp == "2023-11-14T22:13:20"
    properties = parse(file.read_text()).iter("property")
    assert {entry.get("name"): entry.get("value") for entry in properties} == {
        "run": "run-1",
        "version": "0.1.0",
        "python": ".venv/bin/python",
        "jobs": "2",
        "processes": "cgroup",
        "network": "host",
    }
    found = {case.name: [type(entry).__name__ for entry in case.result] for case in suite}
    assert found == {
        "passed.py": [],
        "served.py": [],
        "flaky.py": [],
        "leaked.py": [],
        "failed.py": ["Failure"],
        "timeout.py": ["Failure"],
        "blocked.py": ["Error"],
        "not-run.py": ["Error"],
        "skipped.py": ["Skipped"],
        "z.py": ["Skipped"],
    }
    skipped = next(case for case in suite if case.name == "z.py")
    assert skipped.result[0].message == "tag websocket"
    assert skipped.classname == "examples"


def test_strict_makes_a_leak_a_failure() -> None:
    leaked = result(Status.LEAKED, reason="left behind: port 8000", attempts=1)
    assert "<failure" not in document([leaked])
    (failure,) = parse(document([leaked], strict=True)).iter("failure")
    assert failure.attrib == {"message": "left behind: port 8000", "type": "leaked"}


def tried(path: str, *attempts: Result, last: Result) -> list[Event]:
    """Give the history of an example that was tried more than once."""
    first, begun, running, *rest = history([replace(last, path=path)])
    again = [
        AttemptFinished(at=0.1 * n, number=n, result=replace(each, path=path), again=f"retry {n}")
        for n, each in enumerate(attempts, start=1)
    ]
    return [first, begun, running, *again, *rest]


def rendered(events: list[Event], *, strict: bool = False) -> bytes:
    return "".join(render_junit(play(events, []), strict=strict)).encode()


def suite_of(written: bytes) -> Any:  # what the parser gives has no types
    """Read a report as a parser does that knows the elements of Surefire."""
    (suite,) = xunit2.JUnitXml.fromstring(written)
    return suite


FAILED = result(
    Status.FAILED, cause="exit", reason="exit code 1 <&>", attempts=1, output_tail="boom ]]>\n"
)


def test_a_flaky_case_passed_and_has_the_attempts_that_failed() -> None:
    blocked = result(Status.BLOCKED, cause="port-in-use", reason="port 8000 is taken")
    flaky = result(Status.FLAKY, reason="exit code 1; passed on attempt 3, alone", attempts=3)
    written = rendered(tried("examples/a.py", FAILED, blocked, last=flaky))

    suite = suite_of(written)
    assert (suite.tests, suite.failures, suite.errors) == (1, 0, 0)
    (case,) = suite
    assert case.is_passed
    assert case.is_flaky
    (failure,), (error,) = case.flaky_failures(), case.flaky_errors()
    assert (failure.message, failure.type) == ("exit code 1 <&>", "exit")
    assert failure.stack_trace == ("failed (exit)\nexit code 1 <&>\nOutput:\n  boom ]]>")
    assert (error.message, error.type) == ("port 8000 is taken", "port-in-use")
    properties = {entry.name: entry.value for entry in case.properties()}
    assert properties == {"e2e-run.attempts": "3"}


def test_strict_makes_a_flaky_case_a_failure_that_tells_of_its_first_attempt() -> None:
    first = replace(FAILED, log=".e2e-run/a.log")
    second = replace(FAILED, reason="exit code 2", log=".e2e-run/a.2.log")
    flaky = result(Status.FLAKY, reason="exit code 1; passed", attempts=3, log=first.log)
    written = rendered(tried("examples/a.py", first, second, last=flaky), strict=True)
    suite = suite_of(written)
    (case,) = suite
    assert (suite.failures, case.is_flaky, case.is_rerun) == (1, True, False)
    assert [entry.message for entry in case.result] == ["exit code 1; passed"]
    assert [entry.message for entry in case.flaky_failures()] == ["exit code 2"]


def test_a_case_that_failed_in_the_end_tells_of_its_other_attempts() -> None:
    last = result(
        Status.FAILED,
        reason="exit code 2",
        attempts=2,
        repeats=5,
        repeats_passed=3,
    )
    suite = suite_of(rendered(tried("a.py", FAILED, last=last)))
    (case,) = suite
    assert (suite.failures, case.is_flaky, case.is_rerun) == (1, False, True)
    assert [entry.message for entry in case.result] == ["exit code 2"]
    assert [entry.message for entry in case.rerun_failures()] == ["exit code 1 <&>"]
    properties = {entry.name: entry.value for entry in case.properties()}
    assert properties == {"e2e-run.attempts": "2", "e2e-run.passed": "3 of 5"}


def test_the_run_and_its_cases_tell_of_networks_and_shards() -> None:
    mine = result(Status.PASSED, "a.py", network=NetworkMode.ISOLATED, attempts=1)
    shared = result(
        Status.PASSED, "b.py", network=NetworkMode.HOST, isolation_suspect="no DNS", attempts=1
    )
    run = replace(RUN, network=NetworkTier.NAMESPACE)
    written = rendered(history([mine, shared], run=run, cut=CUT))
    suite = suite_of(written)
    about = {entry.name: entry.value for entry in suite.properties()}
    assert (about["network"], about["shard"]) == ("namespace", "1/2")
    told = {case.name: [entry.value for entry in case.properties()] for case in suite}
    assert told == {"a.py": [], "b.py": ["on the host network (no DNS)"]}


NASTY = st.text(
    alphabet=st.one_of(
        st.sampled_from("<>&'\"]\x00\x0b\x1b\x85\ufffe\uffff\ud800\U0001fffe\n\r\t"),
        st.characters(),
    )
)


@hypothesis.settings(deadline=None)
@given(NASTY)
def test_any_text_gives_a_document_that_parses(text: str) -> None:
    failed = result(
        Status.FAILED,
        path=f"examples/{text}",
        reason=text,
        output_tail=text,
        hints=(text,),
        cause=text,
        metrics=(Metric(name=text, value=text),),
        steps=(Step(title=text, started=0, duration=0, outcome=StepOutcome.FAILED, error=text),),
    )
    written = document([failed]).encode("utf-8")
    (case,) = parse(written).iter("testcase")
    assert [child.tag for child in case] == ["properties", "failure"]
    assert [type(case).__name__ for case in junitparser.JUnitXml.fromstring(written)] == [
        "TestSuite"
    ]
