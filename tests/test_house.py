"""The rules of the house: where packages resolve, that imports only go down, that the pins agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from utils.notebooks import find_notebooks

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [
    {"utils"},
    {"working_with_text_data", "attention_mechanisms"},
    {"gpt_model"},
    {"pretraining"},
    {"finetuning"},
    {"chat_ui"},
    {"deployment"},
]
FLOOR_OF = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_utils_and_tests_are_this_repository_s():
    import tests
    import utils

    assert Path(utils.__file__).parent == ROOT / "utils"
    assert Path(tests.__file__).parent == ROOT / "tests"


NOTEBOOKS = find_notebooks()
READ_AFTER = ("attention_mechanisms", "working_with_text_data")


def test_an_installed_project_is_this_repository_from_any_folder(tmp_path):
    """A `utils` that some library leaves in site-packages would come before an editable install's."""
    code = "import utils, gpt_model; print(utils.__file__); print(gpt_model.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [Path(line).parent for line in done.stdout.splitlines()] == [ROOT / "utils", ROOT / "gpt_model"]


def test_what_makes_a_model_has_the_compiler_before_threads_begin():
    """torch imports its compiler when weights are made, and two threads that load models at once break that import."""
    modules = "deployment.api, gpt_model.generate, finetuning.classification.predict, finetuning.instruction.ask"
    for module in modules.split(", "):
        code = f"import sys, {module}; print('torch._dynamo' in sys.modules, 'sklearn' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["True", "False"], module


@pytest.mark.parametrize("package", sorted(FLOOR_OF))
def test_imports_only_go_down(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                other = module.split(".")[0]
                if other in FLOOR_OF and other != package:
                    # A notebook may take its text from the chapter that was read before it, on the same floor.
                    chapter_before = path in NOTEBOOKS and (package, other) == READ_AFTER
                    lower = FLOOR_OF[other] < FLOOR_OF[package]
                    assert lower or chapter_before, f"{path.relative_to(ROOT)} imports {module}"


def test_every_package_is_named_and_nothing_else():
    named = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in FLOOR_OF
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert named == found


def test_no_script_is_named_after_a_library():
    """A script's own folder comes first on the path, so `datasets.py` would hide the library from it."""
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8") + (ROOT / "constraints.txt").read_text(
        encoding="utf-8"
    )
    libraries = {name.lower().replace("-", "_") for name in re.findall(r"^([\w.-]+)==", pins, re.M)}
    ours = {path.stem for package in FLOOR_OF for path in (ROOT / package).rglob("*.py")} - {"__init__"}
    ours -= {
        "evaluate"
    }  # a library that lm-evaluation-harness alone uses: harness.py takes its own folder off the path
    assert not ours & (libraries | set(sys.stdlib_module_names))


def test_requirements_are_exact_and_agree_with_constraints():
    direct = {}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if requirement := line.split("#")[0].strip():
            name, version = requirement.split("==")
            direct[name.lower().replace("_", "-")] = version
    constraints = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    assert tuple(map(int, direct.pop("torch").split("."))) >= (2, 11)
    assert direct.items() <= constraints.items()
    assert "torch" not in constraints


@pytest.mark.parametrize("readme", sorted(ROOT.glob("**/README.md")), ids=lambda path: path.parent.name)
def test_local_links_lead_somewhere(readme):
    if any(part.startswith(".") or part == "runs" for part in readme.relative_to(ROOT).parts):
        pytest.skip("not part of the repository")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", readme.read_text(encoding="utf-8")):
        assert (readme.parent / target).exists(), f"{readme} links to {target}"


def test_torch_is_a_range():
    assert "torch>=2.11" in PROJECT["project"]["dependencies"]
    assert PROJECT["project"]["requires-python"] == ">=3.11"
