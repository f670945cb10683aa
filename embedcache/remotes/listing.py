"""An object store's listing, from an endpoint that may be hostile.

obstore reads a page whole, and a page may never end. So this process's memory is watched while a
page is read, and the page is given up, which frees it, once memory has grown too far.
"""

import asyncio
import resource
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from embedcache.errors import RemoteError
from embedcache.remotes.remote import Unreachable

MAX_PAGE_BYTES = 512 << 20
LOOK_SECONDS = 0.02
PAGE_SECONDS = 30.0
# obstore's threads still report on a request that was given up, while Python must be running.
SETTLE_SECONDS = 0.2


def pages(store: Any, prefix: str, *, name: str, most: int) -> list[dict[str, Any]]:
    """All objects under a prefix, as obstore describes them; stops past `most`.

    Raises RemoteError for a page that does not end, and what obstore raises.
    """
    with ThreadPoolExecutor(1) as pool:  # the caller's thread may have an event loop of its own
        return pool.submit(asyncio.run, _pages(store, prefix, name, most)).result()


async def _pages(store: Any, prefix: str, name: str, most: int) -> list[dict[str, Any]]:
    import obstore

    found: list[dict[str, Any]] = []
    stream = aiter(obstore.list(store, prefix, chunk_size=1000))
    while page := await _next(stream, name):
        found += page
        if len(found) > most:
            break
    return found


async def _next(stream: AsyncIterator[list[dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    async def page() -> list[dict[str, Any]]:
        return await anext(stream, [])

    task, before = asyncio.ensure_future(page()), _peak_bytes()
    began = time.monotonic()
    while not task.done():
        await asyncio.wait({task}, timeout=LOOK_SECONDS)
        too_large = _peak_bytes() - before > MAX_PAGE_BYTES
        if too_large or time.monotonic() - began > PAGE_SECONDS:
            task.cancel()
            await asyncio.wait({task})
            await asyncio.sleep(SETTLE_SECONDS)
            if too_large:
                raise RemoteError(f"{name} sends a listing that does not end: refused")
            raise Unreachable(
                f"{name} cannot be reached: it did not send a page of its listing in "
                f"{PAGE_SECONDS:.0f} s",
                advice="Rerun the command",
            )
    return task.result()


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
