"""Questions of the bundled world: expressions that tool calls reduce step by step until a value is left.

``the 1900 population of the birthplace of the author of "Velmo"`` is reduced from the inside out; its text at any
moment says exactly what is left to find. Questions, reference calls and the expert's reasoning all come from it.
:func:`draw_question` draws one of the four FTRL kinds, with 1 to 6 calls (more in the ``longer`` split).
"""

import random
from dataclasses import dataclass

from pact_lightning.tasks.bundled.world import COMBINATIONS, RELATIONS, Relation, World
from pact_lightning.types.tool_call import ToolCall


@dataclass(frozen=True, slots=True)
class Value:
    """A known name or number."""

    value: str | int

    def __str__(self) -> str:
        return f'"{self.value}"' if isinstance(self.value, str) else str(self.value)


@dataclass(frozen=True, slots=True)
class Namesake:
    """A person known by last name and profession only; the name alone is ambiguous."""

    last_name: str
    profession: str

    def __str__(self) -> str:
        return f'the {self.profession} "{self.last_name}"'


@dataclass(frozen=True, slots=True)
class Of:
    """A relation of something: ``the author of ...``."""

    relation: Relation
    inner: "Expression"

    def __str__(self) -> str:
        return f"the {self.relation.phrase} of {self.inner}"


@dataclass(frozen=True, slots=True)
class Combine:
    """Two things combined: by a word of ``world.COMBINATIONS``, or listed side by side (``word=None``)."""

    word: str | None
    left: "Expression"
    right: "Expression"

    def __str__(self) -> str:
        listed = f"{self.left} and {self.right}"
        return listed if self.word is None else f"the {self.word} of {listed}"


Expression = Value | Namesake | Of | Combine


def is_solved(expression: Expression) -> bool:
    """Return whether only values are left."""
    if isinstance(expression, Combine):
        return expression.word is None and is_solved(expression.left) and is_solved(expression.right)
    return isinstance(expression, Value)


def answer_text(expression: Expression) -> str:
    """Return the final answer that a solved expression stands for."""
    if isinstance(expression, Combine):
        return f"{answer_text(expression.left)} and {answer_text(expression.right)}"
    assert isinstance(expression, Value)
    return str(expression.value)


def ready_steps(expression: Expression) -> list[Expression]:
    """Return the sub-expressions that one tool call each can reduce now, from left to right."""
    if isinstance(expression, Value):
        return []
    if isinstance(expression, Namesake):
        return [expression]
    if isinstance(expression, Of):
        return [expression] if isinstance(expression.inner, Value) else ready_steps(expression.inner)
    steps = ready_steps(expression.left) + ready_steps(expression.right)
    return steps if steps or expression.word is None else [expression]


def substitute(expression: Expression, step: Expression, value: Expression) -> Expression:
    """Return the expression with the leftmost occurrence of ``step`` replaced."""
    return _substitute(expression, step, value)[0]


def _substitute(expression: Expression, step: Expression, value: Expression) -> tuple[Expression, bool]:
    if expression == step:
        return value, True
    if isinstance(expression, Of):
        inner, done = _substitute(expression.inner, step, value)
        return (Of(expression.relation, inner), True) if done else (expression, False)
    if isinstance(expression, Combine):
        left, done = _substitute(expression.left, step, value)
        if done:
            return Combine(expression.word, left, expression.right), True
        right, done = _substitute(expression.right, step, value)
        return Combine(expression.word, expression.left, right), done
    return expression, False


def call_for(step: Expression) -> ToolCall:
    """Return the tool call that reduces a ready step by the most direct path."""
    if isinstance(step, Namesake):
        return ToolCall(name="find_person", arguments={"name": step.last_name, "profession": step.profession})
    if isinstance(step, Combine):
        assert step.word is not None
        assert isinstance(step.left, Value)
        assert isinstance(step.right, Value)
        return ToolCall(name=COMBINATIONS[step.word], arguments={"a": step.left.value, "b": step.right.value})
    assert isinstance(step, Of)
    assert isinstance(step.inner, Value)
    arguments: dict[str, str | int] = {step.relation.source: step.inner.value}
    if step.relation.year is not None:
        arguments["year"] = step.relation.year
    return ToolCall(name=step.relation.tool, arguments=arguments)


def response_field(step: Expression) -> str:
    """Return the key of the value in the response to :func:`call_for`."""
    if isinstance(step, Namesake):
        return "person"
    return step.relation.field if isinstance(step, Of) else "result"


def count_calls(expression: Expression) -> int:
    """Count the calls that solve the expression by the most direct path."""
    if isinstance(expression, Value):
        return 0
    if isinstance(expression, Namesake):
        return 1
    if isinstance(expression, Of):
        return 1 + count_calls(expression.inner)
    return count_calls(expression.left) + count_calls(expression.right) + (expression.word is not None)


KINDS: tuple[str, ...] = ("single_hop", "parallel_single_hop", "multi_hop", "parallel_multi_hop")
_KIND_WEIGHTS = (20, 20, 35, 25)
_MULTI_HOPS = (2, 2, 3, 3, 4, 5, 6)
_LONGER_HOPS = (7, 8)
_PARALLEL_HOPS = ((1, 2), (2, 1), (2, 2), (2, 2))  # with the combining call: 4 or 5 calls
_LONGER_PARALLEL_HOPS = ((3, 3), (3, 4))
_NAMESAKE_SHARE = 0.25
_MISSPELLED_SHARE = 0.05


def draw_question(world: World, rng: random.Random) -> tuple[str, Expression, dict[str, str]]:
    """Draw the question of a task.

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
    """Draw a chain of ``hops`` calls; a resolved namesake counts as one of them."""
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
    """Draw relations from the inside out, each asking about what the one before it found."""
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
    """Drop a letter from the innermost name of the leftmost chain, as users do; namesakes are left alone."""
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
