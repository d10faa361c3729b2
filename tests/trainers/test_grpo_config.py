"""R1's words become TRL's sizes, and what cannot work is refused with the fix."""

import pytest

from trl_r1.exceptions import ConfigurationError
from trl_r1.trainers import PRESETS, R1GRPOConfig
from trl_r1.trainers.grpo_config import NAMES


def config(tmp_path, **settings):
    return R1GRPOConfig(str(tmp_path), **({"use_vllm": False, "report_to": "none"} | settings))


R1_REFUSES = {
    "off_policy_mask_threshold": 0.1,
    "delta": 2.0,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "top_entropy_quantile": 0.2,
    "use_bias_correction_kl": True,
    "importance_sampling_level": "sequence",
}


def test_defaults_are_r1s(tmp_path):
    args = config(tmp_path)
    assert (args.beta, args.num_generations, args.temperature, args.learning_rate) == (0.001, 16, 1.0, 3e-6)
    assert (args.top_p, args.top_k, args.loss_type, args.scale_rewards) == (1.0, 0, "grpo", "group")
    assert (args.sync_ref_model, args.ref_model_sync_steps, args.ref_model_mixup_alpha) == (True, 400, 1.0)
    assert args.use_bias_correction_kl is False
    assert config(tmp_path, beta=0.0).sync_ref_model is False


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_schedule_in_r1s_words(tmp_path, monkeypatch, world_size):
    """32 questions x 16 answers a step, 16 minibatches a rollout: 512 and 8,192 outputs on any number of processes."""
    monkeypatch.setattr(R1GRPOConfig, "world_size", property(lambda self: world_size))
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    args = config(tmp_path, questions_per_step=32, minibatches_per_rollout=16, per_device_train_batch_size=4)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size == 512
    assert args.generation_batch_size == 8192
    assert args.steps_per_rollout == 16


def test_r1_paper_preset(tmp_path):
    args = config(tmp_path, preset="r1_paper")
    assert (args.questions_per_step, args.minibatches_per_rollout, args.generation_batch_size) == (32, 16, 8192)
    assert (args.completion_length_at(8199), args.completion_length_at(8200)) == (32768, 65536)
    assert (args.max_steps, args.epsilon) == (10400, 10.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_the_user_sets_wins_over_a_preset(tmp_path, preset):
    assert config(tmp_path, preset=preset, num_generations=4, questions_per_step=8).num_generations == 4


def test_the_log_names_what_a_preset_fills(tmp_path, caplog):
    """A value given as its default cannot be told from one left open."""
    with caplog.at_level("INFO"):
        args = config(tmp_path, preset="one_gpu_80gb", max_completion_length=1024, per_device_train_batch_size=2)
    assert args.max_completion_length == 8192
    assert "preset 'one_gpu_80gb' sets" in caplog.text
    assert "max_completion_length=8192" in caplog.text
    assert "per_device_train_batch_size" not in caplog.text
    assert "num_generations" not in caplog.text  # the preset's is the default


@pytest.mark.parametrize(("option", "value"), R1_REFUSES.items())
def test_trls_losses_take_what_r1s_refuses(tmp_path, option, value):
    assert getattr(config(tmp_path, loss_type="grpo", **{option: value}), option) == value


def test_trls_own_words_still_work(tmp_path):
    args = config(
        tmp_path, generation_batch_size=64, gradient_accumulation_steps=2, loss_type="dapo", epsilon_high=0.28
    )
    assert (args.generation_batch_size, args.steps_per_generation, args.questions_per_step) == (64, 8, None)


def test_checkpoints_fall_on_rollout_boundaries(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert config(tmp_path, minibatches_per_rollout=4, save_steps=10).save_steps == 12
    assert "save_steps=10 becomes 12: a rollout lasts 4 steps" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        assert config(tmp_path, minibatches_per_rollout=4, save_steps=12).save_steps == 12
    assert "save_steps" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "r1_papers"}, "Unknown preset 'r1_papers'. Allowed: 'r1_paper'"),
        ({"num_generations": 1}, "at least 2"),
        (
            {"questions_per_step": 3, "num_generations": 4, "per_device_train_batch_size": 8},
            r"Allowed: \[1, 2, 3, 4, 6, 12\]",
        ),
        ({"questions_per_step": 4, "gradient_accumulation_steps": 2}, "not both"),
        ({"questions_per_step": 0}, "at least 1"),
        ({"longer_completions_from_step": 10}, "go together"),
        *(({name: "token_trunc"}, f"Unknown {name} 'token_trunc'. Allowed: '{NAMES[name][0]}'") for name in NAMES),
        *(
            ({"loss_type": "r1", name: value}, f"{name}={value!r}.*takes it: .*bnpo")
            for name, value in R1_REFUSES.items()
        ),
        ({"vllm_max_model_length": 512, "max_completion_length": 512}, "may reach 512"),
    ],
)
def test_bad_settings_name_value_and_fix(tmp_path, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        config(tmp_path, **settings)


@pytest.mark.parametrize("settings", [{"top_p": 0.95}, {"top_k": 20}, {"min_p": 0.1}])
def test_truncated_sampling_is_refused_while_the_ratio_is_corrected(tmp_path, settings):
    pytest.importorskip("vllm")
    with pytest.raises(ConfigurationError, match="vllm_importance_sampling_correction: false"):
        config(tmp_path, use_vllm=True, **settings)
    assert config(tmp_path, use_vllm=True, vllm_importance_sampling_correction=False, **settings).use_vllm


def test_groups_must_be_whole_on_every_rank(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigurationError, match="a multiple of 3"):
        config(tmp_path, questions_per_step=4)


def test_a_paper_loss_with_token_level_correction_is_refused(tmp_path):
    pytest.importorskip("vllm")
    with pytest.raises(ConfigurationError, match="sequence_mask"):
        config(tmp_path, use_vllm=True, loss_type="r1", vllm_importance_sampling_mode="token_truncate")
