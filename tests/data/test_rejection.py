"""Rejection sampling: which candidates are accepted whatever finishes first, what is asked for, what survives, what is said."""

import json
import socket
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import fmean

import pytest
import slow_verifier as slow
from replayed_samples import ReplaySampler, nano_completions, nano_rows

from trl_r1.data.candidates import Candidate, accept_in_order
from trl_r1.data.rejection import SHARDS_FOLDER, RejectionSampler, accepted_rows, judge_identity
from trl_r1.data.rejection_report import Tally, easy_prompt_bias, pass_rate, read_figures, render
from trl_r1.data.rejection_schedule import RowState, Schedule
from trl_r1.exceptions import ConfigurationError, DataError, EngineError
from trl_r1.generation.base import SamplingSettings
from trl_r1.generation.config import SamplerConfig, open_sampler
from trl_r1.generation.shards import SampleStore
from trl_r1.nano import checkpoint_path
from trl_r1.rewards.pool import warm_up
from trl_r1.rows import Completion, Row, Verdict, row_digest
from trl_r1.verifiers.judge import Judge, JudgeServer
from trl_r1.workers import WorkerError, WorkerPool

K, CAP = 8, 2


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(1, initializer=warm_up) as pool:
        yield pool


@pytest.fixture
def build(pool):
    def build(sampler=None, **settings):
        settings = {"samples": K, "max_accepted": CAP, "workers": pool, "progress": False, "filters": ()} | settings
        return RejectionSampler(sampler or ReplaySampler(nano_completions()), **settings)

    return build


def accepted(result):
    return {row["id"]: [one["index"] for one in row["candidates"] if one["accepted"]] for row in result.dataset}


# --- Which are accepted ---


def expected():
    """By the definition: the first right ones in sample order."""
    from trl_r1.data.filters import parsed
    from trl_r1.verifiers import verify

    found = {}
    for row in nano_rows():
        right = [i for i in range(K) if verify(parsed(nano_completions()[f"{row.id}#{i}"]).answer, row).correct]
        found[row.id] = right[:CAP]
    return found


@pytest.mark.parametrize("width", [3, 200])
def test_early_stop_accepts_what_sampling_everything_accepts(build, tmp_path, width):
    stopped = build(ReplaySampler(nano_completions(), width)).run(nano_rows(), tmp_path / "stopped")
    everything = build(ReplaySampler(nano_completions(), width), early_stop=False).run(nano_rows(), tmp_path / "all")
    assert accepted(stopped) == accepted(everything) == expected()
    assert everything.report["total"]["samples"] == K * len(nano_rows())
    assert stopped.report["by_difficulty"].keys() == everything.report["by_difficulty"].keys()
    assert stopped.report["easy_prompt_bias"] == everything.report["easy_prompt_bias"]


def lengths(picked):
    return sorted(len(nano_completions()[key].token_ids) for key in picked)


def test_the_length_distribution_is_that_of_sampling_everything(build, tmp_path):
    """The sampler finishes short ones first: accepting them as they come would give shorter traces (trap 33)."""
    result = build(ReplaySampler(nano_completions(), width=K * len(nano_rows()))).run(nano_rows(), tmp_path)
    ours = [f"{key}#{index}" for key, indices in accepted(result).items() for index in indices]
    fair = [f"{key}#{index}" for key, indices in expected().items() for index in indices]
    assert lengths(ours) == lengths(fair)

    hasty = []
    everything = build(early_stop=False, max_accepted=None).run(nano_rows(), tmp_path / "all")
    for row in everything.dataset:
        right = [f"{row['id']}#{one['index']}" for one in row["candidates"] if one["accepted"]]
        hasty += sorted(right, key=lambda key: len(nano_completions()[key].token_ids))[:CAP]
    assert len(hasty) == len(ours)
    assert fmean(lengths(hasty)) < fmean(lengths(ours)), "the test can fail"


