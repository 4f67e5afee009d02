"""Rollout engine: many prompt-only rollouts at once, each through its own turns of tokens and tool calls.

It receives prompt views, which have no trace field.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields, replace
from functools import partial

from pact_lightning.dialogue.renderer import Renderer
from pact_lightning.environments.protocol import Environment, ToolResult
from pact_lightning.environments.tool_calls import (
    ToolFunction,
    ToolThreads,
    ToolTimeoutError,
    cut_response,
    failure,
    leave_environment,
    left_with,
    refusal_of,
    run_tool,
    start_environment,
    start_failure,
)
from pact_lightning.rollout.conversation import Conversation
from pact_lightning.rollout.samplers.base import Sampler, TurnOutput, TurnRequest
from pact_lightning.types.prompt import PromptView, UserTurn
from pact_lightning.types.tool_call import ParsedCall
from pact_lightning.types.trajectory import Component, RolloutTurn, Segment, StopReason, Trajectory
from pact_lightning.utils.errors import named_failure
from pact_lightning.utils.seeds import derive_seed

_log = logging.getLogger(__name__)

RolloutKey = tuple[int, int]
"""Position of a rollout in a run of the engine: the number of its request, and its sample."""


@dataclass(frozen=True)
class RolloutLimits:
    """Limits of a rollout, and of how many run at the same time.

    Attributes:
        max_turns: Assistant turns per rollout [P]: 10.
        max_new_tokens_per_turn: Tokens of one turn; a turn that reaches it ends the rollout (``max_tokens_turn``). By
            default ``max_trajectory_tokens`` alone limits a turn, as in the paper [P].
        max_trajectory_tokens: Tokens after the prompt, observations included [P]: 23,000 (``max_tokens_trajectory``).
        max_response_characters: Characters of a tool response; a longer one is cut, and says so.
        tool_timeout_s: Seconds that one tool call may take; a longer one becomes an error observation. An environment
            may take as long to start; after that its rollout has failed.
        rows: Rollouts in work at the same time; freed places are refilled.
        tool_threads: Rollouts whose tools run, or whose environments start, at the same time. The calls of one rollout
            run one after the other.
        admit_every: Sampler steps between two admissions of tool responses. Rollouts do not depend on the speed of a
            tool, since responses are waited for at fixed steps.
    """

    max_turns: int = 10
    max_new_tokens_per_turn: int | None = None
    max_trajectory_tokens: int = 23_000
    max_response_characters: int = 20_000
    tool_timeout_s: float = 30.0
    rows: int = 64
    tool_threads: int = 8
    admit_every: int = 6

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A limit is not above 0, with which no rollout could begin or end.
        """
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and not value > 0:
                raise ValueError(f"data.limits.{limit.name} must be above 0, not {value}")


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """Request for ``samples`` rollouts of one prompt; ``seed`` belongs to this prompt and phase."""

    prompt: PromptView
    samples: int
    seed: int


@dataclass(slots=True)
class RolloutStats:
    """Counts and times of a run of the engine.

    Attributes:
        rollouts: Finished rollouts.
        tokens: Sampled tokens.
        tool_calls: Executed calls.
        tool_timeouts: Calls that ran into ``tool_timeout_s``.
        unanswered_calls: Calls that nobody answered, timeouts included.
        environment_failures: Failures or timeouts of an environment's ``reward`` or ``close`` after its rollout.
        tool_seconds: Seconds spent waiting for tools.
        seconds: Seconds in all.
    """

    rollouts: int = 0
    tokens: int = 0
    tool_calls: int = 0
    tool_timeouts: int = 0
    unanswered_calls: int = 0
    environment_failures: int = 0
    tool_seconds: float = 0.0
    seconds: float = 0.0

    def add(self, trajectory: Trajectory) -> None:
        """Count a rollout that is known already; it takes no time."""
        self.rollouts += 1
        self.tokens += len(trajectory.sampled_logps)
        self.tool_calls += trajectory.tool_calls
        self.tool_timeouts += trajectory.tool_timeouts
        self.unanswered_calls += trajectory.unanswered_calls
        self.environment_failures += trajectory.environment_failures


