"""What runs inside the sandbox beside a solution. A script of its own: it imports nothing of this library.

`calls` loads `solution.py` and calls one of its functions. `tests` runs a test file against `solution.py`, which lives in
another process (`serve`): only plain data crosses between the two, so a solution can neither see the tests, nor patch the
comparison, nor answer with an object that equals everything. Expected values are never in the solution's process.
"""

from __future__ import annotations

import builtins
import importlib
import io
import itertools
import json
import operator
import os
import signal
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

# Items taken from an iterator that a solution returns, which may be endless.
MAX_ITEMS = 100_000
# Flags of the code of generators, coroutines and asynchronous generators.
NOT_RUN_BY_CALLING = 0x20 | 0x80 | 0x200


class Unsupported(Exception):
    """A test does what cannot be done across processes."""


class Ended(BaseException):
    """The solution's process is gone."""


# --- Plain data as JSON. Exact types: a subclass is reduced to its base, so that its own comparison is left behind. ---


def encode(value: Any, keep: Callable[[Any], Any] | None = None) -> Any:
    """Turn plain data into JSON; anything else goes through `keep`, or is refused."""
    if value is None or value is True or value is False:
        return value
    for kind, write in _WRITERS:
        if isinstance(value, kind):
            return write(value, keep)
    if keep is None:
        raise Unsupported(f"{type(value).__name__} is not plain data")
    return keep(value)


def _items(mark: str, base: Any) -> Callable[[Any, Any], Any]:
    return lambda value, keep: {mark: [encode(item, keep) for item in base.__iter__(value)]}


_WRITERS: list[tuple[Any, Callable[[Any, Any], Any]]] = [
    # Hexadecimal: Python refuses to write very long decimal numbers.
    (int, lambda value, keep: {"i": int.__format__(value, "x")} if int.__abs__(value) >> 53 else int.__int__(value)),
    (float, lambda value, keep: float.__float__(value)),
    (str, lambda value, keep: str.__str__(value)),
    (list, lambda value, keep: [encode(item, keep) for item in list.__iter__(value)]),
    (tuple, _items("t", tuple)),
    (set, _items("s", set)),
    (frozenset, _items("f", frozenset)),
    (dict, lambda value, keep: {"d": [[encode(k, keep), encode(v, keep)] for k, v in dict.items(value)]}),
    ((bytes, bytearray), lambda value, keep: {"b": bytes(value).decode("latin-1")}),
    (complex, lambda value, keep: {"c": [value.real, value.imag]}),
    (deque, lambda value, keep: [encode(item, keep) for item in deque.__iter__(value)]),
    (range, lambda value, keep: {"r": [value.start, value.stop, value.step]}),
]


def decode(data: Any, handle: Callable[[int, str], Any] | None = None) -> Any:
    """Read what [`encode`] wrote. What it did not write raises `ValueError`, `TypeError` or `RecursionError`."""
    if isinstance(data, list):
        return [decode(item, handle) for item in data]
    if not isinstance(data, dict):
        return data
    ((mark, content),) = data.items()
    if mark == "h" and handle is not None:
        return handle(*content)
    if mark == "d":
        return {decode(k, handle): decode(v, handle) for k, v in content}
    if mark in ("t", "s", "f"):
        return {"t": tuple, "s": set, "f": frozenset}[mark](decode(item, handle) for item in content)
    readers: dict[str, Callable[[Any], Any]] = {
        "i": lambda text: int(text, 16),
        "b": lambda text: text.encode("latin-1"),
        "c": lambda parts: complex(*parts),
        "r": lambda parts: range(*parts),
    }
    if mark not in readers:
        raise ValueError(f"unknown mark {mark!r}")
    return readers[mark](content)


# --- The solution's side ---


def load_solution() -> tuple[dict[str, Any], str | None]:
    """Run `solution.py` as a module; return its names, or why it failed."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    builtins.__dict__.update(exit=sys.exit, quit=sys.exit)  # what `site` defines, which is left out for its cost
    try:
        with open("solution.py", encoding="utf-8") as file:
            code = compile(file.read(), "solution.py", "exec")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        return {}, f"compile error: {describe(error)}"
    try:
        exec(code, module.__dict__)
    except BaseException as error:  # sys.exit() too
        return {}, describe(error)
    return module.__dict__, None


def describe(error: BaseException) -> str:
    """Name an error and what it says, in one short line."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}"[:300]


