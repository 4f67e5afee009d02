"""Environments whose verbs raise and return what they should not, each in real rollouts that are written to disk."""

import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from byte_tokenizer import byte_renderer
from rollout_player import ROOMY, Player, call

from faults.deadline import within
from faults.repeated import expect, repeated
from pact_lightning.environments.protocol import ToolResult
from pact_lightning.rollout.engine import RolloutEngine, RolloutRequest
from pact_lightning.rollout.openai_format import trajectory_record
from pact_lightning.rollout.store import RolloutStore
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.trajectory import StopReason

SECTION = "Environments"


class MuteError(Exception):
    """Error whose words end the process that asks for them."""

    def __str__(self):
        raise SystemExit(4)

    __repr__ = __str__


class StrangeError(BaseException):
    """Error that is no ``Exception``."""


class LoudText(str):
    """Text that has ideas of its own."""

    def encode(self, *_, **__):
        raise RuntimeError("not like this")


def _raise(error):
    raise error


FAULTS = {
    # The fault: the verb, what it does, and the response that it leads to; `None` where none is due.
    "NumPy's True as `error`": ("call", lambda: ToolResult("odd", error=np.bool_(True)), "odd"),
    "an array as `error`": ("call", lambda: ToolResult("odd", error=np.ones(2)), "must be True or False"),
    "half a surrogate pair in a text": ("call", lambda: ToolResult("a\ud83d"), "a?"),
    "half a surrogate pair in an exception": ("call", lambda: _raise(ValueError("a\ud83d")), "ValueError: a?"),
    "a text of a class of its own": ("call", lambda: ToolResult(LoudText("odd")), "odd"),
    "bytes as text": ("call", lambda: ToolResult(b"odd"), "not one with a bytes"),
    "a text of 10 million characters": ("call", lambda: ToolResult("x" * 10_000_000), "(cut after 20000 characters)"),
    "a generator": ("call", lambda: (part for part in "odd"), "not a generator"),
    "no result": ("call", lambda: None, "not a NoneType"),
    "an exception without words": ("call", lambda: _raise(MuteError), "The tool failed: MuteError"),
    "sys.exit()": ("call", lambda: _raise(SystemExit(3)), "The tool failed: SystemExit: 3"),
    "an exception that is no Exception": ("call", lambda: _raise(StrangeError("odd")), "StrangeError: odd"),
    "StopIteration": ("call", lambda: _raise(StopIteration), "The tool failed: StopIteration"),
    "reset() with half a surrogate pair": ("reset", lambda: _raise(ValueError("a\ud83d")), "environment failed: a?"),
    "reset() with an exception without words": ("reset", lambda: _raise(MuteError), "environment failed: MuteError"),
    "reset() with sys.exit()": ("reset", lambda: _raise(SystemExit(3)), "environment failed: 3"),
    "reset() with an error of 10 million characters": (
        "reset", lambda: _raise(ValueError("x" * 10_000_000)), "(cut after 2000 characters)"),
    "a constructor with sys.exit()": ("made", lambda: _raise(SystemExit("no")), "environment failed: no"),
    "close() with an exception without words": ("close", lambda: _raise(MuteError), None),
    "close() with sys.exit()": ("close", lambda: _raise(SystemExit(3)), None),
    "reward() that is NaN": ("reward", lambda: float("nan"), None),
    "reward() that is an array": ("reward", lambda: np.ones(2), None),
    "reward() with an exception without words": ("reward", lambda: _raise(MuteError), None),
    "a property `reward` that raises": ("the reward", lambda: _raise(KeyError("odd")), None),
}  # fmt: skip


class OddEnvironment:
    """Environment of which one verb is odd."""

    tools = ()

    def __init__(self, fault):
        self.verb, self.act, _ = FAULTS[fault]
        self._odd("made")

    def _odd(self, verb):
        return self.act() if self.verb == verb else None

    def reset(self, task, seed):
        self._odd("reset")

    def call(self, name, arguments):
        return self._odd("call") if name == "odd" and self.verb == "call" else ToolResult("alive")

    def close(self):
        self._odd("close")

    @property
    def reward(self):
        self._odd("the reward")
        if self.verb == "reward":
            return self.act
        raise AttributeError("there is none")


def run(times):
    """Every fault, so many times."""
    renderer = byte_renderer([("a", "b")])
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return [repeated(SECTION, fault, times, lambda _, fault=fault: inject(renderer, fault)) for fault in FAULTS]
    finally:
        logging.disable(level)


def inject(renderer, fault):
    """One rollout: an odd call, a good one, an answer; then it is written as a fit writes it."""
    verb, _, expected = FAULTS[fault]
    tools = tuple({"type": "function", "function": {"name": name, "parameters": {}}} for name in ("odd", "good"))
    spec = EnvironmentSpec(f"{__name__}.OddEnvironment", {"fault": fault})
    prompt = PromptView("odd", ({"role": "user", "content": "Go."},), tools, spec)
    player = Player(renderer, [(renderer.prompt(prompt.messages, tools), [call("odd"), call("good"), "done"])])
    limits = replace(ROOMY, max_trajectory_tokens=50_000)
    request = RolloutRequest(prompt, 1, 0)
    results, _ = within(60, RolloutEngine(renderer, limits).run, [request], player)
    rollout = results[0][0]
    _written(renderer, request, rollout)
    if verb in ("made", "reset"):
        expect(rollout.stop_reason is StopReason.ENVIRONMENT_FAILED, f"the rollout ended with {rollout.stop_reason}")
    else:
        expect(rollout.stop_reason is StopReason.ANSWERED, f"the rollout ended with {rollout.stop_reason}")
        expect(rollout.turns[1].responses == ("alive",), f"the next call gave {rollout.turns[1].responses}")
        failures = 0 if verb == "call" else 1
        expect(rollout.environment_failures == failures, f"{rollout.environment_failures} failures were counted")
    if expected is None:
        return "the rollout ended with its answer; one environment failure counted"
    response = rollout.turns[0].responses[0]
    expect(expected in response, f"the response is {response:.100}")
    return response if len(response) < 100 else f"{response[:20]}...{response[-40:]}"


def _written(renderer, request, rollout):
    """Write a rollout as a fit does, and read it again."""
    json.dumps(trajectory_record(request.prompt, rollout), ensure_ascii=False).encode()
    with tempfile.TemporaryDirectory() as folder:
        store = RolloutStore(Path(folder))
        for _ in range(2):
            with store.open(
                "phase-0000", "p", [request], lambda one: renderer.prompt(one.messages, one.tools)
            ) as stored:
                if not stored.known:
                    stored.append(request, rollout)
        expect(stored.known == {(0, 0): rollout}, "what was written is not what was read")
