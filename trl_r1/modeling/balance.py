"""Equal work for every forward pass and every rank: the cost of a sequence, and how to part many into bins of equal cost."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from trl_r1.exceptions import ConfigurationError
from trl_r1.modeling.architecture import sizes_of


@dataclass(frozen=True)
class SequenceCost:
    r"""Floating-point operations of a forward pass over one sequence.

    $$ F = 2 N S + 2 L d_q S^2 + 2 V h C $$

    for a sequence of S tokens, C of them scored, causal attention counted once.

    Args:
        backbone (`int`): N, parameters of the layers (of the active experts), embeddings left out.
        layers (`int`): L.
        query_width (`int`): d_q, heads times their size.
        vocabulary (`int`): V.
        hidden (`int`): h.
    """

    backbone: int
    layers: int
    query_width: int
    vocabulary: int
    hidden: int

    @classmethod
    def by_tokens(cls) -> SequenceCost:
        """A cost that counts tokens alone."""
        return cls(backbone=1, layers=0, query_width=0, vocabulary=0, hidden=0)

    @classmethod
    def of(cls, config: PretrainedConfig) -> SequenceCost:
        """Read the sizes from a model's configuration.

        Args:
            config ([`~transformers.PretrainedConfig`]): Of any language model.

        Returns:
            [`SequenceCost`]: Its cost.

        Raises:
            [`ConfigurationError`]: It does not state the sizes of a transformer, or several for one.
        """
        with sizes_of(config):
            return cls._of(config)

    @classmethod
    def _of(cls, config: PretrainedConfig) -> SequenceCost:
        text = config.get_text_config()
        heads = text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        key_heads = getattr(text, "num_key_value_heads", None) or heads
        attention = text.hidden_size * size * (2 * heads + 2 * key_heads)
        experts = getattr(text, "num_experts_per_tok", None)
        inner = (experts * text.moe_intermediate_size) if experts and hasattr(text, "moe_intermediate_size") else None
        inner = inner or getattr(text, "intermediate_size", 4 * text.hidden_size)
        layer = attention + 3 * text.hidden_size * inner
        return cls(
            text.num_hidden_layers * layer, text.num_hidden_layers, heads * size, text.vocab_size, text.hidden_size
        )

    def __call__(self, tokens: int, scored: int) -> float:
        """Operations for a sequence of `tokens`, of which `scored` get a log-probability."""
        square = 2 * self.layers * self.query_width * tokens**2
        return 2.0 * self.backbone * tokens + square + 2.0 * self.vocabulary * self.hidden * scored


def karmarkar_karp(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Part costs into a given number of sets with nearly equal sums, by the largest differencing method.

    Args:
        costs (`list[float]`): One per item.
        parts (`int`): How many sets.

    Returns:
        `list[list[int]]`: Indices in each set, sets in order of falling cost. Some are empty when items are few.
    """
    # Each entry is a partial solution: its sets with their sums, largest first. Two solutions with the largest spreads
    # are merged, the heaviest set of one with the lightest of the other, until one is left.
    heap: list[tuple[float, int, list[tuple[float, list[int]]]]] = []
    for order, (index, cost) in enumerate(sorted(enumerate(costs), key=lambda pair: (-pair[1], pair[0]))):
        sets = [(cost, [index]), *((0.0, []) for _ in range(parts - 1))]
        heapq.heappush(heap, (-cost, order, sets))
    if not heap:
        return [[] for _ in range(parts)]
    order = len(costs)
    while len(heap) > 1:
        first, second = heapq.heappop(heap)[2], heapq.heappop(heap)[2]
        merged = [
            (one + other, [*items, *others])
            for (one, items), (other, others) in zip(first, reversed(second), strict=True)
        ]
        merged.sort(key=lambda part: -part[0])
        heapq.heappush(heap, (merged[-1][0] - merged[0][0], order, merged))
        order += 1
    return [sorted(items) for _, items in heap[0][2]]


def balanced_bins(tokens: Sequence[int], costs: Sequence[float], budget: int, ranks: int = 1) -> list[list[list[int]]]:
    """Part sequences into bins of equal cost within a token budget, the same number for every rank.

    Every rank computes the same answer from the same numbers, so nothing needs to be sent.

    Args:
        tokens (`list[int]`): Tokens of each sequence, over all ranks.
        costs (`list[float]`): Their costs.
        budget (`int`): Tokens in a bin, at most; a longer sequence gets a bin of its own.
        ranks (`int`, defaults to 1): How many ranks share the work.

    Returns:
        `list[list[list[int]]]`: Indices by rank and bin. Bins at the same place cost about the same on every rank, the
        largest come first (so that memory runs out at once, if at all), and some are empty when sequences are few.
    """
    if budget < 1:
        raise ConfigurationError(f"A token budget of {budget} holds nothing. Give at least the longest sequence.")
    short = [index for index, length in enumerate(tokens) if length <= budget]
    alone = [[index] for index, length in enumerate(tokens) if length > budget]
    needed = -(-sum(tokens[index] for index in short) // budget)
    count = max(needed, 1 if short else 0)
    while True:
        total = -(-max(count + len(alone), 1) // ranks) * ranks
        sets = karmarkar_karp([costs[index] for index in short], max(total - len(alone), 1))
        bins = [[short[index] for index in items] for items in sets]
        if all(sum(tokens[index] for index in items) <= budget for items in bins):
            break
        count = max(count + 1, total - len(alone) + 1)
    bins = sorted([*alone, *bins], key=lambda items: (-sum(costs[index] for index in items), items))
    bins += [[] for _ in range(-len(bins) % ranks)]
    shared: list[list[list[int]]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for begin in range(0, len(bins), ranks):  # one bin each, the heaviest to whom has least so far
        poorest = sorted(range(ranks), key=lambda rank: (loads[rank], rank))
        for rank, items in zip(poorest, bins[begin : begin + ranks], strict=True):
            shared[rank].append(items)
            loads[rank] += sum(costs[index] for index in items)
    return shared
