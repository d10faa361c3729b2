"""What every task of the nano world makes: a question, a worked solution, and the hash that says which split it is in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from trl_r1.rows import Row

LANGUAGES = ("en", "zh")
SPLITS = ("pretrain", "train", "test")
# Shares of all canonical keys. Pretraining sees the first part only, so RL and held-out questions are new to the base.
SPLIT_ENDS = {"pretrain": 0.6, "train": 0.85, "test": 1.0}


@dataclass(frozen=True)
class Dials:
    """How often each behaviour occurs in the pretraining documents; see [`NanoWorld`] for what each one means."""

    reflect: float = 0.45
    terse: float = 0.45
    mixing: float = 0.15
    false_checks: float = 0.12
    give_up: float = 0.45
    patience: float = 0.3
    longest: int = 112
    slips: float = 0.2
    curt: float = 0.4
    scan: float = 0.7


@dataclass(frozen=True)
class Question:
    """One question of the nano world.

    Args:
        task (`str`): Name of its task.
        key (`str`): Canonical key, the same whatever the wording and the language: equal keys are the same question.
        language (`str`): Language of the wording, `"en"` or `"zh"`.
        prompt (`str`): The wording.
        reference (`str`): The gold answer as [`Row.reference`] wants it.
        domain (`str`): The row's domain.
        verifier (`str`, *optional*): The row's verifier, if it is not the domain's default.
        facts (`Any`): What the task's `solve` needs to know.
    """

    task: str
    key: str
    language: str
    prompt: str
    reference: str
    domain: str
    verifier: str | None
    facts: Any = None

    @property
    def split(self) -> str:
        """The split that the canonical key falls in."""
        return split_of(self.key)

    def row(self) -> Row:
        """Return the question as a row."""
        return Row(self.prompt, self.reference, self.domain, self.language, self.key, self.verifier)


@dataclass(frozen=True)
class Solution:
    """One way of answering: the thought, the answer, and the behaviour it shows (`mode`)."""

    thought: str
    answer: str
    mode: str


@dataclass(frozen=True)
class Task:
    """A task: how to ask at a depth, and how a pretraining document answers."""

    depths: tuple[int, ...]
    ask: Callable[[Random, str, int], Question]
    solve: Callable[[Random, Question, Dials], Solution]


def split_of(key: str) -> str:
    """Return the split of a canonical key. It depends on the key alone: worlds of all seeds and dials agree.

    Args:
        key (`str`): A canonical key, such as `"countdown/3-4-7/17"`.

    Returns:
        `str`: `"pretrain"`, `"train"` or `"test"`.
    """
    place = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
    return next(name for name in SPLITS if place < SPLIT_ENDS[name])


def trace_language(rng: Random, language: str, dials: Dials) -> str:
    """Return the language to think in: mostly the question's own, with probability `dials.mixing` the other one."""
    if rng.random() >= dials.mixing:
        return language
    return "zh" if language == "en" else "en"
