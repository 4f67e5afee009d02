"""Deadline for code that might hang."""

import threading


class HangError(Exception):
    """It did not end in time."""


def within(seconds, function, *arguments):
    """The function's result.

    Raises:
        HangError: It did not end within so many seconds; its thread is left behind.
        Exception: Whatever the function raises.
    """
    outcome = []

    def work():
        try:
            outcome.append((function(*arguments), None))
        except BaseException as error:  # noqa: BLE001  # it is raised again, in the caller's thread
            outcome.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise HangError(f"no end within {seconds:g} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
