"""Questions of the bundled world: the four FTRL kinds, 1 to 6 calls (more in the ``longer`` split)."""

import random

from pact_lightning.environments.bundled.expression import Combine, Expression, Namesake, Of, Value
from pact_lightning.environments.bundled.relations import COMBINATIONS, RELATIONS, Relation
from pact_lightning.environments.bundled.world import World

KINDS: tuple[str, ...] = ("single_hop", "parallel_single_hop", "multi_hop", "parallel_multi_hop")
_KIND_WEIGHTS = (20, 20, 35, 25)
_MULTI_HOPS = (2, 2, 3, 3, 4, 5, 6)
_LONGER_HOPS = (7, 8)
_PARALLEL_HOPS = ((1, 2), (2, 1), (2, 2), (2, 2))  # with the combining call: 4 or 5 calls
_LONGER_PARALLEL_HOPS = ((3, 3), (3, 4))
_NAMESAKE_SHARE = 0.25
_MISSPELLED_SHARE = 0.05


def draw_question(world: World, rng: random.Random) -> tuple[str, Expression, dict[str, str]]:
    """Draws what a task asks.

    Returns:
        The kind, the expression as the user states it, and the misspelled names in it, each with the right one.
    """
    kind = rng.choices(KINDS, _KIND_WEIGHTS)[0]
    longer = world.split == "longer"
    if longer:
        kind = rng.choice(("multi_hop", "parallel_multi_hop"))
    if kind == "single_hop":
        question: Expression = _chain(world, 1, rng)
    elif kind == "multi_hop":
        hops = rng.choice(_LONGER_HOPS if longer else _MULTI_HOPS)
        question = _chain(world, hops, rng)
    elif kind == "parallel_single_hop":
        word = rng.choice((None, *COMBINATIONS))
        left = _chain(world, 1, rng, numeric=word is not None, plain=True)
        right = _chain(world, 1, rng, numeric=word is not None, plain=True, other_than=left)
        question = Combine(word, left, right)
    else:
        first, second = rng.choice(_LONGER_PARALLEL_HOPS if longer else _PARALLEL_HOPS)
        left = _chain(world, first, rng, numeric=True)
        right = _chain(world, second, rng, numeric=True, plain=True, other_than=left)
        question = Combine(rng.choice(list(COMBINATIONS)), left, right)
    typos: dict[str, str] = {}
    if rng.random() < _MISSPELLED_SHARE:
        question, typos = _misspell(question, world, rng)
    return kind, question, typos


def _chain(
    world: World,
    hops: int,
    rng: random.Random,
    *,
    numeric: bool = False,
    plain: bool = False,
    other_than: Expression | None = None,
) -> Expression:
    """A chain of ``hops`` calls; a resolved namesake counts as one of them."""
    while True:
        relations = _relations(hops, rng, numeric=numeric)
        start = relations[0].source
        chain: Expression = Value(rng.choice(world.entities[start]))
        if start == "person" and hops > 1 and not plain and rng.random() < _NAMESAKE_SHARE:
            name = world.people[-1]
            chain = Namesake(name.split()[-1], world.professions[name])
            relations = relations[1:]
            if relations[0].source != "person":
                continue
        for relation in relations:
            chain = Of(relation, chain)
        if chain != other_than:
            return chain


def _relations(hops: int, rng: random.Random, *, numeric: bool) -> list[Relation]:
    """Relations from the inside out, each asking about what the one before it found."""
    while True:
        chain = [rng.choice(RELATIONS)]
        while len(chain) < hops:
            # Nobody asks for the spouse of a spouse.
            onward = [
                relation
                for relation in RELATIONS
                if relation.source == chain[-1].target and (relation != chain[-1] or relation.phrase != "spouse")
            ]
            if not onward:
                break
            chain.append(rng.choice(onward))
        if len(chain) == hops and (not numeric or chain[-1].target == "number"):
            return chain


def _misspell(question: Expression, world: World, rng: random.Random) -> tuple[Expression, dict[str, str]]:
    """Drops a letter from the innermost name of the leftmost chain, as users do; namesakes are left alone."""
    if isinstance(question, Of):
        inner, typos = _misspell(question.inner, world, rng)
        return Of(question.relation, inner), typos
    if isinstance(question, Combine):
        left, typos = _misspell(question.left, world, rng)
        return Combine(question.word, left, question.right), typos
    if isinstance(question, Value) and isinstance(question.value, str):
        wrong = question.value[:-1]
        known = [name for names in world.entities.values() for name in names]
        if wrong not in known and not world.namesakes(wrong):
            return Value(wrong), {wrong: question.value}
    return question, {}
