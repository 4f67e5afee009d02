"""Where an endpoint is and which key it wants: checked before anything is sent there."""

import os
from urllib.parse import urlsplit


def check_base_url(base_url: str) -> None:
    """Checks an address, version included, such as ``http://127.0.0.1:8000/v1``.

    Raises:
        ValueError: It is no address, or holds a key.
    """
    try:
        url = urlsplit(base_url)
    except ValueError as error:
        raise ValueError(f"base_url {base_url!r} is no address: {error}") from error
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"base_url must be an address such as http://127.0.0.1:8000/v1, got {base_url!r}")
    if url.username or url.password or url.query:
        raise ValueError("base_url must hold no key; put it into the environment variable that api_key_env names")


def api_key(variable: str) -> str:
    """The key that an environment variable holds; without a variable a word, since OpenAI's client insists on one.

    Raises:
        ValueError: The variable is not set, or what it holds cannot be a key.
    """
    if not variable:
        return "none"
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"the environment variable {variable} does not hold an API key; set it, or leave api_key_env empty for a "
            "server that needs none"
        )
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"the environment variable {variable} holds characters that no API key has")
    return key
