"""A resumed run equals an uninterrupted one: order of questions, RNG, optimizer, reference after its reset."""

import json
import shutil

import pytest
import torch
from peft import get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from trl_r1.exceptions import ConfigurationError
from trl_r1.trainers import R1GRPOConfig, checks, last_complete_checkpoint
from trl_r1.trainers.checkpoints import (
    REFERENCE_FILE,
    adapter_parameters,
    add_reference_adapter,
    load_reference,
    save_reference,
    snapshot_adapter,
)

# 24 questions, 4 per step and 2 minibatches per rollout: an epoch is 6 steps. Resuming at step 8 therefore crosses an
# epoch, and the reset at step 6 comes before it.
SCHEDULE = {"max_steps": 12, "save_strategy": "steps", "save_steps": 8, "ref_model_sync_steps": 6, "beta": 0.05}


def rewards_of(trainer):
    return [
        (log["step"], log["reward"], log["kl"], log["loss"]) for log in trainer.state.log_history if "reward" in log
    ]


def trained_state(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_resumed_run_equals_uninterrupted(build_trainer, tmp_path, lora, adapter):
    peft = {"peft_config": lora} if adapter else {}
    whole = build_trainer(tmp_path / "whole", **peft, **SCHEDULE)
    whole.train()
    expected = trained_state(whole)

    shutil.copytree(tmp_path / "whole" / "checkpoint-8", tmp_path / "resumed" / "checkpoint-8")
    checkpoint = last_complete_checkpoint(tmp_path / "resumed")
    assert checkpoint is not None
    assert (tmp_path / "resumed" / "checkpoint-8" / REFERENCE_FILE).exists()
    resumed = build_trainer(tmp_path / "resumed", **peft, **SCHEDULE)
    resumed.train(resume_from_checkpoint=checkpoint)

    assert rewards_of(resumed)[-2:] == rewards_of(whole)[-2:]
    for name, parameter in trained_state(resumed).items():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_without_its_reference_a_resumed_run_differs(build_trainer, tmp_path, lora, adapter):
    """The reference in the checkpoint is what makes the test above pass."""
    peft = {"peft_config": lora} if adapter else {}
    whole = build_trainer(tmp_path / "whole", **peft, **SCHEDULE)
    whole.train()
    folder = tmp_path / "resumed" / "checkpoint-8"
    shutil.copytree(tmp_path / "whole" / "checkpoint-8", folder)
    (folder / REFERENCE_FILE).unlink()
    resumed = build_trainer(tmp_path / "resumed", **peft, **SCHEDULE)
    resumed.train(resume_from_checkpoint=str(folder))
    assert rewards_of(resumed)[-1][2] != rewards_of(whole)[-1][2]


def test_reference_adapter_is_reset_and_not_saved_with_the_model(build_trainer, tmp_path, lora):
    trainer = build_trainer(tmp_path, peft_config=lora, max_steps=4, beta=0.05, ref_model_sync_steps=4)
    before = {n: p.clone() for n, p in adapter_parameters(trainer.model, "ref").items()}
    assert not any(p.requires_grad for p in adapter_parameters(trainer.model, "ref").values())
    trainer.train()
    policy, reference = adapter_parameters(trainer.model, "default"), adapter_parameters(trainer.model, "ref")
    assert all(torch.equal(policy[name], reference[name]) for name in policy)
    assert any(not torch.equal(before[name], reference[name]) for name in before)
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_config.json").exists()
    assert not (tmp_path / "saved" / "ref").exists()
    with safe_open(tmp_path / "saved" / "adapter_model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if ".ref." in name]  # noqa: SIM118 - not a mapping
    assert "ref" in trainer.model.peft_config


def test_reference_adapter_is_mixed_by_alpha(build_trainer, tmp_path, lora):
    settings = {"max_steps": 1, "beta": 0.05, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.25}
    trainer = build_trainer(tmp_path, peft_config=lora, **settings)
    before = {n: p.clone() for n, p in adapter_parameters(trainer.model, "ref").items()}
    trainer.train()
    policy, reference = adapter_parameters(trainer.model, "default"), adapter_parameters(trainer.model, "ref")
    assert any(not torch.equal(policy[name], before[name]) for name in policy)
    for name, parameter in reference.items():
        torch.testing.assert_close(parameter, 0.75 * before[name] + 0.25 * policy[name], msg=name)


@pytest.fixture
def one_process():
    """A process group of this process alone: an engine's, if one of the tests before has left one."""
    if torch.distributed.is_initialized():
        assert torch.distributed.get_world_size() == 1
        yield
        return
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_sharded_reference_adapter_is_saved_and_loaded(tiny_model, tmp_path, lora, one_process):
    def sharded():
        torch.manual_seed(0)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora)
        add_reference_adapter(model)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        return model

    saved = sharded()
    for parameter in adapter_parameters(saved, "default").values():
        parameter.data.normal_()
    snapshot_adapter(saved)
    save_reference(saved, tmp_path, is_main=True)
    loaded = sharded()
    assert load_reference(loaded, tmp_path)
    expected, policy = adapter_parameters(saved, "default"), adapter_parameters(loaded, "default")
    for name, parameter in adapter_parameters(loaded, "ref").items():
        assert isinstance(parameter, DTensor)
        assert torch.equal(parameter.full_tensor(), expected[name].full_tensor())
        assert not torch.equal(parameter.full_tensor(), policy[name].full_tensor())


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_the_reference_is_loaded_where_deepspeed_gets_too(build_trainer, tmp_path, monkeypatch, lora, adapter):
    """Under DeepSpeed transformers loads the model without `_load_from_checkpoint`."""
    peft = {"peft_config": lora} if adapter else {}
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "ref_model_sync_steps": 2, "beta": 0.05}
    build_trainer(tmp_path, **peft, **settings).train()
    resumed = build_trainer(tmp_path, **peft, **(settings | {"max_steps": 4, "ref_model_sync_steps": 100}))
    monkeypatch.setattr(resumed, "_load_from_checkpoint", lambda *args: None)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    kept = load_file(tmp_path / "checkpoint-2" / REFERENCE_FILE)
    reference = adapter_parameters(resumed.model, "ref") if adapter else dict(resumed.ref_model.named_parameters())
    assert kept
    assert all(torch.equal(reference[name], tensor) for name, tensor in kept.items())


def test_resets_of_a_reference_in_pieces_are_refused(build_trainer, monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ConfigurationError, match="sync_ref_model: false"):
        build_trainer(beta=0.05, sync_ref_model=True)
    args = R1GRPOConfig(output_dir=str(tmp_path), beta=0.05, use_cpu=True, report_to="none")
    assert args.sync_ref_model
    checks.check_reference(args)
    assert args.sync_ref_model is False, "the default, which nobody asked for"


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for step in (4, 8, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text(json.dumps({"global_step": 4}))
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text('{"global_step": ')  # cut off by a kill
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert last_complete_checkpoint(tmp_path / "absent") is None
