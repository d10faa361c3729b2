"""Rewards computed in worker processes, while the trainer does something else.

A reward that is wrapped in [`RewardPool`] is a reward still, of TRL's signature. Handing it the completions as soon as
they exist ([`RewardPool.submit`]) lets the workers score them during the old and reference passes.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from trl_r1.exceptions import ConfigurationError, DataError
from trl_r1.responses import completion_text
from trl_r1.rewards.accuracy import REFERENCE_COLUMNS, Completions, accuracy_reward
from trl_r1.verifiers.in_workers import WorkerSettings
from trl_r1.workers import Batch, Failure, Limits, WorkerError, WorkerPool
from trl_r1.workers.pool import picklable

# A step of R1's size takes minutes; what takes longer than this would run into a collective's timeout (30 min in TRL).
BATCH_SECONDS = 600.0
# What TRL passes that belongs to the trainer's process. Calls of the two loggers are recorded and repeated there.
_LOGGERS = ("log_extra", "log_metric")
# What a schedule needs of the trainer's state, which as a whole is large and imports torch.
_STATE = ("global_step", "epoch", "max_steps", "num_train_epochs")

logger = logging.getLogger(__name__)

RewardFunction = Callable[..., list[float | None]]
Item = tuple[dict[str, Any], dict[str, Any], frozenset[str]]


def warm_up() -> None:
    """Import and try Math-Verify, which takes seconds: run in each new worker, before any deadline."""
    accuracy_reward([r"\boxed{x+1}"], reference=[r"x+2"])


@dataclass(frozen=True)
class WarmUp:
    """[`warm_up`] in a worker that has this process's executor of programs and its judge, for a `WorkerPool`'s `initializer`.

    Args:
        settings ([`~trl_r1.verifiers.in_workers.WorkerSettings`]): Usually `WorkerSettings.of_this_process()`.
    """

    settings: WorkerSettings

    def __call__(self) -> None:
        """Run once in each new worker."""
        self.settings.apply()
        warm_up()


@dataclass(frozen=True)
class _Score:
    """What one completion earned, and what its reward logged."""

    reward: float | None
    extras: dict[str, list[Any]]
    metrics: dict[str, list[float]]


@dataclass(frozen=True)
class _Scorer:
    """What a worker runs: a reward on one completion, its programs and judge the same as in the trainer's process."""

    reward: RewardFunction
    settings: WorkerSettings

    def __call__(self, item: Item) -> _Score:
        self.settings.apply()
        row, shared, loggers = item
        extras: dict[str, list[Any]] = {}
        metrics: dict[str, list[float]] = {}
        record: dict[str, Callable[[str, Any], None]] = {
            "log_extra": lambda name, values: extras.update({name: list(values)}),
            "log_metric": lambda name, value: metrics.setdefault(name, []).append(float(value)),
        }
        columns = {name: [value] for name, value in row.items()}
        rewards = self.reward(**columns, **shared, **{name: record[name] for name in loggers})
        if len(rewards) != 1:
            raise ConfigurationError(f"The reward returned {len(rewards)} values for 1 completion: {rewards!r:.200}.")
        # A numpy or torch scalar would have the parent import its library.
        return _Score(None if rewards[0] is None else float(rewards[0]), extras, metrics)


