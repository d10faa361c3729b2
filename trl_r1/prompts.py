"""What is asked, exactly: R1-Zero's plain-text template and a chat template for the later stages.

Training, rollout, evaluation and `--preview` all render through one [`PromptTemplate`], so that they cannot show the
model different prompts (`r1_zero.jinja` and `r1_chat.jinja` lie beside this file).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template

from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.rows import Message, Prompt

logger = logging.getLogger(__name__)

THINK_OPEN = "<think>"
CHOICES = ("auto", "base", "chat")
FORMS = ("answer", "boxed")

# The sentence of R1-Zero's template (arXiv 2501.12948v1, Table 1) that asks for the tags, for chat models that were
# never taught them.
TAG_INSTRUCTION = (
    "First think about the reasoning process in the mind and then provide the answer. The reasoning process and answer "
    "are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process "
    "here </think> <answer> answer here </answer>."
)
# The evaluation prompt of the R1 model card ("Usage recommendations").
BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

# What a template may have written of the answer: an opened thinking, or an empty one (thinking switched off).
_PREFILL = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


@lru_cache(maxsize=8)
def template_source(name: str) -> str:
    """Return the text of a shipped template: `"r1_zero"`, `"r1_chat"`, `"direct"` or `"rewrite"`."""
    return (Path(__file__).parent / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    return Template(source)


def detect_prefill(rendered: str) -> str:
    r"""Return the part of the completion that a rendered prompt already holds.

    Args:
        rendered (`str`): A prompt as the model sees it.

    Returns:
        `str`: E.g. `"<think>\n"` when the prompt ends in an opened thinking, else `""`. Tags elsewhere in the prompt,
        such as those R1-Zero's template explains, do not count.
    """
    match = _PREFILL.search(rendered)
    return match.group() if match else ""


@dataclass(frozen=True)
class PromptTemplate:
    """How a question becomes the text that a model sees.

    Args:
        name (`str`): `"base"` (plain text, no chat template) or `"chat"` (the tokenizer's own template).
        prefill (`str`, defaults to `""`):
            What the prompt opens of the completion, such as `"<think>\\n"`. Rewards are told by a column of this name.
        form (`str`, defaults to `"answer"`): The form asked for: `"answer"` (R1-Zero's tags) or `"boxed"` (R1's own).
        instruction (`str`, defaults to `""`): Added to the last user message of a chat; unused by `"base"`.
        chat_template_kwargs (`dict`): Passed to `apply_chat_template`; give the same to TRL's config.
    """

    name: str
    prefill: str = ""
    form: str = "answer"
    instruction: str = ""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in CHOICES[1:]:
            raise unknown("template", self.name, CHOICES[1:])
        if self.form not in FORMS:
            raise unknown("answer form", self.form, FORMS)

    def render(self, prompt: Prompt, tokenizer: Any = None) -> str:
        """Return the exact text the model sees, prefill included and without what the tokenizer adds (BOS of "base").

        Args:
            prompt (`str` or `list[dict]`): The question.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed by `"chat"`, whose template it holds.

        Raises:
            [`ConfigurationError`]: For a chat template without a tokenizer that has one.
        """
        if self.name == "base":
            return _compiled(template_source("r1_zero")).render(prompt=_question(prompt)) + self.prefill
        if tokenizer is None or not getattr(tokenizer, "chat_template", None):
            raise ConfigurationError(
                "The chat template needs a tokenizer with a `chat_template`, and this one has none. Use "
                "select_template(tokenizer, 'chat'), which sets ours, or the 'base' template."
            )
        return tokenizer.apply_chat_template(
            self.messages(prompt), tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
        )

    def messages(self, prompt: Prompt) -> list[Message]:
        """Return the prompt as messages, the instruction added to the last one of the user."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        if self.instruction:
            last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)
            if last is None:
                raise ConfigurationError("A prompt given as messages needs one of role 'user'. Got none.")
            if not messages[last]["content"].endswith(self.instruction):
                messages[last]["content"] = f"{messages[last]['content']}\n\n{self.instruction}"
        return messages

    def trl_prompt(self, prompt: Prompt) -> Prompt:
        """Return the prompt as TRL is given it: rendered text for `"base"`, messages for `"chat"`."""
        return self.render(prompt) if self.name == "base" else self.messages(prompt)

    def apply(self, rows: Any) -> Any:
        """Turn rows into what a TRL trainer takes.

        Args:
            rows (`dict`, `datasets.Dataset` or `datasets.DatasetDict`): Rows with a `prompt` column. Apply it once.

        Returns:
            The same type, `prompt` replaced by [`PromptTemplate.trl_prompt`] and a `prefill` column added.
        """
        if hasattr(rows, "map"):
            # Arrow keeps one type for a column: text becoming messages must replace it, not be cast back to text.
            return rows.map(self._columns, remove_columns=["prompt"], desc=f"Applying the {self.name} template")
        return {**rows, **self._columns(rows)}

    def _columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"prompt": self.trl_prompt(row["prompt"]), "prefill": self.prefill}

    def gold(self, answer: str) -> str:
        """Return a completion with this answer that must score the maximum: what the model would write itself."""
        return gold_completion(answer, form=self.form, prefill=self.prefill)


