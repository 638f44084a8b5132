"""The walk-throughs of docs/extending.md, taken on a copy of the library: at most three files change for each part."""

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
TESTS = ("conftest.py", "zoo.py", "test_imports.py", "quantizers/test_contract.py")
ZOO = "tests/zoo.py"
PARTS = {  # section of the page: file of the part, row in the zoo, name
    "A surrogate": ("surrogates.py", "surrogate-damped", "DampedStraightThrough"),
    "A learning rule": ("learning/losses.py", "rule-centering", "CenteringLoss"),
    "A codebook": ("codebooks/rowwise.py", "codebook-shifted", "ShiftedCodebook"),
}


def additions() -> dict[str, dict[str, str]]:
    """For every section, file names and what the page adds to them."""
    page = (ROOT / "docs" / "extending.md").read_text()
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    block = re.compile(r'^```python title="([^"]+)"\n(.*?)^```', re.DOTALL | re.MULTILINE)
    found = {title: dict(block.findall(text)) for title, text in sections.items()}
    return {title: files for title, files in found.items() if files}


def target(node: ast.stmt) -> str | None:
    """Module of an import, or name of an assigned list or dict."""
    if isinstance(node, ast.ImportFrom):
        return f"from {node.module}"
    names = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return names[0].id if names and isinstance(names[0], ast.Name) else None


def elements(node: ast.stmt) -> str:
    """What an import, a list or a dict holds, as source."""
    if isinstance(node, ast.ImportFrom):
        return ", ".join(alias.name for alias in node.names)
    assert isinstance(node, ast.Assign)
    return ast.unparse(node.value)[1:-1]


def extended(source: str, addition: str) -> str:
    """Source with the names and rows of an addition in its imports, lists and dicts, and everything else at its end."""
    lines = source.splitlines()
    places = {target(node): node for node in ast.parse(source).body if target(node) is not None}
    last_import = max(node.end_lineno for node in places.values() if isinstance(node, ast.ImportFrom))
    added: list[tuple[int, int, str]] = []  # line, column, text
    for node in ast.parse(addition).body:
        name = target(node)
        if name is None:
            added.append((len(lines) - 1, len(lines[-1]), "\n\n\n" + ast.get_source_segment(addition, node)))
        elif name in places:
            whole = ast.get_source_segment(source, places[name])
            inside = whole.rstrip(")]}").rstrip()
            end = source.splitlines()[places[name].end_lineno - 1]
            comma = "" if inside[-1] in ",([{" else ", "
            column = places[name].end_col_offset - (whole[-1] in ")]}")
            added.append((places[name].end_lineno - 1, len(end.encode()[:column].decode()), comma + elements(node)))
        else:
            assert isinstance(node, ast.ImportFrom), f"nowhere to put {name}"
            added.append((last_import - 1, len(lines[last_import - 1]), "\n" + ast.unparse(node)))
    for line, column, text in sorted(added, reverse=True):
        lines[line] = lines[line][:column] + text + lines[line][column:]
    return "\n".join(lines) + "\n"


def test_a_new_part_touches_three_files_and_passes_the_common_tests(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests" / "quantizers").mkdir(parents=True)
    for name in ("pyproject.toml", *(f"tests/{name}" for name in TESTS)):
        shutil.copy(ROOT / name, tmp_path / name)
    sections = additions()
    assert sections.keys() == PARTS.keys()
    changed: set[str] = set()
    for title, edits in sections.items():
        part = Path("src/gritvq/quantizers") / PARTS[title][0]
        own = {str(part), ZOO} | ({str(part.with_name("__init__.py"))} if part.parent.name != "quantizers" else set())
        assert set(edits) == own, f"these files for {title.lower()}"
        changed |= own
        for name, addition in edits.items():
            (tmp_path / name).write_text(extended((tmp_path / name).read_text(), addition))

    def run(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for command in (["format"], ["check", "--fix"], ["format"]):
        run("ruff", *command, "--no-cache", ".")
    files = [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()]
    different = {str(file) for file in files if not filecmp.cmp(tmp_path / file, ROOT / file, shallow=False)}
    assert different == changed
    for edits in sections.values():
        for name, addition in edits.items():  # the page shows code in the style of the house
            for node in ast.parse(addition).body:
                if isinstance(node, ast.ClassDef):
                    assert (ast.get_source_segment(addition, node) or "") in (tmp_path / name).read_text()

    paths = ["tests/quantizers/test_contract.py", "tests/test_imports.py"]
    paths += [f"src/gritvq/quantizers/{file}" for file, _, _ in PARTS.values()]
    names = [name for _, row, part in PARTS.values() for name in (row, part)]
    told = run(
        "pytest", "-q", "-p", "no:cacheprovider", *paths, "-k", " or ".join([*names, "import_directions", "public"])
    )
    passed = re.search(r"(\d+) passed", told)
    modules = len(list((ROOT / "src" / "gritvq").rglob("*.py")))
    assert passed is not None and int(passed[1]) > modules + 15 * len(PARTS) and "failed" not in told
