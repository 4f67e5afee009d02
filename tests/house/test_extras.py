"""The extras: what each brings can be imported, or the part that needs it says which extra to install."""

import importlib
import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from pact_lightning.callbacks.trackio_logger import TrackioLogger
from pact_lightning.compare.pictures import draw
from pact_lightning.dialogue.family_library import library_families
from pact_lightning.environments.mcp.environment import MCPEnvironment
from pact_lightning.export.gguf_file import check_gguf
from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.policy.smollm2 import find_gguf
from pact_lightning.rollout.samplers.vllm.engine import VLLMEngine
from pact_lightning.rollout.samplers.vllm.server import VLLMServer
from pact_lightning.tasks.hub import HubTasks
from pact_lightning.teacher.endpoint import Endpoint, EndpointConfig

ROOT = Path(__file__).resolve().parent.parent.parent
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
FOR_WORK = {"test", "dev"}
EXTRAS = {
    "tensorboard": ("tensorboard", None),
    "wandb": ("wandb", None),
    "trackio": ("trackio", TrackioLogger),
    "pictures": ("matplotlib", lambda: draw([], "answer_correct", "a", Path("unused"))),
    "smollm2": ("gguf", find_gguf),
    "gguf": ("gguf", lambda: check_gguf(PolicyConfig())),
    "hub": ("datasets", lambda: HubTasks("me/set").load()),
    "ftrl": ("dateutil", None),
    "vllm-server": ("openai", lambda: VLLMServer("http://127.0.0.1:8000/v1")),
    "vllm": ("vllm", lambda: VLLMEngine().check(PolicyConfig())),
    "teacher": ("openai", lambda: Endpoint(EndpointConfig(model="m", base_url="http://127.0.0.1/v1", api_key_env=""))),
    "mcp": ("mcp", lambda: MCPEnvironment(server="my.server")),
    "families": ("renderers.configs", library_families),
    "bench": ("trl", None),
    "docs": ("mkdocs", None),
    "notebook": ("nbclient", None),
    "inspect": ("inspect_ai", None),
}
"""A module that an extra brings, and what cannot be had without it; None where nothing of the package imports it."""
SLOW = {"trl", "vllm", "inspect_ai", "wandb", "trackio"}
"""Modules that other tests import."""


def test_every_extra_is_walked():
    assert EXTRAS.keys() == DECLARED.keys() - FOR_WORK


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_can_be_imported_or_is_asked_for_by_its_name(extra, monkeypatch):
    module, needs_it = EXTRAS[extra]
    if find_spec(module) is not None and module not in SLOW:
        importlib.import_module(module)
    if needs_it is not None:
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
        asked = "pip install" if extra == "smollm2" else re.escape(f"pip install 'pact-lightning[{extra}]'")
        with pytest.raises(ImportError, match=asked):
            needs_it()
