"""Hugging Face hub: whether it can be reached, asked once and briefly, since its clients ask again and again."""

import logging
import ssl
import urllib.error
import urllib.request
from functools import lru_cache

from huggingface_hub import constants

_log = logging.getLogger(__name__)
_REACH_S = 5.0


def use_cache_where_unreachable() -> bool:
    """Let the hub's clients in this process look into their caches only, if the hub does not answer.

    Without this each file is asked for six times, with pauses of 23 seconds in all.

    Returns:
        Whether they look there only.
    """
    if not constants.HF_HUB_OFFLINE and not _answers(constants.ENDPOINT):
        _log.warning("the hub at %s cannot be reached; only the local cache is used", constants.ENDPOINT)
        constants.HF_HUB_OFFLINE = True
    return bool(constants.HF_HUB_OFFLINE)


@lru_cache(maxsize=4)
def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_REACH_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError as error:
        # Another store of certificates than that of the hub's clients proves nothing about them.
        return isinstance(getattr(error, "reason", error), ssl.SSLError)
    return True
