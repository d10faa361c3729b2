"""The command line: quick help, names of configurations, exit codes."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from trl_r1 import cli


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "trl_r1.cli", *args], capture_output=True, text=True, check=False)


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], [], *([c.name, "--help"] for c in cli.COMMANDS if c.options)]
)
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    program = (
        "import sys, trl_r1.cli\n"
        f"try: trl_r1.cli.main({args!r})\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'vllm', 'trl', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    start = children_seconds()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "trl-r1" in done.stdout
    assert children_seconds() - start < 5


def test_unknown_command_is_refused() -> None:
    done = run("r2-zero")
    assert done.returncode == 2
    assert "r1-zero" in done.stderr


def test_exit_status_is_the_functions_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def answers(args: list[str]) -> int:
        seen.append(args)
        return 3

    module = type(sys)("trl_r1_test_command")
    module.main = answers  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "COMMANDS", (cli.Command("probe", f"{module.__name__}:main", "look closer"),))
    assert cli.main(["probe", "runs/a", "runs/b", "--help", "-k", "4"]) == 3
    assert seen == [["runs/a", "runs/b", "--help", "-k", "4"]]


def test_error_says_the_fix_and_sets_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["r1-zero", "--config", "nano_tpu"]) == 1
    message = capsys.readouterr().err
    assert "Unknown configuration 'nano_tpu'" in message
    assert "'nano_cpu'" in message


def test_demo_is_nano_cpu_in_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl_r1.pipeline import stages

    seen: list[list[str]] = []
    monkeypatch.setattr(stages, "run_r1_zero", seen.append)
    assert cli.main(["demo", "--num_processes", "1", "--max_steps", "3"]) == 0
    assert seen == [
        ["--config", "nano_cpu", "--output_dir", "runs/demo", "--overwrite", "true", "--max_steps", "3"],
    ]


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_every_command_has_its_function(command: cli.Command) -> None:
    module, _, function = command.function.partition(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize(
    ("name", "started"), [("r1-zero", "r1-zero"), ("demo", "r1-zero"), ("reasoning-rl", "reasoning-rl")]
)
def test_several_processes_go_through_accelerate(name: str, started: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def attended(command: list[str], environment: dict[str, str]) -> int:
        seen.append(command)
        return 7 if environment["OMP_NUM_THREADS"] else 1

    monkeypatch.setattr(cli, "_attend", attended)
    assert cli.main([name, "--num_processes", "2", "--config", "nano_cpu"]) == 7
    (command,) = seen
    assert started in command
    assert name == started or name not in command
    assert command[command.index("--num_processes") + 1] == "2"
    assert command[-2:] == ["--config", "nano_cpu"]


def test_the_demo_takes_two_processes_where_there_are_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(cli, "_attend", lambda command, environment: seen.append(command) or 0)
    monkeypatch.setattr(cli, "usable_cores", lambda: 4)
    assert cli.main(["demo"]) == 0
    assert seen[0][seen[0].index("--num_processes") + 1] == "2"


STAGE = """
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.5)  # a stage ends its rollout first
    pathlib.Path(sys.argv[1]).write_text("checkpoint")
    sys.exit(1)
signal.signal(signal.SIGINT, stop)
pathlib.Path(sys.argv[1]).write_text("ready")
time.sleep(60)
"""


def test_ctrl_c_reaches_the_launched_stage_and_waits_for_it(tmp_path: Path) -> None:
    note = tmp_path / "note"
    program = f"import sys, os; from trl_r1 import cli; sys.exit(cli._attend({[sys.executable, '-c', STAGE, str(note)]!r}, os.environ))"
    process = subprocess.Popen([sys.executable, "-c", program])
    while not note.is_file() or note.read_text() != "ready":
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert note.read_text() == "checkpoint"


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from trl_r1.pipeline import stages

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt("Stopped at step 3. Continue with --resume_from_checkpoint auto.")

    monkeypatch.setattr(stages, "run_r1_zero", stopped)
    assert cli.main(["r1-zero"]) == 130
    assert "--resume_from_checkpoint auto" in capsys.readouterr().err
