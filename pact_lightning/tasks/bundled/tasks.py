"""Bundled tasks: deterministic in (split, index), with reference and expert trace."""

import json
import random
from collections.abc import Sequence

from pact_lightning.tasks.bundled.expert import FLAWED, SOUND, solve
from pact_lightning.tasks.bundled.questions import (
    Expression,
    Value,
    answer_text,
    call_for,
    count_calls,
    draw_question,
    is_solved,
    ready_steps,
    response_field,
    substitute,
)
from pact_lightning.tasks.bundled.tools import TOOL_SCHEMAS, BundledWorld
from pact_lightning.tasks.bundled.world import check_split, generate_world
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Reference, SubAnswer, Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.utils.seeds import python_random

SYSTEM_PROMPT = "Find the answer by calling tools. Give only the final answer in <answer></answer>."
_OPENINGS = ("What is {}?", "Find {}.", "Tell me {}.")
_TOOLS_OFFERED = (4, 7)


class BundledTasks:
    """Tasks of the bundled world.

    Args:
        split: ``train``, ``validation``, ``test``, or ``longer`` (7 or 8 calls, more than any training task).
        count: Number of tasks.
        start: Index of the first one.
        flawed: Share of tasks whose trace is a flawed dialogue instead of the sound expert's: thin reasoning, too
            early answers, now and then a wrong tool. Only the recipe that builds the bundled policy uses this.
    """

    def __init__(self, split: str = "train", count: int = 256, start: int = 0, flawed: float = 0.0) -> None:
        check_split(split)
        if count < 1 or start < 0 or not 0 <= flawed <= 1:
            raise ValueError("bundled tasks need count >= 1, start >= 0 and a flawed share between 0 and 1")
        self.split = split
        self.count = count
        self.start = start
        self.flawed = flawed

    def load(self) -> Sequence[Task]:
        """Generate the tasks."""
        return [make_task(self.split, self.start + offset, self.flawed) for offset in range(self.count)]


def make_task(split: str, index: int, flawed: float = 0.0) -> Task:
    """Make one task; the same arguments always give the same task.

    Args:
        split: One of ``world.SPLITS``.
        index: Number of the task within the split.
        flawed: Probability that the trace is a flawed dialogue.
    """
    world = generate_world(split, index)
    rng = python_random("bundled-task", split, index)
    kind, question, typos = draw_question(world, rng)
    tools = tuple(TOOL_SCHEMAS[name] for name in _offer(question, rng))
    messages = (
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": rng.choice(_OPENINGS).format(question)},
    )
    spec = EnvironmentSpec("pact_lightning.BundledWorld", {"split": split, "index": index})
    prompt = PromptView(f"{split}-{index}", messages, tools, spec)
    environment = BundledWorld(split, index)
    environment.reset(prompt, 0)
    style = FLAWED if rng.random() < flawed else SOUND
    trace = solve(question, environment, rng, style)
    reference = _reference(_corrected(question, typos), environment)
    metadata = {"calls": count_calls(question), "misspelled": bool(typos)}
    return Task(prompt, reference, trace, kind, metadata)


def _offer(question: Expression, rng: random.Random) -> list[str]:
    """Draw the tools that the question needs, and distractors up to a drawn number, in a drawn order."""
    needed = sorted(set(_tools_needed(question)))
    others = [name for name in TOOL_SCHEMAS if name not in needed]
    spare = max(rng.randint(*_TOOLS_OFFERED) - len(needed), 1)
    return rng.sample(needed + rng.sample(others, spare), len(needed) + spare)


def _tools_needed(question: Expression) -> list[str]:
    names = []
    left = question
    while not is_solved(left):
        step = ready_steps(left)[0]
        names.append(call_for(step)["name"])
        left = substitute(left, step, Value(0))
    return names


def _corrected(question: Expression, typos: dict[str, str]) -> Expression:
    for wrong, right in typos.items():
        question = substitute(question, Value(wrong), Value(right))
    return question


def _reference(question: Expression, environment: BundledWorld) -> Reference:
    """Run the most direct calls; return them with what each one finds, and the answer."""
    calls: list[ToolCall] = []
    sub_answers: list[SubAnswer] = []
    left = question
    while not is_solved(left):
        for step in ready_steps(left):
            call = call_for(step)
            payload = json.loads(environment.call(call["name"], call["arguments"]).text)
            value = payload[response_field(step)]
            calls.append(call)
            sub_answers.append(SubAnswer(call["name"], str(value)))
            left = substitute(left, step, Value(value))
    return Reference(answer_text(left), tuple(calls), tuple(sub_answers))
