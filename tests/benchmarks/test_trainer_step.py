"""The trainer's benchmark: the real trainers on a small case, and the refusal to give a speed to a wrong step."""

import json

import pytest
import trainer_step
from rows import check_rows, read_rows, write_row

CASE = {
    "model": "nano", "dtype": "float32", "schedule": "on_policy", "importance": False, "cap": 8, "lengths": "uniform",
    "tokens": "replayed",    "processes": 1, "parallel": "one",
}  # fmt: skip


def row(variant, step_s, losses=(0.5, -0.25), grad_norms=(2.0, 3.0), **case):
    return {
        "benchmark": "trainer_step", "variant": variant, "case": CASE | case, "step_s": step_s, "tokens_per_s": 1 / step_s,
        "limit_share": 0.5, "losses": list(losses), "grad_norms": list(grad_norms),
    }  # fmt: skip


def test_quick_gives_speeds_to_equal_steps_and_none_to_others(tmp_path, monkeypatch):
    wrong = trainer_step.Variant("ours", {"gradient_checkpointing": False, "loss_type": "grpo"})
    monkeypatch.setitem(trainer_step.VARIANTS, "wrong", wrong)
    results = tmp_path / "rows.json"
    names = ["stock", "stock_trimmed", "ours_sdpa_bins", "wrong"]
    assert trainer_step.main(["--quick", "--variant", *names, "--results", str(results)]) == 1
    found = {one["variant"]: one for one in json.loads(results.read_text())}
    assert list(found) == names
    reference = found["stock"]
    assert len(set(reference["losses"])) == 3, "every step has rewards of its own"
    for name in names[:3]:
        assert found[name]["losses"] == pytest.approx(reference["losses"], abs=1e-5), name
        assert found[name]["grad_norms"] == pytest.approx(reference["grad_norms"], rel=1e-3), name
        assert found[name]["tokens_per_s"] > 0
        assert found[name]["ratio_to_stock"] > 0
    assert found["ours_sdpa_bins"]["attention"] == "sdpa", "the packed path did run"
    assert "losses differ" in found["wrong"]["refused"]
    assert found["wrong"]["step_s"] is found["wrong"]["tokens_per_s"] is found["wrong"]["ratio_to_stock"] is None


@pytest.mark.full
@pytest.mark.parametrize("case", [["--schedule", "r1"], ["--importance"], ["--lengths", "uniform"]])
def test_quick_on_other_schedules(case, tmp_path):
    names = ["stock", "ours_sdpa_bins"] + ["ours_old_pass"] * ("--importance" in case)
    settings = ["--set", '{"compile_layers": false}']
    assert trainer_step.main(["--quick", *case, "--variant", *names, *settings]) == 0


def test_ratio_to_stock_as_it_comes():
    checked = {
        one["variant"]: one for one in check_rows([row("stock", 4.0), row("ours", 0.5), row("stock_trimmed", 2.0)])
    }
    assert {name: one["ratio_to_stock"] for name, one in checked.items()} == {
        "stock": 1.0, "ours": 8.0, "stock_trimmed": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "grad_norms", "reason"),
    [
        ((0.5, -0.2501), (2.0, 3.0), "losses differ at step 2"),
        ((float("nan"), -0.25), (2.0, 3.0), "losses differ at step 1"),
        ((0.5, -0.25), (2.0, 3.1), "grad_norms differ at step 2"),
        ((), (2.0, 3.0), "no losses"),
    ],
)
def test_a_different_result_has_no_speed(losses, grad_norms, reason):
    refused = check_rows([row("stock", 4.0), row("ours", 0.5, losses, grad_norms)])[1]
    assert reason in refused["refused"]
    assert refused["step_s"] is refused["tokens_per_s"] is refused["ratio_to_stock"] is refused["limit_share"] is None


def test_rows_of_different_cases_are_not_compared():
    alone = check_rows([row("stock", 4.0), row("ours", 0.5, cap=16)])[1]
    assert "no stock row" in alone["refused"]


def test_bfloat16_gets_room_only_where_its_error_enters():
    near = (0.5, -0.2501)
    exact = check_rows([row("stock", 4.0, dtype="bfloat16"), row("ours", 1.0, near, dtype="bfloat16")])
    r1 = {"dtype": "bfloat16", "schedule": "r1"}
    rounded = check_rows([row("stock", 4.0, **r1), row("ours", 1.0, near, **r1)])
    assert "refused" in exact[1]
    assert rounded[1]["ratio_to_stock"] == 4.0


def test_rows_travel_one_file_each_or_joined(tmp_path):
    written = [row("stock", 4.0), row("ours", 1.0)]
    paths = [write_row(one, tmp_path / "apart", "trainer_step") for one in written]
    assert len({path.name for path in paths}) == 2
    joined = tmp_path / "joined"
    joined.mkdir()
    (joined / "call.jsonl").write_text("".join(path.read_text() for path in paths))
    key = lambda one: one["variant"]  # noqa: E731
    assert sorted(read_rows(tmp_path / "apart", "trainer_step"), key=key) == sorted(written, key=key)
    assert sorted(read_rows(joined, "trainer_step"), key=key) == sorted(written, key=key)
    assert read_rows(joined, "end_to_end") == []


def test_completions_must_split_into_updates():
    arguments = trainer_step.parse(["--schedule", "r1", "--completions", "96"])
    with pytest.raises(ValueError, match="multiple of 64"):
        trainer_step.sizes(arguments, 1)
