"""Many short programs through one process that stays, each still in namespaces of its own.

A [`Sandbox`] starts bubblewrap, two programs that limit, and Python, for every program: about 25 ms, of which the
program itself is one. The launcher is bubblewrap and Python started once. It forks for each program, which gets a fresh
process, network, ipc and mount namespace, a private `/tmp`, a box with its files, its limits and no privilege, all of
which vanish with it (`launched.py`). Python programs share the launcher's hash seed.
"""

from __future__ import annotations

import array
import contextlib
import json
import logging
import os
import secrets
import socket
import subprocess
import threading
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trl_r1.exceptions import TrlR1Error
from trl_r1.sandbox import USERS, Sandbox, bwrap, isolation_problem, memory_file, plain_name, python_words, real_root
from trl_r1.sandbox.base import Executor, Limits, Outcome, Program
from trl_r1.sandbox.streams import exchange

_SCRIPT = Path(__file__).with_name("launched.py")
_PLACE = "/launched.py"
# What the launcher needs of root: namespaces and mounts, and to give itself up.
_KEPT = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
_START_SECONDS = 30.0
# What one message to the launcher holds is 253, of which some are the streams.
_MOST_FILES = 240

logger = logging.getLogger(__name__)


class LauncherError(TrlR1Error, RuntimeError):
    """The launcher does not start here, or does not set a program up."""


class Launcher:
    """Runs programs as a [`Sandbox`] does, at a fraction of the time. Safe to share between threads, and to pickle.

    Starts with the first program; a copy in another process starts a launcher of its own. Where it cannot start (for
    example because user namespaces may not be nested), the sandbox runs each program by itself, as isolated, and a
    warning says why. It ends with the process that uses it.

    Args:
        sandbox ([`Sandbox`], *optional*): Its settings, and what runs programs where the launcher cannot.

    Example:

    ```python
    >>> from trl_r1 import sandbox
    >>> from trl_r1.sandbox.launcher import Launcher
    >>> sandbox.use(Launcher().run)  # for this process
    ```
    """

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self.sandbox = sandbox or Sandbox()
        self.problem: str | None = None
        self._lock = threading.Lock()
        self._box: _Box | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"sandbox": self.sandbox}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["sandbox"])  # type: ignore[misc]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Launcher) and self.sandbox == other.sandbox

    def __hash__(self) -> int:
        return hash(self.sandbox)

    def run(self, program: Program) -> Outcome:
        """Run a program to its end or to a limit, then kill whatever it left behind.

        Args:
            program ([`Program`]): Command, files, input and limits.

        Raises:
            [`ConfigurationError`]: Where bubblewrap does not work (see [`Sandbox.run`]).
            [`LauncherError`]: When the program cannot be set up, for example with limits above this process's own.
        """
        if len(program.files) > _MOST_FILES or isolation_problem() is not None:
            return self.sandbox.run(program)
        for _ in range(2):
            box = self._started()
            if box is None:
                return self.sandbox.run(program)
            outcome = box.run(program)
            if outcome is not None:
                return outcome
            self._forget(box)  # it was killed; a new one starts
        raise LauncherError("The sandbox's launcher was killed twice over one program. Is the machine out of memory?")

    def close(self) -> None:
        """End the launcher with all that runs. It starts again with the next program."""
        if self._box is not None:
            self._forget(self._box)

    def _started(self) -> _Box | None:
        with self._lock:
            if self._box is None and self.problem is None:
                try:
                    self._box = _Box(self.sandbox)
                except LauncherError as error:
                    self.problem = str(error)
                    logger.warning("%s Each program gets a sandbox by itself, which is slower.", error)
            return self._box

    def _forget(self, box: _Box) -> None:
        with self._lock:
            if self._box is box:
                self._box = None
        box.close()


def launched(executor: Executor) -> Executor:
    """Return a launcher with a sandbox's settings for a [`Sandbox`]'s `run`; other executors as they are."""
    owner = getattr(executor, "__self__", None)
    return Launcher(owner).run if isinstance(owner, Sandbox) else executor


