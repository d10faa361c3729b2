"""The trainer's own vLLM engine: any option, weights handed over in one stream, what was sampled read back flat.

[`ColocatedEngine`] stands in for `trl.generation.vllm_generation.VLLMGeneration` while [`colocated_engine`] is open:

```python
with colocated_engine({"max_num_seqs": 256, "enable_prefix_caching": False}):
    trainer = GRPOTrainer(..., args=GRPOConfig(use_vllm=True, vllm_mode="colocate"))
trainer.vllm_generation.sample([[1, 2, 3]], n=4)
```

Touched in TRL, always restored: the globals `VLLMGeneration` of `trl.trainer.grpo_trainer` (while a trainer is built) and
`LLM`, `extract_logprobs` of `trl.generation.vllm_generation` (while an engine is built, and while it generates). No method
body of TRL is repeated.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from trl_r1.exceptions import EngineError
from trl_r1.generation import adapter, weights
from trl_r1.generation.base import SampledIds
from trl_r1.generation.copies import CopyPlan
from trl_r1.generation.logprobs import extract_logprobs, finish_reason, sampled_logprobs
from trl_r1.generation.options import (
    check_options,
    engine_dtype,
    has_tokenizer,
    needs_own_folder,
    on_cpu,
    platform_options,
    require_vllm,
    write_own_folder,
)
from trl_r1.generation.sampled import LoopLimit
from trl_r1.generation.scopes import environment_restored, replaced, seeded, stdout_with_descriptor, unwarned
from trl_r1.generation.tuning import merged_options

logger = logging.getLogger(__name__)

# Sampling parameters that make vLLM look at text, and so need its tokenizer and detokenization.
_TEXT_PARAMETERS = ("stop", "bad_words", "structured_outputs")


@contextmanager
def colocated_engine(
    options: Mapping[str, Any] | None = None, *, hand_over: bool = True, **choices: Any
) -> Iterator[None]:
    """Let TRL's trainers build a [`ColocatedEngine`] where they would build their own.

    Args:
        options (`Mapping[str, Any]`, *optional*):
            Arguments of `vllm.LLM`, which override TRL's. See [`trl_r1.generation.options.allowed_options`].
        hand_over (`bool`, defaults to `True`):
            `False` leaves the engine with the weights it loaded: for tests that must see the difference.
        choices: `need_logprobs`, `lora_hand_over`, `stop_loops` of [`ColocatedEngine`].

    Raises:
        [`ConfigurationError`]: An option is unknown. Nothing has been loaded then.
    """
    options = dict(options or {})
    if options:
        check_options(options)
    engine = functools.partial(ColocatedEngine, engine_options=options, hand_over=hand_over, **choices)
    with replaced(grpo_trainer, VLLMGeneration=engine):
        yield


def eos_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """List every token id that ends a completion: the tokenizer's EOS and all of the generation config."""
    listed = model.generation_config.eos_token_id if getattr(model, "generation_config", None) else None
    ids = listed if isinstance(listed, list | tuple) else [listed]
    text_tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    return sorted({token for token in (text_tokenizer.eos_token_id, *ids) if token is not None})


