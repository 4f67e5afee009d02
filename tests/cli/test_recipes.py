"""Every recipe and overlay is accepted by the command's own parser, and says what its fields mean."""

import contextlib
import functools
import inspect
import io
import re
from pathlib import Path

import pytest
import yaml

from pact_lightning.cli.main import main
from pact_lightning.rollout.samplers.vllm.server import VLLMServer

# Lightning's word to people who pass arguments by mistake.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

ROOT = Path(__file__).resolve().parent.parent.parent
NO_RECIPES = ("overlays", "methods", "studies")
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name not in NO_RECIPES)
OVERLAYS = sorted(path for path in (ROOT / "recipes").glob("[mo]*s/*.yaml") if not path.is_symlink())
NEW_CALLBACKS = ("sft.yaml", "adaprefix.yaml")
"""Overlays that replace the list of callbacks."""
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"

# A field with a value of its own; `class_path` says enough, and init_args in braces name their own line's fields.
_LEAF = re.compile(r"^\s*(?:- )?(?!class_path:)[\w.]+:[ ]+(?![#\s])")


def _name(path):
    return path.relative_to(ROOT / "recipes").as_posix()


@functools.cache
def _parsed(*files):
    """What the command makes of recipes: all fields with their values; nothing is loaded, nothing is run."""
    arguments = [argument for file in files for argument in ("-c", str(file))]
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(SystemExit) as exit_, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        main(["fit", *arguments, "--print_config"])
    assert exit_.value.code == 0, err.getvalue()
    return yaml.safe_load(out.getvalue())


@pytest.mark.parametrize("recipe", RECIPES, ids=_name)
def test_recipe_is_accepted_as_written(recipe):
    parsed = _parsed(recipe)
    for path, value in _leaves(yaml.safe_load(recipe.read_text(encoding="utf-8"))):
        assert _at(parsed, path) == value, ".".join(map(str, path))


def _leaves(value, path=()):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value


def _at(value, path):
    for step in path:
        value = value[step]
    return value


def _written_out(overlay, base):
    """An overlay in which `field+` is the field with its whole list."""
    if not isinstance(overlay, dict):
        return overlay
    known = base if isinstance(base, dict) else {}
    return {
        key.removesuffix("+"): [*known[key[:-1]], *value] if key.endswith("+") else _written_out(value, known.get(key))
        for key, value in overlay.items()
    }


@pytest.mark.parametrize("recipe", [*RECIPES, *OVERLAYS], ids=_name)
def test_every_field_has_a_comment(recipe):
    lines = recipe.read_text(encoding="utf-8").splitlines()
    without = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if _LEAF.match(line) and " # " not in line and not before.lstrip().startswith("#")
    ]
    assert without == []


@pytest.mark.parametrize("overlay", [path for path in OVERLAYS if path.name not in NEW_CALLBACKS], ids=_name)
def test_overlay_changes_its_fields_and_no_other(overlay):
    base = _parsed(QUICKSTART)
    merged = _parsed(QUICKSTART, overlay)
    wanted = dict(_leaves(_written_out(yaml.safe_load(overlay.read_text(encoding="utf-8")), base)))
    found = dict(_leaves(merged))
    assert {path: found[path] for path in wanted} == wanted
    # A field that was null and now has fields of its own is changed as well.
    filled = {path[:length] for path in wanted for length in range(len(path))}
    before = {path: value for path, value in _leaves(base) if path not in filled}
    # An item that an overlay appends brings the defaults of its class.
    added = {path[:-1] for path in wanted if path[-1] == "class_path" and isinstance(path[-2], int)} - {
        path[:-1] for path in before
    }
    assert {
        path: value
        for path, value in found.items()
        if path not in wanted and not any(path[: len(item)] == item for item in added)
    } == {path: value for path, value in before.items() if path not in wanted}


