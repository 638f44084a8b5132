"""What the documentation shows works: Python blocks run in order, configurations are accepted, links lead somewhere."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gritvq import grit_vq
from gritvq.cli import comparison_entries
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
from gritvq.quantizers import presets

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


# That of exporting takes half a minute; tests/test_export.py has what it shows.
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=pytest.mark.soak if page.name == "export.md" else ())
        for page in PAGES
        if blocks(page, "python")
    ],
)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = ImageTokenizer(ImageEncoder(16, width=8), grit_vq(16, 64), ImageDecoder(16, width=8))
    tokenizer.save_pretrained("runs/photographs/tokenizer")
    namespace: dict[str, Any] = {"images": torch.rand(2, 3, 10, 13), "__name__": "documentation"}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), namespace)


def test_configurations_shown_are_accepted() -> None:
    lightning, fit, compare = (yaml.safe_load(block) for block in blocks(ROOT / "docs" / "cli.md", "yaml"))
    from gritvq.component import from_config

    for each in (*lightning["callbacks"], *lightning["loggers"]):
        module, _, name = each["class_path"].rpartition(".")
        inspect.signature(getattr(importlib.import_module(module), name)).bind(**each.get("init_args", {}))

    assert isinstance(from_config(fit["tokenizer"]["quantizer"]), torch.nn.Module)
    entries = comparison_entries(compare["methods"], compare["codebook_sizes"], compare["seeds"])
    assert len(entries) == 3 * 2 * 3


def test_every_page_is_in_the_navigation_and_links_lead_somewhere() -> None:
    listed = re.findall(r"([\w/-]+\.md)", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md"))
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_benchmark_pages_are_what_the_results_say() -> None:
    assert (ROOT / "docs" / "performance.md").exists()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.report", "--check", "pages"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_preset_without_measurements_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    report = importlib.import_module("benchmarks.report.__main__")
    monkeypatch.setattr(report.presets, "__all__", ["new_vq"])
    assert [fault.split(":")[0] for fault in report.unmeasured_presets()] == ["new_vq"]


def test_the_status_contrib_is_said_everywhere() -> None:
    said = {name for name in presets.__all__ if "Status: contrib." in (getattr(presets, name).__doc__ or "")}
    section = (ROOT / "docs" / "policy.md").read_text().partition("## Contrib")[2]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == said
    sections = [part for page in (ROOT / "docs" / "methods").glob("*.md") for part in page.read_text().split("\n## ")]
    marked = " ".join(part for part in sections if "**Status.** [Contrib]" in part)
    assert set(re.findall(r"Preset\s`(\w+)`", marked)) == said == {"gm_vq", "hyper_vq", "scq"}
