"""The run as a whole: sets up the surroundings, runs the examples of a plan, and cleans up.

Where parallel runs and histories will attach: `_order` decides what comes next, `_work` is one lane.
"""

import asyncio
import contextlib
import os
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import e2e_runner
from e2e_runner import rundir
from e2e_runner.addresses import without_application
from e2e_runner.apart import give_back_dead
from e2e_runner.attempt import Attempt, by_hand
from e2e_runner.databases import Databases
from e2e_runner.errors import SetupError
from e2e_runner.events import (
    Event,
    ExampleFinished,
    ExampleStarted,
    Interrupted,
    RunFinished,
    RunStarted,
    Warned,
)
from e2e_runner.hints import Rule
from e2e_runner.model import (
    Capture,
    Containment,
    Example,
    Past,
    Plan,
    PostgresMode,
    Result,
    RunInfo,
    RunSettings,
    Status,
)
from e2e_runner.script import Surroundings
from e2e_runner.stop import Stop
from e2e_runner.supervise.client import Supervisor
from e2e_runner.supervise.launch import Spawner
from e2e_runner.verdict import exit_code, is_bad
from e2e_runner.wants import definitions_of, postgres_words
from e2e_runner.workspace import Workspaces

_JOBS = 1  # lanes; each example has the machine to itself until isolation exists
_INTERNAL = "e2e-run itself failed"


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
        self._forbidden = tuple(re.compile(p, re.MULTILINE) for p in run.fail_on_output)
        self._environ = environ
        self._withheld = without_application(
            environ,
            run.postgres,
            [each for example in plan.examples for each in definitions_of(example)],
        )
        self._tell = emit
        self._untold: list[Event] = []
        self._clock = time.monotonic
        self._since = self._clock()
        self._counts: dict[Status, int] = {}
        self._bad = 0
        self._waiting = deque(_order(plan))

    def nothing_selected(self) -> int:
        """Tell of a run that has nothing to do, and leave no trace of it."""
        started = time.time()
        info = self._info(rundir.new_run_id(started), started, processes=None, notes=())
        self._emit(RunStarted(at=self._at(), run=info, plan=self._plan))
        code = exit_code(
            self._counts, strict=self._run.strict, selected=0, elsewhere=bool(self._plan.shard)
        )
        self._emit(RunFinished(at=self._at(), exit_code=code, interrupted=False))
        return code

    def not_set_up(self, error: SetupError) -> None:
        """Tell the reports of a run that came to nothing; the error itself is the caller's."""
        started = time.time()
        info = self._info(rundir.new_run_id(started), started, processes=None, notes=())
        self._emit(RunStarted(at=self._at(), run=info, plan=self._plan))
        for example in self._plan.examples:
            self._finish(self._unstarted(example, Status.NOT_RUN, error.message))
        code = exit_code(
            self._counts, strict=self._run.strict, selected=len(self._counts), setup_failed=True
        )
        self._emit(RunFinished(at=self._at(), exit_code=code, interrupted=False))

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
            ) as supervisor:
                if supervisor.cgroups is not None:
                    run_dir.note_cgroup(supervisor.cgroups)
                info = self._info(
                    run_dir.id, started, processes=supervisor.tier, notes=supervisor.notes
                )
                self._emit(RunStarted(at=self._at(), run=info, plan=self._plan))
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
                    warn=self._warn,
                ) as databases:
                    around = Surroundings(
                        run=self._run,
                        info=info,
                        workspaces=workspaces,
                        supervisor=supervisor,
                        databases=databases,
                        environ=self._withheld.environ,
                        null=null,
                        stop=stop,
                        clock=self._clock,
                    )
                    error = await self._run_all(around)
        await asyncio.to_thread(rundir.prune, self._run.state_dir, self._run.keep_runs)
        code = exit_code(
            self._counts,
            strict=self._run.strict,
            selected=len(self._plan.examples),
            interrupted=stop.signal,
            internal_error=error is not None,
        )
        self._emit(RunFinished(at=self._at(), exit_code=code, interrupted=stop.signal is not None))
        if error is not None:
            raise error
        return code

    async def _run_all(self, around: Surroundings) -> Exception | None:
        """Run what is waiting; an error of our own is handed back once every example has a result."""
        error: Exception | None = None
        try:
            async with asyncio.TaskGroup() as lanes:
                for _ in range(_JOBS):
                    lanes.create_task(self._work(around))
        except* Exception as group:  # noqa: BLE001 - whatever it is, the results so far must be told
            error = group
        why = _INTERNAL if error is not None else self._why_ended(around.stop)
        for example in self._waiting:
            self._finish(self._unstarted(example, Status.NOT_RUN, why))
        return error

    async def _work(self, around: Surroundings) -> None:
        prepared: Attempt | None = None

        def prepare_next() -> None:
            nonlocal prepared
            self._emit_untold()
            if self._waiting:
                prepared = self._attempt(self._waiting[0], around, meanwhile=prepare_next)
                prepared.prepare()

        while self._waiting and not self._is_over(around.stop):
            example = self._waiting.popleft()
            attempt = prepared
            if attempt is None or attempt.example is not example:
                attempt = self._attempt(example, around, meanwhile=prepare_next)
            self._emit_soon(
                ExampleStarted(at=self._at(), path=example.path, limit=example.settings.timeout)
            )
            try:
                result = await attempt.run()
            except Exception:
                self._finish(self._unstarted(example, Status.NOT_RUN, _INTERNAL))
                raise
            self._finish(result)

    def _attempt(
        self, example: Example, around: Surroundings, *, meanwhile: Callable[[], None]
    ) -> Attempt:
        return Attempt(
            example,
            around,
            load_rules=self._load_rules,
            forbidden=self._forbidden,
            emit=self._emit,
            since=self._since,
            meanwhile=meanwhile,
        )

    def _emit_soon(self, event: Event) -> None:
        """Emit before the next event, at the latest.

        Between two examples nobody is told anything, so that the next starts first: its first event
        comes when it runs.
        """
        self._untold.append(event)

    def _emit(self, event: Event) -> None:
        self._emit_soon(event)
        self._emit_untold()

    def _emit_untold(self) -> None:
        untold, self._untold = self._untold, []
        for each in untold:
            self._tell(each)

    def _warn(self, message: str) -> None:
        self._emit(Warned(at=self._at(), message=message))

    def _is_over(self, stop: Stop) -> bool:
        limit = 1 if self._run.fail_fast else self._run.max_fail
        return stop.signal is not None or (limit is not None and self._bad >= limit)

    def _why_ended(self, stop: Stop) -> str:
        if stop.signal is not None:
            return f"the run was ended by {stop.signal.name}"
        return "--fail-fast" if self._run.fail_fast else f"--max-fail {self._run.max_fail}"

    def _finish(self, result: Result) -> None:
        self._counts[result.status] = self._counts.get(result.status, 0) + 1
        self._bad += is_bad(result.status, strict=self._run.strict)
        self._emit_soon(ExampleFinished(at=self._at(), result=result))

    def _unstarted(self, example: Example, status: Status, reason: str) -> Result:
        return Result(
            path=example.path,
            status=status,
            reason=reason,
            tags=example.settings.tags,
            ports=example.ports,
            command=by_hand(example, self._run.root),
        )

    def _info(
        self, run_id: str, started: float, *, processes: Containment | None, notes: tuple[str, ...]
    ) -> RunInfo:
        return RunInfo(
            id=run_id,
            started=started,
            root=self._run.root,
            jobs=_JOBS,
            python=self._run.python,
            version=e2e_runner.__version__,
            processes=processes,
            containment_notes=notes,
            postgres=postgres_words(self._plan, self._run.postgres),
            withheld=() if self._run.postgres.mode is PostgresMode.ENV else self._withheld.names,
        )

    @contextlib.contextmanager
    def _signals(self, stop: Stop) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def request(number: signal.Signals) -> None:
            count = stop.request(number)
            self._emit(Interrupted(at=self._at(), signal=number.name, count=count))

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

    def _at(self) -> float:
        return self._clock() - self._since


def _order(plan: Plan) -> Iterable[Example]:
    """Decide the order of the examples: path order, as planned."""
    return plan.examples
