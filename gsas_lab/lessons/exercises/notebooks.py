"""Solutions -> exercises: the same notebooks without their answers."""

import ast
import re
from pathlib import Path
from typing import Any


def strip(solutions: Path) -> Any:
    """The notebook `solutions` (NotebookNode) without its answers: what a learner starts from.

    Cells tagged `solution` go; between the lines `# solution` and `# end` a stub takes over.
    """
    import nbformat  # here, so that the checks need no notebook packages

    book = nbformat.read(solutions, as_version=4)
    book.cells = [c for c in book.cells if "solution" not in c.metadata.get("tags", [])]
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.source = re.sub(r"(?ms)^# solution\n(.*?)^# end\n", _stub, cell.source)
            cell.outputs, cell.execution_count = [], None
    return book


def _stub(solution: re.Match[str]) -> str:
    """`answer = ...`, or the solution's last function with its docstring and without its body."""
    made = [node for node in ast.parse(solution[1]).body if isinstance(node, ast.FunctionDef)]
    if not made:
        return "answer = ...  # yours\n"
    end = (
        made[-1].body[0].end_lineno if ast.get_docstring(made[-1]) else made[-1].body[0].lineno - 1
    )
    kept = solution[1].splitlines()[made[-1].lineno - 1 : end]
    return "\n".join([*kept, "    return ...  # yours", "", "", ""])


def write(folder: Path) -> list[Path]:
    """folder/solutions/NN_*.ipynb -> folder/exercises/NN_*.ipynb; the paths that were written."""
    import nbformat

    written = []
    for path in sorted((folder / "solutions").glob("[0-9][0-9]_*.ipynb")):
        target = folder / "exercises" / path.name
        target.parent.mkdir(exist_ok=True)
        nbformat.write(strip(path), target)
        written.append(target)
    return written
