"""Rows whose scorers evaluate model text are scored in worker processes, in training and held out, with equal results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from trl_r1 import sandbox
from trl_r1.evaluation import score
from trl_r1.exceptions import ConfigurationError
from trl_r1.generation.base import Sample
from trl_r1.pipeline import parse_reasoning_rl, reasoning_rl, stages
from trl_r1.pipeline.configs import config_names
from trl_r1.pipeline.heldout import HeldOut, print_samples
from trl_r1.pipeline.reward_workers import Ready, open_workers, score_samples, scoring_workers, workers_for
from trl_r1.rewards import RewardPool, accuracy_reward
from trl_r1.rows import Completion, Row
from trl_r1.verifiers import VERIFIERS, gym
from trl_r1.verifiers.in_workers import WorkerSettings
from trl_r1.verifiers.judge import Judge, configure_judge
from trl_r1.workers import Limits, WorkerError, WorkerPool, default_workers

pytest.importorskip("reasoning_gym", reason="the extra `reasoning-gym` is not installed")

SUM = Row("1 + 1?", "2", "math", "en", id="sum")
WORD = Row("a?", json.dumps(["b"]), "logic", "en", id="word")
JUDGED = Row("Why?", "Because.", "general", "en", id="judged", verifier="judge")
CODE = Row("f?", json.dumps({"function": "f", "cases": [[[3], 9]]}), "code", "en", id="code")
LEGS, CUBE = (next(gym.gym_rows(task, 1, 5)) for task in ("leg_counting", "rubiks_cube"))
VERIFY = gym.verify


def answers(*texts: str) -> list[Completion]:
    form = "<think> wait, so it is </think> <answer> {} </answer>"
    return [Completion(form.format(text), tuple(range(5 + i))) for i, text in enumerate(texts)]


@dataclass(frozen=True)
class NotesWhere:
    """reasoning-gym's verifier, which also notes the process that it runs in."""

    path: str

    def __call__(self, answer: str, row: Row) -> Any:
        with open(self.path, "a") as file:
            file.write(f"{os.getpid()}\n")
        return VERIFY(answer, row)


@dataclass(frozen=True)
class NotingWorker:
    """A worker's start, after which its verifier of gym rows notes where it runs."""

    ready: Ready
    path: str

    def __call__(self) -> None:
        self.ready()
        VERIFIERS["gym"] = NotesWhere(self.path)


class Agreeable:
    """A judge's model, in this process only: it cannot be sent to another."""

    name, template, tokenizer = "agreeable", None, None

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.unpicklable = lambda: None

    def stream(self, requests: Any, settings: Any) -> Any:
        for request in requests:
            self.asked.append(request.key)
            yield Sample(request.key, 0, Completion('{"analysis": "same", "correctness": "correct"}'))

    def cancel(self, key: str) -> None:
        pass

    def close(self) -> None:
        pass


def test_workers_where_rows_need_them() -> None:
    assert workers_for(None, [SUM, WORD, JUDGED]) == 0
    assert workers_for(None, [SUM, LEGS]) == workers_for(None, [CODE]) == default_workers()
    assert workers_for(3, [SUM]) == workers_for(3, [LEGS]) == 3
    assert workers_for(0, [SUM, CODE]) == 0
    with pytest.raises(ConfigurationError, match=r"reward_workers=0, but 2 of 3 rows .* Leave reward_workers out"):
        workers_for(0, [LEGS, SUM, LEGS])


def test_rewards_and_held_out_samples_are_scored_in_other_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same figures as here; the judge's rows stay here."""
    rows, texts = [SUM, LEGS, WORD, JUDGED], [answers("2", "3"), answers("7919", gym.gold_answer(LEGS) or "")]
    texts += [answers("b", "c"), answers("Since.", "Since.")]
    if sandbox.isolation_problem() is None:
        rows, texts = [*rows, CODE], [*texts, answers("def f(x): return x * x", "def f(x): return 8")]
    log = tmp_path / "pids"
    start = NotingWorker(Ready(WorkerSettings.of_this_process(), ("leg_counting",)), str(log))
    monkeypatch.setitem(VERIFIERS, "gym", NotesWhere(str(log)))
    configure_judge(Judge(Agreeable()))
    try:
        expected = score(rows, texts, pass_k=[2])
        assert set(log.read_text().split()) == {str(os.getpid())}
        log.unlink()
        with WorkerPool(1, initializer=start) as workers:
            found = score_samples(rows, texts, pass_k=[2], workers=workers)
            trainer: Any = SimpleNamespace(
                accelerator=SimpleNamespace(num_processes=1, process_index=0), args=SimpleNamespace(), engine=None,
                sample=lambda prompts, n, **_: texts, is_world_process_zero=lambda: True,
                state=SimpleNamespace(global_step=1), model=SimpleNamespace(training=False, train=lambda mode: None),
            )  # fmt: skip
            held_out = HeldOut(rows, ["?"] * len(rows), samples=2, pass_k=(2,), workers=workers)
            assert held_out.first(2, 1).workers is workers
            assert held_out.evaluate(trainer, show=2) == found == expected
            configure_judge(None)
            reward = RewardPool(accuracy_reward, workers)
            given = {"reference": [LEGS.reference], "domain": ["logic"], "verifier": ["gym"]}
            assert reward([texts[1][1].text], **given) == [1.0]
            # A pool's worker, each time.
            assert set(log.read_text().split()) == {str(workers.map(process_of, [0])[0])}
    finally:
        configure_judge(None)
    assert str(os.getpid()) not in log.read_text().split()
    shown = capsys.readouterr().out
    assert "right" in shown
    assert "wrong" in shown


