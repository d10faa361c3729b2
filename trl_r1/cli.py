"""`trl-r1`: the stages for those who installed from a wheel. Nothing heavy is imported before a stage starts.

A command is one line of [`COMMANDS`]: its name, one sentence, and where its function lies.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from trl_r1 import __version__
from trl_r1.exceptions import TrlR1Error
from trl_r1.workers import usable_cores

_DEMO_OUTPUT = "runs/demo"
# Exit status of a program that Ctrl-C stopped: 128 + SIGINT.
_INTERRUPTED = 130
# Read by the stage's own parser, which takes seconds to build: --help only tells of the most used ones.
_RL_OPTIONS = """\
the most used options of the stage, each overriding the configuration:
  --config NAME|FILE             nano_cpu (default), nano_gpu, {configs}, …, or a YAML file
  --model_name_or_path MODEL     Hub id or folder; nano, nano:no_reflection
  --dataset DATA                 Hub id, local file or folder; nano:countdown, …
  --output_dir FOLDER            where model, report and curves go
  --use_vllm false               generate with transformers
  --resume_from_checkpoint auto  continue the run in output_dir
  --preview                      show three rendered rows with their gold completion scored; load no weights
  --plan                         print memory, micro-batches and time to expect on this machine; load no weights
"""
_SFT_OPTIONS = """\
the most used options of the stage, each overriding the configuration:
  --config NAME|FILE             nano_cpu (default), {configs}, …, or a YAML file
  --model_name_or_path MODEL     Hub id or folder; nano, nano:no_reflection
  --traces DATA                  what is trained on: Hub id, file or folder; nano:countdown, …
  --dataset DATA                 questions to measure on before and after
  --output_dir FOLDER            where model, report and curves go
  --resume_from_checkpoint auto  continue the run in output_dir
  --preview true                 show three prompts with their targets; load no weights
"""
_SAMPLE_OPTIONS = """\
the most used options:
  --config FILE                  a YAML file with the options below
  --model_name_or_path MODEL     Hub id, folder or PEFT adapter; nano (default), nano:no_reflection
  --backend BACKEND              vllm, transformers, server, or auto (default)
  --server_urls URL [URL …]      OpenAI-compatible servers, such as http://host:8000/v1
  --dataset DATA --split SPLIT   Hub id, local file or folder, nano:countdown, …; train (default) or test
  --n N --temperature T          completions per question, how they are drawn (also --top_p, --max_tokens, --seed)
  --output_dir FOLDER            where samples.jsonl and report.json go; the same command again goes on from there
"""
_EVALUATE_OPTIONS = """\
the model comes first (Hub id, folder, nano), then:
  --benchmarks NAME,NAME         aime24, math500, gsm8k, gpqa_diamond, …, gym:<task>, nano:<task>, a data file
  --k N                          samples per question (default: each benchmark's own, as R1's)
  --benchmark_files NAME=FILE    read a benchmark from a local file
  --max_problems N               only the first N questions of each
  --protocol NAME                r1 (forced <think>, boxed), zero, own, auto (default)
  --thinking_budgets N …         also measure with the thinking ended after N tokens
  --backend NAME                 vllm, transformers, server, auto (default)
  --output_dir FOLDER            where samples and report go; the same command goes on where it stopped
  --preview true                 show a question of each benchmark; load no weights
"""
_PROBE_OPTIONS = """\
the model comes first, then the data set, then:
  --questions N --n N            training questions to ask, samples of each (64, 16)
  --max_tokens N                 cap of a completion
  --backend NAME                 vllm, transformers, server, auto (default)
  --out FILE                     everything measured, as JSON
