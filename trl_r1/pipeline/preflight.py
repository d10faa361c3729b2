"""Everything that can be known before a weight is loaded: rows, template, rewards — and every error they can give."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trl_r1.data.question_mixture import load_mixture
from trl_r1.evaluation import check_k
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.checkpoint import Checkpoint
from trl_r1.generation.options import check_options
from trl_r1.modeling.memory import check_budget
from trl_r1.nano import checkpoint_path
from trl_r1.pipeline.arguments import RLArguments
from trl_r1.pipeline.heldout import HeldOut
from trl_r1.prompts import PromptTemplate, select_template
from trl_r1.rewards import RewardFunction, RewardRouter, build_rewards, check_template
from trl_r1.rows import Row
from trl_r1.verifiers import verifier_name

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig

    from trl_r1.trainers import R1GRPOConfig

logger = logging.getLogger(__name__)

# How many of the prompts with most characters are tokenised to find the one with most tokens.
_LONGEST_PROMPTS = 64
# Rows of each domain and verifier whose gold completion is scored before training.
_CHECKED_ROWS = 8


@dataclass(frozen=True)
class Prepared:
    """What a run is made of, weights apart.

    Args:
        model_path (`str`): Hub id or folder of the starting checkpoint.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, with the chat template that is used.
        template ([`PromptTemplate`]): How questions are rendered.
        rewards (`list[Callable]`): Reward functions, in the order asked for.
        train (`list[Row]`): Questions to train on.
        train_dataset (`datasets.Dataset`): The same, as the trainer takes them.
        held_out ([`HeldOut`]): Questions kept out, and how they are sampled.
    """

    model_path: str
    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    rewards: list[RewardFunction]
    train: list[Row]
    train_dataset: Dataset
    held_out: HeldOut


def prepare(script_args: RLArguments, training_args: R1GRPOConfig, model_args: ModelConfig) -> Prepared:
    """Load rows and tokenizer, choose the template, and check all of it together.

    Args:
        script_args ([`RLArguments`]): Data, rewards, template, evaluation.
        training_args ([`R1GRPOConfig`]): Batch sizes and generation.
        model_args ([`~trl.ModelConfig`]): The starting checkpoint.

    Returns:
        [`Prepared`]: Ready for a trainer.

    Raises:
        [`ConfigurationError`]: Unknown names, settings that exclude each other, a template under which a right answer
            does not score the maximum.
        [`DataError`]: Missing columns, gold answers that cannot be read, too few questions.
        [`MissingExtraError`]: vLLM asked for and not installed.
    """
    check_k(script_args.heldout_samples, script_args.heldout_cons_k, script_args.heldout_pass_k)
    rewards = _rewards(script_args, training_args)
    model_path = resolve_model(model_args.model_name_or_path)
    check_model(model_path, _revision(model_path, model_args))
    if not script_args.preview:
        check_engine(model_path, training_args, model_args)
    # One process fills the caches first, the others read them.
    with training_args.main_process_first(desc="loading rows and tokenizer"):
        splits = load_mixture(script_args.sources)
        tokenizer = AutoTokenizer.from_pretrained(
            model_path, revision=_revision(model_path, model_args), padding_side="left"
        )
        template = select_template(
            tokenizer, script_args.template, form=script_args.answer_form, prefill_think=script_args.prefill_think
        )
        train_dataset = template.apply(splits["train"])
    train, test = ([Row.from_columns(columns) for columns in splits[name]] for name in ("train", "test"))
    _check_amounts(train, test, training_args)
    _check_domains(train, test, rewards)
    check_template(template, some_of_each(train, _CHECKED_ROWS), rewards, tokenizer)
    if isinstance(training_args.max_tokens_per_microbatch, int):
        check_budget(training_args.max_tokens_per_microbatch, _longest_prompt(train_dataset["prompt"], tokenizer))
    return Prepared(
        model_path, tokenizer, template, rewards, train, train_dataset, HeldOut.of(script_args, template, test)
    )


def _rewards(script_args: RLArguments, training_args: R1GRPOConfig) -> list[RewardFunction]:
    rewards = build_rewards(
        script_args.rewards or [],
        settings=script_args.reward_settings,  # type: ignore[arg-type]
        domains=script_args.domain_rewards,  # type: ignore[arg-type]
        max_length=training_args.longest_completion,
    )
    weights = cast("list[float] | None", training_args.reward_weights)
    if weights is not None and len(weights) != len(rewards):
        names = ", ".join(getattr(reward, "__name__", "?") for reward in rewards)
        raise ConfigurationError(
            f"reward_weights has {len(weights)} weights for {len(rewards)} rewards ({names}). Give one each, in this order."
        )
    return rewards


def some_of_each(rows: Sequence[Row], n: int) -> list[Row]:
    """The first rows of every domain and verifier, in their order.

    Args:
        rows (`Sequence[Row]`): Rows.
        n (`int`): How many of each.

    Returns:
        `list[Row]`
    """
    seen: Counter[tuple[str, str | None]] = Counter()
    kept = []
    for row in rows:
        kind = (row.domain, row.verifier)
        seen[kind] += 1
        if seen[kind] <= n:
            kept.append(row)
    return kept


def _check_domains(train: Sequence[Row], test: Sequence[Row], rewards: Sequence[RewardFunction]) -> None:
    """Refuse domains without a route, and say which rows no reward can score."""
    for reward in rewards:
        if isinstance(reward, RewardRouter):
            reward.check_domains(sorted({row.domain for row in (*train, *test)}))
    unruled = sorted({row.domain for row in train if verifier_name(row) is None})
    if unruled and any(getattr(reward, "__name__", "") == "accuracy_reward" for reward in rewards):
        logger.warning(
            "Rows of %s have no rule: accuracy is None for them, so they teach nothing. Name their rewards in domain_rewards.",
            ", ".join(unruled),
        )


def _longest_prompt(prompts: Iterable[Any], tokenizer: Any) -> int:
    """Tokens of the longest prompt, looked for among those with most characters."""
    longest = sorted(prompts, key=lambda prompt: len(str(prompt)), reverse=True)[:_LONGEST_PROMPTS]
    ids = [
        tokenizer(prompt)["input_ids"]
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        for prompt in longest
    ]
    return max(map(len, ids), default=0)


def resolve_model(name: str | None) -> str:
    """Turn `nano` and `nano:<variant>` into the folder of the embedded checkpoint; leave other names alone.

    Args:
        name (`str`, *optional*): Hub id, folder, `nano` or `nano:<variant>`; `nano` by default.

    Returns:
        `str`: What `from_pretrained` takes.

    Raises:
        [`ConfigurationError`]: A folder that holds no model.
    """
    if name is None or name == "nano":
        return str(checkpoint_path())
    if name.startswith("nano:"):
        return str(checkpoint_path(name.removeprefix("nano:")))
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        raise ConfigurationError(
            f"model_name_or_path {name!r} is a folder without a model (no config.json). "
            + (
                f"It holds {', '.join(inside)}: name one of them."
                if inside
                else "Let the run that writes it end first."
            )
        )
    return name


def check_model(model_path: str, revision: str | None = None) -> None:
    """Refuse a model that is not there, in a sentence instead of the Hub's traceback; only its configuration is read.

    Args:
        model_path (`str`): Hub id or folder, as [`resolve_model`] gives it.
        revision (`str`, *optional*): Of a Hub id.

    Raises:
        [`ConfigurationError`]: There is no such model, or the Hub cannot be reached.
    """
    if not Path(model_path, "adapter_config.json").is_file():
        Checkpoint(model_path, revision).config()


def check_engine(model_path: str, training_args: R1GRPOConfig, model_args: ModelConfig) -> None:
    """Refuse what cannot be loaded or sampled on this machine, before loading.

    Args:
        model_path (`str`): Hub id or folder; only its configuration is read.
        training_args ([`R1GRPOConfig`]): Generation settings.
        model_args ([`~trl.ModelConfig`]): Quantisation and adapter.

    Raises:
        [`ConfigurationError`]: For quantised weights without an adapter to train, engine options that do not exist, or
            what the engine cannot do here, such as 4-bit weights on a CPU.
    """
    quantised = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit" if model_args.load_in_8bit else None
    if quantised and not model_args.use_peft:
        raise ConfigurationError(f"{quantised}: true trains nothing without an adapter. Set use_peft: true as well.")
    if not training_args.use_vllm or training_args.vllm_mode != "colocate":
        return
    if quantised == "load_in_8bit":
        raise ConfigurationError(
            "load_in_8bit: true cannot be handed over to vLLM. Use load_in_4bit: true, or set use_vllm: false."
        )
    check_options(
        cast("dict[str, Any]", training_args.vllm_engine_kwargs or {}),
        config=Checkpoint(model_path, _revision(model_path, model_args)).config(),
        load_in_4bit=bool(model_args.load_in_4bit),
        sleep_mode=bool(training_args.vllm_enable_sleep_mode),
        tensor_parallel_size=training_args.vllm_tensor_parallel_size,
        world_size=training_args.world_size,
    )


def render_preview(prepared: Prepared, rows: int = 3) -> str:
    """Show some rows as the model would see them, each with its gold completion scored by every reward.

    Args:
        prepared ([`Prepared`]): The run.
        rows (`int`, defaults to 3): How many.

    Returns:
        `str`: Text for a terminal.
    """
    shown = check_template(prepared.template, _different(prepared.train, rows), prepared.rewards, prepared.tokenizer)
    blocks = [
        f"── row {number} " + "─" * 60 + f"\n{rendered}\n·· gold completion ·· {gold}\n·· rewards ·· "
        + ", ".join(f"{name} {score}" for name, score in scores.items())
        for number, (rendered, gold, scores) in enumerate(shown, start=1)
    ]  # fmt: skip
    held_out = prepared.held_out
    blocks.append(
        f"{len(prepared.train)} questions to train on; {len(held_out.rows)} held out × {held_out.samples} samples; "
        f"template {prepared.template.name!r}; no weights were loaded."
    )
    return "\n\n".join(blocks)


def _different(rows: Sequence[Row], n: int) -> list[Row]:
    """Rows of as many kinds as possible: the first of each domain, then the next ones."""
    first = some_of_each(rows, 1)
    return [*first[:n], *[row for row in rows[: n + len(first)] if row not in first][: max(0, n - len(first))]]


def _check_amounts(train: Sequence[Row], test: Sequence[Row], training_args: R1GRPOConfig) -> None:
    needed = cast("int", training_args.generation_batch_size) // training_args.num_generations
    if len(train) < needed:
        raise DataError(
            f"The data set has {len(train)} questions to train on but one rollout needs {needed} (questions_per_step x "
            "minibatches_per_rollout): no step would be taken. Lower one of them or bring more questions."
        )
    if not test:
        raise DataError(
            "No question is held out, so nothing could be measured. Raise test_fraction or name test_split."
        )


def _revision(model_path: str, model_args: ModelConfig) -> str | None:
    return None if Path(model_path).is_dir() else model_args.model_revision


def load_settings(prepared: Prepared, model_args: ModelConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the policy.

    Args:
        prepared ([`Prepared`]): The run.
        model_args ([`~trl.ModelConfig`]): Precision, attention, revision.

    Returns:
        `dict`: For `training_args.model_init_kwargs`.
    """
    settings: dict[str, Any] = {"dtype": model_args.dtype}
    if (revision := _revision(prepared.model_path, model_args)) is not None:
        settings["revision"] = revision
    if model_args.attn_implementation is not None:
        settings["attn_implementation"] = model_args.attn_implementation
    return settings
