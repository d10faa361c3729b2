"""Every hook and global of TRL and transformers that this library touches, with the signature it relies on.

When TRL changes one, the failing test names it.
"""

import inspect

import pytest
from transformers import Trainer
from trl import GRPOTrainer, SFTTrainer
from trl.generation import vllm_generation
from trl.trainer import grpo_trainer
from trl.trainer import utils as trl_utils
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

HOOKS = {
    GRPOTrainer: {
        "_get_train_sampler": ["self", "dataset"],
        "_generate_and_score_completions": ["self", "inputs"],
        "_generate": ["self", "prompts"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_compute_loss": ["self", "model", "inputs"],
        "_get_per_token_logps_and_entropies": [
            "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
            "compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask",
            "spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
        ],
        "_tokenize_prompts": ["self", "prompts"],
        "training_step": ["self", "model", "inputs", "num_items_in_batch"],
        "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
        "_prepare_inputs": ["self", "generation_batch"],
        "_generate_single_turn": [
            "self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images",
        ],
    },
    Trainer: {
        "training_step": ["self", "model", "inputs", "num_items_in_batch"],
        "_save": ["self", "output_dir", "state_dict"],
        "_save_optimizer_and_scheduler": ["self", "output_dir"],
        "_save_rng_state": ["self", "output_dir"],
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    },
    vllm_generation.VLLMGeneration: {
        "_init_vllm": ["self"],
        "_fix_param_name_to_vllm": ["self", "name", "extra_prefixes"],
        "_iter_named_params": ["self"],
        "sync_weights": ["self"],
        "generate": ["self", "prompts", "images", "num_generations", "profiler"],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "hook", "parameters"),
    [(owner, hook, parameters) for owner, hooks in HOOKS.items() for hook, parameters in hooks.items()],
    ids=[f"{owner.__name__}.{hook}" for owner, hooks in HOOKS.items() for hook in hooks],
)
def test_hook_signature(owner, hook, parameters):
    actual = list(inspect.signature(getattr(owner, hook)).parameters)
    assert actual == parameters, f"{owner.__name__}.{hook} now takes {actual}"


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("_generate", {"_generate_single_turn", "eos_token_ids"}),
        ("_generate_and_score_completions", {"_generate", "_calculate_rewards", "_get_per_token_logps_and_entropies"}),
        ("_generate_single_turn", {"_last_loaded_step", "sync_weights", "generate"}),
        ("_compute_loss", {"current_gradient_accumulation_steps", "_get_per_token_logps_and_entropies"}),
        ("_compute_loss", {'inputs["importance_sampling_ratio"]', 'inputs.get("old_per_token_logps")'}),
        ("training_step", {"super().training_step(model, inputs, num_items_in_batch)", "self._step += 1"}),
        ("_prepare_inputs", {"self.model.training", "self._buffered_inputs"}),
    ],
)
def test_hooks_are_called_where_we_expect_them(method, names):
    """A hook that TRL keeps but no longer calls would pass the signature test and do nothing."""
    source = inspect.getsource(getattr(GRPOTrainer, method))
    missing = {name for name in names if f"{name}" not in source}
    assert not missing, f"GRPOTrainer.{method} no longer uses {missing}"


def test_generate_returns_what_dynamic_sampling_edits():
    source = inspect.getsource(GRPOTrainer._generate)
    returned = source.rsplit("return ", 1)[1].split("\n")[0]
    assert returned.replace(" ", "").split(",") == [
        "prompt_ids", "completion_ids", "tool_mask", "completions", "logprobs", "extra_fields", "images", "tool_images",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "name"),
    [(grpo_trainer, "VLLMGeneration"), (vllm_generation, "LLM"), (vllm_generation, "extract_logprobs")],
)
def test_globals_that_are_replaced(module, name):
    if name == "LLM":
        pytest.importorskip("vllm")
    assert hasattr(module, name), f"{module.__name__} no longer has the global {name}"


def test_the_engine_is_built_with_what_ours_reads():
    parameters = set(inspect.signature(vllm_generation.VLLMGeneration.__init__).parameters)
    read = {
        "model",
        "accelerator",
        "mode",
        "tensor_parallel_size",
        "enable_sleep_mode",
        "generation_kwargs",
        "logprobs",
    }
    assert read <= parameters, f"VLLMGeneration.__init__ lost {read - parameters}"


def test_reference_adapter_name():
    """TRL computes the reference log-probabilities with the adapter that we keep as a snapshot."""
    from trl_r1.trainers.checkpoints import REFERENCE_ADAPTER

    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert f'adapter_name="{REFERENCE_ADAPTER}" if "{REFERENCE_ADAPTER}" in' in source


def test_sft_collator_tells_where_sequences_begin():
    batch = DataCollatorForLanguageModeling(0, padding_free=True)([{"input_ids": [1, 2]}, {"input_ids": [3]}])
    assert batch["cu_seq_lens_q"].tolist() == [0, 2, 3]
    assert type(batch["max_length_q"]) is int
    assert "self.padding_free" in inspect.getsource(SFTTrainer.__init__)


def test_the_fused_head_takes_labels_that_are_shifted_already():
    """A packed row's labels do not follow from its tokens shifted by one: the next token may be another sequence's."""
    assert "shift_labels is None" in inspect.getsource(trl_utils.add_fused_lm_head)


def test_sft_constructor_does_what_ours_wraps():
    """Rows that are tokenised already are left alone; packs of candidates skip preparation; the model loader is TRL's."""
    constructor = inspect.getsource(SFTTrainer.__init__)
    assert '"skip_prepare_dataset"' in constructor
    assert "create_model_from_path(model, **model_init_kwargs)" in constructor
    assert 'is_processed = "input_ids" in column_names' in inspect.getsource(SFTTrainer._prepare_dataset)
    assert "lm_head.bias" in inspect.getsource(trl_utils.add_fused_lm_head)  # which PEFT's wrapper of new rows hides
