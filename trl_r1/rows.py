"""What every layer speaks of: a question (`Row`), what was written (`Completion`), whether it is right (`Verdict`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

# The domains of R1's RL prompts (arXiv 2501.12948v2, Table 4).
DOMAINS = ("math", "code", "stem", "logic", "general")

Message = dict[str, str]
Prompt = str | list[Message]


@dataclass(frozen=True)
class Row:
    """One question with what is needed to verify an answer to it.

    Args:
        prompt (`str` or `list[dict]`):
            The question as the user would ask it; templates are applied later (see [`trl_r1.prompts`]).
        reference (`str`):
            The gold answer. Structured references (numbers and target, options, tests) are JSON text, so that a
            mixture of domains is still one string column in Arrow; read them with [`structured_reference`].
        domain (`str`, defaults to `"math"`):
            One of [`DOMAINS`]; picks the verifier unless `verifier` names one.
        language (`str`, *optional*):
            ISO 639-1 code of the language the answer should be in.
        id (`str`, *optional*):
            Canonical key: equal keys are the same question.
        verifier (`str`, *optional*):
            Name of the verifier when it is not the domain's default.
    """

    prompt: Prompt
    reference: str
    domain: str = "math"
    language: str | None = None
    id: str | None = None
    verifier: str | None = None

    def asdict(self) -> dict[str, Any]:
        """Return the row as a dictionary of data set columns."""
        return asdict(self)

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Row:
        """Build a row from a data set row, ignoring columns that are not a row's own."""
        return cls(**{name: columns[name] for name in cls.__dataclass_fields__ if columns.get(name) is not None})


def row_digest(row: Row) -> str:
    """Return what tells two questions apart that have the same id: 16 hexadecimal digits of all but the id."""
    content = json.dumps({**row.asdict(), "id": None}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@lru_cache(maxsize=65536)
def structured_reference(reference: str) -> Any:
    """Parse a JSON reference once. The returned object is shared: do not change it."""
    return json.loads(reference)


@dataclass(frozen=True)
class Completion:
    """What a sampler wrote for one prompt.

    Args:
        text (`str`): The decoded completion, without the prompt and without any prefill.
        token_ids (`tuple[int, ...]`): Its token ids, EOS included when one was sampled.
        finish_reason (`str`): `"stop"` when the model ended by itself, `"length"` when it was cut off.
        prefill (`str`, defaults to `""`): What the prompt's template already opened, such as `"<think>\\n"`.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str = "stop"
    prefill: str = ""

    @property
    def truncated(self) -> bool:
        """Whether the completion was cut off."""
        return self.finish_reason == "length"


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right. `correct` is `None` when that cannot be known (an unreadable gold answer)."""

    correct: bool | None
    detail: str = ""
