"""One candidate per row and epoch: which, in which packs, with which labels, on any number of processes."""

import pickle
from collections import Counter

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from transformers import AutoTokenizer

from trl_r1.data.candidates import DRAWS, Candidate, accept_in_order
from trl_r1.data.rejection_collator import RejectionSamplingCollator
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.codec import PromptCodec
from trl_r1.nano import checkpoint_path
from trl_r1.prompts import PromptTemplate, select_template

BASE = PromptTemplate("base")
IGNORED = -100


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(checkpoint_path())


def text(number, words=3, prefix=" <think>"):
    return f"{prefix}{' '.join(f'{number}+{i}' for i in range(words))}</think> <answer>{number}</answer>"


def row(key, accepted=3, rejected=1, words=3, prefill=""):
    ones = [Candidate(i, text(i, words + i), prefill=prefill, correct=True) for i in range(accepted)]
    ones += [Candidate(accepted + i, text(99), correct=False, reason="wrong: 99") for i in range(rejected)]
    candidates = [one.asdict() for one in accept_in_order(ones, None)]
    return {"id": key, "prompt": f"What is {key}?", "domain": "math", "reference": "1", "candidates": candidates}


ROWS = [row(f"r{i}", accepted=1 + i % 4, words=2 + 3 * (i % 5)) for i in range(24)]


@pytest.fixture
def build(tokenizer):
    def build(template=BASE, tokenizer=tokenizer, **settings):
        return RejectionSamplingCollator(tokenizer, template, **({"max_length": 256} | settings))

    return build


def drawn(packs, epoch):
    return dict(member for pack in packs.members(epoch) for member in pack)


# --- Which candidate ---


@pytest.mark.parametrize("draw", DRAWS)
def test_all_are_gone_through_before_one_is_repeated(build, draw):
    packs = build(draw=draw).packs(ROWS, epochs=8)
    seen = {one["id"]: [] for one in ROWS}
    for epoch in range(8):
        epoch_drawn = drawn(packs, epoch)
        assert epoch_drawn.keys() == seen.keys(), "every row, once"
        for key, index in epoch_drawn.items():
            seen[key].append(index)
    for one in ROWS:
        size = sum(candidate["accepted"] for candidate in one["candidates"])
        for start in range(0, 8 - size + 1, size):
            assert sorted(seen[one["id"]][start : start + size]) == list(range(size)), one["id"]


def test_draws_depend_on_seed_row_and_epoch_alone(build):
    packs = build(seed=5).packs(ROWS, epochs=4)
    late = build(seed=5).packs(ROWS[::-1], epochs=4)  # another order of the rows, epochs asked for backwards
    other = build(seed=6).packs(ROWS, epochs=4)
    for epoch in (3, 0, 2, 1):
        assert drawn(packs, epoch) == drawn(late, epoch)
    assert any(drawn(packs, epoch) != drawn(other, epoch) for epoch in range(4))
    orders = Counter(tuple(drawn(packs, epoch)[f"r{i}"] for epoch in range(4)) for i in range(3, 24, 4))
    assert len(orders) > 1, "rows are shuffled apart"


def test_shortest_and_diverse(build):
    assert [drawn(build(draw="shortest").packs([row("a", 4)]), epoch)["a"] for epoch in range(5)] == [0, 1, 2, 3, 0]
    same, near = "we add one and two and three to get six", "we add one and two and three to get seven"
    far = "counting on fingers: one, then three, then six of them altogether"
    ones = [Candidate(i, f"<think>{t}</think> <answer>6</answer>") for i, t in enumerate([same, same, near, far])]
    candidates = [one.asdict() for one in accept_in_order(ones, None)]
    one = {"id": "a", "prompt": "?", "candidates": candidates}
    packs = build(draw="diverse", seed=3).packs([one])
    order = [drawn(packs, epoch)["a"] for epoch in range(4)]
    assert 3 in order[:2], "the odd one comes first or second"
    assert set(order[:3]) != {0, 1, 2}
    assert not {0, 1} <= set(order[:3]), "of two equal ones the second comes last"


# --- Tokens and labels ---


