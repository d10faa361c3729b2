"""How the cold start asks for long, readable thinking: worked examples first, or a direct request.

The paper names both ways (arXiv 2501.12948v1 §2.3.1) and prints neither prompt: wording and examples are ours. An R1-Zero
checkpoint is asked the bare question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trl_r1.data.filters import question_text
from trl_r1.data.worked import WorkedSolution
from trl_r1.exceptions import DataError, unknown
from trl_r1.language import detect_language
from trl_r1.prompts import direct_prompt, r1_completion
from trl_r1.rows import Message, Prompt, Row

SOURCES = ("few_shot", "direct", "r1_zero")


@dataclass(frozen=True)
class Example:
    """A question with long thinking, shown before the one that is asked.

    Args:
        question (`str`): The question.
        reasoning (`str`): Long thinking that reflects and verifies.
        summary (`str`): What the reader is told, ending in a box.
        answer (`str`): The final answer.
    """

    question: str
    reasoning: str
    summary: str
    answer: str


_ENGLISH = (
    Example(
        "A shop sells pencils in packs of 12. A school needs 150 pencils and already has 37. How many packs must it buy?",
        "Let me see what is really missing first. The school needs 150 and has 37, so it lacks 150 - 37 = 113 pencils.\n\n"
        "The packs hold 12. 113 / 12 is a bit more than 9, because 9 * 12 = 108. So 9 packs? Wait, 108 is less than 113, "
        "which would leave 113 - 108 = 5 pencils missing. I cannot buy half a pack, so I have to round up, not down.\n\n"
        "With 10 packs there are 10 * 12 = 120 pencils, and 120 is at least 113. Let me verify with the whole number: "
        "37 + 120 = 157, which is at least 150. With 9 packs it would be 37 + 108 = 145, too few. So it is 10.",
        "The school lacks 150 - 37 = 113 pencils. Nine packs give only 108, ten give 120, so it must buy \\boxed{10} packs.",
        "10",
    ),
    Example(
        "The sum of two numbers is 20 and their difference is 6. What is the larger number?",
        "Let me call them a and b, with a the larger one. Then a + b = 20 and a - b = 6.\n\n"
        "My first idea is to halve the sum: 10 and 10. But their difference is 0, not 6, so I have to move them apart. If I "
        "add 6 to one of them I get 16 and 4: the difference is 12. That is too much, because what I add to one I take from "
        "the other. So I should move each by half of 6, which is 3: 10 + 3 = 13 and 10 - 3 = 7.\n\n"
        "Let me check: 13 + 7 = 20, and 13 - 7 = 6. Both hold. Adding the equations gives the same: 2a = 26, so a = 13.",
        "Adding the two conditions gives 2a = 26, so the larger number is \\boxed{13}; the other is 7, and 13 - 7 = 6.",
        "13",
    ),
)
_CHINESE = (
    Example(
        "一家商店的铅笔每盒12支。学校需要150支,已经有37支。学校至少要买几盒?",
        "先看看还差多少:需要150支,已有37支,所以还差 150 - 37 = 113 支。\n\n"
        "每盒12支,9 * 12 = 108,那么买9盒?等一下,108比113少,还差5支。不能只买半盒,所以应该往上取,而不是往下取。\n\n"
        "10盒是 10 * 12 = 120 支,够了。再验证一下:37 + 120 = 157,不少于150;如果买9盒,37 + 108 = 145,不够。所以是10盒。",
        "还差 150 - 37 = 113 支;9盒只有108支,10盒有120支,所以至少要买 \\boxed{10} 盒。",
        "10",
    ),
)
EXAMPLES: dict[str, tuple[Example, ...]] = {"en": _ENGLISH, "zh": _CHINESE}


def few_shot_prompt(row: Row, form: str, examples: Sequence[Example] | None = None) -> list[Message]:
    """Ask a question after worked examples, which stand as earlier turns of the conversation.

    Args:
        row ([`~trl_r1.rows.Row`]): The question.
        form (`str`): The form of the examples' answers, `"boxed"` or `"answer"`.
        examples (`Sequence[Example]`, *optional*): Instead of ours, which are in English and in Chinese.

    Returns:
        `list[dict]`: Messages.
    """
    if examples is None:
        language = row.language or detect_language(question_text(row.prompt))
        examples = EXAMPLES.get(language or "en", _ENGLISH)
    turns: list[Message] = []
    for example in examples:
        answer = r1_completion(example.reasoning, example.answer, example.summary, form=form)
        turns += [{"role": "user", "content": example.question}, {"role": "assistant", "content": answer}]
    asked = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else row.prompt
    return [*turns, *asked]


def asking(source: str, form: str, examples: Sequence[Example] | None = None) -> Callable[[Row], Prompt]:
    """Return how a source asks a question.

    Args:
        source (`str`): One of [`SOURCES`].
        form (`str`): The form that is asked for.
        examples (`Sequence[Example]`, *optional*): For `"few_shot"`, instead of ours.

    Returns:
        `Callable`: From a row to the prompt for the sampler.

    Raises:
        [`ConfigurationError`]: There is no such source.
    """
    if source == "few_shot":
        return lambda row: few_shot_prompt(row, form, examples)
    if source == "direct":
        return lambda row: direct_prompt(question_text(row.prompt), language=row.language, form=form)
    if source == "r1_zero":
        return lambda row: row.prompt
    raise unknown("source of cold-start data", source, SOURCES)


def examples_from(solutions: Sequence[WorkedSolution]) -> tuple[Example, ...]:
    """Turn a user's worked solutions into examples.

    Raises:
        [`DataError`]: There is none.
    """
    if not solutions:
        raise DataError("The file of worked examples holds none. Give one to five.")
    return tuple(Example(question_text(s.row.prompt), s.reasoning, s.summary, s.answer) for s in solutions)
