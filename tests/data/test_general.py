"""General rows: answers from data or a sampler, a thinking for some of them and none for greetings."""

from collections import Counter
from dataclasses import replace

import pytest

from trl_r1.data.general import (
    GREETING,
    KINDS,
    GeneralBuilder,
    GeneralConfig,
    GeneralTask,
    is_simple,
    nano_general_rows,
    self_cognition_tasks,
    tasks_from_rows,
)
from trl_r1.data.general_shards import write_general
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.base import Sample, SamplingSettings
from trl_r1.prompts import PromptTemplate
from trl_r1.responses import parse
from trl_r1.rows import Completion, Row

ENGLISH = "The sea is wide and calm, and the boats come home in the evening light."


class Scribe:
    """A sampler that looks its answers up: by what the prompt asks, and by which sample it is."""

    template, tokenizer, name = PromptTemplate("base"), None, "scribe"

    def __init__(self, write):
        self.write = write
        self.asked = []

    def stream(self, requests, settings):
        for request in requests:
            self.asked.append(request)
            for index in reversed(range(request.n)):  # finished in another order than asked
                yield Sample(request.key, index, self.write(request, index))

    def cancel(self, key):
        raise NotImplementedError

    def close(self):
        pass


def wrote(text, reason="stop"):
    return Completion(text, (), reason)


def scribe(request, index):
    if "Reply with the thoughts alone." in request.prompt:
        return wrote("They ask for something short, so I keep it simple.")
    return wrote(f"<think> hm </think> {ENGLISH} It is number {index}.")


def task(number=0, kind="writing", **columns):
    values = {"key": f"{kind}/{number}", "kind": kind, "prompt": f"Write {number} lines on the sea.", "language": "en"}
    return GeneralTask(**(values | columns))


def test_answers_are_sampled_and_a_thinking_is_drafted_for_some():
    sampler = Scribe(scribe)
    builder = GeneralBuilder(sampler, config=GeneralConfig(thinking=0.5), batch=16)
    rows = list(builder.build(task(n) for n in range(100)))
    assert [row["id"] for row in rows] == [f"writing/{n}" for n in range(100)]
    with_thinking = [row for row in rows if row["completion"].startswith("<think>\nThey ask")]
    without = [row for row in rows if "<think>" not in row["completion"]]
    assert len(with_thinking) + len(without) == 100
    assert 30 < len(with_thinking) < 70
    # The first sample in sample order, its own thinking taken off.
    assert without[0]["completion"] == f"{ENGLISH} It is number 0."
    assert parse(with_thinking[0]["completion"]).summary == without[0]["completion"]
    assert {(row["domain"], row["language"], row["license"]) for row in rows} == {("general", "en", "unknown")}
    assert builder.report.asdict()["with_thinking"] == {"writing": len(with_thinking)}
    # The choice is the row's own: it does not depend on what else is built.
    again = list(GeneralBuilder(Scribe(scribe), config=GeneralConfig(thinking=0.5)).build([task(7)]))
    assert again == [rows[7]]


def test_greetings_never_get_a_thinking():
    sampler = Scribe(lambda request, index: wrote("Hello! How can I help you today?"))
    tasks = [
        task(0, GREETING, prompt="Hello"), task(1, prompt="Hi there, how are you?"),
        task(2, prompt="你好,我是小红", language="zh", answer="小红你好!我能帮你什么?"),
    ]  # fmt: skip
    rows = list(GeneralBuilder(sampler, config=GeneralConfig(thinking=1.0)).build(tasks))
    assert len(rows) == 3
    assert not any("<think>" in row["completion"] for row in rows)
    assert len(sampler.asked) == 2  # two answers, no thinking
    empty = GeneralConfig(thinking=1.0, empty_thinking=True)
    assert next(iter(GeneralBuilder(config=empty).build(tasks[2:])))["completion"].startswith(
        "<think>\n\n</think>\n\n小红"
    )


@pytest.mark.parametrize(
    ("prompt", "simple"),
    [("Hello", True), ("hi!", True), ("Good morning, my friend", True), ("你好", True), ("谢谢你!", True), ("Hola, ¿qué tal?", True),
     ("Hi-fi systems explained", False), ("history of Rome", False), ("What does 'hello' mean?", False),
     ("Hello! Write a poem about the sea and the two of us, please.", False), ("你好,请帮我写一首关于大海和月亮的七言绝句诗", False)],
)  # fmt: skip
def test_what_is_too_simple_for_a_thinking(prompt, simple):
    assert is_simple(prompt) is simple