def test_a_pack_is_prompt_target_and_eos_of_each(build, tokenizer):
    packs = build().packs(ROWS, epochs=2)
    codec = PromptCodec(BASE, tokenizer, [tokenizer.eos_token_id])
    by_key = {one["id"]: one for one in ROWS}
    for epoch in range(2):
        packs.set_epoch(epoch)
        for place, members in enumerate(packs.members(epoch)):
            item, start = packs[place], 0
            assert len(item["input_ids"]) == len(item["labels"]) == sum(item["seq_lengths"]) <= 256
            for (key, index), length in zip(members, item["seq_lengths"], strict=True):
                ids, labels = (item[name][start : start + length] for name in ("input_ids", "labels"))
                prompt = codec.encode(by_key[key]["prompt"])
                assert ids[: len(prompt)] == prompt, "as the sampler asks it"
                assert labels == [IGNORED] * len(prompt) + ids[len(prompt) :]
                assert codec.decode(ids[len(prompt) :]) == by_key[key]["candidates"][index]["text"]
                assert ids.count(tokenizer.eos_token_id) == 1
                assert labels[-1] == tokenizer.eos_token_id
                start += length


def test_eos_keeps_its_label_where_it_is_the_padding_too(build, tokenizer):
    same = AutoTokenizer.from_pretrained(checkpoint_path())
    same.pad_token = same.eos_token
    collator = build(tokenizer=same)
    batch = collator([collator.packs(ROWS)[0]])
    labels, ends = batch["labels"][0], batch["cu_seq_lens_q"][1:] - 1
    assert (labels[ends] == same.eos_token_id).all()
    assert (labels == same.eos_token_id).sum() == len(ends)
    assert (labels[batch["cu_seq_lens_q"][:-1]] == IGNORED).all()


def test_batches_are_trls_padding_free_ones(build):
    collator = build()
    packs = collator.packs(ROWS)
    batch = collator([packs[0], packs[1]])
    lengths = packs[0]["seq_lengths"] + packs[1]["seq_lengths"]
    total = sum(lengths)
    for name in ("input_ids", "labels", "position_ids"):
        assert batch[name].shape == (1, total)
    assert batch["cu_seq_lens_q"].tolist() == [0, *torch.tensor(lengths).cumsum(0).tolist()]
    assert batch["max_length_q"] == max(lengths)
    assert batch["position_ids"][0].tolist() == [i for length in lengths for i in range(length)]


@pytest.mark.parametrize("prefill", [" <think>\n", ""])
def test_what_the_template_opens_is_not_learned(build, tokenizer, prefill):
    template = PromptTemplate("base", prefill=" <think>\n")
    one = row("a", accepted=1)
    shown = text(0)
    if prefill:  # sampled under the same template: the text lacks what was opened
        one["candidates"][0] |= {"prefill": prefill, "text": shown.removeprefix(" <think>")}
    ids, labels = build(template).encode("What?", Candidate.from_columns(one["candidates"][0]))
    codec = PromptCodec(template, tokenizer, [tokenizer.eos_token_id])
    target = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    assert codec.decode(target) == shown.removeprefix(" <think>")
    assert codec.decode(ids[: -len(target)]).endswith("<think>\n")
    with pytest.raises(DataError, match=r"opens every completion.*prefill_think: false"):
        build(template).encode("What?", Candidate(0, "Hello!"))


def test_no_chat_template_drops_the_thinking(build):
    own = AutoTokenizer.from_pretrained(checkpoint_path())
    own.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'].split('</think>')[-1] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    template = select_template(own, "chat", instruction="")
    ids, labels = build(template, own).encode("What?", Candidate(0, text(7)))
    shown = own.decode([token for token, label in zip(ids, labels, strict=True) if label != IGNORED])
    assert shown.startswith("<think>7+0")
    assert "</think> <answer>7</answer>" in shown


# --- Packs ---


