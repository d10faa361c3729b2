"""Every hook and global of TRL and transformers that this library touches, with the signature it relies on.

When TRL changes one, the failing test names it.
"""

import ast
import inspect
from pathlib import Path

import pytest
from accelerate.state import GradientState
from transformers import Trainer
from trl import GRPOTrainer, SFTTrainer
from trl.distributed import DistributedBackend
from trl.generation import vllm_generation
from trl.models import unwrap_model_for_generation
from trl.trainer import grpo_trainer
from trl.trainer import utils as trl_utils
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_r1.trainers.grpo_config import NAMES

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
        "_log_completion_extra": ["self", "column", "values"],
        "_log_metric": ["self", "name", "value"],
        "create_model_card": ["self", "model_name", "dataset_name", "tags"],
        "training_step": ["self", "model", "inputs", "num_items_in_batch"],
        "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
        "_prepare_inputs": ["self", "generation_batch"],
        "_generate_single_turn": [
            "self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images",
        ],
    },
    Trainer: {
        "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
        "training_step": ["self", "model", "inputs", "num_items_in_batch"],
        "_save": ["self", "output_dir", "state_dict"],
        "_save_optimizer_and_scheduler": ["self", "output_dir"],
        "_save_rng_state": ["self", "output_dir"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    },
    DistributedBackend: {"gather_params": ["self", "params"]},
    GradientState: {"_set_sync_gradients": ["self", "sync_gradients"]},
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


# Attributes that the constructors of TRL's classes set, and that ours read or write.
ATTRIBUTES = {
    GRPOTrainer: {
        "_buffered_inputs", "_current_train_step_time", "_entropy_bonus_enabled", "_is_vlm", "_last_loaded_step", "_logs",
        "_metrics", "_pending_extra_logs", "_step", "_tokenizer", "aux_loss_enabled", "beta", "epsilon_high",
        "epsilon_low", "eos_token_ids", "generation_config", "generation_kwargs", "loss_type", "max_completion_length",
        "num_generations", "num_generations_eval", "num_iterations", "ref_model", "reward_func_names", "reward_funcs",
        "reward_weights", "temperature", "tools", "top_entropy_quantile", "use_vllm", "vllm_generation",
        "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min", "vllm_importance_sampling_correction",
        "vllm_importance_sampling_mode",
    },
    vllm_generation.VLLMGeneration: {
        "_dist", "_llm_weights_sleeping", "enable_sleep_mode", "generation_kwargs", "llm", "logprobs",
        "max_completion_length", "mode", "model", "structured_outputs_regex", "temperature", "tensor_parallel_size",
        "tp_group",
    },
    DistributedBackend: {"fsdp_version"},
}  # fmt: skip
# Where the private names of TRL are used, beside those of the classes that the files define themselves.
FILES_OF_OURS = ("trainers/grpo.py", "trainers/packed.py", "trainers/dynamic_sampling.py", "trainers/local_metrics.py",
                 "generation/engine.py")  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "name"),
    [(owner, name) for owner, names in ATTRIBUTES.items() for name in sorted(names)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_attributes_that_constructors_set(owner, name):
    assigned = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(owner))))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert name in assigned, f"{owner.__name__} no longer sets {name}"


def test_every_private_name_of_trl_that_we_use_stands_here():
    """What the trainers and the engine use without defining it comes from TRL or accelerate, and may vanish there."""
    used, own = set(), set()
    for file in FILES_OF_OURS:
        tree = ast.parse((Path(__file__).parents[1] / "trl_r1" / file).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                (own if isinstance(node.ctx, ast.Store) else used).add(node.attr)
            elif isinstance(node, ast.FunctionDef):
                own.add(node.name)
    assert used - own <= {name for names in (*HOOKS.values(), *ATTRIBUTES.values()) for name in names}


@pytest.mark.parametrize(
    ("method", "read"),
    [
        ("log", 'self._logs["rewards"]'),
        ("_generate_and_score_completions", "self._pending_extra_logs.clear()"),
        ("training_step", 'self._metrics["train"]["step_time"].append(self._current_train_step_time)'),
        ("_compute_loss", "if self._entropy_bonus_enabled:"),
        ("_compute_loss", "compute_aux_loss=self.aux_loss_enabled"),
        ("_compute_loss", "if self.top_entropy_quantile < 1.0:"),
        ("_save_checkpoint", "self.create_model_card("),
    ],
)
def test_attributes_mean_what_we_take_them_for(method, read):
    """An attribute that is still set but read elsewhere would no longer do what ours relies on."""
    assert read in inspect.getsource(getattr(GRPOTrainer, method)), f"GRPOTrainer.{method} no longer has {read!r}"


@pytest.mark.parametrize("name", NAMES)
def test_names_that_trl_tells_apart_in_a_step(name):
    """What is refused before a weight is loaded is what TRL itself would refuse later, no more and no less."""
    told_apart = {
        constant.value
        for node in ast.walk(ast.parse(inspect.getsource(grpo_trainer)))
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == name
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant)
    }
    # "r1" is ours; TRL's configuration reads the two others as names.
    assert told_apart == set(NAMES[name]) - {"r1", True, False}


def test_an_engine_that_slept_is_known_by_its_flag():
    source = inspect.getsource(vllm_generation.VLLMGeneration)
    assert "self.enable_sleep_mode and self._llm_weights_sleeping" in source
    assert all(isinstance(getattr(DistributedBackend, name), property) for name in ("is_fsdp", "is_zero3"))


def test_generating_with_the_unwrapped_model():
    parameters = list(inspect.signature(unwrap_model_for_generation).parameters)
    assert parameters[:2] == ["model", "accelerator"]


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
