"""What runs and what it may use: the terms in which every executor speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Limits:
    """What one run may use. [?] No source gives R1's; six seconds and 1 GiB are usual for contest problems.

    Args:
        seconds (`float`, defaults to 6.0): Wall-clock time; CPU time of each process is bounded by it as well.
        memory (`int`, defaults to 1 GiB): Bytes of address space of each process.
        files (`int`, defaults to 64 MiB): Bytes of `/tmp`, and of each file.
        output (`int`, defaults to 1 MiB): Bytes of standard output and error together.
        processes (`int`, defaults to 16): Processes and threads at once.
        open_files (`int`, defaults to 128): File descriptors of each process.
    """

    seconds: float = 6.0
    memory: int = 1 << 30
    files: int = 64 << 20
    output: int = 1 << 20
    processes: int = 16
    open_files: int = 128


@dataclass(frozen=True)
class Program:
    """A command with the files it needs.

    Args:
        command (`tuple[str, ...]`): Its words. `"python"` is this interpreter without its packages; files of the
            program are named relative to where it starts (`"main.py"`, `"./main"`).
        files (`Mapping[str, bytes]`): Name and content of each file; all are readable and executable.
        stdin (`bytes`, defaults to `b""`): Standard input.
        limits ([`Limits`]): Bounds of the run.
    """

    command: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""
    limits: Limits = Limits()


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Args:
        stdout (`bytes`): Standard output, cut at the limit.
        stderr (`bytes`): Standard error, cut at the limit.
        exit_code (`int`): 0 when the program ended well; 128 + n when signal n ended it.
        stopped (`str`, *optional*): `"time"` or `"output"` when it was killed for exceeding that limit.
        seconds (`float`): Wall-clock time.
    """

    stdout: bytes
    stderr: bytes
    exit_code: int
    stopped: str | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself, with exit code 0."""
        return self.stopped is None and self.exit_code == 0


class Executor(Protocol):
    """Anything that runs a [`Program`]: a [`Sandbox`]'s `run`, or a function that sends it to E2B, Piston or a cluster."""

    def __call__(self, program: Program, /) -> Outcome:
        """Run a program to its end, or to a limit."""
        ...
