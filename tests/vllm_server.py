"""vLLM's OpenAI-compatible server as users start it: another process, on a port of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Opened = TypeVar("Opened")


@contextmanager
def vllm_server(
    folder: Path, model: str | Path, *options: str, ready: Callable[[str], Opened], not_yet: type[Exception]
) -> Iterator[tuple[str, Opened]]:
    """Serve a model; yield the address and what `ready(address)` returned once it no longer raised `not_yet`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The module and not `vllm serve`, which asks for a distribution named vllm: the CPU build has another name.
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager", *options),
    ]
    environment = {"CUDA_VISIBLE_DEVICES": "", **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = folder / "vllm.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        url, end = f"http://127.0.0.1:{port}/v1", time.monotonic() + 300
        while True:
            try:
                opened = ready(url)
                break
            except not_yet:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(1)
        yield url, opened
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
