"""One phase of PACT for each family: the model's real architecture, tiny and random, and its own chat template."""

from datetime import datetime
from itertools import product

import pytest
import torch
import transformers
from hand_made import quiet_trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("renderers", reason="pip install 'pact-lightning[families]'")
from family_tokenizers import byte_tokenizer, controls_of, real_tokenizer, template_of

from pact_lightning.policy.loading import PolicyConfig
from pact_lightning.rollout.engine import RolloutLimits
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.training.rollout_datamodule import RolloutDataModule
from pact_lightning.update.optimizer import OptimizerConfig

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 8192,
}
LINEAR = {
    "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
GEMMA = {
    "global_head_dim": 64, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
MOE = {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 64, "first_k_dense_replace": 1}
SINKS = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 64}
TIED = {"tie_word_embeddings": True}
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>", "<think>", "</think>")
# config, its changes, control tokens, template, first and last token, renderer
FAMILIES = {
    "Qwen3": ("Qwen3Config", TIED, CHATML, "qwen3", None, "<|im_end|>", "chatml"),
    "Qwen2.5": ("Qwen2Config", {}, CHATML, "qwen2_5", None, "<|im_end|>", "chatml"),
    "Qwen3.5": ("Qwen3_5TextConfig", LINEAR, "qwen3.5", "qwen3_5_think", None, "<|im_end|>", "qwen3.5"),
    "Llama 3": ("LlamaConfig", {}, "llama-3", "llama3_1", "<|begin_of_text|>", "<|eot_id|>", "llama-3"),
    "Gemma 4": ("Gemma4TextConfig", GEMMA, "gemma4", "gemma4_v5", "<bos>", "<turn|>", "gemma4"),
    "GLM-4.5": ("Glm4MoeConfig", MOE, "glm-4.5", "glm4moe", None, "<|endoftext|>", "glm-4.5"),
    "gpt-oss": ("GptOssConfig", SINKS, None, "gptoss", None, None, "gpt-oss"),  # over its real vocabulary
}


class TwoCalls:
    """Tasks whose traces make two calls in a turn, which some families write as two turns."""

    def load(self):
        tasks = BundledTasks("train", 40).load()
        return [task for task in tasks if any(len(turn.calls) > 1 for turn in task.trace.turns)][:2]


def made(name, folder):
    """Save a tiny random model of a family."""
    kind, changes, controls, template, begin, end, _ = FAMILIES[name]
    if not hasattr(transformers, kind):
        pytest.skip(f"this transformers has no {kind}")
    if controls is None:
        tokenizer = real_tokenizer(template)
        tokenizer.chat_template = template_of(template)
    else:
        controls = controls_of(controls) if isinstance(controls, str) else controls
        tokenizer = byte_tokenizer(controls, begin=begin, end=end, template=template_of(template))
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0}
    config = getattr(transformers, kind)(**(SIZES | changes | ends), vocab_size=len(tokenizer))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


ALIKE = {("gpt-oss", "lora"), *((name, "qlora") for name in FAMILIES if name not in ("Qwen3.5", "GLM-4.5"))}
"""Over a large vocabulary; and those whose 4-bit layers are plain ones, as others' are."""


@pytest.mark.parametrize(
    ("name", "adapter"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case in ALIKE)) for case in product(FAMILIES, ("lora", "qlora"))],
)
def test_one_phase_of_pact_and_its_export(name, adapter, tmp_path):
    folder = made(name, tmp_path / "model")
    policy = PolicyConfig(model=str(folder), adapter=adapter, lora_r=4, dtype="float32")
    limits = RolloutLimits(max_turns=2, max_new_tokens_per_turn=12, max_trajectory_tokens=2000, rows=4)
    module = PACTModule(policy=policy, optimizer=OptimizerConfig(1e-2))
    assert module.renderer.family == FAMILIES[name][-1]
    counts = {"prompts_per_phase": 2, "prompts_per_step": 2, "rollouts_per_prompt": 2}
    trainer = quiet_trainer(max_epochs=1, default_root_dir=tmp_path, limit_val_batches=0)
    trainer.fit(module, RolloutDataModule(train=TwoCalls(), **counts, limits=limits))
    moved = [weight for name, weight in module.policy.named_parameters() if "lora_B" in name]
    assert any(bool(weight.abs().sum() > 0) for weight in moved)
    assert all(bool(weight.isfinite().all()) for weight in moved)
    module.export(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages, tools = [{"role": "user", "content": "How far?"}], BundledTasks("train", 1).load()[0].prompt.tools
    text = tokenizer.apply_chat_template(
        messages, tools=list(tools), add_generation_prompt=True, tokenize=False, **module.renderer.template_arguments
    )
    text = text.replace(f"{datetime.now():%Y-%m-%d}", "2025-08-05")  # gpt-oss's template writes today's date
    assert tokenizer.encode(text, add_special_tokens=False) == module.renderer.prompt(messages, tools)
    if adapter == "lora":  # the other is an adapter on its 4-bit base
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape[1] > 2
