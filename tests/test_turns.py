"""What comes after an attempt: another one, or the verdict, for every way in which attempts can go."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from e2e_runner.model import Example, ExampleSettings, NetworkMode, Result, Status
from e2e_runner.turns import Turn, Turns
from e2e_runner.verdict import is_ok

PATH = "examples/a.py"
SUSPECT = "no DNS in its network"


def example(*, retries: int = 0, network: NetworkMode = NetworkMode.AUTO) -> Example:
    return Example(
        path=PATH,
        file=Path("/project", PATH),
        argv=("python", f"/project/{PATH}"),
        settings=ExampleSettings(
            timeout=60,
            grace=5,
            ports=(),
            tags=(),
            env={},
            args=(),
            stdin=None,
            cwd=Path("/project/examples"),
            serve=None,
            needs=(),
            skip=None,
            expect_exit=0,
            interpreter=("python",),
            retries=retries,
            network=network,
        ),
    )


def result(status: Status, reason: str = "", **more: object) -> Result:
    made = Result(path=PATH, status=status, reason=reason, attempts=1, duration=1.0)
    return replace(made, **more)  # type: ignore[arg-type]


PASSED = result(Status.PASSED)
LEAKED = result(Status.LEAKED, "left behind: port 8000")
FAILED = result(Status.FAILED, "exit code 1", cause="exit", output_tail="boom", log="a.log")
LATE = result(Status.TIMEOUT, "timed out after 60s", cause="time-limit")
SUSPECTED = replace(FAILED, isolation_suspect=SUSPECT, network=NetworkMode.ISOLATED)
DOUBTFUL = replace(PASSED, isolation_suspect=SUSPECT, network=NetworkMode.ISOLATED)
STOPPED = result(Status.NOT_RUN, "interrupted after 1s")
IN_THE_WAY = result(Status.BLOCKED, "port 8000 is taken", cause="port-in-use", attempts=0)


class Play:
    """An example that is run as `turns` says."""

    def __init__(
        self, example: Example, *, network: NetworkMode = NetworkMode.HOST, repeat: int = 1
    ) -> None:
        self.turns = Turns(example, network=network, repeat=repeat)
        self.turn: Turn = self.turns.first()
        self.verdict: Result | None = None

    def come(self, result: Result, *beside: str) -> "Play":
        """Have the attempt that is due come to a result."""
        assert self.verdict is None
        then = self.turns.after(self.turn, result, beside)
        if isinstance(then, Turn):
            assert then.number == self.turn.number + 1
            assert then.key != self.turn.key
            assert then.why
            self.turn = then
        else:
            self.verdict = then
        return self

    @property
    def end(self) -> Result:
        assert self.verdict is not None
        return self.verdict


# --- one attempt ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", Status)
def test_one_attempt_is_the_verdict_as_it_is(status: Status) -> None:
    only = result(status, "as it was")
    assert Play(example()).come(only).end == only


def test_first_attempt_has_no_reason_to_be_one_more() -> None:
    play = Play(example(), network=NetworkMode.ISOLATED)
    assert (play.turn.number, play.turn.why, play.turn.alone) == (1, "", False)
    assert play.turn.network is NetworkMode.ISOLATED


# --- retries -------------------------------------------------------------------------------------


def test_pass_on_a_retry_is_flaky_with_the_evidence_of_the_failure() -> None:
    play = Play(example(retries=2)).come(FAILED, "b.py", "c.py")
    assert play.turn.alone
    assert play.turns.failed
    end = play.come(PASSED).end
    assert end.status is Status.FLAKY
    assert end.reason == ("exit code 1; passed on attempt 2, alone (it failed beside b.py, c.py)")
    assert (end.cause, end.output_tail, end.log) == ("exit", "boom", "a.log")
    assert end.attempts == 2


def test_flaky_with_nothing_changed() -> None:
    end = Play(example(retries=1)).come(FAILED).come(PASSED).end
    assert end.reason == "exit code 1; passed on attempt 2, with nothing changed"


def test_many_neighbours_are_not_all_named() -> None:
    beside = [f"{n}.py" for n in range(9)]
    end = Play(example(retries=1)).come(FAILED, *beside).come(PASSED).end
    assert "beside 0.py, 1.py, 2.py and 6 more" in end.reason


def test_retries_end_with_the_last_failure() -> None:
    end = Play(example(retries=2)).come(FAILED).come(LATE).come(FAILED).end
    assert (end.status, end.attempts) == (Status.FAILED, 3)
    assert end.notes == ("failed in 2 retries too, alone",)


def test_same_failure_each_time_is_said_once() -> None:
    end = Play(example(retries=1)).come(FAILED).come(FAILED).end
    assert end.notes == ("failed in a retry too, alone",)


def test_what_is_wrong_with_metadata_is_not_tried_again() -> None:
    wrong = result(Status.FAILED, "unknown key", cause="bad-metadata", attempts=0)
    assert Play(example(retries=3)).come(wrong).end == wrong


@pytest.mark.parametrize("status", [Status.SKIPPED, Status.BLOCKED, Status.PASSED, Status.LEAKED])
def test_only_failures_are_retried(status: Status) -> None:
    assert Play(example(retries=3)).come(result(status)).end.status is status


@pytest.mark.parametrize("in_vain", [Status.SKIPPED, Status.BLOCKED])
def test_retry_that_could_not_be_made_hides_no_failure(in_vain: Status) -> None:
    retry = result(in_vain, "port 8000 is taken", attempts=0)
    end = Play(example(retries=1)).come(FAILED).come(retry).end
    assert (end.status, end.reason) == (Status.FAILED, "exit code 1")
    assert end.notes == (f"its retry was {in_vain.value}: port 8000 is taken",)


# --- the host network ----------------------------------------------------------------------------


def test_suspicious_failure_is_run_again_on_the_host_network() -> None:
    play = Play(example(), network=NetworkMode.ISOLATED).come(SUSPECTED)
    assert play.turn.network is NetworkMode.HOST
    assert play.turn.why == f"on the host network: {SUSPECT}"
    assert not play.turn.alone
    assert not play.turns.failed
    end = play.come(PASSED).end
    assert (end.status, end.attempts) == (Status.PASSED, 2)
    assert end.notes == (f"passed on the host network; in one of its own: exit code 1 ({SUSPECT})",)


def test_ports_that_it_had_are_asked_for_on_the_host_network() -> None:
    had = replace(SUSPECTED, listened=(8000, 8001))
    play = Play(example(), network=NetworkMode.ISOLATED).come(had)
    assert play.turn.ports == (8000, 8001)
    again = Play(example(), network=NetworkMode.ISOLATED, repeat=3).come(had).come(PASSED)
    assert again.turn.ports == (8000, 8001)
    assert Play(example(retries=1)).come(replace(FAILED, listened=(8000,))).turn.ports == ()


def test_failure_on_the_host_network_as_well() -> None:
    end = Play(example(), network=NetworkMode.ISOLATED).come(SUSPECTED).come(LATE).end
    assert (end.status, end.reason) == (Status.TIMEOUT, "timed out after 60s")
    assert end.notes == (
        f"timed out on the host network too; in one of its own: exit code 1 ({SUSPECT})",
    )


def test_what_isolation_blocks_is_run_on_the_host_network() -> None:
    blocked = result(Status.BLOCKED, "no network", cause="network", isolation_suspect="no network")
    end = Play(example(), network=NetworkMode.ISOLATED).come(blocked).come(PASSED).end
    assert end.status is Status.PASSED


@pytest.mark.parametrize("passed", [PASSED, LEAKED])
def test_pass_that_may_have_left_something_out_is_made_sure_of(passed: Result) -> None:
    doubtful = replace(passed, isolation_suspect=SUSPECT)
    play = Play(example(), network=NetworkMode.ISOLATED).come(doubtful)
    assert play.turn.network is NetworkMode.HOST
    assert Play(example(), network=NetworkMode.ISOLATED).come(doubtful).come(FAILED).end.status is (
        Status.FAILED
    )
    end = play.come(PASSED).end
    assert end.status is Status.PASSED
    came = passed.reason or "passed"
    assert end.notes == (f"passed on the host network; in one of its own: {came} ({SUSPECT})",)


def test_pass_in_doubt_stands_where_the_host_does_not_let_it_start() -> None:
    end = Play(example(), network=NetworkMode.ISOLATED).come(DOUBTFUL).come(IN_THE_WAY).end
    assert (end.status, end.attempts) == (Status.PASSED, 1)
    (note,) = end.notes
    assert note == (
        f"it may have left something out: {SUSPECT}; on the host network it was blocked: "
        "port 8000 is taken"
    )


def test_pass_in_doubt_is_none_when_the_host_network_does_not_come() -> None:
    play = Play(example(), network=NetworkMode.ISOLATED).come(DOUBTFUL)
    assert play.turns.give_up() is None
    assert play.come(STOPPED).end.status is Status.NOT_RUN


@pytest.mark.parametrize(
    "on_host",
    [IN_THE_WAY, result(Status.SKIPPED, "taken", attempts=0), replace(FAILED, cause="port-in-use")],
)
def test_what_never_ran_in_isolation_is_what_it_is_on_the_host_network(on_host: Result) -> None:
    blocked = result(
        Status.BLOCKED, "no network", cause="network", isolation_suspect="no network", attempts=0
    )
    end = Play(example(), network=NetworkMode.ISOLATED).come(blocked).come(on_host).end
    assert (end.status, end.reason) == (on_host.status, on_host.reason)


def test_isolation_that_was_asked_for_is_kept() -> None:
    asked = example(network=NetworkMode.ISOLATED)
    assert Play(asked, network=NetworkMode.ISOLATED).come(SUSPECTED).end.status is Status.FAILED


def test_plain_failure_in_isolation_counts() -> None:
    assert Play(example(), network=NetworkMode.ISOLATED).come(FAILED).end == FAILED


def test_retry_after_the_host_network_stays_there() -> None:
    play = Play(example(retries=1), network=NetworkMode.ISOLATED).come(SUSPECTED, "b.py")
    play.come(FAILED, "b.py")
    assert (play.turn.network, play.turn.alone) == (NetworkMode.HOST, True)
    end = play.come(PASSED).end
    assert end.status is Status.FLAKY
    assert end.reason.endswith("passed on attempt 3, alone (it failed beside b.py)")


def test_suspicious_failure_of_a_retry_goes_on_alone_on_the_host_network() -> None:
    play = Play(example(retries=1), network=NetworkMode.ISOLATED).come(FAILED).come(SUSPECTED)
    assert (play.turn.network, play.turn.alone) == (NetworkMode.HOST, True)
    end = play.come(PASSED).end
    assert (end.status, end.attempts) == (Status.FLAKY, 3)
    assert "on the host network" in end.reason


@pytest.mark.parametrize(
    "in_vain",
    [
        IN_THE_WAY,
        replace(LATE, cause="port-in-use"),
        result(Status.SKIPPED, "port 8000 is taken", attempts=0),
    ],
)
def test_failure_stays_what_it_was_where_the_host_network_cannot_tell(in_vain: Result) -> None:
    asks = replace(SUSPECTED, isolation_suspect='x: declare reach = ["localhost:6379"]')
    end = Play(example(), network=NetworkMode.ISOLATED).come(asks).come(in_vain).end
    assert (end.status, end.reason, end.cause) == (Status.FAILED, "exit code 1", "exit")
    assert end.hints[0].startswith(
        'If it failed by its isolation, declare reach = ["localhost:6379"] in its metadata'
    )
    assert end.notes[-1].endswith(
        f"on the host network it was {in_vain.status.value}: {in_vain.reason}"
    )


# --- neighbours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spoilt", [IN_THE_WAY, replace(FAILED, cause="port-in-use")])
def test_port_taken_beside_others_is_tried_again_alone(spoilt: Result) -> None:
    play = Play(example()).come(spoilt, "b.py")
    assert play.turn.alone
    end = play.come(PASSED).end
    assert end.status is Status.PASSED
    assert end.notes == (f"passed alone; beside b.py: {spoilt.reason}",)


REFUSED = replace(FAILED, cause="connection-refused")


def test_unknown_example_that_was_refused_beside_others_is_tried_again_alone() -> None:
    play = Play(example()).come(REFUSED, "b.py")
    assert play.turn.alone
    assert play.come(PASSED).end.notes == ("passed alone; beside b.py: exit code 1",)
    end = Play(example()).come(REFUSED, "b.py").come(REFUSED).end
    assert end.notes == ("failed alone too; beside b.py: exit code 1",)
    assert Play(example()).come(REFUSED).end.status is Status.FAILED


def test_example_whose_ports_are_known_is_refused_by_nobody_beside_it() -> None:
    known = Turns(example(), network=NetworkMode.HOST, known=True)
    assert isinstance(known.after(known.first(), REFUSED, ["b.py"]), Result)


def test_port_taken_by_somebody_else_counts() -> None:
    assert Play(example()).come(IN_THE_WAY).end.status is Status.BLOCKED
    alone = Play(example()).come(IN_THE_WAY, "b.py").come(IN_THE_WAY)
    assert alone.end.status is Status.BLOCKED


# --- repeats -------------------------------------------------------------------------------------


def test_all_repeats_must_pass() -> None:
    end = Play(example(), repeat=3).come(PASSED).come(LEAKED).come(PASSED).end
    assert (end.status, end.repeats, end.repeats_passed) == (Status.LEAKED, 3, 3)
    assert end.notes == ("3 of 3 passed",)


def test_first_failure_among_repeats_is_the_verdict() -> None:
    play = Play(example(retries=5), repeat=4)
    end = play.come(PASSED).come(FAILED).come(PASSED).come(LATE).end
    assert (end.status, end.reason) == (Status.FAILED, "exit code 1")
    assert (end.repeats, end.repeats_passed, end.attempts) == (4, 2, 4)
    assert end.notes == ("2 of 4 passed; not ok: 2, 4",)


def test_repeats_end_where_another_would_tell_nothing() -> None:
    blocked = result(Status.BLOCKED, "no server", cause="database", attempts=0)
    end = Play(example(), repeat=3).come(PASSED).come(blocked).end
    assert end.status is Status.BLOCKED
    assert end.notes == ("1 of 2 passed, 3 were asked for; not ok: 2",)


def test_repeats_on_the_host_network_count_once() -> None:
    play = Play(example(), network=NetworkMode.ISOLATED, repeat=2)
    end = play.come(SUSPECTED).come(PASSED).come(PASSED).end
    assert (end.status, end.repeats_passed, end.attempts) == (Status.PASSED, 2, 3)


# --- the end of the run --------------------------------------------------------------------------


def test_nothing_known_is_no_verdict() -> None:
    assert Play(example()).turns.give_up() is None


def test_failure_stays_one_when_its_retry_does_not_come() -> None:
    play = Play(example(retries=1)).come(FAILED)
    verdict = play.turns.give_up()
    assert verdict is not None
    assert (verdict.status, verdict.reason) == (Status.FAILED, "exit code 1")
    assert play.come(STOPPED).end.status is Status.FAILED


def test_suspicious_failure_stays_one_when_the_host_network_does_not_come() -> None:
    play = Play(example(), network=NetworkMode.ISOLATED).come(SUSPECTED)
    end = play.come(STOPPED).end
    assert (end.status, end.reason) == (Status.FAILED, "exit code 1")
    assert "once more" in end.notes[-1]


def test_interrupted_first_attempt_was_not_run() -> None:
    assert Play(example(retries=1)).come(STOPPED).end == STOPPED


def test_interrupted_repeats_are_no_pass() -> None:
    end = Play(example(), repeat=3).come(PASSED).come(STOPPED).end
    assert end.status is Status.NOT_RUN
    assert Play(example(), repeat=3).come(PASSED).turns.give_up() is None
    assert Play(example(), repeat=3).come(FAILED).come(STOPPED).end.status is Status.FAILED


# --- every history -------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("repeat", [1, 2, 3])
@pytest.mark.parametrize("network", [NetworkMode.HOST, NetworkMode.ISOLATED])
def test_no_history_is_endless_or_green_by_mistake(
    retries: int, repeat: int, network: NetworkMode
) -> None:
    outcomes = [PASSED, DOUBTFUL, LEAKED, FAILED, SUSPECTED, LATE, IN_THE_WAY, STOPPED]
    most = 2 * max(repeat, retries + 1) + 1
    ended = 0
    for history in itertools.product(outcomes, repeat=min(most, 3)):
        play = Play(example(retries=retries), network=network, repeat=repeat)
        counted = []
        for come in itertools.islice(itertools.cycle(history), most + 1):
            counted.append(come.status)
            if play.come(come, "b.py").verdict is not None:
                break
        end = play.end  # within the bound
        ended += 1
        assert end.attempts == sum(1 for status in counted if status is not Status.BLOCKED)
        if is_ok(end.status, strict=False):
            told = [status for status in counted if status is not Status.BLOCKED]
            assert told[-1] in {Status.PASSED, Status.LEAKED}
            assert counted[-1] is told[-1] or network is NetworkMode.ISOLATED
            if repeat > 1:
                assert end.repeats_passed == repeat
        if is_ok(end.status, strict=True):
            assert end.status is Status.PASSED
    assert ended == len(outcomes) ** min(most, 3)
