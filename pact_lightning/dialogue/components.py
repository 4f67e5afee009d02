"""The kinds of token a dialogue is made of."""

from enum import IntEnum


class Component(IntEnum):
    """What a token is part of. Policy tokens are those the policy writes itself (METHOD section 1).

    An ``IntEnum`` so that a sequence of components is an integer tensor.
    """

    PROMPT = 0
    """System prompt, tool schemas and user turns: context only."""
    REASONING = 1
    """Text between ``<think>`` and ``</think>`` (or before the first call where a model does not mark its thinking)."""
    TOOL_CALL = 2
    """From ``<tool_call>`` to ``</tool_call>``, both included."""
    ANSWER = 3
    """Text of a turn without a tool call, after the reasoning."""
    DELIMITER = 4
    """Control tokens and white space the policy writes between the others, ``<|im_end|>`` included."""
    OBSERVATION = 5
    """Tool responses and the turn headers around them: context only."""


POLICY_COMPONENTS: frozenset[Component] = frozenset(
    {Component.REASONING, Component.TOOL_CALL, Component.ANSWER, Component.DELIMITER}
)
"""Components of tokens that the policy samples; in a rollout exactly these receive gradient."""
