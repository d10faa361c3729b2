"""What the benchmarks are made of: lengths, the limit, random models, profiles, tables and pictures."""

import numpy as np
import plot
import pytest
from end_to_end import drawn_lengths
from limits import Cost
from profile_step import busy_us, kind_of
from replay import StoredRollouts, completion_lengths
from shapes import SHAPES, ModelShape, checkpoint


def test_long_tail_is_the_specified_one():
    lengths = completion_lengths("long_tail", 64, 8192)
    assert max(lengths) == 8192
    assert np.mean(lengths) == pytest.approx(2154, rel=0.01)
    assert np.std(np.log(sorted(lengths)[:-1])) == pytest.approx(0.9, abs=0.06)
    assert lengths == completion_lengths("long_tail", 64, 8192)
    assert completion_lengths("uniform", 4, 8192) == [2048] * 4


def test_forced_lengths_have_a_constant_hazard():
    first, second = drawn_lengths(256, 8192, 0), drawn_lengths(256, 8192, 1)
    assert np.mean(first) == pytest.approx(2354, rel=0.01)
    assert max(first) == 8192
    assert sorted(first) == sorted(second)
    assert first != second


def test_stored_rollouts():
    words = np.setdiff1d(np.arange(50), [7, 8])
    stored = StoredRollouts([3, 5, 5, 4], cap=5, prompt_length=6, group=2, words=words, eos=8)
    assert stored.prompt(0, 0) == stored.prompt(0, 1) != stored.prompt(0, 2)
    assert stored.completion(0, 0) != stored.completion(1, 0)
    ends = [stored.completion(0, row)[-1] == 8 for row in range(4)]
    assert ends == [True, False, False, True], "a completion at the cap was cut off"
    assert [len(stored.completion(0, row)) for row in range(4)] == [3, 5, 5, 4]


@pytest.mark.parametrize(
    ("shape", "billions", "step_s", "mean", "share", "decode_s"),
    [("0.5b", 0.494, 1.38, 2154, 0.46, 9.0), ("1.5b", 1.54, 3.26, 2080, 0.55, 24.6)],
)
def test_limit_is_the_specified_one(shape, billions, step_s, mean, share, decode_s):
    """A prototype's shares of the limit on 64 completions, and decoding of 512."""
    cost = Cost.of(SHAPES[shape].config(1, 0))
    assert (cost.backbone + cost.vocabulary * cost.hidden) / 1e9 == pytest.approx(billions, rel=0.01)
    lengths = completion_lengths("long_tail", 64, 8192)
    limit_s = cost.training_seconds(128, lengths, extra_forwards=0, flops_per_s=790e12)
    assert limit_s * mean / np.mean(lengths) / step_s == pytest.approx(share, abs=0.01)
    passes = cost.training_seconds(128, lengths, extra_forwards=2, flops_per_s=790e12)
    assert passes == pytest.approx(limit_s * 5 / 3)
    decode = cost.decoding_seconds(128, drawn_lengths(512, 8192, 0), flops_per_s=790e12, bytes_per_s=4.3e12)
    assert decode == pytest.approx(decode_s, rel=0.1)


def test_random_model_is_written_once_and_decodes_every_id(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("TRL_R1_BENCHMARK_CACHE", str(tmp_path))
    monkeypatch.setitem(SHAPES, "mini", ModelShape(64, 2, 2, 1, 96, vocabulary=600))
    folder = checkpoint("mini")
    assert checkpoint("mini") == folder
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(tokenizer) == 600
    assert tokenizer.all_special_ids == [599, 598]
    assert tokenizer.decode([300, 301]) == " w44 w45"
    with pytest.raises(FileNotFoundError, match="neither a folder nor one of"):
        checkpoint("2b")


def test_profile_counts_overlapping_kernels_once():
    assert busy_us([(0, 10), (5, 12), (20, 30), (21, 22)]) == 22
    kinds = {
        "void pytorch_flash::flash_fwd_kernel<...>": "attention",
        "nvjet_tst_256x128_64x4_1x2_h_bz_coopA_TNT": "matmul",
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL": "communication",
        "void at::native::multi_tensor_apply_kernel<FusedAdam>": "optimizer",
        "void at::native::vectorized_elementwise_kernel<4, MulFunctor>": "elementwise",
        "Memcpy DtoD (Device -> Device)": "copy",
    }
    assert {name: kind_of(name) for name in kinds} == kinds


def rows():
    case = {
        "model": "0.5b", "dtype": "bfloat16", "cap": 8192, "lengths": "long_tail", "completions": 64, "schedule": "on_policy",
        "importance": False, "processes": 1, "parallel": "one", "hardware": "NVIDIA H200",
    }  # fmt: skip
    common = {"case": case, "model": "0.5b", "cap": 8192, "schedule": "on_policy", "mean_length": 2154.0, "limit_s": 0.64,
              "losses": [-0.16622, 0.06334, 0.10027], "versions": {"torch": "2.11.0"}}  # fmt: skip
    profile = {"wall_s": 2.0, "idle_s": 0.5, "kinds": {"matmul": {"s": 1.0, "share": 0.5}}, "top": []}
    return [
        common | {"variant": "ours", "step_s": 1.0, "tokens_per_s": 137856.0, "peak_gib": 50.0, "limit_share": 0.64,
                  "ratio_to_stock": 19.4, "profile": profile},
        common | {"variant": "stock", "step_s": 19.4, "tokens_per_s": 7106.0, "peak_gib": 8.7, "limit_share": 0.033,
                  "ratio_to_stock": 1.0},
        common | {"variant": "ours_no_packing", "step_s": None, "tokens_per_s": None, "refused": "losses differ"},
    ]  # fmt: skip


def test_readme_and_picture_come_from_the_results(tmp_path):
    import json

    (tmp_path / "trainer_step.json").write_text(json.dumps(rows()))
    readme = tmp_path / "README.md"
    names = (
        "trainer_step",
        "trainer_step_parts",
        "sft_step",
        "profile",
        "end_to_end",
        "rollout",
        "weight_sync",
        "rewards",
        "sandbox",
        "worker_pool",
        "rejection_sampling",
    )
    readme.write_text("".join(f"<!-- table:{name} -->\nold\n<!-- end -->\nkept\n" for name in names))
    arguments = ["--results", str(tmp_path), "--readme", str(readme)]
    assert plot.main([*arguments, "--check"]) == 1
    assert plot.main(arguments) == 0
    text = readme.read_text()
    assert "old" not in text
    assert text.count("kept") == len(names)
    assert text.index("TRL, as it comes") < text.index("trl_r1, everything on"), "stock comes first"
    assert "No speed for `ours_no_packing`: losses differ." in text
    assert (tmp_path / "trainer_step.png").stat().st_size > 10_000
    assert plot.main([*arguments, "--check"]) == 0


def test_the_readme_has_every_marker():
    text = (plot.FOLDER / "README.md").read_text()
    for name in ("trainer_step", "profile", "sft_step", "end_to_end", "rollout", "rewards"):
        plot.fill(text, name, "")
