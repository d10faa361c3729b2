"""The launcher's own process, inside bubblewrap. A script of its own: it imports nothing of this library.

It waits for programs and forks for each. What it holds was there before the first program came: commands, files, input
and output go through descriptors that it passes on unread, so that nothing of one program is in the memory of the next.

    launcher ── supervisor, one per program: makes the namespaces, kills them when the caller lets go
                └── process 1 of the program's own process namespace: mounts, waits
                    └── the program, without any privilege

Programs in Python run in this interpreter's copy, which has never run another program; others are executed.
"""

from __future__ import annotations

import array
import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import types
from typing import Any

NEW_NAMESPACES = 0x20000 | 0x8000000 | 0x20000000 | 0x40000000  # mount, ipc, pid, net
NEW_USER = 0x10000000
NO_SUID, NO_DEVICES, READ_ONLY, REMOUNT = 2, 4, 1, 32
PRIVATE = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE
NO_NEW_PRIVILEGES, DROP_BOUNDING, LAST_CAPABILITY = 38, 24, 40
CAPABILITIES_VERSION = 0x20080522
NOBODY = 65534
MOST_FILES = 253

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """Call a function of the C library that returns 0 when all is well."""
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{arguments}: {os.strerror(code)}")


def receive(control: socket.socket) -> list[int]:
    """Wait for one request: the descriptors for a program; none when the caller is gone."""
    descriptors = array.array("i")
    space = socket.CMSG_SPACE(MOST_FILES * descriptors.itemsize)
    _, ancillary, _, _ = control.recvmsg(16, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return list(descriptors)


def serve(control: socket.socket) -> list[str]:
    """Fork for every request. Returns in the process of a Python program only, with its words."""
    control.send(b"ready")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no supervisor is waited for
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which process 1 of a namespace does not hear
    gc.freeze()
    while True:
        descriptors = receive(control)
        if not descriptors:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            return supervise(descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def supervise(descriptors: list[int]) -> list[str]:
    """Make a program's namespaces, wait for its end, and kill it when the caller lets go of the leash."""
    status, leash, description, *_ = descriptors
    try:
        with open(description, "rb", closefd=False) as file:
            job = json.load(file)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        enter_namespaces()
        child = os.fork()
        if child == 0:
            return become_first(job, descriptors)
        for descriptor in descriptors[2:]:
            os.close(descriptor)
        poll = select.poll()
        poll.register(leash, select.POLLHUP)
        poll.register(os.pidfd_open(child), select.POLLIN)
        if any(descriptor == leash for descriptor, _ in poll.poll()):
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(status, str(code if code >= 0 else 128 - code).encode())
    except BaseException as error:
        os.write(status, f"{type(error).__name__}: {error}".encode()[:4000])
    os._exit(0)


def enter_namespaces() -> None:
    """Leave the launcher's namespaces. Who is not root gets a user namespace with it, and may make no further one."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        call("unshare", NEW_NAMESPACES)
        return
    call("unshare", NEW_NAMESPACES | NEW_USER)
    for name, text in (
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/uid_map", f"{NOBODY} {user} 1"),
        ("/proc/self/gid_map", f"{NOBODY} {group} 1"),
        ("/proc/sys/user/max_user_namespaces", "0"),
    ):
        with open(name, "w") as file:
            file.write(text)


def become_first(job: dict[str, Any], descriptors: list[int]) -> list[str]:
    """As process 1: mount what is the program's own, start it, and end with it. Returns in the program's process."""
    status, leash, _, *rest = descriptors
    try:
        os.close(leash)
        os.setsid()
        streams, contents = rest[:3], rest[3:]
        size = sum(os.fstat(content).st_size + 8192 for content in contents)
        call("mount", None, b"/", None, PRIVATE, None)
        mount("/tmp", f"size={job['limits']['files']},mode=1777")
        mount("/box", f"size={size + 65536},mode=0755")
        for hidden in ("/proc", "/dev/pts"):
            if os.path.isdir(hidden):
                mount(hidden, "size=4096,mode=0555", READ_ONLY)
        for name, content in zip(job["names"], contents, strict=True):
            copy(content, f"/box/{name}")
        call("mount", None, b"/box", None, REMOUNT | READ_ONLY | NO_SUID | NO_DEVICES, None)
        os.chdir("/box")
        child = os.fork()
        if child == 0:
            return become_program(job, descriptors)
        for stream in streams:
            os.close(stream)
        while True:
            ended, result = os.wait()
            if ended == child:
                code = os.waitstatus_to_exitcode(result)
                os._exit(code if code >= 0 else 128 - code)
    except BaseException as error:
        os.write(status, f"{type(error).__name__}: {error}".encode()[:4000])
        os._exit(1)


def mount(place: str, options: str, flags: int = 0) -> None:
    """Mount an empty file system in memory."""
    call("mount", b"tmpfs", place.encode(), b"tmpfs", NO_SUID | NO_DEVICES | flags, options.encode())


def copy(source: int, path: str) -> None:
    """Write a program's file, readable and executable."""
    with open(path, "wb") as file:
        offset, size = 0, os.fstat(source).st_size
        while offset < size:
            offset += os.sendfile(file.fileno(), source, offset, size - offset)
    os.chmod(path, 0o555)


def become_program(job: dict[str, Any], descriptors: list[int]) -> list[str]:
    """Take the program's streams and limits, give up every privilege; execute it, or return the words of a Python one."""
    status, _, _, *streams = descriptors[:6]
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        limits = job["limits"]
        first = 2 if os.geteuid() else 0  # the two processes above it count where they have its user id
        for name, value in (
            (resource.RLIMIT_CPU, int(limits["seconds"]) + 1),
            (resource.RLIMIT_AS, limits["memory"]),
            (resource.RLIMIT_FSIZE, limits["files"]),
            (resource.RLIMIT_NPROC, limits["processes"] + first),
            (resource.RLIMIT_NOFILE, limits["open_files"]),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(name, (value, value))
        give_up_privileges(job["user"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
    except BaseException as error:
        os.write(status, f"{type(error).__name__}: {error}".encode()[:4000])
        os._exit(1)
    words: list[str] = job["words"]
    os.closerange(3, max(descriptors) + 1)
    if job["python"]:
        return words
    try:
        os.execvp(words[0], words)
    except OSError as error:
        os.write(2, f"{words[0]}: {error.strerror}\n".encode())
    os._exit(127)


def give_up_privileges(user: int) -> None:
    """Become a user that nothing belongs to, without capabilities and with no way to any."""
    if os.geteuid() == 0:
        for capability in range(LAST_CAPABILITY + 1):
            libc.prctl(DROP_BOUNDING, capability, 0, 0, 0)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    call("capset", header, nothing)
    call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)


if __name__ == "__main__":
    words = serve(socket.socket(fileno=int(sys.argv[1])))
    # From here on this is the program: `python main.py …` or `python -c … …`.
    sys.argv = words
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        code = compile(words[1], "<string>", "exec", dont_inherit=True)
    else:
        module.__file__ = os.path.abspath(words[0])
        with open(words[0], "rb") as file:
            code = compile(file.read(), words[0], "exec", dont_inherit=True)
    exec(code, module.__dict__)
