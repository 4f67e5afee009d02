"""A server that goes away: tried again after pauses, and in the end the run stops with everything saved."""

import json
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mcp_plain_server
import pytest
import torch
from hand_made import FULL

pytest.importorskip("mcp")

import lightning.pytorch as pl
from test_mcp_environment import free_port, http_server

from pact_lightning.environments.mcp.environment import MCPEnvironment
from pact_lightning.environments.mcp.server import MAX_PAUSE_S, MCPServerError, ServerOutage
from pact_lightning.environments.protocol import EnvironmentUnavailableError
from pact_lightning.policy.loading import load_policy
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.types.prompt import EnvironmentSpec


class ServedTasks:
    """Bundled tasks whose tools are an MCP server's."""

    def __init__(self, port):
        self.port = port

    def load(self):
        address = f"http://127.0.0.1:{self.port}/mcp"
        arguments = {"url": address, "max_restarts": 1, "backoff_s": 0.01, "max_failures": 2}
        spec = EnvironmentSpec("pact_lightning.MCPEnvironment", arguments)
        return [replace(t, prompt=replace(t.prompt, environment=spec)) for t in BundledTasks("train", 4).load()]


class DisturbedTasks:
    """Bundled tasks whose tools are a program's, which fails in every call while a file is there."""

    def __init__(self, disturbed):
        self.disturbed = disturbed

    def load(self):
        program = Path(__file__).parent.parent / "mcp_plain_server.py"
        arguments = {"command": sys.executable, "args": [str(program), "well", str(self.disturbed)]}
        arguments |= {"timeout_s": 1.0, "backoff_s": 0.01}
        spec = EnvironmentSpec("pact_lightning.MCPEnvironment", arguments)
        return [replace(t, prompt=replace(t.prompt, environment=spec)) for t in BundledTasks("train", 4).load()]


class DisturbsItsServer(pl.Callback):
    def __init__(self, file, how):
        self.file, self.how = file, how

    def on_train_epoch_end(self, trainer, module):
        self.file.write_text(self.how)


class LosesItsServer(pl.Callback):
    def __init__(self, process):
        self.process = process

    def on_train_epoch_end(self, trainer, module):
        self.process.kill()
        self.process.wait()


def fit(folder, tasks, *callbacks, checkpoint=None, **limits):
    module = PACTModule(policy=FULL, anchor_probability=0.0)
    data = RolloutDataModule(
        train=tasks,
        prompts_per_phase=2,
        prompts_per_step=1,
        rollouts_per_prompt=2,
        limits=RolloutLimits(**({"max_new_tokens_per_turn": 16, "max_trajectory_tokens": 64} | limits)),
        max_prompt_tokens=400,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=checkpoint)
    return {name: weight.detach().clone() for name, weight in module.model.named_parameters()}, trainer


def test_a_run_stops_where_its_server_stays_away_and_goes_on_as_if_nothing_had_been(tmp_path):
    port = free_port()
    with http_server(port):
        undisturbed, _ = fit(tmp_path / "undisturbed", ServedTasks(port))
    with http_server(port) as process, pytest.raises(EnvironmentUnavailableError) as caught:
        fit(tmp_path / "stopped", ServedTasks(port), LosesItsServer(process))
    saved = tmp_path / "stopped" / "checkpoints" / "last-stopped.ckpt"
    assert "the MCP server could not be reached 2 times in a row, so the run stops: " in str(caught.value)
    assert f"resume with --ckpt_path {saved} once it is back" in str(caught.value)
    assert "\n" not in str(caught.value)
    with http_server(port):
        resumed, trainer = fit(tmp_path / "resumed", ServedTasks(port), checkpoint=saved)
    assert trainer.global_step == 4
    assert undisturbed.keys() == resumed.keys()
    fresh = dict(load_policy(FULL).named_parameters())
    assert not all(torch.equal(weight, fresh[name]) for name, weight in undisturbed.items())
    assert all(torch.equal(weight, resumed[name]) for name, weight in undisturbed.items())


