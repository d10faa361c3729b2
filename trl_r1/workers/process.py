"""One worker process, seen from the parent: started, fed, watched by its clocks, killed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from trl_r1.exceptions import ConfigurationError, TrlR1Error
from trl_r1.workers.entry import NOT_BEGUN, Failure, note_place, read_place, receive, send

# Seconds a worker may take to start, to import a function and to take a chunk; a cold disk is slow, a hang is not.
START_SECONDS = 120.0
_TICK = 0.05  # seconds between two looks at a silent worker
_ENTRY = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from trl_r1.workers.entry import serve; serve(*map(int, sys.argv[2:]))"
)


class WorkerError(TrlR1Error, RuntimeError):
    """Workers cannot start, cannot load what they are to run, or what they ran raised an exception."""


@dataclass(frozen=True)
class Limits:
    """What one item and one batch may use.

    Args:
        item_seconds (`float`, defaults to 3.0):
            CPU seconds of one item. Not wall time, so that a busy machine fails no item (where the system does not
            tell another process's CPU time, i.e. off Linux, wall seconds).
        item_wall_seconds (`float`, defaults to 120.0):
            Wall seconds of one item, for one that waits for ever. The tests of a program may take a minute.
        batch_seconds (`float`, *optional*): Wall seconds of one batch, from its submission; `None` for no limit.
        memory_gib (`float`, *optional*, defaults to 4.0): Address space of one worker; `None` for no limit.
    """

    item_seconds: float = 3.0
    item_wall_seconds: float = 120.0
    batch_seconds: float | None = None
    memory_gib: float | None = 4.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name}={value!r} must be positive. Raise it, or pass None where allowed.")


class Lost(Exception):
    """A worker that can no longer be used, and why."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass
class Worker:
    """One process and the socket to it. Used by one thread; only [`kill`] may be called from another."""

    limits: Limits
    initializer: bytes
    process: subprocess.Popen[bytes] | None = None
    connection: socket.socket | None = None
    place: IO[bytes] | None = None
    loaded: set[str] = field(default_factory=set)
    lost_idle: int = 0  # times in a row that it was lost with a chunk of which it had begun nothing

    def ensure_started(self) -> None:
        """Start the process if there is none (any more), and wait until its initializer is through."""
        if self.process is not None and self.process.poll() is None:
            return
        self.end()
        ours, theirs = socket.socketpair()
        paths = json.dumps([path or os.getcwd() for path in sys.path])
        # Workers must not take GPU memory, and a library's thread pool in each would be cores times cores.
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": ""}
        self.place = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        note_place(self.place.fileno(), NOT_BEGUN)
        descriptors = (theirs.fileno(), self.place.fileno())
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _ENTRY, paths, *map(str, descriptors), str(os.getpid())],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is the parent's business; a group of its own can be killed as a tree
            )
        self.connection, self.loaded = ours, set()
        self.post((self.limits.memory_gib, self.initializer))
        answer = self._answer(START_SECONDS, START_SECONDS)
        if answer is not None:
            raise Lost("crash", answer.detail)

    def load(self, key: str, function: bytes) -> None:
        """Have the function imported, once, before any item's clock runs."""
        if key in self.loaded:
            return
        try:
            answer = self._asked_to_load(key, function)
        except Lost:  # perhaps while it had nothing to do, which is nobody's fault; twice is the function's
            self.end()
            try:
                self.ensure_started()
                answer = self._asked_to_load(key, function)
            except Lost as lost:
                self.end()
                answer = Failure(lost.kind, str(lost))
        if answer is not None:
            raise WorkerError(f"A worker process cannot import what it is to run: {answer.detail}")
        self.loaded.add(key)

    def _asked_to_load(self, key: str, function: bytes) -> Failure | None:
        self.post(("load", key, function))
        answer: Failure | None = self._answer(START_SECONDS, START_SECONDS)
        return answer

    def post(self, message: Any) -> None:
        """Send a message, to a worker that waits for one."""
        assert self.connection is not None
        try:
            self.connection.settimeout(START_SECONDS)
            send(self.connection, message)
        except OSError as error:
            raise Lost("crash", self._epitaph()) from error

    def run(self, key: str, items: list[bytes]) -> None:
        """Hand over a chunk of items for a loaded function; [`results`] has what becomes of them."""
        assert self.place is not None
        note_place(self.place.fileno(), NOT_BEGUN)
        self.post(("items", key, items))

    def results(self, limits: Limits) -> tuple[list[Any], float]:
        """Wait for the results or [`Failure`]s of the next items; raise [`Lost`] when their worker is stuck or dead.

        Returns:
            `tuple[list, float]`: One or more, in order, and the seconds that the worker took over them.
        """
        answers, seconds = self._answer(limits.item_seconds, limits.item_wall_seconds)
        self.lost_idle = 0
        return [_read_result(answer) for answer in answers], seconds

    def begun(self) -> int:
        """Which item of the chunk was begun last, or `NOT_BEGUN`."""
        assert self.place is not None
        return read_place(self.place.fileno())

    def _answer(self, cpu_seconds: float, wall_seconds: float) -> Any:
        """Wait for the next answer, looking at the worker's clocks while it is silent."""
        assert self.connection is not None
        assert self.process is not None
        start, cpu_start = time.monotonic(), None
        try:
            while not self._readable():
                wall, cpu = time.monotonic() - start, _cpu_seconds(self.process.pid)
                cpu = wall if cpu is None else cpu
                # Short items never come here, so that they cost no look at the clock; the first tick is not counted.
                cpu_start = cpu if cpu_start is None else cpu_start
                if cpu - cpu_start > cpu_seconds:
                    raise Lost("deadline", f"more than {cpu_seconds:g} s of CPU time")
                if wall > wall_seconds:
                    raise Lost("deadline", f"more than {wall_seconds:g} s")
            self.connection.settimeout(START_SECONDS)
            return receive(self.connection)
        except (OSError, EOFError) as error:
            raise Lost("crash", self._epitaph()) from error

    def _readable(self) -> bool:
        """Wait a tick for the beginning of an answer (or the end of the connection)."""
        assert self.connection is not None
        try:
            self.connection.settimeout(_TICK)
            self.connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return False
        return True

    def _epitaph(self) -> str:
        assert self.process is not None
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(timeout=1.0)
            name = signal.Signals(-code).name if -code in list(signal.Signals) else f"exit status {code}"
            return f"the worker process died ({name})"
        return "the connection to the worker process broke"

    def kill(self) -> None:
        """Kill the process with its children: it holds nothing that it would have to save."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the process, if there is one, and forget it."""
        self.kill()
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5.0)
        if self.connection is not None:
            self.connection.close()
        if self.place is not None:
            self.place.close()
        self.process = self.connection = self.place = None


def _read_result(answer: bytes | Failure) -> Any:
    if isinstance(answer, Failure):
        return answer
    try:
        return pickle.loads(answer)
    except Exception as error:
        return Failure("error", f"the result cannot be read: {error!r}")


def _cpu_seconds(pid: int) -> float | None:
    """CPU seconds of another process, `None` where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None
