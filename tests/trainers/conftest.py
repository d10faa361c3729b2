"""Trainers on the tiny model with transformers generation: seconds each."""

import pytest


def accuracy_reward(completions, **kwargs):
    """Right when the number of characters is odd: something that varies, and that every row has."""
    return [float(len(completion) % 2) for completion in completions]


def count_reward(completions, **kwargs):
    return [completion.count("e") / 10 for completion in completions]


@pytest.fixture
def build_trainer(tiny_model, tmp_path):
    """A function that builds an `R1GRPOTrainer` from overrides of small settings."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from trl_r1.trainers import R1GRPOConfig, R1GRPOTrainer

    def build(output_dir=None, *, questions=24, reward_funcs=None, peft_config=None, **settings):
        settings = {
            "use_vllm": False,
            "learning_rate": 1e-3,
            "questions_per_step": 4,
            "minibatches_per_rollout": 2,
            "num_generations": 4,
            "per_device_train_batch_size": 4,
            "max_completion_length": 8,
            "max_steps": 4,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "seed": 1,
        } | settings
        rows = Dataset.from_dict({"prompt": [f"question {i}" for i in range(questions)]})
        return R1GRPOTrainer(
            model=tiny_model,
            reward_funcs=reward_funcs or [accuracy_reward, count_reward],
            args=R1GRPOConfig(str(output_dir or tmp_path / "run"), **settings),
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(tiny_model, padding_side="left"),
            peft_config=peft_config,
        )

    return build


@pytest.fixture
def lora():
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
