"""How good is it: metrics over samples, and curves over a run."""

from __future__ import annotations

from trl_r1.evaluation.metrics import Evaluation, ProblemScore, check_k, score, score_row

__all__ = ["Evaluation", "ProblemScore", "check_k", "score", "score_row"]
