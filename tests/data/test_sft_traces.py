"""Traces in all the forms they come in, and what is refused."""

import json
from types import SimpleNamespace

import pytest

from trl_r1.data.candidates import Candidate
from trl_r1.data.nano_traces import nano_traces
from trl_r1.data.traces import TraceConfig, licenses, load_candidates, load_traces, without_questions
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.responses import parse

THOUGHT = "<think>1+2=3</think> <answer>3</answer>"
ANSWER = {"role": "assistant", "content": THOUGHT}


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(tmp_path, *rows, form="answer", **settings):
    return load_traces(TraceConfig(traces=write(tmp_path / "traces.jsonl", *rows), **settings), form)


@pytest.mark.parametrize(
    ("row", "form", "expected"),
    [
        ({"prompt": "1+2?", "completion": THOUGHT}, "answer", THOUGHT),
        (
            {"prompt": "1+2?", "reasoning": "1+2=3", "answer": "3"},
            "answer",
            "<think> 1+2=3 </think> <answer> 3 </answer>",
        ),
        (
            {"prompt": "1+2?", "reasoning": "1+2=3", "answer": "3"},
            "boxed",
            "<think>\n1+2=3\n</think>\n\nThe answer is \\boxed{3}.",
        ),
        (
            {"prompt": "Hi", "reasoning": "A greeting.", "summary": "Hello!"},
            "boxed",
            "<think>\nA greeting.\n</think>\n\nHello!",
        ),
        (
            {"prompt": "1+2?", "completion": [{"role": "assistant", "reasoning_content": "1+2=3", "content": "3"}]},
            "answer",
            "<think>1+2=3</think>3",
        ),
        (
            {"messages": [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": THOUGHT}]},
            "answer",
            THOUGHT,
        ),
    ],
)
def test_forms(tmp_path, row, form, expected):
    (made,) = load(tmp_path, row, form=form)
    assert made["completion"] == expected
    assert made["prompt"] in ("1+2?", "Hi")
    assert parse(made["completion"]).reasoning


def test_columns_are_named_and_carried(tmp_path):
    row = {"question": "1+2?", "trace": THOUGHT, "id": "q1", "license": "mit", "domain": "math", "extra": [1]}
    named = {"prompt": "question", "completion": "trace"}
    made = load(tmp_path, row, {**row, "license": None}, traces_columns=json.dumps(named), traces_license="cc0-1.0")
    assert made[0] == {
        "prompt": "1+2?", "completion": THOUGHT, "id": "q1", "domain": "math", "language": None, "license": "mit", "source": None,
    }  # fmt: skip
    assert licenses(made) == {"cc0-1.0": 1, "mit": 1}
    assert licenses(load(tmp_path, row | {"license": None}, traces_columns=named)) == {"unknown": 1}


def test_records_of_rejection_sampling_give_every_accepted_candidate(tmp_path):
    ones = [Candidate(i, f"{i}</think> {i}", prefill="<think>", accepted=i != 1).asdict() for i in range(4)]
    records = [
        {"prompt": "1+2?", "id": "a", "candidates": ones},
        {"prompt": "2+2?", "id": "b", "candidates": ones[1:2]},
    ]
    made = load(tmp_path, *records)
    assert made["completion"] == ["<think>0</think> 0", "<think>2</think> 2", "<think>3</think> 3"]
    assert len(load(tmp_path, *records, max_per_prompt=2)) == 2
    rows = load_candidates(TraceConfig(traces=str(tmp_path / "traces.jsonl"), traces_license="mit"))
    assert rows["id"] == ["a", "b"]
    assert licenses(rows) == {"mit": 2}
    with pytest.raises(DataError, match="has no candidates"):
        load_candidates(
            TraceConfig(traces=write(tmp_path / "other.jsonl", {"prompt": "p", "id": "a", "completion": "c"}))
        )


def test_candidates_without_thinking_are_refused(tmp_path):
    """Draws train on candidates as they are: the accepted ones are looked at, the others are not."""

    def record(key, *texts, accepted=(0,), domain="math"):
        ones = [Candidate(i, text, prefill="<think>", accepted=i in accepted) for i, text in enumerate(texts)]
        return {"prompt": "1+2?", "id": key, "domain": domain, "candidates": [one.asdict() for one in ones]}

    good = record("good", "1+2=3</think> 3", "3")  # the second is not accepted
    bad = record("bad", "1+2=3</think> 3", " </think> 3", accepted=(0, 1))
    greeting = record("greeting", "</think> Hello!", domain="general")
    path = write(tmp_path / "records.jsonl", good, bad, greeting)
    with pytest.raises(DataError, match=r"2 of 4 traces .* have no <think>.*: bad, greeting\. .*without_thinking"):
        load_candidates(TraceConfig(traces=path))
    with pytest.raises(DataError, match=r"1 of 4 traces .*: bad\. "):
        load_candidates(TraceConfig(traces=path, without_thinking="general"))
    assert len(load_candidates(TraceConfig(traces=path, without_thinking="allow"))) == 3
    kept = write(tmp_path / "kept.jsonl", good, greeting)
    assert len(load_candidates(TraceConfig(traces=kept, without_thinking="general"))) == 2


def test_what_a_reviewer_dropped_is_left_out(tmp_path):
    row = {"prompt": "1+2?", "completion": THOUGHT, "review": {"status": "keep"}}
    assert len(load(tmp_path, row, {**row, "review": {"status": "drop"}}, {**row, "review": None})) == 2


def test_traces_without_thinking_are_counted_and_named(tmp_path):
    rows = [{"prompt": "p", "completion": THOUGHT, "id": "good"}]
    rows += [{"prompt": "p", "completion": text, "id": f"bad{i}"} for i, text in enumerate(["3", "<think> </think> 3"])]
    rows += [{"prompt": "Hi", "completion": "Hello!", "id": "greeting", "domain": "general"}]
    with pytest.raises(
        DataError, match=r"3 of 4 traces .* have no <think>.*: bad0, bad1, greeting\. .*without_thinking"
    ):
        load(tmp_path, *rows)
    with pytest.raises(DataError, match=r"2 of 4 traces"):
        load(tmp_path, *rows, without_thinking="general")
    assert len(load(tmp_path, rows[0], rows[3], without_thinking="general")) == 2
    assert len(load(tmp_path, *rows, without_thinking="allow")) == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "1+2?"}, r"Row 0 has no prompt. It has the columns question"),
        ({"prompt": "1+2?", "text": THOUGHT}, r"Row 0 has no target.*columns prompt, text"),
        ({"messages": [{"role": "user", "content": "1+2?"}]}, r"Row 0: the last of `messages` must be the assistant's"),
        (
            {"prompt": "1+2?", "reasoning": ["1+2=3"], "answer": "3"},
            r"Row 0: column 'reasoning' holds a list.*must be text",
        ),
        ({"prompt": "1+2?", "reasoning": "r", "answer": {"x": 3}}, r"column 'answer' holds a dict.*text or a number"),
        (
            {"prompt": "1+2?", "completion": [THOUGHT, THOUGHT]},
            r"Row 0: column 'completion' holds a list.*a row of its own",
        ),
        ({"prompt": ["1+2?"], "completion": THOUGHT}, r"Row 0: column 'prompt' holds a list.*a list of turns"),
        ({"messages": "1+2?"}, r"Row 0: column 'messages' holds a str, '1\+2\?'.*a list of turns"),
        ({"messages": [{"text": "1+2?"}, {"text": THOUGHT}]}, r"column 'messages' holds a dict.*`role` and `content`"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, r"column 'messages\[\]\.content' holds a NoneType"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]},
            r"holds a list.*'image'.*type: text",
        ),
        (
            {"messages": [{"from": "observation", "value": "3"}, ANSWER]},
            r"\.from' holds a str, 'observation'.*human, gpt",
        ),
    ],
)
def test_bad_rows(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, row)


