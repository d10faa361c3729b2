"""What SFT trains on: the thinking stays, the prompt is the sampler's, the EOS is learnt; new tokens; candidates."""

import json
import math
import re

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_r1.data.candidates import Candidate
from trl_r1.data.rejection_collator import RejectionSamplingCollator
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.codec import PromptCodec
from trl_r1.nano import checkpoint_path
from trl_r1.prompts import PromptTemplate, select_template
from trl_r1.trainers.sft import R1SFTTrainer
from trl_r1.trainers.sft_config import R1DistillConfig, R1SFTConfig
from trl_r1.trainers.targets import prompt_ids, tokenize

# What R1's own chat template does: the thinking is cut out of what the assistant said.
DROPS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}Assistant: {{ m['content'].split('</think>')[-1] }}"
    "{% else %}User: {{ m['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)
OPENS = DROPS.replace("%}Assistant: {% endif %}", "%}Assistant: <think>\n{% endif %}")
TARGET = "<think>1+2=3 yes</think> <answer>1+2</answer>"


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(checkpoint_path())


def rows(n=8, completion=TARGET):
    return Dataset.from_list([{"prompt": f"Make {3 + i} from 1, {2 + i}", "completion": completion} for i in range(n)])


def config(folder, **settings):
    settings = {
        "use_cpu": True, "max_length": 256, "rows_per_step": 1, "max_steps": 2, "learning_rate": 1e-3, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "gradient_checkpointing": False,
    } | settings  # fmt: skip
    return R1SFTConfig(str(folder), **settings)


def trainer(folder, tokenizer, data=None, template=None, peft_config=None, model=None, collator=None, **settings):
    return R1SFTTrainer(
        model=model or str(checkpoint_path()), args=config(folder, **settings), processing_class=tokenizer,
        train_dataset=rows() if data is None else data, template=template, peft_config=peft_config, data_collator=collator,
    )  # fmt: skip


def parts(made):
    cut = made["labels"].count(-100)
    assert made["labels"] == [-100] * cut + made["input_ids"][cut:]
    return made["input_ids"][:cut], made["input_ids"][cut:]