"""
_R1_ZERO = "trl_r1.pipeline.stages:run_r1_zero"


@dataclass(frozen=True)
class Command:
    """One command of `trl-r1`.

    Args:
        name (`str`): What the user types.
        function (`str`):
            `"module:function"`, imported when the command runs. It takes the arguments (`list[str]`) and returns an exit
            status; anything that is no `int` counts as 0. Its `TrlR1Error`s are printed, with exit status 1.
        help (`str`): One sentence for `trl-r1 --help`.
        options (`str`, defaults to `""`):
            The most used options, for `trl-r1 <name> --help`, where building the real parser would take seconds. Without
            them the function is handed `--help` and answers itself.
        launch (`bool`, defaults to `False`): Whether `--num_processes N` starts it in N processes with accelerate.
        first (`tuple[str, ...]`, defaults to none): Arguments put before the user's.
        processes (`int`, defaults to 1): Processes it starts in where the user names no number; fewer on fewer cores.
    """

    name: str
    function: str
    help: str
    options: str = ""
    launch: bool = False
    first: tuple[str, ...] = ()
    processes: int = 1


_COLD_START_OPTIONS = """\
the most used options of the stage, each overriding the configuration:
  --config NAME|FILE             nano_cpu (default), smollm2_135m_gsm_symbolic, smollm2_135m_gsm8k, qwen2.5_7b, or a YAML file
  --sources NAME …               few_shot, direct, r1_zero: who writes, in this order of preference
  --dataset DATA                 questions to sample: Hub id, local file or folder; nano:countdown, …
  --model_name_or_path MODEL     who samples; --zero_model the R1-Zero checkpoint; --rewriter who makes it readable
  --backend NAME                 vllm, transformers, server (--server_urls URL …)
  --traces DATA                  worked solutions of your own: Hub id, file, gym:<task>
  --output_dir FOLDER            where samples, rows and report go; the same command again goes on
"""
_REJECTION_OPTIONS = """\
the most used options of the stage, each overriding the configuration:
  --config NAME|FILE             nano_cpu (default), smollm2_135m, qwen2.5_1.5b, qwen2.5_7b, or a YAML file
  --model_name_or_path MODEL     who samples: Hub id or folder; nano
  --dataset DATA                 questions with references: Hub id, local file or folder; nano:countdown, …
  --samples K --max_accepted N   most completions, and most accepted ones, per question
  --judge SETTINGS               who judges answers without a rule: a model, its sampler settings as JSON, or self
  --backend NAME                 vllm, transformers, server (--server_urls URL …)
  --output_dir FOLDER            where candidates.parquet and report.json go; the same command again goes on
