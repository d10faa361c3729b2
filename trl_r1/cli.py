"""`trl-r1`: the stages for those who installed from a wheel. Nothing heavy is imported before a stage starts."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from trl_r1 import __version__
from trl_r1.exceptions import TrlR1Error

_DEMO_OUTPUT = "runs/demo"
# Exit status of a program that Ctrl-C stopped: 128 + SIGINT.
_INTERRUPTED = 130
# Read by the stage's own parser, which takes seconds to build: --help only tells of the most used ones.
_STAGE_OPTIONS = """\
the most used options of the stage, each overriding the configuration:
  --config NAME|FILE             nano_cpu (default), nano_gpu, smollm2_135m_gsm8k, qwen2.5_1.5b, …, or a YAML file
  --model_name_or_path MODEL     Hub id or folder; nano, nano:no_reflection
  --dataset DATA                 Hub id, local file or folder; nano:countdown, …
  --output_dir FOLDER            where model, report and curves go
  --use_vllm false               generate with transformers
  --resume_from_checkpoint auto  continue the run in output_dir
  --preview                      show three rendered rows with their gold completion scored; load no weights
  --plan                         print memory, micro-batches and time to expect on this machine; load no weights
"""


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
    if arguments.command == "demo":
        rest = ["--config", "nano_cpu", "--output_dir", _DEMO_OUTPUT, "--overwrite", "true", *rest]
    if arguments.help_all:
        rest = ["--help"]
    if arguments.num_processes > 1:
        return _launch(arguments.num_processes, rest)
    return run_r1_zero(rest)


def run_r1_zero(args: list[str]) -> int:
    """Run the R1-Zero stage in this process.

    Args:
        args (`list[str]`): Its settings, as for `recipes/r1_zero.py`.

    Returns:
        `int`: Exit status.
    """
    from trl_r1.pipeline import parse_r1_zero, r1_zero

    try:
        r1_zero(*parse_r1_zero(args))
    except TrlR1Error as error:
        print(f"trl-r1: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\n{stop}", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trl-r1",
        description="DeepSeek-R1's pipeline on TRL: train a model to reason by reinforcement learning.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"trl-r1 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help=f"train the embedded nano model; report and curves go to {_DEMO_OUTPUT}",
        description="Train the embedded nano model on countdown, offline, in minutes.",
    )
    zero = commands.add_parser(
        "r1-zero",
        help="R1-Zero: rule rewards alone, from a base model",
        description="R1-Zero on any model and data set.",
    )
    for command in (demo, zero):
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.epilog = _STAGE_OPTIONS
        command.allow_abbrev = False
        command.add_argument(
            "--num_processes", type=int, default=1, metavar="N", help="start N processes with accelerate (default: 1)"
        )
        command.add_argument("--help-all", action="store_true", help="list every option of the stage")
    return parser


def _launch(processes: int, args: list[str]) -> int:
    """Start the same command in several processes through accelerate."""
    flags = ["--num_processes", str(processes), "--multi_gpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--module", "trl_r1.cli", "r1-zero", *args]
    return subprocess.run(command, env={**os.environ}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
