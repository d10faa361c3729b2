"""Optimizer steps on stored rollouts, by stock TRL and by ours."""

import pytest
from stored_rollouts import Gradients, replayed, stored_rollout


@pytest.fixture
def step(build_trainer):
    """A function that takes two optimizer steps on a stored rollout and returns the log and the gradients."""

    def take(trainer_class, *, corrects=False, rollout_seed=0, prepare=None, **settings):
        rows = 32
        rollout = stored_rollout(rows, seed=rollout_seed)
        settings = {"max_steps": 2, "max_completion_length": 16, "beta": 0.0, "max_grad_norm": 0.0} | settings
        trainer = build_trainer(trainer_class=replayed(trainer_class, rollout), **settings)
        if corrects:  # the engine's log-probabilities come from the stored rollout, so no engine is needed
            trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True
        if prepare is not None:
            prepare(trainer)
        gradients = Gradients()
        trainer.add_callback(gradients)
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        return log, gradients.steps, trainer

    return take
