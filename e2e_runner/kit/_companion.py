"""The companion of an example where no run has started it."""

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from e2e_runner.config import resolve
from e2e_runner.discovery.plan import make_plan
from e2e_runner.kit import _serving
from e2e_runner.kit._serving import Order
from e2e_runner.kit.servers import Server, ServerNotReady
from e2e_runner.model import Example, LogProbe, Probe, TcpProbe

_LINES = """\
# /// script
# [tool.e2e-run]
# serve = "http://127.0.0.1:8000/"   # or ports = [8000]
# ///"""


@contextlib.asynccontextmanager
async def running(file: Path, *, timeout: float) -> AsyncIterator[Server]:  # noqa: ASYNC109 - a fact of the order
    """Have a companion for the length of the block. Raises ServerNotReady, E2ERunError."""
    example = _read(file)
    probe = _probe(example)
    if "E2E_RUN" in os.environ:
        raise ServerNotReady(
            f"the run has not started the companion {file}\n"
            "To fix this: have it do so, by the metadata of this example: "
            f'needs = ["{file.name}"]'
        )
    async with contextlib.AsyncExitStack() as stack:
        for other in example.companions:
            order = _order(other, _probe(other), timeout)
            await stack.enter_async_context(_serving.running(order))
        yield await stack.enter_async_context(_serving.running(_order(example, probe, timeout)))


def _read(file: Path) -> Example:
    if not file.is_file():
        raise ServerNotReady(
            f"there is no companion {file}\n"
            "To fix this: name a script relative to the folder of this one, as in `needs` of its metadata"
        )
    # By hand, the interpreter that runs the example is the one for its companion.
    resolved = resolve({"python": sys.executable}, [str(file)], os.environ, file.parent)
    plan = make_plan(resolved)
    found = [*plan.examples, *(each.example for each in plan.deselected)]
    if not found:
        why = "".join(f": {each.reason}" for each in plan.not_examples)
        raise ServerNotReady(f"the companion {file} is no script that can be run{why}")
    example = found[0]
    if example.problems:
        raise ServerNotReady(
            "\n".join(
                [
                    f"the companion {file} cannot be used:",
                    *(f"  {p.message}" for p in example.problems),
                ]
            )
        )
    return example


def _probe(example: Example) -> Probe:
    if example.settings.serve is not None:
        return example.settings.serve
    if not example.ports:
        raise ServerNotReady(
            f"the companion {example.file} declares neither `serve` nor `ports`, so nothing can tell "
            f"when it is ready\nTo fix this: add to it\n{_LINES}"
        )
    return TcpProbe(host="127.0.0.1", port=example.ports[0])


def _order(example: Example, probe: Probe, timeout: float) -> Order:
    settings = example.settings
    is_log = isinstance(probe, LogProbe)
    return Order(
        argv=example.argv,
        port=example.ports[0] if is_log and example.ports else None,
        host="127.0.0.1",
        ready=probe,
        timeout=timeout,
        grace=settings.grace,
        env=settings.env,
        cwd=settings.cwd,
        # As the run does it: a server by hand is stopped by Ctrl-C.
        signals=(signal.SIGINT, signal.SIGTERM),
    )
