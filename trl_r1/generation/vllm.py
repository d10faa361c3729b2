"""Sampling with an engine of one's own: questions go in as room appears, completions come out as they finish.

vLLM returns the n completions of one request together, when the last has ended (`ParentRequest` with `FINAL_ONLY`), or else
all of them token by token, whose objects cost a small model a large part of its rate. So each completion is a request here:
siblings stand next to each other in the queue, and prefix caching computes their prompt once, as it does for vLLM's own
children. Each can be ended alone, has a seed of its own, and need not be asked again when it exists on disk.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from trl_r1.exceptions import ConfigurationError, DataError, EngineError, MissingExtraError
from trl_r1.generation.base import Sample, SampleRequest, SamplingSettings
from trl_r1.generation.checkpoint import Checkpoint
from trl_r1.generation.codec import PromptCodec
from trl_r1.generation.config import SamplerConfig
from trl_r1.generation.options import check_options, on_cpu, require_vllm
from trl_r1.generation.requests import process_place, sample_seed, wait_for_everyone, wanted_indices
from trl_r1.generation.scopes import (
    collector_looks_at_new_objects_only,
    environment_restored,
    stdout_with_descriptor,
)
from trl_r1.generation.streaming import EngineStream
from trl_r1.generation.tuning import gpu_options, merged_options
from trl_r1.prompts import PromptTemplate

if TYPE_CHECKING:
    from trl_r1.generation.rollout import RolloutLLM

logger = logging.getLogger(__name__)

# Reserved in a trainer's engine, free in one of our own.
_FREE_HERE = ("tensor_parallel_size", "enable_sleep_mode", "distributed_executor_backend", "logprobs_mode")
# What vLLM takes for `max_lora_rank`.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# A CPU engine's KV cache: this share of the free memory, within bounds.
_CPU_KV_SHARE, _CPU_KV_LEAST, _CPU_KV_MOST = 0.2, 1 << 28, 4 << 30


class VLLMSampler:
    """A [`~trl_r1.generation.base.Sampler`] on a vLLM engine of its own.

    Args:
        llm (`RolloutLLM`): The engine, in this process.
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        template ([`~trl_r1.prompts.PromptTemplate`]): How a question becomes text.
        eos_token_ids (`Sequence[int]`): Every id that ends a completion.
        name (`str`): The model, as cards and manifests call it.
        lora_request (`LoRARequest`, *optional*): The adapter that answers.
        fingerprint (`str`, *optional*): Of the model's files; by default its name.

    Attributes:
        llm (`RolloutLLM`, *optional*): The engine; `None` once closed.
    """

    def __init__(
        self,
        llm: RolloutLLM,
        tokenizer: Any,
        template: PromptTemplate,
        *,
        eos_token_ids: Sequence[int],
        name: str,
        lora_request: Any = None,
        fingerprint: str | None = None,
    ) -> None:
        self.llm: RolloutLLM | None = llm
        self._stream: EngineStream | None = EngineStream(llm)
        self.tokenizer = tokenizer
        self.template = template
        self.name = name
        self.fingerprint = fingerprint or name
        self._codec = PromptCodec(template, tokenizer, eos_token_ids)
        self._lora_request = lora_request
        self._max_model_len = self._stream.max_model_len
        # Enough in the queue to fill every place that a step frees; more would only be drawn too early.
        self._room = self._stream.max_num_seqs + max(8, self._stream.max_num_seqs // 4)
        self._ids = count()
        self._running: dict[str, tuple[str, int]] = {}
        self._cancelled: set[str] = set()
        self._streaming = False

    @classmethod
    def from_config(
        cls, config: SamplerConfig, *, tokenizer: Any = None, template: PromptTemplate | None = None
    ) -> VLLMSampler:
        """Start the engine that a configuration names. See [`~trl_r1.generation.config.open_sampler`]."""
        checkpoint = Checkpoint.of(config)
        check_engine_options(config, checkpoint)
        tokenizer = tokenizer or checkpoint.tokenizer()
        template = template or checkpoint.template(config, tokenizer)
        lora_request = _lora_request(checkpoint)
        return cls(
            _start(engine_arguments(config, checkpoint)),
            tokenizer,
            template,
            eos_token_ids=checkpoint.eos_token_ids(tokenizer),
            name=checkpoint.name,
            lora_request=lora_request,
            fingerprint=checkpoint.fingerprint(),
        )

    def stream(self, requests: Iterable[SampleRequest], settings: SamplingSettings) -> Iterator[Sample]:
        """Yield each completion when it finishes. See [`~trl_r1.generation.base.Sampler`].

        Raises:
            [`EngineError`]: The sampler is closed, another stream is running, or vLLM gave up a request.
            [`DataError`]: A prompt leaves no room for a completion.
        """
        engine = self._opened()
        if self._streaming:
            raise EngineError("This sampler has a stream running already. Finish or close that one first.")
        self._streaming = True
        self._cancelled.clear()
        try:
            with collector_looks_at_new_objects_only():
                yield from self._finished(engine, requests, settings)
        finally:
            self._streaming = False
            # After an error of the engine itself, ending what runs fails too; the first error is the one to see.
            with suppress(Exception) if isinstance(sys.exception(), Exception) else nullcontext():
                self._abort(list(self._running))
                if self._stream is not None:
                    self._stream.drain()
            self._running.clear()

    def cancel(self, key: str) -> None:
        """End what is unfinished of a request of the running stream, and free its place in the engine."""
        self._cancelled.add(key)
        self._abort([name for name, (of, _) in self._running.items() if of == key])

    def close(self) -> None:
        """Shut the engine down. Safe to call twice."""
        if self._stream is not None:
            self._abort(list(self._running))
            self._stream.shut_down()
            self._stream = self.llm = None

    def _opened(self) -> EngineStream:
        if self._stream is None:
            raise EngineError("This sampler is closed. Open another one.")
        return self._stream

    def _abort(self, names: list[str]) -> None:
        if names and self._stream is not None:
            self._stream.abort(names)
        for name in names:
            del self._running[name]

    def _finished(
        self, engine: EngineStream, requests: Iterable[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sample]:
        wanted = self._wanted(requests)
        make = _parameters(settings, self._codec.eos_token_ids)
        while True:
            while len(self._running) < self._room and (one := next(wanted, None)) is not None:
                key, index, ids = one
                name = str(next(self._ids))
                self._running[name] = (key, index)
                engine.submit(name, ids, make(key, index), self._lora_request)
            if not self._running:
                return
            for output in engine.step():
                # Whoever reads the stream may have cancelled the rest of this step.
                if (found := self._running.pop(output.request_id, None)) is not None:
                    yield self._sample(*found, output.outputs[0], settings)

    def _wanted(self, requests: Iterable[SampleRequest]) -> Iterator[tuple[str, int, list[int]]]:
        for request in requests:
            ids = self._codec.encode(request.prompt)
            if len(ids) >= self._max_model_len:
                raise DataError(
                    f"The prompt of {request.key!r} has {len(ids)} tokens; the engine holds {self._max_model_len} for prompt "
                    "and completion. Raise the engine option max_model_len, or leave the question out."
                )
            for index in wanted_indices(request):
                if request.key not in self._cancelled:
                    yield request.key, index, ids

    def _sample(self, key: str, index: int, output: Any, settings: SamplingSettings) -> Sample:
        if output.finish_reason not in ("stop", "length"):
            raise EngineError(
                f"vLLM ended completion {index} of {key!r} with {output.finish_reason!r} instead of finishing it. Start again "
                "to go on from the samples on disk; lower max_num_seqs or raise the KV cache if it happens again."
            )
        return Sample(key, index, self._codec.completion(output.token_ids, output.finish_reason, settings.stop))


def _parameters(settings: SamplingSettings, eos_token_ids: Sequence[int]) -> Any:
    """Return a function that makes vLLM's parameters of one completion; without seeds they are all the same object."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    shared: dict[str, Any] = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "max_tokens": settings.max_tokens,
        "stop": list(settings.stop) or None,
        "include_stop_str_in_output": True,
        "stop_token_ids": list(eos_token_ids),
        "skip_special_tokens": False,  # a stop text may be a special token
        "detokenize": bool(settings.stop),
        "output_kind": RequestOutputKind.FINAL_ONLY,
    }
    if hasattr(SamplingParams, "skip_clone"):
        # A deep copy for each request is two fifths of what submitting costs. What vLLM writes into them (the model's own
        # end tokens) is the same for all requests.
        shared["skip_clone"] = True
    if settings.seed is None or settings.temperature == 0:
        one = SamplingParams(**shared)
        return lambda key, index: one
    return lambda key, index: SamplingParams(**shared, seed=sample_seed(settings.seed, key, index))


