"""Row functions of the benchmarks whose rows are more than columns: options to shuffle, tests to unpack, programs to ask for."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

from trl_r1.exceptions import DataError
from trl_r1.rows import Row
from trl_r1.verifiers import readable
from trl_r1.verifiers.choice import LETTERS

# Wordings of ours: R1 prints none for programs.
FUNCTION_TASK = (
    "Complete the following Python function. Reply with the whole function, imports included, in one ```python block.\n\n"
    "```python\n{code}\n```"
)
PROGRAM_TASK = (
    "Write a Python 3 program that solves the following problem: it reads from standard input and writes to standard "
    "output. Reply with the whole program in one ```python block.\n\n{text}"
)
METHOD_TASK = (
    "Solve the following problem by completing the given class. Reply with the whole class in one ```python block.\n\n"
    "{text}\n\n```python\n{code}\n```"
)


def math_500(example: Mapping[str, Any]) -> Row:
    r"""Turn a MATH-500 example into a row; words (`\text{Evelyn}`) are compared as texts, letters (`\text{(C)}`) as options."""
    row = Row(str(example["problem"]), str(example["answer"]), "math", "en", str(example["unique_id"]))
    if readable(row) is None:
        return row
    row = replace(row, reference=re.sub(r"\\text(?:bf)?\s*\{([^{}]*)\}", r"\1", row.reference))
    option = replace(row, verifier="choice")
    return option if readable(option) is None else replace(row, verifier="exact")


def gpqa(example: Mapping[str, Any]) -> Row:
    """Turn a GPQA example into a row whose options are in an order that depends on the question alone."""
    question = str(example["Question"]).strip()
    options = [str(example["Correct Answer"]).strip()]
    options += [str(example[f"Incorrect Answer {number}"]).strip() for number in (1, 2, 3)]
    right = options[0]
    Random(hashlib.sha256(question.encode()).hexdigest()).shuffle(options)
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    reference = {"answer": LETTERS[options.index(right)], "options": options}
    return Row(f"{question}\n{listed}", json.dumps(reference, ensure_ascii=False), "stem", "en", verifier="choice")


def human_eval(example: Mapping[str, Any]) -> Row:
    """Turn a HumanEval example into a row verified by its unit tests."""
    reference = {
        "unit_tests": example["test"],
        "function": example["entry_point"],
        # Helpers that the problem's text defines belong to the tests, whatever the answer repeats of them.
        "setup": example["prompt"],
        "solution": str(example["prompt"]) + str(example["canonical_solution"]),
    }
    prompt = FUNCTION_TASK.format(code=str(example["prompt"]).strip())
    return Row(prompt, json.dumps(reference), "code", "en", str(example["task_id"]))


def live_code_bench(example: Mapping[str, Any]) -> Row:
    """Turn a LiveCodeBench example (code generation, "lite") into a row with its public and its hidden tests."""
    tests = [*json.loads(example["public_test_cases"]), *_hidden_tests(example["private_test_cases"])]
    metadata = json.loads(example["metadata"]) if example.get("metadata") else {}
    text, name = str(example["question_content"]).strip(), str(example["question_id"])
    function, starter = metadata.get("func_name"), str(example.get("starter_code") or "")
    if function is None:
        reference: dict[str, Any] = {"tests": [{"input": t["input"], "output": t["output"]} for t in tests]}
        return Row(PROGRAM_TASK.format(text=text), json.dumps(reference), "code", "en", f"lcb/{name}")
    cases = [[[json.loads(line) for line in t["input"].splitlines() if line], json.loads(t["output"])] for t in tests]
    called = f"Solution.{function}" if "class Solution" in starter else function
    reference = {"function": called, "cases": cases}
    prompt = METHOD_TASK.format(text=text, code=starter.strip())
    return Row(prompt, json.dumps(reference), "code", "en", f"lcb/{name}")


class _TextOnly(pickle.Unpickler):
    """Reads the pickled text that hidden tests come as, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"Hidden tests hold a pickled {module}.{name}, not text. They are not read.")


def _hidden_tests(packed: str) -> list[dict[str, Any]]:
    try:
        return list(json.loads(packed))
    except json.JSONDecodeError:
        text = _TextOnly(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load()
        return list(json.loads(text))


def codeforces(example: Mapping[str, Any]) -> Row | None:
    """Turn a Codeforces example into a row that carries the problem's rating; see [`trl_r1.evaluation.ratings`].

    Problems without a rating, with several right outputs (they need a checker) or with tests cut short are left out.
    """
    tests = example.get("official_tests") or []
    if not tests or example.get("rating") is None or example.get("generated_checker"):
        return None
    if example.get("interaction_format") or not example.get("official_tests_complete", True):
        return None
    parts = [str(example["title"]), str(example["description"])]
    for heading, column in (("Input", "input_format"), ("Output", "output_format"), ("Note", "note")):
        if example.get(column):
            parts.append(f"{heading}\n{example[column]}")
    for shown in example.get("examples") or []:
        parts.append(f"Example input\n{shown['input']}\nExample output\n{shown['output']}")
    reference = {
        "tests": [{"input": test["input"], "output": test["output"]} for test in tests],
        "rating": int(example["rating"]),
        "time_limit": float(example.get("time_limit") or 6.0),
    }
    prompt = PROGRAM_TASK.format(text="\n\n".join(parts))
    return Row(prompt, json.dumps(reference), "code", "en", f"codeforces/{example['id']}")


def instructions(example: Mapping[str, Any]) -> Row:
    """Turn an IFEval example into a row whose verifier checks every instruction of its prompt."""
    rules = []
    for name, given in zip(example["instruction_id_list"], example["kwargs"], strict=True):
        # Arrow gives every rule the arguments of all; those it does not have are missing.
        rules.append({"rule": name, **{key: value for key, value in (given or {}).items() if value is not None}})
    reference = json.dumps({"rules": rules}, ensure_ascii=False)
    return Row(str(example["prompt"]), reference, "general", None, f"ifeval/{example['key']}", "instructions")


def preference(example: Mapping[str, Any]) -> Row:
    """Turn a prompt with a baseline's answer into a row; the answer is the reference that a judge compares with."""
    prompt = example.get("instruction") or example.get("prompt")
    baseline = example.get("output") or example.get("baseline") or example.get("reference")
    if not prompt or not baseline:
        raise DataError(
            f"A preference benchmark needs `instruction` (or `prompt`) and `output` (or `baseline`); this row has "
            f"{', '.join(example)}."
        )
    return Row(re.sub(r"\s+\Z", "", str(prompt)), str(baseline), "general")
