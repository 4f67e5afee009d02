"""Sizes of memory as people write them."""

import re

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_memory(text: str) -> int:
    """Bytes of ``24GB`` or ``80GiB``. A card sold as 24 GB has 24 GiB; say GiB where you mean it.

    Raises:
        ValueError: It is no such size.
    """
    found = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", text.strip())
    if found is None or found[2].lower() not in _UNITS or not _is_number(found[1]) or float(found[1]) <= 0:
        raise ValueError(f"--memory must be a size such as 24GB or 80GiB, not {text!r}")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d*)?|\.\d+", text) is not None