@pytest.mark.parametrize("choice", ["base", "chat"])
def test_prompt_is_the_samplers_and_target_is_text_and_eos(tokenizer, choice):
    template = select_template(tokenizer, choice)
    prompt, target = parts(tokenize(rows()[0], tokenizer, template))
    assert prompt == PromptCodec(template, tokenizer).encode(rows()[0]["prompt"])
    assert target[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(target[:-1]) == (" " if choice == "base" else "") + TARGET
    # A completion that a sampler wrote brings its space and its EOS: they are not doubled.
    again = tokenize({"prompt": rows()[0]["prompt"], "completion": f" {TARGET}<|endoftext|>"}, tokenizer, template)
    assert parts(again) == (prompt, target)


@pytest.mark.parametrize("template", [DROPS, OPENS])
def test_thinking_stays_whatever_the_chat_template_does(tokenizer, tmp_path, template):
    tokenizer.chat_template = template
    chat = select_template(tokenizer, "chat")
    made = trainer(tmp_path, tokenizer, rows(), chat).train_dataset["input_ids"]
    text = "".join(map(tokenizer.decode, made))
    opened = "<think>\n" if template is OPENS else "<think>"  # by the prompt, or by the target
    assert text.count(f"Assistant: {opened}1+2=3 yes</think> <answer>1+2</answer><|endoftext|>") == 8


def conversations(n=8, answer=TARGET):
    """Two questions and two answers, the last of which is the target; both think."""

    def turns(i):
        asked = [f"Make {3 + i} from 1, {2 + i}", "And once more?"]
        said = ["<think>earlier</think> first", answer]
        pairs = zip(asked, said, strict=True)
        return [{"role": r, "content": c} for ask, say in pairs for r, c in (("user", ask), ("assistant", say))]

    return Dataset.from_list([{"messages": turns(i)} for i in range(n)])


@pytest.mark.parametrize("chat_template", [None, DROPS])
def test_conversations_are_prompt_and_last_answer(tokenizer, tmp_path, chat_template):
    """The last answer and its EOS alone carry the loss, with its thinking, whatever the template does with it."""
    select_template(tokenizer, "chat")  # ours keeps the thinking
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    made = trainer(tmp_path, tokenizer, conversations(), packing=False)
    for row, conversation in zip(made.train_dataset, conversations()["messages"], strict=True):
        prompt, target = parts(row)
        assert tokenizer.decode(target) == f"{TARGET}<|endoftext|>"
        assert prompt == prompt_ids(conversation[:-1], tokenizer)[0]
        assert "And once more?" in tokenizer.decode(prompt)
        assert ("earlier" in tokenizer.decode(prompt)) == (chat_template is None), "as when the model is asked"
    batch = made.data_collator([made.train_dataset[0]])
    labelled = batch["labels"][batch["labels"] != -100].tolist()
    assert tokenizer.decode(labelled) == f"{TARGET}<|endoftext|>"
    streamed = trainer(tmp_path, tokenizer, conversations().to_iterable_dataset(), packing=False).train_dataset
    assert [row["labels"] for row in streamed] == made.train_dataset["labels"]
    # The reasoning that servers give apart is put back between its tags; the stage's template is used where there is one.
    apart = [{"role": "user", "content": "Make 3"}, {"role": "assistant", "content": "3", "reasoning_content": "1+2"}]
    template = PromptTemplate("base")
    made = trainer(tmp_path, tokenizer, Dataset.from_list([{"messages": apart}]), template, packing=False)
    expected = tokenize({"prompt": "Make 3", "completion": "<think>1+2</think>3"}, tokenizer, template)
    assert made.train_dataset[0]["input_ids"] == expected["input_ids"]


def test_conversations_that_lose_their_eos(tokenizer, tmp_path):
    select_template(tokenizer, "chat")
    long = conversations(1, TARGET.replace("yes", "1+2=3 no " * 80))[0]
    data = Dataset.from_list([*conversations(97), long, long, long])
    with pytest.raises(DataError, match=r"3 of 100 sequences \(3.0%\) are longer than max_length=256"):
        trainer(tmp_path, tokenizer, data, model="no/such-model")
    evaluated = {"some": conversations(4), "others": data}
    settings = {"max_truncated_targets": 0.03, "packing": False}
    made = R1SFTTrainer(
        str(checkpoint_path()), config(tmp_path, **settings), train_dataset=data, eval_dataset=evaluated,
        processing_class=tokenizer,
    )  # fmt: skip
    for rows_, count in ((made.train_dataset, 97), (made.eval_dataset["some"], 4), (made.eval_dataset["others"], 97)):
        assert len(rows_) == count
        assert {tokenizer.decode(parts(row)[1]) for row in rows_} == {f"{TARGET}<|endoftext|>"}


@pytest.mark.parametrize(
    ("messages", "settings", "error", "message"),
    [
        ([("user", "Make 3")], {}, DataError, "Row 0: the last of `messages` must be the assistant's"),
        ([("user", "Make 3"), ("tool", "3"), ("assistant", TARGET)], {}, DataError, "tools are neither rendered"),
        (
            None,
            {"assistant_only_loss": True},
            ConfigurationError,
            r"assistant_only_loss: true asks for .* Leave it out",
        ),
        (None, {"completion_only_loss": False}, ConfigurationError, "completion_only_loss: false asks for"),
        (None, {"chat_template_path": "some/model"}, ConfigurationError, r"'some/model' must be a .jinja or .j2 file"),
    ],
)
def test_conversations_that_cannot_be_trained_on(tokenizer, tmp_path, messages, settings, error, message):
    select_template(tokenizer, "chat")
    data = conversations(2)
    if messages is not None:
        data = Dataset.from_list([{"messages": [{"role": role, "content": text} for role, text in messages]}])
    with pytest.raises(error, match=message):
        trainer(tmp_path, tokenizer, data, model="no/such-model", **settings)


def test_template_of_a_file_renders_the_prompts(tokenizer, tmp_path):
    (tmp_path / "own.jinja").write_text(DROPS)
    made = trainer(tmp_path, tokenizer, conversations(2), chat_template_path=str(tmp_path / "own.jinja"), packing=False)
    assert tokenizer.decode(made.train_dataset[0]["input_ids"]).startswith("User: Make 3 from 1, 2\nAssistant:  first")


def test_streams_are_counted(tokenizer, tmp_path, caplog, monkeypatch):
    """Too many at the beginning: no training. Later: left out and said, and stopped when they are too many."""
    long = rows(1, TARGET.replace("yes", "1+2=3 no " * 80))[0]
    template = PromptTemplate("base")
    stream = Dataset.from_list([*rows(97), long, long, long]).to_iterable_dataset()
    with pytest.raises(DataError, match=r"3 of 100 sequences \(3.0%\) are longer than max_length=256"):
        trainer(tmp_path, tokenizer, stream, template, model="no/such-model")
    monkeypatch.setattr("trl_r1.trainers.sft._STREAMED", 200)  # instead of 1,000 rows
    later = [*rows(200), long, long, long, rows(1)[0]]
    settings = {"packing": False, "max_truncated_targets": 0.01}
    made = trainer(tmp_path, tokenizer, Dataset.from_list(later[:202]).to_iterable_dataset(), template, **settings)
    assert len(list(made.train_dataset)) == 200
    # TRL looks at the first rows too, so they are read more than once.
    assert re.search(r"2 of 20\d sequences that were read of the stream are longer than max_length=256", caplog.text)
    made = trainer(tmp_path, tokenizer, Dataset.from_list(later).to_iterable_dataset(), template, **settings)
    with pytest.raises(DataError, match=r"3 of 20\d sequences that were read of the stream are longer"):
        list(made.train_dataset)


def test_template_that_closes_the_thinking_is_refused(tokenizer):
    tokenizer.chat_template = DROPS.replace(
        "%}Assistant: {% endif %}", "%}Assistant: <think>\n\n</think>\n\n{% endif %}"
    )
    with pytest.raises(ConfigurationError, match="enable_thinking"):
        tokenize(rows()[0], tokenizer, select_template(tokenizer, "chat"))


def test_padding_that_is_eos_keeps_the_eos_label(tokenizer, tmp_path):
    tokenizer.pad_token = tokenizer.eos_token
    made = trainer(tmp_path, tokenizer, rows(), PromptTemplate("base"), packing=False)
    short, long = made.train_dataset[0], dict(made.train_dataset[1])
    long = {name: long[name] + long[name][-9:] for name in ("input_ids", "labels")}
    batch = made.data_collator([short, long])
    last = len(short["input_ids"]) - 1
    assert batch["labels"][0, last] == tokenizer.eos_token_id
    assert set(batch["labels"][0, last + 1 :].tolist()) == {-100}


def test_targets_that_lose_their_eos(tokenizer, tmp_path, caplog):
    long = rows(1, TARGET.replace("yes", "1+2=3 no " * 80))[0]
    data = Dataset.from_list([*rows(97), long, long, long])
    with pytest.raises(
        DataError, match=r"3 of 100 sequences \(3.0%\) are longer than max_length=256.*Set max_length to \d+"
    ):
        trainer(tmp_path, tokenizer, data, PromptTemplate("base"), model="no/such-model")
    made = trainer(tmp_path, tokenizer, data, PromptTemplate("base"), packing=False, max_truncated_targets=0.03)
    assert len(made.train_dataset) == 97
    assert all(ids[-1] == tokenizer.eos_token_id for ids in made.train_dataset["input_ids"])


def test_schedule_and_batch_are_r1s(tokenizer, tmp_path):
    args = R1SFTConfig(str(tmp_path), use_cpu=True)
    assert (args.learning_rate, args.num_train_epochs, args.max_length) == (5e-5, 2, 32768)
    assert (args.rows_per_step, args.gradient_accumulation_steps, args.packing) == (128, 128, True)
    assert R1DistillConfig(str(tmp_path), use_cpu=True).rows_per_step == 64
    made = trainer(tmp_path, tokenizer, rows(), PromptTemplate("base"), max_steps=5)
    made.train()
    rates = [entry["learning_rate"] for entry in made.state.log_history if "learning_rate" in entry]
    expected = [1e-3 * (0.1 + 0.45 * (1 + math.cos(math.pi * step / 5))) for step in range(5)]
    assert rates == pytest.approx(expected)
    assert made.lr_scheduler.get_last_lr()[0] == pytest.approx(1e-4)
    with pytest.raises(ConfigurationError, match="rows_per_step=8 and gradient_accumulation_steps=4"):
        R1SFTConfig(str(tmp_path), use_cpu=True, rows_per_step=8, gradient_accumulation_steps=4)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_are_trained_under_lora(tokenizer, tmp_path, lora, tied):
    model = AutoModelForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float32)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    data = rows(8, TARGET.replace("<think>", "<plan>").replace("</think>", "</plan>"))
    made = trainer(
        tmp_path, tokenizer, data, PromptTemplate("base"), lora, model, new_tokens=["<plan>", "</plan>"], max_steps=3
    )
    new = tokenizer.convert_tokens_to_ids(["<plan>", "</plan>"])
    assert new == [1024, 1025]
    assert "<plan>" in tokenizer.decode(made.train_dataset[0]["input_ids"], skip_special_tokens=True)  # trap 21
    base = made.model.get_base_model()
    head = lambda: base.get_output_embeddings().weight.detach().clone()  # noqa: E731
    embed = lambda: base.get_input_embeddings().weight.detach().clone()  # noqa: E731
    before = embed(), head()
    made.train()
    for old, now in zip(before, (embed(), head()), strict=True):
        moved = (old != now).any(1).nonzero().flatten().tolist()
        assert moved == new
    made.save_model(str(tmp_path / "adapter"))
    again = AutoModelForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float32)
    again.resize_token_embeddings(len(tokenizer))
    if tied:
        loaded = PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload()
        assert torch.allclose(loaded.get_input_embeddings().weight[new], embed()[new], atol=1e-6)


