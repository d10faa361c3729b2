import ctypes
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from math import factorial
from pathlib import Path

import pytest

from trl_r1.exceptions import ConfigurationError
from trl_r1.workers import Batch, Failure, Limits, WorkerError, WorkerPool, default_workers
from trl_r1.workers.pool import MAX_QUICK
from trl_r1.workers.process import Worker


# What workers run. Each ends its own way on a negative number, and returns it otherwise.
def spin(x):
    while x < 0:
        pass
    return x


def huge_power(x):
    if x < 0:
        9 ** (9**9)  # one call into C, which holds the interpreter and heeds no signal
    return x


def hang(x):
    if x < 0:
        time.sleep(60)
    return x


def leave(x):
    if x < 0:
        os._exit(3)
    return x


def leave_politely(x):
    if x < 0:
        sys.exit("no")
    return x


def segfault(x):
    if x < 0:
        ctypes.string_at(0)
    return x


def be_killed(x):
    if x < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def allocate(x):
    return len(bytearray(8 * 2**30)) if x < 0 else x


def recurse(x):
    return recurse(x - 1) if x < 0 else x


def raise_error(x):
    if x < 0:
        raise KeyError(f"no {x}")
    return x


def unpicklable(x):
    return (lambda: x) if x < 0 else x


def nap(seconds):
    time.sleep(seconds)
    return os.getpid()


def spin_with_child(path):
    child = subprocess.Popen(["sleep", "60"])
    Path(path).write_text(str(child.pid))
    spin(-1)


def loaded_modules(_):
    return [name for name in ("torch", "transformers", "trl", "datasets", "numpy") if name in sys.modules]


def fail_to_start():
    raise OSError("no such licence")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid, seconds=5.0):
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2, Limits(item_seconds=0.3, item_wall_seconds=4, memory_gib=1.0)) as pool:
        yield pool.start()


def test_results_in_order(pool):
    numbers = list(range(-300, 300))
    assert pool.map(abs, numbers) == [abs(x) for x in numbers]
    assert pool.map(abs, []) == []


def test_workers_import_no_torch(pool):
    assert pool.map(loaded_modules, range(4)) == [[]] * 4


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (spin, "deadline"),
        (huge_power, "deadline"),
        (hang, "deadline"),
        (leave, "crash"),
        (leave_politely, "crash"),
        (segfault, "crash"),
        (be_killed, "crash"),
        (allocate, "resources"),
        (recurse, "resources"),
        (raise_error, "error"),
        (unpicklable, "error"),
    ],
)
def test_a_bad_item_fails_alone(pool, function, kind):
    """Trap 7."""
    before = pool.replaced
    numbers = [*range(20), -1, *range(20)]
    results = pool.map(function, numbers)
    failure = results.pop(20)
    assert isinstance(failure, Failure)
    assert failure.kind == kind, failure
    assert results == [*range(20), *range(20)]
    assert pool.replaced - before == (kind in ("deadline", "crash"))


def test_details_say_what_happened(pool):
    results = pool.map(raise_error, [-1]) + pool.map(leave, [-1]) + pool.map(segfault, [-1])
    assert "KeyError: 'no -1'" in results[0].detail
    assert "exit status 3" in results[1].detail
    assert "SIGSEGV" in results[2].detail


def test_many_bad_items_use_up_no_worker(pool):
    results = pool.map(leave, [-1, 1] * 5)
    assert results[1::2] == [1] * 5
    assert [result.kind for result in results[::2]] == ["crash"] * 5


def test_waiting_is_not_computing(pool):
    assert not isinstance(pool.map(nap, [0.7])[0], Failure)  # more than `item_seconds`, of which none on the CPU


def test_the_caller_goes_on_meanwhile(pool):
    batch = pool.submit(nap, [0.4, 0.4])
    assert not batch.done()
    pids = batch.results()
    assert batch.done()
    assert len(set(pids)) == 2  # one each, at the same time
    assert batch.results() == pids