class ShortFirst:
    """A real sampler whose completions come out shortest first, as those of an engine do."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __getattr__(self, name):
        return getattr(self.sampler, name)

    def stream(self, requests, settings):
        yield from sorted(self.sampler.stream(requests, settings), key=lambda one: len(one.completion.token_ids))


def test_a_real_sampler_whose_short_ones_come_first(build, tmp_path):
    config = SamplerConfig(
        model_name_or_path=str(checkpoint_path()), backend="transformers", max_tokens=32, seed=1, dtype="float32"
    )
    rows = nano_rows()[:4]
    with closing(open_sampler(config)) as sampler:
        settings = {"settings": config.settings(), "samples": 6, "spread": 2.0}
        ours = build(ShortFirst(sampler), **settings).run(rows, tmp_path / "ours")
        everything = build(sampler, early_stop=False, **settings).run(rows, tmp_path / "all")

    def taken(result):
        return {
            row["id"]: [(one["index"], one["text"]) for one in row["candidates"] if one["accepted"]]
            for row in result.dataset
        }

    assert taken(ours) == taken(everything), "each one of them, hence also their lengths"
    assert ours.report["total"]["accepted"] > 2


def test_a_row_waits_for_its_earlier_samples(build, tmp_path):
    """The first sample is the longest by far; it is right, so it is accepted in front of those that were through long ago."""
    row = Row("What is 6 * 7?", "42", id="q")
    text = "<think> 6 * 7 </think> <answer> 42 </answer>"
    completions = {f"q#{i}": Completion(text, (1,) * (1000 if i == 0 else 5)) for i in range(K)}
    sampler = ReplaySampler(completions)
    assert accepted(build(sampler).run([row], tmp_path)) == {"q": [0, 1]}


def test_what_cannot_count_is_cancelled_or_not_asked_for(build, tmp_path):
    row = Row("What is 6 * 7?", "42", id="q")
    right = "<think> 6 * 7 </think> <answer> 42 </answer>"
    texts = [right, "<think> no </think> <answer> 41 </answer>", *[right] * 14]
    completions = {f"q#{i}": Completion(text, (1,) * (5 + 400 * (i > 2))) for i, text in enumerate(texts)}

    class Patient(ReplaySampler):
        def stream(self, requests, settings):  # gives the workers time for a verdict before the next completion
            for sample in super().stream(requests, settings):
                yield sample
                time.sleep(0.05)

    sampler = Patient(completions)
    result = build(sampler, samples=16, spread=8.0).run([row], tmp_path)
    assert accepted(result) == {"q": [0, 2]}
    assert len(sampler.asked) < 16
    assert sampler.cancelled, "the long ones were under way"
    assert set(sampler.cancelled) <= {f"q#{i}" for i in range(3, 16)}


# --- What is asked for ---


def simulate(rates, samples, cap, width=64):
    """Run a schedule with verdicts that come at once; return samples asked per row."""
    import random

    states = [RowState(str(i), Row("", ""), samples, cap) for i in range(len(rates))]
    schedule, draw = Schedule(states, spread=1.0), random.Random(0)
    running = []
    while True:
        requests = schedule.requests()
        while True:
            while len(running) < width and (request := next(requests, None)) is not None:
                running.append(request.key)
            if not running:
                break
            key = running.pop(draw.randrange(len(running)))
            taken = schedule.take(key)
            if taken is None:
                continue
            state, index = taken
            cancelled = schedule.settle(state, index, draw.random() < rates[int(state.key)])
            running = [key for key in running if key not in cancelled]
            if schedule.finished(state):
                schedule.close(state)
        if not any(schedule._wants(state, 1.0) for state in schedule.open.values()):
            return states


def test_asks_for_little_more_than_is_needed():
    states = simulate([1.0] * 50 + [0.5] * 50 + [0.0] * 10, samples=32, cap=4)
    asked = [len(state.found) for state in states]
    assert set(asked[:50]) == {4}
    assert 8 <= fmean(asked[50:100]) < 11, "8 are needed on average"
    assert set(asked[100:]) == {32}


def test_a_gap_that_a_kill_left_is_asked_for_and_nothing_beyond():
    state = RowState("q", Row("", ""), 8, 2, {1: True, 2: False, 3: True, 5: True})
    schedule = Schedule([state])
    assert [request.key for request in schedule.requests()] == ["q#0"]
    assert not schedule.finished(state)
    state, index = schedule.take("q#0")
    schedule.settle(state, index, True)
    assert schedule.finished(state)
    assert state.cutoff() == 1


def test_accept_in_order_marks_the_cap():
    ones = [Candidate(2, "c"), Candidate(0, "a"), Candidate(1, "b", reason="wrong: 1"), Candidate(3, "d")]
    marked = accept_in_order(ones, 2)
    assert [(one.index, one.accepted, one.reason) for one in marked] == [
        (0, True, None), (1, False, "wrong: 1"), (2, True, None), (3, False, "cap"),
    ]  # fmt: skip
    assert accept_in_order(marked, None)[3].accepted, "a wider cap takes back what only the cap had left out"


# --- Verdicts do not hold up the engine ---


def test_slow_verdicts_do_not_hold_up_the_stream(build, tmp_path):
    ended = []

    class Timed(ReplaySampler):
        def stream(self, requests, settings):
            yield from super().stream(requests, settings)
            ended.append(time.monotonic())

    rows = nano_rows()[:2]
    sampler = Timed(nano_completions())
    rejection = build(sampler, filters=[slow.slow], max_accepted=None)
    rejection.run(rows, tmp_path / "warm")  # the worker has imported the filter
    took = []
    for turn in range(3):  # other work on the machine slows single runs
        begin = time.monotonic()
        result = rejection.run(rows, tmp_path / f"timed-{turn}")
        verifying = 0.2 * sum(one["correct"] for row in result.dataset for one in row["candidates"])
        assert verifying > 1
        took.append(ended[-1] - begin)
        if took[-1] < verifying / 2:
            break
    assert min(took) < verifying / 2


def test_a_failing_filter_is_an_error_and_not_a_verdict(build, tmp_path):
    with pytest.raises(WorkerError, match="a mistake in the filter"):
        build(filters=[slow.broken]).run(nano_rows()[:1], tmp_path)


# --- What is kept, and what a broken run leaves ---


def test_rows_keep_every_candidate_with_its_verdict(build, tmp_path):
    result = build(filters=None, early_stop=False).run(nano_rows(), tmp_path)
    rows = list(result.dataset)
    assert [row["id"] for row in rows] == [row.id for row in nano_rows()]
    for row in rows:
        assert [one["index"] for one in row["candidates"]] == list(range(K))
        for one in row["candidates"]:
            stored = nano_completions()[f"{row['id']}#{one['index']}"]
            assert (one["text"], one["tokens"]) == (stored.text, len(stored.token_ids))
            assert one["accepted"] == (one["reason"] is None)
            assert one["correct"] or one["reason"]
    assert {"wrong", "cap"} <= set(result.report["rejects"])
    flat = list(accepted_rows(rows))
    assert len(flat) == result.report["total"]["accepted"]
    assert flat[0]["completion"].strip().startswith("<think>")
    assert json.loads((tmp_path / "report.json").read_text())["total"] == result.report["total"]


class Dying(ReplaySampler):
    """A server that is gone after some completions."""

    left = 20

    def stream(self, requests, settings):
        for sample in super().stream(requests, settings):
            if self.left == 0:
                raise EngineError("http://127.0.0.1:9/v1 cannot be reached.")
            self.left -= 1
            yield sample


def test_a_dead_server_loses_nothing_and_a_second_start_goes_on(build, tmp_path):
    whole = build().run(nano_rows(), tmp_path / "whole")
    with pytest.raises(EngineError, match=r"cannot be reached.*completions are kept in .*run the same command again"):
        build(Dying(nano_completions())).run(nano_rows(), tmp_path / "broken")
    kept = sum(len(path.read_text().splitlines()) for path in (tmp_path / "broken" / "shards").glob("shard-*.jsonl"))
    assert kept > 0
    sampler = ReplaySampler(nano_completions())
    resumed = build(sampler).run(nano_rows(), tmp_path / "broken")
    assert accepted(resumed) == accepted(whole)
    stored = [f"{row['id']}#{one['index']}" for row in resumed.dataset for one in row["candidates"]]
    assert len(set(sampler.asked)) == len(sampler.asked)
    assert len(stored) - len(sampler.asked) <= kept
    assert resumed.report["speed"]["starts"] == 2

    again = ReplaySampler(nano_completions())
    assert accepted(build(again).run(nano_rows(), tmp_path / "broken")) == accepted(whole)
    assert again.asked == [], "a third start has nothing to do"


def test_a_folder_of_another_run_is_refused(build, tmp_path):
    build().run(nano_rows()[:2], tmp_path)
    for changed in ({"max_accepted": 3}, {"settings": SamplingSettings(temperature=0.7)}, {"filters": None}):
        with pytest.raises(ConfigurationError, match="other settings"):
            build(**changed).run(nano_rows()[:2], tmp_path)


def test_the_time_is_noted_with_every_shard(build, tmp_path):
    """What a kill at any moment would find: as many samples timed as lie in whole shards, or more."""
    seen = []

    class Watched(ReplaySampler):
        def stream(self, requests, settings):
            for sample in super().stream(requests, settings):
                stored = sum(len(path.read_text().splitlines()) for path in tmp_path.glob("shards/shard-*.jsonl"))
                seen.append((stored, read_figures(tmp_path / "speed-00000.json")))
                time.sleep(0.02)  # for verdicts to come in
                yield sample

    build(Watched(nano_completions()), shard_samples=4).run(nano_rows(), tmp_path)
    noted = [(stored, figures) for stored, figures in seen if stored]
    assert len(noted) > 3
    assert all(figures["starts"] == 1 and figures["seconds"] > 0 for _, figures in noted)
    seconds = [figures["seconds"] for _, figures in noted]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) > 1


# --- Rows without a rule ---


class ByContents:
    """A judge that looks for the reference in the answer; counts how many it is given at once."""

    def __init__(self, model=None):
        self.model, self.sizes = model, []

    def verdicts(self, answers, rows):
        self.sizes.append(len(answers))
        found = [row.reference in answer.rpartition("</think>")[2] for answer, row in zip(answers, rows, strict=True)]
        return [Verdict(one, "said so") for one in found]


GENERAL = [Row(f"Who wrote book {i}?", f"author {i}", domain="general", id=f"g{i}") for i in range(3)]
SPOKEN = {
    f"g{i}#{k}": Completion(f"<think> hm </think> It was author {i if k % 2 else 9}.", (1,) * (k + 1))
    for i in range(3)
    for k in range(K)
}


@pytest.mark.parametrize("own_model", [False, True])
def test_rows_without_a_rule_are_judged(build, tmp_path, own_model):
    sampler = ReplaySampler(SPOKEN | nano_completions())
    judge = ByContents(sampler if own_model else None)
    result = build(sampler, judge=judge).run([*GENERAL, *nano_rows()], tmp_path)
    assert accepted(result) == {**{row.id: [1, 3] for row in GENERAL}, **expected()}
    assert result.report["by_domain"]["general"]["rows_with_accepted"] == 3
    assert judge.sizes
    if own_model:
        assert max(judge.sizes) > 2, "judged when the stream has ended, many at a time"


def test_another_judge_is_another_run(build, tmp_path):
    """Verdicts of two judges are not mixed; the same one goes on, and rows that have rules ask for none."""

    def judged_by(name):
        return build(ReplaySampler(SPOKEN), judge=ByContents(ReplaySampler({}, name=name)))

    first = judged_by("one").run(GENERAL, tmp_path / "general")
    with pytest.raises(ConfigurationError, match=r"other settings: judge\.model was 'one' and is 'two'"):
        judged_by("two").run(GENERAL, tmp_path / "general")
    assert accepted(judged_by("one").run(GENERAL, tmp_path / "general")) == accepted(first)
    for name in ("one", "two"):
        build(judge=ByContents(ReplaySampler({}, name=name))).run(nano_rows()[:2], tmp_path / "ruled")

    brief, judge = (Judge(JudgeServer("http://a:1/v1", "model"), prompt=prompt) for prompt in ("judge_brief", "judge"))
    assert judge_identity(judge) == {"kind": "Judge", "model": "model", "prompt": "judge"}
    assert judge_identity(brief) != judge_identity(judge)
    assert judge_identity(Judge(JudgeServer("http://b:2/v1", "model"))) == judge_identity(judge), "it moved"


def test_a_judge_that_fails_stops_the_run(build, tmp_path):
    class Gone:
        def verdicts(self, answers, rows):
            raise ConfigurationError("the judge refuses the key")

    with pytest.raises(ConfigurationError, match="refuses the key"):
        build(ReplaySampler(SPOKEN), judge=Gone()).run(GENERAL, tmp_path)


class Agrees(BaseHTTPRequestHandler):
    """A judge's server that finds everything correct."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        said = json.dumps({"analysis": "so it is", "correctness": "correct"})
        body = json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_judge_that_is_not_reached_is_no_verdict(build, tmp_path):
    """What has a rule is kept; with the judge back, the rest is asked for and judged."""

    def run(port):
        server = JudgeServer(f"http://127.0.0.1:{port}/v1", "judge", retries=0, backoff=0.01)
        sampler = ReplaySampler(SPOKEN | nano_completions())
        return sampler, build(sampler, judge=Judge(server)).run([*nano_rows(), *GENERAL], tmp_path)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(EngineError, match=r"judge was not reached for .*verified completions are kept"):
            run(free.getsockname()[1])
    kept = {f"{sample.key}#{sample.index}" for sample in SampleStore(tmp_path / SHARDS_FOLDER).samples()}
    assert not any(key.startswith("g") for key in kept)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Agrees)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sampler, result = run(server.server_address[1])
    server.shutdown()
    assert kept
    assert not kept & set(sampler.asked)
    assert accepted(result) == {**expected(), **{row.id: [0, 1] for row in GENERAL}}
    assert "unverifiable" not in str(result.report["rejects"])


