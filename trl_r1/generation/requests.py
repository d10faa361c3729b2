"""What all samplers do with a request: which of its completions are wanted, with which seeds, and by which process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice

from trl_r1.exceptions import ConfigurationError
from trl_r1.generation.base import SampleRequest


@dataclass(frozen=True)
class PartialRequest(SampleRequest):
    """A request of which some completions exist already: what [`SampleStore.remaining`] asks after a kill.

    Args:
        skip (`frozenset[int]`): Indices, out of `range(n)`, that are not wanted any more.
    """

    skip: frozenset[int] = frozenset()


def wanted_indices(request: SampleRequest) -> list[int]:
    """Return the indices of the completions that a request still wants.

    Raises:
        [`ConfigurationError`]: For `n` below 1.
    """
    if request.n < 1:
        raise ConfigurationError(f"Request {request.key!r} asks for n={request.n} completions. It must be at least 1.")
    skip: frozenset[int] = getattr(request, "skip", frozenset())
    return [index for index in range(request.n) if index not in skip]


def sample_seed(seed: int | None, key: str, index: int) -> int | None:
    """Return one completion's own seed, which does not depend on what else is sampled or in which order.

    Args:
        seed (`int`, *optional*): The stream's; without one there is none.
        key (`str`): Of the request.
        index (`int`): Of the completion.

    Returns:
        `int` or `None`: Below 2^31, which every backend takes.
    """
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}\n{key}\n{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**31


def process_place() -> tuple[int, int]:
    """Return this process' rank and the number of processes of the launch (accelerate, torchrun); `(0, 1)` without."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def process_share(
    requests: Iterable[SampleRequest], rank: int | None = None, world_size: int | None = None
) -> Iterator[SampleRequest]:
    """Yield the requests of this process: every `world_size`-th. Each process samples its own, with its own engine.

    Args:
        requests (`Iterable[SampleRequest]`): All requests, the same in every process.
        rank (`int`, *optional*): This process; by default that of the launch.
        world_size (`int`, *optional*): Number of processes; by default that of the launch.
    """
    own_rank, own_size = process_place()
    rank, world_size = own_rank if rank is None else rank, own_size if world_size is None else world_size
    return islice(iter(requests), rank, None, world_size)


def wait_for_everyone() -> None:
    """Meet the other processes of the launch, if there are any; call it at the start (they join then) and at the end.

    Shares of requests take unequal times, so who is done waits for the last one as long as it takes.
    """
    if process_place()[1] == 1:
        return
    import torch
    from accelerate import PartialState

    # Without `cpu`, accelerate takes a launch on a machine without GPUs for a single process.
    PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30)).wait_for_everyone()
