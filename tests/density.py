"""How densely the code is written: what a reader meets on every line.

    python tests/density.py vopcore pipelines

Goals: at most 8 syntax nodes per line of code, at least 5 blank lines per 100 in bodies of 12 lines and more,
no function above a cyclomatic complexity of 12. Nothing fails here; `.ci/run` prints it, and of each place
the files that have the most nodes above the goal.
"""

import ast
import sys
from dataclasses import dataclass, field
from pathlib import Path

LONG_BODY = 12  # lines from which a body should have paragraphs
MAX_COMPLEXITY = 12
MAX_NODES = 8  # per line of code
NUM_WORST = 10  # files that are named
BRANCHES = (
    ast.If,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.BoolOp,
    ast.comprehension,
    ast.Assert,
    ast.match_case,
)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Density:
    """Counts over some files."""

    code_lines: int = 0
    nodes: int = 0
    comment_lines: int = 0
    body_lines: int = 0
    blank_body_lines: int = 0
    comprehensions: int = 0
    tangled: list[str] = field(default_factory=list)

    def add_file(self, path: Path) -> None:
        """Count one file."""
        text = path.read_text()
        lines = text.splitlines()
        tree = ast.parse(text)
        docstrings = docstring_lines(tree)

        for number, line in enumerate(lines, 1):
            stripped = line.strip()
            if stripped.startswith("#"):
                self.comment_lines += 1
            elif stripped and number not in docstrings:
                self.code_lines += 1

        for node in ast.walk(tree):
            self.nodes += 1
            if isinstance(node, COMPREHENSIONS):
                self.comprehensions += 1
            if isinstance(node, FUNCTIONS):
                self._add_function(path, node, lines, docstrings)

    def _add_function(self, path: Path, function: ast.AST, lines: list[str], docstrings: set[int]) -> None:
        numbers = range(function.lineno, function.end_lineno + 1)
        body = [lines[number - 1] for number in numbers if number not in docstrings]

        if len(body) >= LONG_BODY:
            self.body_lines += len(body)
            self.blank_body_lines += sum(not line.strip() for line in body)

        complexity = 1 + sum(isinstance(node, BRANCHES) for node in ast.walk(function))
        if complexity > MAX_COMPLEXITY:
            self.tangled.append(f"{path}:{function.lineno} {function.name}: {complexity} branches")

    @property
    def excess(self) -> int:
        """Nodes above the goal."""
        return self.nodes - MAX_NODES * self.code_lines

    def __str__(self) -> str:
        code_lines = max(self.code_lines, 1)
        body_lines = max(self.body_lines, 1)
        return (
            f"{self.code_lines:,} lines of code, {self.nodes / code_lines:.1f} nodes per line,"
            f" {100 * self.blank_body_lines / body_lines:.1f} blank lines per 100 in long bodies,"
            f" per 1,000 lines {1000 * self.comment_lines / code_lines:.0f} comment lines"
            f" and {1000 * self.comprehensions / code_lines:.0f} comprehensions"
        )


def docstring_lines(tree: ast.Module) -> set[int]:
    """The numbers of the lines that docstrings take."""
    numbers: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            docstring = node.body[0]
            numbers.update(range(docstring.lineno, docstring.end_lineno + 1))
    return numbers


def main(places: list[str]) -> None:
    """Print the density of each place, and what is tangled in it."""
    for place in places:
        density = Density()
        of_file = {}
        for path in sorted(Path(place).rglob("*.py")):
            density.add_file(path)
            of_file[path] = Density()
            of_file[path].add_file(path)

        print(f"{place}: {density}")
        for function in density.tangled:
            print(f"  {function}")

        worst = sorted(of_file, key=lambda path: -of_file[path].excess)
        for path in worst[:NUM_WORST]:
            nodes_per_line = of_file[path].nodes / max(of_file[path].code_lines, 1)
            print(f"  {path}: {nodes_per_line:.1f} nodes per line, {of_file[path].excess:,} nodes too many")


if __name__ == "__main__":
    main(sys.argv[1:] or ["vopcore", "pipelines"])
