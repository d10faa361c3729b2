"""Named sizes for [`R1GRPOConfig`]: R1's own, and what fits one GPU.

A preset fills the fields that have their default value, and the log names them. What a user sets to another value wins;
what is set to just the default cannot be told from what was left open, and is filled too. The memory sizes are starting
points for a policy of up to about 1.5B parameters (16 and 24 GB with LoRA, 80 GB in full), not promises: a longer
`max_completion_length` or a larger model needs `per_device_train_batch_size` lowered.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2501.12948v2 §2.1, §3.2, B.4; Nature 2025, Methods: 32 questions x 16 = 512 outputs per step; each rollout
    # of 8,192 outputs is split into 16 minibatches; 10,400 steps, the cap rises to 65,536 tokens at step 8.2k.
    "r1_paper": {
        "questions_per_step": 32,
        "minibatches_per_rollout": 16,
        "num_generations": 16,
        "max_completion_length": 32768,
        "longer_completions_from_step": 8200,
        "longer_max_completion_length": 65536,
        "max_steps": 10400,
        "per_device_train_batch_size": 1,
        "learning_rate": 3e-6,
        "beta": 0.001,
        "epsilon": 10.0,
        "ref_model_sync_steps": 400,
    },
    "one_gpu_16gb": {
        "questions_per_step": 4,
        "minibatches_per_rollout": 2,
        "num_generations": 8,
        "max_completion_length": 1024,
        "per_device_train_batch_size": 2,
        "vllm_gpu_memory_utilization": 0.25,
        "vllm_enable_sleep_mode": True,
        "vllm_max_model_length": 1536,
    },
    "one_gpu_24gb": {
        "questions_per_step": 8,
        "minibatches_per_rollout": 2,
        "num_generations": 8,
        "max_completion_length": 2048,
        "per_device_train_batch_size": 2,
        "vllm_gpu_memory_utilization": 0.3,
        "vllm_enable_sleep_mode": True,
        "vllm_max_model_length": 3072,
    },
    "one_gpu_80gb": {
        "questions_per_step": 16,
        "minibatches_per_rollout": 4,
        "num_generations": 16,
        "max_completion_length": 8192,
        "per_device_train_batch_size": 4,
        "vllm_gpu_memory_utilization": 0.4,
        "vllm_enable_sleep_mode": True,
        "vllm_max_model_length": 10240,
    },
}
