"""Where a server listens inside, and what the end of a run waits for."""

import asyncio
from pathlib import Path

import pytest

from e2e_runner.databases import in_time, port_inside
from e2e_runner.model import Endpoint, Example, ExampleSettings


def example(
    *, ports: tuple[int, ...] = (), reach: tuple[int, ...] = (), needs: tuple[Example, ...] = ()
) -> Example:
    return Example(
        path="one.py",
        file=Path("/one.py"),
        argv=("python", "one.py"),
        companions=needs,
        settings=ExampleSettings(
            timeout=60,
            grace=1,
            ports=ports,
            tags=(),
            env={},
            args=(),
            stdin=None,
            cwd=Path("/"),
            serve=None,
            needs=(),
            skip=None,
            expect_exit=0,
            interpreter=("python",),
            reach=tuple(Endpoint(host="localhost", port=port) for port in reach),
        ),
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (example(), 5432),
        (example(ports=(5432,)), 5433),
        (example(reach=(5432,)), 5433),
        (example(needs=(example(ports=(5432,)),)), 5433),
        (example(needs=(example(reach=(5432,)),)), 5433),
        (example(ports=(5433,), needs=(example(reach=(5432, 5434)),)), 5435),
    ],
)
def test_a_server_leaves_the_usual_port_to_what_is_declared(given: Example, expected: int) -> None:
    assert port_inside(given) == expected


class Work:
    """Goes on until it is cancelled, and takes a moment for that."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = False

    async def do(self) -> bool:
        try:
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.ended = True
        return True


def test_work_ends_with_who_waits_for_it() -> None:
    async def wait() -> None:
        work = Work()
        waiting = asyncio.create_task(
            in_time(work.do(), asyncio.get_running_loop().create_future())
        )
        await work.begun.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert work.ended

    asyncio.run(wait())


def test_work_is_given_up_in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2e_runner.databases._PATIENCE_OF_A_HURRY", 0.05)

    async def wait() -> None:
        work = Work()
        hurry = asyncio.get_running_loop().create_future()
        hurry.set_result(None)
        assert await in_time(work.do(), hurry) is None
        assert work.ended

    asyncio.run(wait())


def test_work_that_is_done_gives_its_result_or_raises() -> None:
    async def ended(*, well: bool) -> str:
        if not well:
            raise LookupError
        return "done"

    async def wait() -> None:
        never = asyncio.get_running_loop().create_future()
        assert await in_time(ended(well=True), never) == "done"
        with pytest.raises(LookupError):
            await in_time(ended(well=False), never)

    asyncio.run(wait())
