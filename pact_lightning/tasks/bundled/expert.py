"""A scripted expert that solves bundled tasks by calling the real tools, and says why at every step.

After each response its reasoning restates what is left to find: a policy that adopts this can go further than any
trace it has seen. Now and then the expert takes a detour or forgets an argument and corrects itself: its traces help
without being the only way.
"""

import json
import random
from dataclasses import dataclass

from pact_lightning.tasks.bundled.questions import (
    Combine,
    Expression,
    Namesake,
    Of,
    Value,
    answer_text,
    call_for,
    is_solved,
    ready_steps,
    response_field,
    substitute,
)
from pact_lightning.tasks.bundled.tools import BundledWorld
from pact_lightning.tasks.bundled.world import PROFILE_FIELDS
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ChunkType, ExpertTrace, ExpertTurn, TurnPattern

_MAX_TURNS = 12


@dataclass(frozen=True, slots=True)
class ExpertStyle:
    """Style of an expert's work; the defaults are the sound expert.

    Attributes:
        restate: Reasoning restates what is left. Without it the reasoning is thin: it names the next step only.
        detour: Probability, per task, that one turn goes astray and is corrected in the next.
        profile: Probability that a personal fact is looked up through ``profile_of`` where that is offered.
        rejection: Probability that the first turn names a tool that is of no use.
        stop: Probability of answering too early, with whatever was found last, per turn once two calls were made.
        wrong_tool: Probability, per turn, of a lookup that does not serve the task and is taken for the right one.
    """

    restate: bool = True
    detour: float = 0.15
    profile: float = 0.1
    rejection: float = 0.1
    stop: float = 0.0
    wrong_tool: float = 0.0


SOUND = ExpertStyle()
FLAWED = ExpertStyle(restate=False, detour=0.05, stop=0.65, wrong_tool=0.06)