class RewardPool:
    r"""A reward, computed in worker processes; itself a reward of TRL's signature.

    Each completion is scored by itself: a reward that compares the completions of a group does not belong here.
    Whatever the workers import is parsed and cached once per worker, gold answers among it. Programs run in them by the
    executor that this process has when completions are handed over ([`trl_r1.sandbox.use`]), through a launcher of each
    worker's own, and rows for the judge are put to the one it has then ([`trl_r1.verifiers.configure_judge`]); both must
    be picklable.

    Args:
        reward (`Callable`):
            A reward of TRL's signature, or a picklable object that is one, which workers can import by its name.
        workers (`int` or [`~trl_r1.workers.WorkerPool`], *optional*):
            Number of processes, this rank's share of the cores when not given; or a pool that several rewards share.
        limits ([`~trl_r1.workers.Limits`], *optional*):
            Deadlines and memory; not with a shared pool, which has its own. By default 3 CPU seconds per completion
            and 600 s per batch.
        failed (`float`, *optional*, defaults to 0.0):
            Reward of a completion over which the worker was killed, died or ran out of memory: it is the answer's doing.
            One that was not reached before the batch's deadline gets `None`.
        completion_ids (`bool`, *optional*):
            Whether to send the token ids too. By default if the reward has a parameter of this name: they are as large
            as the texts.

    Raises:
        [`~trl_r1.exceptions.ConfigurationError`]: When workers cannot import the reward.

    Example:

    ```python
    >>> from trl_r1.rewards.accuracy import accuracy_reward
    >>> from trl_r1.rewards.pool import RewardPool
    >>> reward = RewardPool(accuracy_reward, workers=2)
    >>> reward(["<think> 9 * 8 </think> \\boxed{72}", "\\boxed{71}"], reference=["72", "72"])
    [1.0, 0.0]
    >>> reward.close()
    ```
    """

    def __init__(
        self,
        reward: RewardFunction,
        workers: int | WorkerPool | None = None,
        *,
        limits: Limits | None = None,
        failed: float | None = 0.0,
        completion_ids: bool | None = None,
    ) -> None:
        if not callable(reward):
            raise ConfigurationError(f"RewardPool takes a reward function, not {reward!r} ({type(reward).__name__}).")
        if isinstance(workers, WorkerPool) and limits is not None:
            raise ConfigurationError("A shared WorkerPool has limits already: pass limits=… to it, not to RewardPool.")
        picklable(reward)
        self.__name__ = str(getattr(reward, "__name__", type(reward).__name__))
        self.reward = reward
        self.failed = failed
        self.workers = (
            workers
            if isinstance(workers, WorkerPool)
            else WorkerPool(workers, limits or Limits(batch_seconds=BATCH_SECONDS), initializer=warm_up)
        )
        named = "completion_ids" in inspect.signature(reward).parameters
        self._send_ids = named if completion_ids is None else completion_ids
        self._submitted: tuple[list[Item], Batch[_Score]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_submitted": None}

    def start(self) -> RewardPool:
        """Start the workers and wait until they are warm; otherwise the first call does."""
        self.workers.start()
        return self

    def close(self) -> None:
        """End the workers, also those of a shared pool. They end with the interpreter in any case."""
        self.workers.close()
        self._submitted = None

    def submit(self, completions: Completions, **columns: Any) -> None:
        """Hand over completions and return at once. The call with the same arguments then collects the rewards.

        Args:
            completions (`list`): As in a call.
            columns: As in a call, all of them.
        """
        if self._submitted is not None:
            self._submitted[1].cancel()
        items = self._items(completions, columns)
        scorer = _Scorer(self.reward, WorkerSettings.of_this_process())
        self._submitted = items, self.workers.submit(scorer, items, keys=_questions(items))

    def __call__(self, completions: Completions, **columns: Any) -> list[float | None]:
        """Score completions, or collect what was submitted if it is just this.

        Args:
            completions (`list[str]` or `list[list[dict]]`): Completions as text or as messages.
            columns: What TRL passes: columns of the data set, `prompts`, `log_extra` …

        Returns:
            `list[float | None]`: What the reward returns, in order.

        Raises:
            [`~trl_r1.workers.WorkerError`]: When the reward raised an exception, with its traceback.
        """
        items = self._items(completions, columns)
        if self._submitted is None or not _same(self._submitted[0], items):
            if self._submitted is not None:
                logger.warning("%s: not what was submitted; computed anew.", self.__name__)
            self.submit(completions, **columns)
        assert self._submitted is not None
        (_, batch), self._submitted = self._submitted, None
        scores = batch.results()
        self._report(completions, scores, columns.get("log_metric"))
        _repeat_logs(scores, columns.get("log_extra"), columns.get("log_metric"))
        return [self._value(score) for score in scores]

    def _items(self, completions: Completions, columns: dict[str, Any]) -> list[Item]:
        """Cut a call into one per completion, without what workers cannot have."""
        if columns.get("environments") is not None:
            raise ConfigurationError(
                f"{self.__name__} is passed environments, which live in the trainer's process. Use it without RewardPool."
            )
        rows: list[dict[str, Any]] = [{"completions": completion} for completion in completions]
        shared: dict[str, Any] = {}
        for name, value in columns.items():
            if name in _LOGGERS or name == "environments" or (name == "completion_ids" and not self._send_ids):
                continue
            if name == "trainer_state":
                state = {key: getattr(value, key) for key in _STATE if hasattr(value, key)}
                shared[name] = SimpleNamespace(**state)
            elif isinstance(value, list | tuple):
                if len(value) != len(rows):
                    raise DataError(
                        f"{self.__name__}: column {name!r} has {len(value)} values for {len(rows)} completions; "
                        "one for each is needed."
                    )
                for row, item in zip(rows, value, strict=True):
                    row[name] = item
            else:
                shared[name] = value
        loggers = frozenset(name for name in _LOGGERS if columns.get(name) is not None)
        return [(row, shared, loggers) for row in rows]

    def _value(self, score: _Score | Failure) -> float | None:
        if isinstance(score, Failure):
            return None if score.kind == "batch_deadline" else self.failed
        return score.reward

    def _report(
        self,
        completions: Completions,
        scores: Sequence[_Score | Failure],
        log_metric: Callable[[str, float], None] | None,
    ) -> None:
        """Raise the reward's own exception; warn about completions that could not be scored."""
        failures = {index: score for index, score in enumerate(scores) if isinstance(score, Failure)}
        for index, failure in failures.items():
            if failure.kind == "error":
                text = completion_text(completions[index])
                raise WorkerError(
                    f"{self.__name__} raised an exception on completion {index}, …{text[-200:]!r}:\n{failure.detail}"
                )
        if failures:
            index, first = next(iter(failures.items()))
            counts = ", ".join(f"{n} by {kind}" for kind, n in Counter(f.kind for f in failures.values()).items())
            logger.warning(
                "%s: %d of %d completions failed (%s). The first, %d (%s), ends in %r. They earn %s (None after "
                "the batch's deadline).",
                *(self.__name__, len(failures), len(scores), counts, index, first.detail),
                *(completion_text(completions[index])[-100:], self.failed),
            )
        if log_metric is not None and scores:
            log_metric(f"{self.__name__}/failed", len(failures) / len(scores))


def _questions(items: list[Item]) -> list[str]:
    """A key per item, equal for completions of one question: their gold answer is then parsed by one worker."""
    names = ("prompts", *REFERENCE_COLUMNS)
    return [repr([row[name] for name in names if isinstance(row.get(name), str | list)]) for row, _, _ in items]


def _same(submitted: list[Item], called: list[Item]) -> bool:
    try:
        return submitted == called
    except ValueError:  # arrays among the columns, of which numpy does not say whether they are equal
        return False


def _repeat_logs(
    scores: Sequence[_Score | Failure],
    log_extra: Callable[[str, list[Any]], None] | None,
    log_metric: Callable[[str, float], None] | None,
) -> None:
    """Log in the trainer's process what the reward logged in workers: columns whole, metrics as their mean."""
    extras: dict[str, list[Any]] = {}
    metrics: dict[str, list[float]] = {}
    for index, score in enumerate(scores):
        if isinstance(score, Failure):
            continue
        for name, values in score.extras.items():
            extras.setdefault(name, [None] * len(scores))[index] = values[0] if values else None
        for name, numbers in score.metrics.items():
            metrics.setdefault(name, []).extend(numbers)
    if log_extra is not None:
        for name, values in extras.items():
            log_extra(name, values)
    if log_metric is not None:
        for name, numbers in metrics.items():
            log_metric(name, sum(numbers) / len(numbers))
