"""reasoning-gym's tasks with worked solutions: right, split by template, the same on every draw."""

from __future__ import annotations

import pytest

pytest.importorskip("reasoning_gym", reason="pip install 'trl-r1[reasoning-gym]'")

from trl_r1.data.reasoning_gym import TASKS, GymSplits, gym_splits
from trl_r1.data.worked import EquationFilter
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.prompts import r1_completion
from trl_r1.rows import Completion
from trl_r1.verifiers import verify


@pytest.fixture(scope="module")
def symbolic() -> GymSplits:
    return gym_splits("gsm_symbolic", 300, 60)


def test_templates_are_held_out_as_a_whole(symbolic: GymSplits) -> None:
    train, seen, unseen = ({one.group for one in split} for split in (symbolic.train, symbolic.seen, symbolic.unseen))
    assert len(train) > 50
    assert len(unseen) >= 10
    assert not unseen & (train | seen)
    # Held-out instances of templates that are trained on; of 68, a small draw may miss a few.
    assert len(seen - train) <= 2


def test_no_question_is_in_two_splits(symbolic: GymSplits) -> None:
    every = [one.row.prompt for split in (symbolic.train, symbolic.seen, symbolic.unseen) for one in split]
    assert len(every) == 420
    assert len(set(every)) == len(every)


def test_more_rows_keep_the_split(symbolic: GymSplits) -> None:
    fewer = gym_splits("gsm_symbolic", 40, 10)
    assert fewer.train == symbolic.train[:40]
    assert fewer.seen == symbolic.seen[:10]
    assert {one.group for one in fewer.unseen} <= {one.group for one in symbolic.unseen}
    assert gym_splits("gsm_symbolic", 40, 0, seed=1).train != fewer.train


def test_solutions_are_the_generators_own(symbolic: GymSplits) -> None:
    one = symbolic.train[0]
    assert one.row.verifier == "gym"
    assert "####" not in one.reasoning
    assert one.answer in one.reasoning.replace(",", "")
    assert "answer_cot" not in one.row.reference  # the row must not give the solution away
    assert not any(".0 " in one.reasoning for one in symbolic.train)


@pytest.mark.parametrize("task", TASKS)
def test_solutions_end_in_the_right_answer(task: str) -> None:
    splits = gym_splits(task, 60, 5)
    wrong = [one for one in splits.train if verify(one.answer, one.row).correct is not True]
    # gsm_symbolic's scorer cannot read a negative gold answer.
    assert all(one.answer.startswith("-") for one in wrong)
    assert len(wrong) <= 1
    for one in splits.train:
        assert one.answer in one.reasoning.replace(",", "").splitlines()[-1]


def test_a_written_solution_shows_every_step() -> None:
    (one,) = gym_splits("chain_sum", 1, 0, min_terms=3, max_terms=3).train
    first, second = one.reasoning.splitlines()[1:]
    assert second.startswith(first.split("= ")[1])
    assert second.endswith(f"= {one.answer}")
    assert not EquationFilter()(one.row, Completion(r1_completion(one.reasoning, one.answer)))


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ConfigurationError, match="Allowed: 'gsm_symbolic', 'chain_sum', 'leg_counting'"):
        gym_splits("zebra_puzzles", 1, 0)
    with pytest.raises(ConfigurationError, match="unseen_share=1"):
        gym_splits("chain_sum", 1, 0, unseen_share=1)
    with pytest.raises(ConfigurationError, match="does not take the settings"):
        gym_splits("chain_sum", 1, 0, colour="red")
    with pytest.raises(DataError, match="hardly more than"):
        gym_splits("chain_sum", 500, 0, min_terms=2, max_terms=2, min_digits=1, max_digits=1)
