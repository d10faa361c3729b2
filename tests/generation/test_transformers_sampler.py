"""Plain transformers as a sampler: prompts, draws, ends, and what every backend shares."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_r1.exceptions import ConfigurationError
from trl_r1.generation.base import SampleRequest, SamplingSettings, sample_all
from trl_r1.generation.checkpoint import Checkpoint
from trl_r1.generation.codec import PromptCodec
from trl_r1.generation.config import SamplerConfig, choose_backend, open_sampler
from trl_r1.generation.requests import PartialRequest
from trl_r1.generation.transformers import TransformersSampler, _draws, sample_with_transformers
from trl_r1.nano import checkpoint_path
from trl_r1.prompts import PromptTemplate, select_template

NANO = str(checkpoint_path())
PROMPTS = ["Make 13 from 4, 4, 5", "Make 24 from 3, 8, 9", "What is 7 + 5?", "Make 11 from 12, 24, 25"]
SETTINGS = SamplingSettings(max_tokens=24, seed=3)


@pytest.fixture(scope="module")
def sampler():
    return open_sampler(SamplerConfig(model_name_or_path=NANO, backend="transformers", max_num_seqs=6))


def test_seeded_completions_do_not_depend_on_their_batch(sampler):
    together = sample_all(sampler, PROMPTS, 3, SETTINGS)
    assert [len(group) for group in together] == [3, 3, 3, 3]
    assert len({one.token_ids for group in together for one in group}) > 6
    part = list(sampler.stream([PartialRequest("2", PROMPTS[2], 3, frozenset({0, 1}))], SETTINGS))
    assert [(one.key, one.index, one.completion) for one in part] == [("2", 2, together[2][2])]


def test_without_a_seed_every_stream_draws_anew(sampler):
    first, second = (sample_all(sampler, PROMPTS[:2], 3, SamplingSettings(max_tokens=24)) for _ in range(2))
    assert first != second


def test_greedy_is_transformers_own(sampler):
    (found,) = sample_all(sampler, PROMPTS[:1], 1, SamplingSettings(temperature=0, max_tokens=24))
    tokenizer, model = AutoTokenizer.from_pretrained(NANO), sampler.model
    ids = tokenizer(sampler.template.render(PROMPTS[0]), return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
    assert list(found[0].token_ids) == expected
    assert found[0].finish_reason == ("stop" if expected[-1] == tokenizer.eos_token_id else "length")


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6, "top_p": 0.95}, {"top_k": 3}])
def test_draws_follow_the_distribution(settings):
    """Chi-squared against the distribution that transformers' own warpers leave."""
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -4.0]])
    chosen = SamplingSettings(max_tokens=1, **settings)
    rows = 20_000
    processors = _draws(chosen, list(range(rows)), 3, torch.device("cpu"))
    ids = torch.zeros(rows, 3, dtype=torch.long)
    drawn = processors(ids, logits.expand(rows, -1).clone()).argmax(-1)
    expected = _draws(chosen, [0], 3, torch.device("cpu"))
    expected.pop()  # the draw
    probabilities = (expected(ids[:1], logits.clone()) if expected else logits).softmax(-1)[0]
    counts = torch.bincount(drawn, minlength=6)
    assert not counts[probabilities == 0].any()
    kept = probabilities > 0
    wanted = rows * probabilities[kept]
    assert ((counts[kept] - wanted) ** 2 / wanted).sum() < 25.7  # p = 1e-4 at 5 degrees of freedom


def test_the_models_own_generation_config_changes_nothing(sampler, monkeypatch):
    """Instruct models bring penalties, which an engine of vLLM's with settings of ours does not see either."""
    settings = SamplingSettings(max_tokens=40, seed=3)
    plain = sample_all(sampler, PROMPTS[:2], 3, settings)
    own = {
        "repetition_penalty": 1.8,
        "no_repeat_ngram_size": 2,
        "top_k": 2,
        "temperature": 0.1,
        "top_p": 0.2,
        "min_p": 0.9,
    }
    for name, value in own.items():
        monkeypatch.setattr(sampler.model.generation_config, name, value)
    assert sample_all(sampler, PROMPTS[:2], 3, settings) == plain
    codec = sampler._codec
    ids = [codec.encode(prompt) for prompt in PROMPTS[:2]]
    pads = {
        "eos_token_ids": list(codec.eos_token_ids),
        "pad_token_id": codec.eos_token_ids[0],
        "max_tokens": 40,
        "seed": 3,
    }
    drawn = sample_with_transformers(sampler.model, Accelerator(cpu=True), ids, 3, **pads)
    monkeypatch.undo()
    assert sample_with_transformers(sampler.model, Accelerator(cpu=True), ids, 3, **pads) == drawn


