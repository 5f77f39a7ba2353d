"""What a script tells of its own course: sections, steps, metrics, and a summary at its end.

For people it prints: sections, steps that failed and the summary; with ``E2E_VERBOSE=true`` every step
and metric too. Under ``e2e-run`` the same calls also become records, from which the run knows the
step that a script is in. Narration never makes a script fail.
"""

import contextlib
import io
import itertools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO
from weakref import WeakKeyDictionary, ref

from e2e_runner.kit._blocks import is_terminated
from e2e_runner.kit._channel import Channel, step_id
from e2e_runner.kit._words import cut, said
from e2e_runner.text import duration, one_line, plural

if TYPE_CHECKING:  # each takes longer to import than all of this
    import asyncio

    from e2e_runner.records import Value

_LONGEST_PRINTED = 200  # characters of a title, or of a metric's value


# --- what scripts call ---------------------------------------------------------------------------


def section(title: str) -> None:
    """Begin another part of the story; it ends the steps without a block that are open."""
    _story.section(str(title))


def step(title: str) -> "Step":
    """Begin a step: for the length of a block, or until the next step.

    ``with step("log in"):`` lasts for the block, and failed if an exception leaves that. A bare
    ``step("log in")`` lasts until the next step beside it, the end of the block around it, `section`
    or `success`; it failed if the program, or the task or thread that began it, dies by an exception
    meanwhile. What is cancelled, or stopped by a signal, did not fail. Steps in a block lie within its step. Each asyncio task and each thread has a course of
    its own: their steps do not end each other.
    """
    return _story.step(str(title))


def metric(name: str, value: "Value") -> None:
    """Tell a figure; a later one of the same name replaces it.

    The value is a number, a string or a bool, else TypeError is raised; NaN and the infinities are a
    ValueError, as is an empty name.
    """
    _story.metric(name, value)


def success(message: str = "") -> None:
    """Tell what the script has shown, with the steps and metrics since the start or the last summary.

    It does not hide steps that failed meanwhile.
    """
    _story.success(str(message))


# --- steps ---------------------------------------------------------------------------------------


class _End(NamedTuple):
    """How a step ended: `error` is empty where it came to its end; cancelled, it did not fail."""

    error: str = ""
    cancelled: bool = False


_DONE = _End()
_GIVEN_UP = "cancelled"  # by the script itself, for all that is known


class _Level:
    """Where steps follow each other: the story as a whole, or the inside of a step."""

    __slots__ = ("broken_within", "open")

    def __init__(self) -> None:
        self.open: dict[_Course, Step] = {}  # bare steps
        self.broken_within = _DONE  # how the last step broke off that did


