"""Command ``pact-lightning init``: a folder with everything that a run of one's own needs, ready to be changed."""

import argparse
import json
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any, Literal

from pact_lightning.cli.errors import end
from pact_lightning.utils.files import whole_file

Kind = Literal["functions", "mcp", "environment"]

_ENVIRONMENTS: dict[Kind, dict[str, Any]] = {
    "functions": {
        "class_path": "pact_lightning.FunctionEnvironment",
        "init_args": {"functions": "shop"},
    },
    "mcp": {"class_path": "pact_lightning.MCPEnvironment", "init_args": {"server": "shop.make_server"}},
    "environment": {"class_path": "pact_lightning.TRLEnvironment", "init_args": {"class_path": "shop.Shop", "row": {}}},
}
_PAGES: dict[Kind, str] = {
    "functions": "your_functions.md",
    "mcp": "your_mcp_server.md",
    "environment": "your_environment_class.md",
}
_BUNDLED = """\
      # The small policy in the package shows that everything works and learns little here: put your model in its
      # place, a folder or a hub id such as Qwen/Qwen3-1.7B.
      model: bundled
      adapter: lora # or qlora (4-bit base, for a GPU), or full
"""
_OWN = """\
      model: {} # a folder or a hub id
      adapter: qlora # a LoRA on weights frozen in 4 bits; or lora, or full
      dtype: bfloat16 # of what is not in 4 bits, and of the computation
      gradient_checkpointing: true # computes layers again in the backward pass, for the memory
"""
_SIZES: dict[str, tuple[str, str]] = {
    # for the bundled policy, and for a model of one's own, with which nobody has tried them
    "learning_rate": ("1.0e-4", "2.0e-5"),
    "forward": ("4096", "8192"),
    "phase": ("2", "8"),
    "step": ("2", "4"),
    "rollouts": ("4", "8"),
    "turns": ("4", "8"),
    "turn": ("96", "1024"),
    "trajectory": ("800", "4096"),
    "prompt": ("1200", "4096"),
    "phases": ("2", "20"),
}


def init(folder: Path, kind: Kind, model: str | None = None) -> None:
    """Make the folder and say how to go on.

    Args:
        folder: The new folder, whose name becomes that of the recipe and of the runs.
        kind: What the tools are: Python functions, an MCP server, or an environment class.
        model: The model to train, by QLoRA; by default the small policy in the package, by LoRA.

    Raises:
        FileExistsError: The folder is there and holds something.
        FileNotFoundError: The model is neither a folder of a model nor a hub id.
        ValueError: The model cannot be trained, or no known format fits its tokenizer.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} already exists; give a new or an empty folder")
    name = folder.resolve().name
    source, told = (None, "") if model is None else _checked(model)
    sizes = {size: values[source is not None] for size, values in _SIZES.items()}
    policy = _BUNDLED if source is None else _OWN.format(json.dumps(source, ensure_ascii=False))
    values = {"name": name, "environment": json.dumps(_ENVIRONMENTS[kind]), "policy": policy, **sizes}
    folder.mkdir(parents=True, exist_ok=True)
    templates = files("pact_lightning.cli") / "templates"
    for template in sorted([*(templates / "common").iterdir(), *(templates / kind).iterdir()], key=lambda t: t.name):
        file = template.name.removesuffix(".tmpl")
        with whole_file(folder / (f"{name}.yaml" if file == "recipe.yaml" else file)) as written:
            written.write(Template(template.read_text(encoding="utf-8")).substitute(values))
    _say(told + (_next_steps(folder, name, kind) if source is None else _steps_with_model(folder, name)))


def _checked(model: str) -> tuple[str, str]:
    """Return a model as a recipe names it from any folder, and what is known of it; a hub id is left to ``fit``."""
    from pact_lightning.export.policy_renderer import renderer_of
    from pact_lightning.policy.loading import PolicyConfig, checked_config, load_tokenizer, policy_source

    source = policy_source(PolicyConfig(model=model))
    if not Path(source).is_dir():
        return source, ""
    policy = PolicyConfig(model=str(Path(source).resolve()), adapter="qlora")
    checked_config(policy)
    family = renderer_of(policy, load_tokenizer(policy)).family
    return policy.model, f"The model's format is {family}.\n"


def _steps_with_model(folder: Path, name: str) -> str:
    steps = [
        f"{folder}: shop.py has the tools, train.jsonl and validation.jsonl the tasks, {name}.yaml is the recipe.",
        "Put your tools and tasks in their place (docs/your_model.md), then:",
        "",
        f"  cd {folder}",
        f"  {'' if find_spec('pytest') else 'pip install pytest && '}pytest  # do tools and tasks agree?",
        f"  pact-lightning plan -c {name}.yaml  # what the run needs of your GPU",
        f"  pact-lightning fit -c {name}.yaml",
        f"  pact-lightning export runs/{name}/version_0",
    ]
    return "\n".join(steps)


def _next_steps(folder: Path, name: str, kind: Kind) -> str:
    install = "" if find_spec("pytest") else "pip install pytest && "
    steps = [
        f"{folder}: shop.py has the tools, train.jsonl and validation.jsonl the tasks, {name}.yaml is the recipe.",
        "",
        *(["  pip install 'pact-lightning[mcp]'"] if kind == "mcp" and find_spec("mcp") is None else []),
        f"  cd {folder}",
        f"  {install}pytest  # do tools and tasks agree?",
        f"  pact-lightning fit -c {name}.yaml  # a minute on a CPU, with the small policy in the package",
        f"  pact-lightning report runs/{name}/version_0  # what it did, as one page",
        f"  pact-lightning chat -c {name}.yaml --ckpt_path last",
        "",
        f"Then put your tools into shop.py, your tasks into the .jsonl files, and your model into {name}.yaml; "
        f"docs/{_PAGES[kind]} has more.",
    ]
    return "\n".join(steps)


def _say(text: str) -> None:
    print(text)  # noqa: T201  # the command's answer


def main(arguments: Sequence[str]) -> None:
    """Run the command; wrong input ends in one sentence and exit status 2.

    Args:
        arguments: The words behind ``init``.
    """
    parser = argparse.ArgumentParser(
        prog="pact-lightning init",
        description="Makes a folder with tools, three tasks, two expert traces, a commented recipe and a test. `fit` "
        "works on it at once, on a CPU, with the small policy in the package.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="the new folder, such as my_agent; it names recipe and runs too")
    parser.add_argument(
        "--from",
        dest="kind",
        choices=_ENVIRONMENTS,
        default="functions",
        help="what the tools are (default: functions)",
    )
    parser.add_argument(
        "--model",
        help="your model, a folder or a hub id, trained by QLoRA (default: the small policy in the package)",
    )
    given = parser.parse_args(list(arguments))
    try:
        init(given.folder, given.kind, given.model)
    except (OSError, ValueError, ImportError) as error:
        end(error, 2)
