"""reasoning-gym's tasks: its own scorers, right only at the full score, and never fooled or run away with."""

import builtins
import json
from functools import cache, partial

import pytest

from tests.timing import least_seconds, timed
from trl_r1.exceptions import ConfigurationError, DataError, MissingExtraError
from trl_r1.prompts import gold_completion
from trl_r1.responses import parse
from trl_r1.rows import Row
from trl_r1.workers import Limits

pytest.importorskip("reasoning_gym", reason="the extra `reasoning-gym` is not installed")

from trl_r1.verifiers import gym
from trl_r1.verifiers.gym import (
    UNUSABLE,
    _decode,
    _encode,
    _tasks,
    find_lenient,
    gold_answer,
    gym_rows,
    load,
    readable,
    task_of,
    verify,
)

# Making an entry takes seconds (searches); they are tried by hand.
SLOW = {"arc_agi", "figlet_font", "group_anagrams", "knight_swap", "rearc", "zebra_puzzles"}
# Many answers are right and the entry names none.
NO_GOLD = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
JUNK = ("qq zz", "True", "1", "None", "[]", "{}", "x", "[[0]]")


@cache
def rows(task, n=2, seed=5):
    return list(gym_rows(task, n, seed))


def test_every_task_golds_are_right_and_others_wrong():
    usable = [task for task in _tasks() if task not in UNUSABLE | dict.fromkeys(SLOW)]
    assert len(usable) > 95
    for task in usable:
        first, second = rows(task)
        assert readable(first) is None
        gold, other = gold_answer(first), gold_answer(second)
        assert (gold is None) == (task in NO_GOLD) or task == "intermediate_integration", task
        if gold is not None:
            assert verify(gold, first).correct is True, (task, gold)
            # A box cannot hold a brace that is not closed.
            if gold.count("{") == gold.count("}"):
                boxed = parse(gold_completion(gold, form="boxed")).answer
                assert verify(boxed, first).correct is True, (task, boxed)
            if other not in (gold, None):
                for wrong in (other, f"{other}, {gold}", f"{gold} or {other}"):
                    assert verify(wrong, first).correct is False, (task, wrong, gold)
        for junk in JUNK:
            if junk.casefold() != str(gold).casefold():
                assert verify(junk, first).correct is False, (task, junk, gold)


def test_trap_13_a_little_is_nothing():
    row = rows("advanced_geometry", 1)[0]
    entry = json.loads(row.reference)
    assert 0 < load("advanced_geometry")("junk", entry) < 1
    assert verify("junk", row).correct is False


@pytest.mark.parametrize(
    ("task", "wrong"),
    [
        ("complex_arithmetic", "nan"),
        ("complex_arithmetic", "nan+nanj"),
        ("complex_arithmetic", "NaN"),
        ("gsm_symbolic", "-{}"),
        ("gsm_symbolic", "{}/2"),
        ("spell_backward", "{}qq"),
        ("spell_backward", "{0}{0}"),
        ("time_intervals", "{}x"),
        ("time_intervals", "{} 1"),
        ("fraction_simplification", "{}x"),
        ("fraction_simplification", "{} 1"),
    ],
)
def test_trap_13_scorers_that_miss_a_part_of_the_answer(task, wrong):
    for row in rows(task, 20):
        gold = gold_answer(row)
        assert verify(gold, row).correct is True, gold
        assert verify(wrong.format(gold), row).correct is False, gold


@pytest.mark.parametrize("task", ["simple_integration", "polynomial_multiplication", "n_queens", "spiral_matrix",
                                  "string_insertion", "binary_matrix", "puzzle24", "countdown"])  # fmt: skip
def test_trap_13_model_text_is_not_evaluated(task, tmp_path):
    target = tmp_path / "written"
    row = rows(task)[0]
    for attack in (
        f"open({str(target)!r}, 'w').write('x')",
        f"[open({str(target)!r}, 'w')]",
        f"().__class__.__base__.__subclasses__() or open({str(target)!r}, 'w')",
        f"exec(\"open({str(target)!r}, 'w')\")",
    ):
        assert verify(attack, row).correct is False
        assert not target.exists()


@pytest.mark.parametrize("task", ["simple_integration", "polynomial_multiplication", "countdown", "puzzle24", "coin_flip",
                                  "power_function", "chain_sum", "n_queens"])  # fmt: skip
@pytest.mark.parametrize(
    "answer", ["9**9**9**9", "(9**9)**(9**9)", "1e999999999", "1e9_999_999", "9" * 100_000, "(" * 5_000]
)
def test_trap_8_huge_answers_take_bounded_time(task, answer):
    row = rows(task)[0]
    verdict, seconds = timed(verify, answer, row)
    assert verdict.correct is False
    assert seconds < 3


