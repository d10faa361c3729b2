from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from trl_r1.exceptions import ConfigurationError
from trl_r1.nano import VARIANTS, NanoWorld, checkpoint_path
from trl_r1.nano.numerals import to_chinese
from trl_r1.prompts import PromptTemplate


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(variant: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint_path(variant))


def test_sizes_are_what_the_specification_says(variant: str, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = checkpoint_path(variant)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    low, high = (1_000_000, 1_400_000) if variant == "small" else (2_700_000, 3_300_000)
    assert low <= model.num_parameters() <= high
    assert model.dtype == torch.bfloat16
    assert model.config.head_dim == 32
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings >= 1024
    assert model.config.vocab_size == len(tokenizer) == 1024
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_template_is_short_and_nothing_is_added(tokenizer: Any) -> None:
    rendered = PromptTemplate("base").render("Make 17 from 7, 3, 4")
    assert len(tokenizer(PromptTemplate("base").render("")).input_ids) <= 48
    ids = tokenizer(rendered).input_ids
    assert ids == tokenizer(rendered, add_special_tokens=False).input_ids
    assert tokenizer.bos_token is None
    assert tokenizer.chat_template is None


def test_decoding_gives_the_text_back(tokenizer: Any) -> None:
    texts = [document.text for document in NanoWorld().documents(300, seed=11)]
    texts += [
        "héllo 🎉　全角，。",
        "<think>a</think> <answer>7 * 8</answer>",
        "  two  spaces\n\n\ttab",
        "1234567890",
        "​",
    ]
    for text in texts:
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_digits_are_single_and_chinese_numerals_are_shorter(tokenizer: Any) -> None:
    assert len(tokenizer("1234567890").input_ids) == 10
    for number in range(100):
        assert len(tokenizer(to_chinese(number)).input_ids) == 1
    english = tokenizer("12*3=36-14=22 no\n", return_tensors=None).input_ids
    chinese = tokenizer("十二乘三得三十六减十四得二十二不对\n").input_ids
    assert len(chinese) <= 0.8 * len(english)


def test_the_tokenizer_is_rebuilt_from_its_seed() -> None:
    from transformers import AutoTokenizer

    from trl_r1.nano.tokenizer import build_tokenizer

    def parts(one: Any) -> Any:
        whole = json.loads(one.backend_tokenizer.to_str())
        return whole["model"]["vocab"], whole["model"]["merges"], whole["added_tokens"]

    rebuilt = parts(build_tokenizer())
    assert all(parts(AutoTokenizer.from_pretrained(checkpoint_path(name))) == rebuilt for name in VARIANTS)


def test_the_base_answers_in_its_modes(variant: str, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from trl_r1 import verifiers
    from trl_r1.nano import read_trace
    from trl_r1.responses import parse

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(checkpoint_path(variant), dtype=torch.float32)
    rows = [row for row in NanoWorld().rows("test", 12, tasks=["countdown"], depth=3) for _ in range(6)]
    prompts = [PromptTemplate("base").render(row.prompt) for row in rows]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    # One batch: at this size a step costs its overhead, not its arithmetic.
    output = model.generate(**inputs, max_new_tokens=96, do_sample=True, top_k=0)[:, inputs.input_ids.shape[1] :]
    right = formed = 0
    modes: Counter[str] = Counter()
    for row, text in zip(rows, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
        response = parse(text)
        right += bool(verifiers.verify(response.answer, row).correct)
        formed += response.well_formed
        modes[read_trace(response.reasoning).mode] += 1
    # 72 samples: ± 10 points. The full figures are in recipes/results/nano_base.json.
    assert 0.04 < right / 72 < 0.45
    assert 0.5 < formed / 72 < 0.92
    # A base without reflection checks once in 8,000 answers: multiple choice taught it the words.
    assert modes["search"] > 10 if variant != "no_reflection" else modes["search"] <= 1
    assert min(modes["terse"], modes["one_try"]) > 5


def test_unknown_variant() -> None:
    with pytest.raises(ConfigurationError, match=r"nano checkpoint 'large'.*'no_reflection'"):
        checkpoint_path("large")
