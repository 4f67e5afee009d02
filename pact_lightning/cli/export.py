"""Command ``pact-lightning export``: its options, and its help without the seconds that torch takes to import."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pact_lightning.cli.errors import end

_FORMS = ("merged", "adapter", "gguf")


def main(arguments: Sequence[str]) -> None:
    """Run the command; wrong input ends in one sentence and exit status 2.

    Args:
        arguments: The words behind ``export``.
    """
    given = _parser().parse_args(list(arguments))
    from pact_lightning.cli.export_run import export_run

    try:
        sys.stdout.write(export_run(given) + "\n")
    except (ValueError, OSError, ImportError, TypeError) as error:
        end(error, 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pact-lightning export",
        usage="pact-lightning export RUN [OUT] [--to merged|adapter|gguf] [options]",
        description="Writes a run's trained policy as files that transformers, PEFT, vLLM or llama.cpp load: weights, "
        "tokenizer, chat template, generation config and model card.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, such as runs/my/version_0, or a .ckpt")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="output folder (default: RUN/export/FORM)")
    parser.add_argument(
        "--to",
        choices=_FORMS,
        default="merged",
        help="merged: a complete model (default); adapter: only the LoRA; gguf: one file for llama.cpp",
    )
    parser.add_argument(
        "--ckpt_path",
        default="last",
        metavar="FILE",
        help="a checkpoint (default: last, the run's newest complete one)",
    )
    parser.add_argument("--model", help="folder or hub id of the base model (default: where the run had it)")
    parser.add_argument(
        "--push",
        metavar="REPO",
        help="upload to this repository of the Hugging Face hub, made private (default: no upload)",
    )
    parser.add_argument(
        "--weights_only",
        type=_truth,
        default=True,
        metavar="BOOL",
        help="false also reads checkpoints with other objects; only for files you trust (default: true)",
    )
    return parser


def _truth(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, not {word!r}")
    return word.lower() == "true"
