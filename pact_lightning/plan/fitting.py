"""Largest settings that fit a card."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from pact_lightning.plan.lengths import Lengths
from pact_lightning.plan.memory import rollout_bytes
from pact_lightning.plan.recipe import Recipe
from pact_lightning.plan.run_plan import RunMemory, planned_packs, rollout_shape, run_memory

USABLE = 0.9
"""Share of a card's memory to plan with; the rest is for the driver, the allocator's gaps and the plan's error."""

_STEP = 256
_MOST_ROWS = 4096
_GUESSES = 6


@dataclass(frozen=True, slots=True)
class Largest:
    """Largest value of a setting that fits.

    Attributes:
        value: The value; ``None`` where not even the least fits.
        is_all: Whether all there is to do fits at once, and a larger value changes nothing.
    """

    value: int | None
    is_all: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """Settings that fit.

    Attributes:
        tokens: ``max_tokens_per_forward``.
        rows: ``data.limits.rows``; ``None`` with a sampler of its own.
        rows_at_limits: The same with prompts and rollouts as long as the recipe allows.
    """

    tokens: Largest
    rows: Largest | None
    rows_at_limits: Largest | None


def largest_fit(recipe: Recipe, skeleton: nn.Module, lengths: Lengths, memory: RunMemory, card: int) -> Fit:
    """Find the largest settings that fit a card, one at a time, all others as in the recipe.

    Args:
        recipe: The settings.
        skeleton: The policy on the meta device.
        lengths: Tokens of prompts, traces and rollouts.
        memory: Memory of the recipe as it is.
        card: Bytes of the card.
    """
    room = int(card * USABLE)

    def of_tokens(number: int) -> int:
        changed = replace(recipe, max_tokens_per_forward=least + number * _STEP)
        packs = planned_packs(changed, lengths)
        return run_memory(changed, skeleton, lengths, packs, known=memory).in_update

    def rows_for(lengths: Lengths) -> Largest:
        def of_rows(number: int) -> int:
            shape = replace(rollout_shape(recipe, lengths), rows=number + 1)
            return replace(memory, rollout=rollout_bytes(skeleton, shape, device_type=recipe.device_type)).in_rollouts

        rows = _largest(of_rows, room, rollouts - 1)
        return Largest(None if rows is None else rows + 1, rows == rollouts - 1)

    least = lengths.prompt + lengths.trace + lengths.trajectory
    most = recipe.prompts_per_step * (lengths.prompt + lengths.trace + recipe.rollouts_per_prompt * lengths.trajectory)
    rollouts = min(_MOST_ROWS, recipe.prompts_per_phase * recipe.rollouts_per_prompt)
    steps = _largest(of_tokens, room, -(-(most - least) // _STEP))
    tokens = Largest(None if steps is None else least + steps * _STEP, steps == -(-(most - least) // _STEP))
    if recipe.sampler:
        return Fit(tokens, None, None)
    rows = rows_for(lengths)
    if (lengths.prompt, lengths.trajectory) == (recipe.max_prompt_tokens, recipe.max_trajectory_tokens):
        return Fit(tokens, rows, rows)
    # Rollouts see no trace, so these lengths need not fit a training forward that has one.
    return Fit(tokens, rows, rows_for(Lengths(recipe.max_prompt_tokens, 0, recipe.max_trajectory_tokens)))


def _largest(bytes_of: Callable[[int], int], room: int, most: int) -> int | None:
    """Find the largest number from 0 to ``most`` whose bytes fit; they grow nearly in proportion.

    A guess is the point at which a straight line through the last two figures meets the room. Only numbers that were
    tried are returned, so the answer fits for certain, though it may be a little below the largest.
    """
    low, taken_low = 0, bytes_of(0)
    if taken_low > room:
        return None
    high, taken_high = most, bytes_of(most)
    if taken_high <= room:
        return most
    before, taken_before, last, taken_last = low, taken_low, high, taken_high
    for _ in range(_GUESSES):
        if high - low <= 1:
            break
        rise = (taken_last - taken_before) / (last - before)
        guess = last + int((room - taken_last) / rise) if rise > 0 else (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        before, taken_before, last, taken_last = last, taken_last, guess, bytes_of(guess)
        if taken_last <= room:
            low = guess
        else:
            high = guess
    return low
