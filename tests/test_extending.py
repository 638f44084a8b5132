"""The walk-through of docs/extending.md, taken on a copy of the library: three files change, and the method works."""

from __future__ import annotations

import ast
import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("conftest.py", "zoo.py", "test_contract.py", "test_imports.py")


def additions() -> dict[str, str]:
    """File name and what the page adds to it."""
    page = (ROOT / "docs" / "extending.md").read_text()
    return dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```', page, re.DOTALL | re.MULTILINE))


def target(node: ast.stmt) -> str | None:
    """Module of an import, or name of an assigned list or dict."""
    if isinstance(node, ast.ImportFrom):
        return f"from {node.module}"
    names = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return names[0].id if names and isinstance(names[0], ast.Name) else None


def elements(node: ast.stmt) -> str:
    """What an import, a list or a dict holds, as source with a trailing comma."""
    if isinstance(node, ast.ImportFrom):
        return "".join(f"{alias.name}," for alias in node.names)
    assert isinstance(node, ast.Assign)
    return ast.unparse(node.value)[1:-1] + ","


def extended(source: str, addition: str) -> str:
    """Source with the names and rows of an addition in its imports, lists and dicts, and everything else at its end."""
    lines = source.splitlines()
    places = {target(node): node.lineno for node in ast.parse(source).body if target(node) is not None}
    added: list[tuple[int, str]] = []
    for node in ast.parse(addition).body:
        name = target(node)
        if name is None:
            added.append((len(lines), "\n\n" + ast.get_source_segment(addition, node)))
        else:
            assert re.search(r"[(\[{]$", lines[places[name] - 1]), f"{name} spans several lines"
            added.append((places[name], elements(node)))
    for place, text in sorted(added, reverse=True):
        lines.insert(place, text)
    return "\n".join(lines) + "\n"


def test_a_new_surrogate_touches_three_files_and_passes_the_common_tests(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    for name in ("pyproject.toml", *(f"tests/{name}" for name in TESTS)):
        shutil.copy(ROOT / name, tmp_path / name)
    edits = additions()
    assert set(edits) == {"src/gritvq/surrogates.py", "src/gritvq/__init__.py", "tests/zoo.py"}
    for name, addition in edits.items():
        (tmp_path / name).write_text(extended((tmp_path / name).read_text(), addition))

    def run(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("ruff", "check", "--fix", "--no-cache", ".")
    run("ruff", "format", "--no-cache", ".")
    files = [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()]
    different = {str(file) for file in files if not filecmp.cmp(tmp_path / file, ROOT / file, shallow=False)}
    assert different == set(edits)
    for name, addition in edits.items():  # the page shows code in the style of the house
        for node in ast.parse(addition).body:
            if isinstance(node, ast.ClassDef):
                assert (ast.get_source_segment(addition, node) or "") in (tmp_path / name).read_text()

    paths = ("tests/test_contract.py", "tests/test_imports.py", "src/gritvq/surrogates.py")
    chosen = "surrogate-damped or DampedStraightThrough or import_directions or public_names"
    told = run("pytest", "-q", "-p", "no:cacheprovider", *paths, "-k", chosen)
    passed = re.search(r"(\d+) passed", told)
    modules = len(list((ROOT / "src" / "gritvq").rglob("*.py")))
    assert passed is not None and int(passed[1]) > modules + 25 and "failed" not in told
