"""Whether anybody answers at the address of a Ray cluster. Ray itself would wait without end."""

import socket
import time

from embedcache.errors import InputError

ANSWER_SECONDS = 60.0
"""How long a cluster that is being started may take."""
AGAIN_SECONDS = 0.5


def require_answer(address: str) -> None:
    """Raise InputError where nobody listens at host:port within ANSWER_SECONDS.

    Other forms of an address ("local", "auto", ray://...) are left to Ray.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or "/" in host or not port.isdecimal():
        return
    until, left = time.monotonic() + ANSWER_SECONDS, ANSWER_SECONDS
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=left):
                return
        except (OSError, OverflowError, UnicodeError) as error:
            left = until - time.monotonic() - AGAIN_SECONDS
            if left <= 0 or not isinstance(error, ConnectionRefusedError):
                raise no_answer(address, str(error)) from error
        time.sleep(AGAIN_SECONDS)


def no_answer(address: str, problem: str) -> InputError:
    """The error where no cluster is; problem: its first line is shown."""
    first = (problem.splitlines() or ["no reason is known"])[0][:200]
    return InputError(
        f"no Ray cluster answers at {address!r} ({first})",
        advice="Start one with 'ray start --head', or leave the address out",
    )
