"""The card of a data set: what went in under which licence, what was left out and why, with metadata the Hub can read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from trl_r1.cards.card import is_hub_id

_TEMPLATE = Path(__file__).with_name("dataset_card.md.jinja")
# Licence ids that the Hub's metadata knows; anything else is `other` there, and named in the text.
HUB_LICENSES = frozenset(
    ["afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "artistic-2.0", "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "h-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "open-mdw", "openrail", "openrail++", "osl-3.0", "other", "pddl", "postgresql", "unknown", "unlicense", "wtfpl", "zlib"]
)  # fmt: skip
UNKNOWN, OTHER = "unknown", "other"
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
_LANGUAGE = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True)
class DatasetFacts:
    """What a data-set card states.

    Args:
        name (`str`): The card's title.
        description (`str`): What it is, in a sentence or two.
        rows (`int`): Rows in it.
        sources (`Sequence[Mapping]`): `name`, `traces`, `license` (list), and how many rows were `read`, `usable` and drawn
            (`rows`), as [`trl_r1.data.mixture.mix`] reports them.
        domains (`Mapping[str, int]`): Rows by domain.
        languages (`Mapping[str, int]`): Rows by language.
        licenses (`Mapping[str, int]`): Rows by licence.
        dropped (`Mapping[str, int]`): Rows left out, by reason.
        filters (`Sequence[str]`): One sentence for each filter: what it did with which setting.
        benchmarks (`Sequence[Mapping]`): `name`, `rows`, and `contaminated`: rows left out because of it.
        template (`str`, *optional*): One prompt as a model is to see it.
        conversational (`bool`, defaults to `False`): Whether prompts are messages.
        mean_bytes (`int`, *optional*): Mean size of a row, in bytes.
        data_files (`str`, *optional*): Pattern of the data files, defaults to `"data/train-*.jsonl"`.
        repository (`str`, *optional*): Hub id it will have.
        tags (`Sequence[str]`): Further tags.
        notes (`Sequence[str]`): Sentences for the section on limits.
        versions (`Mapping[str, str]`): Versions of the libraries.
    """

    name: str
    description: str
    rows: int
    sources: Sequence[Mapping[str, Any]]
    domains: Mapping[str, int]
    languages: Mapping[str, int]
    licenses: Mapping[str, int]
    dropped: Mapping[str, int] = field(default_factory=dict)
    filters: Sequence[str] = ()
    benchmarks: Sequence[Mapping[str, Any]] = ()
    template: str | None = None
    conversational: bool = False
    mean_bytes: int | None = None
    data_files: str = "data/train-*.jsonl"
    repository: str | None = None
    tags: Sequence[str] = ()
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def dataset_card(facts: DatasetFacts) -> DatasetCard:
    """Render the card of a data set.

    Args:
        facts ([`DatasetFacts`]): What it states.

    Returns:
        [`~huggingface_hub.DatasetCard`]: With Hub metadata: licences, languages, size, sources, and where the data lies.
    """
    languages = sorted(code for code in facts.languages if _LANGUAGE.fullmatch(code) and code != UNKNOWN)
    named = {str(one["traces"]) for one in facts.sources}
    # A relative path may look like a Hub id.
    hub_sources = sorted(name for name in named if is_hub_id(name) and Path(name).suffix not in (".jsonl", ".parquet"))
    data = DatasetCardData(
        pretty_name=facts.name,
        license=_licenses(facts.licenses),
        language=languages or None,
        size_categories=[size_category(facts.rows)],
        task_categories=["text-generation"],
        source_datasets=hub_sources or None,
        tags=["trl-r1", "trl", "reasoning", "sft", *facts.tags],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": facts.data_files}]}],
    )
    return DatasetCard.from_template(data, template_path=str(_TEMPLATE), facts=facts)


def write_dataset_card(facts: DatasetFacts, folder: str | Path) -> Path:
    """Write the card as `README.md`, replacing an older one in one step.

    Args:
        facts ([`DatasetFacts`]): What it states.
        folder (`str` or `Path`): The data set's folder.

    Returns:
        `Path`: The card.
    """
    target = Path(folder) / "README.md"
    partial = target.with_name(".README.md.tmp")
    partial.write_text(str(dataset_card(facts)), encoding="utf-8")
    partial.replace(target)
    return target


def hub_license(name: str) -> str:
    """Return the Hub's id of a licence: `"CC BY 4.0"` is `"cc-by-4.0"`; `"other"` for one that the Hub does not know."""
    folded = re.sub(r"[\s_]+", "-", name.strip().casefold()).removesuffix("-license")
    folded = {"apache": "apache-2.0", "apache2": "apache-2.0", "apache-2": "apache-2.0", "cc0": "cc0-1.0"}.get(
        folded, folded
    )
    return folded if folded in HUB_LICENSES else OTHER


def size_category(rows: int) -> str:
    """Return the Hub's name for a number of rows, such as `"100K<n<1M"`."""
    return next((name for limit, name in _SIZES if rows < limit), "10M<n<100M")


def _licenses(licenses: Mapping[str, int]) -> str | list[str]:
    """One id, or all of them where there are several."""
    ids = sorted({hub_license(name) for name, count in licenses.items() if count}) or [UNKNOWN]
    return ids[0] if len(ids) == 1 else ids
