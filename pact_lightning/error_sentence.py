"""One sentence out of an error, for people at a command line."""

import re

_KEY = re.compile(r'Parser key "(.+)":')
_CLASS_PATH = re.compile(r"Problem with given class_path '(.+)':")
_CHOICE = re.compile(r"^Expected a typing\.Literal\[(.+?)\]")
_TYPE = re.compile(r"^Expected a <class '(.+?)'>")
_NO_REASON = ("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Given value")


def error_sentence(error: Exception) -> str:
    """Where and what is wrong, without the parser's listing of every type it tried and every value it was given."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    if not any(_KEY.match(line) or line.startswith(_NO_REASON) for line in lines):
        return " ".join(lines) or type(error).__name__
    keys: list[str] = []
    for number, line in enumerate(lines):
        if key := _KEY.match(line):
            keys.append(key[1])
        elif class_path := _CLASS_PATH.match(line):
            where = f" ({class_path[1]})"
            keys = [*keys[:-1], keys[-1] + where] if keys else [where.strip()]
        elif not line.startswith(_NO_REASON):
            given = next((rest for rest in lines[number:] if rest.startswith("Given value: ")), "")
            got = f". Got value: {given.removeprefix('Given value: ')}" if line.startswith("Expected a <") else ""
            said = _plain(f"{line}{got if 'Got value' not in line else ''}")
            return f"{'.'.join(keys)}: {said}".removeprefix(": ")
    return " ".join(lines)


def _plain(line: str) -> str:
    """What is expected, in words rather than in Python's names of types."""
    return _TYPE.sub(r"Expected a value of type \1", _CHOICE.sub(r"Expected one of \1", line))
