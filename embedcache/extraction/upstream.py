"""A team's shared copy while one works: its address, and reading through it.

    settings = read_settings()                 embedcache.toml, here or in a folder above
    extract(photos, cache, backbone=..., remote=settings.remote, offer=True)

An extraction with a remote takes what colleagues have computed, computes the rest in rounds, in an
order of its own, gives each round back where it may, and looks again before the next one. Nobody
waits for anybody: members who begin the same work at the same moment meet rarely, and what both
computed is merely stored once. A remote that fails costs one warning and never the run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import EmbedcacheError
from embedcache.extraction.clock import Tally
from embedcache.extraction.plan import Plan, subset
from embedcache.remotes.remote import Denied, Remote, Unreachable
from embedcache.settings import warn as warn_on_stderr
from embedcache.sharing.share import available, connect, pull, push
from embedcache.sharing.shared_copy import Catalogue, require_place
from embedcache.spec import Spec
from embedcache.store.cache import Cache
from embedcache.store.columns import FAILED, OK
from embedcache.store.space import Space

# A round is a sixteenth of what is left, within these bounds: two members who work at the same
# speed then embed under a tenth twice (docs/decisions/053).
ROUND_SHARE = 16
ROUND_ROWS = (32, 4096)

U8 = NDArray[np.uint8]


class Upstream:
    """A shared copy for as long as a run lasts; after its first failure it is left alone.

    name: the URL, as messages say it.
    offer: give back what is computed. warn: told once of each kind of trouble.
    seed: decides the order of work; None, the default, for one that differs between members.
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
        self._told: set[str] = set()
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
        """From now on the spaces of these, and the faces that they are cut by, are meant."""
        detectors = {spec.face.detector for spec in specs if spec.face is not None}
        self._specs = (*(spec.digest for spec in specs), *detectors)

    def look(self, digests: U8) -> dict[str, tuple[U8, U8]]:
        """What `take` would bring of these contents, as `share.available` tells it."""
        if not self._up:
            return {}
        try:
            if self._offers and not Catalogue(self._remote).exists():
                return {}  # nothing is there yet, and it is for us to begin it
            return available(self._remote, self._cache, specs=self._specs, photos=digests)
        except (EmbedcacheError, OSError) as error:
            self._down(error)
            return {}

    def take(self, digests: U8) -> None:
        """Bring rows of these contents, (n, 32), into the cache, where the remote has them."""
        if not self._up or not len(digests):
            return
        try:
            if self._offers and not self.n_given and not Catalogue(self._remote).exists():
                require_place(self._remote)
                return  # nothing is there yet, and it is for us to begin it
            came = pull(self._remote, self._cache, specs=self._specs, photos=digests)
        except (EmbedcacheError, OSError) as error:
            self._down(error)
            return
        self.n_taken += came.rows
        for problem in came.problems[:1]:
            self._tell("problem", f"{problem}. What it would have brought is computed here")

    def give(self) -> None:
        """Send what the remote lacks, if offering."""
        if not self._up or not self._offers:
            return
        try:
            self.n_given += push(self._cache, self._remote, specs=self._specs).rows
        except Denied as error:
            self._offers = False
            self._tell("give", f"{error}. What is computed here is not offered")
        except (EmbedcacheError, OSError) as error:
            self._down(error)

    def rounds(
        self, todo: Plan, spaces: Sequence[Space], tallies: Sequence[Tally], *, retry_failed: bool
    ) -> Iterator[Plan]:
        """The work in rounds, in this member's own order; each is given back before the next.

        Photos that a colleague has embedded meanwhile are dropped, and counted in `tallies`.
        """
        left = todo
        while len(left):
            least, most = ROUND_ROWS
            n_rows = min(most, max(least, len(left) // ROUND_SHARE)) if self._up else len(left)
            order = self._order.permutation(len(left)) if self._up else np.arange(len(left))
            yield subset(left, order[:n_rows])
            left = subset(left, np.sort(order[n_rows:]))
            self.give()
            if len(left):
                self.take(left.digests)
                left = _without_arrived(left, spaces, tallies, retry_failed=retry_failed)

    def _down(self, error: Exception) -> None:
        self._up = False
        self._tell("down", f"{error}. Going on without the remote; push later what is computed")

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._warn(text)


def _without_arrived(
    todo: Plan, spaces: Sequence[Space], tallies: Sequence[Tally], *, retry_failed: bool
) -> Plan:
    """What is still to do, now that a colleague's rows have come."""
    wanted = todo.wanted.copy()
    for k, (space, tally) in enumerate(zip(spaces, tallies, strict=True)):
        status = space.status(todo.digests)
        good = wanted[:, k] & (status == OK)
        tally.hit += int(todo.copies[good].sum())
        wanted[good, k] = False
        failed = np.flatnonzero(wanted[:, k] & (status == FAILED))
        if len(failed) and not retry_failed:
            reasons = space.reasons(todo.digests[failed])
            for i, reason in zip(failed.tolist(), reasons, strict=True):
                tally.failed[reason or "unknown"] += int(todo.copies[i])
            wanted[failed, k] = False
    return subset(replace(todo, wanted=wanted), np.flatnonzero(wanted.any(axis=1)))