def process_of(_: int) -> int:
    return os.getpid()


def test_print_samples_tells_what_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    rows, texts = [SUM, replace(SUM, reference="Tuesday"), SUM], [answers("2"), answers("2"), answers("3")]
    print_samples("Samples", rows, texts, score(rows, texts))
    shown = capsys.readouterr().out
    assert shown.index("right") < shown.index("unknown") < shown.index("wrong")


def test_an_answer_over_which_a_worker_is_lost_counts_as_none() -> None:
    limits = Limits(item_seconds=0.01)  # a tick of the system's clock
    slow = "R U " * 4990  # ten thousand moves to simulate: a fifth of a second and more
    with WorkerPool(1, limits, initializer=Ready(WorkerSettings.of_this_process(), ("rubiks_cube",))) as workers:
        found = score_samples([CUBE, LEGS], [answers("junk", slow), answers("1", "7919")], workers=workers)
        assert workers.replaced >= 2
    cube, legs = found.problems
    assert (cube.n, cube.correct, cube.no_answer, cube.tokens) == (2, 0, 1, 11)
    assert legs == score([LEGS], [answers("1", "7919")]).problems[0]


class NoService:
    """An executor of programs of the user's own that is out of order."""

    def __call__(self, program: Any) -> Any:
        raise RuntimeError("no such service")


def test_a_verifier_that_raises_is_an_error() -> None:
    before = sandbox.current()
    sandbox.use(NoService())
    try:
        with WorkerPool(1) as workers, pytest.raises(WorkerError, match=r"(?s)'code' raised .*no such service"):
            score_samples([CODE], [answers("def f(x): return 9")], workers=workers)
    finally:
        sandbox.use(before)


def test_workers_of_ones_own_only_for_gym_rows() -> None:
    with scoring_workers(None, [SUM, CODE]) as workers:
        assert workers is None
    with scoring_workers(None, [SUM, LEGS]) as workers:
        assert workers is not None
        assert workers.workers == default_workers()
        with scoring_workers(workers, [LEGS]) as same:
            assert same is workers


def test_what_workers_cannot_have_is_refused_before_they_start() -> None:
    configure_judge(Judge(Agreeable()))
    try:
        with pytest.raises(ConfigurationError, match="a local sampler lives in one process"):
            open_workers(1, [LEGS])
    finally:
        configure_judge(None)


def stage(tmp_path: Path, **changes: Any) -> dict[str, Any] | None:
    config = yaml.safe_load(config_names("reasoning_rl")["nano_cpu"].read_text(encoding="utf-8"))
    config |= {
        "datasets": [{"dataset": "nano:arithmetic"}, {"dataset": "gym:leg_counting"}], "max_rows": 8, "max_test_rows": 4,
        "use_vllm": False, "questions_per_step": 2, "num_generations": 2, "per_device_train_batch_size": 4,
        "max_completion_length": 16, "max_steps": 1, "warmup_steps": 0, "lr_scheduler_kwargs": {"num_decay_steps": 1},
        "heldout_questions": 8, "heldout_samples": 2, "heldout_curve_questions": 4, "heldout_curve_samples": 2,
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return reasoning_rl(*parse_reasoning_rl(["--config", str(path)]))


def test_no_workers_for_gym_rows_is_refused_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_trainer", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ConfigurationError, match="reward_workers=0"):
        stage(tmp_path, reward_workers=0)


def test_a_stage_with_gym_rows_verifies_none_of_them_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[WorkerPool] = []
    here: list[str] = []

    def note(open_pool: Callable[..., WorkerPool]) -> Callable[..., WorkerPool]:
        def opening(workers: int, rows: Any) -> WorkerPool:
            opened.append(open_pool(1, rows))  # the machine may have many cores
            return opened[-1]

        return opening

    def verify_here(answer: str, row: Row) -> Any:
        if opened:  # before, only gold answers are looked at
            here.append(answer)
        return VERIFY(answer, row)

    monkeypatch.setattr(stages, "open_workers", note(stages.open_workers))
    monkeypatch.setitem(VERIFIERS, "gym", verify_here)
    report = stage(tmp_path)
    assert report is not None
    assert report["after"]["by_domain"]["logic"]["problems"] == 4
    assert len(opened) == 1
    assert here == []
