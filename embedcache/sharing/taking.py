"""The pieces of a pull on their way into the cache: whole segments, chosen rows, photo ids."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial

import numpy as np

from embedcache import disk
from embedcache.errors import Damaged, NotACache, RemoteError
from embedcache.remotes.remote import Unreachable
from embedcache.sharing.arrival import arriving, clear, fetch_rows
from embedcache.sharing.listing import ListedSpace
from embedcache.sharing.moved import (
    SEGMENTS_AT_ONCE,
    CountBytes,
    MoveCounts,
    OnBytes,
    counter,
    require_room,
)
from embedcache.sharing.pull_plan import Piece
from embedcache.sharing.seen import SeenWhole
from embedcache.sharing.segments import RemoteSegment
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.spec import Json, canonical_json
from embedcache.store import journal
from embedcache.store.cache import Cache
from embedcache.store.photo_ids import PhotoIds
from embedcache.store.segment import Segment
from embedcache.store.space import FaceSpace, Space
from embedcache.store.writer import SegmentWriter
from embedcache.upkeep.rewrite import joint_about

Target = Space | FaceSpace | PhotoIds
Arrive = Callable[[RemoteSegment], AbstractContextManager[Segment]]

JOINT_ROWS = 65_536
JOINT_BYTES = 1 << 30
BLOCK_ROWS = 1024
BLOCK_BYTES = 64 << 20
MAX_ABOUT_BYTES = 65_536


class Taking:
    """Brings planned pieces into a cache. What is damaged is refused, and the rest still comes.

    counts: rows, segments and bytes that came. renamed: {id of a segment that was removed here
    before: the new id of its rows}. n_lost: pieces that were refused.
    """

    def __init__(
        self, copy: SharedCopy, cache: Cache, pool: ThreadPoolExecutor, *, seen: SeenWhole
    ) -> None:
        self.counts = MoveCounts()
        self.renamed: dict[str, str] = {}
        self.n_lost = 0
        self._n_dead_ids: list[int] = []  # by segment; several threads append
        self._copy = copy
        self._cache = cache
        self._pool = pool
        self._seen = seen

    def take(self, pieces: Sequence[Piece], on_bytes: OnBytes | None) -> None:
        """Bring all pieces in.

        Raises Unreachable where the remote went out of reach; what has come by then stays.
        """
        n_bytes = sum(piece.n_bytes for piece in pieces)
        require_room(self._cache, n_bytes)
        count = counter(on_bytes, n_bytes)
        self.counts = planned(pieces)
        incoming = self._cache.local / "incoming"
        clear(incoming)
        ranged: dict[tuple[str, str], list[Piece]] = defaultdict(list)
        for piece in pieces:
            if piece.by_ranges:
                ranged[piece.space.key, piece.segment.manifest.name].append(piece)
        with ThreadPoolExecutor(2, thread_name_prefix="embedcache-sync") as syncing:
            arrive = partial(
                arriving,
                remote=self._copy.remote,
                incoming=incoming,
                fetching=self._pool,
                syncing=syncing,
                count=count,
            )
            for piece in pieces:
                if not piece.is_whole and not piece.by_ranges:
                    self._take_some(piece, arrive)
            self._take_whole([piece for piece in pieces if piece.is_whole], arrive)
        self.counts.ids -= sum(self._n_dead_ids)
        for group in ranged.values():
            self._take_ranges(group, count)

    def _take_whole(self, pieces: Sequence[Piece], arrive: Arrive) -> None:
        """Segments under their own ids; one is checked while the next one comes."""
        stores: dict[str, Target] = {}
        for piece in pieces:  # before the threads start: two of them would create the same space
            try:
                stores[piece.space.key] = self._store(piece.space)
            except (RemoteError, FileNotFoundError) as error:
                self._lost(piece, error)
        pieces = [piece for piece in pieces if piece.space.key in stores]
        cut_off: list[Unreachable] = []

        def take(piece: Piece) -> Exception | None:
            if cut_off:
                return cut_off[0]
            try:
                with arrive(piece.segment) as segment:
                    self._publish(segment, stores[piece.space.key])
            except Unreachable as error:
                cut_off.append(error)
                return error
            except FileNotFoundError:
                return RemoteError(
                    f"segment {piece.segment.id} was deleted during the pull, perhaps by 'forget'",
                    advice="Rerun the command",
                )
            except (RemoteError, Damaged, NotACache) as error:
                return error
            return None

        with ThreadPoolExecutor(SEGMENTS_AT_ONCE) as pool:
            for piece, failure in zip(pieces, pool.map(take, pieces), strict=True):
                if failure is not None:
                    self._lost(piece, failure)
                else:  # every byte of it was checked
                    self._seen.add(piece.space, piece.segment.id)

    def _publish(self, segment: Segment, target: Target) -> None:
        """WRITE: a segment that has arrived, under its own id, and without its dead rows.

        An id that was removed here never returns: its rows come under a new one.
        """
        disk.delete_folder(segment.folder / journal.FOLDER)  # of a run that was killed here
        staged = journal.Journal(segment.folder, {"kind": segment.kind, "copies": segment.id})
        try:
            disk.sync_tree(segment.folder, but=journal.FOLDER)
            self._admit(segment, target)
        finally:
            staged.close()

    def _admit(self, segment: Segment, target: Target) -> None:
        """Publish a segment that has arrived and is durable."""
        if segment.kind == "photos":  # their ids are read only here
            dead = target.dead_rows(segment, target.history.dead())
            self._n_dead_ids.append(int(dead.sum()))
        if target.admit(segment.folder, segment.id, digest=segment.digest):
            return
        if not segment.folder.exists():
            return  # another process brought it, and it was joined with others at once
        live = np.flatnonzero(~target.dead_rows(segment, target.history.dead()))
        new = target.rewrite([(segment, live)], about=segment.manifest.about)
        self.renamed[segment.id] = new or ""

    def _take_some(self, piece: Piece, arrive: Arrive) -> None:
        """Chosen rows of a segment that is fetched whole."""
        assert piece.rows is not None
        try:
            store = self._store(piece.space)
            with arrive(piece.segment) as segment:
                store.rewrite([(segment, piece.rows)], about=_about([piece]))
        except (RemoteError, Damaged, NotACache) as error:
            self._lost(piece, error)

    def _take_ranges(self, pieces: list[Piece], count: CountBytes) -> None:
        """Rows of several segments of one backbone, by their ranges, into new segments here."""
        store = self._vectors(pieces[0].space)
        while pieces:
            batch, n_rows = [], 0
            most = min(JOINT_ROWS, max(1, JOINT_BYTES // store.spec.row_bytes))
            while pieces and n_rows < most:
                batch.append(pieces.pop(0))
                n_rows += batch[-1].n_rows
            name = batch[0].segment.manifest.name
            cut_off = None
            with store.writer(n_rows=n_rows, name=name, about=_about(batch)) as writer:
                for piece in batch:
                    before = writer.n_written
                    try:
                        self._fetch_ranges(piece, writer, count)
                    except Unreachable as error:  # the rows that came are checked and stay
                        cut_off = error
                        break
                    except (RemoteError, Damaged) as error:
                        self._lost(piece, error, came=writer.n_written - before)
            if cut_off is not None:
                raise cut_off

    def _fetch_ranges(self, piece: Piece, writer: SegmentWriter, count: CountBytes) -> None:
        assert piece.rows is not None
        segments, segment = self._copy.segments, piece.segment
        n_ok = segment.manifest.n_ok
        digests, row_crcs = (segments.column(segment, name) for name in ("digest", "row_crc"))
        good, bad = piece.rows[piece.rows < n_ok], piece.rows[piece.rows >= n_ok]
        step = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * writer.dim)))
        for start in range(0, len(good), step):
            block = good[start : start + step]
            vectors = fetch_rows(
                self._copy.remote, segment, block, row_crcs=row_crcs, pool=self._pool, count=count
            )
            writer.add(digests[block], vectors)
        if len(bad):
            reasons = segments.reasons(segment)
            writer.fail(digests[bad], [reasons[row - n_ok] for row in bad.tolist()])

    def _store(self, space: ListedSpace) -> Target:
        """The set of segments here for one of the shared copy; created where there is none."""
        if space.kind == "photos":
            return self._cache.photo_ids
        if space.kind == "faces":
            for faces in self._cache.face_spaces():
                if faces.digest == space.digest:
                    return faces
            return self._cache.face_space(self._copy.detector(space), create=True)
        return self._vectors(space)

    def _vectors(self, space: ListedSpace) -> Space:
        for vectors in self._cache.spaces():
            if vectors.digest == space.digest:
                return vectors
        return self._cache.space(self._copy.spec(space), create=True)

    def _lost(self, piece: Piece, error: Exception, *, came: int = 0) -> None:
        """Refuse a piece that did not come; raises `error` where the remote is out of reach.

        came: its good rows that came before, and stay.
        """
        if isinstance(error, Unreachable):
            raise error
        self._copy.segments.refuse(piece.segment, error)
        self.n_lost += 1
        self.counts.bytes -= piece.n_bytes
        if piece.space.kind == "photos":
            self.counts.ids -= piece.n_rows
        else:
            self.counts.segments -= 1
            self.counts.rows -= piece.n_good - came
            self.counts.failures -= piece.n_rows - piece.n_good


def planned(pieces: Sequence[Piece]) -> MoveCounts:
    """What these pieces bring, if all of them come."""
    counts = MoveCounts(bytes=sum(piece.n_bytes for piece in pieces))
    for piece in pieces:
        if piece.space.kind == "photos":
            counts.ids += piece.n_rows
        else:
            counts.rows += piece.n_good
            counts.failures += piece.n_rows - piece.n_good
            counts.segments += 1
    return counts


def _about(pieces: Sequence[Piece]) -> dict[str, Json]:
    """Provenance of rows from several segments, bounded because others wrote it."""
    abouts = [piece.segment.manifest.about for piece in pieces]
    joint = dict(abouts[0]) if len(abouts) == 1 else joint_about(abouts)
    if len(canonical_json(joint)) > MAX_ABOUT_BYTES:
        return {"segments": len(pieces)}
    return joint
