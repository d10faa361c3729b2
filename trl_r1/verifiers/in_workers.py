"""What verifiers need in a worker process: the executor of programs and the judge that the starting process has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trl_r1 import sandbox
from trl_r1.sandbox import Executor
from trl_r1.sandbox.launcher import launched
from trl_r1.verifiers.judge import Judge, configure_judge, configured


@dataclass(frozen=True)
class WorkerSettings:
    """Sent along with the function that workers run, which calls [`apply`] before it verifies.

    Both must be picklable: a judge that is a local sampler is not, nor is an executor that is a lambda.

    Args:
        executor ([`~trl_r1.sandbox.Executor`]): Runs programs. A [`~trl_r1.sandbox.Sandbox`] does by a launcher of each worker's own.
        judge ([`~trl_r1.verifiers.judge.Judge`], *optional*): As [`~trl_r1.verifiers.configure_judge`] was given it.

    Example:

    ```python
    >>> from trl_r1.verifiers.in_workers import WorkerSettings
    >>> WorkerSettings.of_this_process().judge is None
    True
    ```
    """

    executor: Executor
    judge: Judge | None = None

    @classmethod
    def of_this_process(cls) -> WorkerSettings:
        """Take what this process has now."""
        return cls(launched(sandbox.current()), configured())

    def apply(self) -> None:
        """Use them in this process. Cheap when they are in use already."""
        if _behind(sandbox.current()) != _behind(self.executor):  # an equal one, with its launcher, is kept
            sandbox.use(self.executor)
        configure_judge(self.judge)


def _behind(executor: Executor) -> Any:
    """What a bound method belongs to, which tells equal executors; the function itself when it is none."""
    return getattr(executor, "__self__", executor)
