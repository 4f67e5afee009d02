"""The rollout engine: advances many prompt-only rollouts independently through turns of tokens and tool calls."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields, replace
from functools import partial

from pact_lightning.dialogue.rendering import ChatRenderer
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
    stop_where_unavailable,
)
from pact_lightning.rollout.samplers.base import Sampler, TurnOutput, TurnRequest
from pact_lightning.types.prompt import PromptView
from pact_lightning.types.tool_call import ParsedCall
from pact_lightning.types.trajectory import Component, RolloutTurn, Segment, StopReason, Trajectory
from pact_lightning.utils.seeds import derive_seed

_log = logging.getLogger(__name__)

RolloutKey = tuple[int, int]
"""A rollout of a run of the engine: the number of its request, and its sample."""


@dataclass(frozen=True)
class RolloutLimits:
    """Where a rollout ends, and how many run at a time.

    Attributes:
        max_turns: Assistant turns per rollout [P]: 10.
        max_new_tokens_per_turn: Tokens of one turn; a turn that reaches it ends the rollout (``max_tokens_turn``).
        max_trajectory_tokens: Tokens after the prompt, observations included [P]: 23,000 (``max_tokens_trajectory``).
        max_response_characters: A longer tool response is cut, and says so.
        tool_timeout_s: Seconds that one tool call may take, from its start; after that it is an error observation. So
            long may an environment take to start, too; after that its rollout has failed.
        rows: Rollouts in work at the same time; freed places are refilled.
        tool_threads: Rollouts whose tools run, or whose environments start, at the same time; the calls of one rollout
            run one after the other.
        admit_every: Sampler steps between two admissions of tool responses. Responses are waited for at fixed
            steps, so that rollouts do not depend on how fast a tool happens to be.
    """

    max_turns: int = 10
    max_new_tokens_per_turn: int = 1024
    max_trajectory_tokens: int = 23_000
    max_response_characters: int = 20_000
    tool_timeout_s: float = 30.0
    rows: int = 64
    tool_threads: int = 8
    admit_every: int = 6

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: One is not above 0: no rollout could end, or none begin.
        """
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not value > 0:
                raise ValueError(f"data.limits.{limit.name} must be above 0, not {value}")


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """``samples`` rollouts of one prompt; ``seed`` is this prompt's in this phase."""

    prompt: PromptView
    samples: int
    seed: int