def test_every_epoch_has_equally_many_packs(build):
    rows = [row(f"r{i}", accepted=3, words=2 + 17 * (i % 3)) for i in range(30)]
    packs = build(draw="shortest", max_length=240).packs(rows, epochs=3, multiple_of=4)
    assert len(packs) % 4 == 0
    for epoch in range(3):
        packs.set_epoch(epoch)
        members = packs.members(epoch)
        assert len(members) == len(packs)
        assert all(members), "no empty pack"
        assert all(len(packs[place]["input_ids"]) <= 240 for place in range(len(packs)))
    with pytest.raises(IndexError):
        packs[len(packs)]


def test_packs_are_nearly_full(build):
    rows = [row(f"r{i}", accepted=2, words=1 + i % 37) for i in range(400)]
    packs = build(max_length=1024).packs(rows, epochs=1)
    tokens = sum(len(packs[place]["input_ids"]) for place in range(len(packs)))
    assert packs.fill == pytest.approx(tokens / (len(packs) * 1024))
    assert packs.fill > 0.95


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_an_epoch_without_repeats(build, processes):
    collator = build()
    packs = collator.packs(ROWS, epochs=2, multiple_of=2 * processes)
    for epoch in range(2):
        collator.set_epoch(epoch)
        seen, steps = [], set()
        for rank in range(processes):
            loader = torch.utils.data.DataLoader(packs, batch_size=2, collate_fn=collator)
            batches = list(
                prepare_data_loader(loader, num_processes=processes, process_index=rank, put_on_device=False)
            )
            steps.add(len(batches))
            seen += [batch["input_ids"][0].tolist() for batch in batches]
        assert len(steps) == 1, "every process takes as many steps"
        together = Counter(token for ids in seen for token in ids)
        assert together == Counter(token for place in range(len(packs)) for token in packs[place]["input_ids"])


def test_loading_in_other_processes_sees_the_epoch(build):
    collator = build(draw="shortest")
    packs = collator.packs(ROWS, epochs=2)
    sizes = []
    for epoch in range(2):
        collator.set_epoch(epoch)
        loader = torch.utils.data.DataLoader(packs, batch_size=1, collate_fn=collator, num_workers=1)
        sizes.append(sum(batch["input_ids"].numel() for batch in loader))
    assert sizes[0] < sizes[1], "longer ones are drawn in the second epoch"
    assert pickle.loads(pickle.dumps(collator)).draw == "shortest"


def test_rows_can_be_collated_directly(build):
    collator = build(draw="shortest")
    first = collator([row("a"), row("b")])
    collator.set_epoch(1)
    second = collator([row("a"), row("b")])
    assert len(first["cu_seq_lens_q"]) == 3
    assert second["input_ids"].numel() > first["input_ids"].numel()
    with pytest.raises(DataError, match=r"'c' has 0 accepted"):
        collator([row("c", accepted=0)])


# --- What is left out, and bad input ---


def test_rows_without_any_are_left_out_and_counted(build):
    packs = build().packs([*ROWS, row("none", accepted=0, rejected=3)])
    assert (packs.rows, packs.left_out, packs.too_long) == (24, 1, 0)
    assert "none" not in drawn(packs, 0)


def test_nothing_is_cut(build):
    long = row("long", accepted=2, words=150)
    with pytest.raises(DataError, match=r"2 of \d+ accepted candidates are longer than max_length=256.*'long'"):
        build().packs([*ROWS, long])
    packs = build(max_lost=0.1).packs([*ROWS, long])
    assert (packs.too_long, packs.rows_too_long) == (2, 1)
    assert "long" not in drawn(packs, 0)


def test_bad_input(build, tokenizer):
    with pytest.raises(ConfigurationError, match=r"draw 'longest'.*'shortest'"):
        build(draw="longest")
    with pytest.raises(ConfigurationError, match="max_length=0"):
        build(max_length=0)
    with pytest.raises(DataError, match=r"None of 1 rows \('none'\)"):
        build().packs([row("none", accepted=0)])
    with pytest.raises(DataError, match="24 rows cannot be shared out to 100 packs"):
        build().packs(ROWS, multiple_of=100)
    without = AutoTokenizer.from_pretrained(checkpoint_path())
    without.eos_token = None
    with pytest.raises(ConfigurationError, match="no EOS"):
        build(tokenizer=without)
