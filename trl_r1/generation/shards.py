"""Samples on disk: small shards that appear whole or not at all, and a second start that goes on where the first stopped.

A folder holds `store.json`, the settings that made it, and `shard-<rank>-<number>.jsonl`. Completions are collected in memory
and written as a new shard by renaming, so a `kill -9` loses the completions that no shard holds yet (at most
`shard_samples`, or `shard_seconds` worth of them) and never leaves half a line (trap 37).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.base import Sample, Sampler, SampleRequest, SamplingSettings
from trl_r1.generation.requests import PartialRequest, process_place
from trl_r1.rows import Completion

SETTINGS_FILE = "store.json"
_SHARDS = "shard-*.jsonl"
_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class StoredSample(Sample):
    """A sample as it was stored.

    Args:
        facts (`dict`): What was stored beside it, such as its verdict.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)


def store_settings(sampler: Sampler, settings: SamplingSettings, **more: Any) -> dict[str, Any]:
    """Return what must not change between two starts of one store: model, template, sampling.

    Args:
        sampler ([`~trl_r1.generation.base.Sampler`]): Who writes.
        settings ([`~trl_r1.generation.base.SamplingSettings`]): How.
        more: Further settings of the caller, such as the data set.
    """
    template = asdict(sampler.template)
    if sampler.tokenizer is not None and sampler.template.name == "chat":
        text = str(getattr(sampler.tokenizer, "chat_template", None))
        template["chat_template"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    model = {"name": sampler.name, "fingerprint": getattr(sampler, "fingerprint", sampler.name)}
    found = {"model": model, "template": template, "sampling": asdict(settings), **more}
    return dict(json.loads(json.dumps(found, default=str)))


class SampleStore:
    """A folder of samples that survives a kill.

    Args:
        folder (`str` or `Path`): Where it lies; made if needed.
        settings (`Mapping[str, Any]`, *optional*):
            What made the samples (see [`store_settings`]), JSON. A store made with others is refused. `None` reads
            a store as it is.
        shard_samples (`int`, defaults to 256): Completions per shard, at most.
        shard_seconds (`float`, defaults to 20): Time after which a shard is written though it is not full.
        rank (`int`, *optional*): This process; by default that of the launch. Each writes shards of its own and
            reads all.

    Attributes:
        done (`dict[str, set[int]]`): Indices stored, by key of the request.
        closed (`set[str]`): Keys of which no more completions are wanted.

    Raises:
        [`ConfigurationError`]: The folder holds samples of other settings, or another process writes into it.
        [`DataError`]: A shard is damaged.

    Example:

    ```python
    store = SampleStore("samples", store_settings(sampler, settings))
    for sample in sampler.stream(store.remaining(requests), settings):
        store.add(sample, correct=check(sample))
    store.close()
    ```
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any] | None = None,
        *,
        shard_samples: int = 256,
        shard_seconds: float = 20.0,
        rank: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.done: dict[str, set[int]] = {}
        self.closed: set[str] = set()
        self._rank = process_place()[0] if rank is None else rank
        self._shard_samples, self._shard_seconds = shard_samples, shard_seconds
        self._lines: list[str] = []
        self._oldest = 0.0
        self._lock: IO[str] | None = None
        if settings is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._check(settings)
        elif not (self.folder / SETTINGS_FILE).is_file():
            raise DataError(f"{str(self.folder)!r} is no store of samples: it has no {SETTINGS_FILE}.")
        for record in self._records():
            if record.get("closed"):
                self.closed.add(record["key"])
            else:
                self.done.setdefault(record["key"], set()).add(record["index"])
        self._next = 1 + max((int(path.stem.split("-")[2]) for path in self._own_shards()), default=-1)

    def __enter__(self) -> SampleStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return sum(map(len, self.done.values()))

    # Writing

    def add(self, sample: Sample, **facts: Any) -> None:
        """Store a sample with facts about it (JSON). It is on disk when its shard is: see [`flush`].

        Raises:
            [`DataError`]: It is stored already.
        """
        if taken := {"key", "index", "completion", "closed"} & set(facts):
            raise DataError(f"Facts cannot be called {', '.join(sorted(taken))}: these name parts of the sample.")
        indices = self.done.setdefault(sample.key, set())
        if sample.index in indices:
            raise DataError(
                f"Completion {sample.index} of {sample.key!r} is stored already. Sample store.remaining(…)."
            )
        indices.add(sample.index)
        # Not `asdict`, which looks at every single token.
        completion = {name: value for name, value in vars(sample.completion).items() if value not in ("", ())}
        self._write({"key": sample.key, "index": sample.index, "completion": completion, **facts})

    def close_key(self, key: str) -> None:
        """Remember that no more completions of a request are wanted, though it has fewer than it asked for."""
        if key not in self.closed:
            self.closed.add(key)
            self._write({"key": key, "closed": True})

    def flush(self) -> None:
        """Write what is collected as a shard."""
        if not self._lines:
            return
        path = self.folder / f"shard-{self._rank:05d}-{self._next:06d}.jsonl"
        write_whole(path, "".join(self._lines))
        self._next += 1
        self._lines = []

    def close(self) -> None:
        """Write the last shard and let other processes write. Safe to call twice."""
        if self._lock is not None:
            self.flush()
            self._lock.close()
            self._lock = None

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._lock is None:
            raise ConfigurationError(
                f"The store {str(self.folder)!r} is closed, or was opened without settings to read."
            )
        if not self._lines:
            self._oldest = time.monotonic()
        self._lines.append(_encode(record) + "\n")
        if len(self._lines) >= self._shard_samples or time.monotonic() - self._oldest > self._shard_seconds:
            self.flush()

    # Reading

    def remaining(self, requests: Iterable[SampleRequest]) -> Iterator[SampleRequest]:
        """Yield what is still to be sampled of some requests: those without samples as they are, the others in part."""
        seen: set[str] = set()
        for request in requests:
            if request.key in seen:
                raise DataError(f"Two requests have the key {request.key!r}. Keys must be unique within a store.")
            seen.add(request.key)
            if request.key in self.closed:
                continue
            skip = frozenset(self.done.get(request.key, ())) | getattr(request, "skip", frozenset())
            if not skip:
                yield request
            elif not skip.issuperset(range(request.n)):
                yield PartialRequest(request.key, request.prompt, request.n, skip)

    def samples(self) -> Iterator[StoredSample]:
        """Yield what is on disk, of all processes, shard by shard; [`flush`] first to see one's own last ones."""
        for record in self._records():
            if record.pop("closed", False):
                continue
            key, index, completion = record.pop("key"), record.pop("index"), record.pop("completion")
            ids = tuple(completion.pop("token_ids", ()))
            yield StoredSample(key, index, Completion(**{"text": "", **completion}, token_ids=ids), record)

    def groups(self) -> dict[str, list[StoredSample]]:
        """Return all samples on disk by key, each group in sample order."""
        found: dict[str, list[StoredSample]] = {}
        for sample in self.samples():
            found.setdefault(sample.key, []).append(sample)
        return {key: sorted(group, key=lambda one: one.index) for key, group in found.items()}

    def _records(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self.folder.glob(_SHARDS)):
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        yield json.loads(line)
                    except ValueError:
                        raise DataError(
                            f"Line {number} of {str(path)!r} is damaged. Shards are written whole, so the disk or an editor "
                            "did this. Delete that shard: its completions are then sampled again."
                        ) from None

    def _own_shards(self) -> list[Path]:
        return list(self.folder.glob(f"shard-{self._rank:05d}-*.jsonl"))

    # Who may write

    def _take_lock(self) -> None:
        import fcntl

        self._lock = (self.folder / f".lock-{self._rank:05d}").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise ConfigurationError(
                f"Another process (rank {self._rank}) is writing into {str(self.folder)!r}. Wait for it, or give another folder."
            ) from None

    def _check(self, settings: Mapping[str, Any]) -> None:
        path = self.folder / SETTINGS_FILE
        given = json.loads(json.dumps(dict(settings), default=str))
        if not path.is_file():
            write_whole(path, json.dumps(given, indent=2, ensure_ascii=False) + "\n")
            return
        stored = json.loads(path.read_text(encoding="utf-8"))
        changed = list(_differences(stored, given))
        if changed:
            self.close()
            raise ConfigurationError(
                f"{str(self.folder)!r} holds samples made with other settings: {'; '.join(changed)}. Set them back to "
                "go on with it, or give another folder."
            )


def write_whole(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a file beside its place and rename it, so that it is there whole or not at all.

    Args:
        path (`Path`): The file.
        text (`str`): All of it.
        durable (`bool`, defaults to `True`):
            Wait for the disk, so that it is there after a power cut too. `False` for what can be lost then.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)


def _differences(stored: Any, given: Any, name: str = "") -> Iterator[str]:
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        for key in sorted({*stored, *given}):
            yield from _differences(stored.get(key), given.get(key), f"{name}.{key}" if name else key)
    elif stored != given:
        yield f"{name} was {stored!r} and is {given!r}"
