"""Run a program nobody trusts: isolated by bubblewrap, bounded in time, memory, output and processes.

Each run gets a root of its own that holds the system's programs, Python and the program's files, all read-only, and a
private `/tmp` that vanishes with it. There is no network, no `/proc`, no other process and none of the user's files in
it: neither data sets nor tests can be read, and nothing outside can be changed.

```python
>>> from trl_r1.sandbox import Program, Sandbox
>>> Sandbox().run(Program(("python", "main.py"), {"main.py": b"print(int(input()) * 2)"}, b"21")).stdout
b'42\\n'
```
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from trl_r1.exceptions import ConfigurationError

# First release with `--size` (a bounded /tmp) and `--disable-userns`.
BWRAP_VERSION = (0, 8)
INSTALL = (
    "Install bubblewrap (`apt-get install bubblewrap`), give an executor of your own with `trl_r1.sandbox.use`, or, for "
    "programs you trust, pass `allow_unisolated=True`."
)
# Where a program's files lie, which is also where it starts. Read-only.
BOX = "/box"
# Real user ids of runs started by root. Each run has its own, because the kernel counts processes per user and does not
# limit root's. No account has an id this high (`useradd` ends at 60,000; sub-ids of containers start at 100,000).
_USERS = range(1_900_000_000, 2_000_000_000)
# Capabilities (capabilities(7)) with which root makes namespaces and changes its user: SETUID, SETPCAP, SYS_ADMIN.
_ROOT_CAPABILITIES = 1 << 7 | 1 << 8 | 1 << 21

_CHUNK = 65_536


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


@dataclass(frozen=True)
class Sandbox:
    """Runs programs under bubblewrap. Safe to share between threads and to pickle.

    Args:
        allow_unisolated (`bool`, defaults to `False`):
            Run without isolation where bubblewrap does not work. The limits still hold, but the program can read and
            write all that this user can, and use the network.
        read_only (`tuple[str, ...]`, defaults to `()`): Further paths that programs may read, such as packages.
        python (`str`, *optional*): The interpreter that `"python"` stands for. Defaults to the one in use, outside of its
            virtual environment; another one's folder must be in `read_only` unless it is under `/usr`.
    """

    allow_unisolated: bool = False
    read_only: tuple[str, ...] = ()
    python: str = ""

    def run(self, program: Program) -> Outcome:
        """Run a program to its end or to a limit, then kill whatever it left behind.

        Args:
            program ([`Program`]): Command, files, input and limits.

        Raises:
            [`ConfigurationError`]: Where bubblewrap does not work and `allow_unisolated` is `False`.
        """
        if isolation_problem() is None:
            return self._run_isolated(program)
        if not self.allow_unisolated:
            raise ConfigurationError(f"Programs cannot be isolated: {isolation_problem()}. {INSTALL}")
        return self._run_unisolated(program)

    def _run_isolated(self, program: Program) -> Outcome:
        command = [_bwrap(), *_namespaces(), *self._root(program.limits)]
        descriptors: list[int] = []
        try:
            for name, content in program.files.items():
                descriptors.append(_memory_file(content))
                command += ["--perms", "0555", "--ro-bind-data", str(descriptors[-1]), f"{BOX}/{_plain_name(name)}"]
            command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", BOX, "--"]
            return _communicate([*command, *_other_user(), *self._limited(program)], program, tuple(descriptors))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _run_unisolated(self, program: Program) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="trl_r1_", ignore_cleanup_errors=True) as folder:
            for name, content in program.files.items():
                path = Path(folder, _plain_name(name))
                path.write_bytes(content)
                path.chmod(0o555)
            marker = f"{os.getpid()}-{secrets.token_hex(8)}"
            environment = {**_environment(folder), _MARK: marker}
            try:
                return _communicate(self._limited(program), program, (), folder, environment)
            finally:
                _kill_marked(marker)

    def _limited(self, program: Program) -> list[str]:
        limits = program.limits
        words = list(program.command)
        if words[0] == "python":
            # Isolated: neither the user's packages nor modules beside the script shadow the library's. Without `site`
            # unless packages are wanted: a start takes 15 ms, and 75 ms beside many packages.
            site = [] if self.python else ["-S"]
            words[:1] = [self.python or os.path.realpath(sys.executable), "-I", *site, "-B", "-X", "utf8"]
        cpu = int(limits.seconds) + 1
        return [
            _needed("prlimit"),
            f"--cpu={cpu}:{cpu}",
            f"--as={limits.memory}",
            f"--fsize={limits.files}",
            f"--nproc={limits.processes}",
            f"--nofile={limits.open_files}",
            "--core=0",
            "--",
            *words,
        ]

    def _root(self, limits: Limits) -> list[str]:
        """Build the arguments for the file system a program sees."""
        words = ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            # Merged into /usr on present systems; folders of their own on older ones.
            if Path("/", name).is_symlink():
                words += ["--symlink", str(Path("/", name).readlink()), f"/{name}"]
            elif Path("/", name).is_dir():
                words += ["--ro-bind", f"/{name}", f"/{name}"]
        for path in ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime"):
            words += ["--ro-bind-try", path, path]
        words += ["--dev", "/dev", "--perms", "1777", "--size", str(limits.files), "--tmpfs", "/tmp"]
        made = {"/", "/usr", "/etc", "/dev", "/tmp"}
        for path in (*self.read_only, *(() if self.python else (sys.base_prefix,))):
            if Path(path).is_relative_to("/usr"):
                continue
            for parent in reversed(Path(path).parents):
                if str(parent) not in made:
                    made.add(str(parent))
                    words += ["--perms", "0755", "--dir", str(parent)]
            words += ["--ro-bind", path, path]
        words += ["--perms", "0755", "--dir", BOX, "--clearenv"]
        for name, value in _environment("/tmp").items():
            words += ["--setenv", name, value]
        return words


_MARK = "TRL_R1_SANDBOX"
_executor: Executor = Sandbox().run


def use(executor: Executor) -> None:
    """Set what runs programs in this process: `use(Sandbox(allow_unisolated=True).run)`, or a function of your own."""
    global _executor
    _executor = executor


def current() -> Executor:
    """Return what runs programs in this process, to be called, or given to a worker process."""
    return _executor


@lru_cache(maxsize=1)
def isolation_problem() -> str | None:
    """Say why bubblewrap cannot isolate programs on this machine; `None` when it can (tried once per process)."""
    if shutil.which("bwrap") is None:
        return "`bwrap` is not on the PATH"
    version = subprocess.run([_bwrap(), "--version"], capture_output=True, text=True, check=False).stdout.split()[-1]
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < BWRAP_VERSION:
        return f"bubblewrap {version} is older than {'.'.join(map(str, BWRAP_VERSION))}"
    missing = [name for name in ("prlimit", "setpriv") if shutil.which(name) is None]
    if missing:
        return f"{missing} of util-linux are not on the PATH"
    trial = Sandbox()._run_isolated(Program(("python", "-c", "print(6 * 7)"), limits=Limits(seconds=30)))
    if trial.stdout != b"42\n":
        reason = trial.stderr.decode(errors="replace").strip()[-300:] or f"exit code {trial.exit_code}"
        return f"a first run failed: {reason}"
    return None


def _communicate(
    command: list[str],
    program: Program,
    descriptors: tuple[int, ...],
    folder: str | None = None,
    environment: dict[str, str] | None = None,
) -> Outcome:
    """Start a command, feed and drain it, and kill it at a limit."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pass_fds=descriptors,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    try:
        out, err, stopped = _drain(process, program, start)
    finally:
        # The whole session; under bubblewrap the death of the outer process takes its pid namespace with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return Outcome(out, err, code if code >= 0 else 128 - code, stopped, time.monotonic() - start)


