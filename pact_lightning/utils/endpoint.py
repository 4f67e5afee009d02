"""Checks of an OpenAI-compatible endpoint's address and key, and sentences for the HTTP errors it answers with."""

import os
from urllib.parse import urlsplit


def check_base_url(base_url: str) -> None:
    """Check an address, version included, such as ``http://127.0.0.1:8000/v1``.

    Raises:
        ValueError: The text is no address, or holds a key.
    """
    try:
        url = urlsplit(base_url)
    except ValueError as error:
        raise ValueError(f"base_url {base_url!r} is not a valid address: {error}") from error
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"base_url must be an address such as http://127.0.0.1:8000/v1, got {base_url!r}")
    if url.username or url.password or url.query:
        raise ValueError("base_url must not contain a key; put it into the environment variable that api_key_env names")


def api_key(variable: str) -> str:
    """Return the key that an environment variable holds.

    Without a variable it is a placeholder, since OpenAI's client insists on a key.

    Raises:
        ValueError: The variable is not set, or its text cannot be a key.
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
        raise ValueError(f"the environment variable {variable} contains characters that an API key cannot have")
    return key


def can_be_repeated(status: int) -> bool:
    """Tell whether OpenAI's client repeats a request that was answered with this HTTP status."""
    return status >= 500 or status in (408, 409, 429)


def status_problem(name: str, status: int, said: str, *, api_key_env: str, retries: int) -> str:
    """Describe a request's last HTTP error in one sentence.

    Args:
        name: The endpoint, as it is called in messages.
        status: The HTTP status.
        said: The endpoint's own words.
        api_key_env: The environment variable of the key; empty for none.
        retries: How often the client repeats a request.
    """
    if status in (401, 403):
        variable = api_key_env or "no key: api_key_env is empty"
        return f"{name} refuses the key ({status}); it is taken from {variable}"
    verb = f"still failed after {retries} retries" if can_be_repeated(status) else "refuses the request"
    return f"{name} {verb} ({status}): {said}"
