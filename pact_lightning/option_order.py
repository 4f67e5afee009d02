"""On a command line, recipes come first and single options behind them."""

from collections.abc import Sequence

_RECIPE = ("-c", "--config")
_FREE = ("--help", "--print_config")


def check_option_order(arguments: Sequence[str]) -> None:
    """Refuses options in front of a recipe: whatever it says of the same field would override them, without a word.

    Args:
        arguments: The command line, from the verb on.

    Raises:
        ValueError: There is one; the sentence says which, and what to do.
    """
    recipes = [
        number
        for number, word in enumerate(arguments)
        if word in _RECIPE or word.startswith(tuple(f"{option}=" for option in _RECIPE))
    ]
    if not recipes:
        return
    for word in arguments[: recipes[-1]]:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in (*_RECIPE, *_FREE):
            raise ValueError(
                f"{option} stands in front of a recipe ({' '.join(arguments[recipes[-1] : recipes[-1] + 2])}), which "
                "would override it wherever it names the same field; put options behind the recipes"
            )
