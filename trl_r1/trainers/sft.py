"""[`R1SFTTrainer`]: TRL's SFT trainer that keeps the thinking in its targets, with packed attention that needs no flash-attn."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedModel, TrainerCallback, set_seed
from trl import SFTTrainer
from trl.trainer.utils import create_model_from_path

from trl_r1.data.rejection_collator import CandidatePacks, RejectionSamplingCollator
from trl_r1.data.traces import split_conversation
from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.generation.engine import eos_token_ids
from trl_r1.generation.transformers import sample_with_transformers
from trl_r1.generation.weights import keep_4bit_weights
from trl_r1.modeling.attention import Attention, choose_attention, enable_packing, unused_mask
from trl_r1.modeling.obstacles import why_not_packable
from trl_r1.prompts import PromptTemplate
from trl_r1.rows import Completion, Prompt
from trl_r1.trainers.callbacks import GivesSignalsBack, StopAtRolloutBoundary
from trl_r1.trainers.grpo_config import launched_world_size
from trl_r1.trainers.new_tokens import add_tokens, embed_tokens, show_bias, train_tokens
from trl_r1.trainers.sft_config import R1SFTConfig
from trl_r1.trainers.targets import check_lengths, check_tags, has_targets, prompt_ids, tokenize

logger = logging.getLogger(__name__)

_DEFAULT_SAMPLE_TOKENS = 1024
# Rows of a stream that are looked at before training starts.
_STREAMED = 1000


class R1SFTTrainer(GivesSignalsBack, SFTTrainer):
    """TRL's [`~trl.SFTTrainer`] for cold start, rejection-sampling SFT and distillation (arXiv 2501.12948v1 §2.3–2.4).

    What it changes:

    - Rows with `prompt` and `completion` are tokenised before TRL's templates see them: the prompt as sampling and
      evaluation render it, the target as its own text plus EOS. So no chat template can drop `<think>`, and the loss is on
      completions only ([`trl_r1.trainers.targets`]). Of `messages` the last turn, the assistant's, is the completion.
    - Training does not start when more than `max_truncated_targets` of the targets would lose their EOS. Of a stream the
      first 1,000 rows are looked at before it starts, and all of them are counted as they come.
    - `new_tokens` are added, embedded and trained under LoRA ([`trl_r1.trainers.new_tokens`]).
    - With a [`~trl_r1.data.rejection_collator.RejectionSamplingCollator`] each epoch trains on one accepted candidate of every
      row; the collator tokenises and packs, and is told the epoch, also of a resumed run.
    - With `packing=True` (or `padding_free=True`) TRL lays sequences end to end and tells the model where each begins
      (`cu_seq_lens_q`, `max_length_q` as a Python integer). Flash attention reads that; any other attention of transformers
      gets a mask of the row's length squared instead: 1 GiB for one row of 32k tokens. Here the attention is chosen as in
      [`~trl_r1.trainers.R1GRPOTrainer`] (`packed_attention`), and a hook before the backbone keeps that mask from being made.

    Losses and metrics are TRL's. No method of TRL's is replaced: its constructor is wrapped, and it relies on
    `DataCollatorForLanguageModeling` yielding `cu_seq_lens_q` and `max_length_q`, and on the attribute `padding_free`
    (`tests/test_trl_contract.py`).

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, or the name or path to load it from.
        args ([`R1SFTConfig`], *optional*):
            Settings.
        template ([`~trl_r1.prompts.PromptTemplate`], *optional*):
            How questions are rendered. Without one, a prompt given as text is what the model sees as it is, and one given as
            messages goes through the tokenizer's chat template.
        train_dataset ([`~datasets.Dataset`], *optional*):
            Rows with `prompt` and `completion`, or with `messages`; anything else that [`~trl.SFTTrainer`] takes; with a
            `RejectionSamplingCollator`, rows with `candidates`, or its packs.
        data_collator (`Callable`, *optional*):
            A `RejectionSamplingCollator`, or any collator that [`~trl.SFTTrainer`] takes.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer; the model's own by default.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train.
        **kwargs:
            Anything else that [`~trl.SFTTrainer`] takes.

    Raises:
        [`~trl_r1.exceptions.ConfigurationError`]: A `packed_attention` that cannot work here, a loss on more than the
            completions, thinking tags that are special tokens.
        [`~trl_r1.exceptions.DataError`]: Too many targets too long; empty targets; conversations that do not end in an
            answer. All before any weight loads; a stream's later rows when they come.
    """

    _tag_names = ["trl", "sft", "trl-r1"]  # noqa: RUF012 - TRL's own class attribute
    args: R1SFTConfig
    model: Any
    attention: Attention
    engine: None = None  # held-out evaluation asks: completions are written by transformers

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: R1SFTConfig | None = None,
        *,
        template: PromptTemplate | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data_collator: Any = None,
        processing_class: Any = None,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else str(model.name_or_path)
            args = R1SFTConfig(f"{name}-SFT".split("/")[-1])
        if not isinstance(args, R1SFTConfig):
            raise ConfigurationError(f"args is a {type(args).__name__}: R1SFTTrainer takes an R1SFTConfig.")
        tokenizer = processing_class or _tokenizer_of(model, args)
        check_tags(tokenizer)
        pieces = add_tokens(tokenizer, args.new_tokens)
        self.template = template
        callbacks = [*(callbacks or ()), StopAtRolloutBoundary()]
        packs: CandidatePacks | None = None
        if isinstance(data_collator, RejectionSamplingCollator):
            if eval_dataset is not None:
                raise ConfigurationError(
                    "eval_dataset cannot be read by a collator that draws candidates. Leave it out."
                )
            packs = _packs(data_collator, train_dataset, args)
            _leave_rows_to_collator(args)
            callbacks.append(_TellEpoch(data_collator, packs))
            # TRL's constructor wants one of `datasets`: an example stands in until it is through.
            train_dataset = Dataset.from_list([packs[0]])
        else:
            train_dataset = self._targets(train_dataset, tokenizer, args)
            if isinstance(eval_dataset, Mapping):
                eval_dataset = {name: self._targets(rows, tokenizer, args) for name, rows in eval_dataset.items()}
            elif eval_dataset is not None:
                eval_dataset = self._targets(eval_dataset, tokenizer, args)
        if pieces:
            if isinstance(model, str):
                model = _load(model, args, kwargs.pop("quantization_config", None))
            if isinstance(model, PeftModel):
                raise ConfigurationError(
                    "new_tokens need a model without an adapter: merge it, and give a peft_config."
                )
            embed_tokens(model, tokenizer, pieces)
            if peft_config is not None:
                train_tokens(peft_config, model, list(pieces))
        super().__init__(
            model=model, args=args, data_collator=data_collator, train_dataset=train_dataset, eval_dataset=eval_dataset,
            processing_class=tokenizer, peft_config=peft_config, callbacks=callbacks, **kwargs,
        )  # fmt: skip
        keep_4bit_weights(self.model)
        if packs is not None:
            self.train_dataset = packs
            self.padding_free = True
        show_bias(self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)
        self.eos_token_ids = eos_token_ids(self.model, tokenizer)
        self.attention = self._enable_packing()
        if self.padding_free and self.accelerator.is_main_process:
            logger.info("Packed batches: %s (%s).", self.attention.kind, self.attention.reason)

    def _targets(self, rows: Any, tokenizer: Any, args: R1SFTConfig) -> Any:
        """Tokenise prompts and completions, or conversations; leave out what is too long, and say so."""
        if rows is None:
            raise DataError("train_dataset is missing: rows with `prompt` and `completion`.")
        columns = rows.column_names or list(next(iter(rows)))
        if has_targets(columns) or ("messages" in columns and "input_ids" not in columns):
            _check_loss(args)
            _set_chat_template(tokenizer, args)
            settings = {"tokenizer": tokenizer, "template": self.template}
            extra = {} if isinstance(rows, IterableDataset) else {
                "desc": "Tokenising prompts and targets", "num_proc": args.dataset_num_proc,
            }  # fmt: skip
            made = tokenize if has_targets(columns) else _tokenize_conversation
            rows = rows.map(
                made, fn_kwargs=settings, remove_columns=columns, with_indices=made is not tokenize, **extra
            )
        elif "input_ids" not in columns or "labels" not in columns:
            return rows
        if isinstance(rows, IterableDataset):
            return rows if args.max_length is None else _counted(rows, args.max_length, args.max_truncated_targets)
        lengths = [len(ids) for ids in rows["input_ids"]]
        kept = check_lengths(lengths, args.max_length, args.max_truncated_targets)
        return rows if len(kept) == len(lengths) else rows.select(kept)

    def sample(
        self,
        prompts: list[Prompt],
        n: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> list[list[Completion]]:
        """Sample completions from the current weights with transformers; every rank must call it.

        Args:
            prompts (`list`): Rendered text or messages ([`~trl_r1.prompts.PromptTemplate.trl_prompt`]); this rank's share.
            n (`int`): Completions per prompt.
            temperature (`float`, defaults to 1.0): Sampling temperature.
            top_p (`float`, defaults to 1.0): Nucleus.
            max_tokens (`int`, *optional*): Cap in tokens; 1,024 when not given.
            seed (`int`, *optional*): For reproducible samples.

        Returns:
            `list[list[Completion]]`: `n` completions for each prompt, in order.
        """
        # A `trl_prompt` is rendered text already, or messages that hold the instruction already.
        template = None if self.template is None or self.template.name == "base" else self.template
        ids = [prompt_ids(prompt, self._tokenizer, template)[0] for prompt in prompts]
        samples = sample_with_transformers(
            self.model_wrapped, self.accelerator, ids, n,
            eos_token_ids=self.eos_token_ids, pad_token_id=cast(int, self._tokenizer.pad_token_id),
            temperature=temperature, top_p=top_p, max_tokens=max_tokens or _DEFAULT_SAMPLE_TOKENS, seed=seed,
        )  # fmt: skip
        decode = self._tokenizer.decode
        return [
            [
                Completion(
                    str(decode(one.token_ids, skip_special_tokens=True)), tuple(one.token_ids), one.finish_reason
                )
                for one in group
            ]
            for group in samples
        ]

    def _enable_packing(self) -> Attention:
        """Set the attention of packed batches, if there are any; called when the model is loaded."""
        if not self.padding_free or self.args.packed_attention == "none":
            return Attention("padded", "TRL's own")
        base: Any = self.accelerator.unwrap_model(self.model)
        prompt_learning = bool(getattr(getattr(base, "active_peft_config", None), "is_prompt_learning", False))
        base = base.get_base_model() if isinstance(base, PeftModel) else base
        mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        device, dtype = self.accelerator.device, mixed or base.dtype
        asked = self.args.packed_attention
        attention = choose_attention(base, device, dtype, asked, prompt_learning=prompt_learning)
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            return Attention("padded", "context and sequence parallelism bring their own attention")
        if not attention.packs and why_not_packable(base) is None and not prompt_learning:
            # The rows are packed already, so there is nothing to trim: one SDPA call per sequence.
            attention = choose_attention(base, device, dtype, "sdpa")
        enable_packing(base, attention)
        if attention.packs:
            base.base_model.register_forward_pre_hook(_without_dense_mask, with_kwargs=True)
        return attention


class _TellEpoch(TrainerCallback):
    """Tell a collator and its packs the epoch, before batches are drawn; a resumed epoch keeps its number."""

    def __init__(self, collator: RejectionSamplingCollator, packs: CandidatePacks) -> None:
        self.collator, self.packs = collator, packs

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called before the epoch's batches are asked for."""
        epoch = int((state.epoch or 0) + 1e-6)
        self.collator.set_epoch(epoch)
        self.packs.set_epoch(epoch)


