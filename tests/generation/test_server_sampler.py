"""Servers: the same prompts as everywhere, faults survived, what arrived kept."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.vllm_server import vllm_server
from trl_r1.exceptions import ConfigurationError, EngineError
from trl_r1.generation.base import SampleRequest, sample_all
from trl_r1.generation.config import SamplerConfig, open_sampler
from trl_r1.generation.progress import sample_into_store
from trl_r1.generation.shards import SampleStore, store_settings
from trl_r1.nano import checkpoint_path

NANO = str(checkpoint_path())
TOKENS = 8
PROMPTS = ["Make 13 from 4, 4, 5", "Make 24 from 3, 8, 9", "What is 7 + 5?"]


@pytest.fixture(scope="module")
def urls():
    """Addresses of the servers by what is wrong with them; a process each."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("nano_server.py"))],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    ports = json.loads(process.stdout.readline())
    yield {fault: f"http://127.0.0.1:{port}/v1" for fault, port in ports.items()}
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=10)


def config(*urls, **changes):
    settings = {
        "model_name_or_path": NANO,
        "server_urls": list(urls),
        "max_tokens": TOKENS,
        "server_retries": 3,
        "server_timeout": 20.0,
        "server_concurrency": 4,
        "seed": 5,
    }
    return SamplerConfig(**{**settings, **changes})


def sampled(settings, n=2, **changes):
    with closing(open_sampler(settings)) as sampler:
        return sample_all(sampler, PROMPTS, n, settings.settings(**changes))


def test_a_server_is_asked_what_transformers_is_asked(urls):
    here = sampled(
        SamplerConfig(model_name_or_path=NANO, backend="transformers", max_tokens=TOKENS), n=1, temperature=0
    )
    assert sampled(config(urls["good"]), n=1, temperature=0) == here
    # Without vLLM's extensions the ids are not known, and a template of plain text needs no tokenizer.
    plain = sampled(config(urls["plain"], model_name_or_path=None, template="base"), n=1, temperature=0)
    assert [one.text for group in plain for one in group] == [one.text for group in here for one in group]
    assert {one.token_ids for group in plain for one in group} == {()}


def test_seeds_make_a_run_repeatable(urls):
    first = sampled(config(urls["good"]))
    assert first == sampled(config(urls["good"], server_concurrency=1))
    assert first != sampled(config(urls["good"], seed=6))
    assert all(group[0] != group[1] for group in first)


def test_messages_are_sent_to_a_chat(urls):
    with closing(open_sampler(config(urls["strict"], server_api="chat"))) as sampler:
        body = sampler._protocol.body("What is 7 + 5?", config(urls["good"]).settings(), 1)
    assert "<think> </think>" in body["messages"][0]["content"]
    assert "prompt" not in body
    # Or vLLM would take the penalties and cut-offs that Instruct models bring.
    neutral = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert neutral.items() <= body.items()


def test_what_a_server_withholds_is_cut_off_and_not_asked_for_again(urls):
    with closing(open_sampler(config(urls["plain"]))) as sampler:
        protocol = sampler._protocol
        reply = {"choices": [{"finish_reason": "content_filter", "text": "I will not"}]}
        protocol.check(reply)
        completion = protocol.completion(reply, config(urls["plain"]).settings())
        assert completion.truncated
        assert completion.text == "I will not"
        with pytest.raises(ValueError, match="unfinished"):
            protocol.check({"choices": [{"finish_reason": None, "text": ""}]})


@pytest.mark.parametrize(("fault", "timeout"), [("flaky", 20.0), ("hanging", 3.0)])
def test_faults_are_tried_again(urls, fault, timeout):
    expected = sampled(config(urls["good"]))
    settings = config(urls[fault], server_timeout=timeout, server_retries=20, server_concurrency=2)
    assert sampled(settings) == expected


def test_the_load_moves_from_a_server_that_dies(urls):
    expected = sampled(config(urls["good"]), n=4)
    assert sampled(config(urls["good"], urls["mortal-a"]), n=4) == expected
    with pytest.raises(EngineError, match="does not answer"):
        open_sampler(config(urls["mortal-a"]))


