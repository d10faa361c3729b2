"""Code: what does this Python program print, and write a function that passes these cases."""

from __future__ import annotations

import json
from random import Random

from trl_r1.nano.arithmetic import apply, chain, step_text
from trl_r1.nano.question import Dials, Question, Solution, Task, trace_language

ASK_OUTPUT = {"en": "What does this program print?\n{code}", "zh": "这个程序输出什么?\n{code}"}
ASK_FUNCTION = {"en": "Write a Python function f with {cases}", "zh": "写一个Python函数f,使得{cases}"}
SO = {"en": "run it", "zh": "运行"}
RULE = {"en": "f is {}", "zh": "规律是{}"}


def ask_output(rng: Random, language: str, depth: int) -> Question:
    """Ask for the output of a program of `depth` assignments, or of a loop (depth 4)."""
    start, steps, result = chain(rng, 2 if depth == 4 else depth - 1)
    lines = [f"x = {start}", *(f"x = x {operator} {number}" for operator, number in steps)]
    if depth == 4:
        times, number = rng.randint(2, 4), rng.randint(1, 12)
        lines += [f"for i in range({times}):", f"    x += {number}"]
        steps, result = [*steps, *[("+", number)] * times], result + times * number
    code = "\n".join([*lines, "print(x)"])
    key = "code_output/" + ";".join(lines)
    prompt = ASK_OUTPUT[language].format(code=code)
    return Question("code_output", key, language, prompt, str(result), "code", "exact", (start, steps, result))


def solve_output(rng: Random, question: Question, dials: Dials) -> Solution:
    """Say the output at once, or follow the variable line by line."""
    start, steps, result = question.facts
    language = trace_language(rng, question.language, dials)
    if rng.random() < dials.terse * 0.6:
        guess = result if rng.random() < 0.5 else max(0, result + rng.randint(-12, 12))
        return Solution(SO[language], str(guess), "terse")
    value, lines = start, []
    slip = rng.randrange(len(steps)) if rng.random() < dials.slips else -1
    for i, (operator, number) in enumerate(steps):
        wrong = apply(value, operator, number) + (rng.choice((-10, -1, 1, 10)) if i == slip else 0)
        lines.append(step_text(value, operator, number, max(0, wrong), language))
        value = max(0, wrong)
    return Solution("\n".join(lines), str(value), "steps")


def _function(rng: Random, depth: int) -> tuple[str, int, int]:
    """Draw `x + a`, `x - a`, `x * a` (depth 1) or `x * a + b` (depth 2): its body, and a and b."""
    a, b = rng.randint(2, 9), rng.randint(1, 30)
    if depth == 2:
        return f"x * {a} + {b}", a, b
    return rng.choice(((f"x * {a}", a, 0), (f"x + {b}", 1, b), (f"x - {b}", 1, -b)))


def ask_function(rng: Random, language: str, depth: int) -> Question:
    """Ask for a function of one number from three cases, two of them shown."""
    body, a, b = _function(rng, depth)
    inputs = rng.sample(range(0, 21), 4)
    cases = [[[x], a * x + b] for x in inputs]
    shown = (" and " if language == "en" else "、").join(f"f({x})={a * x + b}" for x in inputs[:2])
    key = f"code_function/{a}x{b:+d}/{'-'.join(map(str, sorted(inputs)))}"
    reference = json.dumps({"function": "f", "cases": cases, "solution": f"def f(x):\n    return {body}"})
    prompt = ASK_FUNCTION[language].format(cases=shown)
    return Question("code_function", key, language, prompt, reference, "code", "code", (body, depth))


def solve_function(rng: Random, question: Question, dials: Dials) -> Solution:
    """Write the function; a slip writes another one."""
    body, depth = question.facts
    language = trace_language(rng, question.language, dials)
    if rng.random() < dials.slips * 1.5:
        body = _function(rng, depth)[0]
    return Solution(RULE[language].format(body), f"def f(x):\n    return {body}", "steps")


CODE_OUTPUT = Task((2, 3, 4), ask_output, solve_output)
CODE_FUNCTION = Task((1, 2), ask_function, solve_function)
