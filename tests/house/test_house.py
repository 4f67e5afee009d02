"""The house: imports run one way down, sentences open as they should, files have the size of a thing one looks up."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pact_lightning

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "pact_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))
SENTENCE_OPENERS = {"What", "Where", "Whether", "How", "Which", "When", "Why"}

PLANTED = {
    "Imports run down only": ("utils/seeds.py", "from pact_lightning.cli.main import main"),
    "A rollout never sees a trace or a reference": ("rollout/watch.py", "from pact_lightning.types.trace import Chunk"),
    "The mathematics knows no machinery": ("objectives/kl.py", "import transformers"),
    "No circle of files": ("policy/packing.py", "from pact_lightning.policy.flops import FlopCount"),
}
"""For each contract an import that breaks it, and where to plant it."""


def lint_imports(folder):
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def broken(process):
    return {name for name in PLANTED if re.search(rf"^{re.escape(name)} BROKEN", process.stdout, re.MULTILINE)}


def test_a_planted_violation_of_each_contract_is_caught(tmp_path):
    """That the contracts hold is what `make lint` says."""
    shutil.copytree(PACKAGE, tmp_path / "pact_lightning", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, line in PLANTED.values():
        path = tmp_path / "pact_lightning" / file
        path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    process = lint_imports(tmp_path)
    assert process.returncode != 0
    assert broken(process) == set(PLANTED), process.stdout


def test_no_module_is_loose_at_the_root():
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]


def test_every_room_says_what_it_is_in_at_most_fifteen_lines():
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE:
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
            assert [type(node) for node in tree.body] == [ast.Expr], f"{path} holds more than its docstring"
            assert len(text.splitlines()) <= 15, path


def test_no_docstring_opens_with_a_question_word():
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        f"{path.relative_to(ROOT)}: {text.splitlines()[0]}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, documented) and (text := ast.get_docstring(node))
        if re.match(r"\W*(\w+)", text)[1] in SENTENCE_OPENERS
    ]
    assert found == []


def test_no_file_is_longer_than_four_hundred_lines():
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}


def test_public_names_are_those_that_type_checkers_see():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"pact_lightning.{home}" for name, home in pact_lightning._HOMES.items()}
    assert sorted(pact_lightning.__all__) == sorted(seen)
    assert set(seen) <= set(dir(pact_lightning))


def test_every_public_name_is_defined_in_its_home():
    for name, home in pact_lightning._HOMES.items():
        assert getattr(pact_lightning, name).__module__ == f"pact_lightning.{home}"


def test_an_unknown_name_is_told_as_by_any_module():
    with pytest.raises(AttributeError, match="module 'pact_lightning' has no attribute 'PactModule'"):
        pact_lightning.PactModule  # noqa: B018


def test_importing_the_package_imports_none_of_its_rooms():
    program = "import sys, pact_lightning; print([n for n in sys.modules if n.startswith('pact_lightning.')])"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def reading_path():
    """The files of the reading path with their stated lengths, in order."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition("## A reading path")[2].partition("\n## ")[0]
    return [(file, int(lines)) for file, lines in re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", section, re.MULTILINE)]


def test_the_reading_path_has_about_the_stated_length():
    path = reading_path()
    real = [len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file, _ in path]
    assert 10 <= len(path) <= 14
    assert 2000 <= sum(real) <= 2500
    for (file, stated), lines in zip(path, real, strict=True):
        assert abs(stated - lines) <= 0.1 * lines, f"{file} has {lines} lines, the page says {stated}"


def test_the_reading_path_has_no_forward_jump():
    modules = [f"pact_lightning.{file.removesuffix('.py').replace('/', '.')}" for file, _ in reading_path()]
    for number, (file, _) in enumerate(reading_path()):
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & set(modules[number + 1 :]), file
