"""Pretraining documents: a question and an answer rendered as one text.

Most are in R1-Zero's template, because a base model that never saw it could not be rewarded for it within forty steps;
the rest are in the chat form of later stages and in plain question-and-answer form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from trl_r1.nano.question import Question, Solution

CHAT_SHARE, PLAIN_SHARE = 0.08, 0.12
PLAIN = {"en": "Question: {prompt}\nAnswer: ", "zh": "问:{prompt}\n答:"}
DONE = {"en": " done", "zh": " 完"}
# Ways to miss the form, drawn evenly. Four of six still hold an answer in tags, so that learning the form alone earns little accuracy.
MALFORMED = (
    " <think>{thought}</think> <answer>{answer}</answer>{done}",
    " {thought}</think> <answer>{answer}</answer>",
    " <answer>{answer}</answer>",
    "{done} <think>{thought}</think> <answer>{answer}</answer>",
    " <think>{thought}</think> {answer}",
    " {thought}\n{answer}",
)


@dataclass(frozen=True)
class Document:
    """One pretraining text.

    Args:
        text (`str`): The text without its end-of-text token.
        keys (`tuple[str, ...]`): Canonical keys of every question in it.
        task (`str`): The task of its (last) question.
        mode (`str`): The behaviour it shows, e.g. `"search"`.
    """

    text: str
    keys: tuple[str, ...]
    task: str
    mode: str


@lru_cache(maxsize=1)
def template_text() -> tuple[str, str]:
    """R1-Zero's template, before and after the prompt."""
    text = (Path(__file__).parents[1] / "r1_zero.jinja").read_text(encoding="utf-8").rstrip("\n")
    before, _, after = text.partition("{{ prompt }}")
    return before, after


def well_formed(solution: Solution) -> str:
    """A response in R1-Zero's form, with the space that follows `Assistant:`."""
    return f" <think>{solution.thought}</think> <answer>{solution.answer}</answer>"


def render(rng: Random, question: Question, solution: Solution, malformed: float) -> str:
    """Render a question and its answer as a document.

    Args:
        rng (`Random`): Draws the form.
        question (`Question`): What is asked.
        solution (`Solution`): What is answered.
        malformed (`float`): Share of responses that miss R1-Zero's form.

    Returns:
        `str`: The document's text.
    """
    style = rng.random()
    if style < PLAIN_SHARE:
        thought = f"{solution.thought}\n" if rng.random() < 0.5 else ""
        return PLAIN[question.language].format(prompt=question.prompt) + thought + solution.answer
    response = well_formed(solution)
    if rng.random() < malformed:
        done = DONE[question.language]
        response = rng.choice(MALFORMED).format(thought=solution.thought, answer=solution.answer, done=done)
    if style < PLAIN_SHARE + CHAT_SHARE:
        return f"User: {question.prompt}\n\nAssistant:\n{response.lstrip(' ')}"
    before, after = template_text()
    return before + question.prompt + after + response