class _Fits:
    """Leaves out what is too long of a stream, counts it, and stops when it is more than allowed.

    Each worker of a data loader counts its own share.
    """

    def __init__(self, max_length: int, allowed: float) -> None:
        self.max_length, self.allowed = max_length, allowed
        self.seen = self.cut = 0

    def __call__(self, row: Mapping[str, Any]) -> bool:
        fits = len(row["input_ids"]) <= self.max_length
        self.seen += 1
        self.cut += not fits
        if self.cut > self.allowed * max(self.seen, _STREAMED):
            raise DataError(
                f"{self.cut} of {self.seen} sequences that were read of the stream are longer than max_length={self.max_length} "
                f"tokens (allowed: {self.allowed:.1%}, max_truncated_targets). The last one has {len(row['input_ids'])}. Raise "
                "max_length, or leave the long traces out."
            )
        if not fits and self.cut.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …
            logger.warning(
                "%d of %d sequences that were read of the stream are longer than max_length=%d and left out.",
                self.cut, self.seen, self.max_length,
            )  # fmt: skip
        return fits


def _counted(rows: IterableDataset, max_length: int, allowed: float) -> IterableDataset:
    """Check the beginning of a stream before training starts, and have the rest counted as it comes."""
    check_lengths([len(row["input_ids"]) for row in rows.take(_STREAMED)], max_length, allowed)
    return rows.filter(_Fits(max_length, allowed))


