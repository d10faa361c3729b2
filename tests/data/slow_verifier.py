"""Filters that worker processes import by name."""

import time


def slow(row, completion):
    """Keep everything, after a while."""
    time.sleep(0.2)


def broken(row, completion):
    raise RuntimeError("a mistake in the filter")
