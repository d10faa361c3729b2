"""A rollout engine fed one request at a time, where `LLM.generate` takes all of them and gives all of them back."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_r1.generation.rollout import RolloutLLM


class EngineStream:
    """The requests of one engine, coming and going one by one.

    Args:
        llm (`RolloutLLM`): The engine. Nothing else may sample from it meanwhile.

    Attributes:
        max_model_len (`int`): Tokens of a prompt and its completion.
        max_num_seqs (`int`): Completions that decode at once.
    """

    def __init__(self, llm: RolloutLLM) -> None:
        self._llm: Any = llm
        self._engine: Any = llm.llm_engine
        config = self._engine.vllm_config
        self.max_model_len = int(config.model_config.max_model_len)
        self.max_num_seqs = int(config.scheduler_config.max_num_seqs)

    def submit(self, name: str, token_ids: Sequence[int], parameters: Any, lora_request: Any = None) -> None:
        """Queue one completion.

        Args:
            name (`str`): Its id, under which [`step`] returns it.
            token_ids (`Sequence[int]`): The prompt.
            parameters (`SamplingParams`): With `n = 1`.
            lora_request (`LoRARequest`, *optional*): The adapter that answers.
        """
        # What vLLM's renderer would make of token ids: it need not be asked once per completion.
        prompt = {"type": "token", "prompt_token_ids": list(token_ids)}
        self._engine.add_request(name, prompt, parameters, lora_request=lora_request)

    def step(self) -> list[Any]:
        """Decode one token of everything that runs.

        Returns:
            `list[RequestOutput]`: What finished with it, where the parameters ask for final outputs only.
        """
        with self._llm._stance(), self._llm._threads():
            return [output for output in self._engine.step() if output.finished]

    def abort(self, names: Sequence[str]) -> None:
        """End requests; nothing is returned of them."""
        self._engine.abort_request(list(names))

    def drain(self) -> None:
        """Wait for the step that asynchronous scheduling has begun ahead."""
        with (
            self._llm._stance(),
            self._llm._threads(),
            suppress(AttributeError),
        ):  # an engine elsewhere has no core to ask
            self._llm._drain()

    def shut_down(self) -> None:
        """Free the engine. Neither it nor this object is of use any more."""
        self._llm.recorder = None
        del self._llm.llm_engine
        self._llm = self._engine = None
        gc.collect()
