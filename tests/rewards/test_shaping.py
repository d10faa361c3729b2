"""Tags, repetition and length: equal to TRL's own where TRL has one, on our verdicts."""

import pickle
import threading

import pytest
from trl.rewards import get_cosine_scaled_reward, get_repetition_penalty_reward, get_soft_overlong_punishment

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.rewards import (
    CosineReward,
    RepetitionReward,
    SoftOverlongReward,
    TagCountReward,
    repetition_reward,
    tag_count_reward,
)

GOLD = "<think> a </think> <answer> 3 </answer>"
RIGHT, WRONG = "<think> a </think> \\boxed{3}", "<think> \\boxed{3} </think> \\boxed{4}"


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (GOLD, 1.0),
        ("noise " + GOLD + " noise", 1.0),
        ("<think> a </think> 3", 0.5),
        ("", 0.0),
        ("3", 0.0),
        (GOLD + GOLD, 0.0),
        ("<think><think> a </think> <answer> 3 </answer>", 0.75),
        (GOLD + "</answer>" * 50, 0.75),
        ("</answer> <answer> </think> <think>", 0.25),
        ("<answer> 3 </answer> <think> a </think>", 0.5),
    ],
)
def test_each_tag_once_and_in_its_place(text, reward):
    assert tag_count_reward([text]) == [reward]
    assert tag_count_reward([[{"role": "assistant", "content": text}]]) == [reward]


def test_tags_of_the_prefill_count():
    rest = GOLD.removeprefix("<think>")
    assert tag_count_reward([rest]) == [0.75]
    assert tag_count_reward([rest, rest], prefill=["<think>", None]) == [1.0, 0.75]
    assert tag_count_reward([GOLD], prefill="<think>") == [0.75]
    assert TagCountReward(tags=("<think>", "</think>"))(["<think> a </think> 3"]) == [1.0]
    with pytest.raises(ConfigurationError, match="different, non-empty"):
        TagCountReward(tags=("<think>", "<think>"))


def test_repetition_is_trls():
    ids = [[1, 2, 3, 4], [5] * 40, [1, 2], [1, 2, 3] * 20, []]
    expected = get_repetition_penalty_reward(3, -1.0)(completion_ids=ids)
    assert repetition_reward(["x"] * 5, completion_ids=ids, reference=["1"] * 5) == expected
    assert expected[0] == 0.0
    assert expected[1] < -0.9
    assert RepetitionReward(ngram_size=2, max_penalty=-0.5)(completion_ids=ids)[1] > -0.5
    with pytest.raises(ConfigurationError, match=r"max_penalty 0\.5"):
        RepetitionReward(max_penalty=0.5)


def test_soft_overlong_is_trls_and_clamped():
    """Trap 9."""
    ids = [[1] * n for n in (10, 80, 90, 100, 101, 5_000)]
    rewards = SoftOverlongReward(max_length=100, cache=20)(completion_ids=ids)
    assert rewards == get_soft_overlong_punishment(100, 20)(completion_ids=ids)
    assert rewards == [0.0, 0.0, -0.5, -1.0, -1.0, -1.0]
    with pytest.raises(ConfigurationError, match="cache is 200"):
        SoftOverlongReward(max_length=100, cache=200)


def test_trap_9_cosine_is_trls_in_tokens_and_clamped():
    lengths = [1, 50, 100, 101, 150, 5_000]
    ids = [[1] * n for n in lengths]
    theirs = get_cosine_scaled_reward(max_len=100)
    for text, boxed in ((RIGHT, "\\boxed{3}"), (WRONG, "\\boxed{4}")):
        expected = theirs([[{"content": boxed}]] * 6, ["$3$"] * 6, ids)
        for completions in ([text] * 6, [[{"role": "assistant", "content": text}]] * 6):
            ours = CosineReward(max_length=100)(completions, completion_ids=ids, reference=["3"] * 6)
            assert ours == expected
        assert ours[2] == ours[3] == ours[4] == ours[5]


def test_cosine_goes_by_our_verdicts():
    reward = CosineReward(max_length=10)
    columns = {
        "reference": ["3", "\\text{Tuesday}", "B", ""],
        "domain": ["math", "math", "stem", "general"],
        "prefill": ["<think>", "", "", ""],
    }
    completions = ["so \\boxed{3}", RIGHT, "<think> a </think> (B)", RIGHT]
    scores = reward(completions, completion_ids=[[1] * 5] * 4, **columns)
    # An answer inside the prefilled thinking is none; two rows have nothing to tell by.
    assert [None if score is None else round(score, 6) for score in scores] == [-0.75, None, 0.75, None]
    with pytest.raises(ConfigurationError, match="must not fall"):
        CosineReward(max_length=10, max_value_wrong=0.9)


def test_off_the_main_thread():
    scores = []
    reward = CosineReward(max_length=10)
    thread = threading.Thread(target=lambda: scores.extend(reward([RIGHT], completion_ids=[[1]], reference=["3"])))
    thread.start()
    thread.join()
    assert 0.9 < scores[0] <= 1.0


@pytest.mark.parametrize("reward", [CosineReward(8), SoftOverlongReward(8, 2), RepetitionReward(2), TagCountReward()])
def test_named_and_picklable(reward):
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward
    assert copy.__name__.endswith("_reward")
    if not isinstance(reward, TagCountReward):
        with pytest.raises(DataError, match=rf"{copy.__name__}.*completion_ids"):
            copy(["a"], reference=["1"])
