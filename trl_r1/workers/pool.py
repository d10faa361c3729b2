"""A pool of workers, each driven by a thread of its own, so that work goes on while the caller trains."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

from trl_r1.exceptions import ConfigurationError
from trl_r1.workers.entry import NOT_BEGUN, Failure
from trl_r1.workers.process import Limits, Lost, Worker, WorkerError

Result = TypeVar("Result")

# A chunk saves wake-ups, and keeps kin together, up to twice this; towards the end of a batch it shrinks to one item, so
# that no worker is left waiting.
MAX_CHUNK = 16
# But of items that take less than this together, one worker takes several, up to so many: what hands them over is the
# caller's interpreter, which is taken from the caller's own work.
CHUNK_SECONDS = 0.004
MAX_QUICK = 64


def usable_cores() -> int:
    """Return how many cores this process may run on: pinned, it has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Return this process's share of the cores it may use, by the number of ranks on this machine."""
    return max(1, usable_cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def picklable(function: Callable[..., Any]) -> bytes:
    """Pickle a function for workers.

    Raises:
        [`ConfigurationError`]: For a lambda, a local function, or anything that lives in `__main__`.
    """
    name = getattr(function, "__qualname__", None) or repr(function)
    advice = "Workers import what they run: define it at the top level of a module that can be imported by its name."
    try:
        data = pickle.dumps(function)
    except Exception as error:
        raise ConfigurationError(f"{name} cannot be sent to a worker process: {error}. {advice}") from error
    if b"__main__" in data:
        raise ConfigurationError(
            f"{name} is (or holds) something defined in __main__, the script that runs, which workers do not import. "
            f"{advice}"
        )
    return data


class Batch(Generic[Result]):
    """Items that were submitted together; made by [`WorkerPool.submit`]."""

    def __init__(
        self,
        function: bytes,
        items: list[bytes],
        limits: Limits,
        keys: Sequence[Hashable] | None = None,
        chunk_seconds: float = CHUNK_SECONDS,
    ) -> None:
        self.function = function
        self.limits = limits
        self.chunk_seconds = chunk_seconds
        self.key = hashlib.sha256(function).hexdigest()
        self.items = items
        self.pending: deque[int] = deque(range(len(items)))
        self._keys = range(len(items)) if keys is None else keys
        seconds = limits.batch_seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._results: list[Result | Failure | None] = [None] * len(items)
        self._open: set[int] = set(self.pending)
        self._error: Exception | None = None
        self._changed = threading.Condition()

    def done(self) -> bool:
        """Whether all results are there, without waiting for them."""
        return not self._open or self._error is not None

    def results(self) -> list[Result | Failure]:
        """Wait for the results, in the order of the items.

        Returns:
            `list`: What the function returned, or a [`Failure`].

        Raises:
            [`WorkerError`]: When no worker could start or load the function, or the pool was closed meanwhile.
        """
        with self._changed:
            left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)
            self._changed.wait_for(self.done, timeout=left)
            if self._error is not None:
                raise self._error
            self._drop("batch_deadline", "the batch ran out of time")
            return cast("list[Result | Failure]", list(self._results))

    def cancel(self) -> None:
        """Give up what is not computed yet; items in hand run to their end, unseen."""
        with self._changed:
            self._drop("batch_deadline", "cancelled")
            self._changed.notify_all()

    def _drop(self, kind: str, detail: str) -> None:
        for index in self._open:
            self._results[index] = Failure(kind, detail)
        self._open.clear()
        self.pending.clear()

    def take(self, workers: int, quick: int = 1) -> list[int]:
        """Remove and return the next items for one of so many workers; none when none are left.

        Args:
            workers (`int`): How many share the items.
            quick (`int`, defaults to 1): How many are worth one message.
        """
        size = max(min(len(self.pending) // (2 * workers), MAX_CHUNK), quick)
        taken: list[int] = []
        with suppress(IndexError):  # no more, or given up at this moment
            while True:
                kin = bool(taken) and self._keys[self.pending[0]] == self._keys[taken[-1]]
                if len(taken) >= (2 * size if kin else size):
                    break
                taken.append(self.pending.popleft())
        return taken

    def put(self, indices: Iterable[int], results: Iterable[Result | Failure]) -> None:
        """Note items' results, unless the batch was given up."""
        with self._changed:
            for index, result in zip(indices, results, strict=True):
                if index in self._open:
                    self._open.remove(index)
                    self._results[index] = result
            if not self._open:
                self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """Make [`results`] raise."""
        with self._changed:
            self._error = error
            self.pending.clear()
            self._changed.notify_all()


class WorkerPool:
    """Worker processes that stay, each item under a deadline. They start at the first use, or by [`start`].

    Args:
        workers (`int`, *optional*): Number of processes; this rank's share of the cores when not given.
        limits ([`Limits`], *optional*): Deadlines and memory.
        initializer (`Callable[[], object]`, *optional*):
            Run once in every new worker, outside of any deadline: imports and caches that items should not pay for.

    Example:

    ```python
    >>> from math import factorial
    >>> from trl_r1.workers import WorkerPool
    >>> with WorkerPool(2) as pool:
    ...     pool.map(factorial, [3, 4])
    [6, 24]
    ```
    """

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        initializer: Callable[[], object] | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise ConfigurationError(f"workers={workers} must be at least 1; leave it out for one per core.")
        self.workers = workers or default_workers()
        self.limits = limits or Limits()
        self.initializer = initializer
        self._initializer = picklable(initializer) if initializer else b""
        self._team: _Team | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_team": None}  # a copy in another process starts workers of its own

    @property
    def replaced(self) -> int:
        """How many workers were killed or died since the start."""
        return self._team.replaced if self._team else 0

    def start(self, wait: bool = True) -> WorkerPool:
        """Start the workers, and wait until each can take work.

        Raises:
            [`WorkerError`]: When they do not start.
        """
        if self._team is None:
            self._team = _Team(self.workers, self.limits, self._initializer)
            # Not a method of this pool, which the threads must not keep alive; also run when the interpreter exits.
            weakref.finalize(self, _close_own, self._team, os.getpid())
        if wait:
            self._team.wait_until_ready()
        return self

    def submit(
        self,
        function: Callable[[Any], Result],
        items: Iterable[Any],
        keys: Sequence[Hashable] | None = None,
        limits: Limits | None = None,
        chunk_seconds: float = CHUNK_SECONDS,
    ) -> Batch[Result]:
        """Hand over items and return at once.

        Args:
            function (`Callable`): Of one item; at the top level of a module, since workers import it by name.
            items (`Iterable`): Anything that pickles; snapshots are taken now.
            keys (`list`, *optional*):
                One for each item. Neighbours with equal keys go to one worker where that leaves none idle, for what
                they share may be in its caches.
            limits ([`Limits`], *optional*):
                Deadlines of these items instead of the pool's. A worker's memory is bounded when it starts, by the pool's.
            chunk_seconds (`float`, defaults to 0.004):
                How long the items that one worker is handed at once may take. More costs the caller's interpreter less
                and has the last results come later.

        Raises:
            [`ConfigurationError`]: When the function cannot be imported by its name, or an item not be pickled.
        """
        data = picklable(function)
        pickled: list[bytes] = []
        for index, item in enumerate(items):
            try:
                pickled.append(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))
            except Exception as error:
                raise ConfigurationError(
                    f"Item {index} of type {type(item).__name__} cannot be sent to a worker process: {error}. Pass "
                    "plain data."
                ) from error
        batch: Batch[Result] = Batch(data, pickled, limits or self.limits, keys, chunk_seconds)
        self.start(wait=False)
        assert self._team is not None
        self._team.enqueue(batch)
        return batch

    def map(
        self, function: Callable[[Any], Result], items: Iterable[Any], limits: Limits | None = None
    ) -> list[Result | Failure]:
        """Run a function on items and wait; see [`submit`]."""
        return self.submit(function, items, limits=limits).results()

    def close(self) -> None:
        """End the workers. A pool that is used again starts new ones."""
        if self._team is not None:
            self._team.close()
            self._team = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close_own(team: _Team, owner: int) -> None:
    if os.getpid() == owner:  # a fork of it has none of the threads, and the workers are not its own
        team.close()


class _Team:
    """The workers of a pool, each with its thread, and the batches that they share."""

    def __init__(self, workers: int, limits: Limits, initializer: bytes) -> None:
        self.replaced = 0
        self._closed = False
        self._ready = 0
        self._error: WorkerError | None = None
        self._batches: deque[Batch[Any]] = deque()
        lock = threading.RLock()
        self._changed, self._to_do = threading.Condition(lock), threading.Condition(lock)
        self._seconds_each: dict[str, float] = {}  # of a function's items, as they were lately
        self._size = workers
        self._workers = [Worker(limits, initializer) for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), name=f"trl_r1-worker-{i}", daemon=True)
            for i, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def enqueue(self, batch: Batch[Any]) -> None:
        with self._changed:
            if self._error is not None:
                batch.fail(self._error)
            self._batches.append(batch)
            self._wake(batch, len(batch.items))

    def wait_until_ready(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ready >= self._size or self._error is not None)
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        with self._changed:
            self._closed = True
            left, self._batches = self._batches, deque()
            self._changed.notify_all()
            self._to_do.notify_all()
        for batch in left:
            batch.fail(WorkerError("The pool was closed before this batch was done."))
        for worker in self._workers:
            worker.kill()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def _run(self, worker: Worker) -> None:
        """Drive one worker until the pool closes."""
        try:
            worker.ensure_started()
            with self._changed:
                self._ready += 1
                self._changed.notify_all()
            while (taken := self._take()) is not None:
                worker.ensure_started()  # it may have died while it had nothing to do
                self._work(worker, *taken)
                if not self._closed:
                    worker.ensure_started()  # a replacement gets ready before it is needed
        except Exception as error:  # whatever it is, a thread that just ends would leave the caller waiting
            self._give_up(error)
        finally:
            worker.end()

    def _give_up(self, error: Exception) -> None:
        """A worker that does not even start would not the next time either: say so to whoever waits."""
        with self._changed:
            if self._closed:
                return
            self._error = WorkerError(f"A worker process did not start: {error}. Its own message is on stderr.")
            for batch in self._batches:
                batch.fail(self._error)
            self._batches.clear()
            self._changed.notify_all()

    def _take(self) -> tuple[Batch[Any], list[int]] | None:
        """Wait for work; return a batch and the next of its items, `None` once the pool is closed."""
        with self._changed:
            while not self._closed:
                while self._batches and self._batches[0].done():
                    self._batches.popleft()
                for batch in self._batches:
                    if taken := batch.take(self._size, self._quick(batch)):
                        return batch, taken
                self._to_do.wait()
        return None

    def _wake(self, batch: Batch[Any], items: int) -> None:
        """Wake as many of those who wait as have something to do; the others would only take the interpreter."""
        self._to_do.notify(-(-items // self._quick(batch)))

    def _quick(self, batch: Batch[Any]) -> int:
        """How many of a batch's items are worth one message; 1 until some have been seen."""
        seconds = self._seconds_each.get(batch.key, batch.chunk_seconds)
        return min(max(int(batch.chunk_seconds / max(seconds, 1e-9)), 1), MAX_QUICK)

    def _work(self, worker: Worker, batch: Batch[Any], indices: list[int]) -> None:
        todo = deque(indices)
        try:
            worker.load(batch.key, batch.function)
            worker.run(batch.key, [batch.items[index] for index in indices])
            while todo:
                results, seconds = worker.results(batch.limits)
                batch.put([todo.popleft() for _ in results], results)
                self._note_seconds(batch.key, seconds / len(results))
        except WorkerError as error:
            batch.fail(error)
        except Lost as lost:
            begun = worker.begun()
            worker.end()
            if self._closed:
                return
            if begun == NOT_BEGUN and not worker.lost_idle:
                # It died while it had nothing to do: no item is to blame, unless it happens again.
                worker.lost_idle += 1
            else:
                # What it was at is what it was lost over; what it had done of the chunk and not sent yet is done again.
                culprit = todo[max(begun - (len(indices) - len(todo)), 0)]
                batch.put([culprit], [Failure(lost.kind, str(lost))])
                todo.remove(culprit)
            with self._changed:
                self.replaced += 1
                batch.pending.extendleft(reversed(todo))
                self._wake(batch, len(todo))

    def _note_seconds(self, key: str, seconds: float) -> None:
        known = self._seconds_each.get(key, seconds)
        self._seconds_each[key] = 0.8 * known + 0.2 * seconds
