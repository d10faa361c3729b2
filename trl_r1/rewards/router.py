"""Each row to the rewards of its domain, weighted, by training step if asked.

R1's mixtures need it: maths, code, choices and logic have rules, general prompts have reward models, and the latter
enter only in the last 400 of 1,700 steps.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl_r1.exceptions import ConfigurationError, DataError, unknown
from trl_r1.rewards.accuracy import column
from trl_r1.rows import DOMAINS

RewardFunction = Callable[..., list[float | None]]
# The route of domains without one of their own.
DEFAULT = "default"


@dataclass(frozen=True)
class Schedule:
    """A weight that changes at given training steps and is constant in between.

    Args:
        points (`dict[int, float]`): Step from which on a weight holds, to the weight; before the first it is 0.

    Example:

    ```python
    >>> from trl_r1.rewards.router import Schedule
    >>> late = Schedule({1300: 1.0})
    >>> late.at(1299), late.at(1300)
    (0.0, 1.0)
    ```
    """

    points: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.points or any(step < 0 or not math.isfinite(weight) for step, weight in self.points.items()):
            raise ConfigurationError(
                f"The schedule is {dict(self.points)}. It must map steps (0 or more) to finite weights, at least one."
            )
        object.__setattr__(self, "points", dict(sorted(self.points.items())))

    def at(self, step: int) -> float:
        """Return the weight in force at an optimizer step."""
        held = [weight for start, weight in self.points.items() if start <= step]
        return float(held[-1]) if held else 0.0


Weight = float | Schedule | Mapping[int, float]


@dataclass(frozen=True)
class RewardRouter:
    """One reward for a mixture of domains: the weighted sum of the rewards of each row's domain.

    A row for which any of its rewards is `None` gets `None`: a missing reward must not count as 0. Rewards of weight 0 at
    a step are not called; a row that has no others at that step gets `None`.

    Args:
        routes (`dict[str, dict]`):
            Domain to its rewards: functions, or names as in YAML, to weights: numbers, [`Schedule`]s or
            their points (`{1300: 1.0}`). The domain `"default"` serves those without a route.
        name (`str`, defaults to `"routed_reward"`): The name under which TRL logs it.

    Raises:
        [`ConfigurationError`]: For unknown domains and rewards, and weights that are no finite numbers.

    Example:

    ```python
    >>> from trl_r1.rewards import RewardRouter
    >>> router = RewardRouter({"math": {"accuracy": 1.0, "format": 0.5}, "default": {"format": 1.0}})
    >>> gold = "<think> a </think> <answer> 3 </answer>"
    >>> router([gold, gold], reference=["3", ""], domain=["math", "general"])
    [1.5, 1.0]
    ```
    """

    routes: Mapping[str, Mapping[Any, Weight]]
    name: str = "routed_reward"
    _resolved: dict[str, list[tuple[str, RewardFunction, float | Schedule]]] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not self.routes:
            raise ConfigurationError(f"The router has no routes. Give rewards for domains: {', '.join(DOMAINS)}.")
        for domain in self.routes:
            if domain not in (*DOMAINS, DEFAULT):
                raise unknown("domain of a route", domain, (*DOMAINS, DEFAULT))
        object.__setattr__(self, "_resolved", {name: _resolve(name, route) for name, route in self.routes.items()})
        # TRL names its columns after this.
        object.__setattr__(self, "__name__", self.name)

    def __call__(
        self,
        completions: Sequence[Any],
        *,
        domain: Sequence[str | None] | str | None = None,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """Score completions.

        Args:
            completions (`list[str]` or `list[list[dict]]`): Completions as text or as messages.
            domain (`list[str]` or `str`, *optional*): The rows' domains; a row without one is `"math"`.
            trainer_state (`TrainerState`, *optional*): Given by TRL; its `global_step` is what schedules go by.
            log_metric (`Callable`, *optional*): Given by TRL; logs each part's mean, before weighting, by domain.
            log_extra (`Callable`, *optional*): Given by TRL; the parts' columns are put together again.
            kwargs: Columns of the data set, split among the rewards.

        Returns:
            `list[float | None]`: The weighted sums.

        Raises:
            [`ConfigurationError`]: For a domain without a route, or a schedule without `trainer_state`.
            [`DataError`]: When a reward returns another number of values than it was given completions.
        """
        n = len(completions)
        domains = [column(domain, i, "math") for i in range(n)]
        totals: list[float | None] = [None] * n
        extra: dict[str, list[Any]] = {}
        given = {"trainer_state": trainer_state, "log_metric": log_metric}
        shared = {key: value for key, value in given.items() if value is not None}
        for name in dict.fromkeys(domains):
            rows = [i for i in range(n) if domains[i] == name]
            parts: list[Sequence[float | None]] = []
            for label, reward, weight in self._route(name):
                factor = _weight(weight, trainer_state, label)
                if factor == 0:
                    continue
                columns = {key: _select(value, rows, n) for key, value in kwargs.items()}
                if log_extra is not None:
                    columns["log_extra"] = _Scatter(extra, rows, n)
                scores = reward(
                    completions=[completions[i] for i in rows],
                    domain=[name] * len(rows),
                    **shared,
                    **columns,
                )
                if len(scores) != len(rows):
                    raise DataError(
                        f"{label} returned {len(scores)} values for {len(rows)} completions. It needs one each."
                    )
                _log_mean(log_metric, f"{self.name}/{name}/{label}", scores)
                parts.append([None if score is None else factor * score for score in scores])
            for i, *row in zip(rows, *parts, strict=True):
                totals[i] = _total(row)
        for title, values in extra.items():
            if log_extra is not None:
                log_extra(title, values)
        return totals

    def check_domains(self, domains: Iterable[str]) -> None:
        """Refuse, before training, domains of the data without a route.

        Raises:
            [`ConfigurationError`]: Naming the domain.
        """
        for domain in domains:
            self._route(domain)

    def parts(self, completions: Sequence[Any], domain: str, **columns: Any) -> dict[str, float | None]:
        """Score one completion by each reward of a domain's route, before weighting, for previews and checks.

        Args:
            completions (`list` of length 1): The completion.
            domain (`str`): Whose route.
            columns: What a trainer passes besides, each a list of length 1.

        Returns:
            `dict[str, float | None]`: Scores by the rewards' names.
        """
        columns = {**columns, "domain": [domain]}
        return {label: reward(completions=completions, **columns)[0] for label, reward, _ in self._route(domain)}

    def _route(self, domain: str) -> list[tuple[str, RewardFunction, float | Schedule]]:
        route = self._resolved.get(domain, self._resolved.get(DEFAULT))
        if route is None:
            raise unknown("domain", domain, self._resolved, f"Give the router a route for it, or for {DEFAULT!r}.")
        return route


def _resolve(domain: str, route: Mapping[Any, Weight]) -> list[tuple[str, RewardFunction, float | Schedule]]:
    # That module imports this one.
    from trl_r1.rewards.configured import get_reward

    if not route:
        raise ConfigurationError(f"The route of {domain!r} has no rewards. Give it some, or leave the domain out.")
    resolved = []
    for reward, weight in route.items():
        function = get_reward(reward)
        label = getattr(function, "__name__", type(function).__name__)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            raise ConfigurationError(f"{label} is asynchronous. The router calls plain functions only.")
        resolved.append((label, function, _check_weight(weight, label, domain)))
    return resolved


def _check_weight(weight: Weight, label: str, domain: str) -> float | Schedule:
    if isinstance(weight, Schedule):
        return weight
    if isinstance(weight, Mapping):
        return Schedule(weight)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ConfigurationError(
            f"The weight of {label} for {domain!r} is {weight!r}. It must be a finite number, or steps with the weights "
            "from then on."
        )
    return float(weight)


def _weight(weight: float | Schedule, trainer_state: Any, label: str) -> float:
    if not isinstance(weight, Schedule):
        return weight
    if trainer_state is None:
        raise ConfigurationError(
            f"The weight of {label} goes by training step, and no `trainer_state` was passed. TRL's trainers pass it; "
            "elsewhere give the router plain weights."
        )
    return weight.at(int(trainer_state.global_step))


def _select(value: Any, rows: list[int], n: int) -> Any:
    """Return these rows' part of a column; what is no column is the same for all."""
    return [value[i] for i in rows] if isinstance(value, list | tuple) and len(value) == n else value


def _total(parts: Sequence[float | None]) -> float | None:
    """Sum a row's parts; `None` when one is missing (TRL may show that as NaN) or there is none."""
    known = [part for part in parts if part is not None and not math.isnan(part)]
    return sum(known) if known and len(known) == len(parts) else None


def _log_mean(log_metric: Callable[[str, float], None] | None, name: str, scores: Sequence[float | None]) -> None:
    known = [score for score in scores if score is not None]
    if log_metric is not None and known:
        log_metric(name, sum(known) / len(known))


@dataclass
class _Scatter:
    """A `log_extra` for some rows: TRL's table needs one value for each row of the batch."""

    columns: dict[str, list[Any]]
    rows: list[int]
    n: int

    def __call__(self, title: str, values: list[Any]) -> None:
        whole = self.columns.setdefault(title, [""] * self.n)
        for i, value in zip(self.rows, values, strict=True):
            whole[i] = value
