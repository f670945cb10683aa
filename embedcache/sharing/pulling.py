"""One pull: which segments and rows are to come, and their arrival."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged, NotACache, RemoteError
from embedcache.remotes.remote import Denied, Unreachable
from embedcache.sharing.arrival import Counter, arriving, clear, fetch_rows, range_bytes, settle
from embedcache.sharing.moved import SEGMENTS_AT_ONCE, Progress, Tally, counter, require_room
from embedcache.sharing.shared_copy import ROOTS, Catalogue, Holding, Shared, TooMuch
from embedcache.spec import Json, canonical_json
from embedcache.store.cache import Cache, plain_name
from embedcache.store.check import check_segment
from embedcache.store.columns import FAILED, OK
from embedcache.store.index import Table
from embedcache.store.layout import APART
from embedcache.store.manifest import replacement_id
from embedcache.store.photo_ids import read_pairs
from embedcache.store.refs import (
    MAX_REF_BYTES,
    Pinned,
    Pins,
    encode_ref,
    read_ref,
    repin,
    same_pins,
)
from embedcache.store.sealed import unseal
from embedcache.store.segment import Segment
from embedcache.store.space import Space
from embedcache.store.tombstones import Tombstones, forgotten
from embedcache.store.writer import SegmentWriter
from embedcache.upkeep.merging import merge_ids
from embedcache.upkeep.rewrite import Store, joint_about, rewrite

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Arrive = Callable[[Shared], AbstractContextManager[Segment]]

# Below this part of a segment's bytes, the ranges of the wanted rows are fetched, else all of it.
RANGES_SHARE = 0.5
JOINT_ROWS = 65_536
BLOCK_ROWS = 1024
MAX_ABOUT_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Piece:
    """What is to come of one segment. rows: ascending, None for all, kept under its own id.

    by_ranges: rows come by their byte ranges. pinned: a ref names the segment.
    """

    holding: Holding
    shared: Shared
    rows: I64 | None
    n_bytes: int
    by_ranges: bool = False
    pinned: bool = False

    @property
    def n_rows(self) -> int:
        return self.shared.manifest.n_rows if self.rows is None else len(self.rows)

    @property
    def n_good(self) -> int:
        """Rows that hold a vector, or faces; the others say why there is none."""
        n_ok = self.shared.manifest.n_ok
        return n_ok if self.rows is None else int((self.rows < n_ok).sum())


class Pull:
    """One pull's plan and work."""

    def __init__(
        self,
        catalogue: Catalogue,
        cache: Cache,
        tally: Tally,
        gone: Tombstones,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.catalogue = catalogue
        self.cache = cache
        self.tally = tally
        self.gone = gone
        self.pool = pool
        self.pieces: list[Piece] = []
        self.chosen: tuple[str, ...] = ()  # digests of the spaces that were asked for
        self.n_lost = 0
        self.successors: dict[str, dict[str, str]] = {}

    def plan(
        self,
        *,
        backbones: Sequence[str],
        specs: Sequence[str],
        photos: U8 | None,
        ref: str | None,
        with_ids: bool,
    ) -> None:
        """Find out what is to come."""
        pins = None if ref is None else self._pins(ref)
        chosen = self._chosen(backbones, specs)
        self.chosen = tuple(holding.digest for holding in chosen)
        mine: dict[str, Store] = {space.digest: space for space in self.cache.spaces()}
        mine |= {space.digest: space for space in self.cache.face_spaces()}
        for holding in chosen:
            if holding.kind == "photos" and not with_ids:
                continue
            part = "faces" if holding.kind == "faces" else "spaces"
            try:
                self.catalogue.check_groups(holding)
                if holding.kind == "photos":
                    self._plan_ids(holding, None if pins is None else pins.photos or {})
                elif pins is None:
                    self._plan_rows(holding, mine.get(holding.digest), photos)
                elif pinned := pins.of(part, holding.digest):
                    self._plan_pinned(holding, mine.get(holding.digest), pinned)
            except Unreachable:
                raise
            except Denied:
                self.catalogue.locked(holding.root)
            except RemoteError as error:
                self.tally.problems.append(str(error))
        if ref is not None and pins is not None:
            known = {holding.digest for holding in chosen}
            for digest in {*pins.spaces, *pins.faces} - known:
                self.tally.problems.append(f"ref {ref} pins space {digest[:8]}, which is not there")
        self.tally.bytes = sum(piece.n_bytes for piece in self.pieces)
        for piece in self.pieces:
            if piece.holding.kind != "photos":
                self.tally.rows += piece.n_good
                self.tally.failures += piece.n_rows - piece.n_good
                self.tally.segments += 1
        if self.gone:
            for store in mine.values():
                self.tally.still_here += int(forgotten(store.digests(), self.gone).sum())

    def move(self, progress: Progress | None) -> None:
        """Bring it in; a segment that is damaged is left out, and the others still come."""
        require_room(self.cache, self.tally.bytes)
        count = counter(progress, self.tally.bytes)
        incoming = self.cache.local / "incoming"
        clear(incoming)
        gathered: dict[tuple[str, str], list[Piece]] = defaultdict(list)
        whole: list[Piece] = []
        with ThreadPoolExecutor(2, thread_name_prefix="embedcache-sync") as syncing:
            arrive = partial(
                arriving,
                remote=self.catalogue.remote,
                incoming=incoming,
                fetching=self.pool,
                syncing=syncing,
                count=count,
            )
            for piece in self.pieces:
                if piece.by_ranges:
                    gathered[piece.holding.key, piece.shared.manifest.name].append(piece)
                elif piece.rows is None and piece.holding.kind != "photos":
                    whole.append(piece)
                else:
                    try:
                        with arrive(piece.shared) as segment:
                            if piece.rows is None:
                                self._take_ids(segment)
                            else:
                                self._take_some(piece, segment)
                    except (RemoteError, Damaged, NotACache) as error:
                        self._lost(piece, error)
            self._take_whole(whole, arrive)
        for pieces in gathered.values():
            self._gather(pieces, count)

    def refs(self, ref: str | None, *, every: bool, with_ids: bool) -> None:
        """Write the refs whose segments are all here now: the one asked for, or all."""
        held = {segment.id: segment.digest for segment in self.cache.photo_segments()}
        for store in [*self.cache.spaces(), *self.cache.face_spaces()]:
            held |= {segment.id: segment.digest for segment in store.segments()}
        for name, (theirs, raw) in self.catalogue.refs().items():
            if name != ref and (ref is not None or not every):
                continue
            if (self.cache.path / "refs" / f"{name}.json").exists():
                ours = read_ref(self.cache.path, name)
                if not same_pins(ours, theirs):
                    self.tally.notes.append(f"ref {name} here pins other segments than there")
                continue
            parts = [*theirs.spaces.values(), *theirs.faces.values()]
            lacking = [
                segment
                for pinned in parts
                for segment, digest in pinned.items()
                if held.get(segment) != digest and segment not in self.successors
            ]
            if lacking:
                if name == ref:
                    self.tally.problems.append(f"ref {name} lacks {len(lacking)} of its segments")
                else:
                    self.tally.notes.append(
                        f"ref {name} was left: its segments are not all here, 'embedcache pull "
                        f"--ref {name} {self.catalogue.remote.name} {self.cache.path}' brings them"
                    )
                continue
            ids = (theirs.photos or {}).items()
            if not with_ids or any(held.get(segment) != digest for segment, digest in ids):
                theirs = replace(theirs, photos=None)
            self._write_ref(name, theirs, raw)

    def _write_ref(self, name: str, pins: Pins, raw: bytes) -> None:
        document, _ = unseal(raw, what=f"ref {name}", limit=MAX_REF_BYTES)
        changes = document.get("changes")
        if not isinstance(changes, list):
            self.tally.problems.append(f"ref {name} does not say what changed in it: left out")
            return
        path = self.cache.path / "refs" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        disk.publish(path, encode_ref(pins, changes=changes))
        for old, new in self.successors.items():
            repin(self.cache.path, old, new)
        self.tally.refs.append(name)

    def _pins(self, ref: str) -> Pins:
        refs = self.catalogue.refs()
        if ref not in refs:
            for problem in self.catalogue.problems:
                if problem.startswith(f"refs/{ref}.json "):
                    raise RemoteError(problem)
            raise RemoteError(
                f"{self.catalogue.remote.name} has no ref {ref!r}; it has "
                f"{', '.join(sorted(refs)) or 'none'}"
            )
        return refs[ref][0]

    def _chosen(self, backbones: Sequence[str], specs: Sequence[str]) -> list[Holding]:
        """The spaces asked for. Raises RemoteError for a backbone that the remote lacks."""
        found = {root: list(self.catalogue.holdings(root).values()) for root in ROOTS}
        if not backbones:
            every = [holding for holdings in found.values() for holding in holdings]
            return [holding for holding in every if not specs or holding.digest in specs]
        named: list[tuple[Holding, set[str]]] = []
        for holding in [*found["spaces"], *found[APART]]:
            try:
                shared = [self.catalogue.shared(holding, name) for name in holding.segments]
            except Denied:
                self.catalogue.locked(holding.root)
                continue
            named.append((holding, {plain_name(s.manifest.name) for s in shared if s}))
        chosen: list[Holding] = []
        for backbone in backbones:
            name, _, prefix = backbone.partition("#")
            fitting = [
                holding
                for holding, names in named
                if (plain_name(name) in names and holding.digest.startswith(prefix))
                or (len(backbone) >= 6 and holding.digest.startswith(backbone))
            ]
            if not fitting:
                known = sorted({name for _, names in named for name in names if name})
                raise RemoteError(
                    f"{self.catalogue.remote.name} has no vectors of {backbone!r}; it has "
                    f"{', '.join(known) or 'none'}"
                )
            chosen += [holding for holding in fitting if holding not in chosen]
        faces = [self.catalogue.spec(holding).face for holding in chosen]
        detectors = {face.detector for face in faces if face is not None}
        chosen += [holding for holding in found["faces"] if holding.digest in detectors]
        return chosen + found["photos"]  # ids, which are of any backbone's photos

    def _shared(self, holding: Holding, names: Sequence[str]) -> list[Shared]:
        """The manifests of some segments, fetched several at once; those refused are left out."""
        dim = 0
        if holding.kind == "vectors" and names:
            dim = self.catalogue.spec(holding).dim
        return self.catalogue.all_shared(holding, names, pool=self.pool, dim=dim)

    def _plan_rows(self, holding: Holding, mine: Store | None, photos: U8 | None) -> None:
        """Whatever `mine` lacks; a row that several segments have comes from the first."""
        here = {} if mine is None else {s.id: s for s in mine.segments()}
        for name in holding.segments.keys() & here.keys():
            self.tally.already_there += here[name].manifest.n_ok
        shared: list[Shared] = []
        parts = []
        for candidate in self._shared(holding, [s for s in holding.segments if s not in here]):
            digests = self._digests(candidate)
            if digests is not None:
                parts.append((len(shared), digests, candidate.manifest.n_ok))
                shared.append(candidate)
        table = Table.empty().extended(parts, renumbered=np.empty(0, np.int64))
        status = np.zeros(len(table.ok), np.uint8) if mine is None else mine.status(table.digests)
        keep = np.where(table.ok, status != OK, (status != OK) & (status != FAILED))
        self.tally.already_there += int((table.ok & (status == OK)).sum())
        banned = forgotten(table.digests, self.gone)
        self.tally.withheld += int((banned & keep).sum())
        keep &= ~banned
        if photos is not None:
            wanted = np.zeros(len(keep), dtype=np.bool_)
            at = table.find(np.ascontiguousarray(photos, dtype=np.uint8))
            wanted[at[at >= 0]] = True
            keep &= wanted
        for number, candidate in enumerate(shared):
            rows = np.sort(table.row[keep & (table.segment == number)]).astype(np.int64)
            if len(rows):
                self.pieces.append(self._piece(holding, candidate, rows))

    def _plan_pinned(self, holding: Holding, mine: Store | None, pinned: Pinned) -> None:
        """Exactly the segments that a ref names, whole, but for what was forgotten."""
        here = {} if mine is None else {s.id: s for s in mine.segments()}
        for name, digest in pinned.items():
            if name in here:
                if here[name].digest != digest:
                    self.tally.problems.append(
                        f"segment {name} here is not the one that was pinned"
                    )
                else:
                    self.tally.already_there += here[name].manifest.n_ok
                continue
            found = self._shared(holding, [name] if name in holding.segments else [])
            if not found or found[0].manifest.digest != digest:
                now = "another one" if found else "gone"
                self.catalogue.refuse(name, f"the ref pins it, and it is {now}")
                continue
            digests = self._digests(found[0])
            if digests is None:
                continue
            banned = forgotten(digests, self.gone)
            self.tally.withheld += int(banned.sum())
            piece = self._piece(holding, found[0], np.flatnonzero(~banned))
            self.pieces.append(replace(piece, pinned=True, by_ranges=False))

    def _digests(self, shared: Shared) -> U8 | None:
        """The contents of a segment's rows; None, and the segment is refused, for wrong ones."""
        try:
            return self.catalogue.column(shared, "digest")
        except (Unreachable, TooMuch):
            raise
        except (RemoteError, FileNotFoundError) as error:
            self.catalogue.refuse(shared.id, error)
            return None

    def _plan_ids(self, holding: Holding, pinned: Pinned | None) -> None:
        """Photo ids: all of them, or those in the segments that a ref pins."""
        here = {segment.id for segment in self.cache.photo_segments()}
        wanted = holding.segments.keys() if pinned is None else holding.segments.keys() & pinned
        for shared in self._shared(holding, [s for s in wanted if s not in here]):
            self.pieces.append(Piece(holding, shared, None, shared.n_bytes))
            self.tally.ids += shared.manifest.n_rows

    def _piece(self, holding: Holding, shared: Shared, rows: I64) -> Piece:
        manifest = shared.manifest
        if len(rows) == manifest.n_rows:
            return Piece(holding, shared, None, shared.n_bytes)
        if (cut := manifest.geometry) is not None:
            by_ranges = range_bytes(cut, rows[rows < manifest.n_ok])
            if by_ranges < RANGES_SHARE * shared.n_bytes:
                return Piece(holding, shared, rows, by_ranges, by_ranges=True)
        return Piece(holding, shared, rows, shared.n_bytes)

    def _store(self, holding: Holding) -> Store:
        """The space here that a holding's rows go into."""
        if holding.kind == "faces":
            for faces in self.cache.face_spaces():
                if faces.digest == holding.digest:
                    return faces
            return self.cache.face_space(self.catalogue.detector(holding), create=True)
        for space in self.cache.spaces():
            if space.digest == holding.digest:
                return space
        return self.cache.space(self.catalogue.spec(holding), create=True)

    def _take_whole(self, pieces: Sequence[Piece], arrive: Arrive) -> None:
        """Segments under their own ids, one being checked while the next one comes."""
        stores: dict[str, Store] = {}
        for piece in pieces:  # not by the threads: two of them would make the same space
            try:
                stores[piece.holding.key] = self._store(piece.holding)
            except (RemoteError, FileNotFoundError) as error:
                self._lost(piece, error)
        pieces = [piece for piece in pieces if piece.holding.key in stores]
        cut_off: list[Unreachable] = []

        def take(piece: Piece) -> Exception | None:
            if cut_off:
                return cut_off[0]
            try:
                with arrive(piece.shared) as segment:
                    settle(segment, stores[piece.holding.key].segments_folder)
            except Unreachable as error:
                cut_off.append(error)
                return error
            except (RemoteError, Damaged, NotACache) as error:
                return error
            return None

        with ThreadPoolExecutor(SEGMENTS_AT_ONCE) as pool:
            for piece, failure in zip(pieces, pool.map(take, pieces), strict=True):
                if failure is not None:
                    self._lost(piece, failure)

    def _take_some(self, piece: Piece, segment: Segment) -> None:
        assert piece.rows is not None
        store = self._store(piece.holding)
        new = replacement_id(piece.shared.id) if piece.pinned else ""
        if len(piece.rows):
            about = _about([piece])
            rewrite(store, store, [(segment, piece.rows)], about=about, segment_id=new)
        if piece.pinned:
            found = {s.id: s.digest for s in store.segments() if s.id == new}
            self.successors[piece.shared.id] = found

    def _take_ids(self, segment: Segment) -> None:
        check_segment(segment)
        contents = np.frombuffer(b"".join(read_pairs(segment)[1]), np.uint8).reshape(-1, 32)
        if forgotten(contents, self.gone).any():
            merge_ids(self.cache, [segment], self.gone)
        else:
            settle(segment, self.cache.path / "photos" / "segments")

    def _gather(self, pieces: list[Piece], count: Counter) -> None:
        """Rows of several segments of one name, by their ranges, into new segments here."""
        store = self._store(pieces[0].holding)
        assert isinstance(store, Space)
        while pieces:
            batch, n_rows = [], 0
            while pieces and n_rows < JOINT_ROWS:
                batch.append(pieces.pop(0))
                assert batch[-1].rows is not None
                n_rows += len(batch[-1].rows)
            name = batch[0].shared.manifest.name
            cut_off = None
            with store.writer(n_rows=n_rows, name=name, about=_about(batch)) as writer:
                for piece in batch:
                    before = writer.n_written
                    try:
                        self._gather_one(piece, writer, count)
                    except Unreachable as error:  # what has come so far is checked and stays
                        cut_off = error
                        break
                    except (RemoteError, Damaged) as error:
                        self._lost(piece, error, came=writer.n_written - before)
            if cut_off is not None:
                raise cut_off

    def _gather_one(self, piece: Piece, writer: SegmentWriter, count: Counter) -> None:
        assert piece.rows is not None
        n_ok = piece.shared.manifest.n_ok
        digests = self.catalogue.column(piece.shared, "digest")
        good, bad = piece.rows[piece.rows < n_ok], piece.rows[piece.rows >= n_ok]
        for start in range(0, len(good), BLOCK_ROWS):
            block = good[start : start + BLOCK_ROWS]
            vectors = fetch_rows(self.catalogue, piece.shared, block, pool=self.pool, count=count)
            writer.add(digests[block], vectors)
        if len(bad):
            reasons = self.catalogue.reasons(piece.shared)
            writer.fail(digests[bad], [reasons[row - n_ok] for row in bad.tolist()])

    def _lost(self, piece: Piece, error: Exception, *, came: int = 0) -> None:
        """A piece did not come: the remote is out of reach (raised), or the piece is refused.

        came: good rows of it that had come before, and stay.
        """
        if isinstance(error, Unreachable):
            raise error
        self.catalogue.refuse(piece.shared.id, error)
        self.catalogue.exclude(piece.shared)
        self.n_lost += 1
        self.tally.bytes -= piece.n_bytes
        if piece.holding.kind == "photos":
            self.tally.ids -= piece.n_rows
        else:
            self.tally.segments -= 1
            self.tally.rows -= piece.n_good - came
            self.tally.failures -= piece.n_rows - piece.n_good


def _about(pieces: Sequence[Piece]) -> dict[str, Json]:
    """Provenance of rows from several segments, bounded: it comes from others."""
    abouts = [piece.shared.manifest.about for piece in pieces]
    joint = dict(abouts[0]) if len(abouts) == 1 else joint_about(abouts)
    if len(canonical_json(joint)) > MAX_ABOUT_BYTES:
        return {"segments": len(pieces)}
    return joint
