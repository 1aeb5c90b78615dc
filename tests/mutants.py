"""Mutation testing: which small changes to the scheduler do its own tests not notice? `make mutants SEED=1 COUNT=200`.

cosmic-ray knows the changes and makes them. This script draws a random sample of them and tries each in a copy of the
tree, as many copies as there are cores; the working tree is never changed. A mutant is killed when a test fails,
runs out of time or of memory. cosmic-ray's own runner is not used: it changes files in place, one at a time, and draws
no sample.

The sample: a comparison turned or its border moved, an operator exchanged, a sign or a `not` dropped or added, `and`
for `or`, a constant or a truth changed, a loop not entered, left or gone on with, an exception not caught, a call that
stands alone dropped. What changes annotations or the star before keyword-only parameters is left out, and a module's
constants keep their numbers: 31 s for 30 s is a choice and no fault. Needs cosmic-ray; the interpreter of the tests is
another.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import queue
import random
import resource
import shutil
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import parso.python.tree
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

ROOT = Path(__file__).resolve().parent.parent
MEMORY = 4 << 30  # bytes of address space for one run of the tests

COMPARISONS = "Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is"
BINARY = "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_Mul BitOr_BitAnd BitAnd_BitOr"
OTHERS = (
    "ReplaceUnaryOperator_Delete_Not ReplaceUnaryOperator_Delete_USub AddNot ReplaceAndWithOr ReplaceOrWithAnd "
    "ReplaceTrueWithFalse ReplaceFalseWithTrue NumberReplacer ReplaceBreakWithContinue ReplaceContinueWithBreak "
    "ZeroIterationForLoop ExceptionReplacer"
)


class DropCall(Operator):
    """A call that is a statement by itself is left out."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        if node.type == "simple_stmt" and self._is_call(node.children[0]):
            yield node.start_pos, node.end_pos

    @staticmethod
    def _is_call(node: Any) -> bool:
        last = node.children[-1] if node.type == "atom_expr" else None
        return last is not None and last.type == "trailer" and last.children[0].value == "("

    def mutate(self, node: Any, index: int) -> Any:
        first = node.get_first_leaf()
        node.children[0] = parso.parse(first.prefix + "pass")
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


class Mutant(NamedTuple):
    path: str
    line: int
    operator: str
    occurrence: int


class Outcome(NamedTuple):
    mutant: Mutant
    change: str
    survived: bool
    seconds: float


def operators() -> dict[str, Operator]:
    names = [f"ReplaceComparisonOperator_{name}" for name in COMPARISONS.split()]
    names += [f"ReplaceBinaryOperator_{name}" for name in BINARY.split()]
    return {name: get_operator(f"core/{name}")() for name in [*names, *OTHERS.split()]} | {"DropCall": DropCall()}


def mutants(folder: Path) -> list[Mutant]:
    """Every mutant of every file under the folder, in a fixed order."""
    found = []
    for file in sorted(folder.rglob("*.py")):
        nodes = list(ast_nodes(get_ast(file.read_text())))
        for name, operator in operators().items():
            places = [(node, place) for node in nodes for place in operator.mutation_positions(node)]
            path = str(file.relative_to(ROOT))
            for number, (node, (start, _)) in enumerate(places):
                is_constant = name == "NumberReplacer" and parso.python.tree.search_ancestor(node, "funcdef") is None
                is_signature = node.type == "operator" and node.parent.type in ("parameters", "param")
                if not (is_constant or is_signature):
                    found.append(Mutant(path, start[0], name, number))
    return found


