"""Rollouts long enough for vLLM's prefix cache, and how far their log-probabilities are from the trainer's."""

import torch

from pact_lightning.policy.logprobs import token_logprobs
from pact_lightning.policy.packing import Block, pack_blocks
from pact_lightning.rollout.samplers.base import TurnRequest

# With the default block of 128 tokens small prompts would never be found in the prefix cache.
SETTINGS = {"block_size": 32, "enforce_eager": True, "distributed_executor_backend": "uni"}
PROMPT = [20 + (7 * n) % 90 for n in range(70)]
OBSERVATION = [30 + (5 * n) % 60 for n in range(40)]


def play_long(sampler, turns=3, rows=4, limit=10, seed=0):
    """Rows of the same prompt with an observation before every later turn; per row what came after the prompt."""
    found = {row: [] for row in range(rows)}
    sampler.submit([TurnRequest(row, PROMPT, limit, 1000 * seed + row, "x") for row in range(rows)])
    working = rows
    while working:
        for output in sampler.step():
            found[output.row].append(output)
            number = len(found[output.row])
            if number == turns:
                sampler.release(output.row)
                working -= 1
            else:
                sampler.submit([TurnRequest(output.row, OBSERVATION, limit, 1000 * seed + 10 * number + output.row)])
    return [(_tokens(turns_of_row), turns_of_row) for turns_of_row in found.values()]


def _tokens(turns):
    """Tokens after the prompt, and which of them were sampled."""
    ids, mask = [], []
    for number, turn in enumerate(turns):
        observed = OBSERVATION if number else []
        ids += [*observed, *turn.ids]
        mask += [False] * len(observed) + [True] * len(turn.ids)
    return ids, mask


def difference(model, played, temperature=1.0):
    """Largest distance between the sampler's log-probabilities and the trainer's full forward."""
    (pack,) = pack_blocks([Block(PROMPT, [ids for (ids, _), _ in played])], 100_000)
    with torch.no_grad():
        scores = token_logprobs(model, pack, temperature=temperature)
    largest = 0.0
    for score, ((_, mask), turns) in zip(scores, played, strict=True):
        reported = torch.tensor([logp for turn in turns for logp in turn.logps])
        largest = max(largest, float((score.logp[torch.tensor(mask)] - reported).abs().max()))
    return largest
