"""Protocol of a conversation: somebody at the other end of a rollout, who sees each turn and gives the user's."""

from typing import Protocol

from pact_lightning.types.prompt import UserTurn
from pact_lightning.types.trajectory import RolloutTurn


class Conversation(Protocol):
    """Listener to a rollout that may also speak; the engine calls it from its own thread and waits for it."""

    def said(self, turn: RolloutTurn) -> None:
        """Take a turn of the policy, before its calls have run."""
        ...

    def answered(self, turn: RolloutTurn) -> None:
        """Take the same turn again, with the responses to its calls."""
        ...

    def next_user_turn(self) -> UserTurn | None:
        """Return the user's next turn, which may take ``max_turns`` of its own; ``None`` ends the rollout."""
        ...
