"""R1-like completions with gold answers for `benchmarks/rewards.py`, and what its worker processes run on them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

Columns = dict[str, list[Any]]

# Thinking is text with formulas and no box, of log-normal length as R1's is (σ = 0.9, as in the trainer's benchmark).
MEAN_CHARACTERS, SIGMA, MAX_CHARACTERS = 8_000, 0.9, 100_000
GROUP = 16  # completions per question (R1's G)
RIGHT_SHARE = 0.5
_SENTENCES = (
    "Let me set this up: we need $x^2 + {a}x - {b} = 0$ to hold.",
    "Wait, I should check whether {a} divides {b} before going on.",
    "So $\\frac{{{a}}}{{{b}}} \\cdot \\sqrt{{{b}}}$ is what is left over here.",
    "Hmm, if $n = {a}$ then \\(n^2 - {b}\\) is negative, which cannot be.",
    "Alternatively, substitute $u = {a} - t$ and integrate from $0$ to ${b}$.",
    "That gives {a} + {b} = {c}, and the second case is symmetric to the first.",
)


def _question(rng: random.Random) -> tuple[str, list[str], list[str]]:
    """One question: its gold answer, ways to write it, wrong answers; both libraries agree on all of them."""
    a, b = rng.randint(2, 9_999), rng.choice((3, 5, 7, 11, 13, 17, 19, 23))
    others = [a + rng.randint(1, 500) for _ in range(GROUP // 2)]
    choices: tuple[tuple[str, list[str], list[str]], ...] = (
        (f"{a}", [f"{a}", f"{a}.0", f"\\frac{{{2 * a}}}{{2}}"], [f"{c}" for c in others]),
        (f"\\frac{{{a}}}{{29}}", [f"\\dfrac{{{a}}}{{29}}"], [f"\\frac{{{c}}}{{29}}" for c in others]),
        (f"{a}\\sqrt{{{b}}}", [f"\\sqrt{{{b}}} \\cdot {a}", f"{a}\\sqrt{{{b}}}"], [f"{c}\\sqrt{{{b}}}" for c in others]),
        (f"x^2+{a}x+{b}", [f"{b}+{a}x+x^2", f"x(x+{a})+{b}"], [f"x^2-{c}x+{b}" for c in others]),
        (f"(x+{a})(x-{b})", [f"(x-{b})(x+{a})"], [f"(x+{c})(x+{b})" for c in others]),
        (f"\\left({a},\\frac{{1}}{{{b}}}\\right)", [f"({a}, \\frac{{1}}{{{b}}})"], [f"({c}, {b})" for c in others]),
        (f"\\frac{{{a}\\pi}}{{29}}", [f"\\frac{{{2 * a}\\pi}}{{58}}"], [f"\\frac{{{c}\\pi}}{{29}}" for c in others]),
        (f"[{a},\\infty)", [f"\\left[{a}, \\infty\\right)"], [f"({c},\\infty)" for c in others]),
    )  # fmt: skip
    return rng.choice(choices)


# Answers of a model that went astray, or of an attacker.
PATHOLOGICAL: dict[str, str] = {
    "tower": "9^{9^{9^{9}}}",
    "power": "10^{10^{10}}",
    "deep fraction": "\\frac{1}{1+" * 200 + "x" + "}" * 200,
    "deep root": "\\sqrt{2+" * 18 + "2" + "}" * 18,
    "expansion": "(x+y+z+1)^{40}",
    "factorial": "(9!)!",
    "digits": "1" * 50_000,
    "spaces": "1 " * 900,
    "list": ",".join(["1"] * 900),
    "matrix": "\\begin{pmatrix}" + " \\\\ ".join(" & ".join(["x+1"] * 15) for _ in range(15)) + "\\end{pmatrix}",
    "boxes": "\\boxed{" * 2_000 + "1" + "}" * 2_000,
    "dollars": "$" * 1_900,
    "brackets": "(" * 1_500,
    "integral": "\\int_0^1 x^{x^{x}} dx",
    "series": "\\sum_{n=1}^{100000} \\frac{1}{n^2}",
}


def texts(n: int, pathological_share: float = 0.0, seed: int = 0) -> Columns:
    """Return `n` completions in groups of [`GROUP`], as TRL passes them to a reward.

    Args:
        n (`int`): Number of completions.
        pathological_share (`float`, defaults to 0): This share (at least one, if not 0) ends in one of [`PATHOLOGICAL`].
        seed (`int`, defaults to 0): The other completions do not depend on `pathological_share`.

    Returns:
        `dict`: Columns `completions` (messages) and `solution` (gold answers between dollar signs).
    """
    rng = random.Random(seed)
    completions: list[Any] = []
    solutions: list[str] = []
    while len(completions) < n:
        gold, right, wrong = _question(rng)
        for _ in range(min(GROUP, n - len(completions))):
            answer = rng.choice(right if rng.random() < RIGHT_SHARE else wrong)
            completions.append([{"role": "assistant", "content": _completion(rng, answer)}])
            solutions.append(f"${gold}$")
    bad = max(1, round(n * pathological_share)) if pathological_share else 0
    kinds = list(PATHOLOGICAL.values())
    for i, index in enumerate(random.Random(seed + 1).sample(range(n), bad)):
        content = completions[index][0]["content"]
        completions[index][0]["content"] = content[: content.rindex("\\boxed")] + f"\\boxed{{{kinds[i % len(kinds)]}}}"
    return {"completions": completions, "solution": solutions}


def _completion(rng: random.Random, answer: str) -> str:
    mu = -(SIGMA**2) / 2
    length = min(MEAN_CHARACTERS * rng.lognormvariate(mu, SIGMA), MAX_CHARACTERS)
    parts: list[str] = []
    while length > 0:
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        parts.append(rng.choice(_SENTENCES).format(a=a, b=b, c=a + b))
        length -= len(parts[-1]) + 1
    return f"<think>\n{' '.join(parts)}\n</think>\nSolving the equation gives \\boxed{{{answer}}}"


# Run in a fresh process each, so that nothing is cached from an earlier measurement.


def ours(batches: list[Columns]) -> tuple[float, list[float | None]]:
    """Seconds and rewards of our reward on the last batch, in one process that scored the others before."""
    from trl_r1.rewards import accuracy_reward

    return _timed(accuracy_reward, batches)


def trl(batches: list[Columns]) -> tuple[float, list[float | None]]:
    """As [`ours`] with TRL's reward, on the main thread, where its timeouts work."""
    from trl.rewards import accuracy_reward

    return _timed(accuracy_reward, batches)


def _timed(reward: Callable[..., Any], batches: list[Columns]) -> tuple[float, list[float | None]]:
    for columns in batches[:-1]:
        reward(**columns)
    start = time.perf_counter()
    rewards = reward(**batches[-1])
    return time.perf_counter() - start, rewards