@dataclass(slots=True)
class RolloutStats:
    """What a run of the engine took.

    Attributes:
        rollouts: Finished rollouts.
        tokens: Sampled tokens.
        tool_calls: Executed calls.
        tool_timeouts: Calls that ran into ``tool_timeout_s``.
        unanswered_calls: Calls that nobody answered, those over their limit among them.
        environment_failures: Environments whose ``reward`` or ``close`` failed or took too long, after their rollout.
        tool_seconds: Time spent waiting for tools.
        seconds: Time in all.
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
        """Counts a rollout that is known already; it takes no time."""
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
    environment: Environment
    seed: int
    tokens: int = 0
    released: int = 0  # user turns of the prompt's follow-ups
    pending: list[Future[ToolResult] | ToolResult] = field(default_factory=list)
    busy: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class _Starting:
    key: RolloutKey
    trajectory: Trajectory
    prompt: PromptView
    environment: Future[Environment]
    seed: int
    busy: threading.Lock


class RolloutEngine:
    """Runs rollouts from prompts alone: it receives prompt views, which have no trace field.

    Args:
        renderer: The policy's renderer.
        limits: Where rollouts end.
    """

    def __init__(self, renderer: ChatRenderer, limits: RolloutLimits) -> None:
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
    ) -> tuple[list[list[Trajectory]], RolloutStats]:
        """Runs all rollouts.

        Args:
            requests: What to roll out.
            sampler: The policy.
            progress: Called whenever rollouts have ended.
            known: Rollouts that were finished before, by the same policy; they are not run again.
            finished: Called with every rollout that ends.
            pause: Called between two steps of the sampler; it may raise in order to end the run.
            stats: What earlier runs took, to be added to.

        Returns:
            For every request its rollouts in order of ``sample``, and what it took.

        Raises:
            EnvironmentUnavailableError: An environment says that no rollout can go on.
        """
        run = _Run(self, requests, sampler, progress=progress, known=known or {}, finished=finished, pause=pause)
        run.stats = stats or RolloutStats()
        return run.run()


class _Run:
    def __init__(
        self,
        engine: RolloutEngine,
        requests: Sequence[RolloutRequest],
        sampler: Sampler,
        *,
        progress: Callable[[RolloutStats], None] | None,
        known: Mapping[RolloutKey, Trajectory],
        finished: Callable[[RolloutKey, Trajectory], None] | None,
        pause: Callable[[], None] | None,
    ) -> None:
        self.renderer = engine.renderer
        self.limits = engine.limits
        self.sampler = sampler
        self.progress = progress
        self.finished = finished
        self.pause = pause
        # By number and not by task: a phase that begins a new pass may hold the same task twice.
        self.waiting = [
            (number, sample)
            for number, request in enumerate(requests)
            for sample in range(request.samples)
            if (number, sample) not in known
        ]
        self.waiting.reverse()
        self.requests = requests
        self.rows: dict[int, _Row] = {}
        self.calling: list[int] = []  # rows that wait for tools or for the user, in the order in which their turn ended
        self.done: dict[RolloutKey, Trajectory] = dict(known)
        self.stats = RolloutStats()
        self.next_row = 0
        self.steps = 0
        self.tools = ToolThreads(self.limits.tool_threads, self.limits.tool_timeout_s)

    def run(self) -> tuple[list[list[Trajectory]], RolloutStats]:
        for trajectory in self.done.values():
            self.stats.add(trajectory)
        started = time.perf_counter() - self.stats.seconds
        while self.waiting or self.rows:
            if self.pause is not None:
                self.pause()
            self._admit()
            for output in self.sampler.step():
                self._turn_ended(output)
            self.steps += 1
            self.stats.seconds = time.perf_counter() - started
        results = [
            [self.done[number, sample] for sample in range(request.samples)]
            for number, request in enumerate(self.requests)
        ]
        return results, self.stats

    def _admit(self) -> None:
        """At fixed steps: takes in the tool responses, and new rollouts into freed places."""
        idle = len(self.calling) == len(self.rows)
        if not idle and self.steps % self.limits.admit_every:
            return
        turns = [turn for row in self.calling if (turn := self._observed(row)) is not None]
        self.calling = []
        starting: list[_Starting] = []
        while self.waiting and len(self.rows) + len(starting) < self.limits.rows:
            starting.append(self._start(*self.waiting.pop()))
        turns += [turn for rollout in starting if (turn := self._started(rollout)) is not None]
        if turns:
            self.sampler.submit(turns)

    def _start(self, number: int, sample: int) -> _Starting:
        """Makes and resets a rollout's environment off the main thread; those of an admission start side by side."""
        request = self.requests[number]
        prompt = request.prompt
        trajectory = Trajectory(prompt.id, sample, tuple(self.renderer.prompt(prompt.messages, prompt.tools)))
        busy = threading.Lock()
        begin = partial(start_environment, prompt, derive_seed(request.seed, prompt.id))
        (environment,) = self.tools.submit(busy, [begin])
        seed = derive_seed(request.seed, prompt.id, sample)
        return _Starting((number, sample), trajectory, prompt, environment, seed, busy)

    def _started(self, begun: _Starting) -> TurnRequest | None:
        """Opens a rollout's first turn, unless its environment did not start."""
        error = begun.environment.exception()
        if error is not None:
            stop_where_unavailable(error)
            begun.trajectory.turns.append(RolloutTurn(text="", responses=(f"environment failed: {error}",)))
            self._finish(begun.key, begun.trajectory, StopReason.ENVIRONMENT_FAILED)
            return None
        number = self.next_row
        self.next_row += 1
        environment = begun.environment.result()
        row = _Row(begun.key, begun.trajectory, begun.prompt, environment, begun.seed, busy=begun.busy)
        self.rows[number] = row
        ids = begun.trajectory.prompt_ids
        return TurnRequest(number, ids, self._budget(row), derive_seed(row.seed, 0), shared_prompt=row.prompt.id)

    def _budget(self, row: _Row) -> int:
        return min(self.limits.max_new_tokens_per_turn, self.limits.max_trajectory_tokens - row.tokens)

    def _turn_ended(self, output: TurnOutput) -> None:
        row = self.rows[output.row]
        trajectory = row.trajectory
        trajectory.segments += self.renderer.turn_segments(output.ids, len(trajectory.turns))
        trajectory.sampled_logps += output.logps
        turn = self.renderer.read_turn(output.ids)
        trajectory.turns.append(turn)
        row.tokens += len(output.ids)
        self.stats.tokens += len(output.ids)
        if not output.finished:
            full = row.tokens >= self.limits.max_trajectory_tokens
            reason = StopReason.MAX_TOKENS_TRAJECTORY if full else StopReason.MAX_TOKENS_TURN
            self._end(output.row, reason)
        elif not turn.parsed and row.released == len(row.prompt.follow_ups):
            self._end(output.row, StopReason.ANSWERED)
        else:
            row.pending = self._call(row, turn.parsed)
            self.calling.append(output.row)

    def _call(self, row: _Row, parsed: Sequence[ParsedCall]) -> list[Future[ToolResult] | ToolResult]:
        """Starts a turn's calls; those that cannot be run have their result at once."""
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

    def _observed(self, index: int) -> TurnRequest | None:
        """Waits for the row's tools, or releases its next user turn, and opens its next turn unless a limit ends it."""
        row = self.rows[index]
        trajectory, last = row.trajectory, row.trajectory.turns[-1]
        user = None if last.parsed else row.prompt.follow_ups[row.released]
        if user is None:
            last = trajectory.turns[-1] = self._with_responses(row, last)
            ids, component = self.renderer.observation(last.responses), Component.OBSERVATION
        else:
            ids, component = self.renderer.user_turn(user), Component.PROMPT
        if len(trajectory.turns) >= self.limits.max_turns:
            self._end(index, StopReason.MAX_TURNS)
            return None
        if row.tokens + len(ids) >= self.limits.max_trajectory_tokens:
            self._end(index, StopReason.MAX_TOKENS_TRAJECTORY)
            return None
        if user is not None:
            trajectory.turns[-1] = replace(last, user=user)
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
        # Asked for and not raised: what a tool raises, sys.exit() included, must not stop the run.
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
        self._finish(row.key, row.trajectory, reason)

    def _leave_environment(self, row: _Row) -> None:
        """Takes the environment's own reward, where it gives one, and lets it clean up; under the limit of a call."""
        reward, failures = left_with(leave_environment(row.environment, self.tools, row.busy))
        row.trajectory.environment_reward = reward
        self.stats.environment_failures += len(failures)
        row.trajectory.environment_failures += len(failures)
        for error in failures:
            _log.warning("the environment of task %s failed after its rollout: %r", row.prompt.id, error)

    def _finish(self, key: RolloutKey, trajectory: Trajectory, reason: StopReason) -> None:
        trajectory.stop_reason = reason
        self.done[key] = trajectory
        self.stats.rollouts += 1
        if self.finished is not None:
            self.finished(key, trajectory)
        if self.progress is not None:
            self.progress(self.stats)
