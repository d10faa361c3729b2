"""The nano tokenizer: byte-level BPE of about a thousand tokens.

Digits are one token each and Chinese numerals up to ninety-nine one token altogether. The sentences of R1-Zero's template
are tokens of their own, so that the template costs a small model 22 tokens instead of 90; its tags are ordinary added tokens
(`special=False`), because TRL's decoding drops special ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from trl_r1.nano.documents import template_text
from trl_r1.nano.numerals import NUMERAL_CHARACTERS, to_chinese
from trl_r1.nano.world import NanoWorld

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024
END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Sentences and phrases of the template between its tags.
PHRASES = (
    "A conversation between User and Assistant.",
    " The user asks a question, and the Assistant solves it.",
    " The assistant first thinks about the reasoning process in the mind and then provides the user with the answer.",
    " The reasoning process and answer are enclosed within ",
    " tags, respectively, i.e., ",
    " reasoning process here ",
    " answer here ",
    ". User: ",
    ". Assistant:",
)
_NUMERALS = f"[{NUMERAL_CHARACTERS}]"
# Pieces that merges may not cross: one digit; a numeral; a word, with the space before and the newline after it; one sign.
PIECES = rf"\d|{_NUMERALS}+| ?[A-Za-z]+\n?|(?:(?!{_NUMERALS})[\u4e00-\u9fff])+\n?| ?[^\s\w]|\s+(?=\S)|\s+|."
TRAINING_DOCUMENTS = 20000
# The dials of the documents the shipped merges were learnt from. Turning a dial must not change the tokenizer:
# checkpoints of all worlds are then comparable token by token.
TRAINING_DIALS: dict[str, Any] = {"give_up": 0.35, "patience": 0.15, "longest": 126, "scan": 0.0}


def _texts(world: NanoWorld, documents: int) -> Iterator[str]:
    before, after = template_text()
    for document in world.documents(documents, seed=-1):
        yield document.text.replace(before, "").replace(after, "\n")
    for _ in range(40):
        # Every numeral often enough to become one token: the shorter language must be shorter for all numbers.
        yield "加".join(to_chinese(number) for number in range(200))


def build_tokenizer(seed: int = 0, documents: int = TRAINING_DOCUMENTS) -> PreTrainedTokenizerFast:
    """Train the tokenizer on documents of the nano world; the same seed gives the same tokenizer.

    Args:
        seed (`int`, defaults to 0): The world's seed.
        documents (`int`, defaults to 20000): How many documents to learn the merges from.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: With `<|endoftext|>`, a separate pad token, no BOS and no chat template.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(text, special=False, normalized=False) for text in (*TAGS, *PHRASES)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(added),
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(NanoWorld(seed=seed, **TRAINING_DIALS), documents), trainer)
    tokenizer.add_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of many texts, each with its end-of-text token."""
    end = int(tokenizer.eos_token_id)
    return [[*encoding.ids, end] for encoding in tokenizer.backend_tokenizer.encode_batch(list(texts))]
