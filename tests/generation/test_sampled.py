"""What a rollout records: log-probabilities as arrays or not at all, loops ended early; the distribution stays the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trl_r1.exceptions import ConfigurationError, EngineError
from trl_r1.generation import sampled
from trl_r1.generation.logprobs import extract_logprobs
from trl_r1.generation.sampled import LoopLimit

from .conftest import PROMPTS, engine_gap, mean_gap, policy_logprobs


def test_log_probabilities_come_as_arrays_and_agree_with_vllms_own(policy, engines, monkeypatch):
    model = policy("untied")
    engine = engines("untied", model)
    monkeypatch.setattr(engine, "temperature", 2.0)  # completions of many lengths: rows of the batch move
    prompts = [PROMPTS[0]] * 130 + PROMPTS  # more than the engine runs at once
    kinds = []
    remember = engine.llm._remember
    monkeypatch.setattr(
        engine.llm,
        "_remember",
        lambda outputs: (
            kinds.extend(type(one.logprobs) for output in outputs for one in output.outputs) or remember(outputs)
        ),
    )
    _, ids, logprobs, _ = engine.generate(prompts, None, 1)
    assert set(kinds) == {np.ndarray}
    assert len({len(one) for one in ids}) > 5
    rows = [[row[0] for row in sequence] for sequence in logprobs]
    assert [len(row) for row in rows] == [len(one) for one in ids]
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits / 2.0)
    expected = policy_logprobs(model, prompts, ids)
    assert mean_gap(rows, expected) < 2e-3
    assert (
        max(abs(a - b) for one, other in zip(rows, expected, strict=True) for a, b in zip(one, other, strict=True))
        < 0.02
    )
    assert not engine.llm.recorder._slots  # nothing is left behind


def test_completions_ended_by_a_stop_string_have_their_own_log_probabilities(policy, engines, monkeypatch):
    model = policy("untied")
    engine = engines("untied", model)
    words = [engine.llm.get_tokenizer().decode([token]).strip() for token in range(20, 60)]
    monkeypatch.setattr(engine, "generation_kwargs", engine.generation_kwargs | {"stop": words, "detokenize": True})
    _, ids, logprobs, _ = engine.generate(PROMPTS * 8, None, 1)
    assert engine.finish_reasons.count("stop") > len(PROMPTS)
    rows = [[row[0] for row in sequence] for sequence in logprobs]
    assert [len(row) for row in rows] == [len(one) for one in ids]
    assert mean_gap(rows, policy_logprobs(model, PROMPTS * 8, ids)) < 2e-3


def test_a_completion_without_its_log_probabilities_is_an_error():
    from types import SimpleNamespace

    short = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1, 2, 3], logprobs=np.zeros(2, dtype=np.float32))])
    with pytest.raises(EngineError, match="2 log-probabilities for a completion of 3 tokens"):
        extract_logprobs([short])


def test_without_need_they_are_not_computed_and_read_nan(engines, monkeypatch):
    engine = engines("untied")
    asked = []
    add = engine.llm.llm_engine.add_request
    monkeypatch.setattr(
        engine.llm.llm_engine,
        "add_request",
        lambda request, prompt, params, *rest, **kw: (
            asked.append(params.logprobs) or add(request, prompt, params, *rest, **kw)
        ),
    )
    monkeypatch.setattr(engine, "logprobs", 0)
    monkeypatch.setattr(engine, "need_logprobs", False)
    _, ids, logprobs, token_ids = engine.generate(PROMPTS, None, 1)
    assert set(asked) == {None}
    rows = [[row[0] for row in sequence] for sequence in logprobs]  # as TRL reads them
    assert [len(row) for row in rows] == [len(one) for one in ids]
    assert all(math.isnan(value) for row in rows for value in row)
    assert [[row[0] for row in sequence] for sequence in token_ids] == [list(one) for one in ids]
    monkeypatch.setattr(engine, "need_logprobs", True)
    assert all(one.logprobs for group in engine.sample(PROMPTS, logprobs=True) for one in group)


def test_an_engine_whose_answers_another_caller_wants_is_left_alone(engines):
    from vllm import SamplingParams

    outputs = engines("untied").llm.generate(
        [{"prompt_token_ids": [5, 6]}], SamplingParams(max_tokens=3, logprobs=2), use_tqdm=False
    )
    assert len(outputs[0].outputs[0].logprobs[0]) >= 2


def test_a_rollout_that_fails_leaves_nothing_behind(policy, engines, monkeypatch):
    model = policy("untied")
    engine = engines("untied", model)
    step = engine.llm.llm_engine.step
    left = iter([True] * 5)

    def breaks():
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(engine.llm.llm_engine, "step", breaks)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, None, 1)
    monkeypatch.setattr(engine.llm.llm_engine, "step", step)
    assert not engine.llm.llm_engine.has_unfinished_requests()
    engine.sync_weights()  # resets the prefix cache, which needs every block to be free
    assert engine_gap(engine, model) < 2e-3


# Loops

LIMIT = LoopLimit(max_period=5, repeats=3, min_tokens=12)


def tail(ids, limit=LIMIT):
    window = limit.window
    row = -1 - np.arange(window)
    ids = ids[-window:]
    row[window - len(ids) :] = ids
    return row


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([7] * 12, True),
        ([7] * 11, False),  # too few tokens
        ([1, 2, 3] + [7, 8] * 6, True),
        ([7, 8] * 6 + [7], True),  # in the middle of its pattern
        ([7, 8] * 5 + [7, 9], False),
        ([1, 2, 3, 4, 5] * 3, True),
        ([1, 2, 3, 4, 5] * 2 + [1, 2, 3, 4], False),  # too few repeats
        ([1, 2, 3, 4, 5, 6] * 4, False),  # longer than the longest period
        (list(range(15)), False),
        ([7] * 20 + [8], False),  # over: it went on to something else
    ],
)
def test_loops_are_told_from_their_end(ids, loops):
    assert LIMIT.loops(np.stack([tail(list(range(100, 140))), tail(ids)])).tolist() == [False, loops]


def test_default_limit_lets_long_numbers_pass():
    limit = LoopLimit()
    assert not limit.loops(tail([5] * 255, limit)[None])[0]
    assert limit.loops(tail([5] * 256, limit)[None])[0]
    assert limit.loops(tail(list(range(64)) * 8, limit)[None])[0]


@pytest.mark.parametrize("value", [{"repeats": 1}, {"max_period": 0}, {"periods": 3}])
def test_limits_are_checked(value):
    with pytest.raises(ConfigurationError, match="stop_loops"):
        LoopLimit.parse(value)


def test_limits_are_read():
    assert LoopLimit.parse(None) is LoopLimit.parse(False) is None
    assert LoopLimit.parse(True) == LoopLimit()
    assert LoopLimit.parse({"repeats": 4}) == LoopLimit(repeats=4)


def test_completions_that_loop_end_early_as_truncated(policy, engines, monkeypatch):
    model = policy("tied")
    engine = engines("tied", model)
    monkeypatch.setattr(engine, "temperature", 0.0)  # greedy decoding of a small random model soon runs in circles
    monkeypatch.setattr(engine, "max_completion_length", 110)
    monkeypatch.setitem(engine.generation_kwargs, "stop_token_ids", [])
    monkeypatch.setitem(engine.generation_kwargs, "ignore_eos", True)
    whole = engine.generate(PROMPTS, None, 1)
    assert engine.finish_reasons == ["length"] * len(PROMPTS)
    monkeypatch.setattr(engine.llm, "_limit", LIMIT)
    monkeypatch.setattr(sampled, "_LOOK_EVERY", 4)
    _, ids, logprobs, _ = engine.generate(PROMPTS, None, 1)
    looping = engine.llm.recorder.looping
    assert looping
    assert engine.finish_reasons == ["length"] * len(PROMPTS)
    short = [index for index, one in enumerate(ids) if len(one) < 110]
    assert len(short) == looping
    for index, one in enumerate(ids):
        assert list(one) == list(whole[1][index][: len(one)])
        assert len(list(logprobs[index])) == len(one)
        assert LIMIT.loops(tail(list(one))[None])[0] == (index in short) or len(one) == 110
    monkeypatch.setattr(engine.llm, "_limit", None)
    assert engine.generate(PROMPTS, None, 1)[1] == whole[1]  # the engine is as before


# The distribution


def chi_square(tokens, probabilities):
    """Return Pearson's statistic over tokens expected at least 5 times (the others as one) and its degrees of freedom."""
    expected = probabilities * len(tokens)
    common = expected >= 5
    counts = np.bincount(tokens, minlength=len(expected))
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    kept = wanted > 0
    return float((((observed - wanted) ** 2)[kept] / wanted[kept]).sum()), int(kept.sum()) - 1