def own_stream() -> io.TextIOWrapper:
    """Take standard output for messages; what the solution prints goes nowhere."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    return stream


def find(names: dict[str, Any], path: str) -> Any:
    """Find `f`, or `Solution.f`, which gets an instance as LeetCode does."""
    first, *rest = path.split(".")
    if first not in names:
        raise NameError(f"no {first!r} is defined")
    value = names[first]
    for name in rest:
        value = getattr(value() if isinstance(value, type) else value, name)
    return value


def run_calls() -> None:
    """Call a function with each list of arguments read from standard input; write one line for each result."""
    job = json.load(sys.stdin)
    stream = own_stream()
    # An alarm kills, which no solution catches, not even in a long call into C. Fetched before a solution could patch it.
    set_alarm, seconds = signal.setitimer, job["seconds"]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    set_alarm(signal.ITIMER_REAL, seconds)
    names, problem = load_solution()
    print(json.dumps(["loaded", problem]), file=stream, flush=True)
    if problem is not None:
        os._exit(0)
    for arguments in job["calls"]:
        set_alarm(signal.ITIMER_REAL, seconds)
        try:
            result = find(names, job["function"])(*arguments)
            if isinstance(result, Iterator):
                result = list(itertools.islice(result, MAX_ITEMS))
            line = json.dumps(["result", encode(result)])
        except BaseException as error:
            line = json.dumps(["error", describe(error)])
        print(line, file=stream, flush=True)
    # No threads, no atexit of the solution: all is said.
    os._exit(0)


def serve() -> None:
    """Answer the test process: look names up, call, and hand over plain data or handles of objects."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    stream = own_stream()
    names, problem = load_solution()
    print(json.dumps(["loaded", problem]), file=stream, flush=True)
    kept: list[Any] = []

    def keep(value: Any) -> Any:
        kept.append(value)
        return {"h": [len(kept) - 1, type(value).__name__]}

    def read(data: Any) -> Any:
        return decode(data, lambda index, _: kept[index])

    def answer(action: str, target: Any, *rest: Any) -> list[Any]:
        if action == "find":
            return ["value", encode(find(names, target), keep), []]
        thing = kept[target]
        if action == "get":
            return ["value", encode(getattr(thing, rest[0]), keep), []]
        if action == "list":
            return ["value", [encode(item, keep) for item in itertools.islice(iter(thing), MAX_ITEMS)], []]
        if action == "next":
            return ["value", encode(next(thing), keep), []]
        if action == "operate":
            return ["value", encode(getattr(operator, rest[0])(thing, *(kept[index] for index in rest[1:])), keep), []]
        positional, named = [read(item) for item in rest[0]], {name: read(item) for name, item in rest[1].items()}
        result = encode(thing(*positional, **named), keep)
        # Arguments may have been changed in place.
        changed = [encode(item, keep) if isinstance(item, (list, dict, set)) else None for item in positional]
        return ["value", result, changed]

    for line in requests:
        try:
            reply = json.dumps(answer(*json.loads(line)))
        except BaseException as error:
            reply = json.dumps(["error", [kind.__name__ for kind in type(error).__mro__], describe(error)])
        print(reply, file=stream, flush=True)
    os._exit(0)


# --- The tests' side ---


class Link:
    """The test process's end of the line to the solution."""

    def __init__(self) -> None:
        import subprocess  # here, for the solution's side starts quicker without

        site = ["-S"] if sys.flags.no_site else []
        command = [sys.executable, "-I", *site, "-B", "-X", "utf8", "code_runner.py", "serve"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.problem = self.receive()[1]

    def receive(self) -> list[Any]:
        """Read one message."""
        assert self.process.stdout is not None
        try:
            message = json.loads(self.process.stdout.readline())
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, list) or len(message) < 2:
            raise Ended("the solution's process ended")
        return message

    def ask(self, action: str, *rest: Any, arguments: tuple[Any, ...] = ()) -> Any:
        """Send a request; return the value, or raise what the solution raised (a builtin exception)."""
        assert self.process.stdin is not None
        try:
            print(json.dumps([action, *rest]), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise Ended("the solution's process ended") from None
        kind, content, extra = [*self.receive(), None][:3]
        if kind != "value":
            raise remote_error(content, str(extra))
        for argument, changed in zip(arguments, extra or [], strict=False):
            if isinstance(argument, list) and isinstance(changed, list):
                argument[:] = self.read(changed)
            elif isinstance(argument, (dict, set)) and isinstance(changed, dict):
                new = self.read(changed)
                argument.clear()
                argument.update(new)
        return self.read(content)

    def read(self, data: Any) -> Any:
        """Decode an answer."""
        return decode(data, lambda index, kind: Remote(self, int(index), str(kind)))


# Of two of a solution's own objects, such as vectors. Never of one and the test's data: an object that is equal to every
# number, or whose difference from each is 0, would pass any test.
OPERATORS = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor",
    "eq", "ne", "lt", "le", "gt", "ge",
)  # fmt: skip


