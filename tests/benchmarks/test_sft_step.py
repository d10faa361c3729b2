"""The benchmark of supervised fine-tuning: real trainers, the same traces, the same losses."""

import json

import pytest
import sft_step


@pytest.mark.parametrize(
    "others", [["ours"], pytest.param(["stock_packed", "ours", "ours_nockpt"], marks=pytest.mark.full)]
)
def test_every_variant_takes_the_same_step_in_its_own_number_of_passes(others, tmp_path, monkeypatch):
    monkeypatch.setattr(sft_step, "QUICK", sft_step.QUICK | {"traces": 6, "cap": 96, "steps": 1})
    results = tmp_path / "rows.json"
    assert sft_step.main(["--quick", "--variant", "stock", *others, "--results", str(results)]) == 0
    found = {row["variant"]: row for row in json.loads(results.read_text())}
    assert list(found) == ["stock", *others]
    stock = found["stock"]
    assert stock["forward_passes"] == 6
    for name in others:
        assert found[name]["forward_passes"] < 6, name
        assert found[name]["losses"] == pytest.approx(stock["losses"], rel=1e-5), name
        assert found[name]["grad_norms"] == pytest.approx(stock["grad_norms"], rel=1e-3), name
        assert found[name]["ratio_to_stock"] > 0
    assert found["ours"]["attention"] == "sdpa", "one call per sequence"
    assert stock["losses"][0] != stock["losses"][1], "the optimizer moves"


def test_traces_keep_their_prompt_out_of_the_loss():
    arguments = sft_step.parse(["--quick"])
    rows, lengths = sft_step.traces(arguments, list(range(10, 90)), eos=3)
    assert [len(row["input_ids"]) for row in rows] == [arguments.prompt_length + length for length in lengths]
    assert max(lengths) + arguments.prompt_length == arguments.cap
    for row in rows:
        assert row["labels"][: arguments.prompt_length] == [-100] * arguments.prompt_length
        assert row["labels"][arguments.prompt_length :] == row["input_ids"][arguments.prompt_length :]
        assert row["input_ids"][-1] == 3
