"""What a probe's figures say."""

import pytest
from test_contrast import evaluation

from trl_r1.evaluation.readiness import STARTS, assess


@pytest.mark.parametrize(
    ("correct", "start"),
    [
        ([4] * 40, "zero"),
        ([16] * 25 + [8] * 10 + [0] * 5, "filter"),
        ([0] * 39 + [1], "cold_start"),
        ([16] * 38 + [15, 0], "data"),
    ],
)
def test_the_start_follows_from_the_spread(correct, start):
    found = assess(evaluation(correct), [100] * 640, 1024, 1000.0)
    assert found.start == start in STARTS
    assert all(reason.strip() for reason in found.reasons)


def test_settings_follow_from_lengths_and_rates():
    found = assess(evaluation([4] * 40), [100] * 600 + [300] * 40, 1024, 1000.0)
    assert found.settings == {"num_generations": 16, "max_completion_length": 608}
    assert found.measured["seconds_per_512_completions"] == pytest.approx(512 * 112.5 / 1000)
    rare = assess(evaluation([1] * 20 + [0] * 20), [100] * 640, 1024, 1000.0)
    assert rare.settings["num_generations"] > 16  # one right answer in sixteen: larger groups find it


def test_much_cut_off_asks_for_a_higher_cap():
    scores = evaluation([4] * 40)
    for problem in scores.problems:
        object.__setattr__(problem, "truncated", 8)
    found = assess(scores, [512] * 640, 512, 1000.0)
    assert found.settings["max_completion_length"] == 1024
    assert "cut off at 512 tokens" in " ".join(found.reasons)


def test_the_command_that_is_printed_asks_the_same_questions_and_parses():
    import shlex

    from trl_r1.pipeline import parse_r1_zero
    from trl_r1.pipeline.configs import parse_options
    from trl_r1.pipeline.probe import NANO, ProbeArguments, _command

    columns, patterns = '{"prompt": "question", "reference": "answer"}', '{"reference": "#### (.*)"}'
    given = ["--dataset", "openai/gsm8k", "--dataset_config", "main", "--columns", columns, "--patterns", patterns]
    for model in ("some/model", NANO):
        probed = parse_options("probe", (ProbeArguments,), ["--model_name_or_path", model, *given])[0]
        _, stage, *options = shlex.split(_command("r1-zero", probed, {"dynamic_sampling": True, "num_generations": 16}))
        assert stage == "r1-zero"
        arguments, training, policy = parse_r1_zero([*options, "--use_cpu", "true", "--bf16", "false"])
        for name in ("dataset", "dataset_config", "columns", "patterns", "train_split", "domain"):
            assert getattr(arguments, name) == getattr(probed, name), name
        assert policy.model_name_or_path == model
        assert training.num_generations == 16
        assert (training.learning_rate > 1e-4) == (model == NANO)