def test_no_more_wait_for_the_judge_than_a_shard_holds(build, tmp_path):
    """They are on no disk; and a row's own rate is known early, for a judge that is the very model, too."""
    rows = [Row(f"Who wrote book {i}?", f"author {i}", domain="general", id=f"g{i}") for i in range(30)]
    said = Completion("<think> hm </think> It was", (1,))
    texts = {f"g{i}#{k}": replace(said, text=f"{said.text} author {i}.") for i in range(30) for k in range(K)}
    sampler = ReplaySampler(texts, 4)
    judge = ByContents(sampler)
    result = build(sampler, judge=judge, shard_samples=8).run(rows, tmp_path)
    assert all(one == [0, 1] for one in accepted(result).values())
    assert max(judge.sizes) <= 8 + 4, "a shard, and what the engine has"
    assert len(sampler.asked) < 30 * K


# --- Which rows ---


def test_a_folder_is_of_its_rows(build, tmp_path):
    """With other references under the same ids, neither old verdicts nor old completions count."""
    build().run(nano_rows(), tmp_path)
    build().run(nano_rows(), tmp_path)
    changed = [replace(nano_rows()[0], reference="1"), *nano_rows()[1:]]
    with pytest.raises(ConfigurationError, match=r"Row 'arithmetic/.* was another one .*--overwrite true"):
        build().run(changed, tmp_path)


