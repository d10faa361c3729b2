"""Rows with several accepted candidates as training batches: one candidate per row and epoch, tokenised and packed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trl_r1.data.candidates import DRAWS, Candidate, draw_order, drawn
from trl_r1.exceptions import ConfigurationError, DataError, unknown
from trl_r1.generation.codec import PromptCodec
from trl_r1.modeling.packing import best_fit
from trl_r1.prompts import PromptTemplate
from trl_r1.rows import Prompt

logger = logging.getLogger(__name__)

# R1's context in SFT, both times (arXiv 2501.12948v2, B.4.2).
MAX_LENGTH = 32768
# Trap 20: with more than this share of the targets too long, training refuses to start.
MAX_LOST = 0.01
_TOKENISED_TOGETHER = 256

Encoded = tuple[list[int], list[int]]


class RejectionSamplingCollator(DataCollatorForLanguageModeling):
    """Draws, tokenises and packs the candidates of [`~trl_r1.data.rejection.RejectionSampler`], for SFT.

    Each epoch trains on one accepted candidate of every row, and on all of them before one is repeated. Which one depends
    on `seed`, the row and the epoch alone, so any number of processes, and a resumed run, draw the same.

    Prompts are rendered and tokenised as samplers do; the target is the candidate's text as it stands, so no chat template
    can drop its thinking (trap 16), and one EOS. Only the target has labels, by its place and not by token ids: an EOS that
    is also the padding token stays in the loss (trap 18). Nothing is ever cut: candidates longer than `max_length` are left
    out and counted.

    Batches are TRL's padding-free ones: `input_ids`, `labels`, `position_ids` of shape `(1, T)`, `cu_seq_lens_q`,
    `max_length_q` and so on. Give the trainer [`packs`] as its data set:

    ```python
    collator = RejectionSamplingCollator(tokenizer, template, draw="diverse", max_length=32768)
    trainer = R1SFTTrainer(model, args, train_dataset=collator.packs(result.dataset, epochs=3), data_collator=collator)
    ```

    Rows may also be collated directly, a batch of rows making one packed row.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The trained model's, with an EOS token.
        template ([`~trl_r1.prompts.PromptTemplate`]): How prompts are rendered; what it opens of the completion gets no loss.
        draw (`str`, defaults to `"uniform"`):
            `"uniform"` (shuffled), `"shortest"` first, or `"diverse"`: each one as unlike those before it as can be.
        max_length (`int`, defaults to 32768): Tokens in a packed row, at most (R1's context).
        seed (`int`, defaults to 0): Seed of the draws.
        max_lost (`float`, defaults to 0.01): Largest share of candidates that may be too long.

    Raises:
        [`ConfigurationError`]: An unknown draw, or a tokenizer without EOS.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: PromptTemplate,
        *,
        draw: str = "uniform",
        max_length: int = MAX_LENGTH,
        seed: int = 0,
        max_lost: float = MAX_LOST,
    ) -> None:
        if draw not in DRAWS:
            raise unknown("draw", draw, DRAWS)
        if max_length < 1:
            raise ConfigurationError(f"max_length={max_length} holds nothing. R1 takes {MAX_LENGTH}.")
        if tokenizer.eos_token_id is None:
            raise ConfigurationError(
                "The tokenizer has no EOS token, so a model could not learn to end. Set tokenizer.eos_token."
            )
        pad = tokenizer.pad_token_id
        super().__init__(pad_token_id=tokenizer.eos_token_id if pad is None else pad, padding_free=True)
        self.tokenizer, self.template = tokenizer, template
        self.draw, self.max_length, self.seed, self.max_lost = draw, max_length, seed, max_lost
        self.epoch = 0
        self._packs: list[CandidatePacks] = []
        self._codec = PromptCodec(template, tokenizer)

    def packs(self, rows: Sequence[Mapping[str, Any]], epochs: int = 1, multiple_of: int = 1) -> CandidatePacks:
        """Pack rows into as few rows of `max_length` tokens as best fit finds.

        Args:
            rows (`datasets.Dataset` or `list[dict]`): With `prompt`, `id` and `candidates`.
            epochs (`int`, defaults to 1): Epochs to plan for: all of them get equally many packs.
            multiple_of (`int`, defaults to 1):
                Make their number a multiple of this, such as processes x batch size, so that no process repeats one.

        Returns:
            [`CandidatePacks`]: For a trainer.

        Raises:
            [`DataError`]: No accepted candidate at all, or too many longer than `max_length`.
        """
        made = CandidatePacks(self, rows, epochs, multiple_of)
        self._packs.append(made)
        return made

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, of all data sets made by [`packs`] too. `R1SFTTrainer` calls it when an epoch begins."""
        self.epoch = epoch
        for packs in self._packs:
            packs.set_epoch(epoch)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packs": []}  # data sets are not sent along with a copy

    def encode(self, prompt: Prompt, candidate: Candidate) -> Encoded:
        """Tokenise a prompt with one of its candidates.

        Returns:
            `tuple[list[int], list[int]]`: Token ids and labels, of equal length; -100 on the prompt.
        """
        return self.encode_all([(prompt, candidate)])[0]

    def encode_all(self, pairs: Sequence[tuple[Prompt, Candidate]]) -> list[Encoded]:
        """Tokenise several at once; see [`encode`]."""
        texts = [self._target(candidate) for _, candidate in pairs]
        targets = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        encoded = []
        for (prompt, _), target in zip(pairs, targets, strict=True):
            start, end = self._codec.encode(prompt), [*target, self.tokenizer.eos_token_id]
            encoded.append(([*start, *end], [-100] * len(start) + end))
        return encoded

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate packs, or rows with candidates, into one padding-free batch.

        Raises:
            [`DataError`]: A row without an accepted candidate that fits.
        """
        if "candidates" in examples[0]:
            encoded = self.encode_all([(example["prompt"], self._drawn(example)) for example in examples])
            examples = [{"input_ids": ids, "labels": labels} for ids, labels in encoded]
        batch: dict[str, Any] = super().torch_call(examples)
        return batch

    def _drawn(self, row: Mapping[str, Any]) -> Candidate:
        accepted = accepted_candidates(row)
        fitting = [one for one in accepted if len(self.encode(row["prompt"], one)[0]) <= self.max_length]
        if not fitting:
            raise DataError(
                f"Row {row['id']!r} has {len(accepted)} accepted candidates, none within {self.max_length} tokens. Leave such "
                "rows out, as collator.packs(rows) does."
            )
        texts = [one.text for one in fitting]
        order = draw_order(row["id"], texts, [len(text) for text in texts], self.draw, self.seed)
        return fitting[drawn(row["id"], order, self.epoch, self.draw, self.seed)]

    def _target(self, candidate: Candidate) -> str:
        """The text to learn: what follows what the template opens."""
        full = candidate.full_text.removesuffix(self.tokenizer.eos_token)
        opened = self.template.prefill
        if not opened:
            # Where the prompt ends, the plain template is followed by a space and a chat template by none.
            return (" " if self.template.name == "base" else "") + full.lstrip()
        if candidate.prefill == opened:
            return full.removeprefix(opened)
        if not full.lstrip().startswith(opened.strip()):
            raise DataError(
                f"The template opens every completion with {opened!r}, but a target begins with {full[:60]!r}. Use a template "
                "that opens nothing (prefill_think: false), or leave such rows out."
            )
        rest = full.lstrip().removeprefix(opened.strip())
        return rest.lstrip() if opened[-1].isspace() else rest