def _question(prompt: Prompt) -> str:
    """Flatten messages into the one question that the plain template takes."""
    if isinstance(prompt, str):
        return prompt.strip()
    names = {"user": "User: ", "assistant": "Assistant: "}
    turns = [(m["role"], m["content"].strip()) for m in prompt]
    if not any(role == "user" for role, _ in turns):
        raise ConfigurationError("A prompt given as messages needs one of role 'user'. Got none.")
    if sum(role in names for role, _ in turns) == 1:
        return "\n\n".join(text for _, text in turns)
    # The template itself writes the first "User: ".
    return " ".join(names.get(role, "") + text for role, text in turns).removeprefix("User: ")


def select_template(
    tokenizer: Any,
    choice: str = "auto",
    *,
    form: str = "answer",
    prefill_think: bool = False,
    instruction: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> PromptTemplate:
    """Choose the template for a model, and say which.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The model's. For `"chat"`, a tokenizer without a chat template is given `r1_chat.jinja`.
        choice (`str`, defaults to `"auto"`): `"base"`, `"chat"`, or `"auto"`: chat if there is a chat template.
        form (`str`, defaults to `"answer"`): `"answer"` (R1-Zero's tags) or `"boxed"` (R1's thinking and summary).
        prefill_think (`bool`, defaults to `False`):
            Open the thinking in the prompt. For `"chat"` this sets the template variable `prefill_think`, which a
            tokenizer's own template may ignore.
        instruction (`str`, *optional*):
            Sentence added to the user's message of a chat. By default the one for `form`, unless the chat template
            speaks of `<think>` itself: such a model was taught the form.
        chat_template_kwargs (`dict`, *optional*): Further variables of the chat template.

    Returns:
        [`PromptTemplate`]: Its `prefill` read off a rendered prompt, so that it is what the model is really given.

    Raises:
        [`ConfigurationError`]: For an unknown choice or form.
    """
    if choice not in CHOICES:
        raise unknown("template", choice, CHOICES)
    own = getattr(tokenizer, "chat_template", None)
    name = ("chat" if own else "base") if choice == "auto" else choice
    if name == "base":
        reason = "the tokenizer has no chat template" if choice == "auto" else "as asked"
        logger.info("Prompts use R1-Zero's plain-text template (%s).", reason)
        return PromptTemplate("base", prefill=f" {THINK_OPEN}\n" if prefill_think else "", form=form)
    kwargs = dict(chat_template_kwargs or {})
    if prefill_think:
        kwargs["prefill_think"] = True
    if instruction is None:
        default = TAG_INSTRUCTION if form == "answer" else BOXED_INSTRUCTION
        instruction = default if own and THINK_OPEN not in str(own) else ""
    if not own:
        tokenizer.chat_template = template_source("r1_chat")
    template = PromptTemplate("chat", form=form, instruction=instruction, chat_template_kwargs=kwargs)
    prefill = detect_prefill(template.render("question", tokenizer))
    logger.info(
        "Prompts use %s chat template%s.",
        "the tokenizer's own" if own else "our r1_chat",
        f", which opens the completion with {prefill!r}" if prefill else "",
    )
    return PromptTemplate("chat", prefill, form, instruction, kwargs)


def gold_completion(
    answer: str, *, form: str = "answer", prefill: str = "", reasoning: str = "The answer follows directly."
) -> str:
    r"""Return a well-formed completion with a given answer.

    Args:
        answer (`str`): The answer.
        form (`str`, defaults to `"answer"`): `"answer"` (R1-Zero's tags) or `"boxed"` (thinking, then `\boxed{}`).
        prefill (`str`, defaults to `""`): What the prompt has already opened, and the completion thus leaves out.
        reasoning (`str`, *optional*): The thinking.

    Returns:
        `str`: `prefill` + this text is the complete form.
    """
    if form not in FORMS:
        raise unknown("answer form", form, FORMS)
    end = f"<answer> {answer} </answer>" if form == "answer" else f"The answer is \\boxed{{{answer}}}."
    opened = prefill.strip()
    if opened.endswith("</think>"):
        return end
    start = "" if opened.endswith(THINK_OPEN) else f"{THINK_OPEN} "
    return f"{start}{reasoning} </think> {end}"


def direct_prompt(question: str, *, language: str | None = None, form: str = "boxed") -> str:
    """Ask for a long chain of thought with reflection and verification (arXiv 2501.12948v1 §2.3.1; `direct.jinja`).

    Args:
        question (`str`): The question.
        language (`str`, *optional*): ISO 639-1 code of the language to think in; the question's own when not given.
        form (`str`, defaults to `"boxed"`): The form asked for, one of [`FORMS`].

    Returns:
        `str`: The message for the model.
    """
    if form not in FORMS:
        raise unknown("answer form", form, FORMS)
    asked = {"question": question.strip(), "language": language_name(language), "form": form}
    return _compiled(template_source("direct")).render(**asked)


def rewrite_prompt(question: str, reasoning: str, answer: str, *, language: str | None = None) -> str:
    """Ask for a readable version of a chain of thought (arXiv 2501.12948v2 B.3.2; `rewrite.jinja`).

    Args:
        question (`str`): The question.
        reasoning (`str`): The thinking, without tags.
        answer (`str`): The right answer, which must stay.
        language (`str`, *optional*): ISO 639-1 code of the question's language.

    Returns:
        `str`: The message for the model, whose reply [`read_rewrite`] reads.
    """
    asked = {
        "question": question.strip(),
        "reasoning": reasoning,
        "answer": answer,
        "language": language_name(language),
    }
    return _compiled(template_source("rewrite")).render(**asked)


_REWRITE = re.compile(r"<reasoning>(.*)</reasoning>\s*<summary>(.*)</summary>", re.DOTALL)


def read_rewrite(reply: str) -> tuple[str, str] | None:
    """Take the reply to [`rewrite_prompt`] apart.

    Args:
        reply (`str`): What the model wrote; its own thinking, if any, is passed over.

    Returns:
        `tuple[str, str]` or `None`: The thinking and the summary; `None` when the reply does not have the form.
    """
    found = _REWRITE.search(reply.rpartition("</think>")[2])
    parts = (found[1].strip(), found[2].strip()) if found else ("", "")
    return parts if all(parts) else None


def r1_completion(reasoning: str, answer: str, summary: str = "", *, form: str = "boxed") -> str:
    r"""Put a completion together in the form that supervised fine-tuning teaches.

    Args:
        reasoning (`str`): The thinking, without tags.
        answer (`str`): The final answer.
        summary (`str`, defaults to `""`):
            What follows the thinking in the form `"boxed"`; without one, or where it has no box, a sentence with the answer
            is written. The form `"answer"` has no place for it.
        form (`str`, defaults to `"boxed"`): `"boxed"` (R1's thinking and summary) or `"answer"` (R1-Zero's tags).

    Returns:
        `str`: E.g. `"<think>\n…\n</think>\n\n… \boxed{72}."`.
    """
    if form not in FORMS:
        raise unknown("answer form", form, FORMS)
    if form == "answer":
        return f"{THINK_OPEN} {reasoning.strip()} </think> <answer> {answer.strip()} </answer>"
    closing = summary.strip()
    if "\\boxed{" not in closing:
        closing = f"{closing}\n\nThe answer is \\boxed{{{answer.strip()}}}.".strip()
    return f"{THINK_OPEN}\n{reasoning.strip()}\n</think>\n\n{closing}"


_LANGUAGES = {
    "en": "English", "zh": "Chinese", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "pt": "Portuguese", "ru": "Russian", "ar": "Arabic", "hi": "Hindi",
}  # fmt: skip


def language_name(code: str | None) -> str:
    """Name a language in a prompt: `"en"` is English, `None` the language of the question."""
    return (
        "the language of the question" if code is None else _LANGUAGES.get(code, f"the language with the code {code!r}")
    )