"""
COMMANDS = (
    Command(
        "demo", _R1_ZERO, f"train the embedded nano model; report and curves go to {_DEMO_OUTPUT}",
        _RL_OPTIONS.format(configs="smollm2_135m_gsm8k, qwen2.5_1.5b"), launch=True,
        first=("--config", "nano_cpu", "--output_dir", _DEMO_OUTPUT, "--overwrite", "true"),
        # nano is too small for threads: two processes of one thread take 0.7 of the time of one with two.
        processes=2,
    ),
    Command(
        "r1-zero", _R1_ZERO, "R1-Zero: rule rewards alone, from a base model",
        _RL_OPTIONS.format(configs="smollm2_135m_gsm8k, qwen2.5_1.5b"), launch=True,
    ),
    Command(
        "cold-start", "trl_r1.pipeline.cold_start:run",
        "stage 1's data: readable long thinking, sampled, verified, filtered, rewritten",
        _COLD_START_OPTIONS, launch=True,
    ),
    Command("review", "trl_r1.pipeline.review:run", "keep, drop or edit the rows of a data set, in a browser on this machine"),
    Command(
        "reasoning-rl", "trl_r1.pipeline.stages:run_reasoning_rl",
        "stage 2: maths, code, choice and logic with the language reward, from an SFT or Zero checkpoint",
        _RL_OPTIONS.format(configs="smollm2_135m_reasoning_gym, qwen2.5_1.5b"), launch=True,
    ),
    Command(
        "sft", "trl_r1.pipeline.sft:run_sft", "SFT on traces with thinking: cold start, and stage 3 from the base again",
        _SFT_OPTIONS.format(configs="smollm2_135m_gsm8k, qwen2.5_1.5b"), launch=True,
    ),
    Command(
        "distill", "trl_r1.pipeline.distill:run_distill", "SFT of a student on a teacher's traces",
        _SFT_OPTIONS.format(configs="r1_distill_qwen_1.5b, qwen2.5_7b_qlora")
        + "  --teacher MODEL                who writes the traces, instead of --traces: a model, or a sampler's settings as JSON\n",
        launch=True,
    ),
    Command(
        "mixture", "trl_r1.pipeline.mixture:run",
        "mix reasoning and general traces by weight, without near-duplicates and benchmark questions",
    ),
    Command(
        "rejection-sampling", "trl_r1.pipeline.rejection_sampling:run",
        "stage 3's data: several answers per question, verified, filtered, a few of each kept",
        _REJECTION_OPTIONS, launch=True,
    ),
    Command(
        "sample", "trl_r1.pipeline.sample:run_sample",
        "questions of any data set to completions with verdicts, resumable", _SAMPLE_OPTIONS, launch=True,
    ),
    Command(
        "evaluate", "trl_r1.pipeline.evaluate:run_evaluate",
        "measure a model on benchmarks: pass@1, cons@k, intervals, published figures beside them",
        _EVALUATE_OPTIONS, launch=True,
    ),
    Command(
        "probe", "trl_r1.pipeline.probe:run_probe",
        "ask a model some training questions: can R1-Zero start, and with which settings?", _PROBE_OPTIONS,
    ),
    Command("report", "trl_r1.pipeline.report:run_report", "one HTML page over one or several runs"),
    Command("compare", "trl_r1.pipeline.compare:run_compare", "two models on the same questions; sharpening or discovery"),
    Command("rescore", "trl_r1.pipeline.rescore:run_rescore", "what another reward would have paid in a run"),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*): Arguments; those of the process by default.

    Returns:
        `int`: Exit status: 0, 1 for an error that says what to fix, 130 when interrupted.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    rest = [*_command(arguments.command).first, *rest]
    if getattr(arguments, "help_all", False):
        rest = ["--help"]
    if getattr(arguments, "num_processes", 1) > 1:
        return _launch(arguments.num_processes, arguments.command, rest)
    return run(arguments.command, rest)


def run(name: str, args: Sequence[str]) -> int:
    """Run a command in this process; what the recipes call.

    Args:
        name (`str`): One of [`COMMANDS`].
        args (`Sequence[str]`): Its settings.

    Returns:
        `int`: Exit status.
    """
    module, _, function = _command(name).function.partition(":")
    try:
        result = getattr(import_module(module), function)(list(args))
    except TrlR1Error as error:
        print(f"trl-r1: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\n{stop}", file=sys.stderr)
        return _INTERRUPTED
    return result if isinstance(result, int) else 0


def _command(name: str) -> Command:
    return next(command for command in COMMANDS if command.name == name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trl-r1",
        description="DeepSeek-R1's pipeline on TRL: train a model to reason by reinforcement learning.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"trl-r1 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        options = commands.add_parser(
            command.name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=command.options or None,
            allow_abbrev=False,
            add_help=bool(command.options),
        )
        if command.launch:
            options.add_argument(
                "--num_processes",
                type=int,
                default=min(command.processes, usable_cores()),
                metavar="N",
                help="start N processes with accelerate (default: %(default)s)",
            )
        if command.options:
            options.add_argument("--help-all", action="store_true", help="list every option of the stage")
    return parser


def _launch(processes: int, name: str, args: Sequence[str]) -> int:
    """Start the same command in several processes through accelerate."""
    # The arguments that a command puts first are among `args` already: a command that has none is started.
    started = next(one.name for one in COMMANDS if one.function == _command(name).function and not one.first)
    flags = ["--num_processes", str(processes), "--multi_gpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--module", "trl_r1.cli", started, *args]
    # The cores are shared out: the launcher itself would give each process one thread.
    threads = {"OMP_NUM_THREADS": str(max(1, usable_cores() // processes))}
    return _attend(command, {**threads, **os.environ})


def _attend(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command and pass on what would stop this process, so that the stage can write its checkpoint first.

    In a session of its own: Ctrl-C then reaches it once, through this process, whoever sends it.
    """
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + received[0] if received else status


if __name__ == "__main__":
    sys.exit(main())
