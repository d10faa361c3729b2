from __future__ import annotations

import json
from itertools import islice

import pytest

from trl_r1 import verifiers
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.nano import TASK_NAMES, NanoWorld, split_of
from trl_r1.nano.question import SPLITS
from trl_r1.prompts import PromptTemplate


@pytest.mark.parametrize("task", TASK_NAMES)
def test_rows_are_distinct_held_apart_and_deterministic(task: str) -> None:
    by_split = {split: NanoWorld().rows(split, 60, tasks=[task]) for split in SPLITS}
    for split, rows in by_split.items():
        assert len({row.id for row in rows}) == 60
        assert all(split_of(str(row.id)) == split for row in rows)
    assert by_split["test"] == NanoWorld(reflect=0.0, mixing=0.9).rows("test", 60, tasks=[task])
    assert by_split["test"] != NanoWorld().rows("test", 60, tasks=[task], seed=1)


def test_pretraining_documents_hold_no_question_of_rl_or_of_the_held_out_split() -> None:
    world = NanoWorld()
    documents = list(world.documents(4000, seed=3))
    keys = {key for document in documents for key in document.keys}
    assert {split_of(key) for key in keys} == {"pretrain"}
    # Not by key alone: no held-out wording occurs either.
    held_out = {str(row.prompt) for row in world.rows("test", 300, tasks=["countdown", "arithmetic", "code_output"])}
    text = "\n\n".join(document.text for document in documents)
    assert not any(prompt in text for prompt in held_out)
    assert {document.task for document in documents} == set(TASK_NAMES)


def test_the_key_ignores_wording_language_and_order() -> None:
    def keys(language: str) -> set[str]:
        return {str(row.id) for row in NanoWorld().rows("train", 1500, tasks=["countdown"], language=language, depth=3)}

    assert keys("en") & keys("zh")  # about 3,600 questions in the split: the two draws must meet


def test_countdown_has_about_twenty_thousand_questions_with_three_numbers() -> None:
    from trl_r1.nano import chains
    from trl_r1.nano.countdown import LARGEST_NUMBER, TARGETS

    largest = LARGEST_NUMBER
    count = 0
    for a in range(1, largest + 1):
        for b in range(a, largest + 1):
            for c in range(b, largest + 1):
                count += len({chain.value for chain in chains((a, b, c))} & set(TARGETS))
    assert count > 19_500


@pytest.mark.parametrize("task", [name for name in TASK_NAMES if name not in ("general", "code_function")])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_gold_answers_verify_and_prompts_survive_the_template(task: str, language: str) -> None:
    for row in NanoWorld().rows("train", 30, tasks=[task], language=language):
        gold = verifiers.gold_answer(row)
        assert gold is not None
        assert verifiers.verify(gold, row).correct is True
        assert row.prompt == str(row.prompt).strip()
        assert str(row.prompt) in PromptTemplate("base").render(row.prompt)


def test_worked_solutions_are_sometimes_wrong_and_mostly_right() -> None:
    from random import Random

    from trl_r1.nano.world import TASKS

    world = NanoWorld()
    rng = Random(0)
    for name in ("arithmetic", "ordering", "choice", "code_output", "judge"):
        task = TASKS[name]
        verdicts = []
        for _ in range(200):
            question = task.ask(rng, rng.choice(("en", "zh")), rng.choice(task.depths))
            answer = task.solve(rng, question, world.dials).answer
            verdicts.append(verifiers.verify(answer, question.row()).correct)
        assert 0.4 < sum(map(bool, verdicts)) / 200 < 0.97, name


