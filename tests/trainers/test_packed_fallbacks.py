"""Where the packed step leaves rows to TRL, it says so once and is TRL's; out of memory names what to try next."""

import pytest
import torch
from stored_rollouts import assert_same
from transformers import (
    AutoTokenizer,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from trl import GRPOTrainer

from trl_r1.exceptions import ConfigurationError
from trl_r1.modeling.attention import Attention
from trl_r1.trainers import R1GRPOTrainer, packed

OURS = {"packing": "sdpa", "max_tokens_per_microbatch": 40}


@pytest.fixture
def save(tiny_model, tmp_path):
    """A function that saves a small model of a family with random weights, beside the tiny model's tokenizer."""

    def build(model_class, config_class, settings):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        torch.manual_seed(0)
        special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        folder = str(tmp_path / config_class.__name__)
        model = model_class(config_class(vocab_size=len(tokenizer), **special, **settings))
        for parameter in model.parameters():  # random initialisation alone gives nearly uniform logits
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.15)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return build


SMALL = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


@pytest.fixture(scope="module")
def experts(tiny_model, tmp_path_factory):
    """Folder of a small mixture of experts with random weights."""
    folder = str(tmp_path_factory.mktemp("experts"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "settings", [{"entropy_coef": 0.01}, {"top_entropy_quantile": 0.5}], ids=lambda settings: next(iter(settings))
)
def test_entropy_terms_fall_back_and_say_so(step, caplog, settings):
    settings = {"max_steps": 1} | settings
    stock_log, stock, _ = step(GRPOTrainer, **settings)
    with caplog.at_level("INFO"):
        log, ours, trainer = step(R1GRPOTrainer, **settings, **OURS)
    assert not trainer._regroups
    assert caplog.text.count("is not used: entropy terms") == 1
    assert_same(ours, stock)
    assert log[0]["loss"] == pytest.approx(stock_log[0]["loss"], abs=1e-6)


def test_the_routers_loss_falls_back_and_says_so(step, caplog, experts):
    settings = {"model": experts, "router_aux_loss_coef": 0.1, "beta": 0.05, "max_steps": 1}
    stock_log, stock, _ = step(GRPOTrainer, **settings)
    with caplog.at_level("INFO"):
        log, ours, trainer = step(R1GRPOTrainer, **settings, **OURS)
    assert trainer.aux_loss_enabled
    assert not trainer._regroups
    assert caplog.text.count("Forward passes:") == 1
    assert "Forward passes: sdpa (asked for); the policy's are TRL's padded ones, for the router's" in caplog.text
    assert caplog.text.count("is not used: the router's auxiliary loss") == 1
    assert_same(ours, stock)
    assert log[0]["loss"] == pytest.approx(stock_log[0]["loss"], abs=1e-6)


def test_experts_without_the_routers_loss_are_packed(step, caplog, experts):
    settings = {"model": experts, "router_aux_loss_coef": 0.0, "beta": 0.05, "max_steps": 1}
    _, stock, _ = step(GRPOTrainer, **settings)
    with caplog.at_level("INFO"):
        _, ours, trainer = step(R1GRPOTrainer, **settings, **OURS)
    assert trainer._regroups
    assert "Forward passes: sdpa (asked for)." in caplog.text
    assert_same(ours, stock)


@pytest.mark.parametrize("accumulation", [2, 6])
def test_a_step_over_two_rollouts_falls_back_and_says_so(step, caplog, accumulation):
    """Two divides three no more than six does: the second step takes the last of one rollout and the first of the next."""
    settings = {
        "questions_per_step": None, "minibatches_per_rollout": 1, "gradient_accumulation_steps": accumulation,
        "steps_per_generation": 3,
    }  # fmt: skip
    _, stock, _ = step(GRPOTrainer, **settings)
    with caplog.at_level("INFO"):
        _, ours, trainer = step(R1GRPOTrainer, **settings, **OURS)
    assert not trainer._regroups
    assert caplog.text.count("is not used: an optimizer step spans several rollouts") == 1
    assert_same(ours, stock)


def test_a_model_that_fails_the_trial_falls_back_and_says_so(step, save, caplog, monkeypatch):
    settings = {"model": save(NemotronForCausalLM, NemotronConfig, SMALL), "beta": 0.05, "max_steps": 1}
    _, stock, _ = step(GRPOTrainer, **settings)
    with pytest.raises(ConfigurationError, match="packing='sdpa' cannot be used: a trial of NemotronForCausalLM"):
        step(R1GRPOTrainer, **settings, **OURS)
    # What the ladder takes on a GPU, where it does not know better.
    monkeypatch.setattr(packed, "choose_attention", lambda *args, **kwargs: Attention("sdpa", "the ladder"))
    with caplog.at_level("INFO"):
        _, ours, trainer = step(R1GRPOTrainer, **settings)
    assert trainer.attention.kind == "padded"
    assert trainer.model.config._attn_implementation == "sdpa"
    assert caplog.text.count("Forward passes: padded (a trial of NemotronForCausalLM on a packed row fails") == 1
    assert_same(ours, stock)


LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 14, "partial_rotary_factor": 1.0,
}  # fmt: skip
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0}
WIDTH_DEPENDENT = {
    "longrope": (Phi3ForCausalLM, Phi3Config, SMALL | {"rope_parameters": LONGROPE}),
    "learned": (GPT2LMHeadModel, GPT2Config, GPT2),
}


