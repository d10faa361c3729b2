r"""Keep the checking of one answer short, on any thread: a deadline and an estimate of how large a value would be.

Math-Verify's own timeout is SIGALRM, which raises off the main thread and which no signal can deliver while Python
multiplies huge integers. So, in this order: text that is too long or too deep is refused, then expressions whose value
would have too many digits (`9^{9^{9^{9}}}`) before anything evaluates them, and whatever remains runs under a deadline
that works by raising an exception in the thread itself.
"""

from __future__ import annotations

import ctypes
import gc
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# The paper gives no figures. The longest gold answer of MATH-500 has 105 characters and brackets 4 deep.
MAX_CHARACTERS = 2_000
MAX_DEPTH = 20
# Python itself refuses to print integers above 4,300 digits; nobody writes such an answer.
MAX_DIGITS = 10_000.0
# CPU seconds after which a deadline that was not heeded is sent again, and how often.
STRIKE_AGAIN, MAX_STRIKES = 0.05, 200

_OPEN, _CLOSE = "([{", ")]}"
_BINOMIAL = re.compile(r"\\[dt]?binom")
# The only binomials that may be parsed, because Math-Verify's parser evaluates them at once.
_SMALL_BINOMIAL = re.compile(r"\\[dt]?binom\s*(?:\{[a-z0-9+\- ]{1,8}\}|[a-z0-9])\s*(?:\{[a-z0-9+\- ]{1,8}\}|[a-z0-9])")


class DeadlineExceeded(BaseException):
    """Raised inside [`deadline`]. A `BaseException`, since sympy's `except Exception` would swallow another."""


def too_complex(text: str) -> str | None:
    """Say why a text must not be parsed, or `None` when it may. Linear in the (bounded) length.

    Args:
        text (`str`): LaTeX or plain text of an answer.
    """
    if len(text) > MAX_CHARACTERS:
        return f"longer than {MAX_CHARACTERS} characters"
    depth = 0
    for char in text:
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        if depth > MAX_DEPTH:
            return f"brackets deeper than {MAX_DEPTH}"
    if len(_BINOMIAL.findall(text)) != len(_SMALL_BINOMIAL.findall(text)) or (
        _BINOMIAL.search(text) and re.search(r"[0-9]{5}", text)
    ):
        return "a binomial coefficient of large or nested numbers"
    return None


def digits(expression: Any) -> float:
    """Bound the decimal digits of any number met when an unevaluated sympy expression is evaluated.

    Args:
        expression (`sympy.Basic`, matrix, string or container): As Math-Verify's `parse` returns it, unevaluated.

    Returns:
        `float`: An upper estimate, `math.inf` when there is no bound. Symbols count as one digit.
    """
    import sympy

    if isinstance(expression, list | tuple):
        return max((digits(part) for part in expression), default=1.0)
    if isinstance(expression, sympy.MatrixBase):
        return max((digits(part) for part in expression.flat()), default=1.0)
    if not isinstance(expression, sympy.Basic):
        return 1.0
    if isinstance(expression, sympy.Rational):
        return max(_log10(int(expression.p)), _log10(int(expression.q)))
    if isinstance(expression, sympy.Pow):
        base, exponent = expression.args
        return max(digits(base) * max(_value(exponent), 1.0), digits(exponent))
    inner = [digits(argument) for argument in expression.args]
    if isinstance(expression, sympy.factorial | sympy.gamma | sympy.factorial2 | sympy.subfactorial):
        value = _value(expression.args[0])
        return max(value * math.log10(max(value, 2.0)), 1.0) if value <= MAX_DIGITS else math.inf
    if isinstance(expression, sympy.Mul):
        return math.fsum(inner)
    return max(inner, default=1.0) + math.log10(max(len(inner), 1))


def _log10(number: int) -> float:
    """Digits of an integer; by bits, since turning a huge one into text is the slow part."""
    return max(number.bit_length() * math.log10(2), 1.0)


