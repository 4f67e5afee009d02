"""Conversation with a policy: the rollouts of one task's tools, whose user turns somebody types."""

from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from itertools import count, takewhile
from typing import Any, Protocol

import lightning.pytorch as pl
import torch

from pact_lightning.rollout.conversation import Conversation
from pact_lightning.rollout.engine import RolloutEngine, RolloutRequest
from pact_lightning.tasks.jsonl import load_source
from pact_lightning.training.policy_module import PolicyModule
from pact_lightning.training.task_datamodule import TaskDataModule
from pact_lightning.types.prompt import PromptView
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import Trajectory
from pact_lightning.utils.seeds import derive_seed

_ORDER = ("predict", "test", "validation", "train")


class Talker(Conversation, Protocol):
    """Somebody who talks to the policy, one conversation after the other."""

    def begin(self, task: Task) -> str | None:
        """Return the first user turn of a conversation with a task's tools; ``None`` to leave."""
        ...

    def replay(self, task: Task) -> bool:
        """Take a task that is about to be played; return false to leave."""
        ...

    def ended(self, trajectory: Trajectory) -> None:
        """Take a conversation that has ended, whatever ended it."""
        ...


class ChatData(pl.LightningDataModule):
    """Conversations in place of a data module's predictions: same prompt format, same engine, same limits.

    Args:
        data: The recipe's data module.
        talker: Who talks.
        task: Id of the task to replay; ``None`` to start from a user turn of the talker's.
        tools_of: Id of the task whose system prompt, tools and environment the conversations have; by default those of
            the first task.
    """

    def __init__(self, data: TaskDataModule, talker: Talker, task: str | None, tools_of: str | None) -> None:
        super().__init__()
        self.data = data
        self.talker = talker
        self.replayed = task
        self.tools_of = tools_of
        self.task: Task | None = None

    def setup(self, stage: str) -> None:
        """Find the task, before the policy is loaded.

        Raises:
            ValueError: The recipe's data has no such task, or none at all.
        """
        del stage
        wanted = self.replayed or self.tools_of
        ids: list[str] = []
        for name in _ORDER:
            source = self.data.sources.get(name)
            for task in load_source(source) if source is not None else ():
                if wanted in (None, task.id):
                    self.task = task
                    return
                ids.append(task.id)
        if not ids:
            raise ValueError("there are no tasks whose tools the policy could use; set data.predict in the recipe")
        near = get_close_matches(str(wanted), ids, n=3, cutoff=0.3) or ids[:3]
        raise ValueError(f"the recipe's data has no task {wanted!r}; it has {', '.join(map(repr, near))} and more")

    def predict_dataloader(self) -> "_Conversations":
        """Return the conversations, which take place while Lightning waits for the first batch."""
        return _Conversations(self)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave the batch where it is."""
        del device, dataloader_idx
        return batch


class _Conversations:
    def __init__(self, chat: ChatData) -> None:
        self.chat = chat

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[None]:
        chat = self.chat
        assert chat.trainer is not None
        module, data, talker, task = chat.trainer.lightning_module, chat.data, chat.talker, chat.task
        assert isinstance(module, PolicyModule)
        assert task is not None
        engine = RolloutEngine(module.renderer, data.limits)
        with module.whole_policy(), module.sampler(data.evaluation.sampling, data.prefill_tokens) as sampler:
            try:
                for number in count():
                    prompt = self._prompt(task, first=number == 0)
                    if prompt is None:
                        break
                    request = RolloutRequest(prompt, 1, derive_seed(data.seed, "chat", number))
                    ((trajectory,),), _ = engine.run([request], sampler, conversation=talker)
                    talker.ended(trajectory)
            except KeyboardInterrupt:  # a way to leave; Lightning would end the process with an error
                pass
        yield from ()

    def _prompt(self, task: Task, *, first: bool) -> PromptView | None:
        if first and self.chat.replayed is not None:
            return task.prompt if self.chat.talker.replay(task) else None
        said = self.chat.talker.begin(task)
        if said is None:
            return None
        system = takewhile(lambda message: message["role"] == "system", task.prompt.messages)
        return replace(task.prompt, messages=(*system, {"role": "user", "content": said}), follow_ups=())