class _Box:
    """One started launcher."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._pid = os.getpid()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = memory_file(_SCRIPT.read_bytes())
        self.python = sandbox.python
        command = [*_namespaces(), *sandbox.root(Limits()), "--perms", "0444", "--ro-bind-data", str(script), _PLACE]
        # Who is not root writes its user's number there.
        command += [*([] if real_root() else ["--proc", "/proc"]), "--remount-ro", "/dev", "--remount-ro", "/", "--"]
        with theirs:
            # Pipes that nobody uses: a program's streams are found as a fresh interpreter finds them.
            self.process = subprocess.Popen(
                [bwrap(), *command, *python_words("", ["python", _PLACE, str(theirs.fileno())])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[script, theirs.fileno()],
                start_new_session=True,
            )
        os.close(script)
        self.control.settimeout(_START_SECONDS)
        self._finish = weakref.finalize(self, _end, self.control, self.process, self._pid)
        try:
            ready = self.control.recv(16)
        except OSError:
            ready = b""
        self.control.settimeout(None)
        problem = "" if ready == b"ready" else "it does not start"
        if not problem:
            trial = self.run(Program(("python", "-c", "print(6 * 7)"), limits=Limits(seconds=_START_SECONDS)))
            problem = "" if trial is not None and trial.stdout == b"42\n" else f"a first run failed: {trial}"
        if problem:
            self.process.kill()
            assert self.process.stderr is not None
            said = self.process.stderr.read().decode(errors="replace").strip()[-300:]
            self.close()
            raise LauncherError(f"The sandbox's launcher cannot be used here: {problem}. {said}".strip())

    def run(self, program: Program) -> Outcome | None:
        """Run one program; `None` when the launcher is gone."""
        start, description = time.monotonic(), self._description(program)
        theirs: list[int] = []
        ours: list[int] = []

        def pipe(to_launcher: int) -> int:
            """Make a pipe, of whose ends the launcher gets one; return the other."""
            ends = os.pipe()
            theirs.append(ends[to_launcher])
            return ends[1 - to_launcher]

        try:
            ours.append(status := pipe(1))
            leash = pipe(0)
            theirs.append(memory_file(description))
            source = pipe(0)
            ours += [out := pipe(1), err := pipe(1)]
            theirs += [memory_file(content) for content in program.files.values()]
            try:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", theirs))
                self.control.sendmsg([b"run"], [rights])
            except OSError:
                for descriptor in (leash, source):
                    os.close(descriptor)
                return None
            finally:
                for descriptor in theirs:
                    os.close(descriptor)
            try:
                stdout, stderr, stopped = exchange(program, source, (out, err), status, start)
            finally:
                os.close(leash)
            said = b"".join(iter(lambda: os.read(status, 4096), b"")).decode(errors="replace")
        finally:
            for descriptor in ours:
                os.close(descriptor)
        if not said:
            return None
        if not said.isdigit():
            raise LauncherError(f"A program could not be set up: {said}. Limits: {program.limits}.")
        return Outcome(stdout, stderr, int(said), stopped, time.monotonic() - start)

    def _description(self, program: Program) -> bytes:
        words = list(program.command)
        # `python file …` and `python -c code …` need no new interpreter; other options do.
        forked = (
            not self.python
            and words[:1] == ["python"]
            and len(words) > 1
            and (words[1] == "-c" or not words[1].startswith("-"))
        )
        job = {
            "words": words[1:] if forked else python_words(self.python, words),
            "python": forked,
            "names": [plain_name(name) for name in program.files],
            "limits": asdict(program.limits),
            "user": USERS[secrets.randbelow(len(USERS))],
        }
        return json.dumps(job).encode()

    def close(self) -> None:
        """End the launcher and all that it runs."""
        self._finish()


def _namespaces() -> list[str]:
    apart = [
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--new-session",
    ]
    if real_root():
        return [*apart, "--cap-drop", "ALL", *(word for name in _KEPT for word in ("--cap-add", name))]
    # Programs get user namespaces of their own inside, so that these may be nested once.
    return ["--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", *apart]


def _end(control: socket.socket, process: subprocess.Popen[bytes], owner: int) -> None:
    control.close()
    if os.getpid() != owner:  # a fork of the process that started it
        return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