def _value(expression: Any) -> float:
    """Bound the absolute value of an exponent; symbols count as 1, what is too large as infinity."""
    import sympy

    if isinstance(expression, sympy.Number | sympy.NumberSymbol):
        try:
            return abs(float(expression))
        except (OverflowError, ValueError):
            return math.inf
    if isinstance(expression, sympy.Symbol):
        return 1.0
    size = digits(expression)
    return 10.0**size if size < 5 else math.inf


def _cpu_clock(thread_id: int) -> Callable[[], float]:
    """Return a function that reads a thread's own CPU seconds, or wall seconds where the system cannot tell."""
    try:
        clock = time.pthread_getcpuclockid(thread_id)
        return lambda: time.clock_gettime(clock)
    except (AttributeError, OSError):
        return time.monotonic


# CPU seconds of each thread in full collections of garbage, and at which second the one under way began.
_collected: dict[int, float] = {}
_collecting: dict[int, float] = {}


def _note_collection(phase: str, info: dict[str, int]) -> None:
    """Time the full collections, for `gc.callbacks`: Python runs it in the thread that collects."""
    if info["generation"] < 2:
        return
    thread_id, now = threading.get_ident(), time.thread_time()
    if phase == "start":
        _collecting[thread_id] = now
    elif thread_id in _collecting:
        _collected[thread_id] = _collected.get(thread_id, 0.0) + now - _collecting.pop(thread_id)


def _own_clock(clock: Callable[[], float], thread_id: int) -> Callable[[], float]:
    """Take the collections of garbage off a thread's clock; called by that thread, outside of any collection."""
    if _note_collection not in gc.callbacks:
        gc.callbacks.append(_note_collection)
    # Left behind by an earlier deadline that struck inside of the callback.
    _collecting.pop(thread_id, None)

    def own() -> float:
        now = clock()
        return now - _collected.get(thread_id, 0.0) - (now - _collecting.get(thread_id, now))

    return own


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise [`DeadlineExceeded`] in this thread once it has used `seconds` of CPU time, on any thread.

    CPU time rather than wall time, so that a busy machine does not turn right answers into wrong ones, and without full
    collections of garbage, each of which takes longer than a deadline where torch, TRL and vLLM are loaded (0.6 s).
    Pure Python only: a single call into C is not interrupted (see [`digits`] for why there is none that is long).

    Args:
        seconds (`float`): CPU seconds of the calling thread.
    """
    thread_id = threading.get_ident()
    clock = _cpu_clock(thread_id)
    own = _own_clock(clock, thread_id)
    started = own()
    finished, lock, fired = threading.Event(), threading.Lock(), threading.Event()

    def interrupt(exception: type[BaseException] | None) -> None:
        target = ctypes.py_object(exception) if exception else None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), target)

    def watch() -> None:
        # Again and again, since a bare `except`, or Python itself inside of a callback, may have swallowed an earlier
        # one; not for ever, in case one struck before this block could say that it is finished.
        wait, end, strikes = seconds, started + seconds, 0
        while strikes < MAX_STRIKES and not finished.wait(wait):
            left = end - (clock if strikes else own)()
            if left > 0:
                wait = max(left, 0.01)
                continue
            with lock:
                if finished.is_set():
                    return
                fired.set()
                interrupt(DeadlineExceeded)
            # By the same clock: what is being left must have had the time to clean up behind it.
            strikes, wait, end = strikes + 1, STRIKE_AGAIN, clock() + STRIKE_AGAIN

    watcher = threading.Thread(target=watch, name="trl_r1-deadline", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        try:
            with lock:
                finished.set()
                if fired.is_set():
                    # One that was sent but not yet delivered must not strike outside of this block.
                    interrupt(None)
        finally:
            finished.set()
        if fired.is_set():
            _restore_sympy()


def _restore_sympy() -> None:
    """Undo what sympy may have left switched off when it was interrupted inside one of its context managers."""
    from sympy.core.parameters import global_parameters

    global_parameters.evaluate = True
