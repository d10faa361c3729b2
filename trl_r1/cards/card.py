"""The model card of a stage: what was trained, on what, by which rewards, and what it measurably changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# `name` or `owner/name`, as the Hub allows them; the Hub refuses cards whose base model or data set is anything else.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


@dataclass(frozen=True)
class CardFacts:
    """What a card states.

    Args:
        name (`str`): The model's name, the card's title.
        stage (`str`): The stage that made it, such as `"R1-Zero"`.
        base_model (`str`): Hub id or path of the model the stage started from.
        dataset (`str`): Hub id, path or `nano:<task>`.
        rewards (`Sequence[str]`): Names of the rewards.
        summary (`Mapping[str, Any]`): Held-out figures after training ([`trl_r1.evaluation.Evaluation.summary`]).
        table (`str`): The before/after table, in Markdown.
        protocol (`str`): How the figures were sampled, in one sentence.
        settings (`Mapping[str, Any]`): The settings that matter, by name.
        versions (`Mapping[str, str]`): Versions of the libraries.
        steps (`int`): Optimizer steps taken.
        prompt (`str`): One prompt as the model sees it.
        prefill (`str`, defaults to `""`): What the template opens for the model.
        curves (`str`, *optional*): File name of the picture beside the card.
        peft (`bool`, defaults to `False`): Whether the repository holds an adapter.
        languages (`Sequence[str]`, defaults to none): ISO 639-1 codes.
        license (`str`, *optional*): Hub licence id; unset by default, since it follows from the base model.
        notes (`Sequence[str]`, defaults to none): Sentences for the section on limits.
        method (`str`, defaults to `"GRPO"`): The algorithm.
        measured_on (`str`, *optional*): Data set of the held-out questions, where it is another than `dataset`.
        training (`str`, defaults to `""`): Further sentences on how it was trained and on what data.
    """

    name: str
    stage: str
    base_model: str
    dataset: str
    rewards: Sequence[str]
    summary: Mapping[str, Any]
    table: str
    protocol: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    steps: int
    prompt: str
    prefill: str = ""
    curves: str | None = None
    peft: bool = False
    languages: Sequence[str] = ()
    license: str | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    method: str = "GRPO"
    measured_on: str | None = None
    training: str = ""


def model_card(facts: CardFacts) -> ModelCard:
    """Render the card of a trained model.

    Args:
        facts ([`CardFacts`]): What it states.

    Returns:
        [`~huggingface_hub.ModelCard`]: With Hub metadata: base model, data set, tags, and the held-out pass@1 and
        cons@k as evaluation results (unverified, in per cent).
    """
    data = ModelCardData(
        model_name=facts.name,
        base_model=facts.base_model if is_hub_id(facts.base_model) else None,
        datasets=[facts.dataset] if is_hub_id(facts.dataset) else None,
        language=list(facts.languages) or None,
        license=facts.license,
        library_name="peft" if facts.peft else "transformers",
        pipeline_tag="text-generation",
        tags=["trl-r1", "trl", facts.method.lower(), facts.stage.lower().replace(" ", "-"), "reasoning"],
        eval_results=_eval_results(facts),
    )
    return ModelCard.from_template(data, template_path=str(_TEMPLATE), facts=facts)


def write_card(facts: CardFacts, folder: str | Path) -> Path:
    """Write the card as `README.md`, replacing an older one in one step.

    Args:
        facts ([`CardFacts`]): What it states.
        folder (`str` or `Path`): The model's folder.

    Returns:
        `Path`: The card.
    """
    target = Path(folder) / "README.md"
    partial = target.with_name(".README.md.tmp")
    partial.write_text(str(model_card(facts)), encoding="utf-8")
    partial.replace(target)
    return target


def is_hub_id(name: str) -> bool:
    """Whether a name can be a repository on the Hub, and is not a path on this machine."""
    return bool(_HUB_ID.fullmatch(name)) and ".." not in name and "--" not in name and not Path(name).exists()


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    names = [name for name in facts.summary if name == "pass@1" or name.startswith("cons@")]
    measured_on = facts.measured_on or facts.dataset
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Reasoning",
            dataset_type=measured_on,
            dataset_name=f"{measured_on} (held out)",
            metric_type=name,
            metric_name=name,
            metric_value=round(100 * float(facts.summary[name]), 2),
        )
        for name in names
    ]