def test_existing_answers_are_kept_and_only_thinking_is_asked_for():
    sampler = Scribe(scribe)
    rows = [Row("What is the capital of France?", "The capital of France is Paris.", "general", "en", "f1"),
            Row([{"role": "user", "content": "Hello"}], "Hi! How can I help?", "general", None, "f2")]  # fmt: skip
    tasks = list(tasks_from_rows(rows, "factual_qa", "facts", license="cc-by-4.0"))
    assert [one.kind for one in tasks] == ["factual_qa", GREETING]
    built = list(GeneralBuilder(sampler, config=GeneralConfig(thinking=1.0)).build(tasks))
    assert [request.key for request in sampler.asked] == ["f1"]
    assert "The capital of France is Paris." in sampler.asked[0].prompt
    assert built[0]["completion"].endswith("</think>\n\nThe capital of France is Paris.")
    assert built[1]["completion"] == "Hi! How can I help?"
    assert {row["license"] for row in built} == {"cc-by-4.0"}
    form = GeneralConfig(thinking=1.0, answer_form="answer")
    tagged = next(iter(GeneralBuilder(Scribe(scribe), config=form).build(tasks[:1])))["completion"]
    assert parse(tagged).well_formed
    with pytest.raises(DataError, match="3 messages"):
        list(tasks_from_rows([Row([{"role": "user", "content": "a"}] * 3, "")], "writing", "chats"))


def test_a_repeated_question_counts_once(caplog):
    rows = [Row(prompt, answer, "general", "en", key) for prompt, answer, key in
            (("Who?", "Ann.", "q1"), ("Why?", "So.", "q2"), ("who", "Bea.", "q1"))]  # fmt: skip
    built = list(GeneralBuilder().build(tasks_from_rows(rows, "factual_qa", "facts")))
    assert [row["completion"] for row in built] == ["Ann.", "So."]
    assert "1 rows of 'facts' ask a question again" in caplog.text


def test_a_translation_needs_its_language():
    row = Row("Good morning, my friends.", "Guten Morgen, meine Freunde.", "general", id="q1")
    with pytest.raises(DataError, match=r"Row 0 of 'opus'.*`language`"):
        list(tasks_from_rows([row], "translation", "opus"))
    (task,) = tasks_from_rows([row], "translation", "opus", language="de")
    assert task.language == "de"
    assert task.question.startswith("Translate into German")
    both = [replace(row, language=code) for code in ("de", "fr", "de")]
    assert [one.language for one in tasks_from_rows(both, "translation", "opus")] == ["de", "fr"]


def test_each_kind_is_asked_in_its_own_words():
    sampler = Scribe(scribe)
    tasks = [
        task(1, "translation", prompt="Das Meer ist weit.", language="en"),
        task(2, "translation", prompt="The sea is wide.", language="zh", answer="大海辽阔。"),
        task(3, "factual_qa"), *self_cognition_tasks("en")[:1],
    ]  # fmt: skip
    config = GeneralConfig(thinking=0.0, name="Nano", developer="the trl_r1 authors")
    rows = {row["id"]: row for row in GeneralBuilder(sampler, config=config).build(tasks)}
    asked = {request.key: request.prompt for request in sampler.asked}
    assert "Translate the following into English" in asked["translation/1"]
    assert rows["translation/1"]["prompt"] == "Translate into English:\nDas Meer ist weit."
    assert rows["translation/2"]["prompt"].startswith("把下面的内容翻译成中文")
    assert "only what you are sure of" in asked["factual_qa/3"]
    assert "You are Nano, a language model made by the trl_r1 authors" in asked["self_cognition/en/0"]
    # What the row asks is the user's own words, not ours.
    assert rows["self_cognition/en/0"]["prompt"] == "Who are you?"
    assert rows["factual_qa/3"]["prompt"] == task(3).prompt
    assert {row["kind"] for row in rows.values()} <= set(KINDS)


