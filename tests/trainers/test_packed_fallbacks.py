"""Where the packed step leaves rows to TRL, it says so once and is TRL's; out of memory names what to try next."""

import pytest
import torch
from stored_rollouts import assert_same
from transformers import AutoTokenizer, NemotronConfig, NemotronForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import GRPOTrainer

from trl_r1.exceptions import ConfigurationError
from trl_r1.modeling.attention import Attention
from trl_r1.trainers import R1GRPOTrainer, packed

OURS = {"packing": "sdpa", "max_tokens_per_microbatch": 40}


@pytest.fixture
def save(tiny_model, tmp_path):
    """A function that saves a small model of a family with random weights, beside the tiny model's tokenizer."""

    def build(model_class, config_class, **settings):
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


def test_a_model_that_fails_the_trial_falls_back_and_says_so(step, save, caplog, monkeypatch):
    settings = {"model": save(NemotronForCausalLM, NemotronConfig, **SMALL), "beta": 0.05, "max_steps": 1}
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
