"""The code verifier: every form of tests, and the known ways to pass them without solving anything."""

import json
import shutil
import time
from pathlib import Path

import pytest

from trl_r1 import sandbox
from trl_r1.nano import NanoWorld
from trl_r1.rows import Row
from trl_r1.verifiers import code
from trl_r1.verifiers.code import extract, find_lenient, gold_answer, readable, verify
from trl_r1.verifiers.outputs import same_output, same_value

pytestmark = pytest.mark.skipif(sandbox.isolation_problem() is not None, reason=str(sandbox.isolation_problem()))

ADD = {"tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "40 2\n", "output": "42"}]}
SQUARE = {"function": "f", "cases": [[[3], 9], [[5], 25]]}
UNIT = {"unit_tests": "assert f(3) == 9\nassert f(5) == 25"}
HUMAN_EVAL = {
    "unit_tests": "def check(candidate):\n    assert candidate(3) == 9",
    "function": "f",
    "setup": "def f(x):\n    ''",
}
GOOD_ADD = "a, b = map(int, input().split())\nprint(a + b)"
GOOD = "def f(x):\n    return x * x"


def row(reference, **more):
    return Row("", json.dumps({**reference, **more}), domain="code")


def judged(answer, reference, **more):
    verdict = verify(answer, row(reference, **more))
    return verdict.correct, verdict.detail


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (GOOD_ADD, ADD),
        (GOOD, SQUARE),
        (GOOD, UNIT),
        (GOOD, HUMAN_EVAL),
        ("import sys\nprint(eval(input().replace(' ', '+')))\nexit(0)", ADD),
        (f"Use this:\n```python\n{GOOD}\n```\ndone", UNIT),
    ],
)
def test_right_programs_pass(answer, reference):
    correct, detail = judged(answer, reference)
    assert correct is True, detail


@pytest.mark.parametrize(
    ("answer", "reference", "detail"),
    [
        ("print(3)", ADD, "test 2: wrong output"),
        (GOOD_ADD + "\nprint('and more')", ADD, "test 1: wrong output"),
        (GOOD_ADD + "\n1/0", ADD, "ZeroDivisionError"),
        ("def f(:", ADD, "compile error: SyntaxError"),
        ("def f(:", SQUARE, "compile error: SyntaxError"),
        ("def f(:", UNIT, "compile error: SyntaxError"),
        ("def f(x): return x + 6", SQUARE, "case 2: wrong result 11"),
        ("def f(x): return x + 6", UNIT, "AssertionError"),
        ("def g(x): return x", SQUARE, "no 'f' is defined"),
        ("def g(x): return x", UNIT, "'f' is not defined"),
        ("def f(x): return [][x]", SQUARE, "IndexError"),
        ("def f(x): return [][x]", UNIT, "IndexError"),
        ("def f(x):\n    while True: pass", SQUARE, "longer than"),
        ("def f(x):\n    while True: pass", UNIT, "longer than"),
        ("while True: pass", ADD, "longer than"),
        ("print('x' * 10**8)", ADD, "more output than"),
        ("```text\nno code\n```", ADD, "no python code"),
        ("", SQUARE, "no python code"),
        ("x" * 100_001, SQUARE, "longer than 100000"),
        ("x = '\ud800'", SQUARE, "compile error"),
        ("(" * 5000, SQUARE, "compile error"),
    ],
)
def test_wrong_programs_fail_and_the_detail_says_how(answer, reference, detail):
    """Trap 10."""
    correct, said = judged(answer, reference, time_limit=0.7 if "longer than 0.7" in detail else 30)
    assert correct is False
    assert detail in said


