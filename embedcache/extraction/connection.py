"""A connection to a Ray cluster, or Ray started on this machine, and its end."""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from importlib.util import find_spec
from typing import Any

from embedcache import machine
from embedcache.deferred import end_at_once, is_own_process
from embedcache.errors import InputError
from embedcache.extraction.answering import LOCAL, first_line, no_answer

END_SECONDS = 10.0
STORE_BYTES = 512 * 2**20
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster, or started on this machine; ended as it was found."""
    ray = ray_package()
    mine = not ray.is_initialized()
    # Ray prints what befalls its processes, and our result is all that a script reads there.
    with redirect_stdout(sys.stderr) if is_own_process() else nullcontext():
        try:
            with _own_signals():
                if mine and address == LOCAL:
                    ray.init(
                        address=LOCAL,
                        num_cpus=machine.processors(),
                        include_dashboard=False,
                        object_store_memory=STORE_BYTES,
                        **_QUIET,
                    )
                elif mine:
                    ray.init(address=address, **_QUIET)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise no_answer(address, str(error)) from error
        try:
            yield ray
        finally:
            if mine:
                _disconnect(ray)


def _disconnect(ray: Any) -> None:
    """End the connection, or after some seconds leave it: a lost cluster may never answer."""
    ending = threading.Thread(target=ray.shutdown, daemon=True)
    ending.start()
    ending.join(END_SECONDS)
    if ending.is_alive():
        atexit.unregister(ray.shutdown)  # which would wait again
        end_at_once()


def is_connected() -> bool:
    """Whether the caller has connected this process to a cluster. InputError without ray."""
    if "ray" not in sys.modules and find_spec("ray") is not None:
        return False
    return bool(ray_package().is_initialized())


def ray_package() -> Any:
    """The module ray. InputError where it is not installed, or cannot be imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _own_signals():
            import ray
    except Exception as error:  # whatever a broken installation may raise
        if isinstance(error, ModuleNotFoundError) and error.name == "ray":
            raise InputError("a Ray cluster needs the package ray: pip install ray") from None
        raise InputError(
            f"the package ray is installed, and Python cannot import it ({first_line(str(error))})",
            advice="Install it again: 'pip uninstall ray', then 'pip install ray'",
        ) from error
    return ray


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """The command line's handlers, set again after Ray has put its own in their place: in Python
    when it is imported, and below Python, for SIGTERM, when it connects."""
    main = threading.current_thread() is threading.main_thread()
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that Python does not know
                signal.signal(number, handler)