def test_new_tokens_begin_as_the_mean_of_their_pieces(tokenizer, tmp_path):
    pieces = tokenizer("<plan>", add_special_tokens=False)["input_ids"]
    made = trainer(tmp_path, tokenizer, rows(), PromptTemplate("base"), new_tokens=["<plan>"])
    weight = made.model.get_input_embeddings().weight
    assert len(pieces) > 1
    assert torch.allclose(weight[1024], weight[pieces].mean(0), atol=1e-6)


def test_special_thinking_tags_are_refused(tokenizer, tmp_path):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    with pytest.raises(ConfigurationError, match=r"<think> are special tokens.*special=False"):
        trainer(tmp_path, tokenizer, model="no/such-model")


def candidates():
    def row(i):
        ones = [Candidate(k, f" <think>{k}+{i}</think> <answer>{k}</answer>", accepted=k < 3) for k in range(4)]
        return {"prompt": f"Make {i} from 1, 2", "id": f"q{i}", "candidates": [one.asdict() for one in ones]}

    return Dataset.from_list([row(i) for i in range(6)])


def test_a_candidate_of_every_row_each_epoch(tokenizer, tmp_path, monkeypatch):
    """Three accepted candidates, three epochs: each is trained on once; a resumed run goes on with the epoch it was in."""
    template = PromptTemplate("base")
    seen = []

    def collator():
        made = RejectionSamplingCollator(tokenizer, template, max_length=256)
        call = made.torch_call
        monkeypatch.setattr(made, "torch_call", lambda examples: seen.append(call(examples)) or seen[-1], raising=False)
        return made

    def run(folder, **settings):
        seen.clear()
        made = trainer(
            folder, tokenizer, candidates(), template, collator=collator(), max_steps=-1, num_train_epochs=3,
            save_strategy="steps", save_steps=1, **settings,
        )  # fmt: skip
        assert made.attention.kind == "sdpa"
        return made

    whole = run(tmp_path / "whole")
    whole.train()
    texts = [text for batch in seen for text in tokenizer.decode(batch["input_ids"][0]).split("<|endoftext|>") if text]
    assert len(texts) == 18
    assert len(set(texts)) == 18
    assert not any("<think>3+" in text for text in texts)
    steps = whole.state.max_steps
    resumed = run(tmp_path / "whole")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{steps // 2}"))
    losses = [[e["loss"] for e in one.state.log_history if "loss" in e] for one in (whole, resumed)]
    assert losses[0] == losses[1]
    assert json.loads((tmp_path / "whole" / f"checkpoint-{steps}" / "trainer_state.json").read_text())["epoch"] == 3


def test_candidates_need_their_collator_and_back(tokenizer, tmp_path):
    collator = RejectionSamplingCollator(tokenizer, PromptTemplate("base"))
    with pytest.raises(DataError, match="rows with `candidates`"):
        trainer(tmp_path, tokenizer, rows(), collator=collator)


def test_sampling_with_the_trainers_weights(tokenizer, tmp_path):
    template = PromptTemplate("base")
    made = trainer(tmp_path, tokenizer, rows(), template)
    prompts = [template.trl_prompt(f"Make {n} from 1, 2") for n in (3, 4)]
    first, again = (made.sample(prompts, 3, max_tokens=8, seed=1) for _ in range(2))
    assert first == again
    assert [len(group) for group in first] == [3, 3]
    assert all(one.truncated or one.token_ids[-1] == tokenizer.eos_token_id for group in first for one in group)