EQUAL_TO_ALL = """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __sub__(self, other): return 0
    def __len__(self): return 0
    def __abs__(self): return 0
def f(x): return Any()
"""
EQUAL_INT = (
    "class Any(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(x): return Any(1)"
)
ATTACKS = {
    "exit before the tests": "import sys\nsys.exit(0)",
    "hard exit before the tests": "import os\nos._exit(0)",
    "exit in the function": "import sys\ndef f(x): sys.exit(0)",
    "hard exit in the function": "import os\ndef f(x): os._exit(0)",
    "exit handler": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(x): return 0",
    "equal to everything": EQUAL_TO_ALL,
    "integer equal to everything": EQUAL_INT,
    "patched builtins": (
        "import builtins, json, math\nbuiltins.len = lambda x: 0\nbuiltins.all = lambda x: True\n"
        "builtins.AssertionError = type('Quiet', (BaseException,), {})\njson.dumps = lambda *a, **k: '[\"result\", 9]'\n"
        "math.isclose = lambda *a, **k: True\ndef f(x): return 0"
    ),
    "patched comparison in the caller": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        frame.f_globals['check'] = print\n"
        "        frame.f_globals['f'] = lambda x: x * x if False else 0\n        frame = frame.f_back\n    return 0"
    ),
    "verdict written to every descriptor": (
        'import os\nfor d in range(1, 60):\n    try:\n        os.write(d, b\'["loaded", null]\\n["result", 9]\\n["value", 9, []]\\n\')\n'
        '        os.write(d, b\'["x", "passed", ""]\\n\')\n    except OSError: pass\nos._exit(0)'
    ),
    "passing exit code with printed verdict": "print('OK')\nprint('2 passed')\nraise SystemExit(0)",
    "shadowed helpers": "def check(c): pass\ndef abs(x): return 0\ndef len(x): return 0\nclass math: isclose = print\ndef f(x): return 0",
    "killed tester": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef f(x): return 0",
    "object with operators of its own": (
        "class X:\n    __sub__ = __rsub__ = lambda s, o: 0\n    __abs__ = __neg__ = lambda s: s\n"
        "    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = lambda s, o: True\n    __float__ = lambda s: 4.0\n"
        "def f(x): return X()"
    ),
    "visible case memorised": "def f(x): return {3: 9}.get(x)",
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("reference", ["cases", "unit_tests"])
def test_attacks_on_functions_score_zero(attack, reference):
    """Trap 10."""
    lines = "def check(g):\n    assert abs(g(2) - 4) < 0.1\n    assert math.isclose(g(1), 1)\n    assert g(3) == 9"
    tests = {"cases": SQUARE, "unit_tests": {"unit_tests": lines, "function": "f"}}[reference]
    correct, detail = judged(ATTACKS[attack], tests, time_limit=30)
    assert correct is False, detail


SEARCH = """
import os, gc, sys
text = []
for root in ("/box", "/tmp", "/etc", "/home", "/root", "/work", "/proc", "/dev/shm"):
    for folder, _, names in os.walk(root):
        if folder.startswith(sys.base_prefix): continue
        for name in names:
            try: text.append(open(os.path.join(folder, name), "rb").read(100000))
            except OSError: pass
text.append(repr(os.environ).encode() + repr(sys.argv).encode())
text.append(repr([o for o in gc.get_objects() if isinstance(o, (dict, list, tuple)) and len(repr(o)) < 10000][:3000]).encode())
"""


@pytest.mark.parametrize("form", ["tests", "cases", "unit_tests"])
def test_expected_values_cannot_be_read(form):
    """Trap 10. The program looks everywhere for the expected value and returns it when it finds it."""
    secret = "7919" * 3
    # The secret is put together (at run time), for the program's own text and constants are among what it reads.
    find = SEARCH + "needle = ''.join(['79', '19'] * 3).encode()\nfound = any(needle in t for t in text)\n"
    references = {
        "tests": {"tests": [{"input": "", "output": secret}]},
        "cases": {"function": "f", "cases": [[[], int(secret)]]},
        "unit_tests": {"unit_tests": f"assert f() == {secret}"},
    }
    end = "print(needle.decode() if found else 0)" if form == "tests" else "def f(): return int(needle) if found else 0"
    correct, detail = judged(find + end, references[form])
    assert correct is False, detail
    # The search works: it finds what is there to be found.
    there = find.replace("text = []", "open('/tmp/x', 'w').write(''.join(['79', '19'] * 3)); text = []")
    assert judged(there + end, references[form])[0] is True


def test_the_tests_process_cannot_be_read_or_traced():
    attack = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
