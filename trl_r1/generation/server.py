"""Sampling from OpenAI-compatible servers elsewhere (`vllm serve` and others): one of them, or one on each machine.

Each completion is a request of its own, as in [`trl_r1.generation.vllm`]: it comes back when it has finished, can be ended
alone (the connection is closed, which frees its place in the server), and is tried again on another server when its own dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from trl_r1.exceptions import ConfigurationError, EngineError
from trl_r1.generation.base import Sample, SampleRequest, SamplingSettings
from trl_r1.generation.codec import PromptCodec
from trl_r1.generation.config import SamplerConfig
from trl_r1.generation.replies import Protocol
from trl_r1.generation.requests import sample_seed, wanted_indices
from trl_r1.generation.serverpool import ServerPool
from trl_r1.prompts import BOXED_INSTRUCTION, TAG_INSTRUCTION, PromptTemplate

logger = logging.getLogger(__name__)


class ServerSampler:
    """A [`~trl_r1.generation.base.Sampler`] on servers that speak OpenAI's protocol.

    Without a seed a server draws from its own generator: one that is restarted may then draw again what it drew before.

    Args:
        pool ([`ServerPool`]): The servers.
        template ([`~trl_r1.prompts.PromptTemplate`]): How a question becomes text.
        model (`str`): The model, by the servers' name.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The model's. With it prompts are sent as token ids.
        eos_token_ids (`Sequence[int]`): Every id that ends a completion, where the tokenizer is known.
        api (`str`, defaults to `"completions"`): `"completions"` or `"chat"`.
        is_vllm (`bool`, defaults to `False`): Whether the servers take vLLM's extensions of the protocol.
        fingerprint (`str`, *optional*): Of the model; by default its name.
    """

    def __init__(
        self,
        pool: ServerPool,
        template: PromptTemplate,
        model: str,
        *,
        tokenizer: Any = None,
        eos_token_ids: Sequence[int] = (),
        api: str = "completions",
        is_vllm: bool = False,
        fingerprint: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.name = model
        self.fingerprint = fingerprint or model
        self._pool = pool
        codec = PromptCodec(template, tokenizer, eos_token_ids) if tokenizer is not None else None
        self._protocol = Protocol(model, template, codec, api, is_vllm)
        self._loop = _Loop()
        self._running: dict[tuple[str, int], Future[Any]] = {}
        self._cancelled: set[str] = set()
        self._streaming = False

    @classmethod
    def from_config(
        cls, config: SamplerConfig, *, tokenizer: Any = None, template: PromptTemplate | None = None
    ) -> ServerSampler:
        """Connect to the servers that a configuration names. See [`~trl_r1.generation.config.open_sampler`]."""
        pool = ServerPool(
            config.server_urls,
            concurrency=config.server_concurrency,
            timeout=config.server_timeout,
            retries=config.server_retries,
            key=os.environ.get(config.server_key_env),
        )
        served = pool.served_model(config.model_name_or_path)
        eos: list[int] = []
        chat = config.server_api == "chat"
        if tokenizer is None and not chat:
            tokenizer, eos = _tokenizer(config, served.root or served.id)
        elif tokenizer is not None:
            eos = [tokenizer.eos_token_id]
        if template is None:
            template = _chat_template(config) if chat else _text_template(config, tokenizer)
        return cls(
            pool,
            template,
            served.id,
            tokenizer=tokenizer,
            eos_token_ids=eos,
            api=config.server_api,
            is_vllm=served.is_vllm,
            fingerprint=f"{served.id} {served.root}".strip(),
        )

    def stream(self, requests: Iterable[SampleRequest], settings: SamplingSettings) -> Iterator[Sample]:
        """Yield each completion when it arrives. See [`~trl_r1.generation.base.Sampler`].

        Raises:
            [`EngineError`]: A request failed on every attempt; all completions that had arrived were yielded before.
            [`ConfigurationError`]: A server refused a request for good.
        """
        if self._streaming:
            raise EngineError("This sampler has a stream running already. Finish or close that one first.")
        self._streaming = True
        self._cancelled.clear()
        arrived: queue.Queue[tuple[tuple[str, int], Any]] = queue.Queue()
        wanted = self._wanted(requests)
        failure: BaseException | None = None
        try:
            while True:
                while failure is None and len(self._running) < self._pool.room:
                    if (one := next(wanted, None)) is None:
                        break
                    request, index = one
                    self._submit(request, index, settings, arrived)
                if not self._running or (failure is not None and arrived.empty()):
                    break
                place, result = arrived.get()
                if self._running.pop(place, None) is None:
                    continue  # cancelled meanwhile
                if isinstance(result, BaseException):
                    failure = failure or result
                else:
                    yield Sample(*place, result)
        finally:
            self._streaming = False
            self._end(list(self._running))
        if failure is not None:
            raise failure

    def cancel(self, key: str) -> None:
        """End what is unfinished of a request: its connections are closed."""
        self._cancelled.add(key)
        self._end([place for place in self._running if place[0] == key])

    def close(self) -> None:
        """Close the connections. Safe to call twice."""
        self._end(list(self._running))
        self._loop.stop(self._pool.close())

    def _wanted(self, requests: Iterable[SampleRequest]) -> Iterator[tuple[SampleRequest, int]]:
        for request in requests:
            for index in wanted_indices(request):
                if request.key not in self._cancelled:
                    yield request, index

    def _submit(
        self,
        request: SampleRequest,
        index: int,
        settings: SamplingSettings,
        arrived: queue.Queue[tuple[tuple[str, int], Any]],
    ) -> None:
        place = (request.key, index)
        seed = sample_seed(settings.seed, *place)
        body = self._protocol.body(request.prompt, settings, seed)

        async def ask() -> None:
            what = f"completion {index} of {request.key!r}"
            try:
                reply = await self._pool.post(self._protocol.path, body, what, self._protocol.check)
                result: Any = self._protocol.completion(reply, settings)
            except Exception as error:  # whatever it is, the reader of the stream must not wait for ever
                result = error
            arrived.put((place, result))

        self._running[place] = self._loop.start(ask())

    def _end(self, places: list[tuple[str, int]]) -> None:
        for place in places:
            self._running.pop(place).cancel()


class _Loop:
    """An event loop in a thread of its own, so that requests go on while the reader of the stream works."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server-sampler", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        if self._loop.is_closed():
            work.close()
            raise EngineError("This sampler is closed. Open another one.")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self, last: Coroutine[Any, Any, Any]) -> None:
        if self._loop.is_closed():
            last.close()
            return
        asyncio.run_coroutine_threadsafe(last, self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()


def _tokenizer(config: SamplerConfig, served: str) -> tuple[Any, list[int]]:
    """Load the served model's tokenizer where its name says which; `None` where prompts can do without."""
    named = config.model_name_or_path
    if named is None and (config.template == "base" or not os.path.isdir(served)):
        return None, []
    from trl_r1.generation.checkpoint import Checkpoint

    checkpoint = Checkpoint.of(SamplerConfig(model_name_or_path=named or served, model_revision=config.model_revision))
    tokenizer = checkpoint.tokenizer()
    return tokenizer, checkpoint.eos_token_ids(tokenizer)


def _text_template(config: SamplerConfig, tokenizer: Any) -> PromptTemplate:
    from trl_r1.prompts import select_template

    if tokenizer is None and config.template != "base":
        raise ConfigurationError(
            f"template={config.template!r} needs the tokenizer of the served model. Set model_name_or_path to its Hub id or "
            "folder, or template: base (R1-Zero's plain text), or server_api: chat (the server's own template)."
        )
    return select_template(
        tokenizer,
        config.template,
        form=config.answer_form,
        prefill_think=config.prefill_think,
        instruction=config.instruction,
    )


def _chat_template(config: SamplerConfig) -> PromptTemplate:
    """Return the template of messages that a server renders; whether it teaches a form cannot be seen from here."""
    if config.template == "base":
        raise ConfigurationError("server_api='chat' sends messages; template: base needs server_api: completions.")
    default = TAG_INSTRUCTION if config.answer_form == "answer" else BOXED_INSTRUCTION
    instruction = default if config.instruction is None else config.instruction
    kwargs = {"prefill_think": True} if config.prefill_think else {}
    return PromptTemplate("chat", "", config.answer_form, instruction, kwargs)
