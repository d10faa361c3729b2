"""A real process, killed with signal 9 at a moment that the files on disk show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence


def kill_when(ready: Callable[[], bool], command: Sequence[str], seconds: float = 240) -> None:
    """Start a Python command and kill it -9 once `ready()`; it must neither end nor need more than `seconds` before."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + seconds
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        late = not ready()
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, f"ended before it was killed:\n{said[-4000:]}"
    assert not late, f"not there after {seconds} s:\n{said[-4000:]}"