def operate(name: str) -> Callable[[Remote, Any], Any]:
    """Make the method of an operator that is computed in the solution's process."""

    def apply(self: Remote, other: Any) -> Any:
        if not isinstance(other, Remote):
            return NotImplemented
        return self._link.ask("operate", self._index, name, other._index)

    return apply


class Remote:
    """An object that stays in the solution's process. It is never equal to anything but another of them."""

    def __init__(self, link: Link, index: int, kind: str) -> None:
        self.__dict__.update(_link=link, _index=index, _kind=kind)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it over there."""
        packed = [encode(item, pack) for item in arguments]
        return self._link.ask(
            "call", self._index, packed, {k: encode(v, pack) for k, v in named.items()}, arguments=arguments
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("get", self._index, name)

    def _special(self, name: str, *arguments: Any) -> Any:
        return self._link.ask("get", self._index, name)(*arguments)

    def __len__(self) -> int:
        try:
            return int(self._special("__len__"))
        except AttributeError as error:
            raise TypeError(str(error)) from None  # what list() expects of an iterator

    def __getitem__(self, key: Any) -> Any:
        return self._special("__getitem__", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._special("__setitem__", key, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._link.ask("list", self._index))

    def __next__(self) -> Any:
        return self._link.ask("next", self._index)

    def __bool__(self) -> bool:
        return True

    def __neg__(self) -> Any:
        return self._link.ask("operate", self._index, "neg")

    def __abs__(self) -> Any:
        return self._link.ask("operate", self._index, "abs")

    def __hash__(self) -> int:
        return hash(self._kind)  # equal ones have equal hashes, whatever their own are

    def __str__(self) -> str:
        return str.__str__(self._special("__str__"))

    def __repr__(self) -> str:
        return f"<{self._kind} of the solution>"


for _name in OPERATORS:
    setattr(Remote, f"__{_name.strip('_')}__", operate(_name))


def pack(value: Any) -> Any:
    """Hand a solution's own object back to it."""
    if isinstance(value, Remote):
        return {"h": [value._index, value._kind]}
    raise Unsupported(f"an argument of type {type(value).__name__} cannot cross to the solution's process")


def remote_error(names: Any, text: str) -> Exception:
    """Make the nearest builtin exception; never one that ends this process."""
    for name in names if isinstance(names, list) else []:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                error = kind(text)
            except TypeError:  # UnicodeError and its like want more arguments
                continue
            error.__dict__["remote"] = True
            return error
    error = RuntimeError(text)
    error.__dict__["remote"] = True
    return error


def free_names(source: str) -> set[str]:
    """Find the names that a test file uses and does not define: those it expects from the solution."""
    import ast

    used: set[str] = set()
    bound = set(dir(builtins))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return used - bound


def counting(source: str, counter: str) -> Any:
    """Parse a test file and let it call a counter before each check: an assert, `assert…(…)`, `if …: raise AssertionError`."""
    import ast

    def checks(node: ast.stmt) -> bool:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = node.value.func
            return str(getattr(called, "id", "") or getattr(called, "attr", "")).startswith("assert")
        if isinstance(node, ast.If):
            raised = [ast.unparse(inner.exc) for inner in node.body if isinstance(inner, ast.Raise) and inner.exc]
            return any(text.startswith("AssertionError") for text in raised)
        return isinstance(node, ast.Assert)

    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if not isinstance(statements, list):  # of a lambda, or of `a if b else c`
                continue
            found: list[ast.stmt] = []
            for statement in statements:
                if checks(statement):
                    call = ast.Expr(ast.Call(ast.Name(counter, ast.Load()), [], []))
                    found.append(ast.fix_missing_locations(ast.copy_location(call, statement)))
                found.append(statement)
            statements[:] = found
    return tree


