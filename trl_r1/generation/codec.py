"""Prompts into token ids and token ids into completions: one way for every backend that knows the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trl_r1.prompts import PromptTemplate
from trl_r1.rows import Completion, Prompt

# Kept in the text also where a tokenizer has made them special tokens, which decoding would drop (trap 21).
KEPT_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Questions whose ids are kept.
_REMEMBERED = 1024


class PromptCodec:
    """Encodes questions and decodes completions of one model.

    Args:
        template ([`~trl_r1.prompts.PromptTemplate`]): How a question becomes text.
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        eos_token_ids (`Iterable[int]`): Every id that ends a completion.
    """

    def __init__(self, template: PromptTemplate, tokenizer: Any, eos_token_ids: Iterable[int] = ()) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.eos_token_ids = tuple(eos_token_ids)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {token for token, content in added.items() if content.special} | set(tokenizer.all_special_ids)
        kept = {token for token in special if tokenizer.convert_ids_to_tokens(token) in KEPT_TAGS}
        self._hidden = (special - kept) | set(self.eos_token_ids)
        self._encoded: dict[str, list[int]] = {}  # a plain dictionary, since codecs are pickled

    def encode(self, prompt: Prompt) -> list[int]:
        """Return a question's token ids: what the tokenizer makes of the rendered prompt, one BOS at most.

        A chat template writes its own BOS; the tokenizer adds the plain text's (trap 15).
        """
        text = self.template.render(prompt, self.tokenizer)
        ids = self._encoded.get(text)
        if ids is None:  # rejection sampling asks for each completion of a question by itself
            if len(self._encoded) >= _REMEMBERED:
                self._encoded.clear()
            ids = self._encoded[text] = self.tokenizer(text, add_special_tokens=self.template.name == "base")[
                "input_ids"
            ]
        return list(ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens but with thinking tags, whatever kind of token they are."""
        shown = [token for token in token_ids if token not in self._hidden]
        text: str = self.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def completion(self, token_ids: Sequence[int], finish_reason: str | None, stop: Sequence[str] = ()) -> Completion:
        """Return the completion that token ids spell.

        Args:
            token_ids (`Sequence[int]`): As sampled, EOS included.
            finish_reason (`str`, *optional*): The backend's; all but `"length"` count as `"stop"`.
            stop (`Sequence[str]`): Texts that end a completion; the first one found ends the text, and stays in it.
        """
        text = cut_at_stop(self.decode(token_ids), stop)
        reason = "length" if finish_reason == "length" else "stop"
        return Completion(text, tuple(token_ids), reason, self.template.prefill)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the end of the stop text that is complete first."""
    ends = [place + len(one) for one in stop if (place := text.find(one)) >= 0]
    return text[: min(ends)] if ends else text
