"""Processes with deadlines: workers that import neither torch nor the recipe that started them.

`multiprocessing` with "spawn" imports the recipe's `__main__` again in every worker, and with it torch (9 s), and "fork"
is not safe once CUDA or threads run. So a worker here is a fresh interpreter that imports [`trl_r1.workers.entry`], then
the functions that it is asked to run. A worker that is stuck is killed and replaced, one that dies is replaced; either
way the item that it had in hand gets a [`Failure`] and the others their results.
"""

from trl_r1.workers.entry import Failure
from trl_r1.workers.pool import Batch, WorkerPool, default_workers, usable_cores
from trl_r1.workers.process import Limits, WorkerError

__all__ = ["Batch", "Failure", "Limits", "WorkerError", "WorkerPool", "default_workers", "usable_cores"]