def _drain(process: subprocess.Popen[bytes], program: Program, start: float) -> tuple[bytes, bytes, str | None]:
    """Move bytes both ways until the process ends or a limit is reached; say which."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    limits, waiting = program.limits, memoryview(program.stdin)
    buffers = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    source = process.stdin.fileno()
    ended = os.pidfd_open(process.pid)
    stopped = None
    with selectors.DefaultSelector() as selector:
        for descriptor in buffers:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        os.set_blocking(source, False)
        selector.register(source, selectors.EVENT_WRITE)
        selector.register(ended, selectors.EVENT_READ)
        alive = True
        while alive and stopped is None:
            left = limits.seconds - (time.monotonic() - start)
            if left <= 0:
                stopped = "time"
                break
            for key, _ in selector.select(left):
                if key.fd == ended:
                    alive = False
                elif key.fd == source:
                    waiting = _feed(source, waiting)
                    if not waiting:
                        selector.unregister(source)
                        process.stdin.close()
                elif not _read(key.fd, buffers[key.fd]):
                    selector.unregister(key.fd)
            if sum(map(len, buffers.values())) > limits.output:
                stopped = "output"
    os.close(ended)
    for descriptor, buffer in buffers.items():
        # What was written just before the end; never more than the cap, whoever still holds the pipe.
        while stopped is None and len(buffer) <= limits.output and _read(descriptor, buffer):
            pass
    if stopped is None and sum(map(len, buffers.values())) > limits.output:
        stopped = "output"
    out, err = (bytes(buffer[: limits.output]) for buffer in buffers.values())
    return out, err, stopped


def _feed(source: int, waiting: memoryview) -> memoryview:
    """Write what the pipe takes; return the rest, which is nothing when nobody reads any more."""
    try:
        return waiting[os.write(source, waiting[:_CHUNK]) :] if waiting else waiting
    except BlockingIOError:
        return waiting
    except BrokenPipeError:
        return waiting[:0]


def _read(descriptor: int, buffer: bytearray) -> bool:
    """Read once; `False` at the end of the stream, or when nothing is there."""
    try:
        chunk = os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return False
    buffer += chunk
    return bool(chunk)


@lru_cache(maxsize=1)
def _real_root() -> bool:
    """Whether this process may make namespaces and take any user id, as root outside of containers can."""
    if os.geteuid() != 0:
        return False
    inside, _, count = map(int, Path("/proc/self/uid_map").read_text().split()[:3])
    held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    every_user = inside == 0 and inside + count > _USERS[-1]
    return every_user and int(held.split()[1], 16) & _ROOT_CAPABILITIES == _ROOT_CAPABILITIES


def _namespaces() -> list[str]:
    # Real root needs no user namespace; without one its runs can have real user ids of their own (see `_USERS`). For all
    # others the kernel counts a run's processes in its user namespace (since Linux 5.14).
    alone = ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    apart = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    return [*([] if _real_root() else alone), *apart, "--die-with-parent", "--new-session"]


def _other_user() -> list[str]:
    """Give up root inside the sandbox, capabilities included."""
    if not _real_root():
        return []
    user = _USERS[secrets.randbelow(len(_USERS))]
    identity = [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return [_needed("setpriv"), *identity, "--inh-caps=-all", "--bounding-set=-all", "--"]


def _environment(home: str) -> dict[str, str]:
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"}


def _memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("program", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _plain_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ConfigurationError(f"A program's file cannot be called {name!r}: give a plain name without folders.")
    return name


def _bwrap() -> str:
    return _needed("bwrap")


@lru_cache(maxsize=8)
def _needed(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ConfigurationError(f"`{name}` is not on the PATH; without it programs cannot be limited. {INSTALL}")
    return path


def _kill_marked(marker: str) -> None:
    """Kill what an unisolated program left in other sessions: whoever still carries its mark in the environment."""
    wanted = f"{_MARK}={marker}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue
