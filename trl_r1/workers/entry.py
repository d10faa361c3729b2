"""What runs inside a worker process, and the messages of both sides. Imports nothing that takes time."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_HEADER = struct.Struct(">Q")
_PR_SET_PDEATHSIG = 1
# Each message takes the parent's interpreter away from whatever else runs there: results of this long go together.
_TOGETHER_SECONDS = 0.02
_PLACE = struct.Struct("<i")
NOT_BEGUN = -1  # the place of a chunk of which no item was begun


@dataclass(frozen=True)
class Failure:
    """What an item has instead of a result.

    Args:
        kind (`str`):
            `"deadline"` (the worker was killed over it), `"crash"` (the worker died over it), `"resources"` (out of
            memory or of stack), `"error"` (the function raised) or `"batch_deadline"` (not its own fault: the batch
            ran out of time).
        detail (`str`): One line, or the traceback of an `"error"`.
    """

    kind: str
    detail: str = ""


def send(connection: socket.socket, message: Any) -> None:
    """Send one message; the other side's [`receive`] returns it."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    connection.sendall(_HEADER.pack(len(data)) + data)


def receive(connection: socket.socket) -> Any:
    """Wait for one message.

    Raises:
        `EOFError`: When the other side is gone.
    """
    (size,) = _HEADER.unpack(_read(connection, _HEADER.size))
    return pickle.loads(_read(connection, size))


def _read(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, position = memoryview(data), 0
    while position < size:
        count = connection.recv_into(view[position:])
        if count == 0:
            raise EOFError
        position += count
    return data


def note_place(descriptor: int, place: int) -> None:
    """Note in a file which item of a chunk is begun: it can be read when the worker cannot be asked any more."""
    os.pwrite(descriptor, _PLACE.pack(place), 0)


def read_place(descriptor: int) -> int:
    """Return what [`note_place`] wrote."""
    return int(_PLACE.unpack(os.pread(descriptor, _PLACE.size, 0))[0])


def serve(descriptor: int, place: int, parent: int) -> None:
    """A worker's life: set up, then load functions and run them on items until the parent closes the socket."""
    _die_with(parent)
    connection = socket.socket(fileno=descriptor)
    functions: dict[str, Callable[[Any], Any]] = {}
    memory_gib, initializer = receive(connection)
    send(connection, _attempt(lambda: _set_up(memory_gib, initializer)))
    outbox = _Outbox(connection)
    while True:
        try:
            kind, key, content = receive(connection)
        except (EOFError, ConnectionError):
            os._exit(0)
        if kind == "load":
            send(connection, _attempt(lambda: functions.update({key: pickle.loads(content)})))  # noqa: B023
            continue
        outbox.begin()
        for index, item in enumerate(content):
            note_place(place, index)
            # Pickled inside, so that a result that cannot be is the item's failure too.
            outbox.add(_attempt(lambda: pickle.dumps(functions[key](pickle.loads(item)))))  # noqa: B023
        outbox.flush()


class _Outbox:
    """Results on their way to the parent: those of quick items together, none much later than it is known.

    A call into C that keeps the interpreter keeps them too, until it ends or the parent ends it: then they are lost with
    the worker, and computed once more by the next.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._results: list[Any] = []
        self._since = time.monotonic()
        self._lock = threading.Lock()
        self._waiting = threading.Event()
        threading.Thread(target=self._post, name="trl_r1-outbox", daemon=True).start()

    def begin(self) -> None:
        """Start the clock of the next results."""
        self._since = time.monotonic()

    def add(self, result: Any) -> None:
        """Add an item's result."""
        with self._lock:
            self._results.append(result)
            self._waiting.set()

    def flush(self) -> None:
        """Send what is there, with the seconds that it took."""
        with self._lock:
            self._waiting.clear()
            if self._results:
                results, self._results = self._results, []
                now = time.monotonic()
                spent, self._since = now - self._since, now
                send(self._connection, (results, spent))

    def _post(self) -> None:
        """Send what would otherwise wait for a slow item."""
        while self._waiting.wait():
            time.sleep(_TOGETHER_SECONDS)
            self.flush()


def _attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (MemoryError, RecursionError) as error:
        return Failure("resources", f"{type(error).__name__}: {error}"[:1000])
    except Exception:
        return Failure("error", traceback.format_exc())


def _set_up(memory_gib: float | None, initializer: bytes) -> None:
    if memory_gib is not None and sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        size = int(memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size if hard < 0 else min(size, hard), hard))
    if initializer:
        pickle.loads(initializer)()


def _die_with(parent: int) -> None:
    """Leave no worker behind in an endless loop when the parent is killed outright."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
