r"""Does this program pass its tests? Programs run in the sandbox (see [`trl_r1.sandbox`]); verdicts are made out here.

References are JSON, in one of three forms:

- **Input and output**: `{"tests": [{"input": "1 2\n", "output": "3\n"}, …]}`, for whole programs in Python or C++.
- **Function cases**: `{"function": "f", "cases": [[[3], 9], …]}`, each the list of arguments and the result, for Python.
  `"Solution.f"` is a method, called on a new instance.
- **Unit tests**: `{"unit_tests": "assert f(3) == 9"}`, a file (or a list of lines) of asserts, `unittest` classes or plain
  pytest functions, for Python. Names it does not define, and what it imports from `solution` (or from `"module"`), come from
  the answer. With `"function"` (or `"entry_point"`), a `check(candidate)` in the file is called with it, as HumanEval does. A
  file of which no test and no assert runs is not believed. `"setup"` is trusted code run before, for the helpers that a
  problem's text defines.

All may have `"language"` (`"python"` or `"cpp"`), `"time_limit"` (seconds for each test), `"memory_limit"` (MiB),
`"tolerance"` (of floats, 1e-6), and `"solution"`, a right program.

An answer is right only when *all* tests pass, so hidden tests catch a program that prints the shown ones. Expected values
never enter the process of the program that is judged: it cannot read them, nor gain by ending early, by patching builtins,
or by returning an object that is equal to everything.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
import shutil
import signal
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from trl_r1 import sandbox
from trl_r1.rows import Row, Verdict
from trl_r1.sandbox import Limits, Outcome, Program
from trl_r1.verifiers.code_runner import decode
from trl_r1.verifiers.outputs import same_output, same_value

# Bounds of ours. [?] R1 gives none.
MAX_CHARACTERS = 100_000
SECONDS = 6.0
TOTAL_SECONDS = 60.0
MEMORY = 1024
COMPILER = Limits(seconds=30.0, memory=4 << 30, files=256 << 20, output=64 << 20, processes=32)

LANGUAGES = {"python": ("python", "python3", "py", "py3"), "cpp": ("cpp", "c++", "cc", "cxx", "cpp17", "cpp20")}
_RUNNER = Path(__file__).with_name("code_runner.py")
# Python starts without `site`, which is slow, and which defines the `exit` and `quit` that programs use.
_START = """
import builtins, sys
builtins.exit = builtins.quit = sys.exit
sys.argv, __file__ = ["main.py"], "main.py"
del builtins, sys
exec(compile(open("main.py", "rb").read(), "main.py", "exec"))
"""
_FENCE = re.compile(r"[ \t]*(```+|~~~+)[ \t]*([^\s`{]*)[^`\n]*")
_CODE_START = re.compile(r"^(?:def |class |import |from \w+ import |#include|@)", re.MULTILINE)


@dataclass(frozen=True)
class Tests:
    """A reference, read.

    Args:
        form (`str`): `"tests"`, `"cases"` or `"unit_tests"`.
        items (`tuple`): Pairs of input and output, or of arguments and result; the one test file.
        function (`str`): The function under test, `""` when there is none.
        setup (`str`): Trusted code before the unit tests.
        module (`str`): Name that the unit tests import the answer by.
        language (`str`): `"python"` or `"cpp"`.
        limits ([`Limits`]): Bounds of each run.
        tolerance (`float`): Relative and absolute, of floats.
        solution (`str`, *optional*): A right program.
    """

    form: str
    items: tuple[Any, ...]
    function: str
    setup: str
    module: str
    language: str
    limits: Limits
    tolerance: float
    solution: str | None


def verify(answer: str, row: Row) -> Verdict:
    """Tell whether the program in an answer passes all tests.

    Args:
        answer (`str`): Text with the program in its last fenced block, or the bare program.
        row ([`Row`]): Its `reference` is JSON in one of the forms above.

    Returns:
        [`Verdict`]: `correct` is `None` when the reference cannot be read, or its test file cannot be run. `detail` says
        which test failed and how, or what the compiler said.

    Raises:
        [`ConfigurationError`]: Where programs cannot be isolated (see [`trl_r1.sandbox.Sandbox`]).
    """
    tests = _read(row.reference)
    if isinstance(tests, str):
        return Verdict(None, tests)
    problem = _no_compiler(tests)
    if problem:
        return Verdict(None, problem)
    if len(answer) > MAX_CHARACTERS:
        return Verdict(False, f"longer than {MAX_CHARACTERS} characters")
    source = extract(answer, tests.language)
    if not source.strip():
        return Verdict(False, f"no {tests.language} code")
    try:
        code = source.encode()
    except UnicodeEncodeError:
        return Verdict(False, "compile error: lone surrogates")
    judge = {"tests": _judge_outputs, "cases": _judge_cases, "unit_tests": _judge_unit_tests}[tests.form]
    return judge(code, tests)


def readable(row: Row) -> str | None:
    """Return why the tests of a row cannot be used, or `None` when they can. Needs no sandbox."""
    tests = _read(row.reference)
    return tests if isinstance(tests, str) else _no_compiler(tests)


def gold_answer(row: Row) -> str | None:
    """Return the reference's `"solution"` as a fenced block, `None` when it has none."""
    tests = _read(row.reference)
    if isinstance(tests, str) or tests.solution is None:
        return None
    return f"```{tests.language}\n{tests.solution.strip()}\n```"


