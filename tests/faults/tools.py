"""Tools that misbehave, each called in real rollouts between good calls."""

import json
import os
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from byte_tokenizer import byte_renderer
from rollout_player import ROOMY, Player, call

from faults.deadline import HangError, within
from faults.result import FaultResult
from faults.snippets import SECRET, SNIPPETS, source
from pact_lightning.credit.rewards import answer_f1
from pact_lightning.environments.sandbox.sandbox import shared_pool
from pact_lightning.rollout.engine import RolloutEngine, RolloutRequest
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.trajectory import Component, StopReason

SECTION = "Tools"
LIMIT = 2000
_GOOD = "def good(): return 'alive'"


def run(times):
    """Every snippet, so many times."""
    os.environ["TRAINER_SECRET"] = SECRET
    shared_pool().close()  # workers that start from now on could inherit it
    renderer = byte_renderer([("a", "b")])
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text(SECRET)
        with ThreadPoolExecutor(3) as side_by_side:  # some only wait for their limit
            return list(side_by_side.map(lambda snippet: _row(renderer, snippet, secret, times), SNIPPETS))


def _row(renderer, snippet, secret, times):
    prompt = _prompt(snippet)
    play = [call("f", json.dumps({"path": str(secret)})), call("good"), "done"]
    player = Player(renderer, [(renderer.prompt(prompt.messages, prompt.tools), play)])
    engine = RolloutEngine(renderer, ROOMY)
    try:
        results, _ = within(60 + 10 * times, engine.run, [RolloutRequest(prompt, times, 0)], player)
    except HangError as error:
        return FaultResult(SECTION, snippet.fault, times, 0, f"HANG: {error}")
    problems = Counter()
    held = 0
    for rollout in results[0]:
        found = _problems(renderer, snippet, rollout) + _damage(secret)
        problems.update(found)
        held += not found
    happened = Counter(_short(rollout.turns[0].responses[0]) for rollout in results[0]).most_common(1)[0][0]
    return FaultResult(SECTION, snippet.fault, times, held, "; ".join(problems) or happened)


def _prompt(snippet):
    schema = {"type": "object", "properties": {}}
    tools = tuple({"type": "function", "function": {"name": name, "parameters": schema}} for name in ("f", "good"))
    arguments = {"codes": {"f": source(snippet), "good": _GOOD}, "tools": tools, "max_output_chars": LIMIT}
    arguments["timeout_s"] = snippet.timeout_s
    spec = EnvironmentSpec("pact_lightning.CodeToolEnvironment", arguments)
    return PromptView("fault", ({"role": "user", "content": snippet.fault},), tools, spec)


def _problems(renderer, snippet, rollout):
    """What did not hold in one rollout."""
    if rollout.stop_reason is not StopReason.ANSWERED or len(rollout.turns) != 3:
        return [f"the rollout ended with {rollout.stop_reason}"]
    (response,), (error,) = rollout.turns[0].responses, rollout.turns[0].errors
    found = []
    if snippet.error and not error:
        found.append(f"no error: {_short(response)}")
    if len(response) > LIMIT + 200:
        found.append(f"a response of {len(response)} characters")
    if SECRET in response or "LEAK" in response:
        found.append(f"LEAK: {_short(response)}")
    if rollout.turns[1].responses != ("alive",):
        found.append(f"the next call gave {_short(rollout.turns[1].responses[0])}")
    observed = next(segment for segment in rollout.segments if segment.component is Component.OBSERVATION)
    codec = renderer.codec
    frame = [index for index in renderer.observation(["x"]) if codec.is_control(index)]
    if [index for index in observed.ids if codec.is_control(index)] != frame:
        found.append("a control token in the observation")
    return found


def _damage(secret):
    """What a call did outside its process."""
    found = []
    if [path.name for path in secret.parent.iterdir()] != ["secret"] or secret.read_text() != SECRET:
        found.append("files outside were changed")
    if answer_f1("a", "b") != 0.0 or sum([1, 2]) != 3:
        found.append("the scorer was changed")
    return found


def _short(text):
    text = " ".join(text.removeprefix("an error occured when call f: ").split())
    return text if len(text) <= 70 else f"{text[:70]}…"