class CandidatePacks(torch.utils.data.Dataset[dict[str, Any]]):
    """The packs of an epoch: item `k` is the `k`-th, tokenised when asked for. Every epoch has equally many.

    Made by [`RejectionSamplingCollator.packs`], whose `set_epoch` sets this data set's epoch too.

    Attributes:
        epoch (`int`): Whose packs the items are.
        left_out (`int`): Rows without an accepted candidate.
        too_long (`int`): Candidates longer than the collator's `max_length`.
        rows_too_long (`int`): Rows left out because all of theirs are.
        fill (`float`): Share of the packs' room that tokens take in epoch 0.
    """

    def __init__(
        self, collator: RejectionSamplingCollator, rows: Sequence[Mapping[str, Any]], epochs: int, multiple_of: int
    ) -> None:
        if epochs < 1 or multiple_of < 1:
            raise ConfigurationError(f"epochs={epochs} and multiple_of={multiple_of} must be at least 1.")
        self._collator, self._source = collator, rows
        self.left_out = self.too_long = self.rows_too_long = 0
        self._places: list[int] = []  # of the rows that are trained on, in the source
        self._lengths: list[list[int]] = []  # of their candidates that fit
        self._choices: list[list[int]] = []  # which of the accepted ones those are
        self._orders: list[list[int]] = []
        self._keys: list[str] = []
        self.epoch = 0
        self._plans: dict[int, list[list[int]]] = {}
        self._measure()
        counts = [len(self._best_fit(epoch)) for epoch in range(epochs)]
        self._size = -(-max(counts) // multiple_of) * multiple_of
        if self._size > len(self._places):
            raise DataError(
                f"{len(self._places)} rows cannot be shared out to {self._size} packs (a multiple of {multiple_of}). Bring more "
                "rows, or lower the batch size."
            )
        tokens = sum(self._length(row, 0) for row in range(self.rows))
        self.fill = tokens / (self._size * collator.max_length)
        logger.info(
            "%d rows in %d packs of %d tokens, %.0f%% full; %d rows have no accepted candidate, %d candidates are too long.",
            *(self.rows, self._size, collator.max_length, 100 * self.fill, self.left_out, self.too_long),
        )

    @property
    def rows(self) -> int:
        """Rows that are trained on."""
        return len(self._places)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a pack of the epoch: `input_ids` and `labels` of its sequences end to end, and `seq_lengths`."""
        if not 0 <= index < self._size:
            raise IndexError(f"Pack {index} of {self._size}.")
        pairs = []
        for row in self._plan(self.epoch)[index]:
            columns = self._source[self._places[row]]
            choice = self._choices[row][self._drawn(row, self.epoch)]
            pairs.append((columns["prompt"], accepted_candidates(columns)[choice]))
        encoded = self._collator.encode_all(pairs)
        return {
            "input_ids": [token for ids, _ in encoded for token in ids],
            "labels": [label for _, labels in encoded for label in labels],
            "seq_lengths": [len(ids) for ids, _ in encoded],
        }

    def members(self, epoch: int) -> list[list[tuple[str, int]]]:
        """Return what an epoch trains on: by pack, the key of each row and the index of its candidate."""
        found = []
        for pack in self._plan(epoch):
            members = []
            for row in pack:
                accepted = accepted_candidates(self._source[self._places[row]])
                members.append((self._keys[row], accepted[self._choices[row][self._drawn(row, epoch)]].index))
            found.append(members)
        return found

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose packs the items are. Accelerate tells it in one process, the collator in several."""
        self.epoch = epoch

    def _measure(self) -> None:
        """Find the lengths of all accepted candidates."""
        accepted_total, first_long = 0, ""
        for start in range(0, len(self._source), _TOKENISED_TOGETHER):
            batch = [
                (place, self._source[place])
                for place in range(start, min(start + _TOKENISED_TOGETHER, len(self._source)))
            ]
            accepted = [(place, row, accepted_candidates(row)) for place, row in batch]
            pairs = [(row["prompt"], one) for _, row, ones in accepted for one in ones]
            lengths = iter([len(ids) for ids, _ in self._collator.encode_all(pairs)])
            for place, row, ones in accepted:
                measured = [next(lengths) for _ in ones]
                fitting = [choice for choice, length in enumerate(measured) if length <= self._collator.max_length]
                accepted_total += len(ones)
                self.too_long += len(ones) - len(fitting)
                if len(fitting) < len(ones) and not first_long:
                    first_long = f"{row['id']!r}, {max(measured)} tokens"
                if not fitting:
                    self.left_out += not ones
                    self.rows_too_long += bool(ones)
                    continue
                self._add(place, str(row["id"]), fitting, [measured[c] for c in fitting], [ones[c] for c in fitting])
        if self.too_long > self._collator.max_lost * max(accepted_total, 1):
            raise DataError(
                f"{self.too_long} of {accepted_total} accepted candidates are longer than max_length={self._collator.max_length} "
                f"(the first: {first_long}); allowed are {self._collator.max_lost:.1%}. Nothing is cut, for a target without its "
                "end teaches a model not to end. Raise max_length or max_lost."
            )
        if not self._places:
            named = ", ".join(repr(self._source[place]["id"]) for place in range(min(5, len(self._source))))
            raise DataError(
                f"None of {len(self._source)} rows ({named}) has an accepted candidate: there is nothing to train on. See the "
                "reasons in report.json of the rejection sampling."
            )

    def _add(self, place: int, key: str, choices: list[int], lengths: list[int], ones: list[Candidate]) -> None:
        collator = self._collator
        self._places.append(place)
        self._keys.append(key)
        self._choices.append(choices)
        self._lengths.append(lengths)
        self._orders.append(draw_order(key, [one.text for one in ones], lengths, collator.draw, collator.seed))

    def _drawn(self, row: int, epoch: int) -> int:
        return drawn(self._keys[row], self._orders[row], epoch, self._collator.draw, self._collator.seed)

    def _length(self, row: int, epoch: int) -> int:
        return self._lengths[row][self._drawn(row, epoch)]

    def _best_fit(self, epoch: int) -> list[list[int]]:
        return best_fit([self._length(row, epoch) for row in range(self.rows)], self._collator.max_length)

    def _plan(self, epoch: int) -> list[list[int]]:
        """The packs of an epoch, as many in each: where best fit needs fewer, the fullest are halved."""
        if epoch not in self._plans:
            packs = self._best_fit(epoch)
            if len(packs) > self._size:
                raise ConfigurationError(
                    f"Epoch {epoch} needs {len(packs)} packs, {self._size} were planned. Plan for all epochs: packs(rows, "
                    f"epochs={epoch + 1})."
                )
            while len(packs) < self._size:
                largest = max(range(len(packs)), key=lambda place: len(packs[place]))
                members = packs[largest]
                packs[largest] = members[::2]
                packs.append(members[1::2])
            # One epoch at a time is trained on; a resumed run may jump.
            self._plans = {epoch: packs}
        return self._plans[epoch]


def accepted_candidates(row: Mapping[str, Any]) -> list[Candidate]:
    """Return the accepted candidates of a row, in sample order."""
    found = [Candidate.from_columns(one) for one in row["candidates"] if one["accepted"]]
    return sorted(found, key=lambda one: one.index)