def find_lenient(text: str, row: Row) -> str | None:
    """Return the last fenced program of a text whose form is ignored, else what begins like code after the last tag."""
    tests = _read(row.reference)
    language = "python" if isinstance(tests, str) else tests.language
    if "```" in text or "~~~" in text:
        return extract(text, language) or None
    last = re.split(r"<think>|</think>|<answer>", text)[-1].partition("</answer>")[0]
    start = _CODE_START.search(last)
    return last[start.start() :] if start else (last.strip() or None)


def extract(text: str, language: str = "python") -> str:
    """Take the program out of an answer.

    Args:
        text (`str`): An answer.
        language (`str`, defaults to `"python"`): One of [`LANGUAGES`].

    Returns:
        `str`: The last fenced block marked with the language, else the last unmarked one, else `""`; the whole text when
        nothing is fenced. A block that is never closed runs to the end.

    Example:

    ```python
    >>> from trl_r1.verifiers.code import extract
    >>> extract("So:\\n~~~python\\nprint(1)\\n~~~\\nIt prints\\n~~~\\n1\\n~~~")
    'print(1)\\n'
    ```
    """
    blocks: list[tuple[str, list[str]]] = []
    fence = None
    for line in text.splitlines(keepends=True):
        match = _FENCE.fullmatch(line.rstrip())
        if fence is None:
            if match:
                fence = match[1]
                blocks.append((match[2].lower(), []))
        elif match and match[1].startswith(fence) and not match[2]:
            fence = None
        else:
            blocks[-1][1].append(line)
    if not blocks:
        return text
    for names in (LANGUAGES[language], ("",)):
        for name, lines in reversed(blocks):
            if name in names:
                return "".join(lines)
    return ""


# --- Three ways to judge ---


def _judge_outputs(source: bytes, tests: Tests) -> Verdict:
    """Run the program on each input; compare the whole output, word by word."""
    start = time.monotonic()
    if tests.language == "cpp":
        command: tuple[str, ...] = ("./main",)
        compiled = sandbox.current()(_compilation(source))
        if not compiled.ok:
            return Verdict(False, f"compile error: {_complaint(compiled)}")
        files = {"main": compiled.stdout}
    else:
        command, files = ("python", "-c", _START), {"main.py": source}
    for number, (given, expected) in enumerate(tests.items, start=1):
        if time.monotonic() - start > TOTAL_SECONDS:
            return Verdict(False, f"all tests together take more than {TOTAL_SECONDS:g} s")
        outcome = sandbox.current()(Program(command, files, given.encode(), tests.limits))
        problem = _failure(outcome, tests)
        if problem:
            return Verdict(False, problem if problem.startswith("compile") else f"test {number}: {problem}")
        if not same_output(expected, outcome.stdout.decode(errors="replace"), tests.tolerance):
            return Verdict(False, f"test {number}: wrong output {_short(outcome.stdout)}")
    return Verdict(True, f"{len(tests.items)} tests passed")


