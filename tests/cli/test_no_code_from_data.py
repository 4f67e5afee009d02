"""Recipes, task files, checkpoints and model folders are data: nothing of them is run but what a class path names."""

import functools
import http.server
import json
import os
import pickle
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from cli_recipe import saved
from safetensors.torch import load_file

from pact_lightning.cli.main import main
from pact_lightning.policy.loading import PolicyConfig, load_policy
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.tasks.jsonl import JsonlTasks, write_jsonl
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.teacher.stored import read_stored


class Touches:
    """When it is unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Made:
    """An object that counts how often it is made."""

    count = 0

    def __init__(self, **arguments):
        type(self).count += 1

    def __call__(self, *arguments):
        type(self).count += 1

    def reset(self, task, seed):
        type(self).count += 1

    def call(self, name, arguments):
        type(self).count += 1


@pytest.fixture
def mark(tmp_path):
    """A path that an attack would make; it must not exist in the end."""
    path = tmp_path / "was here"
    yield path
    assert not path.exists()


def test_the_attack_itself_works(tmp_path):
    pickle.loads(pickle.dumps(Touches(tmp_path / "a")))
    yaml.unsafe_load(f"!!python/object/apply:os.mkdir ['{tmp_path / 'b'}']")
    assert (tmp_path / "a").is_dir()
    assert (tmp_path / "b").is_dir()


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:antigravity"])
@pytest.mark.parametrize("place", ["seed_everything", "trainer.max_epochs", "model.init_args.policy", "extra"])
def test_python_tags_in_a_recipe_are_refused(tmp_path, capsys, mark, tag, place):
    recipe = Path(saved(tmp_path, {place: "PLACE"} if place != "extra" else {}))
    value = f"!!python/{tag} ['{mark}']" if "object" in tag else f"!!python/{tag} ''"
    text = recipe.read_text().replace("PLACE", value) if place != "extra" else f"{recipe.read_text()}extra: {value}\n"
    assert "!!python" in text
    recipe.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", str(recipe)])
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_python_tags_in_stored_traces_are_refused(tmp_path, mark):
    path = tmp_path / "traces.yaml"
    path.write_text(f"- !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(ValueError, match="could not determine a constructor"):
        list(read_stored(path))


@pytest.mark.parametrize("name", ["tasks.jsonl", "tasks.jsonl.gz"])
def test_a_pickle_in_place_of_tasks_is_refused(tmp_path, mark, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Touches(mark)))
    with pytest.raises((ValueError, OSError)):
        JsonlTasks(str(path)).load()


def test_a_class_path_in_data_is_data(tmp_path):
    """Everywhere but in the task's environment, where it is meant."""
    made = {"class_path": f"{__name__}.Made", "init_args": {}}
    task = make_task("train", 1)
    record = json.loads(json.dumps(task_to_json(task)))
    record["metadata"] = {"a": made, "__reduce__": made}
    record["reference"]["calls"][0]["arguments"] = made
    record["trace"]["turns"][0]["calls"][0]["arguments"] = made
    record["tools"][0]["function"]["parameters"]["default"] = made
    record["environment"]["init_args"]["extra"] = made
    read = task_from_json(record)
    path = tmp_path / "tasks.jsonl"
    write_jsonl(path, [replace(read, kind="k")])
    (again,) = JsonlTasks(str(path)).load()
    assert again.metadata["a"] == made
    assert again.prompt.environment.init_args["extra"] == made
    assert Made.count == 0
    record["environment"] = {"class_path": f"{__name__}.Made", "init_args": {"inner": made}}
    task_from_json(record).prompt.environment.build()
    assert Made.count == 1, "the environment itself, and nothing inside its arguments"


TRL = "pact_lightning.TRLEnvironment"