def test_bad_samples_are_passed_over_and_counted():
    bad = {
        "cut": wrote(ENGLISH, "length"), "empty": wrote("<think> hm </think>  "), "tags": wrote(f"{ENGLISH} <answer>"),
        "chinese": wrote("大海辽阔而平静,傍晚的船只都回家了。"), "long": wrote(ENGLISH * 20), "good": wrote(ENGLISH),
    }  # fmt: skip
    sampler = Scribe(lambda request, index: bad[request.key] if index == 0 or request.key != "long" else wrote(ENGLISH))
    builder = GeneralBuilder(sampler, config=GeneralConfig(thinking=0.0, max_characters=500, tries=2))
    rows = list(builder.build([task(key=key) for key in bad]))
    assert [row["id"] for row in rows] == ["long", "good"]  # the second try of one was short enough
    assert builder.report.dropped == Counter({"cut off": 1, "empty": 1, "tags in the text": 1, "wrong language": 1})
    # A thinking that cannot be drafted costs the thinking, not the row.
    silent = GeneralBuilder(Scribe(lambda *_: wrote("")), config=GeneralConfig(thinking=1.0))
    assert next(iter(silent.build([task(answer=ENGLISH)])))["completion"] == ENGLISH
    assert silent.report.without_draft == Counter({"empty": 1})


def test_shards_go_on_where_they_stopped(tmp_path):
    class Stopped(Exception):
        pass

    def breaks(request, index):
        if request.key == "writing/25":
            raise Stopped
        return scribe(request, index)

    tasks = [task(n) for n in range(30)]
    whole = GeneralBuilder(Scribe(scribe))
    report = write_general(whole, tasks, tmp_path / "whole", shard_tasks=10)
    assert report["rows"] == {"writing": 30}
    broken = Scribe(breaks)
    with pytest.raises(Stopped):
        write_general(GeneralBuilder(broken), tasks, tmp_path / "again", shard_tasks=10)
    assert [path.name for path in sorted((tmp_path / "again").glob("*.jsonl"))] == [
        "general-00000.jsonl",
        "general-00001.jsonl",
    ]
    resumed = Scribe(scribe)
    assert write_general(GeneralBuilder(resumed), tasks, tmp_path / "again", shard_tasks=10) == report
    assert {request.key for request in resumed.asked} == {f"writing/{n}" for n in range(20, 30)}
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(ConfigurationError, match="other prompts or with other settings"):
        write_general(
            GeneralBuilder(resumed, config=GeneralConfig(thinking=0.1)), tasks, tmp_path / "again", shard_tasks=10
        )


def test_bad_input():
    with pytest.raises(ConfigurationError, match=r"'writing/0' has no answer.*no sampler"):
        list(GeneralBuilder().build([task()]))
    with pytest.raises(DataError, match="Two general rows"):
        list(GeneralBuilder().build([task(answer="a"), task(answer="b")]))
    with pytest.raises(ConfigurationError, match="'poem'"):
        task(kind="poem")
    with pytest.raises(DataError, match="empty prompt"):
        task(prompt=" ")
    with pytest.raises(ConfigurationError, match="share"):
        GeneralConfig(thinking=2)
    with pytest.raises(ConfigurationError, match="'fr'"):
        self_cognition_tasks("fr")


def test_rows_of_the_embedded_world():
    rows = list(nano_general_rows(120))
    thinking = {kind: [("<think>" in row["completion"]) for row in rows if row["kind"] == kind] for kind in KINDS}
    assert not any(thinking[GREETING])
    assert all(thinking["factual_qa"])
    assert len({row["id"] for row in rows}) == 120


def test_nano_answers_greetings_by_itself():
    """A real model: the answers are what it was pretrained to give, and none of them thinks."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_r1.generation.transformers import TransformersSampler
    from trl_r1.nano import checkpoint_path

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    model = AutoModelForCausalLM.from_pretrained(checkpoint_path(), dtype=torch.float32).eval()
    sampler = TransformersSampler(
        model, tokenizer, PromptTemplate("base"), eos_token_ids=[tokenizer.eos_token_id], name="nano"
    )
    greetings = [row for row in nano_general_rows(60) if row["kind"] == GREETING][:8]
    tasks = [GeneralTask(row["id"], GREETING, row["prompt"], row["language"]) for row in greetings]
    settings = SamplingSettings(max_tokens=40, seed=0)
    builder = GeneralBuilder(sampler, settings, GeneralConfig(instruct=False, thinking=1.0, tries=3))
    built = list(builder.build(tasks))
    assert len(built) + sum(builder.report.dropped.values()) == 8
    assert len(built) >= 5
    assert not any("<think>" in row["completion"] for row in built)
    assert sum("help" in row["completion"] or "帮" in row["completion"] for row in built) >= 2
