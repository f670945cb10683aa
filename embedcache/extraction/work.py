"""The work of a run, part by part: after each part, what others have done meanwhile is left out."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from embedcache.extraction.plan import Plan, plan, subset
from embedcache.extraction.upstream import Upstream
from embedcache.photos.digests import Digests
from embedcache.photos.table import Photos
from embedcache.store.columns import FAILED, OK
from embedcache.store.space import Space

# A round is a sixteenth of what is left, within these bounds: two members who work at the same
# speed then embed under a tenth twice (docs/decisions/053).
ROUND_SHARE = 16
ROUND_ROWS = (32, 4096)


class Work:
    """What `spaces` lack of `photos`, also after taking what a remote has of it.

    todo: all that is missing when the run begins.
    tallies: counts by space; `parts` keeps them up to date.
    """

    def __init__(
        self,
        photos: Photos,
        digests: Digests,
        spaces: Sequence[Space],
        *,
        upstream: Upstream | None,
        retry_failed: bool,
    ) -> None:
        self._photos = photos
        self._spaces = spaces
        self._upstream = upstream
        self._retry_failed = retry_failed
        self.todo, self.tallies = plan(photos, digests, spaces, retry_failed=retry_failed)
        if upstream is not None:
            upstream.serve([space.spec for space in spaces])
            upstream.take(self.todo.digests)
            self.todo, self.tallies = plan(photos, digests, spaces, retry_failed=retry_failed)

    def parts(self) -> Iterator[Plan]:
        """The work, part by part; ask for the next one once a part is committed.

        With a remote the parts are rounds in an order of this member's own, and each is given back
        before the next one begins.
        """
        left, upstream = self.todo, self._upstream
        while len(left):
            if upstream is None or not upstream.up:
                yield left
                break
            least, most = ROUND_ROWS
            n_rows = min(most, max(least, len(left) // ROUND_SHARE))
            order = upstream.shuffled(len(left))
            yield subset(left, order[:n_rows])
            left = subset(left, np.sort(order[n_rows:]))
            upstream.give()
            if len(left):
                upstream.take(left.digests)
                left = self._without_arrived(left)

    def give(self) -> None:
        """Give the remote, if there is one, what was committed here."""
        if self._upstream is not None:
            self._upstream.give()

    def _without_arrived(self, todo: Plan) -> Plan:
        """What is still to do of a plan; rows that have arrived are counted."""
        wanted = todo.wanted.copy()
        for k, (space, tally) in enumerate(zip(self._spaces, self.tallies, strict=True)):
            status = space.status(todo.digests)
            good = wanted[:, k] & (status == OK)
            tally.hit += int(todo.copies[good].sum())
            wanted[good, k] = False
            failed = np.flatnonzero(wanted[:, k] & (status == FAILED))
            if len(failed) and not self._retry_failed:
                reasons = space.reasons(todo.digests[failed])
                for i, reason in zip(failed.tolist(), reasons, strict=True):
                    path = self._photos.paths[todo.positions[i]]
                    tally.fail(reason or "unknown", int(todo.copies[i]), path=path)
                wanted[failed, k] = False
        return subset(replace(todo, wanted=wanted), np.flatnonzero(wanted.any(axis=1)))