def test_stop_texts_end_a_completion_and_stay_in_it(sampler):
    settings = SamplingSettings(max_tokens=60, seed=1, stop=("</think>", "gold"))
    groups = sample_all(sampler, PROMPTS, 2, settings)
    ended = [one for group in groups for one in group if "</think>" in one.text]
    assert ended
    for one in ended:
        assert one.text.endswith("</think>")
        assert one.finish_reason == "stop"
        assert sampler._codec.decode(one.token_ids).rstrip().endswith("</think>")


def test_truncation_is_told(sampler):
    (group,) = sample_all(sampler, PROMPTS[:1], 3, SamplingSettings(max_tokens=2, seed=1))
    assert all(one.truncated and len(one.token_ids) == 2 for one in group)


def test_a_cancelled_request_yields_nothing_more(sampler):
    found = Counter()
    for one in sampler.stream([SampleRequest(str(i), PROMPTS[0], 5) for i in range(4)], SETTINGS):
        found[one.key] += 1
        if one.key == "0" and one.index == 2:
            sampler.cancel("0")
            sampler.cancel("3")
    assert found == {"0": 3, "1": 5, "2": 5}


def test_requests_are_drawn_as_room_appears(sampler):
    drawn = []
    stream = sampler.stream((drawn.append(i) or SampleRequest(str(i), PROMPTS[0]) for i in range(500)), SETTINGS)
    next(stream)
    assert len(drawn) <= 4 * 6 + 1


def test_thinking_tags_survive_as_special_tokens(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    ids = tokenizer(" <think> a </think> b")["input_ids"]
    plain = PromptCodec(PromptTemplate("base"), tokenizer, [tokenizer.eos_token_id])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<|im_end|>"]})
    special = PromptCodec(PromptTemplate("base"), tokenizer, [tokenizer.eos_token_id])
    end = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    assert special.decode([*ids, *end]) == plain.decode(ids) == " <think> a </think> b"
    assert "<think>" not in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("choice", ["base", "chat"])
def test_a_prompt_has_one_bos(choice):
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(NANO)
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", bos)]
    )
    assert tokenizer("a")["input_ids"][0] == bos
    if choice == "chat":
        tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    codec = PromptCodec(select_template(tokenizer, choice, instruction=""), tokenizer)
    assert Counter(codec.encode("a question"))[bos] == 1


def test_an_adapter_changes_what_is_sampled(tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32), lora)
    model.save_pretrained(tmp_path / "adapter")
    greedy = SamplingSettings(temperature=0, max_tokens=8)
    named = SamplerConfig(model_name_or_path=str(tmp_path / "adapter"), backend="transformers")
    beside = SamplerConfig(model_name_or_path=NANO, adapter=str(tmp_path / "adapter"), backend="transformers")
    samplers = [open_sampler(one) for one in (named, beside)]
    assert {one.name for one in samplers} == {str(tmp_path / "adapter")}
    found = [sample_all(one, PROMPTS, 1, greedy) for one in samplers]
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    merged = TransformersSampler(
        model.merge_and_unload(), tokenizer, samplers[0].template, eos_token_ids=[tokenizer.eos_token_id], name="merged"
    )
    assert found[0] == found[1] == sample_all(merged, PROMPTS, 1, greedy)
    assert Checkpoint.of(named).lora_rank() == 4
    with pytest.raises(ConfigurationError, match="is an adapter itself"):
        open_sampler(SamplerConfig(model_name_or_path=str(tmp_path / "adapter"), adapter="x", backend="transformers"))


