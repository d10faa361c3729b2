"""General rows on disk: shards that appear whole or not at all, and a second start that builds what is missing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from trl_r1.data.general import GeneralBuilder, GeneralReport, GeneralTask
from trl_r1.data.staging import write_whole_bytes
from trl_r1.exceptions import ConfigurationError


def write_general(
    builder: GeneralBuilder, tasks: Iterable[GeneralTask], folder: str | Path, shard_tasks: int = 1000
) -> dict[str, Any]:
    """Build general rows into `general-00000.jsonl` and so on; a kill loses the shard in hand at most.

    Args:
        builder ([`~trl_r1.data.general.GeneralBuilder`]): Who builds them.
        tasks (`Iterable[GeneralTask]`): The same ones, in the same order, at every start.
        folder (`str` or `Path`): Where to; a source of a mixture reads it as it is.
        shard_tasks (`int`, defaults to 1000): Tasks of a shard.

    Returns:
        `dict`: Counts over all shards, see [`~trl_r1.data.general.GeneralReport`].

    Raises:
        [`ConfigurationError`]: The folder holds rows of other tasks or settings.
    """
    target, total = Path(folder), GeneralReport()
    left = iter(tasks)
    number = 0
    while part := list(islice(left, shard_tasks)):
        shard = target / f"general-{number:05d}.jsonl"
        facts = shard.with_suffix(".report.json")
        made_of = _fingerprint(builder, part)
        if not shard.exists():
            builder.report = GeneralReport()
            lines = [(json.dumps(row, ensure_ascii=False) + "\n").encode() for row in builder.build(part)]
            # The counts first: the shard is what says that it is done.
            counts = {"made_of": made_of, "report": builder.report.asdict()}
            write_whole_bytes(facts, [json.dumps(counts, ensure_ascii=False).encode()])
            write_whole_bytes(shard, lines)
        found = json.loads(facts.read_text(encoding="utf-8"))
        if found["made_of"] != made_of:
            raise ConfigurationError(
                f"{shard} was made of other prompts or with other settings. Give another folder, or remove this one."
            )
        for name, counts in found["report"].items():
            getattr(total, name).update(Counter(counts))
        number += 1
    builder.report = total
    return total.asdict()


def _fingerprint(builder: GeneralBuilder, tasks: list[GeneralTask]) -> str:
    model = None if builder.sampler is None else builder.sampler.name
    facts = [model, asdict(builder.settings), asdict(builder.config), [asdict(task) for task in tasks]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
