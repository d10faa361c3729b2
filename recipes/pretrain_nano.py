"""Rebuild the nano base from a seed: its tokenizer, its checkpoint, its measured behaviour.

    python recipes/pretrain_nano.py --output_dir runs/nano_base                    # the default base
    python recipes/pretrain_nano.py --output_dir runs/nano_flat --reflect 0        # a world without reflection
    python recipes/pretrain_nano.py --output_dir runs/nano_small --size small      # the student of distillation
    python recipes/pretrain_nano.py --measure nano --report recipes/results/nano_base.json

Every dial of `NanoWorld` and every field of `PretrainArguments` is an option. About three minutes on a GPU, ninety on two cores.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

from trl import TrlParser

from trl_r1.nano import VARIANTS, NanoWorld, checkpoint_path
from trl_r1.pipeline.pretrain_nano import PretrainArguments, measure, save, train


@dataclass
class RecipeArguments:
    """What to do."""

    output_dir: str | None = field(default=None, metadata={"help": "Pretrain, and save the checkpoint here."})
    measure: str | None = field(
        default=None, metadata={"help": "Measure this folder, or a shipped variant: nano, no_reflection."}
    )
    report: str | None = field(default=None, metadata={"help": "Write the measured figures to this JSON file."})
    world_seed: int = field(default=0, metadata={"help": "Seed of the world's documents and tokenizer."})
    questions: int = field(default=256, metadata={"help": "Held-out questions to measure on."})
    samples: int = field(default=64, metadata={"help": "Samples per question."})


@dataclass
class WorldArguments:
    """The dials of `NanoWorld`."""

    reflect: float = NanoWorld.reflect
    terse: float = NanoWorld.terse
    mixing: float = NanoWorld.mixing
    false_checks: float = NanoWorld.false_checks
    give_up: float = NanoWorld.give_up
    patience: float = NanoWorld.patience
    longest: int = NanoWorld.longest
    slips: float = NanoWorld.slips
    curt: float = NanoWorld.curt
    malformed: float = NanoWorld.malformed
    scan: float = NanoWorld.scan
    chinese: float = NanoWorld.chinese


def main(recipe: RecipeArguments, world: WorldArguments, arguments: PretrainArguments) -> None:
    """Pretrain, measure, or both."""
    if recipe.output_dir is None and recipe.measure is None:
        raise SystemExit("Nothing to do: give --output_dir to pretrain, or --measure to measure a checkpoint.")
    folder = recipe.measure
    if recipe.output_dir is not None:
        model, tokenizer, _ = train(NanoWorld(seed=recipe.world_seed, **vars(world)), arguments)
        folder = str(save(model, tokenizer, recipe.output_dir))
    if recipe.measure is not None or recipe.report is not None:
        variant = "default" if folder == "nano" else folder
        found = measure(
            checkpoint_path(variant) if variant in VARIANTS else Path(str(folder)), recipe.questions, recipe.samples
        )
        text = json.dumps(found, indent=2, ensure_ascii=False)
        print(text)
        if recipe.report is not None:
            Path(recipe.report).parent.mkdir(parents=True, exist_ok=True)
            Path(recipe.report).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = TrlParser((RecipeArguments, WorldArguments, PretrainArguments))  # type: ignore[arg-type]
    main(*parser.parse_args_and_config())
