"""Scripted policy: random weights that call a tool in every turn, whoever samples from them.

Only its head is chosen: the row of each token of the script holds the embedding of the token before it. Embeddings
outweigh the random layers, and after each token of the script the next one is all but certain. Both sides of a
benchmark then sample the same tokens, and neither is told which.
"""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

CALL = ('{"name": "', "profile_of", '", "arguments": {"', "person", '": "', "singer", '"}}')
"""Pieces of a call of ``profile_of(person="singer")``, each one token of the bundled policy's tokenizer."""


def profile_of(person: str) -> str:
    """Look up what is known about a person.

    Args:
        person: The person's name.
    """
    return (
        f"The {person} was born in the year 58 in a place with 75 organisations. The spouse is a painter, the employer "
        "is an organisation with headquarters in the birthplace of the mayor, and the author of the last publication "
        "is the founder of the publisher."
    )


def population_of(place: str) -> int:
    """Give the population of a place.

    Args:
        place: The place's name.
    """
    return len(place)


def publication_year_of(author: str, publisher: str) -> int:
    """Give the year of the last publication of an author with a publisher.

    Args:
        author: The author's name.
        publisher: The publisher's name.
    """
    return len(author + publisher)


def founder_of(organisation: str) -> str:
    """Give the founder of an organisation.

    Args:
        organisation: The organisation's name.
    """
    return organisation


TOOLS = (profile_of, population_of, publication_year_of, founder_of)
"""Tools of a prompt; the script calls the first."""


def turn_script(tokenizer: PreTrainedTokenizerBase, reasoning: int) -> list[int]:
    """Return the ids of a turn: tokens of reasoning, a call, the end of the turn; no token comes twice.

    Raises:
        ValueError: A piece is not one token, or the tokenizer has too few words for the reasoning.
    """
    vocabulary = tokenizer.get_vocab()
    words = sorted(index for word, index in vocabulary.items() if word.startswith("Ġ") and word[1:].isalpha())
    if len(words) < reasoning:
        raise ValueError(f"the tokenizer has {len(words)} whole words, too few for {reasoning} tokens of reasoning")
    marks = [vocabulary[mark] for mark in ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>")]
    call = [index for piece in CALL for index in tokenizer.encode(piece, add_special_tokens=False)]
    script = [marks[0], *words[:reasoning], *marks[1:3], *call, *marks[3:]]
    if len(call) != len(CALL) or len(set(script)) != len(script):
        raise ValueError(f"the tokenizer does not have each of {CALL} as one token")
    return script


def scripted_policy(
    config: Qwen3Config, opening: int, script: list[int], attention: str, certainty: float = 40.0
) -> PreTrainedModel:
    """Make a model that samples ``script`` after the token ``opening``; the weights are the same at every call.

    Args:
        config: Its shape, with a head of its own.
        opening: The last token of a prompt and of an observation.
        script: The tokens of a turn, each once.
        attention: Its ``attn_implementation``.
        certainty: Logit of the token that the script wants; those of all others are around 0.
    """
    torch.manual_seed(0)
    factory: Any = Qwen3ForCausalLM  # untyped
    model = factory._from_config(config, attn_implementation=attention)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        embeddings.normal_()
        for before, token in zip([opening, *script], script, strict=False):
            head[token] += embeddings[before] * (certainty / config.hidden_size)
    policy: PreTrainedModel = model.eval()
    return policy
