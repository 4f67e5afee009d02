"""A vLLM server that is slow, fails for a while, or dies: rollouts are the same, or the run stops saved and goes on."""

import itertools
import logging
import tempfile
import time
import warnings
from pathlib import Path

import torch
from test_sampler_outage import fit
from vllm_protocol_server import ProtocolServer

from faults.deadline import within
from faults.repeated import expect, repeated
from pact_lightning.rollout.samplers.base import SamplerUnavailableError

SECTION = "Samplers"
_FAILED = {"error": {"message": "CUDA error"}}
_TIMEOUT_S = 2.0


def _slow(number):
    time.sleep(0.2)


def _silent(number):
    """Every fifth request is answered only after its limit of time."""
    if number % 5 == 0:
        time.sleep(_TIMEOUT_S + 1.0)


FOR_A_WHILE = (
    # What is injected, and what the server does instead of answering its so many-th request.
    ("slow in every request", _slow),
    ("silent beyond the limit of time, now and then", _silent),
    ("503 in every third request", lambda number: (503, _FAILED) if number % 3 == 0 else None),
    ("429 in every third request", lambda number: (429, _FAILED) if number % 3 == 0 else None),
    ("every third connection broken", lambda number: (None, "") if number % 3 == 0 else None),
)
FOR_GOOD = (
    ("500 in every request from some moment on", (500, _FAILED)),
    ("every connection broken from some moment on", (None, "")),
    ("answers that are no JSON from some moment on", (200, "<html>")),
)


def run(times):
    """Each fault in fits of its own, so at most three times."""
    times = min(times, 3)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ProtocolServer() as server:
            expected = _fitted(server)
            requests = len(server.prompts())
        rows = [
            repeated(SECTION, name, times, lambda number, answer=answer: _passes(answer, expected, requests, number))
            for name, answer in FOR_A_WHILE
        ]
        rows += [
            repeated(SECTION, name, times, lambda number, a=answer: _stops(a, expected, requests, number))
            for name, answer in FOR_GOOD
        ]
    return rows


def _fitted(server, folder=None, checkpoint=None, **backend):
    with tempfile.TemporaryDirectory() as own:
        return within(900, fit, folder or Path(own), server.backend(**backend), checkpoint)


def _same(weights, expected):
    expect(all(torch.equal(weights[name], expected[name]) for name in expected), "the weights differ")


def _passes(answer, expected, requests, number):
    # Counted here and not by the server: a request that is asked again is a new one.
    asked = itertools.count(number + 1)

    def disturb(path, body, _):
        return answer(next(asked)) if path == "/v1/completions" else None

    with ProtocolServer(disturb=disturb) as server:
        _same(_fitted(server, retries=8, timeout_s=_TIMEOUT_S if answer is _silent else 60.0), expected)
        again = len(server.prompts()) - requests
    return f"{requests} requests, asked again {again} times in all; weights bit for bit those without it"


def _stops(answer, expected, requests, number):
    first = (number + 1) * requests // 4

    def disturb(path, body, asked):
        return answer if path == "/v1/completions" and asked >= first else None

    with tempfile.TemporaryDirectory() as folder:
        with ProtocolServer(disturb=disturb) as server:
            try:
                _fitted(server, Path(folder), retries=1)
            except SamplerUnavailableError as error:
                told = str(error)
            else:
                expect(False, "the run did not stop")
        saved = Path(folder) / "checkpoints" / "last-stopped.ckpt"
        expect(f"resume with --ckpt_path {saved}" in told, f"the error says only: {told}")
        with ProtocolServer() as server:
            _same(_fitted(server, Path(folder), saved), expected)
    return "stopped in one sentence, state saved; the resumed run ends with the same weights, bit for bit"
