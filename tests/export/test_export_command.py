"""The command `export`: a run's checkpoint found, its policy written, mistakes told in a sentence, an upload."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from cli_recipe import saved
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file

from pact_lightning.cli.main import main
from pact_lightning.utils import hub


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished fit of one phase, and its checkpoint."""
    folder = tmp_path_factory.mktemp("fit")
    main(["fit", "-c", saved(folder)])
    return folder / "run", folder / "run" / "checkpoints" / "last.ckpt"


def export(*arguments):
    main(["export", *map(str, arguments)])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        export(*arguments)
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    return sentence


def test_a_run_is_exported_from_its_last_checkpoint(finished, tmp_path, capsys):
    run, checkpoint = finished
    export(run, "--to", "adapter")
    assert str(run / "export" / "adapter") in capsys.readouterr().out
    written = load_file(run / "export" / "adapter" / "adapter_model.safetensors")
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    plain = {name.replace(".default", ""): weight for name, weight in trained.items()}
    torch.testing.assert_close(written, plain, rtol=0, atol=0)
    card = ModelCard.load(run / "export" / "adapter" / "README.md")
    before, after = (scores for _, scores in torch.load(checkpoint, weights_only=True)["validation_history"])
    assert f"| turns | {before['turns']:.3f} | {after['turns']:.3f} |" in card.text
    assert "Validation: 2 tasks, greedy" in card.text
    export(checkpoint, tmp_path / "model", "--model", "bundled")
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_mistakes_are_told_before_anything_is_written(finished, tmp_path, capsys):
    run, checkpoint = finished
    assert "there is no run" in refused(capsys, tmp_path / "gone")
    assert f"such as {run}" in refused(capsys, run.parent), "the folder above names the run"
    assert "there is no checkpoint" in refused(capsys, run, "--ckpt_path", tmp_path / "x.ckpt")
    assert "contains files that are not an export" in refused(capsys, run, run)
    assert "convert_hf_to_gguf.py" in refused(capsys, run, "--to", "gguf"), "llama.cpp does not know this tokenizer"
    assert "there is no model folder" in refused(capsys, run, "--model", tmp_path / "no" / "model" / "here")
    content = torch.load(checkpoint, weights_only=True)
    torch.save({name: value for name, value in content.items() if name != "made_by"}, tmp_path / "other.ckpt")
    assert "does not say which policy it is of" in refused(capsys, tmp_path / "other.ckpt")
    content["made_by"]["policy"]["adapter"] = "full"
    torch.save(content, tmp_path / "full.ckpt")
    assert "there is no adapter" in refused(capsys, tmp_path / "full.ckpt", "--to", "adapter")
    assert {path.name for path in tmp_path.iterdir()} == {"other.ckpt", "full.ckpt"}


# ----------------------------------------------------------------------------------------------------------- the upload


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as an upload needs."""

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.answer({})

    def do_GET(self):
        if self.path == "/api/whoami-v2":
            self.server.tokens.add(self.headers["Authorization"])
        self.answer({"name": "me", "type": "user", "orgs": [], "auth": {}})

    def do_PUT(self):
        self.server.files[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        host = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self.answer({"url": f"{host}/me/agent", "id": "me/agent"})
        elif "/preupload/" in self.path:
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                 "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            self.answer({"files": modes})
        elif self.path.endswith("/objects/batch"):
            wanted = json.loads(body)["objects"]
            self.answer(
                {"transfer": "basic", "objects": [
                    {**each, "actions": {"upload": {"href": f"{host}/lfs/{each['oid']}"}}} for each in wanted
                ]}
            )  # fmt: skip
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[line["value"]["path"]] = self.server.files.pop(line["value"]["oid"])
            self.answer({"success": True, "commitUrl": f"{host}/me/agent/commit/1", "commitOid": "1" * 40})
        else:
            self.answer({"success": True})

    def log_message(self, *arguments):
        pass


@pytest.fixture
def local_hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.made, server.tokens = {}, [], set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub._answers.cache_clear()
    yield server
    server.shutdown()


def at(monkeypatch, port):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")


def test_an_export_is_pushed_file_by_file_to_a_private_repository(finished, tmp_path, monkeypatch, local_hub, capsys):
    at(monkeypatch, local_hub.server_port)
    monkeypatch.setenv("HF_TOKEN", "hf_local")
    export(finished[0], tmp_path / "out", "--push", "me/agent")
    assert f"http://127.0.0.1:{local_hub.server_port}/me/agent" in capsys.readouterr().out
    assert (local_hub.made[0]["name"], local_hub.made[0]["visibility"]) == ("agent", "private")
    assert local_hub.tokens == {"Bearer hf_local"}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in local_hub.files.items()}
    kept = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    assert digests == kept
    assert "# me/agent" in (tmp_path / "out" / "README.md").read_text()


def test_a_push_that_cannot_succeed_is_refused_before_the_export(finished, tmp_path, monkeypatch, local_hub, capsys):
    out = tmp_path / "out"
    adapter = refused(capsys, finished[0], out, "--to", "adapter", "--push", "me/agent")
    assert "nobody else could load the adapter; push it `merged`" in adapter
    assert "Repo id must" in refused(capsys, finished[0], out, "--push", "no/such/name")
    at(monkeypatch, local_hub.server_port)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert "hf auth login" in refused(capsys, finished[0], out, "--push", "me/agent")
    at(monkeypatch, 9)  # nothing listens there
    assert "hf upload me/agent FOLDER" in refused(capsys, finished[0], out, "--push", "me/agent")
    assert not out.exists()