def test_right_answers_are_far_from_the_deadline():
    for task in _tasks():
        if task in UNUSABLE | dict.fromkeys(SLOW):
            continue
        row = rows(task)[0]
        assert task_of(row) == task
        load(task)
        answer = gold_answer(row) or str(json.loads(row.reference)["answer"])
        half = gym.DEADLINE / 2
        assert least_seconds(partial(verify, answer, row), enough=half) < half, task


def test_trap_10_an_answer_that_takes_for_ever_costs_its_deadline(monkeypatch):
    """Not the worker, which would be killed over it later."""
    assert gym.DEADLINE < 1
    assert max(gym.SLOW.values()) < Limits().item_seconds
    moves = "R U " * 4990
    cases = [("intermediate_integration", "(x+a+b+c+d)**60"), ("rubiks_cube", moves)]
    for task, answer in cases:
        row = rows(task, 1)[0]
        load(task)
        verdict, whole = timed(verify, answer, row)
        assert verdict.correct is False
        assert whole < gym.SLOW.get(task, gym.DEADLINE) + 0.6
    monkeypatch.setattr(gym, "DEADLINE", whole / 4)
    took = least_seconds(partial(verify, moves, row), enough=whole / 2)
    assert took < whole / 2, f"the deadline did not end it: {took} of {whole}"


def test_scorers_that_accept_wrong_answers_are_corrected():
    puzzle = rows("puzzle24")[0]
    # Twenty-four, but not from the question's numbers.
    assert load("puzzle24")("6*4*1*1", json.loads(puzzle.reference)) == 1.0
    assert verify("6*4*1*1", puzzle).correct is False
    coin = next(row for row in rows("coin_flip", 20) if gold_answer(row).startswith("0.2"))
    assert load("coin_flip")("0", json.loads(coin.reference)) == 1.0
    assert verify("0", coin).correct is False
    integral = rows("simple_integration", 1)[0]
    metadata = json.loads(integral.reference)["metadata"]
    unsolved = f"Integral({metadata['integrand']}, {metadata['variable']})"
    assert load("simple_integration")(unsolved, json.loads(integral.reference)) == 1.0
    assert verify(unsolved, integral).correct is False
    words = rows("gsm_symbolic", 1)[0]
    assert verify(f"{gold_answer(words)} 12345", words).correct is False


def test_an_untrustworthy_task_is_refused():
    with pytest.raises(ConfigurationError, match="accepts any text"):
        rows("game_of_life_halting")
    with pytest.raises(ConfigurationError, match=r"'leg_count'.*'leg_counting'"):
        rows("leg_count")
    entry = {"question": "q", "answer": "True", "metadata": {"source_dataset": "game_of_life_halting"}}
    assert verify("x", Row("", json.dumps(entry))).correct is None


@pytest.mark.parametrize(
    "reference",
    ["", "3", "[1]", "{}", '{"question": "q", "answer": "a", "metadata": 1}',
     '{"question": "q", "answer": "a", "metadata": {"source_dataset": "nothing"}}'],
)  # fmt: skip
def test_trap_4_unreadable_references_are_none(reference):
    row = Row("", reference, verifier="gym")
    assert verify("3", row).correct is None
    assert readable(row)
    assert gold_answer(row) is None


def test_entries_survive_storage():
    entry = {"answer": "a", "metadata": {1: (1, (2, "x")), "plain": {"k": [None, True, 0.5]}, "empty": ()}}
    stored = json.loads(json.dumps(_encode(entry, "task")))
    assert _decode(stored) == entry
    with pytest.raises(DataError, match="'task' holds a set"):
        _encode({"metadata": {1, 2}}, "task")


def test_an_entry_with_a_fraction_survives_storage():
    asked = rows("gsm_symbolic", 30)
    (held,) = [row for row in asked if "__fraction__" in row.reference]
    assert verify(gold_answer(held), held).correct is True
    assert verify(gold_answer(held) + "1", held).correct is False


def test_rows_are_reproducible_and_lenient_reading_finds_the_end():
    assert list(gym_rows("leg_counting", 2, 5)) == rows("leg_counting")
    assert len(list(gym_rows("leg_counting", 1, min_animals=2, max_animals=2))) == 1
    assert rows("leg_counting")[0].reference != rows("leg_counting", seed=6)[0].reference
    row = rows("leg_counting", 1)[0]
    gold = gold_answer(row)
    assert row.domain == "logic"
    assert find_lenient(f"<think> a </think> so it is {gold}", row) == gold
    assert find_lenient("\\boxed{1} \\boxed{2}", row) == "2"
    assert find_lenient(" \n", row) is None
    assert verify("long " * 10_000, row).correct is False


def test_without_reasoning_gym_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without_gym(name, *args, **kwargs):
        if name.startswith("reasoning_gym"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    _tasks.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_gym)
    with pytest.raises(MissingExtraError, match=r"trl-r1\[reasoning-gym\]"):
        list(gym_rows("leg_counting", 1))