CALLING = {"max_turns": 2, "max_new_tokens_per_turn": 96, "max_trajectory_tokens": 400}
"""Limits within which the policy calls its tools."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights that a run ends with whose server always answers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return fit(folder, DisturbedTasks(folder / "disturbed"), **CALLING)[0]


@pytest.mark.parametrize(("how", "told"), [("die", "ended during the call"), ("keep silent", "did not answer within")])
def test_a_server_that_starts_well_and_fails_in_every_call_stops_the_run(undisturbed, tmp_path, how, told):
    disturbed = tmp_path / "disturbed"
    folder = tmp_path / "stopped"
    with pytest.raises(
        EnvironmentUnavailableError, match=rf"no tool call was answered in phase-0001 .*{told}"
    ) as error:
        fit(folder, DisturbedTasks(disturbed), DisturbsItsServer(disturbed, how), **CALLING)
    saved = folder / "checkpoints" / "last-stopped.ckpt"
    assert f"resume with --ckpt_path {saved} once it is back" in str(error.value)
    disturbed.unlink()
    resumed, trainer = fit(folder, DisturbedTasks(disturbed), checkpoint=saved, **CALLING)
    assert trainer.global_step == 4
    assert all(torch.equal(weight, resumed[name]) for name, weight in undisturbed.items())


def test_a_rollout_that_begins_while_the_server_is_away_waits_for_it():
    port = free_port()
    address = {"url": f"http://127.0.0.1:{port}/mcp", "backoff_s": 0.2, "max_restarts": 6}
    with http_server(port):
        environment = MCPEnvironment(**address)
        environment.reset(None, 0)
        assert environment.call("add", {"a": 1}).text == "2"
    later = MCPEnvironment(**address)

    def come_back():
        time.sleep(0.5)
        with http_server(port):
            done.wait(60)

    done = threading.Event()
    server = threading.Thread(target=come_back)
    server.start()
    later.reset(None, 0)
    assert later.call("add", {"a": 2}).text == "3"
    assert later.restarts >= 1
    done.set()
    server.join()
    later.close()


class FailingOverHTTP(BaseHTTPRequestHandler):
    """An MCP server over HTTP that begins well and answers every call by an error of HTTP."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if request["method"] == "tools/call":
            self.send_error(502)
            return
        body = b""
        if "id" in request:
            answered = {"jsonrpc": "2.0", "id": request["id"], "result": mcp_plain_server.answer(request, "well")}
            body = json.dumps(answered).encode()
        self.send_response(200 if body else 202)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.send_error(405)

    def log_message(self, *_):
        pass


def test_what_a_server_refuses_is_answered_and_an_error_of_http_is_not():
    with ThreadingHTTPServer(("127.0.0.1", 0), FailingOverHTTP) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        environment = MCPEnvironment(url=f"http://127.0.0.1:{server.server_port}/mcp")
        environment.reset(None, 0)
        result = environment.call("echo", {"text": "x"})
        environment.close()
        server.shutdown()
    assert (result.error, result.unanswered) == (True, True), result
    program = [mcp_plain_server.__file__, "well"]
    environment = MCPEnvironment(command=sys.executable, args=program)
    environment.reset(None, 0)
    answered = [environment.call("echo", {"text": text}) for text in ("refuse", "x", "bad")]
    environment.close()
    assert [(result.error, result.unanswered) for result in answered] == [(True, False), (False, False), (True, True)]


def test_failures_that_overlap_in_time_count_as_one_and_pauses_grow():
    outage = ServerOutage(3, 0.5)
    problem = MCPServerError("no")
    began = time.monotonic()
    for _ in range(10):
        outage.failed(began, problem)
    assert outage.failures == 1
    assert [outage.pause_s(restarts) for restarts in (0, 1, 3, 20)] == [0.5, 1.0, 4.0, MAX_PAUSE_S]
    outage.failed(time.monotonic(), problem)
    assert outage.pause_s(0) == 1.0
    outage.up()
    assert (outage.failures, outage.pause_s(0), outage.was_up) == (0, 0.5, True)
    for _ in range(2):
        outage.failed(time.monotonic(), problem)
    with pytest.raises(EnvironmentUnavailableError, match=r"3 times in a row, so the run stops: no$"):
        outage.failed(time.monotonic(), problem)
