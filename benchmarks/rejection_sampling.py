"""Rejection sampling against generating everything and verifying it then, and against the engine alone.

    python benchmarks/rejection_sampling.py                                     # nano, this machine's engine
    python benchmarks/rejection_sampling.py --backend transformers --questions 16
    python benchmarks/rejection_sampling.py --model MODEL --dataset gsm8k_train.jsonl --columns '{"prompt": "question", …}' \
        --max-tokens 1024 --results benchmarks/results/rejection_sampling.json

Same questions, k, cap, filters, engine and worker processes in five variants, each repeated, in turns:

- `bare`: vLLM's own `LLM.generate` with one request of n = k per question, on the prompts' token ids, not looked at: the engine's
  own rate. Only where vLLM samples: transformers and servers have no engine here that could be asked without our sampler;
- `sampler`: all k completions of every question through our sampler, not looked at;
- `then_verify`: the same, then all verdicts, then the first accepted ones of each question;
- `streamed`: all k with verdicts as they come, the data set and its report written (`early_stop=False`): what verifying costs the
  engine (target: `share_of_bare`, a ratio of tokens/s, >= 95 %);
- `early_stop`: the default: a question ends when its accepted ones are settled (target: >= 1.5 x `then_verify` in accepted
  samples per second; how much can be gained depends on the acceptance rate, which is stated).

Engine and workers are started before any clock, and each run begins with an empty prefix cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rows import machine, write_results

from trl_r1.data.candidates import Candidate, accept_in_order
from trl_r1.data.filters import Filter, default_filters
from trl_r1.data.rejection import RejectionSampler
from trl_r1.data.rejection_checks import Checker
from trl_r1.data.sources import SourceConfig, load_rows
from trl_r1.generation.base import Sample, Sampler, SampleRequest, SamplingSettings
from trl_r1.generation.config import SamplerConfig, open_sampler
from trl_r1.generation.vllm import VLLMSampler, _parameters
from trl_r1.pipeline.preflight import resolve_model
from trl_r1.rewards.pool import warm_up
from trl_r1.rows import Row
from trl_r1.workers import WorkerPool

Figures = dict[str, float]


class Bench:
    """One case: what is sampled, by whom, and the variants."""

    def __init__(
        self, sampler: Sampler, rows: list[Row], pool: WorkerPool, settings: SamplingSettings, samples: int, cap: int
    ) -> None:
        self.sampler, self.rows, self.pool, self.settings = sampler, rows, pool, settings
        self.samples, self.cap = samples, cap
        self.filters: tuple[Filter, ...] = default_filters()

    def variants(self) -> dict[str, Callable[[], Figures]]:
        """Return what can be measured with this sampler."""
        own = {"bare": self.bare} if isinstance(self.sampler, VLLMSampler) else {}
        return own | {
            "sampler": self.through_sampler,
            "then_verify": self.then_verify,
            "streamed": self.streamed,
            "early_stop": self.early_stop,
        }

    def bare(self) -> Figures:
        """The engine alone: one request per question, answered when its last completion has ended."""
        assert isinstance(self.sampler, VLLMSampler)
        prompts = [self.sampler._codec.encode(row.prompt) for row in self.rows]
        begin = time.perf_counter()
        answers = engine_answers(self.sampler, prompts, self.settings, self.samples)
        seconds = time.perf_counter() - begin
        found = [one for answer in answers for one in answer.outputs]
        return _figures(seconds, len(found), sum(len(one.token_ids) for one in found), 0)

    def through_sampler(self) -> Figures:
        """All completions by our sampler, not looked at."""
        begin = time.perf_counter()
        found = self._everything()
        return _figures(time.perf_counter() - begin, len(found), _tokens(found), 0)

    def then_verify(self) -> Figures:
        """All completions, then all verdicts."""
        begin = time.perf_counter()
        found = self._everything()
        checker = Checker(self.filters, workers=self.pool)
        rows = {row.id: row for row in self.rows}
        for sample in found:
            key, _, index = sample.key.rpartition("#")
            checker.submit(key, int(index), rows[key], sample.completion)
        candidates: dict[str, list[Candidate]] = {}
        for one in checker.drain():
            candidate = Candidate(one.index, one.completion.text, correct=one.correct, reason=one.reason)
            candidates.setdefault(one.key, []).append(candidate)
        accepted = sum(one.accepted for ones in candidates.values() for one in accept_in_order(ones, self.cap))
        return _figures(time.perf_counter() - begin, len(found), _tokens(found), accepted)

    def streamed(self) -> Figures:
        """Verdicts as completions come, all of them asked for."""
        return self._ours(early_stop=False)

    def early_stop(self) -> Figures:
        """Ours as it is by default."""
        return self._ours(early_stop=True)

    def forget(self) -> None:
        """Empty the engine's prefix cache, so that no run finds another one's prompts in it."""
        if isinstance(self.sampler, VLLMSampler) and self.sampler.llm is not None:
            self.sampler.llm.reset_prefix_cache()

    def _ours(self, early_stop: bool) -> Figures:
        rejection = RejectionSampler(
            self.sampler, samples=self.samples, max_accepted=self.cap, settings=self.settings, filters=self.filters,
            workers=self.pool, early_stop=early_stop, progress=False,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            report = rejection.run(self.rows, folder).report
            seconds = time.perf_counter() - begin
        speed = report["speed"]
        return _figures(seconds, speed["samples"], speed["tokens"], report["total"]["accepted"])

    def _everything(self) -> list[Sample]:
        requests = [
            SampleRequest(f"{row.id}#{index}", row.prompt) for row in self.rows for index in range(self.samples)
        ]
        return list(self.sampler.stream(requests, self.settings))


def engine_answers(
    sampler: VLLMSampler, prompts: Sequence[Sequence[int]], settings: SamplingSettings, samples: int
) -> list[Any]:
    """Ask the sampler's engine by `LLM.generate`, one request of n = `samples` per prompt.

    Args:
        sampler ([`~trl_r1.generation.vllm.VLLMSampler`]): Whose engine, end tokens and adapter are used.
        prompts (`Sequence[Sequence[int]]`): Token ids.
        settings ([`~trl_r1.generation.base.SamplingSettings`]): How the completions are drawn.
        samples (`int`): Completions per prompt.

    Returns:
        `list[RequestOutput]`: vLLM's answers, in the order of the prompts.
    """
    from vllm import LLM

    llm: Any = sampler.llm
    requests: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    parameters = _parameters(settings, sampler._codec.eos_token_ids)("", 0).clone()
    parameters.n = samples
    # vLLM's own method, not ours, in the state of the process (threads, compiled helpers) that the sampler's steps have.
    with llm._stance(), llm._threads():
        answers = LLM.generate(llm, requests, parameters, use_tqdm=False, lora_request=sampler._lora_request)
        llm._drain()
    return answers


def _tokens(found: list[Sample]) -> int:
    return sum(len(sample.completion.token_ids) for sample in found)


def _figures(seconds: float, samples: int, tokens: int, accepted: int) -> Figures:
    return {
        "seconds": seconds,
        "samples": samples,
        "tokens": tokens,
        "accepted": accepted,
        "tokens_per_s": tokens / seconds,
        "accepted_per_s": accepted / seconds,
    }


def measure(bench: Bench, repeats: int) -> dict[str, Figures]:
    """Run all variants in turns and take the median of each figure; one short round first warms everything up."""
    variants = bench.variants()
    rows, bench.rows = bench.rows, bench.rows[:4]
    bench.then_verify()
    bench.rows = rows
    runs: dict[str, list[Figures]] = {name: [] for name in variants}
    for turn in range(repeats):
        # The order changes from turn to turn, so that a machine that slows down slows all of them.
        first = turn % len(variants)
        for name in [*list(variants)[first:], *list(variants)[:first]]:
            bench.forget()
            runs[name].append(variants[name]())
            print(json.dumps({"turn": turn, "variant": name, **runs[name][-1]}), file=sys.stderr, flush=True)
    return {
        name: {figure: statistics.median(run[figure] for run in ones) for figure in ones[0]}
        for name, ones in runs.items()
    }


def result_rows(case: Mapping[str, Any], found: Mapping[str, Figures]) -> list[dict[str, Any]]:
    """Set the medians as rows of results, with the two ratios of the targets; `None` where there is nothing to compare."""
    shared = {"benchmark": "rejection_sampling", "case": case, "machine": machine()}
    bare, later = found.get("bare"), found["then_verify"]["accepted_per_s"]
    rows = []
    for name, figures in found.items():
        row = {**shared, "variant": name, **{key: round(value, 3) for key, value in figures.items()}}
        row["share_of_bare"] = round(figures["tokens_per_s"] / bare["tokens_per_s"], 4) if bare else None
        looked_at = name not in ("bare", "sampler") and later
        row["ratio_to_then_verify"] = round(figures["accepted_per_s"] / later, 3) if looked_at else None
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dataset", default="nano:arithmetic")
    parser.add_argument("--columns", help="row field to column, as JSON")
    parser.add_argument("--patterns", help="row field to regular expression, as JSON")
    parser.add_argument("--template", default="auto")
    parser.add_argument("--answer-form", default="answer")
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--max-accepted", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--max-num-seqs", type=int, default=128)
    parser.add_argument("--engine-options", default=None, help="arguments of vllm.LLM, as JSON")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, help="none by default: seeded sampling costs vLLM speed on a GPU")
    parser.add_argument("--workers", type=int, help="verifying processes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, help="JSON file to write the rows to")
    arguments = parser.parse_args(argv)
    source = SourceConfig(
        dataset=arguments.dataset, columns=arguments.columns, patterns=arguments.patterns, max_rows=arguments.questions
    )
    rows = [Row.from_columns(columns) for columns in load_rows(source)["train"]]
    config = SamplerConfig(
        model_name_or_path=resolve_model(arguments.model), backend=arguments.backend, template=arguments.template,
        answer_form=arguments.answer_form, max_tokens=arguments.max_tokens, max_num_seqs=arguments.max_num_seqs,
        engine_options=arguments.engine_options, dtype=arguments.dtype, seed=arguments.seed,
    )  # fmt: skip
    with WorkerPool(arguments.workers, initializer=warm_up) as pool, closing(open_sampler(config)) as sampler:
        pool.start()
        bench = Bench(sampler, rows, pool, config.settings(), arguments.samples, arguments.max_accepted)
        found = measure(bench, arguments.repeats)
        case = {
            "model": arguments.model, "backend": type(sampler).__name__, "dataset": arguments.dataset,
            "questions": len(rows), "samples": arguments.samples, "max_accepted": arguments.max_accepted,
            "max_tokens": arguments.max_tokens, "max_num_seqs": arguments.max_num_seqs, "workers": pool.workers,
            "seed": arguments.seed, "repeats": arguments.repeats,
        }  # fmt: skip
    results = result_rows(case, found)
    for row in results:
        print(json.dumps({key: value for key, value in row.items() if key not in ("case", "machine")}))
    if arguments.results:
        write_results(results, arguments.results)
    return results


if __name__ == "__main__":
    main()
