"""Command ``pact-lightning plan``: its options, and its help without the seconds that torch takes to import."""

import argparse
import re
from collections.abc import Sequence

from pact_lightning.cli.errors import end

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def main(arguments: Sequence[str]) -> None:
    """Run the command; wrong input ends in one sentence and exit status 2.

    Args:
        arguments: The words behind ``plan``.
    """
    own, of_fit = _parser().parse_known_args(list(arguments))
    try:
        card = _checked(own, of_fit)
    except ValueError as error:
        end(error, 2)
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from pact_lightning.cli.plan_report import print_plan

    try:
        print_plan(own, card, of_fit)
    except (ValueError, OSError, ImportError, TypeError, argparse.ArgumentError, MisconfigurationException) as error:
        end(error, 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pact-lightning plan",
        usage="pact-lightning plan -c RECIPE [-c OVERLAY ...] [options of this command] [options of fit]",
        description="Estimates what a run needs and how long it takes, from its recipe alone: no weights are "
        "loaded, and a recipe for a GPU can be planned without one.",
        epilog="All other arguments are those of `pact-lightning fit`: -c recipe.yaml -c overlay.yaml "
        "--model.init_args....",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--memory",
        help="memory of a card, such as 24GB or 24GiB: prints the largest settings that fit (default: prints none)",
    )
    parser.add_argument("--tflops", type=float, help="TFLOP/s of the device, instead of measuring this machine")
    parser.add_argument("--bandwidth", type=float, help="GB/s of the device's memory, instead of measuring")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="plan for this device instead of the recipe's accelerator"
    )
    parser.add_argument("--prompt", type=int, help="tokens of a prompt, instead of data.max_prompt_tokens")
    parser.add_argument("--trace", type=int, help="tokens of an expert trace, instead of the longest that fits")
    parser.add_argument("--shared", type=int, help="tokens that all prompts have in common at their start (default 0)")
    parser.add_argument("--trajectory", type=int, help="tokens of a rollout, instead of max_trajectory_tokens")
    parser.add_argument("--sampled-share", type=float, help="share of a rollout that the policy samples (default 1)")
    return parser


def _checked(own: argparse.Namespace, of_fit: Sequence[str]) -> int | None:
    """Check the options that need no recipe, and return the card's bytes."""
    for name in ("tflops", "bandwidth"):
        value = getattr(own, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} must be above 0, not {value:g}")
    if not of_fit:
        raise ValueError("give a recipe to plan with -c recipe.yaml")
    return None if own.memory is None else parse_memory(own.memory)


def parse_memory(text: str) -> int:
    """Return the bytes of ``24GB`` or ``80GiB``. A card sold as 24 GB has 24 GiB; say GiB where you mean it.

    Raises:
        ValueError: It is no such size.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-zA-Z]+)", text.strip())
    if found is None or found[2].lower() not in _UNITS or float(found[1]) <= 0:
        raise ValueError(f"--memory must be a size such as 24GB or 80GiB, not {text!r}")
    return int(float(found[1]) * _UNITS[found[2].lower()])