def check_engine_options(config: SamplerConfig, checkpoint: Checkpoint) -> None:
    """Refuse what the engine cannot do, before a weight is loaded.

    Raises:
        [`MissingExtraError`]: vLLM is not installed.
        [`ConfigurationError`]: An option is unknown, or this machine cannot do what is asked.
    """
    try:
        require_vllm()
    except MissingExtraError as error:
        raise MissingExtraError(
            "vLLM (backend: vllm)", *error.extras, otherwise="Or set backend: transformers."
        ) from error
    options = _options(config)
    if "model" in options:
        raise ConfigurationError("Engine option 'model' is not yours to set here. Set model_name_or_path instead.")
    if process_place()[1] > 1 and int(options.get("tensor_parallel_size", 1)) > 1:
        raise ConfigurationError(
            f"tensor_parallel_size={options['tensor_parallel_size']} in a launch of {process_place()[1]} processes: each has an "
            "engine of its own. Start one process (it uses several GPUs itself), or servers with backend: server."
        )
    rest = {name: value for name, value in options.items() if name not in _FREE_HERE}
    try:
        check_options(rest, config=checkpoint.config())
    except ConfigurationError as error:
        # Said in the words of a trainer's settings.
        raise ConfigurationError(str(error).replace("`use_vllm: false`", "`backend: transformers`")) from error
    if checkpoint.adapter is not None and checkpoint.lora_rank() > _RANKS[-1]:
        raise ConfigurationError(
            f"The adapter has rank {checkpoint.lora_rank()}; vLLM takes up to {_RANKS[-1]}. Merge it, or set backend: transformers."
        )


