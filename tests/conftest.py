"""Fixtures shared by the tests: a tiny model built in memory, and settings small enough for two cores."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


def pytest_collection_modifyitems(items):
    """`make test-full` collects the tests for a GPU too: without one they are skipped, and say why."""
    for_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not for_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in for_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: torch.cuda.is_available() is False"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a 0.3M-parameter Qwen3 with random weights and a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = str(tmp_path_factory.mktemp("tiny_model"))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left")
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"})
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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

    def build(
        output_dir=None,
        *,
        model=None,
        questions=24,
        reward_funcs=None,
        peft_config=None,
        trainer_class=R1GRPOTrainer,
        **settings,
    ):
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
        return trainer_class(
            model=model or tiny_model,
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
