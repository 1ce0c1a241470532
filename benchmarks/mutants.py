"""Mutants of a room: the share that its quick tests notice, and those that they do not.

    python benchmarks/mutants.py laws --count 60 [--seed 0] [--seconds 600] [--out mutants.jsonl]

cosmic-ray changes one place of a function (a number, a comparison, an operator, a condition, a loop). The tests are
imported once; for each mutant of a random sample a forked process takes over its code and runs them, those of the
changed file first, until one fails. Survivors are printed as differences: some of them compute the same, or change a
message only. Needs `cosmic-ray`, and a system that forks.
"""

import argparse
import difflib
import gc
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

import pytest
from _pytest.main import pytest_runtestloop as run_tests
from cosmic_ray import plugins
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import MutationVisitor

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 3  # times the computing of the tests as they are; a mutant that takes more never ends
OPERATORS = (
    "NumberReplacer",
    "AddNot",
    "ReplaceBinaryOperator_Mul_Div",
    "ReplaceBinaryOperator_Div_Mul",
    "ReplaceBinaryOperator_Add_Sub",
    "ReplaceBinaryOperator_Sub_Add",
    "ReplaceComparisonOperator",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceUnaryOperator_USub",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ZeroIterationForLoop",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
)


@dataclass(frozen=True)
class Room:
    """Sources to change, and the tests that should notice."""

    source: str
    tests: tuple[str, ...]


ROOMS = {
    "laws": Room("src/equipoise/laws", ("tests/laws",)),
    "theorems": Room("src/equipoise/theorems", ("tests/theorems",)),
    "implicit": Room(
        "src/equipoise/integrate/implicit",
        ("tests/integrate/implicit", "tests/integrate/test_goals.py", "tests/integrate/steppers"),
    ),
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    path: Path
    operator: str
    occurrence: int

    def source(self) -> str:
        text = (ROOT / self.path).read_text(encoding="utf-8")
        return MutationVisitor.mutate_code(text, plugins.get_operator(self.operator)(), self.occurrence)

    def take_over(self) -> bool:
        """Give the functions of this process the changed code; False for a change outside of any function."""
        before, after = (
            {(each.co_qualname, each.co_firstlineno): each for each in functions_of(compile(text, "", "exec"))}
            for text in ((ROOT / self.path).read_text(encoding="utf-8"), self.source())
        )
        changed = {name: code for (name, line), code in after.items() if before.get((name, line)) != code}
        taken = False
        for function in gc.get_objects():
            if type(function) is FunctionType and function.__code__.co_filename == str(ROOT / self.path):
                code = changed.get(function.__code__.co_qualname)
                if code is not None and code.co_freevars == function.__code__.co_freevars:
                    function.__code__, taken = code, True
        return taken

    def difference(self) -> str:
        before = (ROOT / self.path).read_text(encoding="utf-8").splitlines()
        lines = difflib.unified_diff(before, self.source().splitlines(), str(self.path), lineterm="", n=1)
        return "\n".join(list(lines)[2:])


def mutants(room: Room) -> list[Mutant]:
    """Every mutant of the room by the operators above."""
    names = [
        name for name in plugins.operator_names() if name.split("/")[1].startswith(OPERATORS) and "_Is" not in name
    ]
    found = []
    for path in sorted((ROOT / room.source).rglob("*.py")):
        tree = get_ast(path.read_text(encoding="utf-8"))
        for name in names:
            operator, count, nodes = plugins.get_operator(name)(), 0, [tree]
            while nodes:
                node = nodes.pop()
                count += len(list(operator.mutation_positions(node)))
                nodes.extend(getattr(node, "children", ()))
            found += [Mutant(path.relative_to(ROOT), name, each) for each in range(count)]
    return found


def functions_of(code: CodeType) -> Iterator[CodeType]:
    """The code of every function in that of a module, one inside another apart."""
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from functions_of(each)


@dataclass
class Trial:
    """A plugin of pytest: in place of the tests once, the tests for each mutant, each in a process of its own."""

    sample: list[Mutant]
    deadline: float
    out: Path | None
    results: Counter[str]
    limit: int = 3600  # seconds of computing

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try the mutants until time is up."""
        assert self.outcome(session, None) == "survived", "the quick tests pass before anything is changed"
        self.limit = 10 + PATIENCE * int(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime)
        for mutant in self.sample:
            if time.monotonic() > self.deadline:
                break
            begun, result = time.monotonic(), self.outcome(session, mutant)
            self.results[result] += 1
            row = {"result": result, "seconds": round(time.monotonic() - begun), "file": mutant.path.name}
            print(json.dumps(row), flush=True)
            if result == "survived":
                print(mutant.difference(), flush=True)
            if self.out is not None:
                with self.out.open("a", encoding="utf-8") as file:
                    print(json.dumps(row | {"difference": mutant.difference()}), file=file)
        return True

    def outcome(self, session: pytest.Session, mutant: Mutant | None) -> str:
        """'survived', 'killed' or 'timeout'; 'outside' where no function changes, 'not tried' at an error."""
        child = os.fork()
        if child == 0:
            try:
                os._exit(self.tested(session, mutant))
            finally:  # nothing that is raised may reach the loop of the parent
                os._exit(4)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return "timeout" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "killed"
        return {0: "survived", 1: "killed", 3: "outside"}.get(os.WEXITSTATUS(status), "not tried")

    def tested(self, session: pytest.Session, mutant: Mutant | None) -> int:
        """The exit code of the process that runs the tests."""
        resource.setrlimit(resource.RLIMIT_CPU, (self.limit, self.limit))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        if mutant is not None:
            if not mutant.take_over():
                return 3
            session.items.sort(key=lambda item: mutant.path.stem not in item.path.stem)
        try:
            run_tests(session)
        except BaseException:
            return 1
        return 1 if session.testsfailed else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after the mutant that is on its way")
    parser.add_argument("--out", type=Path, help="a line of JSON for each mutant")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    room = ROOMS[arguments.room]
    everything = mutants(room)
    sample = random.Random(arguments.seed).sample(everything, min(arguments.count, len(everything)))
    trial = Trial(sample, time.monotonic() + arguments.seconds, arguments.out, Counter())
    options = ["-x", "-q", "-s", "-p", "no:cacheprovider", "-m", "not slow and not long"]
    pytest.main([*options, *room.tests, room.source], plugins=[trial])  # and the examples in docstrings
    tried = trial.results.total() - trial.results["outside"] - trial.results["not tried"]
    noticed = tried - trial.results["survived"]
    print(f"{arguments.room}: {noticed} of {tried} noticed ({noticed / max(tried, 1):.0%}); {dict(trial.results)}")
    sys.exit(0)


if __name__ == "__main__":
    main()