def test_rows_with_the_same_id_are_told_apart(build, tmp_path, caplog):
    one, other = replace(nano_rows()[0], id="0"), replace(nano_rows()[1], id="0")
    key = f"0-{row_digest(other)[:8]}"
    texts = {
        f"{name}#{k}": nano_completions()[f"{row.id}#{k}"]
        for name, row in (("0", nano_rows()[0]), (key, nano_rows()[1]))
        for k in range(K)
    }
    result = build(ReplaySampler(texts)).run([one, other, one], tmp_path)
    assert [(row["id"], row["prompt"]) for row in result.dataset] == [("0", one.prompt), (key, other.prompt)]
    assert "1 rows are repeated" in caplog.text


# --- Bad input ---


def test_bad_input(build, tmp_path):
    with pytest.raises(DataError, match="no rows"):
        build().run([], tmp_path)
    with pytest.raises(ConfigurationError, match=r"3 of 3 rows \('g0'.*general.*judge"):
        build().run(GENERAL, tmp_path)
    with pytest.raises(DataError, match="cannot be verified"):
        build().run([Row("What?", "", id="empty"), *nano_rows()], tmp_path)
    with pytest.raises(DataError, match=r"no reference.*nameless"):
        build(judge=ByContents()).run([replace(GENERAL[0], reference=" ", id="nameless"), *GENERAL], tmp_path)
    assert not (tmp_path / "shards").exists(), "nothing was sampled"
    for settings, message in [
        ({"samples": 0}, "samples=0"),
        ({"max_accepted": K + 1}, f"max_accepted={K + 1}"),
        ({"max_accepted": 0}, "max_accepted=0"),
        ({"spread": 0.5}, "spread=0.5"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            build(**settings)


def test_few_unreadable_rows_are_left_out_and_named(build, tmp_path):
    rows = [*nano_rows(), Row("What?", "", id="empty")]
    result = build(max_unverifiable=0.2).run(rows, tmp_path)
    assert result.report["unverifiable"] == {"rows": 1, "ids": ["empty"]}
    assert "empty" not in accepted(result)


def test_nothing_accepted_names_the_prompts_and_leaves_the_report(build, tmp_path):
    rows = [Row("What is 6 * 7?", "42", id="q")]
    wrong = {f"q#{i}": Completion("<think> ? </think> <answer> 41 </answer>", (1, 2)) for i in range(K)}
    with pytest.raises(
        DataError, match=r"None of 8 completions of 1 prompts.*wrong 8.*q: 'What is 6 \* 7\?'.*raise samples or"
    ):
        build(ReplaySampler(wrong)).run(rows, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["none_accepted"]["ids"] == ["q"]


def test_one_question_is_sampled_once(build, tmp_path):
    sampler = ReplaySampler(nano_completions())
    result = build(sampler).run([*nano_rows(), nano_rows()[0]], tmp_path)
    assert max(Counter(sampler.asked).values()) == 1
    assert len(result.dataset) == len(nano_rows())


# --- The report ---


def made(key, domain, verdicts, cap=CAP):
    ones = [Candidate(i, "t", tokens=10 * (i + 1), correct=v, reason=None if v else "wrong: x") for i, v in verdicts]
    marked = [one.asdict() for one in accept_in_order(ones, cap)]
    return {"id": key, "domain": domain, "candidates": marked}


def test_report_by_domain_and_difficulty():
    rows = [
        made("easy", "math", [(0, True), (1, True)]),
        made("hard", "math", [(i, i in (4, 11)) for i in range(12)]),
        made("never", "code", [(i, False) for i in range(8)]),
    ]
    tally = Tally(CAP)
    assert list(tally.passing(rows)) == rows
    found = tally.asdict()
    assert found["by_domain"]["math"] == {
        "rows": 2, "rows_with_accepted": 2, "samples": 14, "correct": round(4 / 14, 4), "accepted": 4,
        "acceptance": round(4 / 14, 4), "mean_tokens": (10 + 20 + 50 + 120) / 4,
    }  # fmt: skip
    assert {name: group["rows"] for name, group in found["by_difficulty"].items()} == {"never": 1, "hard": 1, "easy": 1}
    assert found["rejects"] == {"wrong": 18}
    assert found["none_accepted"] == {"rows": 1, "ids": ["never"]}
    assert "none accepted: 1 rows (never)" in render(found)


def test_pass_rates_of_stopped_rows_are_not_overstated():
    import random

    draw, rate = random.Random(1), 0.2
    estimates, naive = [], []
    for _ in range(1500):
        verdicts = []
        while sum(verdicts) < 3 and len(verdicts) < 60:
            verdicts.append(draw.random() < rate)
        ones = [Candidate(i, "t", correct=v, reason=None if v else "wrong: x") for i, v in enumerate(verdicts)]
        estimates.append(pass_rate(ones, 3))
        naive.append(sum(verdicts) / len(verdicts))
    assert fmean(estimates) == pytest.approx(rate, abs=0.01)
    assert fmean(naive) > rate + 0.025, "the test can fail"


def test_the_cap_lowers_the_bias_toward_easy_prompts():
    capped = easy_prompt_bias([(1.0, 2), (0.5, 2), (0.1, 1)])
    uncapped = easy_prompt_bias([(1.0, 10), (0.5, 5), (0.1, 1)])
    assert capped["prompts"] == uncapped["prompts"] == pytest.approx(0.5333, abs=1e-4)
    assert 0 < capped["bias"] < uncapped["bias"]
    assert uncapped["bias"] == pytest.approx(capped["without_cap"], abs=1e-4)
