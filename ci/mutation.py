"""Mutation testing: change one thing in the code, and see whether a test fails.

The tests are collected and run once, which tells how long each takes and what it calls. Then each
mutant has a process of its own, forked from there, where it takes the place of the original and
runs the tests that call its function: first those that killed others of that function, then the
quickest. What survives must stand in ci/survivors.txt, under the reason why no test can tell.

No tool from PyPI fits: mutmut leaves out functions with decorators, here every cached size rule
(https://github.com/boxed/mutmut/issues/387), and cosmic-ray starts Python and collects all tests
anew for each mutant, which takes longer than most of the tests.
"""

import argparse
import ast
import functools
import gc
import importlib
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).parent.parent
MODULES = ["geometry", "padding", "scatter"]
MODULES += ["bands", "depthwise", "diagonals", "fft", "lines", "pointwise", "taps", "windows"]
MODULES += ["winograd"]
NAMES = "cases edge_cases errors geometry methods planning properties seed"
TESTS = [f"tests/test_{name}.py" for name in NAMES.split()]
# too slow, or of a dtype that is treated as another
LEFT_OUT = (
    "double or mask or float16 or float64 or complex128 or int8 or int32 or int64 or uint"
    " or int16 or complex64-w or complex64-t or complex64-auto or numpy-float32-windows"
    " or 3d-strided-dilated or 3d-circular or long_sums or long_kernel or dask or no_array"
    " or 2_to_the or no_growth or threads or fork or half_precision"
)
OPTIONS = ["-q", "-s", "--tb=no", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})"]
OPTIONS += ["--backend", "numpy,array-api-strict", "--hypothesis-seed", "0", "--samples", "20"]
SURVIVORS = Path(__file__).with_name("survivors.txt")

SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
PLAIN = (bool, int, str, tuple, dict)
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


# -- mutants


