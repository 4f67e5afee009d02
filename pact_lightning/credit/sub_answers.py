"""Whether a tool response holds an expected answer, by FTRL's rule."""

from collections.abc import Sequence


def answer_in_response(answer: str, response: str) -> bool:
    """Whether every ``", "``-separated piece of ``answer`` is in ``response``, case and commas aside [C].

    >>> answer_in_response("Brazil, China", '{"parties": ["China", "Brazil"]}')
    True
    >>> answer_in_response("1,500,000", "1500000 hectares"), answer_in_response("12", "1.2")
    (True, False)
    """
    text = plain(response)
    return all(plain(piece) in text for piece in answer.split(", "))


def first_solved(tool: str, response: str, still_open: Sequence[tuple[str, str]]) -> int | None:
    """Which open answer a call solves: the first one of its own tool that its response holds [C].

    Args:
        tool: Name of the called tool.
        response: What it returned.
        still_open: Tool and answer of every open sub-question.

    Returns:
        Its place in ``still_open``, or ``None`` where the call solves none.
    """
    for index, (own_tool, answer) in enumerate(still_open):
        if own_tool == tool and answer_in_response(answer, response):
            return index
    return None


def plain(text: str) -> str:
    """Lower case, without commas [C]."""
    return text.lower().replace(",", "")