class _Run:
    """One expert at work on one task."""

    def __init__(self, question: Expression, environment: BundledWorld, rng: random.Random, style: ExpertStyle) -> None:
        self.left = question
        self.environment = environment
        self.rng = rng
        self.style = style
        self.offered = [str(tool["function"]["name"]) for tool in environment.tools]
        self.turns: list[ExpertTurn] = []
        self.last_value: str | int = ""
        self.failed = False
        self.detour_turn = rng.randrange(3) if rng.random() < style.detour else -1

    def solve(self) -> ExpertTrace:
        while not is_solved(self.left) and len(self.turns) < _MAX_TURNS and not self._stops_early():
            self._turn()
        return ExpertTrace(tuple(self.turns), final=self._final(), source="bundled-expert")

    def _stops_early(self) -> bool:
        calls = sum(len(turn.calls) for turn in self.turns)
        return calls >= 2 and not self.failed and self.rng.random() < self.style.stop

    def _turn(self) -> None:
        steps = ready_steps(self.left)
        chunks = self._reasoning(steps)
        calls = [self._call(step) for step in steps]
        strayed = len(self.turns) == self.detour_turn and self._stray(steps, calls)
        wrong = not strayed and self.rng.random() < self.style.wrong_tool and self._stray_tool(calls)
        results = [self.environment.call(call["name"], call["arguments"]) for call in calls]
        pattern = TurnPattern.POST_OBSERVATION_FOLLOWUP if self.turns else TurnPattern.INITIAL_ATTEMPT
        if self.failed:
            pattern = TurnPattern.RETRY_AFTER_FAILED_CALL
        responses = tuple(result.text for result in results)
        self.turns.append(ExpertTurn(chunks, tuple(calls), responses, pattern))
        self.failed = False
        for position, (step, call, result) in enumerate(zip(steps, calls, results, strict=True)):
            if position == 0 and strayed:
                self.failed = True
            else:
                self._learn(step, call, json.loads(result.text), mistaken=wrong and position == 0)

    def _learn(self, step: Expression, call: ToolCall, payload: dict[str, str | int], *, mistaken: bool) -> None:
        if "error" in payload:
            self.failed = True
            if "did_you_mean" in payload and isinstance(step, Of):
                self.left = substitute(self.left, step, Of(step.relation, Value(payload["did_you_mean"])))
            elif mistaken:
                self.failed = False
                self.left = Value(self.last_value or "unknown")
            return
        wanted = response_field(step)
        if call["name"] == "profile_of" and isinstance(step, Of):
            wanted = step.relation.phrase
        self.last_value = payload[wanted] if wanted in payload else next(iter(payload.values()))
        self.left = substitute(self.left, step, Value(self.last_value))

    def _call(self, step: Expression) -> ToolCall:
        call = call_for(step)
        personal = isinstance(step, Of) and step.relation.phrase in PROFILE_FIELDS
        if personal and "profile_of" in self.offered and self.rng.random() < self.style.profile:
            return ToolCall(name="profile_of", arguments=call["arguments"])
        return call

    def _stray(self, steps: list[Expression], calls: list[ToolCall]) -> bool:
        """Spoil the first call in a way that its response, or a second look, shows."""
        step, call = steps[0], calls[0]
        if "year" in call["arguments"]:
            del call["arguments"]["year"]
            return True
        if isinstance(step, Namesake):
            users = [tool for tool in self.offered if tool in ("employer_of", "spouse_of", "birthplace_of")]
            if users:
                calls[0] = ToolCall(name=self.rng.choice(users), arguments={"person": step.last_name})
                return True
        return self._stray_tool(calls)

    def _stray_tool(self, calls: list[ToolCall]) -> bool:
        """Swap the first call's tool for another one that takes the same arguments, where one is offered."""
        takers = [
            str(tool["function"]["name"])
            for tool in self.environment.tools
            if list(tool["function"]["parameters"]["properties"]) == list(calls[0]["arguments"])
        ]
        takers = [name for name in takers if name not in (calls[0]["name"], "profile_of")]
        if takers:
            calls[0] = ToolCall(name=self.rng.choice(takers), arguments=calls[0]["arguments"])
        return bool(takers)

    def _reasoning(self, steps: list[Expression]) -> tuple[Chunk, ...]:
        what = " and ".join(str(step) for step in steps)
        chunks: list[tuple[str, ChunkType]] = []
        if self.failed:
            chunks.append(("That did not help.", ChunkType.FAILURE_REFLECTION))
        if self.style.restate:
            if self.turns:
                chunks.append((f"Left: {self.left}.", ChunkType.DECISION_SUMMARY))
            else:
                chunks.append((f"Goal: {self.left}.", ChunkType.TASK_RESTATE))
                chunks += self._rejection(steps)
        if self.failed:
            chunks.append((f"Instead: {what}.", ChunkType.FALLBACK_PLAN))
        elif self.turns:
            chunks.append((f"Next: {what}.", ChunkType.TOOL_SELECTION))
        else:
            chunks.append((f"First: {what}.", ChunkType.TOOL_SELECTION))
        return _paragraphs(chunks)

    def _rejection(self, steps: list[Expression]) -> list[tuple[str, ChunkType]]:
        useful = {call_for(step)["name"] for step in steps}
        useless = [name for name in self.offered if name not in useful and name in ("add", "subtract", "larger")]
        if isinstance(self.left, Combine) or not useless or self.rng.random() >= self.style.rejection:
            return []
        return [(f"No use: {self.rng.choice(useless)}.", ChunkType.IRRELEVANT_TOOL_REJECTION)]

    def _final(self) -> ExpertTurn:
        solved = is_solved(self.left)
        answer = answer_text(self.left) if solved else str(self.last_value)
        known = str(self.left) if solved else str(Value(self.last_value))
        text = f"Left: {known}." if self.style.restate else "Done."
        chunks = _paragraphs([(text, ChunkType.FINAL_ANSWER_GROUNDING)])
        return ExpertTurn(chunks, pattern=TurnPattern.FINAL_ANSWER_TURN, answer=f"<answer>{answer}</answer>")


def _paragraphs(chunks: list[tuple[str, ChunkType]]) -> tuple[Chunk, ...]:
    last = len(chunks) - 1
    return tuple(Chunk(text if i == last else text + "\n\n", kind) for i, (text, kind) in enumerate(chunks))


def solve(
    question: Expression, environment: BundledWorld, rng: random.Random, style: ExpertStyle = SOUND
) -> ExpertTrace:
    """Let the expert solve a question in an environment that has been reset.

    Args:
        question: What is left to find at the start, as the user stated it.
        environment: The world in which the tools run.
        rng: Source of the expert's whims.
        style: Style of the expert's work.
    """
    return _Run(question, environment, rng, style).solve()
