"""What supervised fine-tuning trains on: prompt and target in token ids, before TRL's templates could see them.

Chat templates are written for conversations, and many cut the thinking out of what the assistant said. So the template
renders the *prompt* alone, as sampling and evaluation do (trap 16), and the target is its own text plus EOS.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.prompts import THINK_OPEN, PromptTemplate, detect_prefill
from trl_r1.responses import THINK_CLOSE, completion_text
from trl_r1.rows import Prompt

logger = logging.getLogger(__name__)

IGNORED = -100
_TAGS = (THINK_OPEN, THINK_CLOSE, "<answer>", "</answer>")


def prompt_ids(prompt: Prompt, tokenizer: Any, template: PromptTemplate | None = None) -> tuple[list[int], str]:
    """Tokenise a prompt as sampling and evaluation do.

    Args:
        prompt (`str` or `list[dict]`): The question. Without a template, text is what the model sees as it is, and
            messages go through the tokenizer's chat template.
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        template ([`PromptTemplate`], *optional*): How the question is rendered.

    Returns:
        `tuple[list[int], str]`: Token ids, and what the rendered prompt opens of the completion.
    """
    if template is None:
        template = None if isinstance(prompt, str) else PromptTemplate("chat")
    rendered = str(prompt) if template is None else template.render(prompt, tokenizer)
    # A chat template writes BOS itself (trap 15).
    plain = template is None or template.name == "base"
    return list(tokenizer(rendered, add_special_tokens=plain)["input_ids"]), detect_prefill(rendered)


def target_text(target: str, prefill: str, template: PromptTemplate | None = None) -> str:
    """Return what the model is to write: the target without what the prompt has opened.

    Args:
        target (`str`): The whole response, thinking included.
        prefill (`str`): What the rendered prompt opens, such as `"<think>\\n"`.
        template ([`PromptTemplate`], *optional*):
            The prompt's. R1-Zero's plain text ends in a word (`Assistant:`), after which a space follows.

    Raises:
        [`DataError`]: A target that does not go on from what the prompt opened.
    """
    opened = prefill.strip()
    if not opened:
        if template is None:
            return target
        return f" {target.lstrip()}" if template.name == "base" else target.lstrip()
    if not opened.endswith(THINK_CLOSE):
        body = target.lstrip()
        if body.startswith(THINK_OPEN):
            return body.removeprefix(THINK_OPEN).lstrip()
        raise DataError(
            f"The prompt opens the thinking ({prefill!r}) but a target does not begin with {THINK_OPEN}: {target[:80]!r}. "
            "Set prefill_think: false, or use traces with thinking."
        )
    if THINK_CLOSE in target:
        raise ConfigurationError(
            f"The chat template closes the thinking in the prompt ({prefill!r}), so the targets' thinking would be taught "
            "after its end. Switch thinking on in chat_template_kwargs (such as enable_thinking: true)."
        )
    return target


def tokenize(row: Mapping[str, Any], tokenizer: Any, template: PromptTemplate | None = None) -> dict[str, list[int]]:
    """Turn a row into token ids and labels; only the completion and its EOS are labelled.

    Prompt and completion are tokenised apart, as they are when the model writes the completion itself. Labels come from
    lengths, never from ids, so the EOS keeps its label where it is the padding token too (trap 18).

    Args:
        row (`Mapping`): `prompt` (text or messages) and `completion` (text, or messages of the assistant).
        tokenizer (`PreTrainedTokenizerBase`): The model's; it must have an EOS token.
        template ([`PromptTemplate`], *optional*): See [`prompt_ids`].

    Returns:
        `dict`: `input_ids` and `labels`, lists of one length.

    Raises:
        [`DataError`]: An empty target, or one that does not go on from what the prompt opened.
        [`ConfigurationError`]: A tokenizer without EOS.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            "The tokenizer has no EOS token: a model trained without one does not stop. Set eos_token."
        )
    text = completion_text(row["completion"]).rstrip().removesuffix(tokenizer.eos_token).rstrip()
    if not text:
        raise DataError(f"An empty completion for the prompt {str(row['prompt'])[:120]!r}. Leave such rows out.")
    prompt, prefill = prompt_ids(row["prompt"], tokenizer, template)
    target = tokenizer(target_text(text, prefill, template), add_special_tokens=False)["input_ids"]
    target = [*target, tokenizer.eos_token_id]
    return {"input_ids": prompt + target, "labels": [IGNORED] * len(prompt) + target}


def has_targets(columns: Sequence[str]) -> bool:
    """Whether rows with these columns are prompts and completions, which [`tokenize`] takes."""
    return "prompt" in columns and "completion" in columns and "input_ids" not in columns


def check_lengths(lengths: Sequence[int], max_length: int | None, allowed: float) -> list[int]:
    """Find the sequences that fit, and refuse to start when too many would lose their EOS (trap 20).

    Args:
        lengths (`Sequence[int]`): Tokens of every sequence, prompt and target.
        max_length (`int`, *optional*): The limit; `None` for none.
        allowed (`float`): Largest share of longer ones.

    Returns:
        `list[int]`: Indices of the sequences that fit.

    Raises:
        [`DataError`]: More are too long than allowed; the message says which length would hold them.
    """
    if max_length is None:
        return list(range(len(lengths)))
    kept = [index for index, length in enumerate(lengths) if length <= max_length]
    cut = len(lengths) - len(kept)
    if cut > allowed * len(lengths):
        ordered = sorted(lengths)
        holds = ordered[max(0, len(ordered) - int(allowed * len(ordered)) - 1)]
        raise DataError(
            f"{cut} of {len(lengths)} sequences ({cut / len(lengths):.1%}) are longer than max_length={max_length} tokens: "
            f"truncated, their targets would lose the EOS and teach the model not to stop (allowed: {allowed:.1%}, "
            f"max_truncated_targets). The longest has {ordered[-1]} tokens. Set max_length to {holds} or more, or leave the "
            "long traces out."
        )
    if cut:
        logger.warning("%d of %d sequences are longer than max_length=%d and left out.", cut, len(lengths), max_length)
    return kept


def check_tags(tokenizer: Any) -> None:
    """Refuse thinking tags that are special tokens: they would vanish from decoded completions (trap 21).

    Raises:
        [`ConfigurationError`]: Naming the tags.
    """
    special = sorted(set(_TAGS) & set(tokenizer.all_special_tokens))
    if special:
        raise ConfigurationError(
            f"{', '.join(special)} are special tokens of the tokenizer and would vanish when completions are decoded. Add "
            "them with special=False (new_tokens does), or remove them from additional_special_tokens."
        )
