"""The ``junit`` report, as Jenkins and GitLab read it. Valid XML 1.0 whatever the output held.

GitLab shows of a failed case only the text of the failure; Jenkins shows that, the message and
system-out. So everything is said once, in that text, and what failed has no system-out. Of a case that
passed Jenkins shows system-out, and GitLab nothing: there stands what was left behind.

Earlier attempts have the elements of Maven's Surefire: those of a case that passed in the end are
``flakyFailure`` or ``flakyError``, which make no failure of it, those of one that failed are
``rerunFailure`` or ``rerunError``. Jenkins reads them, and whoever does not leaves them out. With
``--strict`` a flaky case has a failure besides, which tells of the attempt that failed first: that one
is not told of twice.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum
from pathlib import PurePosixPath
from typing import assert_never
from xml.sax.saxutils import escape, quoteattr

from e2e_runner import text
from e2e_runner.model import Metric, Plan, Result, RunInfo, Status
from e2e_runner.report.evidence import facts, last_lines, last_steps, places, whereabouts
from e2e_runner.report.paths import relative
from e2e_runner.report.screen import clean
from e2e_runner.state import RunState
from e2e_runner.verdict import is_bad

# XML 1.0 has no way to say these, not even escaped; C1 controls and U+FFFE's kin are discouraged.
_NO_XML = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(
        f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000)
    )
    + "]"
)


_FAILED_IN_THE_END = {Status.FAILED, Status.TIMEOUT, Status.BLOCKED, Status.NOT_RUN}


class Outcome(Enum):
    """The element that a test case holds."""

    PASSED = ""
    SKIPPED = "skipped"
    FAILURE = "failure"
    ERROR = "error"


def outcome(status: Status, *, strict: bool) -> Outcome:
    """Map a status: what the example did wrong is a failure, what kept it from running an error."""
    match status:
        case Status.PASSED | Status.SERVED:
            return Outcome.PASSED
        case Status.FLAKY | Status.LEAKED:
            return Outcome.FAILURE if is_bad(status, strict=strict) else Outcome.PASSED
        case Status.FAILED | Status.TIMEOUT:
            return Outcome.FAILURE
        case Status.BLOCKED | Status.NOT_RUN:
            return Outcome.ERROR
        case Status.SKIPPED:
            return Outcome.SKIPPED
        case _:
            assert_never(status)


def render_junit(state: RunState, *, strict: bool) -> Iterator[str]:
    """Give the document in parts, a test case each."""
    results = sorted(state.results.values(), key=lambda result: result.path)
    tally = dict.fromkeys(Outcome, 0)
    for status, count in state.counts.items():
        tally[outcome(status, strict=strict)] += count
    totals = {
        "tests": str(len(results)),
        "failures": str(tally[Outcome.FAILURE]),
        "errors": str(tally[Outcome.ERROR]),
    }
    time = {"time": f"{state.now:.3f}"}
    suite = {"name": "examples", **totals, "skipped": str(tally[Outcome.SKIPPED]), **time}
    if state.run is not None:
        started = datetime.fromtimestamp(state.run.started, tz=UTC)
        suite["timestamp"] = started.strftime("%Y-%m-%dT%H:%M:%S")
    yield '<?xml version="1.0" encoding="utf-8"?>\n'
    yield _open("testsuites", {"name": "e2e-run", **totals, **time}) + "\n"
    yield _open("testsuite", suite) + "\n"
    if state.run is not None:
        yield _properties(_about_run(state.run, state.plan))
    for result in results:
        yield "".join(_case(result, state, strict=strict))
    yield "</testsuite>\n</testsuites>\n"


def _about_run(run: RunInfo, plan: Plan) -> dict[str, str]:
    about = {
        "run": run.id,
        "version": run.version,
        "python": relative(run.python, run.root),
        "jobs": str(run.jobs),
        "processes": "none" if run.processes is None else run.processes.value,
        "network": run.network.value,
    }
    return about | ({} if plan.cut is None else {"shard": str(plan.cut)})


def _about_case(result: Result, state: RunState) -> dict[str, str]:
    """Give what is not as usual about how it ran, then what it told; names of ours have a prefix."""
    about = {}
    if result.attempts > 1:
        about["e2e-run.attempts"] = str(result.attempts)
    if result.repeats > 1:
        about["e2e-run.passed"] = f"{result.repeats_passed} of {result.repeats}"
    if where := whereabouts(result, state):
        about["e2e-run.network"] = where
    return about | {metric.name: _value(metric) for metric in result.metrics}


def _properties(properties: Mapping[str, str]) -> str:
    if not properties:
        return ""
    entries = (
        _open("property", {"name": name, "value": value}, empty=True) + "\n"
        for name, value in properties.items()
    )
    return f"<properties>\n{''.join(entries)}</properties>\n"


def _value(metric: Metric) -> str:
    value = metric.value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _case(result: Result, state: RunState, *, strict: bool) -> Iterator[str]:
    path = PurePosixPath(result.path)
    attributes = {
        # Jenkins takes what stands before the last dot for a package.
        "classname": ".".join(path.parent.parts) or "examples",
        "name": path.name,
        "file": result.path,
        "time": f"{result.duration:.3f}",
    }
    became = outcome(result.status, strict=strict)
    message = {"message": result.reason or result.status.value}
    kind = {"type": result.cause or result.status.value}
    inside = _properties(_about_case(result, state))
    earlier = [each.result for each in state.failed_attempts(result.path)]
    if became is not Outcome.PASSED:
        earlier = [each for each in earlier if each.log is None or each.log != result.log]
    again = "rerun" if result.status in _FAILED_IN_THE_END else "flaky"
    attempts = "".join(_attempt(each, again) for each in earlier)
    match became:
        case Outcome.PASSED:
            inside += attempts + _system_out(result)
        case Outcome.SKIPPED:
            inside += _open("skipped", kind | message, empty=True) + "\n"
        case Outcome.FAILURE | Outcome.ERROR:
            element = became.value
            inside += f"{_open(element, kind | message)}{_text(_explanation(result))}</{element}>\n"
            inside += attempts
        case _:
            assert_never(became)
    if not inside:
        yield _open("testcase", attributes, empty=True) + "\n"
        return
    yield _open("testcase", attributes) + "\n"
    yield inside
    yield "</testcase>\n"


def _attempt(result: Result, again: str) -> str:
    element = f"{again}{'Error' if result.status is Status.BLOCKED else 'Failure'}"
    about = {
        "message": result.reason or result.status.value,
        "type": result.cause or result.status.value,
    }
    trace = f"<stackTrace>{_text(_explanation(result))}</stackTrace>"
    return f"{_open(element, about)}{trace}</{element}>\n"


def _explanation(result: Result) -> str:
    """Say all that is known. The output comes last, for it may be long: all that was kept of it."""
    steps_heading, steps = last_steps(result)
    heading, lines = last_lines(result, most=None)
    cause = f" ({result.cause})" if result.cause else ""
    return "\n".join(
        [
            f"{result.status.value}{cause}",
            *_labelled(facts(result)),
            *_labelled(places(result)),
            *([f"{steps_heading}:"] if steps else []),
            *(f"  {step.what}  {step.took}  {step.why}".rstrip() for step in steps),
            *([f"{heading}:" if lines else f"{heading}."] if lines or result.attempts else []),
            *(f"  {line}" for line in lines),
        ]
    )


def _system_out(result: Result) -> str:
    """Give the end of the output of a case that passed, then what was found out about it."""
    output = clean(result.output_tail)
    notes = _labelled(found for found in facts(result) if found[0])
    words = "\n".join([*([output] if output else []), *notes])
    return f"<system-out>{_text(words)}</system-out>\n" if words else ""


def _labelled(found: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{label}: {words}" if label else words for label, words in found]


def _open(tag: str, attributes: dict[str, str], *, empty: bool = False) -> str:
    written = "".join(
        f" {name}={quoteattr(_sanitized(text.one_line(value)))}"
        for name, value in attributes.items()
    )
    return f"<{tag}{written}{'/' if empty else ''}>"


def _text(words: str) -> str:
    # `escape` also turns the `>` of `]]>` into an entity, which is the only place where XML insists.
    return escape(_sanitized(words))


def _sanitized(words: str) -> str:
    return _NO_XML.sub("\ufffd", words)
