"""A running program's three streams: fed and drained until it ends or reaches a limit."""

from __future__ import annotations

import os
import selectors
import time

from trl_r1.sandbox.base import Program

_CHUNK = 65_536


def exchange(
    program: Program, source: int, outputs: tuple[int, int], ended: int, start: float
) -> tuple[bytes, bytes, str | None]:
    """Move bytes both ways until a program ends or a limit is reached.

    Args:
        program ([`Program`]): Its input and limits.
        source (`int`): Descriptor of its standard input. Closed here.
        outputs (`tuple[int, int]`): Descriptors of its standard output and error.
        ended (`int`): A descriptor that can be read from once the program has ended.
        start (`float`): When it started, by `time.monotonic`.

    Returns:
        `tuple[bytes, bytes, str | None]`: Standard output, standard error, and the limit that was reached.
    """
    limits, waiting = program.limits, memoryview(program.stdin)
    buffers = {descriptor: bytearray() for descriptor in outputs}
    stopped = None
    with selectors.DefaultSelector() as selector:
        for descriptor in outputs:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        os.set_blocking(source, False)
        selector.register(source, selectors.EVENT_WRITE)
        selector.register(ended, selectors.EVENT_READ)
        alive, fed = True, False
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
                        os.close(source)
                        fed = True
                elif not _read(key.fd, buffers[key.fd]):
                    selector.unregister(key.fd)
            if sum(map(len, buffers.values())) > limits.output:
                stopped = "output"
        if not fed:
            os.close(source)
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
