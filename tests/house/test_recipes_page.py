"""The page of recipes: every file has its row, and a row says what its file says."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPES = ROOT / "recipes"
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
ADAPTERS = {"lora": "LoRA", "qlora": "QLoRA", "full": "all weights"}


def rows(heading):
    """The rows of a section's table by their first cell."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in re.findall(r"^\|.*\|$", section, re.M)
    ]
    return {first: rest for first, *rest in cells[2:]}


def files(folder):
    return {path.stem for path in (RECIPES / folder).glob("*.yaml") if not path.is_symlink()}


@pytest.mark.parametrize(
    ("heading", "folder"), [("Methods", "methods"), ("Overlays", "overlays"), ("Studies", "studies")]
)
def test_every_overlay_and_study_has_its_row(heading, folder):
    assert rows(heading).keys() == files(folder)


def test_every_recipe_has_its_row_and_its_command():
    pages = {**rows("Training"), **rows("Evaluation")}
    found = {f"{path.parent.name}/{path.stem}" for path in RECIPES.glob("bundled_policy/*.yaml")} | files(".")
    assert pages.keys() == found
    for name, (*_, command) in pages.items():
        verb = "fit" if name in rows("Training") else "validate"
        assert command == f"`pact-lightning {verb} -c recipes/{name}.yaml`"


def test_a_row_names_the_model_and_tells_what_was_not_run():
    for name, cells in {**rows("Training"), **rows("Evaluation")}.items():
        text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
        policy = yaml.safe_load(text)["model"]["init_args"]["policy"]
        model = "SmolLM2-135M" if "smollm2" in policy["model"] else Path(policy["model"]).name
        assert cells[0].startswith("bundled" if "bundled_policy" in name else model), name
        if name in rows("Training"):
            assert cells[0].endswith(ADAPTERS[policy["adapter"]]), name
        assert ("Not run" in text) == ("not run" in cells), name
