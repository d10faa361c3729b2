"""The lighteval adapter, loaded by lighteval's own loader; skipped where lighteval (an environment of its own) is missing."""

from __future__ import annotations

import importlib.util
import json

import pytest
from scripted import ScriptedSampler
from transformers import AutoTokenizer

from trl_r1.exceptions import ConfigurationError, TrlR1Error
from trl_r1.nano import checkpoint_path

INSTALLED = importlib.util.find_spec("lighteval") is not None


@pytest.mark.skipif(INSTALLED, reason="lighteval is installed")
def test_missing_lighteval_says_how_to_get_it() -> None:
    with pytest.raises(TrlR1Error, match=r"cannot share an environment.*pip install --no-deps trl-r1"):
        import trl_r1.evaluation.lighteval  # noqa: F401


@pytest.mark.skipif(not INSTALLED, reason="needs lighteval, in an environment of its own")
def test_lighteval_loads_the_model_and_gets_its_completions(monkeypatch) -> None:
    from lighteval.models.custom.custom_model import CustomModelConfig
    from lighteval.models.model_loader import load_model
    from lighteval.tasks.requests import Doc

    import trl_r1.evaluation.lighteval as adapter

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    sampler = ScriptedSampler(tokenizer, lambda prompt, index: f"so </think> \\boxed{{{index}}}")
    opened = {}

    def opens(config, *, tokenizer, template):
        opened.update(config=config, template=template)
        return sampler

    monkeypatch.setattr("trl_r1.generation.config.open_sampler", opens)
    monkeypatch.setenv(adapter.SETTINGS, json.dumps({"protocol": "r1", "max_tokens": 64}))
    config = CustomModelConfig(model_name=str(checkpoint_path()), model_definition_file_path=adapter.__file__)
    model = load_model(config)
    assert (opened["config"].temperature, opened["config"].max_tokens) == (0.6, 64)
    assert opened["template"].prefill == "<think>\n"
    shown = Doc(query="1 + 1?", choices=["2"], gold_index=0)
    doc = Doc(query="2 + 2?", choices=["4"], gold_index=0, instruction="Be exact.", fewshot_samples=[shown])
    doc.num_samples = 2
    (response,) = model.greedy_until([doc])
    assert [text.strip() for text in response.text] == [f"<think>\nso </think> \\boxed{{{n}}}" for n in range(2)]
    assert response.input == [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Be exact.\n\n2 + 2?"},
    ]
    assert all(response.output_tokens)
    with pytest.raises(ConfigurationError, match="generative task"):
        model.loglikelihood([doc])
    monkeypatch.setenv(adapter.SETTINGS, "[1]")
    with pytest.raises(ConfigurationError, match="JSON object"):
        load_model(config)
    model.cleanup()