def _tokenize_conversation(
    row: Mapping[str, Any], index: int, tokenizer: Any, template: PromptTemplate | None = None
) -> dict[str, list[int]]:
    """Tokenise a row of `messages`: the last turn is the target, as for rows with prompt and completion."""
    if row.get("tools"):
        raise DataError(
            f"Row {index} brings tools, which are not rendered here. Leave such rows out, or give `prompt` and `completion`."
        )
    prompt, completion = split_conversation(row["messages"], index)
    return tokenize({"prompt": prompt, "completion": completion}, tokenizer, template)


def _check_loss(args: R1SFTConfig) -> None:
    """Refuse TRL's settings for a loss on more than the completion: they would not be heeded."""
    if args.assistant_only_loss or args.completion_only_loss is False:
        named = "assistant_only_loss: true" if args.assistant_only_loss else "completion_only_loss: false"
        raise ConfigurationError(
            f"{named} asks for a loss on more than the completion; R1SFTTrainer's is on the completion (the last turn of "
            "`messages`) alone. Leave it out; for a loss on every answer of a conversation make a row of each."
        )


def _set_chat_template(tokenizer: Any, args: R1SFTConfig) -> None:
    """Set the template of `chat_template_path` before prompts are rendered; TRL would do so only afterwards."""
    if args.chat_template_path is None:
        return
    path = Path(args.chat_template_path)
    if path.suffix not in (".jinja", ".j2") or not path.is_file():
        raise ConfigurationError(
            f"chat_template_path={args.chat_template_path!r} must be a .jinja or .j2 file: another model's template would come "
            "with its tokens after the prompts are rendered. Save that template to a file, and name its tokens in new_tokens."
        )
    tokenizer.chat_template = path.read_text(encoding="utf-8")