def test_overlays_make_the_neighbours_of_pact():
    """METHOD section 8: which knobs turn PACT into what."""
    grpo = _parsed(QUICKSTART, ROOT / "recipes/methods/grpo.yaml")
    assert grpo["model"]["init_args"]["anchor_probability"] == 1
    assert grpo["data"]["init_args"]["credit"]["reward"] == "outcome"
    matchtir = _parsed(QUICKSTART, ROOT / "recipes/methods/matchtir.yaml")
    assert matchtir["model"]["init_args"]["anchor_probability"] == 1
    assert matchtir["data"]["init_args"]["credit"]["reward"] == "matchtir"
    mix = _parsed(QUICKSTART, ROOT / "recipes/methods/naive_mix.yaml")
    assert mix["model"]["init_args"]["ratio_context"] == "prompt"
    assert mix["model"]["init_args"]["coefficients"]["sft"] > 0


def test_paper_recipe_holds_the_papers_settings():
    """The table of METHOD section 4."""
    parsed = _parsed(ROOT / "recipes/paper_full_weights.yaml")
    model, data = parsed["model"]["init_args"], parsed["data"]["init_args"]
    assert model["policy"]["adapter"] == "full"
    assert (model["optimizer"]["learning_rate"], model["optimizer"]["schedule"]) == (1e-6, "constant")
    assert (model["optimizer"]["weight_decay"], model["optimizer"]["gradient_clip"]) == (0.01, 1.0)
    assert model["coefficients"] == {"sft": 0.1, "kl": 0.001, "entropy": 0.001}
    assert model["clip"] == {"low": 0.2, "high": 0.2, "dual": 3.0}
    assert model["anchor_probability"] == 0.4
    assert (data["prompts_per_phase"], data["prompts_per_step"], data["rollouts_per_prompt"]) == (256, 32, 8)
    assert (data["temperature"], data["limits"]["max_turns"]) == (1.0, 10)
    assert (data["max_prompt_tokens"], data["limits"]["max_trajectory_tokens"]) == (7000, 23_000)
    assert parsed["trainer"]["max_epochs"] == 24
    annealing = next(c for c in parsed["trainer"]["callbacks"] if c["class_path"].endswith("AnnealingCallback"))
    assert (annealing["init_args"]["scale_start"], annealing["init_args"]["scale_end"]) == (0.8, 0.2)


@pytest.mark.parametrize("recipe", RECIPES, ids=_name)
def test_a_rollout_fits_one_forward(recipe):
    """What the data module would refuse at setup is not in a recipe."""
    parsed = _parsed(recipe)
    data = parsed["data"]["init_args"]
    if "rollouts_per_prompt" not in data:
        return
    needed = data["max_prompt_tokens"] + data["limits"]["max_trajectory_tokens"]
    assert needed <= parsed["model"]["init_args"]["max_tokens_per_forward"]
    assert data["prompts_per_phase"] % data["prompts_per_step"] == 0


def test_an_unknown_field_is_told_in_one_sentence(tmp_path, capsys):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {init_args: {anchor_probabilty: 0.0}}\n", encoding="utf-8")
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "-c", str(QUICKSTART), "-c", str(overlay), "--print_config"])
    error = capsys.readouterr().err.strip()
    assert exit_.value.code == 2
    assert "anchor_probabilty" in error
    assert len(error.splitlines()) == 1


def test_the_vllm_overlays_fields_are_the_samplers_own_and_its_defaults():
    """Each field of the server stands in the overlay, with the value that it has when it is left out."""
    overlay = yaml.safe_load((ROOT / "recipes/overlays/vllm_server.yaml").read_text(encoding="utf-8"))
    written = dict(overlay["model"]["init_args"]["sampler"]["init_args"])
    defaults = {name: p.default for name, p in inspect.signature(VLLMServer).parameters.items() if name in written}
    assert written.keys() == inspect.signature(VLLMServer).parameters.keys()
    del written["base_url"], defaults["base_url"]
    assert written == defaults
