"""Row ``rollout_vs_vllm``: the rollouts of ``rollout_vs_trl`` by the policy itself, beside the same by vLLM.

vLLM is its build for CPUs, as an engine in the same process (``docs/vllm.md``). One thread computes on either side,
since that build is hundreds of times slower with two. Both sample from the policy with an adapter.
"""

import importlib.util
import os
import sys
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.row import Rounds, Row, SkippedError, alternate, spreads

PYTHON = "PACT_VLLM_PYTHON"
"""Environment variable with the Python that has vLLM, if it is not the one that runs the benchmarks."""

SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Environment that vLLM needs before it is imported."""

_RANK = 8


def run(rounds: Rounds) -> Row:
    """Time both sides on the same prompts and weights; that they sample the same tokens is checked.

    The process goes on as one of the Python named, with vLLM's environment, if it is not that yet.

    Raises:
        SkippedError: No Python with vLLM is known.
    """
    python = os.environ.get(PYTHON) or sys.executable
    if not os.access(python, os.X_OK):
        raise SkippedError(f"{PYTHON} names {python}, which cannot be run")
    if PYTHON in os.environ or not SETTINGS.items() <= os.environ.items():
        others = {name: value for name, value in os.environ.items() if name != PYTHON}
        # Its stdout and its place among the processes of the benchmark stay.
        os.execve(python, [python, *sys.orig_argv[1:]], others | SETTINGS)
    if importlib.util.find_spec("vllm") is None:
        raise SkippedError(f"{python} has no vLLM; name a Python that has its CPU build in {PYTHON}")
    return _compare(rounds)


def _compare(rounds: Rounds) -> Row:
    import torch
    import vllm
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    from benchmarks.rollout_vs_trl import PROMPTS, SAMPLES, Ids, ScriptedRollouts
    from pact_lightning.policy.loading import BUNDLED_FOLDER, PolicyConfig
    from pact_lightning.rollout.samplers.base import LentPolicy, SamplingConfig
    from pact_lightning.rollout.samplers.vllm.engine import VLLMEngine

    torch.set_num_threads(1)
    ours = ScriptedRollouts(AutoTokenizer.from_pretrained(BUNDLED_FOLDER))
    rollouts: dict[str, Ids] = {}
    with TemporaryDirectory() as folder:
        ours.model.save_pretrained(folder)
        # It changes nothing, and costs what an adapter costs.
        adapter = LoraConfig(r=_RANK, lora_alpha=_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        ours.model = get_peft_model(ours.model, adapter).eval()
        policy = PolicyConfig(model=folder, adapter="lora", lora_r=_RANK, dtype="float32")
        lent = LentPolicy(ours.model, policy, tuple(ours.stops))
        engine: dict[str, Any] = {
            "block_size": 32,
            "enforce_eager": True,
            "distributed_executor_backend": "uni",
            "enable_prefix_caching": True,
            "max_num_seqs": PROMPTS * SAMPLES,
        }
        backend = VLLMEngine(max_model_len=4096, engine_args=engine)

        def by_vllm() -> None:
            with backend.lend(lent, SamplingConfig()) as sampler:
                rollouts["peer"] = ours.roll_out(sampler)

        timings = alternate({"ours": lambda: rollouts.update(ours=ours.roll_out()), "peer": by_vllm}, rounds)
    if rollouts["ours"] != rollouts["peer"]:
        raise RuntimeError("the two sides did not roll out the same tokens")
    speeds = {name: ours.sampled_tokens / timing.median for name, timing in timings.items()}
    settings = ours.settings() | {
        "unit": "tokens/s",
        "peer": f"VLLMEngine over vLLM {vllm.__version__}, prefix caching on, eager",
        "tokens_after_prompt": len(rollouts["ours"][0]),
        "adapter": f"LoRA, rank {_RANK}",
        "spread": spreads(timings),
    }
    ours_per_s, peer_per_s = speeds.values()
    done = timings["ours"].rounds
    return Row("rollout_vs_vllm", ours_per_s, peer_per_s, ours_per_s / peer_per_s, 1.0, "at least", done, settings)
