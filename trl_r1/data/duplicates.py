"""Near-duplicate removal by MinHash and locality-sensitive hashing (Broder 1997), in numpy, a band at a time.

R1's paper does not say how its 800k rows were freed of duplicates; shingle size, number of hashes and threshold are ours,
the usual ones for text. Memory: [`signatures`] holds one text's shingles at a time, [`find_duplicates`] 8 bytes a row and
band and one block of signatures, which may lie in a memory-mapped file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trl_r1.data.shingles import Hashes, Tokens, blocks, clean, mix, ngrams, numbers_key, tokenize
from trl_r1.exceptions import ConfigurationError

logger = logging.getLogger(__name__)

Signatures = NDArray[np.uint32]

# A pair at the threshold shares a band at least this often.
_RECALL = 0.9
# Values hashed at once, and signatures compared at once: what fits into the caches.
_SHINGLE_CHUNK, _PAIR_BLOCK = 512, 8192
# Rows of one bucket that are compared with the rest before it is given up (see `Duplicates.unfinished`).
_MAX_ROUNDS = 64


@dataclass(frozen=True)
class MinHash:
    """How texts become signatures, and when two are duplicates.

    Args:
        threshold (`float`, defaults to 0.8): Least Jaccard similarity of duplicates, in shares of their shingles.
        shingle (`int`, defaults to 5): Tokens of a shingle.
        hashes (`int`, defaults to 128):
            Values of a signature. The similarity is estimated with a standard error of sqrt(s (1 - s) / hashes): 0.035
            at 0.8.
        other_numbers (`bool`, defaults to `True`):
            Keep rows apart whose questions hold other numbers or operators, however alike their words are: they are
            other questions.

    Raises:
        [`ConfigurationError`]: For values outside their range.
    """

    threshold: float = 0.8
    shingle: int = 5
    hashes: int = 128
    other_numbers: bool = True

    def __post_init__(self) -> None:
        if not 0.3 <= self.threshold <= 1:
            raise ConfigurationError(
                f"threshold={self.threshold} of near-duplicates must lie in [0.3, 1]; below, most texts of one subject "
                "count as the same. 0.8 is usual."
            )
        if self.shingle < 1:
            raise ConfigurationError(f"shingle={self.shingle} must be at least 1 token; 5 is usual.")
        if self.hashes < 16 or self.hashes & (self.hashes - 1):
            raise ConfigurationError(f"hashes={self.hashes} must be a power of two, at least 16; 128 is usual.")

    @cached_property
    def rows_per_band(self) -> int:
        """Values of a band: the most with which a pair at the threshold still meets in a band often enough."""
        fitting = [rows for rows in _divisors(self.hashes) if self.meets(self.threshold, rows) >= _RECALL]
        return max(fitting, default=1)

    @property
    def bands(self) -> int:
        """Bands of a signature."""
        return self.hashes // self.rows_per_band

    def meets(self, similarity: float, rows: int | None = None) -> float:
        """Chance that a pair of this similarity shares a band, and is thus compared at all."""
        rows = rows or self.rows_per_band
        return float(1 - (1 - similarity**rows) ** (self.hashes // rows))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def signatures(tokens: Tokens, settings: MinHash) -> Signatures:
    """Return the MinHash signatures of some texts.

    Args:
        tokens ([`~trl_r1.data.shingles.Tokens`]): The texts' tokens.
        settings ([`MinHash`]): Shingle and number of hashes.

    Returns:
        `np.ndarray`: Shape `(texts, hashes)`. A text shorter than a shingle is one shingle.
    """
    factors, shifts = _permutations(settings.hashes)
    shingles, first = ngrams(tokens, settings.shingle)
    edges = np.searchsorted(first, tokens.bounds)
    found = np.empty((len(tokens.bounds) - 1, settings.hashes), np.uint32)
    for text in range(len(found)):
        values = shingles[edges[text] : edges[text + 1]]
        if not values.size:
            values = _short(tokens.hashes[tokens.bounds[text] : tokens.bounds[text + 1]])
        halves = (values >> np.uint64(32)).astype(np.uint32)
        least = np.full(settings.hashes, 0xFFFFFFFF, np.uint32)
        for start in range(0, len(halves), _SHINGLE_CHUNK):
            # Multiply-shift with wrap-around: a different order of the same shingles for every hash.
            permuted = halves[start : start + _SHINGLE_CHUNK, None] * factors + shifts
            np.minimum(least, permuted.min(axis=0), out=least)
        found[text] = least
    return found


def _short(hashes: Hashes) -> Hashes:
    """One shingle for a text shorter than a shingle."""
    weights = np.arange(1, len(hashes) + 1, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return mix(np.array([np.sum(hashes * weights)], np.uint64))


def _permutations(count: int) -> tuple[Signatures, Signatures]:
    generator = np.random.default_rng(20250120)  # any seed, as long as it stays: signatures are kept on disk
    drawn = generator.integers(0, 2**32, size=(2, count), dtype=np.uint32)
    return drawn[0] | np.uint32(1), drawn[1]


def text_signatures(texts: Iterable[str], settings: MinHash) -> Signatures:
    """[`signatures`] of texts as they come, a block at a time."""
    parts = [signatures(tokenize(block), settings) for block in blocks(map(clean, texts))]
    return np.concatenate(parts) if parts else np.empty((0, settings.hashes), np.uint32)


@dataclass(frozen=True)
class Duplicates:
    """What [`find_duplicates`] found.

    Args:
        original (`np.ndarray`): Shape `(rows,)`: the kept row that a row repeats, its own index where it is kept itself.
        unfinished (`int`): Rows of buckets that are so full that they were not compared with all others in one band.
    """

    original: NDArray[np.int64]
    unfinished: int = 0

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which rows are kept, shape `(rows,)`."""
        return self.original == np.arange(len(self.original))


