"""A small engine for the tests: makes one attempt at each example of the project in this folder, all at once.

Argument: JSON of the flags, by parameter name. A line of JSON on stdout tells each result, before those
a line that tells the tier, and after them one with the warnings.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
import time
from typing import Any

from e2e_runner import rundir
from e2e_runner.addresses import without_application
from e2e_runner.attempt import Attempt
from e2e_runner.cli.options import resolve_given
from e2e_runner.databases import Databases
from e2e_runner.discovery import make_plan
from e2e_runner.events import Event, Warned
from e2e_runner.hints import load_rules
from e2e_runner.isolation import mode_for
from e2e_runner.model import Capture, Example, Plan, RunInfo, RunSettings
from e2e_runner.rundir import RunDir
from e2e_runner.script import Surroundings
from e2e_runner.stop import Stop
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.launch import Spawner
from e2e_runner.supervise.networks import Network, Networks
from e2e_runner.workspace import Workspaces


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts, default=str) + "\n")
    sys.stdout.flush()


def lose_networks() -> None:
    """Have each network be none any more once it was opened, as the kernel tells who enters it."""
    opens = Networks.open
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    async def lost(self: Networks) -> Network:
        network = await opens(self)
        os.dup2(nothing, network.fileno(), inheritable=False)
        return network

    Networks.open = lost  # type: ignore[method-assign]


async def main(flags: dict[str, Any]) -> None:
    if flags.pop("lose_networks", False):
        lose_networks()
    resolved = resolve_given(flags, ())
    run, plan = resolved.run, make_plan(resolved)
    with contextlib.ExitStack() as stack:
        spawner = stack.enter_context(contextlib.closing(Spawner()))
        run_dir = stack.enter_context(
            rundir.open_run(run.state_dir, rundir.new_run_id(time.time()))
        )
        workspaces = stack.enter_context(
            contextlib.closing(
                Workspaces(
                    run_dir,
                    separate=run.capture is Capture.SEPARATE,
                    max_output=run.max_output,
                )
            )
        )
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        async with Supervisor.open(
            spawner,
            wanted=run.containment,
            run_id=run_dir.id,
            scratch=run_dir.scratch,
            log=run_dir.spawner_log,
            networks=True,
        ) as supervisor:
            if supervisor.cgroups is not None:
                run_dir.note_cgroup(supervisor.cgroups)
            await _attempt_all(
                run,
                plan,
                run_dir=run_dir,
                supervisor=supervisor,
                workspaces=workspaces,
                null=null,
            )


async def _attempt_all(
    run: RunSettings,
    plan: Plan,
    *,
    run_dir: RunDir,
    supervisor: Supervisor,
    workspaces: Workspaces,
    null: int,
) -> None:
    events: list[Event] = []
    warnings: list[str] = []
    environ = without_application(os.environ, run.postgres, ()).environ
    stop = Stop()
    tier = supervisor.networks.tier
    async with Databases(
        run,
        plan,
        supervisor=supervisor,
        run_dir=run_dir,
        environ=environ,
        stop=stop,
        warn=warnings.append,
    ) as databases:
        around = Surroundings(
            run=run,
            info=RunInfo(
                id=run_dir.id,
                started=time.time(),
                root=run.root,
                jobs=len(plan.examples),
                python=run.python,
                version="0",
                processes=supervisor.tier,
                containment_notes=supervisor.notes,
                network=tier,
                network_notes=supervisor.networks.notes,
            ),
            workspaces=workspaces,
            supervisor=supervisor,
            databases=databases,
            environ=environ,
            null=null,
            stop=stop,
            clock=time.monotonic,
        )
        since = time.monotonic()

        def attempt(example: Example) -> Attempt:
            made = Attempt(
                example,
                around,
                network=mode_for(example.settings, tier, None),
                load_rules=load_rules,
                forbidden=(),
                emit=events.append,
                since=since,
                meanwhile=lambda: None,
            )
            made.prepare()
            return made

        say(tier=tier.value, processes=supervisor.tier.value, notes=supervisor.networks.notes)
        attempts = [attempt(example) for example in plan.examples]
        # What is prepared and not made is for the surroundings to give back.
        made = [each for each in attempts if "never" not in each.example.path]
        for coming in asyncio.as_completed([each.run() for each in made]):
            say(result=dataclasses.asdict(await coming), at=time.monotonic() - since)
    warned = [each.message for each in events if isinstance(each, Warned)]
    say(warnings=[*plan.warnings, *warned, *warnings])


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