opened = libc.ptrace(16, os.getppid(), 0, 0) == 0
def f(x): return 9 if opened else 0
"""
    assert judged(attack, {"unit_tests": "assert f(3) == 9"})[0] is False
    assert judged(attack.replace("if opened", "if not opened"), {"unit_tests": "assert f(3) == 9"})[0] is True


@pytest.mark.parametrize(
    ("answer", "tests"),
    [
        ("def f(a): a.sort()", "x = [3, 1, 2]\nf(x)\nassert x == [1, 2, 3]"),
        ("def f(): yield from range(3)", "assert list(f()) == [0, 1, 2]"),
        (
            "def f(): return (1, {'a': {2, 3}}, b'x', 1 << 90, None)",
            "assert f() == (1, {'a': {2, 3}}, b'x', 1 << 90, None)",
        ),
        (
            "def f(x): raise ValueError('no')",
            "try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert 'no' in str(e)",
        ),
        (
            "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
            "    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)",
            "from solution import Stack\ns = Stack()\ns.push(4)\nassert len(s) == 1\nassert s.pop() == 4\nassert s.items == []",
        ),
        (
            "class Vector:\n    def __init__(self, x, y): self.x, self.y = x, y\n"
            "    def __add__(self, o): return Vector(self.x + o.x, self.y + o.y)\n"
            "    def __mul__(self, o): return self.x * o.x + self.y * o.y\n"
            "    def __neg__(self): return Vector(-self.x, -self.y)\n"
            "    def __eq__(self, o): return (self.x, self.y) == (o.x, o.y)\n"
            "    def __lt__(self, o): return self.x < o.x\n"
            "def f(x): return x",
            "a, b = Vector(1, 2), Vector(3, 4)\nassert a + b == Vector(4, 6)\nassert a != b\nassert a * b == 11\nassert a < b\n"
            "assert -a == Vector(-1, -2)\nassert sorted([b, a])[0] == a\nassert not a == 1",
        ),
        (
            GOOD,
            "import unittest, solution\nclass T(unittest.TestCase):\n    def test_it(self): self.assertEqual(solution.f(3), 9)",
        ),
        (GOOD, "def test_it():\n    assert f(3) == 9"),
        (GOOD, "class TestF:\n    def test_it(self): assert f(3) == 9"),
    ],
)
def test_unit_tests_of_every_style(answer, tests):
    correct, detail = judged(answer, {"unit_tests": tests})
    assert correct is True, detail
    # And each style can fail.
    assert judged("f = Stack = Vector = lambda *a: 0", {"unit_tests": tests})[0] is False


def test_a_test_file_that_cannot_run_is_nobodys_fault():
    assert judged(GOOD, {"unit_tests": "import no_such_package\nassert f(3) == 9"})[0] is None
    # Unless it is the answer's doing.
    assert judged("import no_such_package", UNIT)[0] is False
    assert judged("def f(x):\n    import no_such_package", UNIT)[0] is False


@pytest.mark.parametrize(
    "tests",
    [
        "def run_checks():\n    assert f(3) == 9",
        "if __name__ == '__main__':\n    assert f(3) == 9",
        "async def test_a():\n    assert f(3) == 9",
        "def test_a():\n    assert f(3) == 9\n    yield",
        "def test_a(number):\n    assert f(number) == 9",
        "class Checks:\n    def test_a(self): assert f(3) == 9",
        "import unittest\nclass T(unittest.TestCase):\n    async def test_a(self): assert f(3) == 9",
        "import unittest\nclass T(unittest.TestCase):\n    @unittest.skip('')\n    def test_a(self): assert f(3) == 9",
        "for x in []: assert f(x) == 9",
    ],
)
@pytest.mark.parametrize("answer", [GOOD, "x = 1"])
def test_tests_of_which_none_runs_say_nothing(tests, answer):
    assert judged(answer, {"unit_tests": tests})[0] is None


@pytest.mark.parametrize(
    "tests",
    [
        "for x in range(3): assert f(x) == x * x",
        "def run():\n    assert f(3) == 9\nrun()",
        "def check(g):\n    assert g(3) == 9\ncheck(f)",
        "if f(3) != 9: raise AssertionError('no')",
        "def assert_equal(a, b):\n    if a != b: raise ValueError(a)\nassert_equal(f(3), 9)",
    ],
)
def test_checks_outside_of_tests_count(tests):
    assert judged(GOOD, {"unit_tests": tests})[0] is True
    assert judged("def f(x): return 7", {"unit_tests": tests})[0] is False


def test_the_function_under_test_may_be_called_the_entry_point():
    reference = {"unit_tests": HUMAN_EVAL["unit_tests"], "entry_point": "f"}
    assert judged(GOOD, reference)[0] is True
    assert judged("x = 1", reference)[0] is False


def test_each_case_has_the_time_limit():
    cases = {"function": "f", "cases": [[[n], n] for n in range(4)]}
    answer = "import time\ndef f(n):\n    time.sleep(0.8)\n    return n"
    assert judged(answer, cases, time_limit=2.5)[0] is True
    start = time.monotonic()
    assert judged("def f(n):\n    while n > 0: pass\n    return n", cases, time_limit=1.5) == (
        False,
        "case 2: longer than 1.5 s",
    )
    assert time.monotonic() - start < 4.5


def test_right_programs_may_write_as_much_as_is_expected():
    numbers = list(range(250_000))
    stdin = {"tests": [{"input": "250000", "output": "\n".join(map(str, numbers))}]}
    assert judged("for i in range(int(input())): print(i)", stdin, time_limit=30)[0] is True
    cases = {"function": "f", "cases": [[[250_000], numbers]]}
    assert judged("def f(n): return list(range(n))", cases, time_limit=30)[0] is True
    assert judged("def f(n): return [0] * n", cases, time_limit=30)[0] is False


def test_methods_as_leetcode_has_them():
    answer = "class Solution:\n    def square(self, x): return x * x"
    assert judged(answer, {"function": "Solution.square", "cases": [[[3], 9]]})[0] is True


@pytest.mark.parametrize("name", ["tests", "cases", "unit_tests"])
def test_an_answer_that_writes_outside_its_folder_scores_zero_and_leaves_nothing(name, tmp_path):
    """Trap 10. A right answer, but for the file that it needs to write first."""
    reference = {"tests": ADD, "cases": SQUARE, "unit_tests": UNIT}[name]
    good = GOOD_ADD if name == "tests" else GOOD
    inside = f"import os\nopen(os.environ['TMPDIR'] + '/note', 'w').write('x')\n{good}"
    assert judged(inside, reference) == judged(good, reference)
    assert judged(inside, reference)[0] is True
    for target in (
        tmp_path / "written",
        Path.home() / f".{tmp_path.name}-written",
        Path(__file__).with_name("written"),
    ):
        correct, detail = judged(f"open({str(target)!r}, 'w').write('x')\n{good}", reference)
        assert correct is False, detail
        assert not target.exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: C++ answers are not tested (apt-get install g++)")
def test_cpp():
    good = "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }"
    assert judged(f"```cpp\n{good}\n```", ADD, language="cpp") == (True, "2 tests passed")
    assert judged(good.replace("+", "-"), ADD, language="cpp")[1].startswith("test 1: wrong output")
    correct, detail = judged(good.replace("a + b", "c"), ADD, language="cpp")
    assert correct is False
    assert "compile error" in detail
    assert "was not declared" in detail
    # Files of this machine cannot be compiled in.
    assert judged('#include "/etc/passwd"\nint main() {}', ADD, language="cpp")[1].startswith("compile error")


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("", "not JSON"),
        ("{}", "exactly one"),
        ("[1]", "exactly one"),
        ('{"tests": []}', "exactly one"),
        ('{"tests": [{"input": "1"}]}', "'input' and 'output'"),
        ('{"tests": [{"input": "1", "output": " "}]}', "no test expects any output"),
        ('{"cases": [[[1], 2]]}', "'function'"),
        ('{"function": "f", "cases": [[1, 2]]}', "arguments a list"),
        ('{"tests": [{"input": "\\ud800", "output": "1"}]}', "lone surrogate"),
        ('{"unit_tests": "def f(:"}', "not Python"),
        ('{"unit_tests": "f(1)"}', "asserts nothing"),
        ('{"unit_tests": "def check(f):\\n    assert f(1)"}', "which nothing calls"),
        ('{"unit_tests": "assert f(1)", "language": "cpp"}', "for Python"),
        ('{"unit_tests": "assert f(1)", "language": "rust"}', "'rust'"),
        ('{"unit_tests": "assert f(1)", "time_limit": 0}', "positive"),
        ('{"unit_tests": "assert f(1)", "setup": 3}', "must be texts"),
    ],
)
def test_unreadable_references(reference, reason):
    """Trap 4."""
    bad = Row("", reference, domain="code")
    assert reason in readable(bad)
    assert verify("print(1)", bad).correct is None
    assert gold_answer(bad) is None


@pytest.mark.parametrize(
    ("text", "code_"),
    [
        ("print(1)", "print(1)"),
        ("a\n```python\nprint(1)\n```\nb\n```py\nprint(2)\n```", "print(2)\n"),
        ("```python\nprint(1)\n```\nprints\n```\n1\n```", "print(1)\n"),
        ("```\nx = 1\n```\n```output\n3\n```", "x = 1\n"),
        ("```python\nprint(1)", "print(1)"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("```cpp\nint main() {}\n```", ""),
    ],
)
def test_the_last_fenced_block(text, code_):
    assert extract(text) == code_


@pytest.mark.parametrize(
    ("expected", "output", "right"),
    [
        ("1 2\n3", "1  2 3\n", True),
        ("0.333333", "0.33333349", True),
        ("0.5", ".5", True),
        ("1e-7", "0", True),
        ("3", "3.0", False),
        ("10000000", "10000001", False),
        ("YES", "yes", False),
        ("1.0", "nan", False),
        ("1.0", "1_0", False),
        ("1", "1 1", False),
        ("1.5", "٣", False),
    ],
)
def test_outputs(expected, output, right):
    assert same_output(expected, output) is right


@pytest.mark.parametrize(
    ("expected", "result", "right"),
    [
        ([1, 2], (1, 2), True),
        ([1, 2], {2, 1}, True),
        ({"1": [2]}, {1: (2,)}, True),
        (0.3, 0.1 + 0.2, True),
        (3, 3.0, True),
        (3, 3.0000001, False),
        (1, True, False),
        (True, 1, False),
        ("1", 1, False),
        (None, None, True),
        (None, 0, False),
        ([1], [1, 2], False),
    ],
)
def test_values(expected, result, right):
    assert same_value(expected, result) is right


def test_nano():
    rows = list(NanoWorld().rows("train", 40, seed=3, tasks=("code_function",)))
    for item in rows:
        assert readable(item) is None
    item = rows[0]
    cases = json.loads(item.reference)["cases"]
    (x0, y0), (x1, y1) = ((arguments[0], result) for arguments, result in cases[:2])
    slope = (y1 - y0) // (x1 - x0)
    right = f"def f(x):\n    return x * {slope} + {y0 - slope * x0}"
    assert code.verify(right, item).correct is True
    # The two cases that the question shows are not enough.
    assert code.verify(f"def f(x):\n    return {{{x0}: {y0}, {x1}: {y1}}}.get(x)", item).correct is False
    assert find_lenient(f"<think> hm </think> <answer> {right} </answer>", item).strip() == right
    assert find_lenient(f"so\n{right}", item) == right


def test_gold():
    assert verify(gold_answer(row(ADD, solution=GOOD_ADD)), row(ADD, solution=GOOD_ADD)).correct is True
    assert gold_answer(row(ADD)) is None


def test_rows_of_programs_are_refused_where_nothing_isolates_them(monkeypatch):
    from trl_r1.exceptions import ConfigurationError
    from trl_r1.rows import Row
    from trl_r1.verifiers import check_references

    rows = [Row("Write f.", json.dumps({"function": "f", "cases": [[[1], 2]]}), "code")]
    assert check_references(rows) == []
    monkeypatch.setattr(sandbox, "isolation_problem", lambda: "`bwrap` is not on the PATH")
    with pytest.raises(ConfigurationError, match="apt-get install bubblewrap"):
        check_references(rows)
    monkeypatch.setattr(sandbox, "_executor", sandbox.Sandbox(allow_unisolated=True).run)
    assert check_references(rows) == []
