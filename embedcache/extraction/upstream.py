"""A team's shared copy during a run: rows are taken from it, and given back to it.

    settings = read_settings()                 embedcache.toml, here or in a folder above
    extract(photos, cache, backbone=..., remote=settings.remote, offer=True)

An extraction with a remote takes what colleagues have computed and computes the rest in rounds
(`work.Work.parts`), in an order of its own. Nobody waits for anybody: members who begin the same
work at the same moment meet rarely, and what both computed is stored once. A remote that fails
costs one warning and never the run.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import EmbedcacheError
from embedcache.remotes.remote import Denied, Remote, Unreachable
from embedcache.settings import warn as warn_on_stderr
from embedcache.sharing.connecting import connect
from embedcache.sharing.share import available, pull, push
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.spec import Spec
from embedcache.store.cache import Cache

U8 = NDArray[np.uint8]


class Upstream:
    """A shared copy during a run; after its first failure it is not used again.

    name: the URL, for messages.
    offer: give back what is computed.  warn: takes one line for each kind of problem.
    seed: decides the order of work; None, the default, gives one that differs between members.
    """

    def __init__(
        self,
        remote: Remote | str,
        cache: Cache,
        *,
        offer: bool = False,
        warn: Callable[[str], None] = warn_on_stderr,
        seed: int | None = None,
    ) -> None:
        self._cache = cache
        self._offers = offer
        self._up = True
        self._warn = warn
        self._warned: set[str] = set()
        self._specs: tuple[str, ...] = ()
        self._order = np.random.default_rng(seed)
        self.n_taken = 0
        self.n_given = 0
        self.name = remote if isinstance(remote, str) else remote.name
        try:
            self._remote = connect(remote, cache)
        except Unreachable as error:
            self._down(error)

    def serve(self, specs: Sequence[Spec]) -> None:
        """Choose the spaces to take and give: these specs, and the faces that their crops need."""
        detectors = {spec.face.detector for spec in specs if spec.face is not None}
        self._specs = (*(spec.digest for spec in specs), *detectors)

    def look(self, digests: U8) -> dict[str, tuple[U8, U8]]:
        """What `take` would bring of these contents, as `share.available` reports it."""
        if not self._up:
            return {}
        try:
            if self._offers and not SharedCopy(self._remote).exists():
                return {}  # there is no shared copy yet; the first `give` begins it
            return available(self._remote, self._cache, specs=self._specs, photos=digests)
        except (EmbedcacheError, OSError) as error:
            self._down(error)
            return {}

    def take(self, digests: U8) -> None:
        """Copy into the cache the rows of these contents, (n, 32), that the remote has."""
        if not self._up or not len(digests):
            return
        try:
            if self._offers and not self.n_given and not SharedCopy(self._remote).exists():
                SharedCopy(self._remote).require_place()
                return  # there is no shared copy yet; the first `give` begins it
            came = pull(self._remote, self._cache, specs=self._specs, photos=digests)
        except (EmbedcacheError, OSError) as error:
            self._down(error)
            return
        self.n_taken += came.rows
        for problem in came.problems[:1]:
            self._warn_once("problem", f"{problem}. Its rows are computed here instead")

    def give(self) -> None:
        """Send what the remote lacks, where that was asked for."""
        if not self._up or not self._offers:
            return
        try:
            self.n_given += push(self._cache, self._remote, specs=self._specs).rows
        except Denied as error:
            self._offers = False
            self._warn_once("give", f"{error}. New rows are not uploaded")
        except (EmbedcacheError, OSError) as error:
            self._down(error)

    @property
    def up(self) -> bool:
        """Whether the remote has answered so far."""
        return self._up

    @property
    def takes(self) -> bool:
        """Whether the remote has taken all that it was given, and is given more."""
        return self._up and self._offers

    def shuffled(self, n: int) -> NDArray[np.int64]:
        """0 to n - 1 in an order that differs between members."""
        return self._order.permutation(n)

    def _down(self, error: Exception) -> None:
        self._up = False
        self._warn_once("down", f"{error}. Continuing without the remote; push the new rows later")

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(text)
