"""Check of a vLLM engine beside a QLoRA: the mismatch with its base in NF4, as the trainer's, and in 16 bits."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.check_gpu.child import Figures
from benchmarks.check_gpu.quickstart import note_metrics, read_metrics

_SHOWN = ("mismatch/abs_difference", "mismatch/kl", "mismatch/ratio_max", "rollout/seconds", "perf/peak_memory_gib")
_DIFFERENCE = "mismatch/abs_difference"
_RUN = "import sys; from pact_lightning.cli.main import main; main(sys.argv[1:])"


def run(figures: Figures) -> None:
    """Train the quickstart's QLoRA for two phases with either base, each in a process of its own.

    With two phases the engine sleeps, wakes up and takes a second adapter.

    Raises:
        RuntimeError: A run failed, or the trainer's own base is not nearer to it.
    """
    missing = [name for name in ("vllm", "vllm_bnb_plugin") if importlib.util.find_spec(name) is None]
    if missing:
        figures.leave_out(f"not installed: {', '.join(missing)}; pip install 'pact-lightning[vllm]'")
    found: dict[str, float] = {}
    for name, quantized in (("NF4", True), ("16 bits", False)):
        with figures.part(name), tempfile.TemporaryDirectory() as folder:
            overlay = Path(folder) / "overlay.yaml"
            overlay.write_text(json.dumps(_settings(folder, quantized=quantized, card=figures.card)), encoding="utf-8")
            fit = ["fit", "-c", "recipes/quickstart.yaml", "-c", str(overlay)]
            if subprocess.run([sys.executable, "-c", _RUN, *fit], check=False).returncode:
                raise RuntimeError(f"the fit with vLLM's base in {name} failed; its output is above")
            metrics = read_metrics(Path(folder))
            print(f"vLLM's base in {name}:", flush=True)
            found[name] = sum(metrics[_DIFFERENCE]) / len(metrics[_DIFFERENCE])
            figures.note(f"{_DIFFERENCE} with vLLM's base in {name}", found[name])
            note_metrics(figures, metrics, [shown for shown in _SHOWN if shown in metrics])
    if len(found) == 2 and not found["NF4"] < found["16 bits"]:
        raise RuntimeError(f"the mismatch should be smaller with the trainer's own base: {found}")


def _settings(folder: str, *, quantized: bool, card: bool) -> dict[str, object]:
    """Return an overlay, which is YAML since it is JSON."""
    engine = {"quantize_base": quantized, "gpu_memory_utilization": 0.2, "engine_args": {"enforce_eager": True}}
    return {
        "model": {
            "init_args": {
                "policy": {"adapter": "qlora", "dtype": "bfloat16"},
                "sampler": {"class_path": "pact_lightning.VLLMEngine", "init_args": engine},
            }
        },
        "data": {"init_args": {"prompts_per_phase": 8, "prompts_per_step": 4, "rollouts_per_prompt": 4}},
        "trainer": {
            "accelerator": "gpu" if card else "cpu",
            "devices": 1,
            "max_epochs": 2,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "default_root_dir": folder,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": folder}},
            "callbacks": [],
        },
    }
