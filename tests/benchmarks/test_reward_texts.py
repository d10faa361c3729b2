from reward_texts import PATHOLOGICAL, ours, texts, trl


def test_pathological_answers_are_a_share_and_change_nothing_else():
    plain, astray = texts(64), texts(64, pathological_share=0.03)
    assert plain == texts(64) != texts(64, seed=1)
    assert plain["solution"] == astray["solution"]
    changed = [i for i in range(64) if plain["completions"][i] != astray["completions"][i]]
    assert len(changed) == 2
    contents = [astray["completions"][i][0]["content"] for i in changed]
    assert all(any(f"\\boxed{{{answer}}}" in content for answer in PATHOLOGICAL.values()) for content in contents)


def test_both_libraries_agree_on_every_completion():
    batches = [texts(1), texts(48, seed=2)]
    rewards = ours(batches)[1]
    assert 10 < sum(rewards) < 38
    assert rewards == trl(batches)[1]