def _compilation(source: bytes) -> Program:
    words = "g++ -std=c++17 -O1 -w -o /tmp/main main.cpp && cat /tmp/main"
    return Program(("sh", "-c", words.replace("/tmp", '"$TMPDIR"')), {"main.cpp": source}, b"", COMPILER)


def _judge_cases(source: bytes, tests: Tests) -> Verdict:
    """Call the function with every case's arguments in one process; compare the results here."""
    each = tests.limits.seconds
    job = {"function": tests.function, "seconds": each, "calls": [arguments for arguments, _ in tests.items]}
    # The runner ends at the first call that takes too long; a program that prevents this has the time of all.
    together = max(each, min(TOTAL_SECONDS, each * len(tests.items)))
    program = _runner("calls", source, job, tests)
    outcome = sandbox.current()(replace(program, limits=replace(tests.limits, seconds=together)))
    if outcome.exit_code == 128 + signal.SIGALRM:
        outcome = replace(outcome, stopped="time")
    elif outcome.stopped == "time" and together > each:
        tests = replace(tests, limits=replace(tests.limits, seconds=together))
    replies = [_reply(line) for line in outcome.stdout.splitlines()]
    if not replies or replies[0][0] != "loaded":
        return Verdict(False, _failure(outcome, tests) or "ended before any test")
    if replies[0][1] is not None:
        return Verdict(False, str(replies[0][1]))
    for number, (_, expected) in enumerate(tests.items, start=1):
        if number >= len(replies):
            return Verdict(False, f"case {number}: {_failure(outcome, tests) or 'ended without a result'}")
        kind, content = replies[number]
        if kind != "result":
            return Verdict(False, f"case {number}: {content}")
        try:
            right = same_value(expected, decode(content), tests.tolerance)
        except (ValueError, TypeError, RecursionError, OverflowError, MemoryError):
            right = False
        if not right:
            return Verdict(False, f"case {number}: wrong result {_short(content)}")
    return Verdict(True, f"{len(tests.items)} cases passed")


def _judge_unit_tests(source: bytes, tests: Tests) -> Verdict:
    """Run the test file in a process of its own beside the solution's; believe only what the token signs."""
    token = secrets.token_hex(16)
    job = {
        "token": token,
        "unit_tests": tests.items[0],
        "setup": tests.setup,
        "function": tests.function,
        "module": tests.module,
    }
    outcome = sandbox.current()(_runner("tests", source, job, tests))
    said = _reply(outcome.stdout.strip(), 3)
    if said[0] != token:
        return Verdict(False, _failure(outcome, tests) or "ended before the tests did")
    if said[1] == "broken":
        return Verdict(None, f"the tests cannot be run: {said[2]}")
    return Verdict(said[1] == "passed", str(said[2]) or "unit tests passed")


def _runner(action: str, source: bytes, job: dict[str, Any], tests: Tests) -> Program:
    files = {"code_runner.py": _RUNNER.read_bytes(), "solution.py": source}
    return Program(("python", "code_runner.py", action), files, json.dumps(job).encode(), tests.limits)


