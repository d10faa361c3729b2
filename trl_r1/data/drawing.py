"""The rows of a mixture that were staged: drawn by weight, and written in a random order."""

from __future__ import annotations

import json
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trl_r1.data.staging import CODED, MixtureSource, write_whole_bytes
from trl_r1.exceptions import DataError

# Files that are open at once while rows are gathered.
_OPEN_FILES = 128


class StagedRows:
    """Where every staged row lies and what it is, in the order of the sources; the rows themselves stay on disk.

    Args:
        pieces (`Sequence[Path]`): Staged files, without suffix; the number of the source begins their name.
        source_names (`Sequence[str]`): The sources, in order.

    Attributes:
        source (`np.ndarray`): Shape `(rows,)`: number of the source.
        sizes (`np.ndarray`): Shape `(rows,)`: bytes.
        numbers (`np.ndarray`): Shape `(rows,)`: see [`~trl_r1.data.shingles.numbers_key`].
    """

    def __init__(self, pieces: Sequence[Path], source_names: Sequence[str]) -> None:
        self.pieces = list(pieces)
        self.source_names = list(source_names)
        self.facts = [json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) for path in self.pieces]
        self.names: dict[str, list[str]] = {
            column: sorted({name for facts in self.facts for name in facts["names"][column]}) for column in CODED
        }
        parts: dict[str, list[NDArray[Any]]] = {
            name: [] for name in ("piece", "source", "start", "size", "numbers", *CODED)
        }
        for number, (path, facts) in enumerate(zip(self.pieces, self.facts, strict=True)):
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                offsets = arrays["offsets"]
                count = len(offsets) - 1
                parts["piece"].append(np.full(count, number, np.int32))
                parts["source"].append(np.full(count, int(path.name.partition("-")[0]), np.int16))
                parts["start"].append(offsets[:-1])
                parts["size"].append(np.diff(offsets).astype(np.int32))
                parts["numbers"].append(arrays["numbers"])
                for column in CODED:
                    codes = np.array([self.names[column].index(name) for name in facts["names"][column]], np.uint16)
                    parts[column].append(codes[arrays[column]] if count else np.zeros(0, np.uint16))
        joined: dict[str, NDArray[Any]] = {
            name: np.concatenate(arrays) if arrays else np.zeros(0, np.int64) for name, arrays in parts.items()
        }
        self.source, self.sizes, self.numbers = joined["source"], joined["size"], joined["numbers"]
        self._piece, self._start = joined["piece"], joined["start"]
        self._codes = {column: joined[column] for column in CODED}
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def __len__(self) -> int:
        return len(self.source)

    def line(self, place: int) -> bytes:
        """Return a row as it was staged: one line of JSON."""
        file = self._file(int(self._piece[place]))
        return os.pread(file.fileno(), int(self.sizes[place]), int(self._start[place]))

    def row(self, place: int) -> dict[str, Any]:
        """Return a row's columns."""
        return dict(json.loads(self.line(place)))

    def close(self) -> None:
        """Close the files."""
        while self._open:
            self._open.popitem()[1].close()

    def _file(self, piece: int) -> BinaryIO:
        if piece in self._open:
            self._open.move_to_end(piece)
            return self._open[piece]
        if len(self._open) == _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        self._open[piece] = self.pieces[piece].with_suffix(".jsonl").open("rb")
        return self._open[piece]

    def counts(self, source: int) -> dict[str, Any]:
        """Return how many examples of a source were read, and how many were left out, by reason."""
        dropped: Counter[str] = Counter()
        read = 0
        for path, facts in zip(self.pieces, self.facts, strict=True):
            if int(path.name.partition("-")[0]) == source:
                read += facts["read"]
                dropped.update(facts["dropped"])
        return {"read": read, "dropped": dict(dropped)}

    def tally(self, column: str, places: NDArray[np.int64]) -> dict[str, int]:
        """Count some rows by domain, language or licence."""
        counts = np.bincount(self._codes[column][places], minlength=len(self.names[column])).tolist()
        return {name: count for name, count in zip(self.names[column], counts, strict=True) if count}

    def dropped_lines(self) -> Iterator[bytes]:
        """Yield the records of contaminated rows, one line each."""
        for path in self.pieces:
            with path.with_suffix(".dropped").open("rb") as lines:
                yield from lines

    def contaminated(self) -> dict[str, int]:
        """Count the contaminated rows by benchmark."""
        return dict(sorted(Counter(json.loads(line)["benchmark"] for line in self.dropped_lines()).items()))

    def join_signatures(self, path: Path, hashes: int) -> NDArray[np.uint32]:
        """Copy all signatures into one file and map it.

        Args:
            path (`Path`): The file.
            hashes (`int`): Values of a signature.

        Returns:
            `np.ndarray`: Shape `(rows, hashes)`, memory-mapped.
        """
        if not len(self):
            return np.zeros((0, hashes), np.uint32)
        with path.open("wb") as file:
            for piece in self.pieces:
                with np.load(piece.with_suffix(".npz"), allow_pickle=False) as arrays:
                    file.write(np.ascontiguousarray(arrays["signatures"]).tobytes())
        return np.memmap(path, np.uint32, "r", shape=(len(self), hashes))


