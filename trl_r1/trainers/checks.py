"""What a trainer refuses before it loads a weight."""

from __future__ import annotations

import logging
from typing import Any, cast

from datasets import Dataset
from torch import nn
from transformers import AutoConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.options import check_options
from trl_r1.trainers.grpo_config import R1GRPOConfig

logger = logging.getLogger(__name__)


def check_data(args: R1GRPOConfig, train_dataset: Any) -> None:
    """Refuse a data set from which no step could be taken."""
    needed = cast(int, args.generation_batch_size) // args.num_generations
    if isinstance(train_dataset, Dataset):
        if "prompt" not in train_dataset.column_names:
            raise DataError(f"The data set has no column 'prompt'; it has {train_dataset.column_names}.")
        if len(train_dataset) < needed:
            raise DataError(
                f"The data set has {len(train_dataset)} questions but one rollout needs {needed} "
                "(questions_per_step x minibatches_per_rollout): no step would be taken. Lower one of them."
            )
    elif args.dynamic_sampling:
        raise ConfigurationError("dynamic_sampling draws questions by index: give a Dataset, not an IterableDataset.")


def check_reference(args: R1GRPOConfig) -> None:
    """Refuse resets of a reference whose weights cannot be kept: ZeRO-3 leaves a rank empty tensors to copy and save.

    Resets that nobody asked for, which are the default, are left out.
    """
    if args.sync_ref_model and args.beta != 0.0 and is_deepspeed_zero3_enabled():
        if args.chooses_reference_resets:
            logger.warning("The reference model stays the initial one: under DeepSpeed ZeRO-3 it cannot be reset.")
            args.sync_ref_model = False
            return
        raise ConfigurationError(
            "sync_ref_model=True: under DeepSpeed ZeRO-3 a checkpoint would lack the reference, and a resumed run would go "
            "back to the initial one. Set sync_ref_model: false to keep the initial reference throughout, beta: 0.0 to have "
            "none, or train with FSDP (fsdp_version: 2) or ZeRO-2."
        )


def check_engine(args: R1GRPOConfig, model: str | nn.Module, quantization_config: Any) -> None:
    """Refuse what the engine cannot do, from the model's configuration alone."""
    init = cast(dict[str, Any], args.model_init_kwargs or {})
    quantization = quantization_config or init.get("quantization_config")
    config = (
        AutoConfig.from_pretrained(model, revision=init.get("revision"), trust_remote_code=args.trust_remote_code)
        if isinstance(model, str)
        else model.config
    )
    check_options(
        args.engine_options,
        config=cast(Any, config),
        load_in_4bit=bool(getattr(quantization, "load_in_4bit", False)),
        sleep_mode=args.vllm_enable_sleep_mode,
        tensor_parallel_size=args.vllm_tensor_parallel_size,
        world_size=args.world_size,
        lora_hand_over=args.lora_hand_over,
        correction=args.vllm_importance_sampling_correction,
    )