def variants(node: ast.AST) -> Iterator[ast.AST]:  # noqa: C901 - a table
    """Yield what may stand in the place of a node."""
    match node:
        case ast.BinOp(left, op, right):
            yield ast.BinOp(left, SWAPS[type(op)](), right)
        case ast.AugAssign(target, op, value):
            yield ast.AugAssign(target, SWAPS[type(op)](), value)
            yield ast.Pass()
        case ast.Assign([ast.Subscript()]):
            yield ast.Pass()
        case ast.BoolOp(op, values):
            yield ast.BoolOp(SWAPS[type(op)](), values)
            for i in range(len(values)):
                rest = values[:i] + values[i + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.Compare(left, ops, rights):
            for i, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield ast.Compare(left, [*ops[:i], other(), *ops[i + 1 :]], rights)
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Constant(str(value)) if " " not in value:  # those are prose
            yield ast.Constant(value + "?")
        case ast.IfExp(_, body, orelse):
            yield body
            yield orelse
        case ast.If(test, body, orelse) if not isinstance(test, ast.Compare | ast.UnaryOp):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.comprehension(target, iterated, ifs) if ifs:
            yield ast.comprehension(target, iterated, [], 0)
        case ast.Slice(lower, upper, step):
            bounds = {"lower": lower, "upper": upper, "step": step}
            for name, bound in bounds.items():
                if bound is not None:
                    yield ast.Slice(**{**bounds, name: None})
        case ast.Call(function, arguments, keywords):
            yield from calls(function, arguments, keywords)
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()


def calls(function: Any, arguments: Any, keywords: Any) -> Iterator[ast.AST]:
    """Yield calls of the opposite function, without a keyword, or one of a few arguments alone."""
    match function:
        case ast.Name(name) if name in CALLS:
            yield ast.Call(ast.Name(CALLS[name], ast.Load()), arguments, keywords)
            if len(arguments) > 1:
                yield from arguments
    for i, keyword in enumerate(keywords):
        if keyword.arg not in (None, "strict"):
            yield ast.Call(function, arguments, keywords[:i] + keywords[i + 1 :])


class Mutant(NamedTuple):
    """One change: ``put`` makes it in the module's tree."""

    module: str
    function: str  # its qualified name; "" on the module's own level
    text: str
    put: Callable[[], None]
    tree: ast.Module

    def apply(self) -> None:
        """Give the live module the code of the changed one."""
        self.put()
        live = importlib.import_module(f"xconv.{self.module}")
        changed = {"__name__": live.__name__, "__package__": "xconv"}
        exec(compile(ast.fix_missing_locations(self.tree), live.__file__, "exec"), changed)
        transplant(vars(live), changed)


def transplant(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Change functions in place, as others hold on to them; plain values are replaced."""
    for name, value in list(old.items()):
        other = new.get(name)
        if isinstance(value, property):
            value, other = value.fget, other.fget
        while hasattr(value, "__wrapped__"):
            value, other = value.__wrapped__, other.__wrapped__
        if getattr(value, "__module__", None) == old.get("__module__", old.get("__name__")):
            if isinstance(value, FunctionType):
                value.__code__, value.__defaults__ = other.__code__, other.__defaults__
            elif isinstance(value, type):
                transplant(vars(value), vars(other))
        elif type(value) in PLAIN and value != other and not name.startswith("__"):
            old[name] = other


def mutants(module: str) -> Iterator[Mutant]:
    """Yield the mutants of a module, top to bottom."""
    tree = ast.parse((ROOT / "xconv" / f"{module}.py").read_text("utf-8"))
    seen: Counter[str] = Counter()
    for function, node, place in places(tree, ""):
        for new in variants(node):
            text = f"{module}.{function}: {shown(node)} -> {shown(new)}"
            seen[text] += 1
            if seen[text] > 1:
                text += f" #{seen[text]}"
            yield Mutant(module, function, text, functools.partial(place, new), tree)


def shown(node: ast.AST) -> str:
    """Return a node's source, a statement's first line."""
    return ast.unparse(node).partition("\n")[0]


def places(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST, Callable[[Any], None]]]:
    """Yield the nodes below one, each with its function and with what replaces it.

    Types, decorators, messages and docstrings stay as they are.
    """
    outer = ast.Module | ast.ClassDef  # functions within functions count as part of those
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            match child:
                case ast.Raise() | ast.Assert() | ast.JoinedStr() | ast.Expr(ast.Constant()):
                    continue
                case ast.Subscript(ast.Name("tuple" | "list" | "dict")):
                    continue
                case ast.keyword("strict"):
                    continue
                case ast.FunctionDef(name) | ast.ClassDef(name) if isinstance(node, outer):
                    inner = f"{function}.{name}".strip(".")
                case ast.AST():
                    inner = function
                case _:
                    continue
            if isinstance(value, list):
                yield inner, child, functools.partial(value.__setitem__, i)
            else:
                yield inner, child, functools.partial(setattr, node, field)
            yield from places(child, inner)


# -- tests


class Record(NamedTuple):
    """What one run of a test took and called."""

    seconds: float
    called: frozenset[tuple[str, str]]


class Mutation:
    """A pytest plugin that runs the collected tests once for each mutant."""

    def __init__(self, chosen: list[Mutant], jobs: int) -> None:
        self.chosen, self.jobs = chosen, jobs
        self.survivors: list[Mutant] = []
        self.uncalled: list[Mutant] = []
        self.running: dict[int, tuple[Mutant, int]] = {}
        self.kills: dict[str, Counter[int]] = defaultdict(Counter)

    def pytest_sessionstart(self) -> None:
        """Let Hypothesis neither shrink nor keep what fails."""
        from hypothesis import Phase, settings  # it has a plugin, which pytest wants to load

        settings.register_profile(
            "mutation", settings(), database=None, phases=[Phase.explicit, Phase.generate]
        )
        settings.load_profile("mutation")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests on the original, then on all mutants."""
        self.items = session.items
        self.caches = [
            a
            for a in gc.get_objects()
            if type(a) is functools._lru_cache_wrapper and a.__module__.startswith("xconv.")
        ]
        everything = range(len(self.items))
        seconds = list(map(self.seconds, everything))  # which keeps what the oracles compute
        self.records = list(map(Record, seconds, map(self.called, everything)))
        print(
            f"{len(self.items)} tests of {sum(seconds):.0f} s, {len(self.chosen)} mutants",
            flush=True,
        )
        for mutant in self.chosen:
            while len(self.running) >= self.jobs:
                self.finish()
            self.start(mutant)
        while self.running:
            self.finish()
        return True

    def run(self, i: int) -> bool:
        """Run a test; return whether it passed."""
        for cache in self.caches:
            cache.cache_clear()
        reports = runtestprotocol(self.items[i], log=False, nextitem=None)
        return all(report.passed for report in reports)

    def called(self, i: int) -> frozenset[tuple[str, str]]:
        """Run a test; return the functions of xconv that it calls."""
        found = set()
        folder = str(ROOT / "xconv") + os.sep

        def profile(frame: Any, event: str, argument: Any) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(folder):
                name = frame.f_code.co_qualname.partition(".<")[0]
                found.add((Path(frame.f_code.co_filename).stem, name))

        threading.setprofile(profile)  # of threads that the test starts
        sys.setprofile(profile)
        self.run(i)
        sys.setprofile(None)
        threading.setprofile(None)
        return frozenset(found)

    def seconds(self, i: int) -> float:
        """Run a test, which must pass; return how long it takes."""
        start = time.perf_counter()
        if not self.run(i):
            pytest.exit(f"{self.items[i].nodeid} fails without a mutant", returncode=2)
        return time.perf_counter() - start

    def start(self, mutant: Mutant) -> None:
        """Run a mutant in a process of its own, which tells the test that fails."""
        kills = self.kills[f"{mutant.module}.{mutant.function}"]
        tests = [
            i
            for i, (item, record) in enumerate(zip(self.items, self.records, strict=True))
            if concerns(mutant, item, record)
        ]
        if not tests:
            self.uncalled.append(mutant)
        tests.sort(key=lambda i: (-kills[i], self.records[i].seconds))
        end, told = os.pipe()
        pid = os.fork()
        if pid:
            os.close(told)
            self.running[pid] = mutant, end
            return
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
            mutant.apply()
            for i in tests:
                # no longer than this: a mutant may loop for ever
                signal.setitimer(signal.ITIMER_REAL, 5 + 10 * self.records[i].seconds)
                if not self.run(i):
                    os.write(told, str(i).encode())
                    os._exit(1)
            os._exit(0)
        finally:
            os._exit(1)

    def finish(self) -> None:
        """Wait for a mutant's end."""
        pid, status = os.wait()
        mutant, end = self.running.pop(pid)
        with open(end, "rb") as told:  # noqa: PTH123 - a pipe
            number = told.read()
        if number:
            self.kills[f"{mutant.module}.{mutant.function}"][int(number)] += 1
        if status == 0:
            self.survivors.append(mutant)
            print(f"survived: {mutant.text}", flush=True)


def concerns(mutant: Mutant, item: pytest.Item, record: Record) -> bool:
    """Whether a test calls what was changed; the cases of a named method are for its module."""
    named = [method for method in ("taps", "winograd", "fft") if f"-{method}-" in item.name]
    if named not in ([], [mutant.module]):
        return False
    if not mutant.function:
        return any(module == mutant.module for module, _ in record.called)
    return (mutant.module, mutant.function) in record.called


# -- the report


def explained() -> dict[str, str]:
    """Read ci/survivors.txt: reasons, and under each, indented, the mutants that it holds for."""
    found, reason = {}, ""
    for line in SURVIVORS.read_text("utf-8").splitlines():
        if line.startswith(" "):
            found[line.strip()] = reason
        elif line:
            reason = line
    return found


def main() -> None:
    """Run the mutants of some modules, and compare what survives with the list."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=MODULES, metavar="MODULE")
    parser.add_argument("--every", type=int, default=1, help="take each n-th mutant alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--only", default="", help="text that a mutant's line must have")
    asked = parser.parse_args()
    everything = [mutant for module in asked.modules for mutant in mutants(module)]
    chosen = [mutant for mutant in everything[:: asked.every] if asked.only in mutant.text]
    plugin = Mutation(chosen, asked.jobs)
    start = time.perf_counter()
    status = pytest.main([*OPTIONS, *TESTS], plugins=[plugin])
    if status not in (0, 5):
        sys.exit(status)

    known = explained()
    survived = {mutant.text for mutant in plugin.survivors}
    for module in asked.modules:
        own = [mutant for mutant in chosen if mutant.module == module]
        alive = sum(mutant.text in survived for mutant in own)
        print(f"{module}: {len(own) - alive} of {len(own)} killed")
    print(
        f"no test calls: {', '.join(sorted({m.text.partition(':')[0] for m in plugin.uncalled}))}"
    )
    score = 100 * (1 - len(survived) / len(chosen))
    print(f"{score:.1f} % of {len(chosen)} mutants killed in {time.perf_counter() - start:.0f} s")
    new = sorted(survived - known.keys())
    gone = sorted({mutant.text for mutant in chosen} & known.keys() - survived)
    listed = {text for text in known if text.partition(".")[0] in asked.modules}
    gone += sorted(listed - {mutant.text for mutant in everything})
    for title, texts in (("Not in ci/survivors.txt:", new), ("There, but killed or gone:", gone)):
        if texts:
            print(title, *texts, sep="\n    ")
    sys.exit(bool(new or gone))


if __name__ == "__main__":
    main()
