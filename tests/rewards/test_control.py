import pickle
from functools import partial

from trl_r1.rewards import random_reward

TEXTS = [f"completion {i}" for i in range(2_000)]


def test_a_fair_coin_that_falls_the_same_way_again():
    prompts = ["q"] * len(TEXTS)
    rewards = random_reward(TEXTS, prompts=prompts)
    assert set(rewards) == {0.0, 1.0}
    assert 0.45 < sum(rewards) / len(rewards) < 0.55
    assert random_reward(TEXTS[::-1], prompts=prompts, reference=["72"] * len(TEXTS)) == rewards[::-1]
    assert random_reward([[{"role": "assistant", "content": text}] for text in TEXTS], prompts=prompts) == rewards


def test_seed_and_prompt_matter():
    rewards = random_reward(TEXTS, prompts=["q"] * len(TEXTS))
    for other in (
        random_reward(TEXTS, prompts=["r"] * len(TEXTS)),
        pickle.loads(pickle.dumps(partial(random_reward, seed=1)))(TEXTS, prompts=["q"] * len(TEXTS)),
    ):
        agreement = sum(a == b for a, b in zip(rewards, other, strict=True)) / len(TEXTS)
        assert 0.45 < agreement < 0.55
