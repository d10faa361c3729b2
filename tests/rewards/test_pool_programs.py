"""Programs and reasoning-gym's scorers inside the reward pool's workers: the same sandbox, the same verdicts."""

import json
import os
import time

import pytest

from trl_r1 import sandbox
from trl_r1.exceptions import ConfigurationError
from trl_r1.rewards import RewardPool, accuracy_reward
from trl_r1.rewards.pool import WarmUp
from trl_r1.sandbox import Outcome, Sandbox
from trl_r1.sandbox.launcher import Launcher
from trl_r1.verifiers.in_workers import WorkerSettings
from trl_r1.workers import Limits, WorkerPool

pytestmark = pytest.mark.skipif(sandbox.isolation_problem() is not None, reason=str(sandbox.isolation_problem()))

SECONDS = 1.0
SQUARE = {"function": "f", "cases": [[[3], 9], [[5], 25]], "time_limit": SECONDS}
ADD = {"tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "40 2\n", "output": "42"}], "time_limit": SECONDS}
UNIT = {"unit_tests": "assert f(3) == 9", "time_limit": 30}
GOOD = "def f(x):\n    return x * x"
ENDLESS = "def f(x):\n    while True: pass"


def completion(code):
    return f"<think> so </think> <answer>\n```python\n{code}\n```\n</answer>"


def columns(*references):
    return {"reference": [json.dumps(reference) for reference in references], "domain": ["code"] * len(references)}


@pytest.fixture(scope="module")
def pool():
    limits = Limits(item_seconds=3.0, item_wall_seconds=60, batch_seconds=120)
    with WorkerPool(2, limits) as workers:
        yield RewardPool(accuracy_reward, workers).start()


@pytest.fixture(autouse=True)
def the_usual_executor():
    before = sandbox.current()
    yield
    sandbox.use(before)


def where_it_runs(completions, **kwargs):
    """1 in an isolating launcher of this worker, 2 when this process is the one that was told otherwise."""
    owner = getattr(sandbox.current(), "__self__", None)
    seen = sandbox.current()(sandbox.Program(("sh", "-c", "test -e /proc/1 && echo outside || echo inside"))).stdout
    return [1.0 if isinstance(owner, Launcher) and owner.problem is None and seen == b"inside\n" else 2.0]


class Elsewhere:
    """An executor of the user's own."""

    def __call__(self, program):
        return Outcome(b"3\n", b"", 0)


def test_programs_are_verified_in_isolation_in_workers(pool):
    add = "a, b = map(int, input().split())\nprint(a + b)"
    texts = [
        completion(GOOD),
        completion(add),
        completion(GOOD),
        completion("def f(x): return 9"),
        completion("print(3)"),
    ]
    given = columns(SQUARE, ADD, UNIT, SQUARE, ADD)
    assert pool(texts, **given) == accuracy_reward(texts, **given) == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert RewardPool(where_it_runs, pool.workers)(["x"] * 4) == [1.0] * 4


def test_attacks_in_workers_score_zero(pool):
    attacks = [
        f"import os, signal\nos.kill({os.getpid()}, signal.SIGKILL)\ndef f(x): return x * x if os.path.exists('/proc') else 0",
        "import sys\nsys.exit(0)",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: break\ndef f(x): return 0",
        "x = bytearray(10 * 2**30)\ndef f(x): return x * x",
        "print('y' * 10**9)\ndef f(x): return 0",
        "import socket\nsocket.create_connection(('1.1.1.1', 53), 1)\ndef f(x): return x * x",
    ]
    before = pool.workers.replaced
    assert pool([completion(attack) for attack in attacks], **columns(*[SQUARE] * len(attacks))) == [0.0] * len(attacks)
    assert pool.workers.replaced == before  # no worker was lost over them
    assert pool([completion(GOOD)], **columns(SQUARE)) == [1.0]


def test_an_endless_program_delays_less_than_a_second(pool):
    """Trap 10. Beyond its own limit, that is."""
    texts = [completion(GOOD)] * 8
    pool(texts, **columns(*[SQUARE] * 8))  # warm
    late = []
    for _ in range(8):  # other work on the machine delays too
        start = time.monotonic()
        assert pool(texts, **columns(*[SQUARE] * 8)) == [1.0] * 8
        plain = time.monotonic() - start
        start = time.monotonic()
        rewards = pool([*texts[:4], completion(ENDLESS), *texts[4:]], **columns(*[SQUARE] * 9))
        late.append(time.monotonic() - start - plain - SECONDS)
        assert rewards == [1.0] * 4 + [0.0] + [1.0] * 4
        if late[-1] < 1.0:
            break
    print(f"\ndelay beyond the program's own {SECONDS:g} s: {min(late):.2f} s")
    assert min(late) < 1.0


def test_workers_run_programs_as_this_process_is_told_to(pool, monkeypatch):
    sandbox.use(Elsewhere())
    assert pool([completion("anything")], **columns({"tests": ADD["tests"][:1]})) == [1.0]
    sandbox.use(Sandbox(read_only=("/etc/hostname",)).run)
    assert pool(
        [completion("print(len(open('/etc/hostname').read()) > 0)")], **columns({"tests": [{"output": "True"}]})
    ) == [1.0]
    sandbox.use(Sandbox().run)
    assert pool(
        [completion("print(len(open('/etc/hostname').read()) > 0)")], **columns({"tests": [{"output": "True"}]})
    ) == [0.0]
    sandbox.use(lambda program: Outcome(b"", b"", 0))
    with pytest.raises(ConfigurationError, match="cannot be sent to a worker process"):
        pool([completion("x")], **columns(ADD))


def lines_read(program):
    return sandbox.current()(program).stdout


def test_a_pool_of_ones_own_is_started_with_the_settings():
    sandbox.use(Elsewhere())
    with WorkerPool(1, initializer=WarmUp(WorkerSettings.of_this_process())) as workers:
        assert workers.map(lines_read, [sandbox.Program(("true",))]) == [b"3\n"]


def test_gym_rows_in_workers(pool):
    """Trap 13. Some of its scorers evaluate model text, some pay a little for wrong answers."""
    pytest.importorskip("reasoning_gym")
    from trl_r1.verifiers.gym import gold_answer, gym_rows

    rows = [row for task in ("leg_counting", "simple_integration", "n_queens", "gcd") for row in gym_rows(task, 2)]
    given = {
        "reference": [row.reference for row in rows],
        "domain": ["logic"] * len(rows),
        "verifier": ["gym"] * len(rows),
    }
    form = "<think> so </think> <answer> {} </answer>"
    golds = [gold_answer(row) for row in rows]
    right = [i for i, gold in enumerate(golds) if gold is not None]
    assert len(right) >= 4
    rewards = pool([form.format(gold) for gold in golds], **given)
    assert [rewards[i] for i in right] == [1.0] * len(right)
    evil = "__import__('os').kill(__import__('os').getppid(), 9)"
    assert pool([form.format(evil)] * len(rows), **given) == [0.0] * len(rows)
    assert pool([form.format("7919")] * len(rows), **given) == [0.0] * len(rows)