def find_duplicates(
    found: Signatures, settings: MinHash, numbers: Hashes | None = None, eligible: NDArray[np.bool_] | None = None
) -> Duplicates:
    """Find the rows that nearly repeat an earlier one; of each set the first is kept.

    Args:
        found (`np.ndarray`): Signatures, shape `(rows, hashes)`; may be memory-mapped.
        settings ([`MinHash`]): When two rows are duplicates.
        numbers (`np.ndarray`, *optional*):
            Shape `(rows,)`: [`~trl_r1.data.shingles.numbers_key`] of the questions, for `other_numbers`.
        eligible (`np.ndarray`, *optional*): Shape `(rows,)`: rows that take part; the others stay as they are.

    Returns:
        [`Duplicates`]: The same for the same rows in the same order.
    """
    if numbers is None or not settings.other_numbers:
        numbers = np.zeros(len(found), np.uint64)
    original = np.arange(len(found), dtype=np.int64)
    unfinished = 0
    for band in range(settings.bands):
        kept = np.flatnonzero(original == np.arange(len(original)))
        if eligible is not None:
            kept = kept[eligible[kept]]
        keys = _band_keys(found, band, settings.rows_per_band, kept) ^ mix(numbers[kept])
        unfinished += _one_band(found, settings, numbers, original, kept, keys)
    if unfinished:
        logger.warning("%d rows share a band with over %d different rows and were not compared with all of them.",
                       unfinished, _MAX_ROUNDS)  # fmt: skip
    return Duplicates(_resolved(original), unfinished)


def _band_keys(found: Signatures, band: int, width: int, rows: NDArray[np.int64]) -> Hashes:
    """Hash one band of the rows, a block at a time."""
    keys = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), _PAIR_BLOCK):
        part = rows[start : start + _PAIR_BLOCK]
        values = found[part, band * width : (band + 1) * width].astype(np.uint64)
        key = np.full(len(part), band + 1, np.uint64)
        for column in range(width):
            key = mix(key ^ values[:, column])
        keys[start : start + _PAIR_BLOCK] = key
    return keys


def _one_band(
    found: Signatures,
    settings: MinHash,
    numbers: Hashes,
    original: NDArray[np.int64],
    rows: NDArray[np.int64],
    keys: Hashes,
) -> int:
    """Compare the rows of every bucket with its first, then the rest with the first of the rest, and so on, in place.

    Returns how many rows were left over.
    """
    order = np.lexsort((rows, keys))
    rows, keys = rows[order], keys[order]
    for _ in range(_MAX_ROUNDS):
        first = np.ones(len(keys), bool)
        first[1:] = keys[1:] != keys[:-1]
        if first.all():
            return 0
        leads = np.flatnonzero(first)
        others = np.flatnonzero(~first)
        lead_of = leads[np.cumsum(first)[others] - 1]
        same = _similar(found, rows[others], rows[lead_of], settings.threshold)
        same &= numbers[rows[others]] == numbers[rows[lead_of]]
        original[rows[others[same]]] = rows[lead_of[same]]
        left = others[~same]
        rows, keys = rows[left], keys[left]
    return len(rows)


def _similar(
    found: Signatures, left: NDArray[np.int64], right: NDArray[np.int64], threshold: float
) -> NDArray[np.bool_]:
    """Whether the estimated similarity of pairs reaches the threshold."""
    same = np.empty(len(left), bool)
    for start in range(0, len(left), _PAIR_BLOCK):
        part = slice(start, start + _PAIR_BLOCK)
        same[part] = (found[left[part]] == found[right[part]]).mean(axis=1) >= threshold
    return same


def _resolved(original: NDArray[np.int64]) -> NDArray[np.int64]:
    """Follow chains: what repeats a row that was dropped later repeats the row that this one repeats."""
    while not np.array_equal(original[original], original):
        original = original[original]
    return original


def deduplicate(
    texts: Sequence[str], questions: Sequence[str] | None = None, settings: MinHash | None = None
) -> Duplicates:
    """Find near-duplicates among texts that are in memory.

    Args:
        texts (`Sequence[str]`): What is compared, such as question and completion together.
        questions (`Sequence[str]`, *optional*): Where the numbers are compared exactly; the texts when not given.
        settings ([`MinHash`], *optional*): The defaults when not given.

    Returns:
        [`Duplicates`]

    Example:

    ```python
    >>> from trl_r1.data.duplicates import deduplicate
    >>> deduplicate(["How many apples are left?", "how many  apples are left", "How many pens?"]).kept.tolist()
    [True, False, True]
    ```
    """
    settings = settings or MinHash()
    numbers = np.array([numbers_key(question) for question in questions or texts], np.uint64)
    return find_duplicates(text_signatures(texts, settings), settings, numbers)