@dataclass(slots=True)
class _Row:
    key: RolloutKey
    trajectory: Trajectory
    prompt: PromptView
    seed: int
    starting: Future[Environment]
    busy: threading.Lock  # held by the one call of the environment that runs
    tokens: int = 0  # after the prompt
    said: Sequence[int] = ()  # the last turn's tokens
    released: int = 0  # user turns after the first
    user: UserTurn | None = None  # answers the last turn, which called no tool
    last_turn: int = 0  # turns at which the rollout ends
    pending: list[Future[ToolResult] | ToolResult] = field(default_factory=list)  # results of the last turn's calls

    @property
    def environment(self) -> Environment:
        return self.starting.result()


class RolloutEngine:
    """Rollouts of a policy in its tools' environments, from prompts alone.

    Args:
        renderer: The policy's renderer.
        limits: Limits of the rollouts.
    """

    def __init__(self, renderer: Renderer, limits: RolloutLimits) -> None:
        self.renderer = renderer
        self.limits = limits

    def run(
        self,
        requests: Sequence[RolloutRequest],
        sampler: Sampler,
        progress: Callable[[RolloutStats], None] | None = None,
        *,
        known: Mapping[RolloutKey, Trajectory] | None = None,
        finished: Callable[[RolloutKey, Trajectory], None] | None = None,
        pause: Callable[[], None] | None = None,
        stats: RolloutStats | None = None,
        conversation: Conversation | None = None,
    ) -> tuple[list[list[Trajectory]], RolloutStats]:
        """Run all rollouts.

        Args:
            requests: Prompts to roll out.
            sampler: The policy.
            progress: Called whenever a rollout has ended.
            known: Rollouts that the same policy has finished before; they are not run again.
            finished: Called with every rollout that ends.
            pause: Called between two steps of the sampler; it may raise to end the run.
            stats: Counts and times of earlier runs, to which this one's are added.
            conversation: Shown each turn as it is made, and asked for a user turn once the prompt has no more.

        Returns:
            The rollouts of every request in order of ``sample``, and the counts and times.

        Raises:
            EnvironmentUnavailableError: An environment says that no rollout can go on.
        """
        done = dict(known or {})
        taken = stats or RolloutStats()
        run = _Run(self.renderer, self.limits, requests, sampler, progress, finished, pause, done, taken, conversation)
        return run.run()


