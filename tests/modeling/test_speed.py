"""The time model against figures worked out by hand, and that a device is measured."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config

from trl_r1.modeling.balance import SequenceCost
from trl_r1.modeling.speed import ENGINE_STEP_SECONDS, Device, decoding_seconds, measure_device, training_seconds

H200 = Device("NVIDIA H200", "cuda", 141 << 30, 139 << 30, 790e12, 4.3e12)
SHAPES = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
}


# 512 samples, prompts of 128, log-normal lengths up to 8,192.
@pytest.mark.parametrize(("shape", "training", "decoding"), [("0.5B", 5.4, 9.0), ("1.5B", 17.2, 24.6)])
def test_limits_are_those_of_the_specification(shape, training, decoding):
    config = Qwen2Config(vocab_size=151936, num_key_value_heads=2, **SHAPES[shape])
    noise = np.exp(0.9 * np.random.default_rng(1).standard_normal(512))
    sequences = [(128, int(min(8192, 1600 * x))) for x in noise]
    cost = SequenceCost.of(config)
    assert training_seconds(cost, sequences, forwards=1, flops=H200.flops, share=1.0) == pytest.approx(
        training, rel=0.2
    )
    head = config.hidden_size // config.num_attention_heads
    cache = 4 * config.num_hidden_layers * 2 * head
    seconds = decoding_seconds(cost, sequences, H200, element_bytes=2, cache_bytes_per_token=cache, slots=512)
    longest = max(completion for _, completion in sequences)
    assert seconds - longest * ENGINE_STEP_SECONDS["cuda"] == pytest.approx(decoding, rel=0.25)
    waves = decoding_seconds(cost, sequences, H200, element_bytes=2, cache_bytes_per_token=cache, slots=64)
    assert waves > 2 * seconds


def test_this_device_is_measured():
    device = measure_device(torch.device("cpu"), torch.float32)
    assert device.kind == "cpu"
    assert 1e9 < device.flops < 1e14
    assert 1e8 < device.bandwidth < 1e13
    assert 0 < device.free_bytes < device.total_bytes
