"""Loader of YAML for recipes and options: jsonargparse's own, behind the checks of ``utils.yaml_text``."""

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from pact_lightning.utils.yaml_text import check_yaml

_plain = get_loader("yaml")


def _checked(stream: str) -> Any:
    check_yaml(stream)
    return _plain(stream)


def check_all_yaml() -> None:
    """Let all parsers of jsonargparse refuse YAML that grows without bound, is nested too deeply or repeats a key."""
    set_loader("yaml", _checked, exceptions=(yaml.YAMLError,))
