"""What a question asks, as an expression that tool calls reduce step by step until a value is left.

``the 1900 population of the birthplace of the author of "Velmo"`` is reduced from the inside out; its text at any
moment says exactly what is left to find. Questions, reference calls and the expert's reasoning all come from it.
"""

from dataclasses import dataclass

from pact_lightning.dialogue.tool_call import ToolCall
from pact_lightning.environments.bundled.relations import COMBINATIONS, Relation


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
    """Two things combined: by a word of :data:`.relations.COMBINATIONS`, or listed side by side (``word=None``)."""

    word: str | None
    left: "Expression"
    right: "Expression"

    def __str__(self) -> str:
        listed = f"{self.left} and {self.right}"
        return listed if self.word is None else f"the {self.word} of {listed}"


Expression = Value | Namesake | Of | Combine


def is_solved(expression: Expression) -> bool:
    """Whether only values are left."""
    if isinstance(expression, Combine):
        return expression.word is None and is_solved(expression.left) and is_solved(expression.right)
    return isinstance(expression, Value)


def answer_text(expression: Expression) -> str:
    """The final answer that a solved expression stands for."""
    if isinstance(expression, Combine):
        return f"{answer_text(expression.left)} and {answer_text(expression.right)}"
    assert isinstance(expression, Value)
    return str(expression.value)


def ready_steps(expression: Expression) -> list[Expression]:
    """The sub-expressions that one tool call each can reduce now, from left to right."""
    if isinstance(expression, Value):
        return []
    if isinstance(expression, Namesake):
        return [expression]
    if isinstance(expression, Of):
        return [expression] if isinstance(expression.inner, Value) else ready_steps(expression.inner)
    steps = ready_steps(expression.left) + ready_steps(expression.right)
    return steps if steps or expression.word is None else [expression]


def substitute(expression: Expression, step: Expression, value: Expression) -> Expression:
    """The expression with the leftmost occurrence of ``step`` replaced."""
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
    """The tool call that reduces a ready step by the most direct path."""
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
    """Key of the value in the response to :func:`call_for`."""
    if isinstance(step, Namesake):
        return "person"
    return step.relation.field if isinstance(step, Of) else "result"


def count_calls(expression: Expression) -> int:
    """How many calls solve the expression by the most direct path."""
    if isinstance(expression, Value):
        return 0
    if isinstance(expression, Namesake):
        return 1
    if isinstance(expression, Of):
        return 1 + count_calls(expression.inner)
    return count_calls(expression.left) + count_calls(expression.right) + (expression.word is not None)
