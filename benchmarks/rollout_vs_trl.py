"""Row ``rollout_vs_trl``: rollouts of eight turns with a tool, beside the tool loop of TRL's ``GRPOTrainer``."""

import tempfile
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config

from benchmarks.profile import time_shares
from benchmarks.row import Rounds, Row, alternate, spreads
from benchmarks.scripted_policy import TOOLS, scripted_policy, turn_script
from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.environments.function_schema import function_schema
from pact_lightning.policy.attention.plan import ATTENTION_NAME
from pact_lightning.policy.loading import BUNDLED_FOLDER
from pact_lightning.rollout.engine import RolloutEngine, RolloutLimits, RolloutRequest
from pact_lightning.rollout.samplers.base import Sampler, SamplingConfig
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.types.prompt import EnvironmentSpec, PromptView

PROMPTS, SAMPLES, TURNS, REASONING = 4, 8, 8, 20
# Qwen3-1.7B made small. Its vocabulary of 151,936 is scaled so that the head has the same share of the weights, 18 %.
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2_730,
    "tie_word_embeddings": False,
}
Ids = list[list[int]]


def run(rounds: Rounds) -> Row:
    """Time both sides on the same prompts and weights; that they sample the same tokens is checked."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_FOLDER)
    ours = ScriptedRollouts(tokenizer)
    peer = _Trl(tokenizer, ours.script, ours.messages)
    rollouts: dict[str, Ids] = {}
    timings = alternate(
        {
            "ours": lambda: rollouts.update(ours=ours.roll_out()),
            "peer": lambda: rollouts.update(peer=peer.roll_out()),
        },
        rounds,
    )
    if rollouts["ours"] != rollouts["peer"]:
        raise RuntimeError("the two sides did not roll out the same tokens")
    speeds = {name: ours.sampled_tokens / timing.median for name, timing in timings.items()}
    settings = ours.settings() | {
        "unit": "tokens/s",
        "peer": "GRPOTrainer._generate with its tool loop, transformers backend, sdpa",
        "tokens_after_prompt": len(rollouts["ours"][0]),
        "time_shares_of_ours": time_shares(ours.roll_out),
        "spread": spreads(timings),
    }
    ours_per_s, peer_per_s = speeds.values()
    done = timings["ours"].rounds
    return Row("rollout_vs_trl", ours_per_s, peer_per_s, ours_per_s / peer_per_s, 3.0, "at least", done, settings)


class ScriptedRollouts:
    """Rollouts of a scripted policy by our engine.

    Args:
        tokenizer: The bundled policy's.
        admit_every: Sampler steps between two admissions of tool responses.

    Attributes:
        model: The policy.
        script: Tokens of a turn.
        messages: The prompts.
        stops: Tokens that end a turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, admit_every: int = RolloutLimits.admit_every) -> None:
        self.script = turn_script(tokenizer, REASONING)
        asked = "Find the profession of person {}, then give the year of birth of the spouse."
        self.messages: list[Any] = [[{"role": "user", "content": asked.format(n)}] for n in range(PROMPTS)]
        renderer = ChatRenderer(TextCodec(tokenizer))
        schemas = tuple(function_schema(tool) for tool in TOOLS)
        spec = EnvironmentSpec("pact_lightning.FunctionEnvironment", {"functions": list(TOOLS)})
        views = [PromptView(f"task {n}", tuple(prompt), schemas, spec) for n, prompt in enumerate(self.messages)]
        limits = RolloutLimits(max_turns=TURNS, rows=PROMPTS * SAMPLES, admit_every=admit_every)
        self._engine = RolloutEngine(renderer, limits)
        self._requests = [RolloutRequest(view, SAMPLES, n) for n, view in enumerate(views)]
        self.stops = [renderer.end_of_turn]
        prompt = renderer.prompt(self.messages[0], schemas)
        self._prompt_tokens = len(prompt)
        self.model: Any = scripted_policy(Qwen3Config(**SHAPE), prompt[-1], self.script, ATTENTION_NAME)

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the policy samples."""
        return PROMPTS * SAMPLES * TURNS * len(self.script)

    def settings(self) -> dict[str, Any]:
        """Return the settings of a row."""
        return {
            "rows": PROMPTS * SAMPLES,
            "samples_per_prompt": SAMPLES,
            "turns": TURNS,
            "sampled_tokens_per_turn": len(self.script),
            "prompt": self._prompt_tokens,
            "model": {"architecture": "qwen3", "dtype": "float32", **SHAPE},
        }

    def roll_out(self, sampler: Sampler | None = None) -> Ids:
        """Roll out all prompts by a sampler; by default by the policy itself."""
        sampler = sampler or TransformersSampler(self.model, self.stops, SamplingConfig())
        groups, _ = self._engine.run(self._requests, sampler)
        return [rollout.ids().tolist() for group in groups for rollout in group]


class _Trl:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, script: list[int], messages: list[Any]) -> None:
        from datasets import Dataset
        from trl.chat_template_utils import qwen3_chat_template
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        tokenizer.chat_template = qwen3_chat_template
        opening = tokenizer.encode("\n", add_special_tokens=False)[0]
        config = Qwen3Config(**SHAPE, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        folder = tempfile.TemporaryDirectory()
        arguments = GRPOConfig(
            output_dir=folder.name,
            per_device_train_batch_size=PROMPTS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=4096,
            max_tool_calling_iterations=TURNS - 1,
            beta=0.0,
            bf16=False,
            use_cpu=True,
            report_to=[],
        )
        self._folder = folder
        self._trainer = GRPOTrainer(
            model=scripted_policy(config, opening, script, "sdpa"),
            args=arguments,
            reward_funcs=_no_reward,
            train_dataset=Dataset.from_dict({"prompt": messages}),
            processing_class=tokenizer,
            tools=list(TOOLS),
        )
        self._prompts = [prompt for prompt in messages for _ in range(SAMPLES)]
        # The trainer sets these in the method around _generate, which scores the completions too.
        self._trainer._sync_tool_dicts = [{tool.__name__: tool for tool in TOOLS}] * len(self._prompts)
        self._trainer._async_tool_dicts = [{}] * len(self._prompts)

    def roll_out(self) -> Ids:
        ids: Ids = self._trainer._generate(self._prompts)[1]
        return ids


def _no_reward(completions: list[Any], **_: Any) -> list[float | None]:
    """Stand in for the reward that the trainer asks for; nothing is scored here."""
    return [None] * len(completions)