@dataclass
class _Run:
    renderer: Renderer
    limits: RolloutLimits
    requests: Sequence[RolloutRequest]
    sampler: Sampler
    progress: Callable[[RolloutStats], None] | None
    finished: Callable[[RolloutKey, Trajectory], None] | None
    pause: Callable[[], None] | None
    done: dict[RolloutKey, Trajectory]
    stats: RolloutStats
    conversation: Conversation | None = None
    rows: dict[int, _Row] = field(default_factory=dict)
    calling: list[int] = field(default_factory=list)  # rows that wait for tools or the user, in order
    next_row: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        # By number and not by task: a phase that begins a new pass may hold the same task twice.
        keys = [(number, n) for number, request in enumerate(self.requests) for n in range(request.samples)]
        keys = [key for key in keys if key not in self.done]
        asked = {number: self.requests[number].prompt for number, _ in keys}
        self.prompts = {n: tuple(self.renderer.prompt(view.messages, view.tools)) for n, view in asked.items()}
        # The longest prompts first: the cache then begins as wide as prompts will ever make it.
        self.waiting = sorted(keys, key=lambda key: -len(self.prompts[key[0]]))[::-1]
        self.tools = ToolThreads(self.limits.tool_threads, self.limits.tool_timeout_s)

    def run(self) -> tuple[list[list[Trajectory]], RolloutStats]:
        for trajectory in self.done.values():
            self.stats.add(trajectory)
        started = time.perf_counter() - self.stats.seconds
        try:
            while self.waiting or self.rows:
                if self.pause is not None:
                    self.pause()
                self._admit()
                for output in self.sampler.step():
                    self._turn_ended(output)
                self.steps += 1
                self.stats.seconds = time.perf_counter() - started
        finally:
            if self.conversation is not None:  # a user may leave at any time
                for row in self.rows.values():
                    self._leave_environment(row)
        results = [
            [self.done[number, sample] for sample in range(request.samples)]
            for number, request in enumerate(self.requests)
        ]
        return results, self.stats

    def _admit(self) -> None:
        """Take in tool responses and start new rollouts, at fixed steps or when all rows wait."""
        idle = len(self.calling) == len(self.rows)
        if not idle and self.steps % self.limits.admit_every:
            return
        turns = [turn for row in self.calling if (turn := self._next_turn(row)) is not None]
        self.calling = []
        starting: list[_Row] = []
        while self.waiting and len(self.rows) + len(starting) < self.limits.rows:
            starting.append(self._start(*self.waiting.pop()))
        turns += [turn for row in starting if (turn := self._first_turn(row)) is not None]
        if turns:
            self.sampler.submit(turns)

    def _start(self, number: int, sample: int) -> _Row:
        """Start a rollout's environment in a tool thread; those of one admission start at the same time."""
        request = self.requests[number]
        prompt = request.prompt
        trajectory = Trajectory(prompt.id, sample, self.prompts[number])
        busy = threading.Lock()
        begin = partial(start_environment, prompt, derive_seed(request.seed, prompt.id))
        (starting,) = self.tools.submit(busy, [begin])
        seed = derive_seed(request.seed, prompt.id, sample)
        return _Row((number, sample), trajectory, prompt, seed, starting, busy, last_turn=self.limits.max_turns)

    def _first_turn(self, row: _Row) -> TurnRequest | None:
        """Open a rollout's first turn, unless its environment did not start."""
        if (error := row.starting.exception()) is not None:
            row.trajectory.turns.append(RolloutTurn(text="", responses=(start_failure(error),)))
            self._finish(row, StopReason.ENVIRONMENT_FAILED)
            return None
        index = self.next_row
        self.next_row += 1
        self.rows[index] = row
        ids, shared = row.trajectory.prompt_ids, f"{row.prompt.id} {row.key[0]}"  # requests may word a task differently
        return TurnRequest(index, ids, self._budget(row), derive_seed(row.seed, 0), shared_prompt=shared)

    def _budget(self, row: _Row) -> int:
        whole = self.limits.max_trajectory_tokens
        return min(self.limits.max_new_tokens_per_turn or whole, whole - row.tokens)

    def _turn_ended(self, output: TurnOutput) -> None:
        row = self.rows[output.row]
        trajectory, row.said = row.trajectory, output.ids
        before = trajectory.segments[-1].ids if trajectory.segments else trajectory.prompt_ids
        trajectory.segments += self.renderer.turn_segments(output.ids, len(trajectory.turns), before=before)
        trajectory.sampled_logps += output.logps
        turn = self.renderer.read_turn(output.ids, before=before, tools=row.prompt.tools_after(row.released))
        trajectory.turns.append(turn)
        row.tokens += len(output.ids)
        self.stats.tokens += len(output.ids)
        if self.conversation is not None:
            self.conversation.said(turn)
        if not output.finished:
            full = row.tokens >= self.limits.max_trajectory_tokens
            reason = StopReason.MAX_TOKENS_TRAJECTORY if full else StopReason.MAX_TOKENS_TURN
            self._end(output.row, reason)
            return
        row.user = None if turn.parsed else self._next_user(row)
        if not turn.parsed and row.user is None:
            self._end(output.row, StopReason.ANSWERED)
        else:
            row.pending = self._call(row, turn.parsed)
            self.calling.append(output.row)

    def _next_user(self, row: _Row) -> UserTurn | None:
        """Return the user turn that answers a turn without tool calls; ``None`` if there is none, and it has ended."""
        if row.released < len(row.prompt.follow_ups):
            return row.prompt.follow_ups[row.released]
        row.last_turn = len(row.trajectory.turns) + self.limits.max_turns
        return None if self.conversation is None else self.conversation.next_user_turn()

    def _call(self, row: _Row, parsed: Sequence[ParsedCall]) -> list[Future[ToolResult] | ToolResult]:
        """Start a turn's calls; those that cannot be run have their result at once."""
        offered = row.prompt.tool_names_after(row.released)
        pending = [refusal_of(offered, entry) for entry in parsed]
        calls: list[ToolFunction] = [
            partial(run_tool, row.environment, entry.call)
            for entry, refusal in zip(parsed, pending, strict=True)
            if entry.call is not None and refusal is None
        ]
        self.stats.tool_calls += len(calls)
        row.trajectory.tool_calls += len(calls)
        running = iter(self.tools.submit(row.busy, calls) if calls else [])
        return [next(running) if refusal is None else refusal for refusal in pending]

    def _next_turn(self, index: int) -> TurnRequest | None:
        """Append the tool responses or the next user turn, and open the next turn unless a limit ends the rollout."""
        row = self.rows[index]
        trajectory, last = row.trajectory, row.trajectory.turns[-1]
        if row.user is None:
            last = trajectory.turns[-1] = self._with_responses(row, last)
            if self.conversation is not None:
                self.conversation.answered(last)
            ids, component = self.renderer.observation(last.responses, after=row.said), Component.OBSERVATION
        else:
            ids, component = self.renderer.user_turn(row.user, after=row.said), Component.PROMPT
        if len(trajectory.turns) >= row.last_turn:
            self._end(index, StopReason.MAX_TURNS)
            return None
        if row.tokens + len(ids) >= self.limits.max_trajectory_tokens:
            self._end(index, StopReason.MAX_TOKENS_TRAJECTORY)
            return None
        if row.user is not None:
            trajectory.turns[-1] = replace(last, user=row.user)
            row.released += 1
        turn = len(trajectory.turns)
        trajectory.segments.append(Segment(tuple(ids), component, turn - 1))
        row.tokens += len(ids)
        return TurnRequest(index, ids, self._budget(row), derive_seed(row.seed, turn))

    def _with_responses(self, row: _Row, turn: RolloutTurn) -> RolloutTurn:
        results = [self._result(row, entry) for entry in row.pending]
        responses = tuple(cut_response(result.text, self.limits.max_response_characters) for result in results)
        return replace(turn, responses=responses, errors=tuple(result.error for result in results))

    def _result(self, row: _Row, entry: Future[ToolResult] | ToolResult) -> ToolResult:
        if isinstance(entry, ToolResult):
            return entry
        started = time.perf_counter()
        # Asked for and not raised: an exception of a tool, sys.exit() included, must not stop the run.
        error = entry.exception()
        self.stats.tool_seconds += time.perf_counter() - started
        if isinstance(error, ToolTimeoutError):
            self.stats.tool_timeouts += 1
            row.trajectory.tool_timeouts += 1
            result = ToolResult(str(error), error=True, unanswered=True)
        else:
            result = entry.result() if error is None else failure(error)
        self.stats.unanswered_calls += result.unanswered
        row.trajectory.unanswered_calls += result.unanswered
        return result

    def _end(self, index: int, reason: StopReason) -> None:
        row = self.rows.pop(index)
        self.sampler.release(index)
        self._leave_environment(row)
        self._finish(row, reason)

    def _leave_environment(self, row: _Row) -> None:
        """Take the environment's own reward, if it gives one, and close it, within the time limit of a call."""
        reward, failures = left_with(leave_environment(row.environment, self.tools, row.busy))
        row.trajectory.environment_reward = reward
        self.stats.environment_failures += len(failures)
        row.trajectory.environment_failures += len(failures)
        for error in failures:
            said = named_failure(error)
            _log.warning("the environment of task %s failed after its rollout: %s", row.prompt.id, said)

    def _finish(self, row: _Row, reason: StopReason) -> None:
        row.trajectory.stop_reason = reason
        self.done[row.key] = row.trajectory
        self.stats.rollouts += 1
        if self.finished is not None:
            self.finished(row.key, row.trajectory)
        if self.progress is not None:
            self.progress(self.stats)