def test_a_fingerprint_follows_the_files(tmp_path):
    shutil.copytree(NANO, tmp_path / "copy")
    of = lambda path: Checkpoint.of(SamplerConfig(model_name_or_path=str(path))).fingerprint()  # noqa: E731
    assert of(tmp_path / "copy") == of(NANO)
    with (tmp_path / "copy" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x00" if file.read(1) != b"\x00" else b"\x01")
    assert of(tmp_path / "copy") != of(NANO)


def test_mistakes_are_named_before_anything_is_loaded(tmp_path):
    with pytest.raises(ConfigurationError, match=r"Model '.*nothing' cannot be read.*config.json"):
        open_sampler(SamplerConfig(model_name_or_path=str(tmp_path / "nothing"), backend="transformers"))
    with pytest.raises(ConfigurationError, match="needs model_name_or_path"):
        open_sampler(SamplerConfig(backend="transformers"))
    with pytest.raises(ConfigurationError, match=r"holds no adapter_config.json"):
        open_sampler(SamplerConfig(model_name_or_path=NANO, adapter=str(tmp_path), backend="transformers"))
    for changes, said in (
        ({"backend": "tgi"}, "Unknown backend 'tgi'"),
        ({"n": 0}, "n=0 must be at least 1"),
        ({"temperature": -1}, "must not be negative"),
        ({"engine_options": "{"}, "no JSON object"),
        ({"answer_form": "xml"}, "Unknown answer form"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            SamplerConfig(**changes)


def test_settings_are_read_from_an_entry():
    config = SamplerConfig.parse({"model_name_or_path": "m", "temperature": 0.6, "stop": ["x"]})
    assert config.settings(seed=4) == SamplingSettings(temperature=0.6, stop=("x",), seed=4)
    assert SamplerConfig.parse("m") == SamplerConfig(model_name_or_path="m")
    assert SamplerConfig.parse('{"n": 3}').n == 3
    assert choose_backend(SamplerConfig(server_urls=["http://a/v1"])) == "server"
    with pytest.raises(ConfigurationError, match="Unknown sampler setting 'temprature'"):
        SamplerConfig.parse({"temprature": 1})


def command(folder, **changes):
    settings = {
        "backend": "transformers",
        "max_rows": 12,
        "max_test_rows": 4,
        "n": 2,
        "max_tokens": 12,
        "max_num_seqs": 4,
        "seed": 1,
        "output_dir": folder,
        **changes,
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


RUN = "import sys\nfrom trl_r1.pipeline.sample import parse_sample, sample\nsample(parse_sample(sys.argv[1:]))"


def test_the_command_survives_a_kill_and_gives_what_it_would_have_given(tmp_path):
    from trl_r1.pipeline.sample import parse_sample, sample

    # Shards of 4, so that some exist when the process is killed.
    code = RUN.replace("import sys\n", "import sys\nimport trl_r1.generation.shards as s\ns.SampleStore.__init__.__kwdefaults__['shard_samples'] = 4\n")  # fmt: skip
    killed = subprocess.Popen([sys.executable, "-c", code, *command(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed" / "shards").glob("shard-*")):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {path.name: path.read_bytes() for path in (tmp_path / "killed" / "shards").glob("shard-*")}
    assert 0 < sum(content.count(b"\n") for content in before.values()) < 24
    assert not (tmp_path / "killed" / "samples.jsonl").exists()
    report = sample(parse_sample(command(tmp_path / "killed")))
    assert {name: (tmp_path / "killed" / "shards" / name).read_bytes() for name in before} == before
    assert (report["samples"], report["questions"]) == (24, 12)
    whole = sample(parse_sample(command(tmp_path / "whole")))
    assert (tmp_path / "killed" / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "samples.jsonl").open()]
    assert sum(line["correct"] for line in lines) == whole["correct"]
    assert len({line["id"] for line in lines}) == 12
    with pytest.raises(ConfigurationError, match=r"sampling.temperature was 1.0 and is 0.5"):
        sample(parse_sample(command(tmp_path / "whole", temperature=0.5)))


def test_answers_that_need_workers_are_verified_in_them(tmp_path):
    """Arithmetic is verified by Math-Verify, in another process, while the next completions are sampled."""
    from trl_r1.pipeline.sample import parse_sample, sample

    options = command(tmp_path, dataset="nano:arithmetic", n=3, max_rows=12, verify_workers=1)
    report = sample(parse_sample(options))
    assert report["samples"] == report["verified"] == 36
    with closing(open_sampler(SamplerConfig(model_name_or_path=NANO, backend="transformers"))) as again:
        assert again.name == report["model"]
