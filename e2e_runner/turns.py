"""What comes after an attempt at an example: another one, or the verdict. Pure.

An example has one attempt as a rule. It has more with ``--repeat`` and ``--retries``, and where the
verdict may be the doing of its surroundings: of the isolation, or of the examples beside it.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from e2e_runner.hints import flaky_advice
from e2e_runner.isolation import remedy
from e2e_runner.model import Example, NetworkMode, Result, Status
from e2e_runner.verdict import ILL, WELL

_HINDERED = ILL | {Status.BLOCKED}
_IN_THE_WAY = "port-in-use"  # the cause
_REFUSED = "connection-refused"  # the cause: by a neighbour's server that ended, perhaps
_HOPELESS = "bad-metadata"  # the cause of what fails in the same way for ever
_MOST_NAMED = 3  # neighbours


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """An attempt to be made. `number` counts the attempts at the example, from 1."""

    example: Example
    number: int = 1
    network: NetworkMode  # ISOLATED or HOST
    alone: bool = False  # with nothing beside it, after all that need not be alone
    why: str = ""  # there is one more, in words; empty for the first
    ports: tuple[int, ...] = ()  # that it must have, as it listened on them before

    @property
    def key(self) -> str:
        """Tell the attempts of a run apart."""
        return f"{self.number} {self.example.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """An attempt that was made, and the examples that ran beside it at any time."""

    turn: Turn
    result: Result
    beside: frozenset[str]


class Turns:
    """The attempts at one example, and the verdict that they add up to."""

    def __init__(
        self, example: Example, *, network: NetworkMode, repeat: int = 1, known: bool = False
    ) -> None:
        """Begin with none; `network` is the one to begin in, ISOLATED or HOST.

        `known` says that the ports of the example are, so that nobody beside it takes them.
        """
        self._example = example
        self._network = network
        self._repeat = repeat
        self._known = known
        self._ports: tuple[int, ...] = ()  # that it had in a network of its own
        self._made: list[_Made] = []
        self._counted: list[_Made] = []  # those whose verdict stands
        self._spoilt: list[_Made] = []  # since the last of these: by its surroundings, perhaps

    @property
    def failed(self) -> bool:
        """Whether it would be a failure if it ended now."""
        return any(each.result.status in ILL for each in self._counted)

    def first(self) -> Turn:
        """Give the first attempt to be made."""
        return Turn(example=self._example, network=self._network)

    def after(self, turn: Turn, result: Result, beside: Collection[str] = ()) -> Turn | Result:
        """Take what came of an attempt; gives the next one, or the verdict on the example.

        `beside` are the paths of the examples that ran at the same time.
        """
        made = _Made(turn=turn, result=result, beside=frozenset(beside))
        self._made.append(made)
        if result.status is Status.NOT_RUN:
            return self.give_up() or self._whole(result)
        again = self._on_the_host(made) or self._alone(made)
        if again is not None:
            self._spoilt.append(made)
            return again
        self._counted.append(self._settled(made))
        self._spoilt.clear()
        if self._repeat > 1:
            return self._after_one_of_many()
        last = self._counted[-1].result
        if last.status in ILL and self._retries_left(last):
            return self._next(alone=True, why=f"retry {len(self._counted)}")
        return self._verdict()

    def give_up(self) -> Result | None:
        """Give the verdict so far, when there are to be no more attempts; None when there is none."""
        if self._repeat > 1 and len(self._counted) < self._repeat and not self.failed:
            return None
        return self._verdict() if self._counted else self._broken_off()

    # --- one more --------------------------------------------------------------------------------

    def _next(self, *, why: str, alone: bool = False) -> Turn:
        return Turn(
            example=self._example,
            number=len(self._made) + 1,
            network=self._network,
            alone=alone,
            why=why,
            ports=self._ports,
        )

    def _on_the_host(self, made: _Made) -> Turn | None:
        result = made.result
        if (
            made.turn.network is NetworkMode.HOST
            or self._example.settings.network is not NetworkMode.AUTO
            or result.status not in _HINDERED | WELL
            or not result.isolation_suspect
        ):
            return None
        self._network = NetworkMode.HOST
        self._ports = result.listened
        return self._next(
            alone=made.turn.alone, why=f"on the host network: {result.isolation_suspect}"
        )

    def _alone(self, made: _Made) -> Turn | None:
        result = made.result
        in_the_way = {_IN_THE_WAY} if self._known else {_IN_THE_WAY, _REFUSED}
        if (
            made.turn.alone
            or made.turn.network is not NetworkMode.HOST
            or result.status not in _HINDERED
            or result.cause not in in_the_way
            or not made.beside
        ):
            return None
        return self._next(alone=True, why=f"alone: {result.cause} while {_named(made)} ran")

    def _settled(self, made: _Made) -> _Made:
        """Take an attempt for what it tells after those before it were spoilt."""
        before = self._spoilt[0] if self._spoilt else None
        if before is None:
            return made
        isolated = before.turn.network is not made.turn.network
        result = made.result
        ran = before.result.network is not None
        if (
            isolated
            and ran
            and (
                result.status in {Status.BLOCKED, Status.SKIPPED}
                or (result.status in ILL and result.cause == _IN_THE_WAY)
            )
        ):
            return self._unsettled(before, made)
        how = "timed out" if result.status is Status.TIMEOUT else result.status.value
        too = " too" if result.status in ILL else ""
        came = before.result.reason or before.result.status.value
        if isolated:
            suspect = before.result.isolation_suspect
            note = f"{how} on the host network{too}; in one of its own: {came} ({suspect})"
        else:
            note = f"{how} alone{too}; beside {_named(before)}: {came}"
        return replace(made, result=replace(result, notes=(*result.notes, note)))

    @staticmethod
    def _unsettled(before: _Made, made: _Made) -> _Made:
        """Let a verdict in isolation stand that could not be made sure of on the host network."""
        result, in_vain = before.result, made.result
        blame = "left something out" if result.status in WELL else "failed by that"
        note = (
            f"it may have {blame}: {result.isolation_suspect}; on the host network it was "
            f"{in_vain.status.value}: {in_vain.reason}"
        )
        hints = result.hints
        if result.status not in WELL:
            hints = (remedy(result.isolation_suspect), *hints, *in_vain.hints)
        return replace(before, result=replace(result, notes=(*result.notes, note), hints=hints))

    def _after_one_of_many(self) -> Turn | Result:
        told = len(self._counted)
        status = self._counted[-1].result.status
        if told < self._repeat and status in ILL | WELL and not self._is_hopeless():
            return self._next(why=f"{told + 1} of {self._repeat}")
        return self._verdict()

    def _retries_left(self, result: Result) -> bool:
        return result.cause != _HOPELESS and len(self._counted) <= self._example.settings.retries

    def _is_hopeless(self) -> bool:
        return self._counted[-1].result.cause == _HOPELESS

    # --- the verdict -----------------------------------------------------------------------------

    def _verdict(self) -> Result:
        if self._repeat > 1:
            return self._verdict_on_many()
        last = self._counted[-1].result
        if len(self._counted) == 1:
            return self._whole(last)
        first = self._counted[0]
        if last.status in WELL:
            return self._whole(self._flaky(first, self._counted[-1]))
        if last.status not in ILL:
            in_vain = f"its retry was {last.status.value}: {last.reason}"
            return self._whole(self._counted[-2].result, in_vain)
        retries = len(self._counted) - 1
        said = "a retry" if retries == 1 else f"{retries} retries"
        return self._whole(last, f"failed in {said} too, alone")

    def _flaky(self, failed: _Made, passed: _Made) -> Result:
        """Join a failure and the pass after it: the evidence is that of the failure."""
        result = failed.result
        return replace(
            passed.result,
            status=Status.FLAKY,
            cause=result.cause,
            reason=f"{result.reason}; {passed.result.status.value} on attempt "
            f"{passed.turn.number}, {_difference(failed, passed)}",
            exit_code=result.exit_code,
            signal=result.signal,
            log=result.log,
            output_tail=result.output_tail,
            output_cut=result.output_cut,
            output_dropped=result.output_dropped,
            hints=(
                *result.hints,
                flaky_advice(
                    failed.beside - passed.beside,
                    other_network=failed.turn.network is not passed.turn.network,
                ),
            ),
            notes=(*result.notes, *passed.result.notes),
            steps=result.steps,
            happened_in=result.happened_in,
        )

    def _verdict_on_many(self) -> Result:
        bad = [(n, each) for n, each in self._numbered() if each.result.status not in WELL]
        leaked = [each for each in self._counted if each.result.status is Status.LEAKED]
        passed = len(self._counted) - len(bad)
        shown = bad[0][1] if bad else (leaked or self._counted)[-1]
        done = len(self._counted)
        note = f"{passed} of {done} passed"
        if done < self._repeat:
            note += f", {self._repeat} were asked for"
        if bad and passed:
            note += f"; not ok: {', '.join(str(n) for n, _ in bad)}"
        result = replace(shown.result, repeats=self._repeat, repeats_passed=passed)
        return self._whole(result, note)

    def _broken_off(self) -> Result | None:
        """Give what an attempt has told that was to be made again in other surroundings."""
        if not self._spoilt or self._spoilt[-1].result.status in WELL:
            return None
        return self._whole(self._spoilt[-1].result, "was to run once more in other surroundings")

    def _whole(self, result: Result, *notes: str) -> Result:
        attempts = sum(each.result.attempts for each in self._made)
        return replace(result, attempts=attempts, notes=(*result.notes, *notes))

    def _numbered(self) -> list[tuple[int, _Made]]:
        return list(enumerate(self._counted, start=1))


def _difference(failed: _Made, passed: _Made) -> str:
    """Say in what the surroundings of the attempt that passed were others."""
    found = []
    if failed.turn.network is not passed.turn.network:
        found.append("on the host network")
    if failed.beside and not passed.beside:
        found.append(f"alone (it failed beside {_named(failed)})")
    elif failed.beside != passed.beside:
        found.append("with other neighbours")
    return " and ".join(found) or "with nothing changed"


def _named(made: _Made) -> str:
    names = sorted(made.beside)
    more = len(names) - _MOST_NAMED
    said = ", ".join(names[:_MOST_NAMED])
    return f"{said} and {more} more" if more > 0 else said
