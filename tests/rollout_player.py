"""Policy that plays given lines and environment whose tools misbehave, for tests of the engine."""

import random
import threading
import time
from dataclasses import dataclass, field

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.rollout.engine import RolloutEngine, RolloutLimits, RolloutRequest
from pact_lightning.rollout.samplers.base import TurnOutput
from pact_lightning.types.prompt import EnvironmentSpec, PromptView

ROOMY = RolloutLimits(max_new_tokens_per_turn=500, max_trajectory_tokens=5000)


@dataclass
class _Playing:
    turns: list
    turn: int = 0
    left: list = field(default_factory=list)
    output: TurnOutput | None = None


class Player:
    """A policy that knows its lines: a sampler that plays given turns, one token a step, by prompt.

    A turn is text or token ids, or a function of the turn's seed that gives either.
    """

    def __init__(self, renderer, plays):
        self.renderer = renderer
        self.plays = {tuple(prompt): turns for prompt, turns in plays}
        self.rows = {}
        self.log = []

    def submit(self, requests):
        self.log.append([(request.row, tuple(request.new_ids), request.max_new_tokens) for request in requests])
        for request in requests:
            if request.row not in self.rows:
                self.rows[request.row] = _Playing(self.plays[tuple(request.new_ids)])
            row = self.rows[request.row]
            assert row.output is None
            assert request.max_new_tokens > 0
            line = row.turns[row.turn]
            line = line(request.seed) if callable(line) else line
            if isinstance(line, str):
                line = [*self.renderer.codec.control(line), self.renderer.end_of_turn]
            row.left = list(line[: request.max_new_tokens])
            row.output = TurnOutput(request.row)
            row.turn += 1

    def step(self):
        ended = []
        for row in self.rows.values():
            if row.output is None:
                continue
            row.output.ids.append(row.left.pop(0))
            row.output.logps.append(-0.5)
            if not row.left:
                row.output.finished = row.output.ids[-1] in self.renderer.end_ids
                ended.append(row.output)
                row.output = None
        return ended

    def release(self, row):
        assert self.rows.pop(row).output is None


class Bench:
    """An environment for tools that misbehave; it remembers in which order they ran."""

    NAMES = ("log", "slow", "hang", "crash", "leave", "lie", "half")
    ends = threading.Event()

    def __init__(self, delays=False):
        self.delays = random.Random() if delays else None
        self.seen = []

    @property
    def tools(self):
        return ()

    def reset(self, task, seed):
        self.seed = seed

    def call(self, name, arguments):
        if self.delays is not None:
            time.sleep(self.delays.random() * 0.01)
        return getattr(self, f"_{name}")(**arguments)

    def _log(self, what):
        self.seen.append(what)
        return ToolResult(" ".join(map(str, self.seen)))

    def _slow(self, what):
        time.sleep(0.02)
        return self._log(what)

    def _hang(self):
        self.ends.wait()
        return ToolResult("at last")

    def _crash(self):
        raise KeyError("no such key")

    def _leave(self):
        raise SystemExit(3)

    def _lie(self):
        return "just text"

    def _half(self):
        return ToolResult("a\ud800b")


class Broken(Bench):
    def __init__(self):
        raise OSError("no such file")


class BrokenReset(Bench):
    def reset(self, task, seed):
        raise ValueError("bad task")


class HangingReset(Bench):
    def reset(self, task, seed):
        time.sleep(1.0)


class Meeting(Bench):
    """Starts only once another one is starting too."""

    barrier = threading.Barrier(2)

    def reset(self, task, seed):
        self.barrier.wait(timeout=20)


def bench_prompt(number=0, environment="Bench", **arguments):
    tools = tuple({"type": "function", "function": {"name": name, "parameters": {}}} for name in Bench.NAMES)
    message = {"role": "user", "content": f"Task {number}"}
    return PromptView(f"bench-{number}", (message,), tools, EnvironmentSpec(f"{__name__}.{environment}", arguments))


def call(name, arguments="{}"):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def log(what, name="log"):
    return call(name, f'{{"what": "{what}"}}')


def play(renderer, prompts, turns, limits=ROOMY, samples=1, player=None):
    """Plays the same turns in every prompt."""
    player = player or Player(renderer, [(renderer.prompt(p.messages, p.tools), turns) for p in prompts])
    engine = RolloutEngine(renderer, limits)
    results, stats = engine.run([RolloutRequest(p, samples, n) for n, p in enumerate(prompts)], player)
    assert player.rows == {}
    return results, stats, player


def play_one(renderer, *turns, limits=ROOMY, prompt=None):
    results, stats, _ = play(renderer, [prompt or bench_prompt()], turns, limits)
    return results[0][0], stats
