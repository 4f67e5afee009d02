"""Export of a run at the command line: its checkpoint found, checked, and written in the form that is asked for."""

import argparse
from pathlib import Path

from transformers import AutoTokenizer

from pact_lightning.cli.fit import silence_libraries
from pact_lightning.export.card import base_name
from pact_lightning.export.folder import check_folder, whole_folder, write_export, write_rest
from pact_lightning.export.gguf_file import check_gguf, write_gguf
from pact_lightning.export.push import check_push, push
from pact_lightning.export.trained import TrainedPolicy, find_checkpoint, read_trained, run_of
from pact_lightning.policy.loading import policy_source
from pact_lightning.policy.saving import check_form

GGUF = "model.gguf"


def export_run(given: argparse.Namespace) -> str:
    """Export a run's policy, and say where it is.

    Args:
        given: The command's options.

    Raises:
        ValueError: The run's policy cannot be had in this form.
        TypeError: Its checkpoint holds more than weights and plain values.
        OSError: Something is not there, or in the way.
        ImportError: A package is missing.
    """
    silence_libraries()
    named = None if given.ckpt_path == "last" else Path(given.ckpt_path)
    checkpoint = named or find_checkpoint(given.run, given.weights_only)
    run = run_of(checkpoint) if given.run.is_file() else given.run
    trained = read_trained(checkpoint, run, model=given.model, weights_only=given.weights_only)
    folder = run / "export" / given.to if given.out is None else given.out
    name = given.push or f"{run.resolve().parent.name}-{run.name}"
    policy_source(trained.config)
    check_form(trained.config, given.to)
    check_folder(folder, trained.config)
    if given.to == "gguf":
        check_gguf(trained.config)
    if given.push:
        check_push(given.push, given.to, trained.config)
    if given.to == "gguf":
        _write_gguf(trained, folder, name)
    else:
        write_export(trained, folder, given.to, name=name)
    lines = [f"exported {checkpoint} ({trained.steps} optimiser steps on {base_name(trained.config)}) to {folder}"]
    if given.push:
        lines.append(f"pushed to {push(folder, given.push)}")
    return "\n".join(lines)


def _write_gguf(trained: TrainedPolicy, folder: Path, name: str) -> None:
    with whole_folder(folder) as partial:
        merged = partial / "merged"
        write_export(trained, merged, "merged")
        write_gguf(merged, AutoTokenizer.from_pretrained(merged), partial / GGUF)
        for file in merged.iterdir():
            file.unlink()
        merged.rmdir()
        write_rest(trained, partial, "gguf", name)
