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
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trl_r1.exceptions import ConfigurationError
from trl_r1.sandbox.base import Executor, Limits, Outcome, Program
from trl_r1.sandbox.streams import exchange

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
USERS = range(1_900_000_000, 2_000_000_000)
# Capabilities (capabilities(7)) with which root makes namespaces and changes its user: SETUID, SETPCAP, SYS_ADMIN.
_ROOT_CAPABILITIES = 1 << 7 | 1 << 8 | 1 << 21

__all__ = ["Executor", "Limits", "Outcome", "Program", "Sandbox", "current", "isolation_problem", "own_sandbox", "use"]


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
        command = [bwrap(), *_namespaces(), *self.root(program.limits)]
        descriptors: list[int] = []
        try:
            for name, content in program.files.items():
                descriptors.append(memory_file(content))
                command += ["--perms", "0555", "--ro-bind-data", str(descriptors[-1]), f"{BOX}/{plain_name(name)}"]
            command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", BOX, "--"]
            return _communicate([*command, *_other_user(), *self._limited(program)], program, tuple(descriptors))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _run_unisolated(self, program: Program) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="trl_r1_", ignore_cleanup_errors=True) as folder:
            for name, content in program.files.items():
                path = Path(folder, plain_name(name))
                path.write_bytes(content)
                path.chmod(0o555)
            marker = f"{os.getpid()}-{secrets.token_hex(8)}"
            environment = {**_environment(folder), _MARK: marker}
            try:
                return _communicate(self._limited(program), program, (), folder, environment)
            finally:
                _kill_marked(marker)

    def _limited(self, program: Program) -> list[str]:
        limits, cpu = program.limits, int(program.limits.seconds) + 1
        return [
            _needed("prlimit"),
            f"--cpu={cpu}:{cpu}",
            f"--as={limits.memory}",
            f"--fsize={limits.files}",
            f"--nproc={limits.processes}",
            f"--nofile={limits.open_files}",
            "--core=0",
            "--",
            *python_words(self.python, program.command),
        ]

    def root(self, limits: Limits) -> list[str]:
        """Build the arguments for the file system a program sees."""
        words = ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            # Merged into /usr on present systems; folders of their own on older ones.
            if Path("/", name).is_symlink():
                words += ["--symlink", str(Path("/", name).readlink()), f"/{name}"]
            elif Path("/", name).is_dir():
                words += ["--ro-bind", f"/{name}", f"/{name}"]
        # bubblewrap makes the folders above what it binds for its own user alone.
        words += ["--perms", "0755", "--dir", "/etc"]
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


def own_sandbox() -> Sandbox | None:
    """Return the [`Sandbox`] that runs programs in this process, also through a launcher; `None` for a foreign executor."""
    owner = getattr(_executor, "__self__", None)
    owner = getattr(owner, "sandbox", owner)
    return owner if isinstance(owner, Sandbox) else None


@lru_cache(maxsize=1)
def isolation_problem() -> str | None:
    """Say why bubblewrap cannot isolate programs on this machine; `None` when it can (tried once per process)."""
    if shutil.which("bwrap") is None:
        return "`bwrap` is not on the PATH"
    version = subprocess.run([bwrap(), "--version"], capture_output=True, text=True, check=False).stdout.split()[-1]
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
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    ended = os.pidfd_open(process.pid)
    source = os.dup(process.stdin.fileno())
    process.stdin.close()
    try:
        out, err, stopped = exchange(program, source, (process.stdout.fileno(), process.stderr.fileno()), ended, start)
    finally:
        os.close(ended)
        # The whole session; under bubblewrap the death of the outer process takes its pid namespace with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        process.stdout.close()
        process.stderr.close()
    return Outcome(out, err, code if code >= 0 else 128 - code, stopped, time.monotonic() - start)


@lru_cache(maxsize=1)
def real_root() -> bool:
    """Whether this process may make namespaces and take any user id, as root outside of containers can."""
    if os.geteuid() != 0:
        return False
    inside, _, count = map(int, Path("/proc/self/uid_map").read_text().split()[:3])
    held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    every_user = inside == 0 and inside + count > USERS[-1]
    return every_user and int(held.split()[1], 16) & _ROOT_CAPABILITIES == _ROOT_CAPABILITIES


def _namespaces() -> list[str]:
    # Real root needs no user namespace; without one its runs can have real user ids of their own (see `USERS`). For all
    # others the kernel counts a run's processes in its user namespace (since Linux 5.14).
    alone = ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    apart = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    return [*([] if real_root() else alone), *apart, "--die-with-parent", "--new-session"]


def _other_user() -> list[str]:
    """Give up root inside the sandbox, capabilities included."""
    if not real_root():
        return []
    user = USERS[secrets.randbelow(len(USERS))]
    identity = [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return [_needed("setpriv"), *identity, "--inh-caps=-all", "--bounding-set=-all", "--"]


def _environment(home: str) -> dict[str, str]:
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"}


def memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("program", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def plain_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ConfigurationError(f"A program's file cannot be called {name!r}: give a plain name without folders.")
    return name


def python_words(python: str, words: Sequence[str]) -> list[str]:
    """Return a command with the words that `"python"` stands for.

    Args:
        python (`str`): An interpreter with its packages, `""` for the one in use without.
        words (`Sequence[str]`): The command.
    """
    if words[0] != "python":
        return list(words)
    # Isolated: neither the user's packages nor modules beside the script shadow the library's. Without `site` unless
    # packages are wanted: a start takes 15 ms, and 75 ms beside many packages.
    site = [] if python else ["-S"]
    return [python or os.path.realpath(sys.executable), "-I", *site, "-B", "-X", "utf8", *words[1:]]


def bwrap() -> str:
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