def test_what_a_dying_server_gave_is_kept_and_the_rest_is_sampled_later(urls, tmp_path):
    requests = [SampleRequest(str(i), prompt, 4) for i, prompt in enumerate(PROMPTS)]
    dying = config(urls["mortal-b"], server_retries=1)

    def run(settings):
        with closing(open_sampler(settings)) as sampler:
            made_by = store_settings(sampler, settings.settings())
            with SampleStore(tmp_path, made_by) as store:
                sample_into_store(sampler, requests, settings.settings(), store)

    with pytest.raises(EngineError, match=r"No server gave completion .* in 2 attempts.*start again"):
        run(dying)
    stored = {(one.key, one.index): one.completion for one in SampleStore(tmp_path).samples()}
    assert len(stored) == 3
    run(config(urls["good"]))
    groups = SampleStore(tmp_path).groups()
    assert {key: [one.index for one in group] for key, group in groups.items()} == {key: [0, 1, 2, 3] for key in "012"}
    assert [[one.completion for one in groups[key]] for key in "012"] == sampled(config(urls["good"]), n=4)


def test_a_cancelled_request_is_seen_no_more_and_frees_its_places(urls):
    requests = [SampleRequest(key, PROMPTS[0], 6) for key in "abc"]
    settings = config(urls["good"], server_concurrency=2)
    with closing(open_sampler(settings)) as sampler:
        stream, found = sampler.stream(requests, settings.settings()), Counter()
        for one in stream:
            found[one.key] += 1
            sampler.cancel("b")
    assert found["a"] == found["c"] == 6
    assert found["b"] == 0


def test_requests_are_drawn_as_room_appears(urls):
    drawn = []

    def requests():
        for number in range(50):
            drawn.append(number)
            yield SampleRequest(str(number), PROMPTS[0])

    settings = config(urls["good"], server_concurrency=2)
    with closing(open_sampler(settings)) as sampler:
        stream = sampler.stream(requests(), settings.settings())
        next(stream)
        assert len(drawn) <= 3
        stream.close()


def test_refusals_and_mistakes_are_named_at_once(urls):
    started = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"status 400.*longer than the context"):
        sampled(config(urls["strict"]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EngineError, match=r"does not answer.*take it out of server_urls"):
        open_sampler(config(nobody))
    with pytest.raises(ConfigurationError, match="must look like http://host:8000/v1"):
        open_sampler(config("localhost:8000"))
    with pytest.raises(ConfigurationError, match="template: base needs server_api: completions"):
        open_sampler(config(urls["good"], server_api="chat", template="base"))
    with pytest.raises(ConfigurationError, match="needs server_urls"):
        open_sampler(SamplerConfig(model_name_or_path=NANO, backend="server"))
    with pytest.raises(ConfigurationError, match=r"engine_options \(max_model_len\) are vLLM's"):
        open_sampler(config(urls["good"], engine_options={"max_model_len": 5}))
    assert time.monotonic() - started < 15  # a server that does not answer is asked again for longer


@pytest.mark.full
def test_a_real_vllm_server(tmp_path):
    options = ("--dtype", "float32", "--max-num-seqs", "16", "--served-model-name", "nano-served")

    def ready(url):
        return open_sampler(config(url))

    with vllm_server(tmp_path, NANO, *options, ready=ready, not_yet=EngineError) as (url, sampler):
        sampler.close()
        here = sampled(
            SamplerConfig(model_name_or_path=NANO, backend="transformers", max_tokens=TOKENS), n=1, temperature=0
        )
        assert sampled(config(url), n=1, temperature=0) == here
        drawn = sampled(config(url), n=3, stop=("</think>",))
        assert drawn == sampled(config(url, server_concurrency=1), n=3, stop=("</think>",))
        texts = [one.text for group in drawn for one in group if not one.truncated]
        assert texts
        assert all(text.endswith("</think>") for text in texts)