@pytest.mark.parametrize(
    ("keys", "sizes"),
    [(None, [16, 12, 6, 3, 1, 1, 1]), ([i // 10 for i in range(40)], [20, 10, 10]), ([0] * 40, [32, 8])],
)
def test_chunks_keep_kin_together_and_shrink(keys, sizes):
    batch = Batch(b"", [b""] * 40, Limits(), keys)
    chunks = list(iter(lambda: batch.take(1), []))
    assert [len(chunk) for chunk in chunks] == sizes
    assert [index for chunk in chunks for index in chunk] == list(range(40))


def test_quick_items_go_together_and_slow_ones_by_themselves():
    batch = Batch(b"", [b""] * 40, Limits())
    assert [len(chunk) for chunk in iter(lambda: batch.take(16, quick=8), [])] == [8] * 5
    worker = Worker(Limits(), b"")
    try:
        worker.ensure_started()
        messages = {}
        for function, items in ((abs, [-1] * 16), (time.sleep, [0.1] * 3)):
            worker.load(function.__name__, pickle.dumps(function))
            worker.run(function.__name__, [pickle.dumps(item) for item in items])
            found = []
            while sum(len(results) for results, _ in found) < len(items):
                found.append(worker.results(Limits()))
            messages[function] = found
    finally:
        worker.end()
    (results, seconds), *more = messages[abs]
    assert results[0] == 1
    assert len(more) <= 4  # one message; a busy machine may break it up
    assert seconds < 0.2
    assert [len(results) for results, _ in messages[time.sleep]] == [1, 1, 1]
    assert sum(seconds for _, seconds in messages[time.sleep]) >= 0.3


def test_results_do_not_wait_for_a_slow_item():
    with WorkerPool(1) as pool:
        pool.map(nap, [0.0] * 400)
        batch = pool.submit(nap, [0.0, 0.0, 0.0, 30], chunk_seconds=1.0)
        deadline = time.monotonic() + 20
        while len(batch._open) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        batch.cancel()
        results = batch.results()
    assert [type(result) for result in results] == [int, int, int, Failure]


def test_only_as_many_workers_wake_as_have_something_to_do():
    with WorkerPool(4) as pool:
        pool.start()
        pool.map(abs, range(400))  # now it is known how quick these are
        assert pool._team._quick(pool.submit(abs, [1])) == MAX_QUICK
        pool.map(time.sleep, [0.05] * 8)
        assert pool._team._quick(pool.submit(time.sleep, [0.0])) == 1


@pytest.mark.parametrize("place", [0, 1, 7, 15])
def test_what_was_done_and_not_sent_is_done_again(place):
    """The item that kills its worker is named, whatever went before it within the same message."""
    with WorkerPool(1) as pool:
        pool.map(be_killed, range(400))
        numbers = list(range(16))
        numbers[place] = -1
        results = pool.map(be_killed, numbers)
        assert pool.replaced == 1
    assert results.pop(place) == Failure("crash", "the worker process died (SIGKILL)")
    numbers.pop(place)
    assert results == numbers


def test_batches_do_not_mix(pool):
    first, second = pool.submit(abs, range(-50, 0)), pool.submit(factorial, range(10))
    assert second.results() == [factorial(x) for x in range(10)]
    assert first.results() == list(range(50, 0, -1))


def test_a_worker_that_dies_while_idle_costs_no_item(pool):
    for pid in set(pool.map(nap, [0.1] * 4)):
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
    assert pool.map(abs, range(-10, 0)) == list(range(10, 0, -1))


@pytest.mark.parametrize(("at", "times"), [("load", 1), ("run", 1), ("run", 99)])
def test_a_worker_that_dies_as_it_is_handed_work_costs_no_item(monkeypatch, at, times):
    """The kernel may take it after we looked whether it lives; one that always dies then must not be tried for ever."""
    hand_over, deaths = getattr(Worker, at), []

    def dying(self, *arguments):
        deaths.append(self.process.pid)
        if len(deaths) <= times:
            os.kill(self.process.pid, signal.SIGKILL)
            assert gone(self.process.pid)
        return hand_over(self, *arguments)

    with WorkerPool(1) as pool:
        pool.start()
        monkeypatch.setattr(Worker, at, dying)
        found = pool.map(abs, [-1, -2, -3])
    if times == 1:
        assert found == [1, 2, 3]
    else:
        assert [one.kind for one in found] == ["crash"] * 3
        assert len(deaths) == 4


def test_children_of_a_stuck_worker_are_killed(pool, tmp_path):
    path = tmp_path / "pid"
    assert pool.map(spin_with_child, [str(path)])[0].kind == "deadline"
    assert gone(int(path.read_text()))


def test_batch_deadline():
    with WorkerPool(1, Limits(batch_seconds=0.8)) as pool:
        while isinstance(pool.map(nap, [0])[0], Failure):  # until the worker has imported this module
            pass
        start = time.monotonic()
        results = pool.map(nap, [0.1, 30, 0.1])
        assert time.monotonic() - start < 10
        assert isinstance(results[0], int)
        assert [result.kind for result in results[1:]] == ["batch_deadline"] * 2


def test_a_batch_may_have_deadlines_of_its_own():
    with WorkerPool(1, Limits(item_seconds=60, item_wall_seconds=0.5)) as pool:
        (found,) = pool.map(nap, [1.0], Limits(item_wall_seconds=30))
        assert isinstance(found, int)
        assert pool.map(nap, [30])[0].kind == "deadline"
        assert pool.map(spin, [-1], Limits(item_seconds=0.2))[0].kind == "deadline"
        assert pool.map(nap, [30], Limits(batch_seconds=0.3))[0].kind == "batch_deadline"


def test_cancelled_and_closed():
    pool = WorkerPool(1)
    batch = pool.submit(nap, [0.2, 30])
    batch.cancel()
    assert {result.kind for result in batch.results()} == {"batch_deadline"}
    batch = pool.submit(nap, [30])
    pool.close()
    with pytest.raises(WorkerError, match="closed"):
        batch.results()
    with pool:
        assert pool.map(abs, [-1]) == [1]  # starts anew
        assert pickle.loads(pickle.dumps(pool)).replaced == 0


def test_only_what_can_be_imported_is_sent(pool):
    def local(x):
        return x

    for function in (lambda x: x, local):
        with pytest.raises(ConfigurationError, match="top level of a module"):
            pool.submit(function, [1])
    with pytest.raises(ConfigurationError, match="Item 1 of type function"):
        pool.submit(abs, [1, lambda: 1])


def test_workers_that_cannot_start_say_so():
    with WorkerPool(1, initializer=fail_to_start) as pool:
        with pytest.raises(WorkerError, match="no such licence"):
            pool.start()
        with pytest.raises(WorkerError, match="no such licence"):
            pool.map(abs, [1])


def test_bad_settings(monkeypatch):
    with pytest.raises(ConfigurationError, match="workers=0"):
        WorkerPool(0)
    with pytest.raises(ConfigurationError, match="item_seconds=-1"):
        Limits(item_seconds=-1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    assert default_workers() == 1


SCRIPT = """
import sys, time
from trl_r1.workers import WorkerPool
from test_workers import nap, spin
print("imported", flush=True)
def of_main(x):
    return x
pool = WorkerPool(1)
try:
    pool.submit(of_main, [1])
except ValueError as error:
    print(error)
print(pool.map(nap, [0.1])[0], flush=True)
if sys.argv[1] == "stuck":
    pool.submit(spin, [-1])
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["leaves", "stuck"])
def test_no_worker_outlives_its_parent_nor_imports_its_script(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen([sys.executable, script, how], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        lines = [parent.stdout.readline() for _ in range(3)]
        assert lines[0] == "imported\n"
        assert "__main__" in lines[1]
        pid = int(lines[2])
        if how == "stuck":
            time.sleep(0.2)
            assert alive(pid)
            parent.kill()
        assert parent.stdout.read() == ""
        assert gone(pid)
    assert parent.returncode == (0 if how == "leaves" else -signal.SIGKILL)


def test_a_fork_that_ends_leaves_the_workers_alone():
    with WorkerPool(1) as pool:
        pool.start()
        child = os.fork()
        if child == 0:
            try:
                weakref.finalize._exitfunc()  # what atexit runs
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        time.sleep(0.2)
        assert pool._team._workers[0].process.poll() is None
        assert pool.map(factorial, [4]) == [24]
