r"""How questions are asked: R1's protocol, R1-Zero's, or the model's own.

R1 is evaluated at temperature 0.6 and top-p 0.95 with at most 32,768 tokens, never greedily (v1 §3), by a prompt that ends
in the boxed instruction, without a system prompt and with the reply forced to begin with `<think>\n` (README, "Usage
recommendations").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.prompts import BOXED_INSTRUCTION, THINK_OPEN, PromptTemplate, detect_prefill, select_template
from trl_r1.rows import Prompt

PROTOCOLS = ("auto", "r1", "zero", "own")
TEMPERATURE, TOP_P, MAX_TOKENS = 0.6, 0.95, 32_768
FORCED_PREFILL = f"{THINK_OPEN}\n"


@dataclass(frozen=True)
class EvaluationTemplate(PromptTemplate):
    r"""A template that opens the thinking even where the model's own does not, and can go on from a given text.

    A prompt given as messages may end in one of role `assistant`: it is what the completion begins with, after the prefill.
    Budget forcing asks so ([`trl_r1.evaluation.budget`]).
    """

    def render(self, prompt: Prompt, tokenizer: Any = None) -> str:
        """Return the exact text the model sees; see [`PromptTemplate.render`]."""
        begun = ""
        if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
            *prompt, last = prompt
            begun = last["content"]
        rendered = super().render(prompt, tokenizer)
        # The base template writes its prefill itself, some chat templates do.
        opened = "" if self.name == "base" or detect_prefill(rendered) else self.prefill
        return rendered + opened + begun


def choose_protocol(tokenizer: Any, name: str = "auto") -> str:
    """Return the protocol that `"auto"` means for a model: R1's where there is a chat template, else R1-Zero's.

    Raises:
        [`ConfigurationError`]: For an unknown name, or `"own"` without a chat template.
    """
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    chat = bool(getattr(tokenizer, "chat_template", None))
    if name == "own" and not chat:
        raise ConfigurationError(
            "protocol='own' asks by the tokenizer's chat template, and this one has none. Use 'zero' or 'r1'."
        )
    return ("r1" if chat else "zero") if name == "auto" else name


def template_for(tokenizer: Any, protocol: str = "auto") -> EvaluationTemplate:
    r"""Build the template of a protocol.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        protocol (`str`, defaults to `"auto"`):
            `"r1"`: the chat template, the thinking forced open; `"zero"`: R1-Zero's plain text and tags; `"own"`: the chat
            template as it is (trap 36: a baseline is measured under our template and under its own).

    Returns:
        [`EvaluationTemplate`]: The boxed instruction is not in it, since not every benchmark wants it: see [`ask`].
    """
    protocol = choose_protocol(tokenizer, protocol)
    if protocol == "zero":
        template = select_template(tokenizer, "base")
    else:
        template = select_template(tokenizer, "chat", form="boxed", prefill_think=protocol == "r1", instruction="")
        if protocol == "r1" and not template.prefill:
            template = replace(template, prefill=FORCED_PREFILL)
    fields = {name: getattr(template, name) for name in PromptTemplate.__dataclass_fields__}
    return EvaluationTemplate(**fields)


def ask(prompt: Prompt, form: str, template: PromptTemplate) -> Prompt:
    r"""Return the question as it is put: with the boxed instruction at the end where benchmark and template want it.

    Args:
        prompt (`str` or `list[dict]`): The question.
        form (`str`): The benchmark's: `"boxed"` or `"plain"`.
        template ([`PromptTemplate`]): R1-Zero's asks for tags by itself.
    """
    if form != "boxed" or template.form != "boxed":
        return prompt
    if isinstance(prompt, str):
        return f"{prompt.rstrip()}\n\n{BOXED_INSTRUCTION}"
    return replace(PromptTemplate("chat"), instruction=BOXED_INSTRUCTION).messages(prompt)