def test_options_are_gone_through_where_the_dial_says_so() -> None:
    from random import Random

    from trl_r1.nano.ordering import CHOICE, PASSES
    from trl_r1.nano.question import Dials

    rng = Random(0)
    for _ in range(200):
        language = rng.choice(("en", "zh"))
        question = CHOICE.ask(rng, language, rng.choice(CHOICE.depths))
        solution = CHOICE.solve(rng, question, Dials(scan=1.0, mixing=0.0))
        assert solution.mode == "scan"
        assert verifiers.verify(solution.answer, question.row()).correct is True
        # The answer follows from the thought: it is the last option said to pass.
        passed = [line.split()[0] for line in solution.thought.split("\n") if line.endswith(PASSES[language][True])]
        assert passed[-1] == solution.answer
    assert not any(document.mode == "scan" for document in NanoWorld(scan=0).documents(500))
    mixed = {document.mode for document in NanoWorld().documents(500) if document.task == "choice"}
    assert {"scan", "terse"} <= mixed


def test_function_rows_carry_cases_that_a_written_function_passes() -> None:
    from random import Random

    from trl_r1.nano import programs
    from trl_r1.nano.question import Dials

    rng = Random(1)
    for _ in range(40):
        question = programs.ask_function(rng, "en", rng.choice((1, 2)))
        reference = json.loads(question.reference)
        scope: dict[str, object] = {}
        exec(programs.solve_function(rng, question, Dials(slips=0)).answer, scope)
        function = scope[reference["function"]]
        assert callable(function)
        assert all(function(*arguments) == result for arguments, result in reference["cases"])


def test_programs_print_their_reference(capsys: pytest.CaptureFixture[str]) -> None:
    for row in NanoWorld().rows("train", 40, tasks=["code_output"], language="en"):
        exec(str(row.prompt).split("\n", 1)[1], {})
        assert capsys.readouterr().out.strip() == row.reference


def test_dials_turn_behaviours() -> None:
    def share(mode: str, **dials: float) -> float:
        documents = [d for d in NanoWorld(**dials).documents(3000) if d.task == "countdown"]  # type: ignore[arg-type]
        return sum(d.mode == mode for d in documents) / len(documents)

    assert share("search", reflect=0.0) == 0
    assert share("search") == pytest.approx(0.45, abs=0.05)
    assert share("search", reflect=0.9) == pytest.approx(0.9, abs=0.05)
    assert share("terse", reflect=0.0, terse=1.0) == 1


def test_mixing_dial_turns_thoughts_in_the_other_language() -> None:
    def chinese_thoughts(mixing: float) -> int:
        world = NanoWorld(chinese=0.0, mixing=mixing)
        return sum("得" in d.text for d in islice(world.documents(1000), 1000))

    assert chinese_thoughts(0.0) == 0
    assert 30 < chinese_thoughts(0.15) < 200


def test_general_style_tells_polite_from_curt() -> None:
    from random import Random

    from trl_r1.nano import general
    from trl_r1.nano.question import Dials

    rng = Random(0)
    for language in ("en", "zh"):
        for _ in range(60):
            question = general.ask(rng, language, 1)
            good = general.solve(rng, question, Dials(curt=0)).answer
            bad = general.solve(rng, question, Dials(curt=1)).answer
            assert general.follows_style(question.key, language, good)
            assert not general.follows_style(question.key, language, bad)


def test_bad_input() -> None:
    with pytest.raises(ConfigurationError, match=r"split of the nano world 'dev'.*'test'"):
        NanoWorld().rows("dev", 1)
    with pytest.raises(ConfigurationError, match=r"nano task 'sudoku'.*'countdown'"):
        NanoWorld().rows("train", 1, tasks=["sudoku"])
    with pytest.raises(ConfigurationError, match=r"depth of the nano task 'countdown' 9"):
        NanoWorld().rows("train", 1, tasks=["countdown"], depth=9)
    with pytest.raises(ConfigurationError, match="language"):
        NanoWorld().rows("train", 1, language="fr")
    with pytest.raises(ConfigurationError, match=r"reflect=1.5 is not a share"):
        NanoWorld(reflect=1.5)
    with pytest.raises(DataError, match="Ask for fewer"):
        NanoWorld().rows("test", 5000, tasks=["general"])
