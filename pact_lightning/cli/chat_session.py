"""A conversation at the terminal: the recipe's module and data, set up as for ``predict``, and who talks to them."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.text import Text
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from pact_lightning.cli.fit import PactCLI, run_lightning
from pact_lightning.teacher.view import STYLES
from pact_lightning.training.chat import ChatData
from pact_lightning.training.task_datamodule import TaskDataModule
from pact_lightning.types.prompt import UserTurn
from pact_lightning.types.task import Task
from pact_lightning.types.trajectory import RolloutTurn, StopReason, Trajectory
from pact_lightning.utils.errors import plain_text
from pact_lightning.utils.text import visible

NEW = "/new"
"""The line that begins a new conversation."""
_ENDS = {
    StopReason.MAX_TURNS: "no answer within data.limits.max_turns",
    StopReason.MAX_TOKENS_TURN: "the turn is over data.limits.max_new_tokens_per_turn",
    StopReason.MAX_TOKENS_TRAJECTORY: "the conversation is over data.limits.max_trajectory_tokens",
}


def talk(task: str | None, tools_of: str | None, of_predict: Sequence[str]) -> None:
    """Talk until the input ends or Ctrl-C.

    Args:
        task: Id of the task to replay.
        tools_of: Id of the task whose tools the policy has.
        of_predict: The options of ``predict``.
    """
    with _quiet_libraries():
        try:
            run_lightning(["predict", *of_predict], partial(_ChatCLI, task=task, tools_of=tools_of))
        except KeyboardInterrupt:
            Console().print()


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep the dots of a loader and the lines on devices out of the conversation; all is as before behind it."""
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")
    ]
    levels = [logger.level for logger in loggers]
    bars = is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        warnings.filterwarnings("ignore", module="lightning")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' has no hints
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if bars:
                enable_progress_bar()  # type: ignore[no-untyped-call]  # as above


class _ChatCLI(PactCLI):
    """The command ``predict``, whose predictions are conversations."""

    def __init__(self, *args: Any, task: str | None, tools_of: str | None, **kwargs: Any) -> None:
        self._task, self._tools_of = task, tools_of
        super().__init__(*args, **kwargs | {"save_config_callback": None})

    def instantiate_classes(self) -> None:
        """Put conversations in the place of predictions, in one process, without progress bars."""
        trainer = self.config[self.subcommand].trainer
        trainer["limit_predict_batches"], trainer["enable_model_summary"] = 1, False
        if trainer.get("strategy") == "auto" and not isinstance(trainer.get("devices"), list):
            trainer["devices"] = 1
        super().instantiate_classes()
        # Nothing is written into the run's folder, which was needed to find the checkpoint.
        made: Any = self.trainer
        made.callbacks = [each for each in made.callbacks if isinstance(each, ModelCheckpoint)]
        made.loggers = []
        if not isinstance(self.datamodule, TaskDataModule):
            raise TypeError(
                f"chat takes tasks and limits from a data module of this package, not from "
                f"{type(self.datamodule).__name__}; extend pact_lightning.TaskDataModule"
            )
        if self.trainer.world_size > 1:
            raise ValueError("chat runs in one process; add --trainer.devices 1 --trainer.strategy auto")
        talker = Terminal(Console(highlight=False, soft_wrap=True), str(self.model.model_name))
        self.datamodule: Any = ChatData(self.datamodule, talker, self._task, self._tools_of)


class Terminal:
    """Somebody at the terminal, or a pipe, who talks to the policy.

    Args:
        console: Where the conversation is shown.
        model: The policy's name.
    """

    def __init__(self, console: Console, model: str) -> None:
        self.console = console
        self.model = model
        self.left = False  # the input has ended
        self._reference: str | None = None
        self._greeted = False

    def begin(self, task: Task) -> str | None:
        """Read the first message of a conversation."""
        self._greet(task)
        while (line := self._read()) == NEW:
            pass
        return line

    def replay(self, task: Task) -> bool:
        """Show the messages of the task that is about to be played."""
        self._greet(task)
        for message in task.prompt.messages:
            self._show(f"{message['role']}: ", str(message["content"]), "prompt")
        self._reference = task.reference.answer
        return True

    def said(self, turn: RolloutTurn) -> None:
        """Show what the policy said: its reasoning dim, its calls, its answer."""
        if turn.reasoning.strip():
            self._show("", turn.reasoning.strip(), "dim")
        for entry in turn.parsed:
            if entry.call is None:
                self._show("malformed call: ", entry.error, "never")
            else:
                arguments = json.dumps(entry.call["arguments"], ensure_ascii=False)
                self._show("call: ", f"{entry.call['name']} {arguments}", "tool_call")
        if turn.answer.strip():
            self._show("agent> ", turn.answer.strip(), "answer")
        elif not turn.parsed:
            self._show("agent> ", "(nothing)", "prompt")

    def answered(self, turn: RolloutTurn) -> None:
        """Show the tools' responses."""
        for response, failed in zip(turn.responses, turn.errors, strict=True):
            self._show(f"response{', which failed' if failed else ''}: ", response, "observation")

    def next_user_turn(self) -> UserTurn | None:
        """Read the next message; the end of the input and ``/new`` end the conversation."""
        self._tell_reference()
        line = self._read()
        return None if line in (None, NEW) else UserTurn(str(line))

    def ended(self, trajectory: Trajectory) -> None:
        """Say what ended a conversation, if the user did not."""
        reason = trajectory.stop_reason
        if reason is StopReason.ENVIRONMENT_FAILED:
            self._show("", "; ".join(trajectory.turns[-1].responses), "never")
        elif reason in _ENDS:
            self._show("", f"{_ENDS[reason]}; a new conversation begins", "never")
        self._tell_reference()

    def _tell_reference(self) -> None:
        if self._reference is not None:
            self._show("the task's reference answer: ", self._reference, "prompt")
            self._reference = None

    def _greet(self, task: Task) -> None:
        if self._greeted:
            return
        self._greeted = True
        names = ", ".join(task.prompt.tool_names) or "none"
        self._show("", f"You talk to {self.model}, with the tools of task {task.id}: {names}.", "prompt")
        if sys.stdin.isatty():
            self._show("", f"One message a line; {NEW} begins a new conversation, Ctrl-D ends it.", "prompt")

    def _read(self) -> str | None:
        """Read a line that is not empty; ``None`` at the end of the input."""
        while not self.left:
            try:
                line = plain_text(input("you> " if sys.stdin.isatty() else "")).strip()
            except EOFError:
                self.left = True
            except UnicodeDecodeError:
                self._show("", "this line is not valid UTF-8 and is ignored", "never")
            else:
                if line and not sys.stdin.isatty():
                    self._show("you> ", line, "prompt")  # else a transcript would hold one side only
                if line:
                    return line
        return None

    def _show(self, label: str, text: str, style: str) -> None:
        of_label = "bold" if label.endswith("> ") else "dim"
        self.console.print(Text.assemble((label, of_label), (visible(text), STYLES.get(style, style))))
