"""What networks mean for the process they run in: slow imports, and threads that a fork loses."""

import atexit
import contextlib
import gc
import os
from collections.abc import Iterator

from embedcache.deferred import is_own_process
from embedcache.errors import EmbedcacheError

_ran_networks: set[int] = set()
"""This process, once it has loaded networks; a forked copy holds its parent instead."""


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """No garbage collection meanwhile: the many objects of imported modules stay anyway.

    In a process of our own no later collection looks at them either, which takes a tenth of a
    second each time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_own_process():
            gc.freeze()
            atexit.register(gc.unfreeze)  # libraries complain of what is left at the end
        if was_enabled:
            gc.enable()


def note_networks() -> None:
    """Remember that this process runs networks."""
    _ran_networks.add(os.getpid())


def refuse_fork() -> None:
    """Raise in a process that was forked from one that had run networks.

    The threads of torch do not exist in the copy, which would wait for them without end.
    """
    if _ran_networks and os.getpid() not in _ran_networks:
        raise EmbedcacheError(
            "this process was forked after a network ran: torch's threads do not survive a fork",
            advice="Start it with multiprocessing.get_context('spawn'), or fork before the first "
            "extraction",
        )
