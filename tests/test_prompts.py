"""Templates: the paper's words, prefills found in what is rendered, gold completions that are well formed."""

import pytest
from datasets import Dataset

from trl_r1.exceptions import ConfigurationError
from trl_r1.prompts import (
    BOXED_INSTRUCTION,
    TAG_INSTRUCTION,
    PromptTemplate,
    detect_prefill,
    gold_completion,
    select_template,
)
from trl_r1.responses import parse

# arXiv 2501.12948v1, Table 1.
TABLE_1 = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    "reasoning process here </think> <answer> answer here </answer>. User: What is 9 * 8?. Assistant:"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def test_base_template_is_the_papers():
    template = PromptTemplate("base")
    assert template.render("What is 9 * 8?") == TABLE_1
    assert template.render([{"role": "user", "content": "What is 9 * 8?"}]) == TABLE_1
    # Braces and Jinja in a question are text.
    assert "User: {{ 7 }} {%x%}. Assistant:" in template.render("{{ 7 }} {%x%}")


def test_base_template_flattens_several_turns():
    turns = [("user", "a?"), ("assistant", "b"), ("user", "c?")]
    text = PromptTemplate("base").render([{"role": role, "content": content} for role, content in turns])
    assert text.endswith("</answer>. User: a? Assistant: b User: c?. Assistant:")


@pytest.mark.parametrize(
    ("rendered", "prefill"),
    [
        ("User: x Assistant: <think>\n", "<think>\n"),
        ("assistant\n<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
        (TABLE_1, ""),
        ("<think> a </think> b", ""),
    ],
)
def test_detect_prefill(rendered, prefill):
    assert detect_prefill(rendered) == prefill


def test_auto_takes_chat_only_with_a_chat_template(tokenizer):
    assert select_template(tokenizer).name == "base"
    tokenizer.chat_template = CHATML
    template = select_template(tokenizer)
    assert template.name == "chat"
    assert template.instruction == TAG_INSTRUCTION
    assert select_template(tokenizer, form="boxed").instruction == BOXED_INSTRUCTION
    assert select_template(tokenizer, "base").name == "base"
    rendered = template.render("What is 9 * 8?", tokenizer)
    assert rendered.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert TAG_INSTRUCTION in rendered


def test_chat_template_that_opens_the_thinking_is_detected(tokenizer):
    """Trap 2."""
    tokenizer.chat_template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    template = select_template(tokenizer)
    assert template.prefill == "<think>\n"
    assert template.instruction == ""
    assert not template.gold("72").startswith("<think>")
    assert parse(template.gold("72"), prefill=template.prefill).well_formed


def test_our_chat_template_keeps_the_thinking_in_targets(tokenizer):
    template = select_template(tokenizer, "chat", prefill_think=True)
    assert template.prefill == "<think>\n"
    question = {"role": "user", "content": "What is 9 * 8?"}
    written = "<think>\n9 * 8 = 72\n</think>\n\n72"
    messages = [{"role": "system", "content": "Be brief."}, question, {"role": "assistant", "content": written}]
    full = tokenizer.apply_chat_template([*messages, question], tokenize=False)
    assert full == f"<s>Be brief.\n\nUser: What is 9 * 8?\n\nAssistant:\n{written}</s>\n\nUser: What is 9 * 8?\n\n"
    # What rollouts are given is a prefix of what fine-tuning shows, with the thinking opened or not.
    for kwargs in ({}, {"prefill_think": True}):
        asked = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True, **kwargs)
        assert tokenizer.apply_chat_template(messages, tokenize=False).startswith(asked)
    assert template.render("What is 9 * 8?", tokenizer).endswith("Assistant:\n<think>\n")
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    target = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(target) == written + "</s>"


def test_our_chat_template_refuses_unknown_roles(tokenizer):
    select_template(tokenizer, "chat")
    with pytest.raises(Exception, match="Unknown role 'tool'"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


@pytest.mark.parametrize("form", ["answer", "boxed"])
@pytest.mark.parametrize("prefill", ["", "<think>\n", " <think>\n", "<think>\n\n</think>\n\n"])
def test_gold_completion_is_well_formed(form, prefill):
    response = parse(gold_completion("\\frac{1}{2}", form=form, prefill=prefill), prefill=prefill)
    assert response.answer == "\\frac{1}{2}"
    if "</think>" not in prefill:
        assert response.think_only
        assert response.well_formed == (form == "answer")


def test_apply_gives_trl_text_or_messages():
    rows = Dataset.from_list([{"prompt": "q?", "reference": "1"}])
    base = PromptTemplate("base", prefill=" <think>\n").apply(rows)[0]
    assert base["prompt"].endswith("User: q?. Assistant: <think>\n")
    assert base["prefill"] == " <think>\n"
    assert base["reference"] == "1"
    chat = PromptTemplate("chat", instruction="Think.").apply(rows)[0]
    assert chat["prompt"] == [{"role": "user", "content": "q?\n\nThink."}]
    assert PromptTemplate("chat").apply({"prompt": "q?"})["prompt"] == [{"role": "user", "content": "q?"}]


def test_bad_input_is_named(tokenizer):
    with pytest.raises(ConfigurationError, match=r"'chatty'.*'auto', 'base', 'chat'"):
        select_template(tokenizer, "chatty")
    with pytest.raises(ConfigurationError, match=r"'xml'.*'answer', 'boxed'"):
        select_template(tokenizer, form="xml")
    with pytest.raises(ConfigurationError, match="chat_template"):
        PromptTemplate("chat").render("q", tokenizer)
    with pytest.raises(ConfigurationError, match="role 'user'"):
        PromptTemplate("base").render([{"role": "system", "content": "x"}])
