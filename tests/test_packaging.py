"""What is declared for installation: every extra resolves with the constraints, and every lower bound is a true one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml by itself")
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_what_an_extra_names_is_pinned_within_its_range(extra: str) -> None:
    """A package without a pin is another one next month; a pin outside the range is refused by pip."""
    for line in EXTRAS[extra] if extra else PROJECT["dependencies"]:
        requirement = Requirement(line)
        if requirement.name != "gritvq":
            version = PINS.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} has no line in constraints.txt"
            assert requirement.specifier.contains(version), f"{requirement} excludes {version} of constraints.txt"


def test_the_pins_agree_with_each_other() -> None:
    """What the extras name, and what that needs in turn as far as it is installed here, accepts every pin."""
    installed = {canonicalize_name(found.metadata["Name"]): found for found in distributions()}
    lines = {line for extra in (PROJECT["dependencies"], *EXTRAS.values()) for line in extra}
    waiting, seen = {(line, "") for line in lines if not line.startswith("gritvq[")}, set()
    checked = 0
    while waiting - seen:
        line, extra = (waiting - seen).pop()
        seen.add((line, extra))
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        pin, found = PINS.get(name), installed.get(name)
        if pin is not None:
            checked += 1
            assert requirement.specifier.contains(pin, prereleases=True), f"{line} excludes {pin} of constraints.txt"
        if found is not None and (pin is None or found.version.partition("+")[0] == pin):
            waiting |= {(further, own) for further in found.requires or [] for own in ("", *requirement.extras)}
    pinned = sum(name in installed and installed[name].version.partition("+")[0] == pin for name, pin in PINS.items())
    assert checked > (100 if pinned > 100 else len(EXTRAS))  # others than the pinned versions lead no further


@pytest.mark.soak  # asks the package index for half a minute; the tests above and below hold without one
def test_every_extra_resolves_with_the_constraints() -> None:
    """pip accepts all extras at once, with pins: so each alone, which needs a part of the same versions."""
    names = ",".join(EXTRAS)
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--disable-pip-version-check", "--retries", "1"]
    found = subprocess.run(
        [*pip, "--quiet", "--constraint", "constraints.txt", f"--editable=.[{names}]"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "No matching distribution found" in found.stderr and "from versions: none" in found.stderr:
        pytest.skip("no package index answers here")
    assert found.returncode == 0, found.stderr[-2000:]


def test_all_is_every_extra_that_users_choose_from() -> None:
    """``all`` leaves out nothing but the tools for work on the project itself."""
    named = {extra for line in EXTRAS["all"] for extra in Requirement(line).extras}
    assert named == set(EXTRAS) - {"all", "bench", "dev"}


def test_a_missing_package_is_named_with_an_extra_that_brings_it() -> None:
    """Every ``optional(module, extra)`` of the code."""
    provides = packages_distributions()
    sources = {str(path): path.read_text() for path in sorted((ROOT / "src").rglob("*.py"))}
    calls = [
        (name, *(argument.value for argument in node.args[:2]))
        for name, source in sources.items()
        if "optional(" in source
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "optional"
    ]
    assert len(calls) > 10
    for file, module, extra in calls:
        brought = {canonicalize_name(Requirement(line).name) for line in EXTRAS[extra]}
        packages = {canonicalize_name(name) for name in provides.get(module.partition(".")[0], [])}
        assert not packages or packages & brought, f"{file}: the extra {extra} does not bring {module}"
