"""Command ``pact-lightning chat``: its options, and its help without the seconds that torch takes to import."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pact_lightning.cli.errors import end


def main(arguments: Sequence[str]) -> None:
    """Run the command; wrong input ends in one sentence and exit status 2.

    Args:
        arguments: The words behind ``chat``.
    """
    given = list(arguments)
    run = given.pop(0) if given and not given[0].startswith("-") else None
    own, of_predict = _parser().parse_known_args(given)
    try:
        if own.task is not None and own.tools_of is not None:
            raise ValueError("--task replays a task with its own tools; leave --tools_of out")
        if run is not None:
            of_predict = [*recipe_of_run(Path(run), of_predict), *of_predict]
        elif not of_predict:
            raise ValueError("give the folder of a run, or a recipe with -c recipe.yaml")
    except (ValueError, OSError) as error:
        end(error, 2)
    from pact_lightning.cli.chat_session import talk

    talk(own.task, own.tools_of, of_predict)


def recipe_of_run(folder: Path, further: Sequence[str]) -> list[str]:
    """Return the options that name a run's recipe and its newest checkpoint.

    Args:
        folder: The run's folder.
        further: Options behind it; a checkpoint that they name is taken.

    Raises:
        FileNotFoundError: It is no folder of a fit, or has no checkpoint.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        runs = sorted(str(found.parent) for found in folder.glob("*/config.yaml"))
        hint = f"; did you mean {runs[-1]}?" if runs else ""
        raise FileNotFoundError(f"{folder} is not the folder of a fit: it has no config.yaml{hint}")
    if any(word.partition("=")[0] == "--ckpt_path" for word in further):
        return ["-c", str(config)]
    from pact_lightning.resume.checkpoint_files import newest_whole

    found = newest_whole((folder / "checkpoints").glob("*.ckpt"), put_aside=False)
    if found is None:
        raise FileNotFoundError(f"{folder} has no complete checkpoint; give one with --ckpt_path")
    return ["-c", str(config), "--ckpt_path", str(found[0])]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pact-lightning chat",
        usage="pact-lightning chat RUN [options]\n"
        "       pact-lightning chat -c RECIPE [--ckpt_path last] [options of this command] [options of predict]",
        description="Talks to the agent with its tools, in the prompt format that it was trained in. It reads one "
        "message a line, from the keyboard or a pipe, and shows reasoning, tool calls and responses as they come. "
        "/new begins a new conversation; Ctrl-D or Ctrl-C ends it.",
        epilog="RUN is the folder of a fit, whose newest checkpoint speaks. All other options are those of "
        "`pact-lightning predict`, such as --data.init_args.evaluation.temperature 0.7 (default: greedy) and "
        "--data.init_args.limits.max_turns (per message).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--task", metavar="ID", help="replay this task of the recipe's data, then go on from there (default: none)"
    )
    parser.add_argument(
        "--tools_of",
        metavar="ID",
        help="take system prompt, tools and environment from this task (default: the first one)",
    )
    return parser
