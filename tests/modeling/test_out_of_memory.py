"""What is said after running out of memory."""

import pytest
import torch

from trl_r1.modeling.out_of_memory import explained, out_of_memory_message, scoring_out_of_memory_message


def scoring(lengths, rows=4, *, packs=True, budget=None):
    return scoring_out_of_memory_message(lengths, rows, packs=packs, budget=budget, rows_setting="trim_rows")


def test_training_names_the_next_budget():
    assert "max_tokens_per_microbatch: 8192" in out_of_memory_message(16_384, checkpointing=True)
    stuck = out_of_memory_message(16_384, checkpointing=False, longest=9_000)
    assert "max_tokens_per_microbatch:" not in stuck
    assert "gradient_checkpointing: true" in stuck
    assert "max_completion_length" in out_of_memory_message(1_024, checkpointing=True)


def test_scoring_names_the_next_budget():
    """A pass without gradient takes four budgets, so its longest sequence may be as long as four of the next one."""
    said = scoring([9_000, 100], budget=16_384)
    assert "up to 65536 tokens with max_tokens_per_microbatch=16384. Try max_tokens_per_microbatch: 8192." in said
    assert "max_tokens_per_microbatch: 8192" in scoring([32_768], budget=16_384)
    stuck = scoring([32_769], budget=16_384)
    assert "one sequence alone has 32769. Try a lower max_completion_length" in stuck
    assert "max_tokens_per_microbatch: 2048" in scoring([4_096] * 4, rows=4)  # no budget yet: half of what ran out
    assert "max_tokens_per_microbatch=null" in scoring([4_096] * 4, rows=4)


def test_where_no_budget_bounds_a_pass_its_rows_do():
    assert "4 sequences of up to 900 tokens (trim_rows=4). Try trim_rows: 2." in scoring([900, 5], packs=False)
    assert "Try a lower max_completion_length" in scoring([900], rows=1, packs=False)


def test_only_running_out_of_memory_is_explained():
    with pytest.raises(torch.OutOfMemoryError, match="advice") as caught, explained(lambda: "advice"):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")
    assert "2 GiB" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="shape"), explained(lambda: pytest.fail("asked for a message")):
        raise RuntimeError("shape")