def attacks(mark):
    """Environments of a task file that would make a folder if what they name were called."""
    shell = {"command": f"mkdir '{mark}'"}
    return [
        {"class_path": "os.system", "init_args": shell},
        {"class_path": "os.mkdir", "init_args": {"path": str(mark)}},
        {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", str(mark)]}},
        {"class_path": TRL, "init_args": {"class_path": "os.system", "init_args": shell}},
        {"class_path": TRL, "init_args": {"class_path": "os.makedirs", "init_args": {"name": str(mark)}}},
        {
            "class_path": TRL,
            "init_args": {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", str(mark)]}},
        },
    ]


@pytest.mark.parametrize("attack", range(6))
@pytest.mark.parametrize("own_tools", [True, False])
@pytest.mark.parametrize("command", ["validate", "stats"])
def test_what_is_no_environment_is_not_called(tmp_path, capsys, mark, attack, own_tools, command):
    record = json.loads(json.dumps(task_to_json(make_task("train", 1))))
    record["environment"] = attacks(mark)[attack]
    if not own_tools:
        del record["tools"]
    (tmp_path / "tasks.jsonl").write_text(json.dumps(record))
    try:
        main(["tasks", command, str(tmp_path / "tasks.jsonl")])
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    told = capsys.readouterr()
    if command == "validate" or not own_tools:
        assert status != 0
        assert re.search("is not a class|has no method|neither a class", told.out + told.err)


def test_the_environments_of_a_file_are_listed_without_a_call_whatever_its_escapes(tmp_path, capsys, mark):
    plain = task_to_json(make_task("train", 1))
    hidden = json.dumps({"environment": attacks(mark)[0]}).replace("class_path", r"\u0063lass_path")
    sly = json.dumps({"environment": {"class_path": "[bold]\x1b[2K"}})
    server = {"class_path": "x.MCP", "init_args": {"command": "sh", "args": ["-c", "mkdir"], "env": {"A": "1"}}}
    lines = [json.dumps(plain), json.dumps(plain), hidden, sly, json.dumps({"environment": server}), "{", "3"]
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines))
    main(["tasks", "stats", str(tmp_path / "tasks.jsonl"), "--environments", "true"])
    out = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in out] == [
        ["2", "pact_lightning.BundledWorld"],
        ["1", f"os.system command={json.dumps(attacks(mark)[0]['init_args']['command'])}"],
        ["1", r"[bold]\u001b[2K"],
        ["1", 'x.MCP command="sh" args=["-c", "mkdir"]'],
        ["2", "lines name no environment; `tasks validate` says why"],
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished fit of one phase: its folder, its recipe, its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    export = {"class_path": "pact_lightning.ExportPolicy"}
    export["init_args"] = {"folder": str(folder / "export")}
    recipe = yaml.safe_load(Path(saved(folder)).read_text())
    recipe["trainer"]["callbacks"].append(export)
    Path(folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    main(["fit", "-c", str(folder / "recipe.yaml")])
    return folder


def checkpoint_of(folder):
    return folder / "run" / "checkpoints" / "last.ckpt"


def test_a_checkpoint_holds_no_objects_and_loads_with_weights_only(finished):
    assert {"state_dict", "optimizer_states", "epoch"} <= torch.load(checkpoint_of(finished), weights_only=True).keys()


@pytest.mark.parametrize("verb", ["fit", "validate"])
@pytest.mark.parametrize("where", ["file", "url"])
def test_a_pickle_in_a_checkpoint_is_not_run(finished, tmp_path, mark, verb, where):
    content = torch.load(checkpoint_of(finished), weights_only=True)
    torch.save(content | {"surprise": Touches(mark)}, tmp_path / "bad.ckpt")
    path = str(tmp_path / "bad.ckpt")
    with served(tmp_path) if where == "url" else functools.partial(open, path, "rb")() as server:
        path = f"http://127.0.0.1:{server.server_port}/bad.ckpt" if where == "url" else path
        with pytest.raises((TypeError, SystemExit)) as stopped:
            main([verb, "-c", saved(tmp_path), "--ckpt_path", path])
    assert "holds an object" in str(stopped.value) if stopped.type is TypeError else stopped.value.code == 2


class served:
    """Serves a folder by HTTP while it is entered."""

    def __init__(self, folder):
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self.server

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def test_what_is_exported_is_safetensors(finished):
    files = {path.name for path in (finished / "export").iterdir()}
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".ckpt"))]
    weights = load_file(finished / "export" / "model.safetensors")
    exported = load_policy(PolicyConfig(model=str(finished / "export"), adapter="full", dtype="float32"))
    found = dict(exported.named_parameters())
    assert all(torch.equal(found[name], weight) for name, weight in weights.items() if name in found)


def test_a_pickle_in_a_model_folder_is_not_run(finished, tmp_path, mark):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((finished / "export" / name).read_bytes())
    torch.save({"weight": Touches(mark)}, folder / "pytorch_model.bin")
    with pytest.raises((OSError, ValueError, pickle.UnpicklingError, RuntimeError)):
        load_policy(PolicyConfig(model=str(folder), adapter="full", dtype="float32"))


def test_code_in_a_model_folder_is_not_run(finished, tmp_path, mark):
    """``auto_map`` names code of the folder; nothing here trusts it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (finished / "export").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "surprise.Model", "AutoConfig": "surprise.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "surprise.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nModel = Config = None\n")
    assert load_policy(PolicyConfig(model=str(folder), adapter="full", dtype="float32")) is not None


def test_an_adapter_is_safetensors(tmp_path):
    policy = load_policy(PolicyConfig(adapter="lora", dtype="float32", lora_r=4))
    policy.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".md"}
    assert load_file(tmp_path / "adapter_model.safetensors")


def test_the_compromised_releases_of_lightning_are_excluded():
    """GHSA-w37p-236h-pfx3: 2.6.2 and 2.6.3 steal credentials when they are imported."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((Path(__file__).parent.parent.parent / "pyproject.toml").read_text())["project"]
    extras = [entry for group in project["optional-dependencies"].values() for entry in group]
    wanted = [Requirement(entry) for entry in [*project["dependencies"], *extras]]
    lightnings = [
        entry for entry in wanted if entry.name.replace("-", "_").lower() in ("lightning", "pytorch_lightning")
    ]
    assert lightnings
    for entry in lightnings:
        for bad in ("2.6.2", "2.6.3", "2.6.2.post0", "2.6.3.post1"):
            assert not entry.specifier.contains(bad, prereleases=True), entry
        assert entry.specifier.contains("2.6.4")