def _packs(collator: RejectionSamplingCollator, rows: Any, args: R1SFTConfig) -> CandidatePacks:
    """Pack the candidates for all epochs, the same number of rows for every process."""
    if isinstance(rows, CandidatePacks):
        return rows
    if not isinstance(rows, Dataset) or "candidates" not in rows.column_names:
        raise DataError(
            "RejectionSamplingCollator reads rows with `candidates`, as a rejection-sampling run writes them."
        )
    at_once = args.per_device_train_batch_size * launched_world_size()
    epochs = math.ceil(args.num_train_epochs)
    if args.max_steps > 0:
        one = len(collator.packs(rows, multiple_of=at_once))
        # One more, since another epoch's candidates may need fewer packs.
        epochs = 1 + math.ceil(args.max_steps * args.gradient_accumulation_steps * at_once / one)
    return collator.packs(rows, epochs, at_once)


def _leave_rows_to_collator(args: R1SFTConfig) -> None:
    """Have TRL hand the packs to the collator as they are."""
    if args.dataloader_num_workers and args.dataloader_persistent_workers:
        raise ConfigurationError(
            "dataloader_persistent_workers: true keeps copies of the packs that are never told the epoch. Set it to false."
        )
    args.packing = args.padding_free = False
    args.remove_unused_columns = False
    given = cast("dict[str, Any]", args.dataset_kwargs or {})
    args.dataset_kwargs = {**given, "skip_prepare_dataset": True}


def _tokenizer_of(model: Any, args: R1SFTConfig) -> Any:
    """The model's own tokenizer, as TRL would load it."""
    given = cast("dict[str, Any]", args.model_init_kwargs or {})
    name, revision = (model, given.get("revision")) if isinstance(model, str) else (model.config._name_or_path, None)
    return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)


def _load(model: str, args: R1SFTConfig, quantization_config: Any) -> PreTrainedModel:
    """Load the model as TRL's constructor does, so that new tokens can be embedded before the adapter is added."""
    set_seed(args.seed)
    settings = dict(cast("dict[str, Any]", args.model_init_kwargs or {}))
    if quantization_config is not None:
        settings["quantization_config"] = quantization_config
    if args.distributed_state is not None and args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        settings["device_map"] = None
    settings.setdefault("trust_remote_code", args.trust_remote_code)
    args.model_init_kwargs = None  # used up: TRL would warn that it ignores them
    return create_model_from_path(model, **settings)


def _without_dense_mask(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Give the backbone a mask that it hands on unread, for a packed row whose bounds are known.

    Not done in the inputs, where TRL counts the tokens of an attention mask.
    """
    if kwargs.get("cu_seq_lens_q") is None or kwargs.get("attention_mask") is not None:
        return None
    return args, kwargs | {"attention_mask": unused_mask(kwargs["cu_seq_lens_q"].device)}
