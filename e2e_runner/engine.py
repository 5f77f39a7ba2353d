"""The run as a whole: sets up the surroundings, has the examples of a plan run, and cleans up."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping

import e2e_runner
from e2e_runner import machine, rundir
from e2e_runner.addresses import without_application
from e2e_runner.apart import give_back_dead
from e2e_runner.databases import Databases
from e2e_runner.errors import SetupError
from e2e_runner.events import Event, Interrupted, RunFinished, RunStarted
from e2e_runner.hints import Rule
from e2e_runner.lanes import Lanes, Tally
from e2e_runner.model import (
    Capture,
    NetworkMode,
    NetworkTier,
    Past,
    Plan,
    PostgresMode,
    RunInfo,
    RunSettings,
)
from e2e_runner.script import Surroundings
from e2e_runner.stop import Stop
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.launch import Spawner
from e2e_runner.telling import Telling
from e2e_runner.verdict import exit_code
from e2e_runner.wants import definitions_of, postgres_words
from e2e_runner.workspace import Workspaces

# Of the runner itself, and of an example with its network, logs, server and successor, generously.
_OWN_DESCRIPTORS = 40
_DESCRIPTORS_EACH = 24


async def run_plan(
    plan: Plan,
    run: RunSettings,
    *,
    spawner: Spawner,
    load_rules: Callable[[], tuple[Rule, ...]],
    environ: Mapping[str, str],
    emit: Callable[[Event], None],
    past: Mapping[str, Past] | None = None,
) -> int:
    """Run a plan and give the exit code. Raises SetupError when the surroundings cannot be set up.

    `spawner` was launched for this run; `load_rules` is called once the first example has failed;
    `past` is what earlier runs tell of the examples, by path.
    Whatever happens, every example of the plan has its `ExampleFinished` before `RunFinished`.
    """
    engine = _Engine(plan, run, load_rules=load_rules, environ=environ, emit=emit, past=past or {})
    if not plan.examples:
        return engine.nothing_selected()
    try:
        return await engine.run(spawner)
    except SetupError as error:
        engine.not_set_up(error)
        raise


class _Engine:
    def __init__(
        self,
        plan: Plan,
        run: RunSettings,
        *,
        load_rules: Callable[[], tuple[Rule, ...]],
        environ: Mapping[str, str],
        emit: Callable[[Event], None],
        past: Mapping[str, Past],
    ) -> None:
        self._plan = plan
        self._past = past
        self._run = run
        self._load_rules = load_rules
        self._environ = environ
        self._withheld = without_application(
            environ,
            run.postgres,
            [each for example in plan.examples for each in definitions_of(example)],
        )
        self._clock = time.monotonic
        self._telling = Telling(emit, self._clock)
        self._tally = Tally(plan, run, self._telling)

    def nothing_selected(self) -> int:
        """Tell of a run that has nothing to do, and leave no trace of it."""
        started = time.time()
        self._start(self._info(rundir.new_run_id(started), started))
        code = exit_code(
            self._tally.counts,
            strict=self._run.strict,
            selected=0,
            elsewhere=self._plan.cut is not None,
        )
        self._end(code)
        return code

    def not_set_up(self, error: SetupError) -> None:
        """Tell the reports of a run that came to nothing; the error itself is the caller's."""
        started = time.time()
        self._start(self._info(rundir.new_run_id(started), started))
        for example in self._tally.unfinished:
            self._tally.finish_unstarted(example, error.message)
        counts = self._tally.counts
        self._end(
            exit_code(counts, strict=self._run.strict, selected=len(counts), setup_failed=True)
        )

    async def run(self, spawner: Spawner) -> int:
        """Run what the plan says; at least one example."""
        stop = Stop()
        # To the very end: a signal that comes late must not keep the report from being written.
        with self._signals(stop):
            return await self._run_to_the_end(spawner, stop)

    async def _run_to_the_end(self, spawner: Spawner, stop: Stop) -> int:
        started = time.time()
        give_back_dead(self._run.state_dir)
        with contextlib.ExitStack() as stack:
            run_dir = stack.enter_context(
                rundir.open_run(self._run.state_dir, rundir.new_run_id(started))
            )
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, null)
            async with Supervisor.open(
                spawner,
                wanted=self._run.containment,
                run_id=run_dir.id,
                scratch=run_dir.scratch,
                log=run_dir.spawner_log,
                networks=wants_networks(self._plan),
            ) as supervisor:
                if supervisor.cgroups is not None:
                    run_dir.note_cgroup(supervisor.cgroups)
                info = self._info(run_dir.id, started, supervisor)
                self._start(info)
                workspaces = stack.enter_context(
                    contextlib.closing(
                        Workspaces(
                            run_dir,
                            separate=self._run.capture is Capture.SEPARATE,
                            max_output=self._run.max_output,
                        )
                    )
                )
                async with Databases(
                    self._run,
                    self._plan,
                    supervisor=supervisor,
                    run_dir=run_dir,
                    environ=self._withheld.environ,
                    stop=stop,
                    warn=self._telling.warn,
                ) as databases:
                    lanes = Lanes(
                        self._plan,
                        Surroundings(
                            run=self._run,
                            info=info,
                            workspaces=workspaces,
                            supervisor=supervisor,
                            databases=databases,
                            environ=self._withheld.environ,
                            null=null,
                            stop=stop,
                            clock=self._clock,
                        ),
                        past=self._past,
                        load_rules=self._load_rules,
                        telling=self._telling,
                        tally=self._tally,
                    )
                    error = await lanes.run()
        with contextlib.suppress(RuntimeError):  # no thread can be started: the next run will do it
            await asyncio.to_thread(rundir.prune, self._run.state_dir, self._run.keep_runs)
        code = exit_code(
            self._tally.counts,
            strict=self._run.strict,
            selected=len(self._plan.examples),
            interrupted=stop.signal,
            internal_error=error is not None,
        )
        self._end(code, interrupted=stop.signal is not None)
        if error is not None:
            raise error
        return code

    def _start(self, info: RunInfo) -> None:
        self._telling.emit(RunStarted(at=self._telling.at(), run=info, plan=self._plan))

    def _end(self, code: int, *, interrupted: bool = False) -> None:
        self._telling.emit(
            RunFinished(at=self._telling.at(), exit_code=code, interrupted=interrupted)
        )

    def _info(self, run_id: str, started: float, supervisor: Supervisor | None = None) -> RunInfo:
        networks = supervisor.networks if supervisor else None
        return RunInfo(
            id=run_id,
            started=started,
            root=self._run.root,
            jobs=jobs_here(self._plan, self._run),
            python=self._run.python,
            version=e2e_runner.__version__,
            processes=supervisor.tier if supervisor else None,
            containment_notes=supervisor.notes if supervisor else (),
            network=networks.tier if networks else NetworkTier.HOST,
            network_notes=networks.notes if networks else (),
            postgres=postgres_words(self._plan, self._run.postgres),
            withheld=() if self._run.postgres.mode is PostgresMode.ENV else self._withheld.names,
        )

    @contextlib.contextmanager
    def _signals(self, stop: Stop) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def request(number: signal.Signals) -> None:
            count = stop.request(number)
            self._telling.emit(Interrupted(at=self._telling.at(), signal=number.name, count=count))

        handled = [signal.SIGINT, signal.SIGTERM]
        # nohup ignores it so that the run outlives its terminal.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            handled.append(signal.SIGHUP)
        for number in handled:
            loop.add_signal_handler(number, request, number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)


def jobs_for(plan: Plan, run: RunSettings, *, processors: int, descriptors: int) -> int:
    """Choose how many examples run at a time, with so many processors and descriptors to be had."""
    # Outputs that are shown as they come would mix.
    wanted = run.jobs or (1 if run.no_capture else processors)
    affordable = max(1, (descriptors - _OWN_DESCRIPTORS) // _DESCRIPTORS_EACH)
    room = sum(1 + len(example.companions) for example in plan.examples)
    return max(1, min(wanted, affordable, room))


def jobs_here(plan: Plan, run: RunSettings) -> int:
    """Choose how many examples run at a time on this machine."""
    return jobs_for(plan, run, processors=machine.processors(), descriptors=machine.descriptors())


def wants_networks(plan: Plan) -> bool:
    """Tell whether any example of a plan may get a network of its own."""
    return any(example.settings.network is not NetworkMode.HOST for example in plan.examples)
