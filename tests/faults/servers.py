"""MCP servers that are slow, wrong or dying, in real rollouts: their calls are error responses, and rollouts go on.

Where every call of a phase fails, the run stops with its state saved.
"""

import json
import logging
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from byte_tokenizer import byte_renderer
from rollout_player import ROOMY, Player, call
from test_mcp_outage import CALLING, DisturbedTasks, DisturbsItsServer, fit

from faults.deadline import HangError, within
from faults.repeated import expect, repeated
from faults.result import FaultResult
from pact_lightning.environments.protocol import EnvironmentUnavailableError
from pact_lightning.rollout.engine import RolloutEngine, RolloutRequest
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.trajectory import StopReason

SECTION = "Servers"
_TESTS = Path(__file__).parent.parent
_BENCH = [str(_TESTS / "mcp_bench_server.py")]
_PLAIN = [str(_TESTS / "mcp_plain_server.py")]
_GOOD = call("add", '{"a": 1}'), "2"
_ECHO = call("echo", '{"text": "alive"}'), "alive"
FAULTS = (
    # What is injected, the server, the bad call, whether it has to be an error, a good call and its response.
    ("a tool that never answers", _BENCH, call("sleep", '{"seconds": 3600}'), True, *_GOOD),
    ("a server that no longer answers at all", _BENCH, call("block", '{"seconds": 3600}'), True, *_GOOD),
    ("a server that dies in a call", _BENCH, call("die"), True, *_GOOD),
    ("a tool that raises", _BENCH, call("wrong"), True, *_GOOD),
    ("an answer against the protocol", [*_PLAIN, "well"], call("echo", '{"text": "bad"}'), True, *_ECHO),
    ("a refusal without a reason", [*_PLAIN, "well"], call("echo", '{"text": "refuse"}'), True, *_ECHO),
    ("garbage on standard output", [*_PLAIN, "garbage"], call("echo", '{"text": "x"}'), False, *_ECHO),
)


def run(times):
    """Every fault; each time a server of its own is started, so at most ten times, and in whole fits at most twice."""
    renderer = byte_renderer([("a", "b")])
    rows = [_row(renderer, fault, min(times, 10)) for fault in FAULTS]
    for name, how in (("dies", "die"), ("is silent", "keep silent")):
        what = f"a server that starts and {name} in every call of a phase"
        rows.append(repeated(SECTION, what, min(times, 2), lambda _, how=how: _stops(how)))
    return rows


def _stops(how):
    """A fit whose server fails from its second phase on, and which goes on once that is over."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, disturbed = Path(name), Path(name) / "disturbed"
        tasks = DisturbedTasks(disturbed)
        expected, _ = within(900, lambda: fit(folder / "whole", tasks, **CALLING))
        try:
            within(900, lambda: fit(folder / "stopped", tasks, DisturbsItsServer(disturbed, how), **CALLING))
        except EnvironmentUnavailableError as error:
            expect("no tool call was answered in phase-0001" in str(error), f"the error says only: {error}")
        else:
            expect(False, "the run did not stop")
        disturbed.unlink()
        saved = folder / "stopped" / "checkpoints" / "last-stopped.ckpt"
        resumed, _ = within(900, lambda: fit(folder / "stopped", tasks, checkpoint=saved, **CALLING))
    expect(all(torch.equal(resumed[name], expected[name]) for name in expected), "the weights differ")
    return "stopped after the phase, state saved; the resumed run ends with the same weights, bit for bit"


def _row(renderer, fault, times):
    name, server, bad, must_fail, good, expected = fault
    # A busy machine may take long to start an interpreter; only a call that never ends is cut soon.
    timeout_s = 5.0 if "3600" in bad else 60.0
    arguments = {"command": sys.executable, "args": server, "timeout_s": timeout_s, "backoff_s": 0.05}
    arguments["start_timeout_s"] = 600.0
    names = {json.loads(line)["name"] for turn in (bad, good) for line in turn.splitlines() if line.startswith("{")}
    tools = tuple({"type": "function", "function": {"name": tool, "parameters": {}}} for tool in sorted(names))
    spec = EnvironmentSpec("pact_lightning.MCPEnvironment", arguments)
    prompt = PromptView("server", ({"role": "user", "content": name},), tools, spec)
    player = Player(renderer, [(renderer.prompt(prompt.messages, prompt.tools), [bad, good, "done"])])
    engine = RolloutEngine(renderer, replace(ROOMY, tool_timeout_s=900.0, tool_threads=2))
    try:
        results, _ = within(900 + 300 * times, engine.run, [RolloutRequest(prompt, times, 0)], player)
    except HangError as error:
        return FaultResult(SECTION, name, times, 0, f"HANG: {error}")
    problems = Counter()
    for rollout in results[0]:
        if rollout.stop_reason is not StopReason.ANSWERED or len(rollout.turns) != 3:
            problems[f"the rollout ended with {rollout.stop_reason}"] += 1
        elif must_fail and not rollout.turns[0].errors[0]:
            problems["no error"] += 1
        elif rollout.turns[1].responses != (expected,):
            problems[f"the next call gave {rollout.turns[1].responses[0]:.60}"] += 1
    happened = Counter(rollout.turns[0].responses[0] for rollout in results[0] if rollout.turns).most_common(1)
    text = " ".join(("; ".join(problems) or happened[0][0]).split())
    return FaultResult(SECTION, name, times, times - problems.total(), text[:90])