@pytest.mark.parametrize("need_logprobs", [True, False])
def test_samples_follow_the_policys_distribution_with_every_option_on(need_logprobs, policy, engines, monkeypatch):
    model = policy("untied")
    engine = engines("untied", model)
    monkeypatch.setattr(engine, "logprobs", 0)
    monkeypatch.setattr(engine, "need_logprobs", need_logprobs)
    monkeypatch.setattr(engine, "max_completion_length", 2)
    monkeypatch.setattr(engine.llm, "_limit", LIMIT)
    prompt, samples = PROMPTS[0], 2000
    torch.manual_seed(4)
    _, ids, _, _ = engine.generate([prompt] * samples, None, samples)
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1).numpy()
    tokens = np.array([one[0] for one in ids])
    statistic, freedom = chi_square(tokens, first)
    assert freedom > 10
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
    warmer = first**0.8 / (first**0.8).sum()  # the test can tell a temperature of 1.25 from 1
    assert chi_square(tokens, warmer)[0] > freedom + 4 * math.sqrt(2 * freedom)
    # The second token, given the commonest first one.
    common = int(np.bincount(tokens).argmax())
    seconds = np.array([one[1] for one in ids if one[0] == common and len(one) > 1])
    with torch.no_grad():
        second = model(torch.tensor([[*prompt, common]])).logits[0, -1].double().softmax(-1).numpy()
    statistic, freedom = chi_square(seconds, second)
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