def meaning(code: str) -> str:
    """The program without its annotations."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


def mutated(mutant: Mutant) -> str | None:
    """The file with the change; None if it changes nothing when it runs."""
    code = (ROOT / mutant.path).read_text()
    changed = mutate_code(code, operators()[mutant.operator], mutant.occurrence)
    try:
        return changed if changed is not None and meaning(changed) != meaning(code) else None
    except SyntaxError:
        return None


def copy_tree() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="zoo-mutants-"))
    leave_out = shutil.ignore_patterns(".*", "__pycache__", "demo-out", "node_modules")
    shutil.copytree(ROOT, folder, ignore=leave_out, dirs_exist_ok=True, symlinks=True)
    return folder


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def run_tests(python: str, folder: Path, paths: list[str], seconds: float, *more: str) -> bool:
    """Whether they pass. All together may take four times the seconds given, and one test as long as all of them did:
    the machine may be busy, and a mutant that loops for ever is found all the same.
    """
    command = [python, "-m", "pytest", "-x", "-m", "not slow", f"--timeout={max(60.0, seconds)}", *more, *paths]
    kept = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**kept, "CI": "1"}  # the same examples in every run
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=limit_memory,
    )
    try:
        return process.wait(timeout=60.0 + 4 * seconds) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


def in_order(python: str, folder: Path, tests: str) -> tuple[list[str], float]:
    """The files of the tests, the quickest first, and how long all of them take; they have to pass unchanged."""
    report = folder / "report.xml"
    start = time.monotonic()
    if not run_tests(python, folder, [tests], 450.0, f"--junitxml={report}"):
        raise SystemExit(f"{tests} fails without any change (or takes longer than 30 minutes)")
    took: dict[str, float] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.attrib["classname"].replace(".", "/") + ".py"
        took[file] = took.get(file, 0.0) + float(case.attrib["time"])
    report.unlink()
    return sorted(took, key=lambda file: took[file]), time.monotonic() - start


def change(mutant: Mutant, code: str) -> str:
    before = (ROOT / mutant.path).read_text().splitlines()
    lines = difflib.unified_diff(before, code.splitlines(), lineterm="", n=0)
    return "\n".join(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Which small changes do the tests not notice?")
    parser.add_argument("--python", required=True, help="the interpreter of the tests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--code", default="broker/scheduler", help="the folder whose files are changed")
    parser.add_argument("--tests", default="tests/scheduler", help="the folder of the tests")
    given = parser.parse_args()
    python = os.path.abspath(given.python)

    every = mutants(ROOT / given.code)
    random.Random(given.seed).shuffle(every)
    sample: list[tuple[Mutant, str]] = []
    for mutant in every:
        if len(sample) == given.count:
            break
        if (code := mutated(mutant)) is not None:
            sample.append((mutant, code))

    folders = [copy_tree() for _ in range(given.jobs)]
    try:
        paths, took = in_order(python, folders[0], given.tests)
        print(f"{len(sample)} of {len(every)} mutants; {given.tests} takes {took:.0f} s unchanged", flush=True)
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for folder in folders:
            free.put(folder)

        def attempt(mutant: Mutant, code: str) -> Outcome:
            folder = free.get()
            original = (ROOT / mutant.path).read_text()
            try:
                (folder / mutant.path).write_text(code)
                start = time.monotonic()
                survived = run_tests(python, folder, paths, took)
                seconds = time.monotonic() - start
            finally:
                (folder / mutant.path).write_text(original)
                free.put(folder)
            outcome = Outcome(mutant, change(mutant, code), survived, seconds)
            word = "SURVIVED" if survived else "killed"
            print(f"{word:8} {seconds:5.1f} s  {mutant.path}:{mutant.line} {mutant.operator}", flush=True)
            return outcome

        start = time.monotonic()
        with ThreadPoolExecutor(given.jobs) as pool:
            outcomes = list(pool.map(lambda one: attempt(*one), sample))
        wall = time.monotonic() - start
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    for word, survived in (("Killed", False), ("Survived", True)):
        print(f"\n{word}:")
        for one in sorted(outcome for outcome in outcomes if outcome.survived is survived):
            print(f"\n{one.mutant.path}:{one.mutant.line} {one.mutant.operator}\n{one.change}")
    killed = sum(not one.survived for one in outcomes)
    share = 100 * killed / max(1, len(outcomes))
    print(
        f"\nseed {given.seed}: {killed} of {len(outcomes)} killed ({share:.1f} %), {wall:.0f} s with {given.jobs} jobs"
    )


if __name__ == "__main__":
    main()
