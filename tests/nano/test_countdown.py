from __future__ import annotations

from itertools import permutations, product
from random import Random

import pytest

from trl_r1.nano import chains, checkpoint_path
from trl_r1.nano.countdown import LARGEST_VALUE, ask, gold, proposals, solve
from trl_r1.nano.documents import well_formed
from trl_r1.nano.numerals import from_chinese, to_chinese
from trl_r1.nano.question import Dials
from trl_r1.nano.traces import checks, read_trace


def brute_force(numbers: tuple[int, ...]) -> set[int]:
    """Values of all left-to-right chains whose steps are whole, positive and small, without any pruning."""
    values = set()
    for order in permutations(numbers):
        for operators in product("+-*/", repeat=len(numbers) - 1):
            value: int | None = order[0]
            for operator, number in zip(operators, order[1:], strict=True):
                if value is None or (operator == "/" and (number == 1 or value % number)):
                    value = None
                    break
                value = eval(f"{value}{operator.replace('/', '//')}{number}")
                value = value if 0 < value <= LARGEST_VALUE else None
            if value is not None:
                values.add(value)
    return values


@pytest.mark.parametrize("numbers", [(3, 4, 7), (2, 2, 8), (1, 9, 25), (6, 12, 24), (2, 3, 5, 8), (4, 4, 4, 4)])
def test_chains_reach_what_brute_force_reaches_and_mean_what_they_say(numbers: tuple[int, ...]) -> None:
    found = chains(numbers)
    assert {chain.value for chain in found} == brute_force(numbers)
    assert len({chain.expression for chain in found}) == len(found)
    for chain in found:
        assert eval(chain.expression) == chain.value
        for language in ("en", "zh"):
            (one,) = read_trace(chain.trace(language)).tries
            assert one.correct
            assert one.value == chain.value
            assert sorted(one.numbers) == sorted(numbers)


def test_proposals_prefer_what_is_near_and_never_repeat() -> None:
    rng = Random(0)
    first: list[int] = []
    for _ in range(300):
        order = list(proposals(rng, (3, 8, 21), 45))
        assert len(order) == len(set(order)) == len(chains((3, 8, 21)))
        first.append(abs(order[0].value - 45))
    everything = [abs(chain.value - 45) for chain in chains((3, 8, 21))]
    assert sum(first) / len(first) < sum(everything) / len(everything) - 3


@pytest.mark.parametrize(("language", "depth"), [("en", 3), ("en", 4), ("zh", 3), ("zh", 4)])
def test_searches_end_within_160_tokens_and_say_how(language: str, depth: int) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    rng = Random(0)
    dials = Dials(reflect=1.0, give_up=0.0, patience=0.0, false_checks=0.0, mixing=0.0)
    lengths, given_up = [], 0
    for _ in range(150):
        question = ask(rng, language, depth)
        solution = solve(rng, question, dials)
        lengths.append(len(tokenizer(well_formed(solution)).input_ids) + 1)
        trace = read_trace(solution.thought)
        assert trace.mode == "search"
        claimed, true = checks(solution.thought, question.row())
        assert claimed == true == (0 if trace.gave_up else 1)
        given_up += trace.gave_up
    assert max(lengths) <= 160
    if depth == 4:  # with three numbers hardly any search runs out of candidates or room
        assert 0 < given_up < 150
        assert max(lengths) > 100


def test_false_checks_are_found_out() -> None:
    rng = Random(0)
    claimed = true = 0
    for _ in range(400):
        question = ask(rng, rng.choice(("en", "zh")), 3)
        counted = checks(solve(rng, question, Dials(reflect=1.0, false_checks=0.3)).thought, question.row())
        claimed, true = claimed + counted[0], true + counted[1]
    assert 0 < true < 0.8 * claimed


def test_gold_is_right() -> None:
    rng = Random(0)
    for _ in range(50):
        question = ask(rng, "zh", 3)
        solution = gold(question)
        assert eval(solution.answer) == question.facts[1]
        assert checks(solution.thought, question.row()) == (1, 1)


def test_chinese_numerals_read_back() -> None:
    for number in [*range(1100), 2005, 2050, 9999]:
        assert from_chinese(to_chinese(number)) == number
    assert from_chinese("好") is None
    assert from_chinese("") is None