def test_a_bad_column_is_called_as_in_the_file(tmp_path):
    rows = [{"q": "1+2?", "generations": text} for text in (THOUGHT, [THOUGHT])]
    with pytest.raises(DataError, match=r"Row 1: column 'generations' holds a list"):
        load(tmp_path, *rows, traces_columns={"prompt": "q", "completion": "generations"})


def test_turns_in_other_shapes(tmp_path):
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "2?"}]
    shared = [{"from": "human", "value": "1+2?"}, {"from": "gpt", "value": THOUGHT}]
    rows = [
        {"messages": [{"role": "user", "content": parts}, ANSWER]},
        {"prompt": [{"role": "user", "content": parts}], "completion": [{"content": THOUGHT}]},
        {"messages": shared},
        {"messages": [{"from": "system", "value": "Be brief."}, *shared]},
        {"prompt": "1+2?", "reasoning": "1+2=3", "answer": 3},
    ]
    made = load(tmp_path, *rows)
    asked = {"role": "user", "content": "1+2?"}
    assert made["prompt"] == [[asked], [asked], [asked], [{"role": "system", "content": "Be brief."}, asked], [asked]]
    assert made["completion"] == [THOUGHT] * 4 + ["<think> 1+2=3 </think> <answer> 3 </answer>"]
    # Named by its column.
    named = load(tmp_path, {"conversations": shared}, traces_columns={"messages": "conversations"})
    assert (named[0]["prompt"], named[0]["completion"]) == ("1+2?", THOUGHT)
    # A file that holds several kinds: messages come first, as the module says.
    both = load(tmp_path, {"prompt": "2+2?", "completion": "<think>x</think> 4", "messages": shared})
    assert both[0]["completion"] == THOUGHT


