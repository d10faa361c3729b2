"""OpenAI's protocol, both ways: what a request says and what of the reply is the completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl_r1.exceptions import ConfigurationError
from trl_r1.generation.base import SamplingSettings
from trl_r1.generation.codec import PromptCodec, cut_at_stop
from trl_r1.prompts import THINK_OPEN, PromptTemplate
from trl_r1.rows import Completion, Prompt

_PATHS = {"completions": "completions", "chat": "chat/completions"}
# vLLM takes what a request leaves open from the model's own generation config, and Instruct models bring penalties.
_NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
# A server that withholds a completion withholds it however often it is asked; what there is of it counts as cut off.
_FINAL = ("stop", "length", "content_filter")
_REASONING = ("reasoning_content", "reasoning")  # where a server's reasoning parser puts the thinking


class Protocol:
    """Bodies and replies of one model.

    Args:
        model (`str`): The model, by the servers' name.
        template ([`~trl_r1.prompts.PromptTemplate`]): How a question becomes text, or messages.
        codec ([`PromptCodec`], *optional*): Where the tokenizer is known.
        api (`str`): `"completions"` or `"chat"`.
        is_vllm (`bool`): Whether to use vLLM's extensions.
    """

    def __init__(
        self, model: str, template: PromptTemplate, codec: PromptCodec | None, api: str, is_vllm: bool
    ) -> None:
        self.path = _PATHS[api]
        self._model = model
        self._template = template
        self._codec = codec if api == "completions" else None
        self._chat = api == "chat"
        self._is_vllm = is_vllm

    def body(self, prompt: Prompt, settings: SamplingSettings, seed: int | None) -> dict[str, Any]:
        """Return what is posted for one completion."""
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "n": 1,
        }
        if settings.stop:
            body["stop"] = list(settings.stop)
        if self._is_vllm:
            body |= {"top_k": settings.top_k, **_NEUTRAL}
        elif settings.top_k:
            body["top_k"] = settings.top_k
        if seed is not None:
            body["seed"] = seed
        if self._is_vllm:
            body["include_stop_str_in_output"] = True
            if self._codec is not None:
                body |= {"return_token_ids": True, "skip_special_tokens": False}
        if self._chat:
            body["messages"] = self._template.messages(prompt)
            if self._template.chat_template_kwargs:
                body["chat_template_kwargs"] = dict(self._template.chat_template_kwargs)
        elif self._codec is not None:
            # As token ids: a server that tokenises a rendered chat adds a second BOS (trap 15).
            body["prompt"] = self._codec.encode(prompt)
        else:
            body["prompt"] = self._template.render(prompt)
        return body

    @staticmethod
    def check(reply: Any) -> None:
        """Raise `ValueError` for a reply that is no completion: what a proxy or a dying server may send."""
        if not isinstance(reply, Mapping) or not reply.get("choices"):
            raise ValueError(f"a reply without choices: {reply!r:.200}")
        if reply["choices"][0].get("finish_reason") not in _FINAL:
            raise ValueError(f"an unfinished completion: {reply['choices'][0]!r:.200}")

    def completion(self, reply: Mapping[str, Any], settings: SamplingSettings) -> Completion:
        """Return the completion that a checked reply holds."""
        choice = reply["choices"][0]
        reason = "stop" if choice["finish_reason"] == "stop" else "length"
        if self._codec is not None and choice.get("token_ids"):
            return self._codec.completion(choice["token_ids"], reason, settings.stop)
        text, prefill = str(choice.get("text") or ""), self._template.prefill
        if self._chat:
            text, prefill = _chat_text(choice.get("message") or {})
        matched = choice.get("stop_reason") or choice.get("matched_stop")
        if isinstance(matched, str) and matched in settings.stop and not text.endswith(matched):
            text += matched
        return Completion(cut_at_stop(text, settings.stop), (), reason, prefill)


def _chat_text(message: Mapping[str, Any]) -> tuple[str, str]:
    """Return a message's text with its thinking, and what the server's template must have opened of it."""
    content = message.get("content") or ""
    thinking = next((message[name] for name in _REASONING if message.get(name)), None)
    if thinking is not None:
        return f"{THINK_OPEN}\n{str(thinking).strip()}\n</think>\n\n{content.lstrip()}", ""
    opened = "</think>" in content and THINK_OPEN not in content
    return content, f"{THINK_OPEN}\n" if opened else ""


def refusal(status: int, text: str, url: str, what: str) -> ConfigurationError:
    """Return the error for a request that a server will not take, however often it is asked."""
    hints = {
        401: "Set the environment variable that server_key_env names.",
        403: "Set the environment variable that server_key_env names.",
        404: "Check server_urls (they end in /v1) and the model's name.",
    }
    fix = hints.get(
        status, "Check the model's context length against prompt + max_tokens, and the server's own options."
    )
    return ConfigurationError(f"{url} refused {what} with status {status}: {text[:500].strip()} {fix}")