def engine_arguments(config: SamplerConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`: what model and machine ask for, the user's options on top."""
    model_config, options = checkpoint.config(), _options(config)
    chosen: dict[str, Any] = {
        "model": checkpoint.base,
        "revision": checkpoint.revision,
        "runner": "generate",
        "max_num_seqs": config.max_num_seqs,
        "dtype": config.dtype,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        # With vLLM's own, which is always the same, a second start would draw the first one's completions again.
        "seed": secrets.randbelow(2**31),
    }
    if on_cpu():
        chosen |= {"dtype": "float32"} if config.dtype == "auto" else {}
        chosen["enforce_eager"] = True  # compiling takes 20 to 40 s at every start; small models gain nothing from it
        # vLLM winds a seeded request's generator back when its prompt was cut in two, which a CPU generator cannot.
        chosen["enable_chunked_prefill"] = False
        if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            chosen["kv_cache_memory_bytes"] = int(min(_CPU_KV_MOST, max(_CPU_KV_LEAST, _CPU_KV_SHARE * free)))
    else:
        half = config.dtype != "float32" and str(getattr(model_config, "dtype", "")) != "torch.float32"
        chosen |= {"hf_overrides": {"head_dtype": "float32"}} if half else {}  # see options.platform_options
        chosen |= gpu_options(model_config, config.max_num_seqs, options)
    if checkpoint.adapter is not None:
        rank = checkpoint.lora_rank()
        chosen |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": next(one for one in _RANKS if one >= rank)}
    if process_place()[1] > 1:
        chosen["distributed_executor_backend"] = "external_launcher"  # this process' own GPU, nothing started beside it
    return merged_options(chosen, options)


def _options(config: SamplerConfig) -> Mapping[str, Any]:
    assert not isinstance(config.engine_options, str)
    return config.engine_options or {}


def _lora_request(checkpoint: Checkpoint) -> Any:
    if checkpoint.adapter is None:
        return None
    from huggingface_hub import snapshot_download
    from vllm.lora.request import LoRARequest

    folder = checkpoint.adapter if os.path.isdir(checkpoint.adapter) else snapshot_download(checkpoint.adapter)
    return LoRARequest("adapter", 1, folder)


def _start(arguments: Mapping[str, Any]) -> RolloutLLM:
    """Start an engine in this process, where a step costs no message, and leave the caller's generators alone."""
    wait_for_everyone()  # vLLM finds the launch's process group there
    from trl_r1.generation.rollout import RolloutLLM

    with environment_restored(), _in_this_process(), stdout_with_descriptor(), _own_generators():
        return RolloutLLM(**arguments)


@contextmanager
def _in_this_process() -> Iterator[None]:
    before = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]
        else:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = before


@contextmanager
def _own_generators() -> Iterator[None]:
    """Put back Python's generator, which vLLM seeds at its start. Torch's stays: the engine draws from it."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
