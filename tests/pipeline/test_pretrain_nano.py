from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trl_r1.exceptions import ConfigurationError
from trl_r1.nano import NanoWorld, checkpoint_path
from trl_r1.nano.model import SIZES, build_model
from trl_r1.pipeline.pretrain_nano import PretrainArguments, measure, pack, save, train


def test_rows_hold_whole_documents() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    rows = pack(NanoWorld(), tokenizer, 200, seed=5, row_tokens=512)
    texts = [document.text for document in NanoWorld().documents(200, seed=5)]
    ids = rows[rows != tokenizer.pad_token_id].astype(np.int64)
    assert tokenizer.decode(ids).split(tokenizer.eos_token)[:-1] == texts
    assert (rows != tokenizer.pad_token_id).mean() > 0.85
    starts = tokenizer.batch_decode(rows[:, 0].astype(np.int64)[:, None])
    assert set(starts) <= {tokenizer.decode(tokenizer(text).input_ids[:1]) for text in texts}


def test_training_lowers_the_loss_and_the_checkpoint_can_be_measured(tmp_path: Path) -> None:
    arguments = PretrainArguments(
        tokens=8 * 4 * 512, rows_per_step=4, workers=1, warmup_steps=1, log_every=1, device="cpu", learning_rate=5e-3
    )
    model, tokenizer, losses = train(NanoWorld(), arguments)
    assert losses[0] == pytest.approx(np.log(1024), abs=0.3)
    assert losses[-1] < losses[0] - 1.0
    found = measure(save(model, tokenizer, tmp_path), questions=2, samples=16, max_tokens=8)
    assert found["pass@1"] == 0
    assert found["groups_without_spread"] == 1


def test_the_small_size_is_two_fifths_of_the_default() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    sizes = {size: build_model(tokenizer, size=size).num_parameters() for size in SIZES}
    assert sizes == {"default": 2_740_960, "small": 1_148_576}
    with pytest.raises(ConfigurationError, match=r"Unknown size of a nano model 'tiny'.*'small'"):
        build_model(tokenizer, size="tiny")