def draw(
    rows: StagedRows, kept: NDArray[np.bool_], sources: Sequence[MixtureSource], total: int | None, seed: int
) -> NDArray[np.int64]:
    """Draw rows of every source by its weight, in a random order.

    Args:
        rows ([`StagedRows`]): All rows.
        kept (`np.ndarray`): Shape `(rows,)`: those that may be drawn.
        sources (`Sequence[MixtureSource]`): With their weights.
        total (`int`, *optional*): Rows of the mixture; as many as the weights allow when not given.
        seed (`int`): Of the draw.

    Returns:
        `np.ndarray`: Shape `(drawn,)`: places of the rows, in the order of the mixture.

    Raises:
        [`DataError`]: A source has fewer rows than its weight asks for, or none.
    """
    usable = [np.flatnonzero(kept & (rows.source == number)) for number in range(len(sources))]
    wanted = quotas([source.weight for source in sources], [len(places) for places in usable], total)
    short = [
        f"{source.name!r} has {len(places)} of {quota}"
        for source, places, quota in zip(sources, usable, wanted, strict=True)
        if len(places) < quota or not quota
    ]
    if short:
        most = sum(quotas([source.weight for source in sources], [len(places) for places in usable], None))
        raise DataError(
            f"Too few rows are left for the weights: {', '.join(short)}. Set total_rows to {most} or less (or leave it out), "
            "change the weights, or give more data; the work folder says what was left out and why."
        )
    drawn = []
    for number, (source, places, quota) in enumerate(zip(sources, usable, wanted, strict=True)):
        generator = np.random.default_rng([seed, number, *source.name.encode()])
        drawn.append(places[np.sort(generator.permutation(len(places))[:quota])])
    order = np.concatenate(drawn)
    return order[np.random.default_rng([seed, len(order)]).permutation(len(order))]


def quotas(weights: Sequence[float], usable: Sequence[int], total: int | None) -> list[int]:
    """Share rows out by weight, by largest remainder.

    Args:
        weights (`Sequence[float]`): Of the sources.
        usable (`Sequence[int]`): Rows of each.
        total (`int`, *optional*): Rows to share out; the most for which every source has enough when not given.

    Returns:
        `list[int]`: Rows of each source. With a total, they may be more than a source has.
    """
    whole = float(sum(weights))
    if total is None:
        most = int(min(count * whole / weight for count, weight in zip(usable, weights, strict=True)) + 1e-9)
        while True:  # rounding up a share may ask for a row too many
            shares = quotas(weights, usable, most)
            if all(share <= count for share, count in zip(shares, usable, strict=True)):
                return shares
            most -= 1
    exact = [total * weight / whole for weight in weights]
    shares = [int(share + 1e-9) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda place: (shares[place] - exact[place], place))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares


def write_shards(rows: StagedRows, order: NDArray[np.int64], folder: Path, shard_rows: int) -> list[Path]:
    """Write rows as JSONL shards, those that are there already left as they are.

    Args:
        rows ([`StagedRows`]): All rows.
        order (`np.ndarray`): Shape `(drawn,)`: places of the rows.
        folder (`Path`): Where to.
        shard_rows (`int`): Rows of a shard.

    Returns:
        `list[Path]`: The shards.
    """
    count = -(-len(order) // shard_rows)
    paths = [folder / f"train-{number:05d}-of-{count:05d}.jsonl" for number in range(count)]
    for half_written in folder.glob(".train-*.tmp"):
        half_written.unlink()
    try:
        for number, path in enumerate(paths):
            if not path.exists():
                part = order[number * shard_rows : (number + 1) * shard_rows].tolist()
                write_whole_bytes(path, (rows.line(place) for place in part))
    finally:
        rows.close()
    return paths
