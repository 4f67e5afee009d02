"""Privileged trace co-training of multi-turn tool-use agents with Lightning (PACT, arXiv 2606.16215).

The names below are the public ones: recipes, task files and programs use them as ``pact_lightning.NAME``, so that
files may move without a user noticing. Each is imported from its home on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pact_lightning.callbacks.annealing import AnnealingCallback as AnnealingCallback
    from pact_lightning.callbacks.collapse import CollapseMonitor as CollapseMonitor
    from pact_lightning.callbacks.export import ExportPolicy as ExportPolicy
    from pact_lightning.callbacks.feedback import FeedbackCallback as FeedbackCallback
    from pact_lightning.callbacks.live_panel import LivePanel as LivePanel
    from pact_lightning.callbacks.log_samples import LogSamples as LogSamples
    from pact_lightning.callbacks.mixture import MixtureCallback as MixtureCallback
    from pact_lightning.callbacks.privilege_gap import PrivilegeGap as PrivilegeGap
    from pact_lightning.callbacks.trackio_logger import TrackioLogger as TrackioLogger
    from pact_lightning.credit.group import CreditConfig as CreditConfig
    from pact_lightning.environments.checker.checker import check_environment as check_environment
    from pact_lightning.environments.functions import CallableTools as CallableTools
    from pact_lightning.environments.functions import FunctionEnvironment as FunctionEnvironment
    from pact_lightning.environments.mcp.environment import MCPEnvironment as MCPEnvironment
    from pact_lightning.environments.protocol import Environment as Environment
    from pact_lightning.environments.protocol import EnvironmentUnavailableError as EnvironmentUnavailableError
    from pact_lightning.environments.protocol import ToolResult as ToolResult
    from pact_lightning.environments.sandbox.code_tools import CodeToolEnvironment as CodeToolEnvironment
    from pact_lightning.environments.trl_style import TRLEnvironment as TRLEnvironment
    from pact_lightning.metrics.evaluation import RolloutMetric as RolloutMetric
    from pact_lightning.metrics.solve import AnswerCorrectness as AnswerCorrectness
    from pact_lightning.metrics.solve import SolveRate as SolveRate
    from pact_lightning.metrics.tool_use import ToolUse as ToolUse
    from pact_lightning.metrics.turn_reward import TurnReward as TurnReward
    from pact_lightning.objectives.aggregation import AggregationConfig as AggregationConfig
    from pact_lightning.objectives.annealing import AnnealingSchedule as AnnealingSchedule
    from pact_lightning.objectives.cispo import CISPO as CISPO
    from pact_lightning.objectives.gap_weighted import GapWeighted as GapWeighted
    from pact_lightning.objectives.gspo import GSPO as GSPO
    from pact_lightning.objectives.objective import Objective as Objective
    from pact_lightning.objectives.objective import RolloutTokens as RolloutTokens
    from pact_lightning.objectives.opsd import OPSD as OPSD
    from pact_lightning.objectives.pact import Coefficients as Coefficients
    from pact_lightning.objectives.pi_distill import PiDistill as PiDistill
    from pact_lightning.objectives.rlsd import RLSD as RLSD
    from pact_lightning.objectives.sft_config import SFTConfig as SFTConfig
    from pact_lightning.objectives.surrogate import ClipConfig as ClipConfig
    from pact_lightning.objectives.turnsight import TurnSight as TurnSight
    from pact_lightning.policy.loading import PolicyConfig as PolicyConfig
    from pact_lightning.resume.last_checkpoint import evaluated_checkpoint as evaluated_checkpoint
    from pact_lightning.resume.last_checkpoint import last_checkpoint as last_checkpoint
    from pact_lightning.rollout.engine import RolloutLimits as RolloutLimits
    from pact_lightning.rollout.samplers.vllm.engine import VLLMEngine as VLLMEngine
    from pact_lightning.rollout.samplers.vllm.server import VLLMServer as VLLMServer
    from pact_lightning.tasks.bfcl.environment import BFCLEnvironment as BFCLEnvironment
    from pact_lightning.tasks.bfcl.score import MultiTurnAccuracy as MultiTurnAccuracy
    from pact_lightning.tasks.bfcl.tasks import BFCLTasks as BFCLTasks
    from pact_lightning.tasks.bundled.tasks import BundledTasks as BundledTasks
    from pact_lightning.tasks.bundled.tools import BundledWorld as BundledWorld
    from pact_lightning.tasks.ftrl.tasks import FTRLTasks as FTRLTasks
    from pact_lightning.tasks.hub import HubTasks as HubTasks
    from pact_lightning.tasks.jsonl import JsonlTasks as JsonlTasks
    from pact_lightning.tasks.jsonl import write_jsonl as write_jsonl
    from pact_lightning.tasks.toolhop.metric import ToolHopCorrectness as ToolHopCorrectness
    from pact_lightning.tasks.toolhop.tasks import ToolHopTasks as ToolHopTasks
    from pact_lightning.tasks.trl_rows import TRLRowTasks as TRLRowTasks
    from pact_lightning.training.evaluation import EvaluationConfig as EvaluationConfig
    from pact_lightning.training.functions import evaluate as evaluate
    from pact_lightning.training.functions import fit as fit
    from pact_lightning.training.functions import roll_out as roll_out
    from pact_lightning.training.matched_norm import MatchedNorm as MatchedNorm
    from pact_lightning.training.pact_module import PACTModule as PACTModule
    from pact_lightning.training.policy_module import PolicyModule as PolicyModule
    from pact_lightning.training.rollout_datamodule import RolloutDataModule as RolloutDataModule
    from pact_lightning.training.sft_module import SFTModule as SFTModule
    from pact_lightning.training.task_datamodule import TaskDataModule as TaskDataModule
    from pact_lightning.training.trace_datamodule import TraceDataModule as TraceDataModule
    from pact_lightning.types.prompt import EnvironmentSpec as EnvironmentSpec
    from pact_lightning.types.prompt import PromptView as PromptView
    from pact_lightning.types.prompt import UserTurn as UserTurn
    from pact_lightning.types.task import Reference as Reference
    from pact_lightning.types.task import Task as Task
    from pact_lightning.types.task import TaskSource as TaskSource
    from pact_lightning.types.tool_call import ToolCall as ToolCall
    from pact_lightning.types.trace import ExpertTrace as ExpertTrace
    from pact_lightning.types.trace import ExpertTurn as ExpertTurn
    from pact_lightning.types.trajectory import Trajectory as Trajectory
    from pact_lightning.update.optimizer import OptimizerConfig as OptimizerConfig

_HOMES = {
    "AnnealingCallback": "callbacks.annealing",
    "CollapseMonitor": "callbacks.collapse",
    "ExportPolicy": "callbacks.export",
    "FeedbackCallback": "callbacks.feedback",
    "LivePanel": "callbacks.live_panel",
    "LogSamples": "callbacks.log_samples",
    "MixtureCallback": "callbacks.mixture",
    "PrivilegeGap": "callbacks.privilege_gap",
    "TrackioLogger": "callbacks.trackio_logger",
    "CreditConfig": "credit.group",
    "check_environment": "environments.checker.checker",
    "CallableTools": "environments.functions",
    "FunctionEnvironment": "environments.functions",
    "MCPEnvironment": "environments.mcp.environment",
    "Environment": "environments.protocol",
    "EnvironmentUnavailableError": "environments.protocol",
    "ToolResult": "environments.protocol",
    "CodeToolEnvironment": "environments.sandbox.code_tools",
    "TRLEnvironment": "environments.trl_style",
    "RolloutMetric": "metrics.evaluation",
    "AnswerCorrectness": "metrics.solve",
    "SolveRate": "metrics.solve",
    "ToolUse": "metrics.tool_use",
    "TurnReward": "metrics.turn_reward",
    "AggregationConfig": "objectives.aggregation",
    "AnnealingSchedule": "objectives.annealing",
    "CISPO": "objectives.cispo",
    "GapWeighted": "objectives.gap_weighted",
    "GSPO": "objectives.gspo",
    "Objective": "objectives.objective",
    "RolloutTokens": "objectives.objective",
    "OPSD": "objectives.opsd",
    "Coefficients": "objectives.pact",
    "RLSD": "objectives.rlsd",
    "SFTConfig": "objectives.sft_config",
    "ClipConfig": "objectives.surrogate",
    "PiDistill": "objectives.pi_distill",
    "TurnSight": "objectives.turnsight",
    "PolicyConfig": "policy.loading",
    "evaluated_checkpoint": "resume.last_checkpoint",
    "last_checkpoint": "resume.last_checkpoint",
    "RolloutLimits": "rollout.engine",
    "VLLMEngine": "rollout.samplers.vllm.engine",
    "VLLMServer": "rollout.samplers.vllm.server",
    "BFCLEnvironment": "tasks.bfcl.environment",
    "MultiTurnAccuracy": "tasks.bfcl.score",
    "BFCLTasks": "tasks.bfcl.tasks",
    "BundledTasks": "tasks.bundled.tasks",
    "BundledWorld": "tasks.bundled.tools",
    "FTRLTasks": "tasks.ftrl.tasks",
    "HubTasks": "tasks.hub",
    "JsonlTasks": "tasks.jsonl",
    "write_jsonl": "tasks.jsonl",
    "ToolHopCorrectness": "tasks.toolhop.metric",
    "ToolHopTasks": "tasks.toolhop.tasks",
    "TRLRowTasks": "tasks.trl_rows",
    "EvaluationConfig": "training.evaluation",
    "evaluate": "training.functions",
    "fit": "training.functions",
    "roll_out": "training.functions",
    "MatchedNorm": "training.matched_norm",
    "PACTModule": "training.pact_module",
    "PolicyModule": "training.policy_module",
    "RolloutDataModule": "training.rollout_datamodule",
    "SFTModule": "training.sft_module",
    "TaskDataModule": "training.task_datamodule",
    "TraceDataModule": "training.trace_datamodule",
    "EnvironmentSpec": "types.prompt",
    "PromptView": "types.prompt",
    "UserTurn": "types.prompt",
    "Reference": "types.task",
    "Task": "types.task",
    "TaskSource": "types.task",
    "ToolCall": "types.tool_call",
    "ExpertTrace": "types.trace",
    "ExpertTurn": "types.trace",
    "Trajectory": "types.trajectory",
    "OptimizerConfig": "update.optimizer",
}

__all__ = list(_HOMES)  # names are strings


def __getattr__(name: str) -> Any:
    """Import a public name from its home, on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, those not yet imported included."""
    return sorted({*globals(), *_HOMES})
