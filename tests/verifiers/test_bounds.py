import gc
import threading
import time

import pytest
from sympy import Integer, Pow, factorial

from trl_r1.verifiers.bounds import DeadlineExceeded, deadline, digits, too_complex


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def overrun(results):
    start = time.thread_time()
    try:
        with deadline(0.2):
            try:
                spin(5)
            except Exception:  # what sympy does everywhere
                results.append("swallowed")
    except DeadlineExceeded:
        results.append(time.thread_time() - start)
    spin(0.6)  # none may strike afterwards
    results.append("alive")


def test_deadline_interrupts_on_the_main_thread_and_off_it():
    """Trap 7."""
    here, there = [], []
    overrun(here)
    thread = threading.Thread(target=overrun, args=(there,))
    thread.start()
    thread.join(30)
    for seconds, alive in (here, there):
        assert 0.15 < seconds < 2
        assert alive == "alive"


def swallow_the_first():
    with deadline(0.1):
        try:
            spin(5)
        except BaseException:
            spin(5)


def test_deadline_strikes_again_when_it_was_swallowed():
    start = time.thread_time()
    with pytest.raises(DeadlineExceeded):
        swallow_the_first()
    assert time.thread_time() - start < 3


def test_deadline_leaves_quick_work_alone():
    for _ in range(50):
        with deadline(5.0):
            spin(0.001)
    time.sleep(0.5)
    assert not [thread for thread in threading.enumerate() if thread.name == "trl_r1-deadline"]


def test_deadline_does_not_count_collections_of_garbage():
    """One may take longer than the deadline; then a right answer must not be wrong for it."""
    heap = [[] for _ in range(200_000)]
    with deadline(0.2):
        end = time.thread_time() + 0.8
        while time.thread_time() < end:
            gc.collect()
    with pytest.raises(DeadlineExceeded), deadline(0.2):
        spin(2)
    assert len(heap) == 200_000


def test_digits_are_bounded_before_evaluation():
    """Trap 8."""
    nine = Integer(9)
    assert digits(Pow(nine, Pow(nine, nine, evaluate=False), evaluate=False)) > 1e8
    assert digits(factorial(Integer(10) ** 9, evaluate=False)) == float("inf")
    assert digits(Pow(Integer(2), Integer(10), evaluate=False)) < 20
    assert digits([Integer(10) ** 50]) == pytest.approx(50, abs=1)


def test_too_complex():
    assert too_complex("1" * 2_001)
    assert too_complex("(" * 50)
    assert too_complex("\\binom{99999}{9}")
    assert too_complex("\\binom{10}{3} + \\frac{1}{2}") is None
