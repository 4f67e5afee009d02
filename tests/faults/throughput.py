"""Rollouts of the bundled policy with 5 % misbehaving tools, beside the same with none."""

import statistics
import time

from hand_made import FULL, bundled_renderer

from faults.result import FaultResult
from faults.world import MisbehavingWorld
from pact_lightning.policy.loading import load_policy
from pact_lightning.rollout.engine import RolloutEngine, RolloutLimits, RolloutRequest
from pact_lightning.rollout.samplers.base import SamplingConfig
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.types.prompt import EnvironmentSpec

SECTION = "Throughput"
SHARE, TIMEOUT_S, PROMPTS, SAMPLES, ROUNDS = 0.05, 2.0, 16, 4, 5
_LIMITS = RolloutLimits(max_turns=6, max_new_tokens_per_turn=96, max_trajectory_tokens=1500, rows=64)


def run(times):
    """One row: completed calls per second, alternating, the median of five rounds each; ``times`` is not used."""
    del times
    renderer, model = bundled_renderer(), load_policy(FULL).eval()
    rates = {0.0: [], SHARE: []}
    before = MisbehavingWorld.injected
    _calls_per_second(renderer, model, 0.0, prompts=2)
    for _ in range(ROUNDS):
        for share, found in rates.items():
            found.append(_calls_per_second(renderer, model, share, PROMPTS))
    injected = MisbehavingWorld.injected - before
    normal, faulty = (statistics.median(found) for found in rates.values())
    ratio = faulty / normal
    happened = (
        f"{faulty:.1f} calls/s beside {normal:.1f}, ratio {ratio:.2f} (has to be above 0.5); {injected} calls "
        f"misbehaved, all kinds in turn, time limit {TIMEOUT_S:g} s"
    )
    return [FaultResult(SECTION, f"{SHARE:.0%} of all calls", ROUNDS, ROUNDS if ratio > 0.5 else 0, happened)]


def _calls_per_second(renderer, model, share, prompts):
    requests = []
    for number, task in enumerate(BundledTasks("train", prompts).load()):
        arguments = dict(task.prompt.environment.init_args) | {"share": share, "timeout_s": TIMEOUT_S}
        spec = EnvironmentSpec("faults.world.MisbehavingWorld", arguments)
        view = type(task.prompt)(task.id, task.prompt.messages, task.prompt.tools, spec)
        requests.append(RolloutRequest(view, SAMPLES, number))
    sampler = TransformersSampler(model, [renderer.end_of_turn], SamplingConfig(1.0), 16_384)
    started = time.perf_counter()
    results, stats = RolloutEngine(renderer, _LIMITS).run(requests, sampler)
    assert sum(map(len, results)) == prompts * SAMPLES
    return stats.tool_calls / (time.perf_counter() - started)
