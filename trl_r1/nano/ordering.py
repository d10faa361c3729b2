"""Ordering numbers and multiple choice."""

from __future__ import annotations

import json
from random import Random

from trl_r1.nano.arithmetic import step_text, written
from trl_r1.nano.question import Dials, Question, Solution, Task, trace_language

ASK = {
    "en": {"up": "Sort {numbers} from smallest to largest", "down": "Sort {numbers} from largest to smallest"},
    "zh": {"up": "把{numbers}从小到大排列", "down": "把{numbers}从大到小排列"},
}
CHOOSE = {
    "en": {
        "largest": "Which is the largest?",
        "smallest": "Which is the smallest?",
        "sum": "What is {a}+{b}?",
        "product": "What is {a}*{b}?",
    },
    "zh": {"largest": "哪个最大?", "smallest": "哪个最小?", "sum": "{a}+{b}是多少?", "product": "{a}*{b}是多少?"},
}
SO = {"en": "so", "zh": "所以"}
NEXT = {"en": "next ", "zh": "下一个"}
LETTERS = "ABCDEFGH"
PASSES = {"en": ("no", "yes"), "zh": ("不", "对")}


def ask_order(rng: Random, language: str, depth: int) -> Question:
    """Ask to sort `depth` different numbers."""
    numbers = rng.sample(range(1, 100), depth)
    direction = rng.choice(("up", "down"))
    listed = ("、" if language == "zh" else ", ").join(map(str, numbers))
    answer = sorted(numbers, reverse=direction == "down")
    key = f"ordering/{direction}/{'-'.join(map(str, sorted(numbers)))}"
    prompt = ASK[language][direction].format(numbers=listed)
    reference = json.dumps([" ".join(map(str, answer)), ", ".join(map(str, answer)), "、".join(map(str, answer))])
    return Question("ordering", key, language, prompt, reference, "logic", "exact", (numbers, answer))


def solve_order(rng: Random, question: Question, dials: Dials) -> Solution:
    """Write the sorted list at once, or pick number after number; slips swap two neighbours."""
    _, answer = question.facts
    language = trace_language(rng, question.language, dials)
    answer = list(answer)
    terse = rng.random() < dials.terse
    if rng.random() < dials.slips * (2 if terse else 1):
        i = rng.randrange(len(answer) - 1)
        answer[i], answer[i + 1] = answer[i + 1], answer[i]
    thought = SO[language] if terse else "\n".join(NEXT[language] + written(number, language) for number in answer)
    return Solution(thought, " ".join(map(str, answer)), "terse" if terse else "steps")


def ask_choice(rng: Random, language: str, depth: int) -> Question:
    """Ask a question with four options (`depth` 1: compare, 2: calculate)."""
    kind = rng.choice(("largest", "smallest") if depth == 1 else ("sum", "product"))
    if depth == 1:
        options = rng.sample(range(1, 150), 4)
        right = max(options) if kind == "largest" else min(options)
        key, words = f"choice/{kind}/{'-'.join(map(str, sorted(options)))}", {}
    else:
        a, b = (rng.randint(2, 99), rng.randint(2, 99)) if kind == "sum" else (rng.randint(2, 12), rng.randint(2, 12))
        right = a + b if kind == "sum" else a * b
        options = [right, *rng.sample([n for n in range(max(1, right - 12), right + 13) if n != right], 3)]
        rng.shuffle(options)
        # The wrong options are part of the key: one sum makes many questions, as in a real test.
        key, words = f"choice/{kind}/{min(a, b)}-{max(a, b)}/{'-'.join(map(str, sorted(options)))}", {"a": a, "b": b}
    listed = " ".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    letter = LETTERS[options.index(right)]
    reference = json.dumps({"answer": letter, "options": list(map(str, options))})
    prompt = CHOOSE[language][kind].format(**words) + " " + listed
    facts = (kind, words, options, right)
    return Question("choice", key, language, prompt, reference, "stem", "choice", facts)


def solve_choice(rng: Random, question: Question, dials: Dials) -> Solution:
    """Name a letter at once, find the value first, or go through the options (`dials.scan`)."""
    kind, words, options, right = question.facts
    language = trace_language(rng, question.language, dials)
    # No draw where the dial is down: the tokenizer's own documents, drawn before there was one, stay what they were.
    if dials.scan and rng.random() < dials.scan:
        return _scan(question, language)
    terse = rng.random() < dials.terse
    value = rng.choice(options) if rng.random() < dials.slips * (2 if terse else 1) else right
    if terse:
        thought = SO[language]
    elif words:
        operator = "+" if kind == "sum" else "*"
        thought = step_text(words["a"], operator, words["b"], value, language)
    else:
        thought = (
            f"{kind} {value}"
            if language == "en"
            else f"{'最大' if kind == 'largest' else '最小'}{written(value, language)}"
        )
    return Solution(thought, LETTERS[options.index(value)], "terse" if terse else "steps")


def _scan(question: Question, language: str) -> Solution:
    """Go through the options one after another; the last one that passes is the answer."""
    kind, words, options, right = question.facts
    calculated = [step_text(words["a"], "+" if kind == "sum" else "*", words["b"], right, language)] if words else []
    lines, best = [], None
    for letter, option in zip(LETTERS, options, strict=False):
        better = best is None or (option > best if kind == "largest" else option < best)
        passes = option == right if words else better
        best = option if passes else best
        lines.append(f"{letter} {written(option, language)} {PASSES[language][passes]}")
        if words and passes:
            break
    return Solution("\n".join([*calculated, *lines]), LETTERS[options.index(right)], "scan")


ORDERING = Task((3, 4, 5), ask_order, solve_order)
CHOICE = Task((1, 2), ask_choice, solve_choice)