def test_bad_sources(tmp_path):
    with pytest.raises(DataError, match="traces is empty"):
        load_traces(TraceConfig())
    with pytest.raises(DataError, match=r"No such file: nowhere\.jsonl"):
        load_traces(TraceConfig(traces="nowhere.jsonl"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "p"\n')
    with pytest.raises(DataError, match=r"broken\.jsonl, line 1 is no JSON"):
        load_traces(TraceConfig(traces=str(broken)))
    with pytest.raises(ConfigurationError, match=r"Unknown field of traces_columns 'target'.*'completion'"):
        TraceConfig(traces_columns={"target": "x"})
    with pytest.raises(ConfigurationError, match=r"Unknown without_thinking 'some'.*'refuse'"):
        TraceConfig(without_thinking="some")


def test_parquet_and_conversations(tmp_path):
    from datasets import Dataset

    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+2?"}]
    rows = [{"messages": [*turns, {"role": "assistant", "content": THOUGHT}], "prompt": None, "completion": None}]
    path = str(tmp_path / "traces.parquet")
    Dataset.from_list(rows).to_parquet(path)
    (made,) = load_traces(TraceConfig(traces=path))
    assert made["prompt"] == turns


def test_held_out_questions_are_taken_out(tmp_path):
    rows = [{"prompt": text, "completion": THOUGHT} for text in ("What is 1+2?", "what is  1+2", "What is 1-2?")]
    left, dropped = without_questions(load(tmp_path, *rows), ["What is 1+2?"])
    assert (left["prompt"], dropped) == (["What is 1-2?"], 2)


def test_traces_of_nano():
    made = load_traces(TraceConfig(traces="nano:arithmetic,ordering", max_traces=40))
    assert len(made) == 40
    assert {parse(text).well_formed for text in made["completion"]} == {True}
    assert licenses(made) == {"apache-2.0": 40}
    assert (
        made["completion"] == load_traces(TraceConfig(traces="nano:arithmetic,ordering", max_traces=40))["completion"]
    )
    scanned = load_traces(TraceConfig(traces="nano:choice", max_traces=20, traces_dials='{"scan": 1.0, "mixing": 0}'))
    assert all("A " in text for text in scanned["completion"])
    with pytest.raises(ConfigurationError, match=r"Unknown dial of the nano world .scam.*scan"):
        load_traces(TraceConfig(traces="nano:choice", traces_dials={"scam": 1.0}))
    with pytest.raises(ConfigurationError, match=r"traces_dials is no JSON object: .0\.5"):
        TraceConfig(traces="nano:choice", traces_dials="0.5")
    control = [SimpleNamespace(**row) for row in nano_traces(["arithmetic"], 200, as_pretrained=True)]
    malformed = sum(not parse(row.completion).well_formed for row in control) / 200
    assert 0.15 < malformed < 0.4  # as the pretraining documents: 28 %


def test_traces_are_read_once_and_stay_on_disk(tmp_path, monkeypatch):
    from trl_r1.data import traces as module

    read, own = [], module.json_lines

    def counted(path):
        read.append(path)
        yield from own(path)

    monkeypatch.setattr(module, "json_lines", counted)
    config = TraceConfig(traces=write(tmp_path / "traces.jsonl", *([{"prompt": "2+2", "completion": THOUGHT}] * 3)))
    first = load_traces(config)
    assert first.cache_files, "in memory"
    assert load_traces(config)["completion"][:] == [THOUGHT] * 3
    assert len(read) == 1
    assert load_traces(config)._fingerprint == first._fingerprint, "TRL would tokenise again"
    assert len(load_traces(TraceConfig(traces=config.traces, max_traces=2))) == 2
    write(tmp_path / "traces.jsonl", {"prompt": "2+2", "completion": THOUGHT})
    assert len(load_traces(config)) == 1
    assert len(read) == 3


def test_a_conversation_after_many_texts_makes_conversations_of_them(tmp_path):
    turns = [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "?"},
    ]
    rows = [{"prompt": f"{i}+2", "completion": THOUGHT} for i in range(2500)] + [
        {"prompt": turns, "completion": THOUGHT}
    ]
    made = load_traces(TraceConfig(traces=write(tmp_path / "traces.jsonl", *rows)))
    assert len(made) == 2501
    assert made[7]["prompt"] == [{"role": "user", "content": "7+2"}]
    assert made[2500]["prompt"] == turns
