"""CPU time of short calls, on machines where other work and the collector of garbage come in between."""

import gc
import time
from collections.abc import Callable
from typing import Any


def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """Return what a function returns and the CPU seconds of this thread; no garbage is collected meanwhile."""
    gc.disable()
    try:
        start = time.thread_time()
        return function(*args, **kwargs), time.thread_time() - start
    finally:
        gc.enable()


def least_seconds(function: Callable[[], object], *, enough: float, tries: int = 3) -> float:
    """Return the CPU seconds of the quickest of a few calls; one below `enough` ends the tries.

    Nothing but the function itself makes every call slow. It must not remember its result.
    """
    least = float("inf")
    for _ in range(tries):
        least = min(least, timed(function)[1])
        if least < enough:
            break
    return least
