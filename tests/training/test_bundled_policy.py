"""What the bundled policy promises: capable of the format, unreliable in its behaviour, mixed groups."""

from collections import defaultdict

import pytest

from pact_lightning.credit.answers import answers_match
from pact_lightning.credit.rewards import extract_answer
from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_policy, load_tokenizer
from pact_lightning.rollout.engine import RolloutEngine, RolloutLimits, RolloutRequest
from pact_lightning.rollout.samplers.base import SamplingConfig
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.tasks.bundled.tasks import BundledTasks

CONFIG = PolicyConfig(model="bundled", adapter="full", dtype="float32")
LIMITS = RolloutLimits(max_new_tokens_per_turn=160, max_trajectory_tokens=1200, rows=200)


def test_it_is_small():
    model = load_policy(CONFIG)
    assert model.config.model_type == "qwen3"
    assert 0.5e6 < sum(weight.numel() for weight in model.parameters()) < 1.5e6


def successes(split, count, samples, *, greedy=False):
    """Whether each rollout of each task gives the right answer, by task."""
    model = load_policy(CONFIG).eval()
    renderer = ChatRenderer(TextCodec(load_tokenizer(CONFIG)))
    tasks = BundledTasks(split, count).load()
    sampler = TransformersSampler(model, [renderer.end_of_turn], SamplingConfig(greedy=greedy))
    engine = RolloutEngine(renderer, LIMITS)
    groups, _ = engine.run([RolloutRequest(task.prompt, samples, 0) for task in tasks], sampler)
    return [
        (task, [answers_match(extract_answer(rollout.final_answer or ""), task.reference.answer) for rollout in group])
        for task, group in zip(tasks, groups, strict=True)
    ]


@pytest.mark.slow
def test_it_is_unreliable_in_the_way_training_needs():
    sampled = successes("train", 200, 8)
    share = sum(sum(right) for _, right in sampled) / (8 * len(sampled))
    mixed = sum(0 < sum(right) < len(right) for _, right in sampled) / len(sampled)
    by_calls = defaultdict(list)
    for task, right in sampled:
        by_calls[task.metadata["calls"]] += right
    print(f"\nsampled, 200 training tasks x 8: {share:.1%} right, {mixed:.1%} of the groups mixed")
    for calls, right in sorted(by_calls.items()):
        print(f"  {calls} calls: {sum(right) / len(right):.1%} of {len(right)}")
    greedy = [right[0] for _, right in successes("validation", 200, 1, greedy=True)]
    print(f"greedy, 200 validation tasks: {sum(greedy) / len(greedy):.1%} right")
    assert 0.25 <= share <= 0.60
    assert mixed >= 1 / 3
    assert sum(by_calls[1]) / len(by_calls[1]) > sum(by_calls[3]) / len(by_calls[3])