class ColocatedEngine(VLLMGeneration):
    """TRL's vLLM backend with its own engine options, weight hand-over and read-back.

    Overrides `__init__`, `_init_vllm`, `_iter_named_params`, `sync_weights` and `generate`, each around `super()`. In
    `"server"` mode it is TRL's own, unchanged.

    Args:
        args, kwargs: Those of `VLLMGeneration`.
        engine_options (`Mapping[str, Any]`, *optional*): See [`colocated_engine`].
        hand_over (`bool`, defaults to `True`): See [`colocated_engine`].
        need_logprobs (`bool`, defaults to `True`):
            Whether the rollout brings the sampled tokens' log-probabilities, for importance correction. Without, it is
            faster and every log-probability reads NaN, TRL's "not known".
        lora_hand_over (`str`, defaults to `"auto"`):
            What goes over when an adapter is trained: `"adapter"` its factors alone, into vLLM's LoRA; `"merged"` all
            weights with the adapter folded in; `"auto"` the former on a GPU, wherever vLLM can compute the adapter.
        stop_loops (`Mapping`, `bool` or `LoopLimit`, *optional*):
            End completions that run in circles, as `"length"`. `True`, or entries of
            [`~trl_r1.generation.sampled.LoopLimit`].

    Attributes:
        finish_reasons (`list[str]`):
            `"stop"` or `"length"` for each completion of the last [`generate`], in order. TRL takes whatever lacks EOS
            for truncated; this is what the engine says.
        stop_token_ids (`list[int]`): The token ids that end a completion.
    """

    def __init__(
        self,
        *args: Any,
        engine_options: Mapping[str, Any] | None = None,
        hand_over: bool = True,
        need_logprobs: bool = True,
        lora_hand_over: str = "auto",
        stop_loops: Any = None,
        **kwargs: Any,
    ) -> None:
        require_vllm()
        self.engine_options = dict(engine_options or {})
        self.hand_over = hand_over
        self.need_logprobs = need_logprobs
        self.lora_hand_over = lora_hand_over
        self.stop_loops = LoopLimit.parse(stop_loops)
        self.finish_reasons: list[str] = []
        self.stop_token_ids: list[int] = []
        self._handed_over = self._base_handed_over = False
        self._adapter: adapter.AdapterHandOver | None = None
        self._copies: CopyPlan | None = None
        self._copies_differ = False
        super().__init__(*args, **kwargs)

    # Loading

    def _init_vllm(self) -> None:
        if self.mode != "colocate":
            super()._init_vllm()
            return
        self.model: Any = weights.unwrapped(self.model)
        weights.keep_4bit_weights(self.model)
        config: Any = self.model.config
        check_options(
            self.engine_options,
            config=config,
            load_in_4bit=weights.is_4bit(self.model),
            sleep_mode=self.enable_sleep_mode,
            tensor_parallel_size=self.tensor_parallel_size,
            world_size=self.accelerator.num_processes,
            lora_hand_over=self.lora_hand_over,
            correction=self.need_logprobs,
        )
        dtype = self.engine_options.get("dtype") or engine_dtype(self.model, self.accelerator.mixed_precision)
        self.lora_hand_over = adapter.choose_hand_over(self.model, self.lora_hand_over, dtype)
        if self._holds_4bit:
            adapter.check_engine_4bit(self.model)
        if self._streams_effective_weights:
            weights.check_tied(self.model)
            if self._dist.fsdp_version == 1:
                raise EngineError(
                    "Adapters cannot be handed over from FSDP 1, which would merge them in place. Set `fsdp_version: 2`."
                )
        self.stop_token_ids = eos_token_ids(self.model, self.processing_class)
        self.generation_kwargs = self._sampling_defaults() | self.generation_kwargs
        with replaced(vllm_generation, LLM=self._build_llm), environment_restored():
            super()._init_vllm()

    @property
    def _holds_4bit(self) -> bool:
        """Whether the engine itself holds the base in 4 bits, as it loaded it."""
        return self.engine_options.get("quantization") == "bitsandbytes"

    def _sampling_defaults(self) -> dict[str, Any]:
        """Ask for ids and flat log-probabilities only: TRL decodes the ids itself."""
        defaults: dict[str, Any] = {"flat_logprobs": True, "detokenize": self._reads_text}
        if not self.generation_kwargs.get("ignore_eos"):
            defaults["stop_token_ids"] = self.stop_token_ids
        return defaults

    @property
    def _reads_text(self) -> bool:
        asked = any(self.generation_kwargs.get(name) for name in _TEXT_PARAMETERS)
        return asked or self.structured_outputs_regex is not None

    def _build_llm(self, **kwargs: Any) -> Any:
        """Build the engine from TRL's arguments, what the platform needs, and the user's options on top."""
        from trl_r1.generation.rollout import RolloutLLM

        rank, group = self.accelerator.process_index, self.accelerator.process_index // self.tensor_parallel_size
        chosen = platform_options(
            self.model,
            self.accelerator.mixed_precision,
            max_num_seqs=kwargs["max_num_seqs"],
            options=self.engine_options,
        )
        # vLLM seeds the process' generators, which it then samples from. TRL's value, the rank, would give every run the
        # same samples whatever its seed; this is the run's seed, equal within a tensor-parallel group.
        chosen["seed"] = (torch.initial_seed() - rank + group) % 2**31
        if self._holds_4bit:
            pass  # vLLM reads the checkpoint and quantises it as the trainer did
        elif reason := needs_own_folder(self.model):
            logger.info("vLLM starts from the policy's configuration, without weights: %s.", reason)
            chosen |= {"model": write_own_folder(self.model, self.processing_class), "load_format": "dummy"}
        elif not has_tokenizer(self.model.name_or_path):
            chosen["tokenizer"] = write_own_folder(self.model, self.processing_class)
        hands_adapter = self.lora_hand_over == "adapter"
        lora = adapter.engine_options(self.model) if hands_adapter else {}
        with stdout_with_descriptor():
            llm = RolloutLLM(self.stop_loops, **merged_options(kwargs, chosen, lora, self.engine_options))
        llm.keeps_weights = hands_adapter
        self._adapter = adapter.AdapterHandOver(llm) if hands_adapter else None
        return llm

    # Weights

    @property
    def _streams_effective_weights(self) -> bool:
        return hasattr(self.model, "get_base_model") or weights.is_4bit(self.model)

    def sync_weights(self) -> None:
        """Hand all weights over to the engine. A collective where parameters are sharded: every rank must call it."""
        sleeps = self.enable_sleep_mode
        if self.mode == "colocate" and sleeps and not self._llm_weights_sleeping:
            self.enable_sleep_mode = False  # TRL would map the memory of waking weights a second time
        try:
            super().sync_weights()
        finally:
            self.enable_sleep_mode = sleeps
        self._handed_over = True

    def _iter_named_params(self) -> Iterator[weights.Weight]:
        """Hand the weights over in one stream, in colocate mode, and yield none.

        TRL pushes what it is given tensor by tensor, which the CPU build and fused layouts cannot take; here nothing is
        left for it to push.
        """
        if self.mode != "colocate":
            yield from super()._iter_named_params()
        elif self.hand_over:
            with torch.no_grad():
                if self._adapter is not None:
                    self._hand_over_adapter(self._adapter)
                elif self._copies is None or not self._copies.repeat():
                    self._load(self._stream())

    def _hand_over_adapter(self, put: adapter.AdapterHandOver) -> None:
        """Hand over the adapter, and before the first one the base it stands on."""
        if not self._base_handed_over and not self._holds_4bit:
            with adapter.base_layers_only(self._engine_model):
                self._load(weights.effective_weights(self.model, self._dist.gather_params, adapters=False))
        self._base_handed_over = True
        put(adapter.adapter_tensors(self.model, self._dist.gather_params))

    def _stream(self) -> Iterator[weights.Weight]:
        """Yield every weight once, full, under the checkpoint's names."""
        if self._streams_effective_weights:
            yield from weights.effective_weights(self.model, self._dist.gather_params)
        else:
            yield from super()._iter_named_params()

    def _load(self, stream: Iterator[weights.Weight]) -> None:
        model = self._engine_model
        cpu = on_cpu()
        quantised = self.llm.llm_engine.model_config.quantization is not None
        if not (cpu or quantised or weights.has_experts(model)):
            self._copy(model, stream)
            return
        # The loaded weights have been packed into another layout. A reload keeps what it is given until a layer is
        # complete, so tensors that FSDP frees on the way are copied.
        if self._dist.is_fsdp or self._dist.is_zero3:
            stream = ((name, tensor.clone()) for name, tensor in stream)
        with unwarned():
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream})
        if cpu:
            weights.refresh_tied_heads(model)

    def _copy(self, model: Any, stream: Iterator[weights.Weight]) -> None:
        """Copy each tensor in place: as it comes, or, where the policy's own tensors are copied as they are, at once."""
        sharded = self._dist.is_fsdp or self._dist.is_zero3 or self.tensor_parallel_size > 1
        if sharded or self._streams_effective_weights or self._copies_differ:
            model.load_weights(stream)
        elif self._copies is None:
            self._copies = CopyPlan.record(self.model, model, stream)
            self._copies_differ = self._copies is None
        else:
            self._copies(stream)

    @property
    def _engine_model(self) -> Any:
        return self.llm.llm_engine.model_executor.driver_worker.model_runner.get_model()

    # Sampling

    def generate(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Generate as TRL's does, and keep [`finish_reasons`]."""
        if self.mode != "colocate":
            return super().generate(*args, **kwargs)
        asked, self.logprobs = self.logprobs, self.logprobs if self.need_logprobs else None
        try:
            with replaced(vllm_generation, extract_logprobs=extract_logprobs):
                result = super().generate(*args, **kwargs)
        finally:
            self.logprobs = asked
        reasons, count = self.llm.finish_reasons, len(result[1])
        start = 0
        if self.tensor_parallel_size > 1:  # the group generated for all its ranks; this rank's share is kept
            start = torch.distributed.get_rank(group=self.tp_group) * count
        self.finish_reasons = reasons[start : start + count]
        return result

    def sample(
        self,
        prompt_token_ids: Sequence[Sequence[int]],
        n: int = 1,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_tokens: int | None = None,
        seed: int | None = None,
        logprobs: bool = False,
    ) -> list[list[SampledIds]]:
        """Sample `n` completions of each prompt with the weights handed over last.

        Args:
            prompt_token_ids (`list[list[int]]`):
                Prompts. Within a tensor-parallel group all ranks must give the same ones.
            n (`int`, defaults to 1): Completions per prompt.
            temperature (`float`, defaults to 1.0): 0 is greedy.
            top_p (`float`, defaults to 1.0): Nucleus.
            top_k (`int`, defaults to 0): 0 is off.
            max_tokens (`int`, *optional*): Limit of each completion; the trainer's `max_completion_length` by default.
            seed (`int`, *optional*): Makes this call reproducible, and leaves the trainer's generators alone.
            logprobs (`bool`, defaults to `False`): Whether to return the sampled tokens' log-probabilities.

        Returns:
            `list[list[SampledIds]]`: `n` completions for each prompt, in order.
        """
        from vllm import SamplingParams

        stop = self.generation_kwargs.get("stop")  # what ends a completion in training ends it here
        parameters = [
            SamplingParams(
                n=n,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                max_tokens=max_tokens or self.max_completion_length,
                logprobs=0 if logprobs else None,
                flat_logprobs=True,
                detokenize=bool(stop),
                stop=stop,
                stop_token_ids=self.stop_token_ids,
            )
            for _ in prompt_token_ids
        ]
        with seeded(seed):
            outputs = self._run(prompt_token_ids, parameters)
        return [
            [
                SampledIds(
                    list(one.token_ids),
                    finish_reason(one.finish_reason),
                    sampled_logprobs(one.logprobs) if logprobs else None,
                )
                for one in output.outputs
            ]
            for output in outputs
        ]

    def score(
        self, prompt_token_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return the log-probabilities (temperature 1) that the engine gives to the tokens of given completions.

        Args:
            prompt_token_ids (`list[list[int]]`): Prompts.
            completion_ids (`list[list[int]]`):
                One completion for each. Prompt and completion must stay below the engine's `max_model_len`.

        Returns:
            `list[list[float]]`: One natural logarithm per completion token.
        """
        from vllm import SamplingParams

        texts = [[*prompt, *ids] for prompt, ids in zip(prompt_token_ids, completion_ids, strict=True)]
        parameters = SamplingParams(max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False, n=1)
        outputs = self._run(texts, [parameters] * len(texts))
        return [
            sampled_logprobs(output.prompt_logprobs[len(prompt) :])
            for prompt, output in zip(prompt_token_ids, outputs, strict=True)
        ]

    def _run(self, prompts: Sequence[Sequence[int]], parameters: list[Any]) -> list[Any]:
        """Run requests of our own, awake and with weights."""
        from trl_r1.generation.rollout import awake

        if not self._handed_over or (self.enable_sleep_mode and self._llm_weights_sleeping):
            self.sync_weights()
        if not prompts:
            return []
        with awake(self.llm, sleeping=self.enable_sleep_mode):
            outputs = self.llm.generate(
                [{"prompt_token_ids": list(ids)} for ids in prompts], parameters, use_tqdm=False
            )
        self._llm_weights_sleeping = self.enable_sleep_mode
        return outputs
