"""Update step for the benchmarks: a model with random weights, one prompt of exact lengths, and its two updates.

Prompt, trace and rollouts are real objects of the package; filler words bring them to the wanted number of tokens.
Both sides get the same weights and the same token ids of prompt and rollouts.
"""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pact_lightning.credit.group import Group
from pact_lightning.objectives.pact import Coefficients
from pact_lightning.policy.attention.choice import AttentionPath
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.policy.packing import Block, Pack, PackingMode, pack_blocks
from pact_lightning.traces.tokens import render_trace
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.task import Task
from pact_lightning.types.tool_call import ToolCall
from pact_lightning.types.trace import Chunk, ExpertTrace, ExpertTurn
from pact_lightning.types.trajectory import Component, Segment, Trajectory
from pact_lightning.update.layout import ScoringBlocks, ScoringJob, head_masks, lay_out

THREADS = 2

HIDDEN_512: dict[str, int] = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 10_880,
}
"""Qwen3-1.7B's proportions: MLP 3x hidden, two query heads a key head, the tied head 18 % of the weights."""

HIDDEN_256: dict[str, int] = {
    **HIDDEN_512,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Half as wide, with three layers, for long sequences."""

TWO_MILLION: dict[str, int] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 2_720,
}
"""The same proportions at 1.9 M parameters."""

_ORDINARY_IDS = 1_000  # below the control tokens of the bundled tokenizer
_TRACE_TURNS = 4


@dataclass(frozen=True)
class Lengths:
    """Tokens of the one prompt, of its trace and of every rollout.

    Attributes:
        prompt: Tokens of ``x``.
        trace: Tokens of ``h*``.
        response: Tokens of every rollout, all of them the policy's.
        samples: Rollouts ``K``.
    """

    prompt: int = 1024
    trace: int = 1024
    response: int = 256
    samples: int = 8


@dataclass
class UpdateCase:
    """Folder of a model, and one group.

    Attributes:
        sizes: Fields of the Qwen3 config.
        folder: Folder for the model and the bundled tokenizer.
        lengths: Tokens of the parts.
        dtype: Type of the saved weights.
        weights: Whether there are any; else the folder has the model's configuration alone.
    """

    sizes: dict[str, int]
    folder: Path
    lengths: Lengths = field(default_factory=Lengths)
    dtype: Literal["float32", "bfloat16"] = "float32"
    weights: bool = True

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        sizes: dict[str, Any] = dict(self.sizes)
        positions = max(8192, self.lengths.prompt + self.lengths.trace + self.lengths.response)
        config = Qwen3Config(**sizes, tie_word_embeddings=True, max_position_embeddings=positions, dtype=self.dtype)
        config.architectures = [Qwen3ForCausalLM.__name__]
        factory: Any = Qwen3ForCausalLM  # untyped
        saved = factory._from_config(config, dtype=getattr(torch, self.dtype)) if self.weights else config
        saved.save_pretrained(self.folder)
        for file in Path(load_tokenizer(PolicyConfig()).name_or_path).glob("tokenizer*"):
            shutil.copy(file, self.folder)

    def ours(
        self,
        *,
        trace: bool,
        packing: PackingMode = "shared_prefix",
        attention: AttentionPath = "auto",
        policy: dict[str, Any] | None = None,
        loaded: Any = None,
        max_tokens: int = 32_768,
    ) -> tuple[PACTModule, Callable[[], float]]:
        """Make this package's forward and backward of one prompt, with KL and entropy off as in TRL's defaults.

        Args:
            trace: Trace-conditioned RL and SFT (``z = 0``), or the prompt-only surrogate (``z = 1``).
            packing: Packing of the prompt.
            attention: Attention of packed rows.
            policy: Further fields of the policy; without them full weights are trained.
            loaded: The policy, where it is not to be loaded from the folder.
            max_tokens: Tokens of one forward, or of one prompt with its trace and a rollout, if they are more.

        Returns:
            The module, and a function that makes an update's gradients and returns its loss.
        """
        module = PACTModule(
            policy=PolicyConfig(
                **({"model": str(self.folder), "adapter": "full", "dtype": self.dtype} | (policy or {}))
            ),
            coefficients=Coefficients(sft=0.1, kl=0.0, entropy=0.0),
            anchor_probability=0.0 if trace else 1.0,
            packing=packing,
            attention=attention,
            max_tokens_per_forward=max(max_tokens, self.lengths.prompt + self.lengths.trace + self.lengths.response),
        )
        module.policy = loaded
        module.configure_model()
        module.to("cuda" if torch.cuda.is_available() else "cpu")
        group = self.group(module)
        module.prepare_phase([group], optimizer_steps=1)
        if (group.anchored is None) != trace:
            raise RuntimeError(
                f"the prompt went to the anchor ({group.anchored}); the row would measure something else"
            )

        def update() -> float:
            module.model.zero_grad()
            _, sums = module.accumulate_gradients([group], torch.autograd.backward)
            return sums["loss"]

        return module, update

    def packs(self, module: PACTModule) -> list[Pack]:
        """Return the packs of one update."""
        _, layout = self._laid_out(module)
        return pack_blocks(layout.blocks, module.max_tokens_per_forward, module.packing)

    def blocks(self, module: PACTModule) -> list[Block]:
        """Return the blocks of one update."""
        return self._laid_out(module)[1].blocks

    def head_tokens(self, module: PACTModule) -> int:
        """Count the tokens at which an update runs the head."""
        plans, layout = self._laid_out(module)
        packs = pack_blocks(layout.blocks, module.max_tokens_per_forward, module.packing)
        return sum(int(mask.sum()) for pack in packs for mask in head_masks(plans, layout, pack))

    def _laid_out(self, module: PACTModule) -> tuple[list[ScoringJob], ScoringBlocks]:
        group = self.group(module)
        module.prepare_phase([group], optimizer_steps=1)
        plans = [module._job(group)]
        return plans, lay_out(plans)

    def group(self, module: PACTModule) -> Group:
        """Return the prompt with its K rollouts of random ids and random advantages."""
        task = self._task(module)
        prompt = tuple(module.contexts.prompt(task).tolist())
        draw = random.Random(0)
        trajectories = []
        for sample in range(self.lengths.samples):
            ids = tuple(draw.randrange(_ORDINARY_IDS) for _ in range(self.lengths.response))
            trajectories.append(Trajectory(task.id, sample, prompt, [Segment(ids, Component.ANSWER, 0)]))
        rewards = [[float(sample % 3)] for sample in range(self.lengths.samples)]
        advantages = [[draw.gauss(0.0, 1.0)] for _ in trajectories]
        return Group(task, trajectories, rewards, advantages, zero_variance=False)

    def trl(self, group: Group, *, qlora: bool = False, loaded: Any = None) -> tuple[Any, Callable[[], float]]:
        """Make TRL's loss and backward by its own trainer, on the same rollouts without any trace.

        Args:
            group: The rollouts.
            qlora: A LoRA on 4-bit weights with gradient checkpointing, instead of full weights without.
            loaded: The base, where it is not to be loaded from the folder.
        """
        import trl
        from datasets import Dataset

        trl_package: Any = trl
        config = trl_package.GRPOConfig(
            output_dir=str(self.folder / "trl"),
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=qlora,
            loss_type="grpo",
            per_device_train_batch_size=self.lengths.samples,
            num_generations=self.lengths.samples,
            max_completion_length=self.lengths.response,
            model_init_kwargs=None
            if loaded is not None
            else {"dtype": self.dtype} | ({"quantization_config": nf4_settings()} if qlora else {}),
            report_to=[],
        )
        trainer = trl_package.GRPOTrainer(
            model=str(self.folder) if loaded is None else loaded,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "unused"}]),
            processing_class=load_tokenizer(PolicyConfig(model=str(self.folder))),
            peft_config=_lora() if qlora else None,
        )
        trainer.current_gradient_accumulation_steps = 1  # set by the training loop, which does not run here
        trainer.model.train()
        prompts = torch.tensor([trajectory.prompt_ids for trajectory in group.trajectories])
        completions = torch.stack([torch.from_numpy(trajectory.ids()) for trajectory in group.trajectories])
        device = trainer.model.device
        inputs = {
            "prompt_ids": prompts.to(device),
            "prompt_mask": torch.ones_like(prompts, device=device),
            "completion_ids": completions.to(device),
            "completion_mask": torch.ones_like(completions, device=device),
            "advantages": torch.tensor([turns[0] for turns in group.advantages], device=device),
        }

        def update() -> float:
            trainer.model.zero_grad()
            loss = trainer._compute_loss(trainer.model, inputs)
            torch.autograd.backward(loss)
            return float(loss.detach())

        return trainer, update

    def _task(self, module: PACTModule) -> Task:
        def prompt_view(words: str) -> PromptView:
            messages = ({"role": "user", "content": words},)
            return PromptView("bench", messages, (), EnvironmentSpec("unused"))

        view = prompt_view(
            _words(self.lengths.prompt, lambda words: len(module.contexts.prompt(Task(prompt_view(words)))))
        )
        make = partial(_trace, self.lengths.trace)
        last = _words(self.lengths.trace, lambda words: len(render_trace(module.renderer, make(words)).ids))
        return Task(view, trace=make(last))


def nf4_settings() -> Any:
    """Return transformers' settings of the package's 4-bit weights."""
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig  # untyped
    return make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def _trace(tokens: int, last_response: str) -> ExpertTrace:
    """Make turns of reasoning, call and response, about half supervised; the last response fills the length."""
    reasoning, response = tokens // _TRACE_TURNS // 2, tokens // _TRACE_TURNS // 5
    turns = []
    for number in range(_TRACE_TURNS):
        call: ToolCall = {"name": "look_up", "arguments": {"query": f"a b c d {number}"}}
        text = last_response if number == _TRACE_TURNS - 1 else _repeat(response)
        turns.append(ExpertTurn((Chunk(_repeat(reasoning)),), (call,), (text,)))
    return ExpertTrace(tuple(turns))


def _repeat(times: int) -> str:
    return " ".join(["a"] * times)


def _words(tokens: int, length: Callable[[str], int]) -> str:
    """Return filler whose rendering has exactly so many tokens."""
    times = 0
    for _ in range(10):
        missing = tokens - length(_repeat(times))
        if not missing:
            return _repeat(times)
        times = max(0, times + missing)  # a word is a token
    raise ValueError(f"no filler makes {tokens} tokens; the fixed parts are longer")


def shape_settings(case: UpdateCase) -> dict[str, Any]:
    """Return the settings of a row about this case."""
    return {"unit": "s", "dtype": "float32", "model": json.dumps(case.sizes), **vars(case.lengths)}
