"""Comparison of variants of PACT on the bundled world: the quickstart's recipe, longer and with the paper's settings.

    python recipes/ablation.py --variants turns user_block --seeds 0 1

Every run has 12 phases at a constant learning rate, with the paper's beta_SFT, and is validated before, after every
fourth phase, and at the end; that a policy gets worse again shows only in a run like that. Runs that are done already
are read and not repeated.
"""

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

RECIPE = Path(__file__).parent / "quickstart.yaml"
METRIC = "val/answer_correct"
MODEL, DATA, TRAINER = "--model.init_args.", "--data.init_args.", "--trainer."
PAPER_LIKE = {
    f"{MODEL}coefficients.sft": "0.1",
    f"{MODEL}optimizer.schedule": "constant",
    f"{TRAINER}max_epochs": "12",
    f"{TRAINER}check_val_every_n_epoch": "4",
}
VARIANTS: dict[str, dict[str, str]] = {
    "turns": {},
    "user_block": {f"{MODEL}trace_template": "user_block"},
    "system_block": {f"{MODEL}trace_template": "system_block"},
    "turns_safe": {f"{MODEL}trace_context": "safe"},
    "turns_no_sft": {f"{MODEL}coefficients.sft": "0"},
    "user_block_no_sft": {f"{MODEL}trace_template": "user_block", f"{MODEL}coefficients.sft": "0"},
    "cross": {f"{MODEL}ratio_context": "cross"},
    "naive_mix": {f"{MODEL}ratio_context": "prompt", f"{MODEL}anchor_probability": "0"},
    "matchtir": {f"{MODEL}anchor_probability": "1"},
}


def run(variant: str, seed: int, learning_rate: float, folder: Path) -> list[float]:
    """One fit; gives the answer correctness of its validations, the one before training first."""
    name = f"{variant}-lr{learning_rate:g}-seed{seed}"
    metrics = folder / name / "run" / "metrics.csv"
    done = folder / name / "done"
    if not done.exists():
        options = PAPER_LIKE | {f"{MODEL}optimizer.learning_rate": str(learning_rate)} | VARIANTS[variant]
        options |= {option: str(seed) for option in (f"{MODEL}seed", f"{MODEL}policy.seed", f"{DATA}seed")}
        options |= {
            "--seed_everything": str(seed),
            f"{TRAINER}default_root_dir": str(folder / name),
            f"{TRAINER}enable_checkpointing": "false",
            f"{TRAINER}callbacks": "pact_lightning.AnnealingCallback",
            f"{TRAINER}logger": "lightning.pytorch.loggers.CSVLogger",
            f"{TRAINER}logger.init_args.save_dir": str(folder),
            f"{TRAINER}logger.init_args.name": name,
            f"{TRAINER}logger.init_args.version": "run",
        }
        arguments = [part for pair in options.items() for part in pair]
        command = [sys.executable, "-m", "pact_lightning.cli.main", "fit", "-c", str(RECIPE), *arguments]
        subprocess.run(command, check=True, env=os.environ | {"COLUMNS": "120"})
        done.touch()
    with metrics.open(newline="", encoding="utf-8") as file:
        return [float(row[METRIC]) for row in csv.DictReader(file) if row.get(METRIC)]


def main() -> None:
    """Run what is asked for and print a row per variant: the mean over the seeds, and every seed's last score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["turns", "user_block", "naive_mix"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    given = parser.parse_args()
    lines = ["| variant | before | 4 phases | 8 phases | 12 phases | each seed's last |", "|---|---|---|---|---|---|"]
    for variant in given.variants:
        scores = [run(variant, seed, given.learning_rate, given.folder) for seed in given.seeds]
        means = " | ".join(f"{mean(column):.1%}" for column in zip(*scores, strict=True))
        lines.append(f"| {variant} | {means} | {', '.join(f'{row[-1]:.1%}' for row in scores)} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