def _reply(line: bytes, length: int = 2) -> list[Any]:
    """Read a line of the runner; a program may have written anything there."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    return reply if isinstance(reply, list) and len(reply) == length else [None] * length


def _failure(outcome: Outcome, tests: Tests) -> str | None:
    """Say how a run failed, `None` when it ended well."""
    if outcome.stopped == "time":
        return f"longer than {tests.limits.seconds:g} s"
    if outcome.stopped == "output":
        return f"more output than {tests.limits.output} bytes"
    if outcome.exit_code == 0:
        return None
    complaint = _complaint(outcome)
    if re.match(r"(?:SyntaxError|IndentationError|TabError):", complaint):
        return f"compile error: {complaint}"
    return f"exit code {outcome.exit_code}: {complaint}"


def _complaint(outcome: Outcome) -> str:
    """Return the line of standard error that tells most: a compiler's first error, a traceback's last line."""
    lines = [line.strip() for line in outcome.stderr.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if " error: " in line]
    return (errors[0] if errors else lines[-1] if lines else "no message")[:300]


def _short(value: Any) -> str:
    return repr(value.decode(errors="replace") if isinstance(value, bytes) else value)[:100]


# --- References ---


@lru_cache(maxsize=4096)
def _read(reference: str) -> Tests | str:
    """Read a reference once, or say why it cannot be read."""
    try:
        data = json.loads(reference)
    except (ValueError, RecursionError):
        return "not JSON"
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate, which no program can be given: write the text's real characters"
    forms = [name for name in ("tests", "cases", "unit_tests") if isinstance(data, dict) and data.get(name)]
    if len(forms) != 1:
        return "needs exactly one of 'tests', 'cases' and 'unit_tests', not empty"
    form, language = forms[0], data.get("language", "python")
    function = data.get("function") or data.get("entry_point") or ""
    if language not in LANGUAGES:
        return f"language {language!r} is none of {', '.join(LANGUAGES)}"
    if language != "python" and form != "tests":
        return f"{form!r} are for Python; C++ needs 'tests'"
    if not isinstance(function, str) or (form == "cases" and not function):
        return "'function' must name what the cases call"
    bounds = [data.get(name, default) for name, default in (("time_limit", SECONDS), ("memory_limit", MEMORY))]
    bounds.append(data.get("tolerance", 1e-6))
    if not all(isinstance(bound, (int, float)) and 0 <= bound < 1e6 for bound in bounds) or not bounds[0] * bounds[1]:
        return f"'time_limit', 'memory_limit' and 'tolerance' must be positive numbers, not {bounds}"
    texts = [data.get("setup", ""), data.get("module", "solution"), data.get("solution")]
    if not all(isinstance(text, str) for text in texts[:2]) or not isinstance(texts[2], (str, type(None))):
        return "'setup', 'module' and 'solution' must be texts"
    items = {"tests": _io_pairs, "cases": _case_pairs, "unit_tests": _test_file}[form](data[form])
    if isinstance(items, str):
        return items
    if form == "unit_tests" and not function and _is_check_left(items[0]):
        return "'unit_tests' define check(), which nothing calls: name what it checks as 'function'"
    # A right program may write more than is expected: spaces, or a tuple's marks (see `encode`).
    sizes = (
        [len(out.encode() if form == "tests" else json.dumps(out)) for _, out in items] if form != "unit_tests" else []
    )
    largest = max(sizes, default=0) if form == "tests" else 2 * sum(sizes) + 32 * len(sizes)
    output = max(Limits.output, 2 * largest + (64 << 10))
    limits = Limits(seconds=float(bounds[0]), memory=int(bounds[1] * 2**20), output=output)
    return Tests(form, items, function, texts[0], texts[1], language, limits, float(bounds[2]), texts[2])


def _io_pairs(tests: Any) -> tuple[Any, ...] | str:
    if not isinstance(tests, list):
        return "'tests' must be a list"
    for test in tests:
        if not (
            isinstance(test, dict) and isinstance(test.get("output"), str) and isinstance(test.get("input", ""), str)
        ):
            return "each of 'tests' needs texts 'input' and 'output'"
    if not any(test["output"].strip() for test in tests):
        # A program that prints nothing would pass.
        return "no test expects any output"
    return tuple((test.get("input", ""), test["output"]) for test in tests)


def _case_pairs(cases: Any) -> tuple[Any, ...] | str:
    if not isinstance(cases, list) or not all(
        isinstance(case, list) and len(case) == 2 and isinstance(case[0], list) for case in cases
    ):
        return "each of 'cases' must be [arguments, result], arguments a list"
    return tuple((arguments, result) for arguments, result in cases)


def _test_file(tests: Any) -> tuple[Any, ...] | str:
    lines = tests if isinstance(tests, list) else [tests]
    if not all(isinstance(line, str) for line in lines):
        return "'unit_tests' must be a text, or a list of texts"
    source = "\n".join(lines)
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        return f"'unit_tests' is not Python: {error}"
    if "assert" not in source.lower() and "check" not in source:
        return "'unit_tests' asserts nothing"
    return (source,)


def _is_check_left(source: str) -> bool:
    """Whether a test file defines `check` and does not use it itself."""
    tree = ast.parse(source)
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return "check" in defined - {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _no_compiler(tests: Tests) -> str | None:
    """Say when C++ cannot be compiled here. An executor of the user's own may have what this machine lacks."""
    here = sandbox.own_sandbox() is not None
    if tests.language == "cpp" and here and shutil.which("g++") is None:
        return "C++ needs `g++` (`apt-get install g++`)"
    return None
