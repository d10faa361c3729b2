"""Rewards from YAML: names, the settings of those that have some, and routes by domain.

```yaml
rewards: [accuracy, format, language_consistency]
reward_weights: [1.0, 1.0, 0.5]                       # TRL's own
reward_settings: {language_consistency: {target: zh}}  # arguments of the reward's class
domain_rewards:                                       # one more reward, that of the row's domain
  math: [accuracy, format]                            # weight 1 each
  code: {accuracy: 2.0, format: 1.0}                  # by weight
  default: {format: {0: 0.0, 1300: 1.0}}              # by weight from a step on
```
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from trl_r1.exceptions import ConfigurationError, unknown
from trl_r1.rewards.accuracy import accuracy_reward
from trl_r1.rewards.control import random_reward
from trl_r1.rewards.format import format_reward, think_format_reward
from trl_r1.rewards.language import LanguageConsistencyReward, language_consistency_reward
from trl_r1.rewards.router import RewardRouter
from trl_r1.rewards.shaping import (
    CosineReward,
    RepetitionReward,
    SoftOverlongReward,
    TagCountReward,
    repetition_reward,
    tag_count_reward,
)

logger = logging.getLogger(__name__)

RewardFunction = Callable[..., list[float | None]]
Settings = Mapping[str, Mapping[str, Any]]

# What needs no settings.
REWARDS: dict[str, RewardFunction] = {
    "accuracy": accuracy_reward,
    "format": format_reward,
    "think_format": think_format_reward,
    "random": random_reward,
    "language_consistency": language_consistency_reward,
    "tag_count": tag_count_reward,
    "repetition": repetition_reward,
}
# What takes some; a name may be in both.
CONFIGURABLE: dict[str, Callable[..., RewardFunction]] = {
    "language_consistency": LanguageConsistencyReward,
    "tag_count": TagCountReward,
    "repetition": RepetitionReward,
    "cosine": CosineReward,
    "soft_overlong": SoftOverlongReward,
}
NAMES = tuple(dict.fromkeys((*REWARDS, *CONFIGURABLE)))
# The setting that the cap of a completion fills where nobody says otherwise.
_LENGTH = "max_length"


def get_reward(
    name: str | RewardFunction, settings: Mapping[str, Any] | None = None, *, max_length: int | None = None
) -> RewardFunction:
    """Return a reward by its name in YAML.

    Args:
        name (`str` or `Callable`):
            `"accuracy"` (or `"accuracy_reward"`), `"format"`, `"think_format"`, `"language_consistency"`, `"tag_count"`,
            `"repetition"`, `"cosine"`, `"soft_overlong"`, `"random"`; the dotted path of your own function, or of a class
            of rewards, which is constructed; or a function, which is returned as it is.
        settings (`dict`, *optional*): Arguments of the reward's class, such as `{"target": "zh"}`.
        max_length (`int`, *optional*): Cap of a completion in tokens, for `max_length` where `settings` leave it out.

    Returns:
        `Callable`: The reward, of TRL's signature.

    Raises:
        [`ConfigurationError`]: For a name that does not exist, a path that cannot be imported or is no reward, and
            settings that are unknown, missing or impossible.
    """
    if not isinstance(name, str):
        if settings:
            raise ConfigurationError(f"{name!r} is a reward already: construct it with its settings {dict(settings)}.")
        return name
    short = name.removeprefix("trl_r1.rewards.").removesuffix("_reward")
    if short in CONFIGURABLE and (settings or short not in REWARDS):
        return _construct(short, CONFIGURABLE[short], settings or {}, max_length)
    found: Any = REWARDS[short] if short in REWARDS else _imported(name)
    if inspect.isclass(found):
        return _construct(name, found, settings or {}, max_length)
    if settings:
        raise ConfigurationError(
            f"Reward {name!r} takes no settings, got {dict(settings)}. Those that do: {', '.join(CONFIGURABLE)}, and "
            "classes of your own by their dotted path."
        )
    return cast(RewardFunction, found)


def build_rewards(
    names: Sequence[str | RewardFunction],
    *,
    settings: Settings | None = None,
    domains: Mapping[str, Any] | None = None,
    max_length: int | None = None,
) -> list[RewardFunction]:
    """Build the rewards of a run from what YAML says; see the head of this module.

    Args:
        names (`list`): Rewards of every row, by name, dotted path or as functions.
        settings (`dict[str, dict]`, *optional*): Reward to the arguments of its class, wherever its name stands.
        domains (`dict`, *optional*):
            Domain (or `"default"`) to its rewards: a list of names, or names to weights, or to weights by step. Together
            they are one [`~trl_r1.rewards.RewardRouter`], which comes last.
        max_length (`int`, *optional*): Cap of a completion in tokens, for rewards that go by length.

    Returns:
        `list[Callable]`: The rewards, in order.

    Raises:
        [`ConfigurationError`]: As [`get_reward`]; for settings of an unknown reward, rewards named twice, and none at all.
    """
    given = {_short(name): values for name, values in _mapping("reward_settings", settings).items()}
    routes = {domain: _weights(domain, route) for domain, route in _mapping("domain_rewards", domains).items()}
    used = [*names, *(name for route in routes.values() for name in route)]
    for name in given.keys() - {_short(one) for one in used}:
        if name not in CONFIGURABLE:
            raise unknown("reward in `reward_settings`", name, dict.fromkeys(map(str, (*used, *CONFIGURABLE))))
        logger.info("The settings of %r are not used: no reward of this name is asked for.", name)
    built = {
        name: get_reward(name, _mapping(f"reward_settings of {name}", given.get(_short(name))), max_length=max_length)
        for name in used
    }
    rewards = [built[name] for name in names]
    if routes:
        rewards.append(
            RewardRouter({d: {built[name]: weight for name, weight in route.items()} for d, route in routes.items()})
        )
    labels = [getattr(reward, "__name__", type(reward).__name__) for reward in rewards]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigurationError(
            f"rewards name {', '.join(twice)} twice. Name each once; `reward_weights` makes it count more."
        )
    if not rewards:
        raise ConfigurationError("rewards is empty: name at least one, as R1-Zero's `accuracy format`.")
    return rewards


def _short(name: str | RewardFunction) -> str:
    return name.removesuffix("_reward") if isinstance(name, str) else getattr(name, "__name__", repr(name))


def _mapping(what: str, value: Any) -> dict[Any, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigurationError(f"{what} is {value!r}. It must be a mapping, as in `{{name: …}}`.")
    return dict(value or {})


def _weights(domain: str, route: Any) -> dict[Any, Any]:
    """Read one route: a list of names, or a mapping of names to weights; steps may be text, as in JSON."""
    if isinstance(route, str):
        route = [route]
    if not isinstance(route, Mapping):
        if not isinstance(route, list | tuple):
            raise ConfigurationError(
                f"domain_rewards of {domain!r} is {route!r}. It must be a list of rewards, or a mapping of rewards to "
                "weights."
            )
        return dict.fromkeys(route, 1.0)
    return {
        name: {_step(step): value for step, value in weight.items()} if isinstance(weight, Mapping) else weight
        for name, weight in route.items()
    }


def _step(step: Any) -> int:
    if not str(step).isdecimal():
        raise ConfigurationError(f"{step!r} in domain_rewards is no training step. Write whole numbers from 0 on.")
    return int(step)


def _imported(name: str) -> Any:
    if "." not in name:
        raise unknown("reward", name, NAMES, "Your own function is named by its dotted path.")
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise unknown("reward", name, NAMES, f"Importing the dotted path failed: {error}.") from error
    if not callable(found):
        raise ConfigurationError(f"Reward {name!r} is a {type(found).__name__}. It must be a function.")
    return found


def _construct(name: str, build: Any, settings: Mapping[str, Any], max_length: int | None) -> RewardFunction:
    parameters = inspect.signature(build).parameters
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for setting in settings:
        if setting not in parameters and not open_ended:
            raise unknown(f"setting of the reward {name!r}", setting, parameters)
    values = dict(settings)
    if _LENGTH in parameters and max_length is not None:
        values.setdefault(_LENGTH, max_length)
    missing = [
        one.name
        for one in parameters.values()
        if one.default is one.empty and one.name not in values and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    if missing:
        raise ConfigurationError(
            f"Reward {name!r} needs {', '.join(missing)}. Say so in YAML: reward_settings: {{{name}: {{{missing[0]}: …}}}}."
        )
    try:
        return cast(RewardFunction, build(**values))
    except TypeError as error:  # a text where a number belongs
        raise ConfigurationError(f"Settings {values} of the reward {name!r} cannot be used: {error}.") from error