@pytest.mark.parametrize("settings", [{}, {"trim_rows": 2}, {"packing": "none", "max_tokens_per_microbatch": 40}])
@pytest.mark.parametrize("family", WIDTH_DEPENDENT)
def test_rows_that_depend_on_the_padded_width_are_not_trimmed(step, save, caplog, family, settings):
    shared = {"model": save(*WIDTH_DEPENDENT[family]), "minibatches_per_rollout": 2, "max_steps": 1, "epsilon": 0.2}
    stock_log, stock, _ = step(GRPOTrainer, **shared)
    with caplog.at_level("INFO"):
        log, ours, trainer = step(R1GRPOTrainer, **shared, **settings)
    assert caplog.text.count("rows keep TRL's padding") == 1
    assert not trainer._regroups
    assert_same(ours, stock)
    assert log[0]["loss"] == pytest.approx(stock_log[0]["loss"], abs=1e-6)
    assert log[0]["clip_ratio/region_mean"] == 0


GEMMA4 = SMALL | {
    "head_dim": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": 258,
}  # fmt: skip
UNKNOWN = {
    "gemma4": (Gemma4ForCausalLM, Gemma4TextConfig, GEMMA4),
    "mamba": (MambaForCausalLM, MambaConfig, {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}


@pytest.mark.parametrize("family", UNKNOWN)
def test_a_model_without_known_sizes_trains_and_counts_tokens(step, save, caplog, family):
    shared = {"model": save(*UNKNOWN[family]), "max_steps": 1, "beta": 0.0}
    _, stock, _ = step(GRPOTrainer, **shared)
    _, ours, _ = step(R1GRPOTrainer, **shared)
    assert_same(ours, stock)
    _, regrouped, trainer = step(R1GRPOTrainer, **shared, packing="none", max_tokens_per_microbatch=40)
    assert trainer._regroups
    assert caplog.text.count("Micro-batches are made equal in tokens, not in cost") == 1
    assert_same(regrouped, stock)


def test_auto_keeps_the_micro_batches_of_a_model_without_known_sizes(step, save, caplog, monkeypatch):
    monkeypatch.setattr(packed, "free_device_bytes", lambda device: 20 << 30)
    model = save(GPT2LMHeadModel, GPT2Config, GPT2)
    _, _, trainer = step(R1GRPOTrainer, model=model, packing="sdpa", max_steps=1)
    assert trainer.max_tokens_per_microbatch is None
    assert caplog.text.count("max_tokens_per_microbatch: auto keeps TRL's micro-batches") == 1


def runs_out(which):
    """Let a pass of a kind end as it does on a GPU without room."""

    def prepare(trainer):
        def no_room(module, *inputs):
            if which == "reference" or torch.is_grad_enabled() == (which == "policy"):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        model = trainer.ref_model if which == "reference" else trainer.model
        model.register_forward_pre_hook(no_room)

    return prepare


@pytest.mark.parametrize("which", ["policy", "old", "reference"])
def test_out_of_memory_names_the_budget_to_try_next(step, which):
    settings = {"minibatches_per_rollout": 2, "beta": 0.05, "packing": "sdpa", "max_tokens_per_microbatch": 4096}
    expected = r"max_tokens_per_microbatch=4096\. Try max_tokens_per_microbatch: 2048"
    with pytest.raises(torch.OutOfMemoryError, match=expected) as caught:
        step(R1GRPOTrainer, **settings, prepare=runs_out(which))
    assert ("without gradient" in str(caught.value)) == (which != "policy")
    assert ("gradient_checkpointing" in str(caught.value)) == (which == "policy")
    assert "2.00 GiB" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"trim_rows": 2}, r"trim_rows=2\). Try trim_rows: 1"),
        ({"packing": "none"}, r"per_device_train_batch_size=4\). Try per_device_train_batch_size: 2"),
    ],
    ids=["trimmed", "padded"],
)
def test_out_of_memory_without_a_budget_names_the_rows_to_try_next(step, settings, expected):
    with pytest.raises(torch.OutOfMemoryError, match=expected):
        step(R1GRPOTrainer, minibatches_per_rollout=2, prepare=runs_out("old"), **settings)


def test_continuous_batching_writes_with_the_models_own_attention(build_trainer, monkeypatch):
    seen = []
    trainer = build_trainer(
        packing="sdpa",
        max_steps=1,
        use_transformers_continuous_batching=True,
        transformers_continuous_batching_config={"num_blocks": 64, "max_batch_tokens": 256},
    )
    packs = trainer.model.config._attn_implementation
    generate = type(trainer.model).generate_batch

    def watched(model, *args, **kwargs):
        seen.append(model.config._attn_implementation)
        return generate(model, *args, **kwargs)

    monkeypatch.setattr(type(trainer.model), "generate_batch", watched)
    trainer.train()
    assert trainer.state.global_step == 1
    assert seen == ["sdpa"]
    assert trainer.model.config._attn_implementation == packs == "trl_r1_sdpa"
