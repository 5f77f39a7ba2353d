"""The keeper: starts a script, adopts and reaps what it leaves, signals and kills on command.

A keeper whose script left nothing is as good as new and takes the next one; that is what keeps the
cost of a start low. After a kill it is let go.

Messages from the runner, each a tuple::

    ("start", argv, env, cwd, networked, hosts)
                                with the descriptors for stdin, stdout and stderr, and where networked
                                is true that of a network; hosts: a file for /etc/hosts, or None
    ("signal", number)          to everything contained
    ("signal-alone", number)    to the script, which sees to what it started
    ("list",)                   what lives now?
    ("kill",)                   SIGKILL to everything contained, until nothing is left

and to the runner::

    ("ready",)                                  once, when its containment is set up
    ("started", pid, at)                        pid as the keeper sees it; `at` on the monotonic clock
    ("not-started", errno, what)                what: "network", "hosts", "cwd", "interpreter"
                                                or "containment: ..."
    ("exited", status, at, cpu, max_rss, left)  the script; status as of waitpid; left: does anything live on
    ("empty",)                                  later: nothing lives on any more
    ("listed", pids)                            answer to "list", pids as the keeper sees them
    ("killed", left)                            answer to "kill"

The end of the stream from the runner means: kill everything and go.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
from typing import NoReturn

from e2e_runner.supervise.containment import Containment
from e2e_runner.supervise.netns import Place
from e2e_runner.supervise.sigchld import ChildEnded
from e2e_runner.supervise.wire import Message, Reader, send

_KILL_PATIENCE = 10.0  # seconds; only a process stuck in the kernel outlives it
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage(2) counts bytes there, KiB on Linux
# A script may try to end "its parent": that is this process, and it must stay.
_IGNORED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_DEFAULTED = [s for s in signal.valid_signals() if s not in (signal.SIGKILL, signal.SIGSTOP)]


class Keeper:
    """One keeper's state and loop; `run` returns when the runner has gone or let go."""

    def __init__(self, control: socket.socket, containment: Containment, *, joined: bool) -> None:
        self._control = control
        self._containment = containment
        self._place = Place(joined=joined)
        self._reader = Reader()
        self._script = 0
        self._lingering = False  # the script has ended, and something that it started lives on
        self._has_children = False
        self._child_ended = ChildEnded()
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)

    def run(self) -> None:
        """Serve the runner until it lets go; then see to it that nothing is left."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._child_ended, select.POLLIN)
        try:
            while not self._reader.ended:
                # While something lives on that is no child of ours (it cannot wake us), look again.
                every = 20 if self._lingering else self._containment.observe_every
                ready = {fd for fd, _ in poll.poll(every)}
                if self._child_ended.fd in ready or self._lingering:
                    self._child_ended.clear()
                    self._reap()
                if not ready:
                    self._containment.observe()
                if self._control.fileno() in ready:
                    self._reader.fill(self._control)
                    for message in self._reader.messages():
                        self._obey(message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the runner is gone: what follows is all that is left to do
        self._kill()
        self._containment.close()

    def _obey(self, message: Message) -> None:
        match message:
            case ("start", list(argv), dict(env), bytes(cwd), bool(networked), hosts):
                self._start(argv, env, cwd, networked=networked, hosts=hosts)
            case ("signal", int(number)):
                self._containment.signal_all(number)
                # A stopped process handles nothing until it continues.
                self._containment.signal_all(signal.SIGCONT)
            case ("signal-alone", int(number)):
                if self._script:  # not reaped, so the number is still its own
                    with contextlib.suppress(PermissionError):  # it has become another user
                        os.kill(self._script, number)
            case ("list",):
                self._say("listed", self._containment.listed())
            case ("kill",):
                self._say("killed", self._kill())
            case _:
                raise AssertionError(message)

    def _start(
        self,
        argv: list[bytes],
        env: dict[bytes, bytes],
        cwd: bytes,
        *,
        networked: bool,
        hosts: bytes | None,
    ) -> None:
        fds = self._reader.take_fds(4 if networked else 3)
        what = "network"
        try:
            if networked:
                self._place.enter(fds[3])
            what = "hosts"
            if hosts is not None:
                self._place.replace_hosts(hosts)
            what = "cwd"
            os.chdir(cwd)
            what = "interpreter"
            at = time.monotonic()
            self._script = os.posix_spawnp(
                argv[0],
                argv,
                env,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(fds[:3])
                ],
                setsid=True,  # a session of its own: no terminal, no Ctrl-C meant for the runner
                setsigmask=[],  # as from a shell, whatever the runner itself blocks or ignores
                setsigdef=_DEFAULTED,
            )
        except OSError as error:
            self._say("not-started", error.errno or 0, what)
            return
        finally:
            for fd in fds:
                os.close(fd)
            self._place.leave()
            with contextlib.suppress(OSError):
                os.chdir("/")  # a keeper must not hold a folder that the script wants to remove
        self._has_children = True
        self._say("started", self._script, at)
        self._containment.started(self._script, env)

    def _reap(self) -> None:
        """Reap every child that has ended, so that nobody who waits for an orphan waits for ever."""
        ended: tuple[int, float, float, int] | None = None
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self._has_children = False
                break
            if pid == 0:
                self._has_children = True
                break
            if pid == self._script:
                ended = (
                    status,
                    time.monotonic(),
                    usage.ru_utime + usage.ru_stime,
                    usage.ru_maxrss * _RSS_UNIT,
                )
        if ended is not None:
            self._script = 0
            self._lingering = self._containment.any_left(has_children=self._has_children)
            self._say("exited", *ended, self._lingering)
        elif self._lingering:
            self._lingering = self._containment.any_left(has_children=self._has_children)
            if not self._lingering:
                self._say("empty")

    def _kill(self) -> bool:
        """Kill and reap until nothing is left; True when something withstood it."""
        deadline = time.monotonic() + _KILL_PATIENCE
        pause = 0.001
        self._containment.step_aside()
        self._reap_quietly()
        while self._containment.any_left(has_children=self._has_children):
            if time.monotonic() > deadline:
                return True
            self._containment.kill_all()
            select.select([self._child_ended], [], [], pause)
            pause = min(pause * 2, 0.05)
            self._reap_quietly()
        return False

    def _reap_quietly(self) -> None:
        self._child_ended.clear()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._reap()

    def _say(self, *message: object) -> None:
        send(self._control, message)


def keep(control: socket.socket, containment: Containment, *, joined: bool) -> NoReturn:
    """Be a keeper, in a freshly forked process, and end it.

    `joined` says whether the containment takes it into the user namespace of the run.
    """
    code = 70
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            try:
                containment.enter()
            except OSError as error:
                what = f"containment: {error.filename}: {error.strerror}"
                send(control, ("not-started", error.errno or 0, what))
            else:
                send(control, ("ready",))
                Keeper(control, containment, joined=joined).run()
                code = 0
    except BaseException:  # noqa: BLE001 - the end of the process, which says why
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)
