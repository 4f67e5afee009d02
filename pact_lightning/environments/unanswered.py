"""Which exceptions of a tool say that nobody answered, so that it is no fault of the call."""

import socket

_UNREACHABLE = (ConnectionError, TimeoutError, socket.gaierror)


def is_unreachable(error: BaseException | None) -> bool:
    """Whether a connection failed or ran out of time, here or in what led to this exception.

    The clients of HTTP wrap these in classes of their own, which lead back to them as cause or context.

    Args:
        error: What a tool raised.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, _UNREACHABLE):
            return True
        seen.add(id(error))
        hidden = error.__suppress_context__ and error.__cause__ is None
        error = None if hidden else error.__cause__ or error.__context__
    return False
