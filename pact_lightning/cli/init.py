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
        "init_args": {"functions": ["shop.price_of", "shop.total"]},
    },
    "mcp": {"class_path": "pact_lightning.MCPEnvironment", "init_args": {"server": "shop.make_server"}},
    "environment": {"class_path": "pact_lightning.TRLEnvironment", "init_args": {"class_path": "shop.Shop", "row": {}}},
}
_PAGES: dict[Kind, str] = {
    "functions": "your_functions.md",
    "mcp": "your_mcp_server.md",
    "environment": "your_environment_class.md",
}


def init(folder: Path, kind: Kind) -> None:
    """Make the folder and say how to go on.

    Args:
        folder: The new folder, whose name becomes that of the recipe and of the runs.
        kind: What the tools are: Python functions, an MCP server, or an environment class.

    Raises:
        FileExistsError: The folder is there and holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} already exists; give a new or an empty folder")
    name = folder.resolve().name
    values = {"name": name, "environment": json.dumps(_ENVIRONMENTS[kind])}
    folder.mkdir(parents=True, exist_ok=True)
    templates = files("pact_lightning.cli") / "templates"
    for template in sorted([*(templates / "common").iterdir(), *(templates / kind).iterdir()], key=lambda t: t.name):
        file = template.name.removesuffix(".tmpl")
        with whole_file(folder / (f"{name}.yaml" if file == "recipe.yaml" else file)) as written:
            written.write(Template(template.read_text(encoding="utf-8")).substitute(values))
    _say(_next_steps(folder, name, kind))


def _next_steps(folder: Path, name: str, kind: Kind) -> str:
    steps = [
        f"{folder}: shop.py has the tools, train.jsonl and validation.jsonl the tasks, {name}.yaml is the recipe.",
        "",
        *(["  pip install 'pact-lightning[mcp]'"] if kind == "mcp" and find_spec("mcp") is None else []),
        f"  cd {folder}",
        "  pytest                              # tools and tasks agree",
        f"  pact-lightning fit -c {name}.yaml   # a minute on a CPU, with the small policy in the package",
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
    given = parser.parse_args(list(arguments))
    try:
        init(given.folder, given.kind)
    except OSError as error:
        end(error, 2)