def run_one(test: Callable[..., Any], *arguments: Any) -> None:
    """Call a test, which must run when it is called."""
    code = getattr(test, "__code__", None)
    bound = isinstance(test, types.MethodType)
    if code is not None and not arguments:
        needed = code.co_argcount - bound - len(getattr(test, "__defaults__", None) or ())
        if needed > 0:
            raise Unsupported(f"{test.__name__}() wants arguments")
    result = test(*arguments)
    if isinstance(result, (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)):
        raise Unsupported(f"{test.__name__}() is not run by calling it")


def execute_tests(job: dict[str, Any], link: Link) -> int:
    """Run the test file; whatever fails raises. Return how many checks and tests ran, for what runs none tells nothing."""
    ran = itertools.count()
    names: dict[str, Any] = {"__name__": "tests", "__count__": ran.__next__}
    exec(compile(job["setup"], "setup.py", "exec"), names)
    wanted = free_names(job["unit_tests"]) | ({job["function"]} if job["function"] else set())
    solution = types.ModuleType("solution")
    for name in sorted(wanted):
        if name in sys.stdlib_module_names and name != job["function"]:
            # A test file that leans on the solution's imports still gets the real module.
            solution.__dict__[name] = importlib.import_module(name)
            continue
        try:
            solution.__dict__[name] = link.ask("find", name)
        except Exception:
            continue

    def find_later(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return link.ask("find", name)

    solution.__dict__["__getattr__"] = find_later
    for name in ("solution", job["module"]):
        sys.modules[name] = solution
    # What the setup defines is trusted and wins, except for the function under test.
    names.update(
        {k: v for k, v in solution.__dict__.items() if k in wanted and (k not in names or k == job["function"])}
    )
    exec(compile(counting(job["unit_tests"], "__count__"), "tests.py", "exec"), names)
    tests = 0
    if callable(names.get("check")) and job["function"]:
        run_one(names["check"], find(names, job["function"]))
        tests += 1
    for name, value in list(names.items()):
        if name.startswith("test") and isinstance(value, types.FunctionType):
            run_one(value)
            tests += 1
        elif isinstance(value, type) and value.__module__ == "tests":
            tests += run_class(name, value)
    return tests + next(ran)


def run_class(name: str, kind: type) -> int:
    """Run a class of tests, unittest's or pytest's plain one; return how many it has."""
    unittest = sys.modules.get("unittest")
    if unittest is not None and issubclass(kind, unittest.TestCase):
        suite = unittest.defaultTestLoader.loadTestsFromTestCase(kind)
        if not issubclass(kind, unittest.IsolatedAsyncioTestCase):
            for case in suite:
                code = getattr(getattr(case, case._testMethodName), "__code__", None)
                if code is not None and code.co_flags & NOT_RUN_BY_CALLING:
                    raise Unsupported(f"{case} is not run by calling it")
        result = unittest.TestResult()
        suite.run(result)
        for case, text in [*result.errors, *result.failures]:
            raise AssertionError(f"{case}: {text.strip().splitlines()[-1]}")
        return int(result.testsRun) - len(result.skipped)
    methods = [method for method in dir(kind) if method.startswith("test")] if name.startswith("Test") else []
    for method in methods:
        run_one(getattr(kind(), method))
    return len(methods)


def run_tests() -> None:
    """Run the tests of standard input against `solution.py`; say how that went, signed with the job's token."""
    job = json.load(sys.stdin)
    try:
        # The solution's process has this one's user id: forbid it to read this memory, or to trace it.
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    except (ImportError, OSError, AttributeError) as error:
        raise SystemExit(f"memory cannot be protected: {error}") from None
    stream = own_stream()
    status, detail = "failed", ""
    try:
        link = Link()
        if link.problem is None:
            if not execute_tests(job, link):
                raise Unsupported("no test ran, and no assert")
            status = "passed"
        else:
            detail = str(link.problem)
    except (Unsupported, SyntaxError, ModuleNotFoundError) as error:
        # The test file's fault, unless the solution raised it.
        status, detail = ("failed" if getattr(error, "remote", False) else "broken"), describe(error)
    except BaseException as error:
        detail = describe(error)
    print(json.dumps([job["token"], status, detail]), file=stream, flush=True)
    os._exit(0)


if __name__ == "__main__":
    {"calls": run_calls, "serve": serve, "tests": run_tests}[sys.argv[1]]()
