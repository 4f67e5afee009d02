"""The bundled policy's first layer as a model of its own, for tests to which it is all one what is sampled."""

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file, save_file

from pact_lightning.policy.loading import BUNDLED_FOLDER

_FOLDERS = []


@cache
def shallow_folder():
    """Its folder, for ``policy.model``: loading, sampling and training take time by the layer."""
    _FOLDERS.append(TemporaryDirectory())
    folder = Path(_FOLDERS[-1].name) / "shallow"
    shutil.copytree(BUNDLED_FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "layer_types": config["layer_types"][:1]}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    first = {name: weight for name, weight in weights.items() if ".layers." not in name or ".layers.0." in name}
    save_file(first, folder / "model.safetensors", {"format": "pt"})
    return str(folder)
