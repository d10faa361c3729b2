"""What is changed for a moment around a call to vLLM or TRL, and put back whatever happens."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch


@contextmanager
def replaced(module: Any, **values: Any) -> Iterator[None]:
    """Replace globals of a module, and put them back whatever happens."""
    absent = object()
    before = {name: getattr(module, name, absent) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            delattr(module, name) if value is absent else setattr(module, name, value)


@contextmanager
def environment_restored() -> Iterator[None]:
    """Take back what TRL sets for vLLM's start: programs started later must not believe they were launched as ranks."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def stdout_with_descriptor() -> Iterator[None]:
    """In a notebook, lend vLLM the process's own stdout: it asks for a file descriptor, which a cell's output has not."""
    try:
        sys.stdout.fileno()
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        with redirect_stdout(sys.__stdout__):
            yield
    else:
        yield


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Sample from generators of their own. A seed per request would fail on a CPU, where they cannot be wound back."""
    if seed is None:
        yield
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    numpy_state = np.random.get_state()  # vLLM's newer model runner draws each request's seed from numpy
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(numpy_state)


@contextmanager
def unwarned() -> Iterator[None]:
    """Silence vLLM's warning that a tied LM head was not given a weight of its own."""

    def given_later(record: logging.LogRecord) -> bool:
        return "Failed to load weights" not in record.msg

    layerwise = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
    layerwise.addFilter(given_later)
    try:
        yield
    finally:
        layerwise.removeFilter(given_later)


@contextmanager
def collector_looks_at_new_objects_only() -> Iterator[None]:
    """Keep Python's garbage collector from walking all objects of the process during every few hundred decoding steps."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