class Step(_Level):
    """A step under way; `step` makes it."""

    __slots__ = ("_block", "around", "began", "course", "depth", "ended", "id", "pid", "title")

    def __init__(self, title: str, around: _Level, course: "_Course", began: float) -> None:
        """`around` is where it stands, `course` the task or thread that it is a step of."""
        super().__init__()
        self.title = title
        self.around = around
        self.course = course
        self.began = began
        self.id = step_id(next(_numbers))
        self.pid = os.getpid()
        self.depth: int = around.depth + 1 if isinstance(around, Step) else 0
        self.ended = False
        self._block = False

    def __enter__(self) -> None:
        if self._block or self.ended:
            raise RuntimeError(
                f"the step {self.title!r} is over, or its block has begun: "
                "write `with step(...):`, with a new step for each block"
            )
        self._block = True
        _story.enclose(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _story.leave(self, error)


class _Course:
    """A task, or a thread outside of tasks: what does one thing after another."""

    __slots__ = ("_task", "open", "thread")

    def __init__(
        self, thread: "_Course | None" = None, task: "asyncio.Task[Any] | None" = None
    ) -> None:
        self.thread = thread  # of a task: that which runs it
        self.open: dict[Step, None] = {}  # bare steps, in the order in which they began
        self._task = ref(task) if task is not None else None

    def end(self) -> _End:
        """Say how the task ended; it is done if it has not."""
        task = self._task() if self._task is not None else None
        if task is None or not task.done():
            return _DONE
        if task.cancelled():
            return _cancelled()
        # `exception()` would count as having seen to it, and a failure that nobody awaits would no
        # longer be logged.
        return _end_by(getattr(task, "_exception", None))


_numbers = itertools.count(1)
_root = _Level()
_here: ContextVar[_Level] = ContextVar("e2e_runner.kit.narration", default=_root)


def _living(level: _Level) -> _Level:
    """Give the innermost level that has not ended."""
    while isinstance(level, Step) and level.ended:
        level = level.around
    return level


def _end_by(error: BaseException | None) -> _End:
    """Say how an exception that leaves a step ends that."""
    match error:
        case None | GeneratorExit():
            return _DONE
        case SystemExit(code=code) if code is None or code == 0:
            return _DONE
        case SystemExit() if is_terminated():
            return _cancelled()
        case KeyboardInterrupt():
            return _End("stopped by Ctrl-C", cancelled=True)
    # Without asyncio nothing is cancelled.
    cancelled = getattr(sys.modules.get("asyncio"), "CancelledError", None)
    if cancelled is not None and isinstance(error, cancelled):
        return _cancelled()
    return _End(said(error))


def _cancelled() -> _End:
    """Say by what a step was cancelled, where that is known."""
    if is_terminated():
        return _End("stopped by SIGTERM", cancelled=True)
    # `asyncio.run` has a handler of its own, which cancels the main task.
    handler = signal.getsignal(signal.SIGINT)
    runner = getattr(getattr(handler, "func", None), "__self__", None)
    stopped = getattr(runner, "_interrupt_count", 0)
    return _End("stopped by Ctrl-C" if stopped else _GIVEN_UP, cancelled=True)


# --- the story -----------------------------------------------------------------------------------


class _Story:
    """All that a process tells."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock  # seconds, as the runner's own
        self._channel = Channel()
        self._threads = threading.local()
        self._tasks: WeakKeyDictionary[asyncio.Task[Any], _Course] = WeakKeyDictionary()
        self._hooked = False
        self.forked()

    def forked(self) -> None:
        """Begin anew in a child; what the parent has begun is its to end."""
        # Reentrant: the handler of a signal may tell something in the midst of our own doing.
        self._lock = threading.RLock()
        self._begin()

    def _begin(self) -> None:
        self._began = self._clock()
        self._steps = 0
        self._failed = 0
        self._cancelled = 0
        self._metrics: dict[str, Value] = {}

    def section(self, title: str) -> None:
        with self._lock:
            now = self._clock()
            self._end_all(self._level(self._course()), now)
            self._channel.section(now, title)
            _say(f"── {_printed(title)}", "bold")

    def step(self, title: str) -> Step:
        with self._lock:
            self._hook()
            now = self._clock()
            course = self._course()
            level = self._level(course)
            for before in (course, course.thread):
                if before is not None and before in level.open:
                    self._end(level.open[before], _DONE, now)
            new = Step(title, level, course, now)
            level.open[course] = new
            course.open[new] = None
            _here.set(new)
            self._steps += 1
            self._channel.began(now, new.id, title, level.id if isinstance(level, Step) else None)
            if _verbose():
                _say(f"{_indent(new)}→ {_printed(title)}")
            return new

    def enclose(self, step: Step) -> None:
        """Have a step last for a block."""
        with self._lock:
            _forget(step)
            _here.set(step)

    def leave(self, step: Step, error: BaseException | None) -> None:
        """End a step whose block was left."""
        with self._lock:
            self._end(step, _end_by(error), self._clock())
            # A generator may be left within a step that began after its own.
            _here.set(_living(_here.get()))

    def metric(self, name: str, value: "Value") -> None:
        _check_metric(name, value)
        with self._lock:
            self._metrics[name] = value
            self._channel.metric(self._clock(), name, value)
            if _verbose():
                here = _living(_here.get())
                indent = _indent(here) + "  " if isinstance(here, Step) else ""
                _say(f"{indent}{_in_words(name, value)}")

    def success(self, message: str) -> None:
        with self._lock:
            now = self._clock()
            self._end_all(self._level(self._course()), now)
            self._channel.summary(now, message)
            took = now - self._began
            text = _summary(_printed(message), self._steps, self._failed, self._cancelled, took)
            if self._failed:
                _say(f"! {text}", "yellow")
            else:
                _say(f"✓ {text}", "green")
            for name, value in self._metrics.items():
                _say(f"  {_in_words(name, value)}")
            self._begin()

    def course_ended(self, course: _Course, end: _End) -> None:
        """End the bare steps of a task or thread that is over."""
        with self._lock:
            now = self._clock()
            for step in reversed(list(course.open)):
                self._end(step, end, now)

    def died(self, error: BaseException | None) -> None:
        """Tell what an exception that nobody caught has broken off in this thread."""
        thread = self._thread()
        with self._lock:
            tasks = [each for each in self._tasks.values() if each.thread is thread]
        for course in (*tasks, thread):
            self.course_ended(course, _end_by(error))

    # --- where we are ---

    def _course(self) -> _Course:
        thread = self._thread()
        # Without asyncio there are no tasks, and it may be in the midst of being imported.
        current_task = getattr(sys.modules.get("asyncio"), "current_task", None)
        if current_task is None:
            return thread
        try:
            task = current_task()
        except RuntimeError:  # no loop runs in this thread
            return thread
        if task is None:
            return thread
        course = self._tasks.get(task)
        if course is None:
            course = self._tasks[task] = own = _Course(thread, task)
            task.add_done_callback(lambda _: self.course_ended(own, own.end()))
        return course

    def _thread(self) -> _Course:
        course: _Course | None = getattr(self._threads, "course", None)
        if course is None:
            course = self._threads.course = _Course()
        return course

    def _level(self, course: _Course) -> _Level:
        """Give the level on which this course goes on: beside its own bare step, not within it."""
        level = _living(_here.get())
        if (
            isinstance(level, Step)
            and level in level.course.open
            # A thread that runs a loop waits for it: its tasks go on where it has stopped.
            and level.course in {course, course.thread}
            and level.pid == os.getpid()
        ):
            level = _living(level.around)
        return level

    # --- how steps end ---

    def _end_all(self, level: _Level, now: float) -> None:
        for step in list(level.open.values()):
            self._end(step, step.course.end(), now)

    def _end(self, step: Step, end: _End, now: float) -> None:
        if step.ended or step.pid != os.getpid():  # a child that was forked does not end it
            return
        step.ended = True
        _forget(step)
        for inner in reversed(list(step.open.values())):
            same = inner.course is step.course
            self._end(inner, end if same else inner.course.end(), now)
        self._channel.ended(now, step.id, end.error, cancelled=end.cancelled)
        took = duration(now - step.began)
        if end.error:
            told = end == step.broken_within
            if end.cancelled:
                self._cancelled += not told
            else:
                self._failed += not told
            step.around.broken_within = end
            mark, style = ("-", "yellow") if end.cancelled else ("✗", "red")
            if _verbose():
                why = "" if told else f": {end.error}"
                _say(f"{_indent(step)}{mark} {_printed(step.title)} ({took}){why}", style)
            elif not told and end.error != _GIVEN_UP:
                _say(f"{mark} {_path(step)} ({took}): {end.error}", style)
        elif _verbose():
            _say(f"{_indent(step)}✓ {_printed(step.title)} ({took})", "green")

    # --- the end of the program ---

    def _hook(self) -> None:
        """Hear of exceptions that nobody catches."""
        if self._hooked:
            return
        self._hooked = True
        before, before_in_threads = sys.excepthook, threading.excepthook

        def hook(
            kind: type[BaseException], error: BaseException, trace: TracebackType | None
        ) -> None:
            try:
                self.died(error)
            finally:
                before(kind, error, trace)

        def hook_in_threads(args: threading.ExceptHookArgs) -> None:
            try:
                self.died(args.exc_value)
            finally:
                before_in_threads(args)

        sys.excepthook = hook
        threading.excepthook = hook_in_threads


def _forget(step: Step) -> None:
    """Take a step out of those that the next one ends."""
    step.course.open.pop(step, None)
    if step.around.open.get(step.course) is step:
        del step.around.open[step.course]


def _check_metric(name: object, value: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"metric({name!r}, ...): the name is a str, not {type(name).__name__}")
    if not name:
        raise ValueError("metric(''): a metric needs a name")
    if not isinstance(value, int | float | str):
        raise TypeError(
            f"metric({name!r}, ...): the value is an int, a float, a str or a bool, "
            f"not {type(value).__name__}; convert it, as with float(...) or str(...)"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"metric({name!r}, {value}): the value is a finite number")


# --- words ---------------------------------------------------------------------------------------


def _printed(text: str) -> str:
    return cut(one_line(text), _LONGEST_PRINTED)


def _indent(step: Step) -> str:
    return "  " * (step.depth + 1)


def _path(step: Step) -> str:
    """Name a step with those around it, for where these are not printed."""
    titles = []
    level: _Level = step
    while isinstance(level, Step):
        titles.append(_printed(level.title))
        level = level.around
    return " > ".join(reversed(titles))


def _summary(message: str, steps: int, failed: int, cancelled: int, seconds: float) -> str:
    """Sum up.

    >>> _summary("All orders placed", 5, 0, 0, 1.23), _summary("", 0, 0, 0, 2)
    ('All orders placed: 5 steps in 1.23s', 'done in 2.00s')
    >>> _summary("", 4, 1, 0, 0.5), _summary("", 4, 0, 2, 0.5)
    ('4 steps, 1 failed, in 500ms', '4 steps, 2 cancelled, in 500ms')
    """
    took = f"in {duration(seconds)}"
    broken = [f"{failed:,} failed"] if failed else []
    broken += [f"{cancelled:,} cancelled"] if cancelled else []
    if broken:
        counted = ", ".join([plural(steps, "step"), *broken, took])
    elif steps:
        counted = f"{plural(steps, 'step')} {took}"
    else:
        return f"{message or 'done'} {took}"
    return f"{message}: {counted}" if message else counted


def _in_words(name: str, value: "Value") -> str:
    """Put a metric into words.

    >>> _in_words("mean price", 0.1 + 0.2), _in_words("in order", True)
    ('mean price: 0.3', 'in order: yes')
    """
    match value:
        case bool():
            text = "yes" if value else "no"
        case float():
            text = f"{value:.10g}"
        case int() if abs(value) >= 10**_LONGEST_PRINTED:
            text = "a number of very many digits"
        case _:
            text = str(value)
    return f"{_printed(name)}: {_printed(text)}"


# --- printing ------------------------------------------------------------------------------------

_STYLES = {"bold": "1", "green": "32", "red": "31", "yellow": "33"}
_PLAIN = str.maketrans({"─": "-", "→": ">", "✓": "ok:", "✗": "FAILED:", "…": "..."})


def _verbose() -> bool:
    return os.environ.get("E2E_VERBOSE", "").lower() in {"1", "on", "true", "yes"}


def _say(line: str, style: str = "") -> None:
    """Print a line. That nobody can read it is no failure of the script."""
    stream = sys.stdout
    if stream is None:
        return
    # Whatever fails here may succeed, or be told, where the script prints something itself: a pipe
    # that nobody reads, a full disk, a closed file, a signal that came in the midst of a write.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        if style and stream.isatty() and not os.environ.get("NO_COLOR"):
            line = f"\x1b[{_STYLES[style]}m{line}\x1b[0m"
        try:
            _write(stream, f"{line}\n")
        except UnicodeEncodeError:
            encoding = stream.encoding
            plain = line.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
            _write(stream, f"{plain}\n")


def _write(stream: TextIO, text: str) -> None:
    """Write behind what the script has printed, and before what comes next on standard error.

    It goes past the buffer: what is stuck in that would end the program with code 120, and only what
    the script has printed itself may.
    """
    if type(stream) is not io.TextIOWrapper:  # the script has put something else in its place
        stream.write(text)
        stream.flush()
        return
    rest = text.encode(stream.encoding, stream.errors or "strict")
    stream.flush()
    raw: Any = getattr(stream.buffer, "raw", stream.buffer)  # with `python -u` there is no buffer
    while rest:
        written = raw.write(rest)
        if not written:  # it is full for now, and does not block
            stream.buffer.write(rest)
            return
        rest = rest[written:]


_story = _Story(time.monotonic)
os.register_at_fork(after_in_child=_story.forked)
