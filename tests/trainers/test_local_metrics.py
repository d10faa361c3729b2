"""What a loss logs, kept per bin and reduced once; over two ranks in `test_lockstep.py`."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from trl_r1.trainers.local_metrics import LocalMetrics, means_over_rows


@pytest.fixture
def host():
    """What `LocalMetrics` needs of a trainer: its metrics, and a real accelerator."""
    return SimpleNamespace(accelerator=Accelerator(cpu=True), _metrics={"train": defaultdict(list)})


def reduced(host, *bins):
    with LocalMetrics(host) as metrics:
        for tokens, values in bins:
            with metrics.of(tokens):
                for name, value in values.items():
                    host._metrics["train"][name].append(value)
    return dict(host._metrics["train"])


def test_means_are_weighted_by_tokens_whatever_the_grouping(host):
    assert reduced(host, (6, {"kl": 1.0}), (2, {"kl": 3.0}))["kl"] == [1.5]
    host._metrics["train"].clear()
    assert reduced(host, (8, {"kl": 1.5}))["kl"] == [1.5]


def test_means_over_sequences_are_weighted_by_rows(host):
    names = means_over_rows("r1", "token", "sequence_mask")
    with LocalMetrics(host, names) as metrics:
        for tokens, rows, kl in ((6, 1, 1.0), (2, 3, 3.0), (0, 0, 9.0)):
            with metrics.of(tokens, rows):
                host._metrics["train"]["kl"].append(kl)
                host._metrics["train"]["entropy"].append(kl)
    assert host._metrics["train"] == {"kl": [2.5], "entropy": [1.5]}
    assert "kl" not in means_over_rows("grpo", "sequence", "token_mask")


def test_extremes_are_extremes_by_the_end_of_their_name(host):
    found = reduced(
        host,
        (6, {"ratio/min": 0.8, "ratio/max": 1.2, "clip_min": -2.0, "clip_max": 0.0, "minimum": 4.0}),
        (2, {"ratio/min": 0.3, "ratio/max": 1.1, "clip_min": 5.0, "clip_max": -1.0, "minimum": 0.0}),
    )
    assert found == {"ratio/min": [0.3], "ratio/max": [1.2], "clip_min": [-2.0], "clip_max": [0.0], "minimum": [3.0]}


def test_an_empty_bin_says_nothing_but_the_time(host):
    found = reduced(
        host,
        (4, {"kl": 1.0, "ratio/min": 0.5, "ratio/max": 1.5}),
        (0, {"kl": 7.0, "ratio/min": 0.0, "ratio/max": 9.0, "step_time": 2.5}),
    )
    assert found == {"kl": [1.0], "ratio/min": [0.5], "ratio/max": [1.5], "step_time": [2.5]}


def test_what_was_never_measured_stays_unknown(host):
    found = reduced(host, (4, {"kl": math.nan, "ratio/min": math.nan}), (0, {"kl": 1.0, "ratio/min": 1.0}))
    assert math.isnan(found["kl"][0])
    assert math.isnan(found["ratio/min"][0])


def test_ranks_are_asked_once_and_the_trainer_gets_its_accelerator_back(host, monkeypatch):
    accelerator, asked = host.accelerator, []
    gather, reduce = accelerator.gather, accelerator.reduce
    monkeypatch.setattr(accelerator, "gather", lambda *a, **k: asked.append("gather") or gather(*a, **k))
    monkeypatch.setattr(accelerator, "reduce", lambda *a, **k: asked.append("reduce") or reduce(*a, **k))
    value = torch.tensor([2.0])
    with LocalMetrics(host) as metrics:
        for _ in range(3):
            with metrics.of(1):  # as TRL logs: a collective per metric
                for name in ("kl", "entropy"):
                    host._metrics["train"][name].append(host.accelerator.gather(value).mean().item())
                    host.accelerator.reduce(value)
        assert host.accelerator.device == accelerator.device
        assert asked == []
    assert sorted(asked) == ["gather", "reduce"]
    assert host.accelerator is accelerator
    assert host._metrics["train"] == {"kl": [2.0], "entropy": [2.0]}


def test_after_an_error_nothing_is_logged_and_all_is_as_before(host):
    accelerator, before = host.accelerator, host._metrics["train"]

    def fail():
        with LocalMetrics(host) as metrics, metrics.of(3):
            host._metrics["train"]["kl"].append(1.0)
            raise RuntimeError("in the loss")

    with pytest.raises(RuntimeError, match="in the loss"):
        fail()
    assert host.accelerator is accelerator
    assert host._metrics["train"] is before
    assert not before
