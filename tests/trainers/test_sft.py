"""SFT on packed batches: TRL's loss and gradients, no sequence sees another, no mask of the row's length squared."""

import pytest
import torch
from datasets import Dataset
from stored_rollouts import assert_same
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from trl_r1.exceptions import ConfigurationError
from trl_r1.nano import checkpoint_path
from trl_r1.trainers.sft import R1SFTConfig, R1SFTTrainer

LENGTHS = [7, 31, 12, 25, 3, 18, 40, 9]


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, 1000, (length,), generator=generator).tolist() for length in LENGTHS]
    labels = [[-100 if i < len(row) // 3 else token for i, token in enumerate(row)] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


@pytest.fixture
def build(rows, tmp_path):
    def build(trainer=R1SFTTrainer, config=R1SFTConfig, peft_config=None, **settings):
        settings = {
            "packing": True, "max_length": 64, "per_device_train_batch_size": 2, "max_steps": 2, "learning_rate": 1e-3,
            "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "use_cpu": True,
            "bf16": False, "seed": 3,
        } | settings  # fmt: skip
        if config is R1SFTConfig:
            settings.setdefault("rows_per_step", settings["per_device_train_batch_size"])
        if not settings["packing"]:
            settings["max_length"] = None
        model = AutoModelForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float32)
        return trainer(
            model=model, args=config(str(tmp_path), **settings), train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(checkpoint_path()), peft_config=peft_config,
        )  # fmt: skip

    return build


def losses_and_gradients(trainer, examples):
    """Token-weighted loss over all examples in one batch, with its gradients."""
    trainer.model.train()
    trainer.model.zero_grad()
    inputs = trainer._prepare_inputs(trainer.data_collator(examples))
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("loss_type", "checkpointing"), [("nll", False), ("nll", True), ("dft", False)])
def test_packed_loss_and_gradients_are_the_padded_ones(build, rows, loss_type, checkpointing):
    settings = {"loss_type": loss_type, "gradient_checkpointing": checkpointing}
    packed = build(**settings)
    assert packed.attention.kind == "sdpa"
    padded = build(SFTTrainer, SFTConfig, packing=False, **settings)
    ours, our_gradients = losses_and_gradients(packed, list(packed.train_dataset))
    theirs, their_gradients = losses_and_gradients(padded, list(rows))
    assert len(packed.train_dataset) < len(rows)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert_same([our_gradients], [their_gradients])


def log_probs(trainer, examples):
    inputs = trainer._prepare_inputs(trainer.data_collator(examples))
    with torch.no_grad():
        return trainer.model(**inputs, fused_lm_head=True).log_probs[0]


def test_no_sequence_sees_another(build, rows):
    trainer = build(packing=False, padding_free=True)
    trainer.model.eval()
    examples = [dict(row) for row in rows]
    before = log_probs(trainer, examples)
    changed = [dict(row) for row in examples]
    changed[3] = {"input_ids": [5] * LENGTHS[3], "labels": [5] * LENGTHS[3]}
    after = log_probs(trainer, changed)
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    # The last position before a sequence scores that sequence's first token and is not labelled.
    inside = torch.zeros_like(before, dtype=torch.bool)
    inside[bounds[3] : bounds[4] - 1] = True
    assert torch.equal(before[~inside[: len(before)]], after[~inside[: len(after)]])
    assert not torch.equal(before[inside], after[inside])

    # The test can fail: without the bounds, the row is one sequence and the change is seen by what follows.
    inputs = trainer.data_collator(examples)
    del inputs["cu_seq_lens_q"], inputs["position_ids"]
    with torch.no_grad():
        blurred = trainer.model(**inputs, fused_lm_head=True).log_probs[0]
    assert not torch.allclose(blurred[bounds[4] : bounds[5] - 1], before[bounds[4] : bounds[5] - 1], atol=1e-3)


@pytest.mark.parametrize(("kind", "squared"), [("auto", False), ("none", True)])
def test_no_mask_of_the_row_squared(build, kind, squared):
    """What the attention layers are given: a mask over the whole row with TRL's own, one element with ours."""
    trainer = build(packed_attention=kind)
    seen = []
    for layer in trainer.model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["attention_mask"].numel()), with_kwargs=True
        )
    examples = list(trainer.train_dataset)
    log_probs(trainer, examples)
    tokens = sum(len(example["input_ids"]) for example in examples)
    assert set(seen) == {tokens**2 if squared else 1}


def test_training_packed_and_counting_tokens(build):
    trainer = build(max_steps=4)
    trainer.train()
    log = trainer.state.log_history
    assert log[3]["loss"] < log[0]["loss"]
    per_epoch = sum(LENGTHS)
    steps = len(trainer.train_dataset) / trainer.args.per_device_train_batch_size
    assert log[3]["num_tokens"] == pytest.approx(4 / -(-steps // 1) * per_epoch)  # not those of our mask


def test_lora(build, lora):
    trainer = build(peft_config=lora)
    assert trainer.attention.kind == "sdpa"
    trainer.train()
    assert trainer.state.log_history[1]["loss"] > 0


def test_without_packing_nothing_changes(build):
    trainer = build(packing=False)
    assert not trainer.attention.packs
    assert trainer.model.config._attn_implementation == "sdpa"
    assert not trainer.model.model._forward_pre_hooks


def test_bad_input(build):
    with pytest.raises(ConfigurationError, match=r"packed_attention 'flash'.*'varlen'"):
        R1SFTConfig("x", packed_attention="flash", use_cpu=True)
    with pytest.raises(ConfigurationError, match=r"varlen.*CUDA"):
        build(packed_attention="varlen")
    with pytest.raises(ConfigurationError, match="R1SFTConfig"):
        build(config=SFTConfig)
