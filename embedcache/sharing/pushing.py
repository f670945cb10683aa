"""One push: which segments and rows the shared copy lacks, and their way there."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, Damaged, RemoteError
from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import BLOCK_BYTES, Denied, Unreachable
from embedcache.sharing.moved import SEGMENTS_AT_ONCE, Progress, Tally, counter
from embedcache.sharing.shared_copy import ROOTS, Catalogue, Holding, TooMuch
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT
from embedcache.store.index import Table
from embedcache.store.layout import APART
from embedcache.store.manifest import MANIFEST
from embedcache.store.photo_ids import read_pairs
from embedcache.store.refs import (
    MAX_REF_BYTES,
    Pins,
    encode_ref,
    pinned_segments,
    read_ref,
    same_pins,
)
from embedcache.store.sealed import MAX_MANIFEST_BYTES, unseal
from embedcache.store.segment import Segment
from embedcache.store.space import FaceSpace, Space
from embedcache.store.tombstones import FOLDER as TOMBSTONES
from embedcache.store.tombstones import Tombstones, forgotten
from embedcache.store.zarr_json import encode_document, group_document
from embedcache.upkeep.rewrite import Store, rewrite

I64 = NDArray[np.int64]
Counter = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is to go of one segment: `files` of it, or a new segment of some `rows`.

    key: of the space on the remote. mends: the segment is there, and lacks these files.
    """

    key: str
    segment: Segment
    store: Store | None
    files: tuple[str, ...]
    rows: I64 | None = None
    mends: bool = False

    @property
    def n_bytes(self) -> int:
        manifest = self.segment.manifest
        size = sum(manifest.files[path][0] for path in self.files)
        return size if self.rows is None else size * len(self.rows) // max(1, manifest.n_rows)


class Push:
    """One push's plan and work."""

    def __init__(
        self,
        catalogue: Catalogue,
        cache: Cache,
        tally: Tally,
        gone: Tombstones,
        pool: ThreadPoolExecutor,
        *,
        purge: bool = False,
    ) -> None:
        self.purges = purge
        self.doomed: list[tuple[Store, Holding, str, NDArray[np.uint8]]] = []
        self.catalogue = catalogue
        self.remote = catalogue.remote
        self.cache = cache
        self.tally = tally
        self.gone = gone
        self.pool = pool
        self.parcels: list[Parcel] = []
        self.sent_refs: dict[str, Pins] = {}
        self.documents: dict[str, bytes] = {}

    def plan(self, *, backbones: Sequence[str], specs: Sequence[str], with_ids: bool) -> None:
        """Find out what the shared copy lacks."""
        pinned = pinned_segments(self.cache.path)
        there = {root: self.catalogue.holdings(root) for root in ROOTS}
        for store in self._chosen(backbones):
            if specs and store.digest not in specs:
                continue
            if isinstance(store, Space):
                root = APART if store.spec.apart else "spaces"
                if store.digest in there["spaces"]:  # a shared folder that somebody extracted into
                    root = "spaces"
                elif store.digest in there[APART]:
                    root = APART
                document: dict[str, Json] = {"spec": store.spec.document()}
            else:
                root, document = "faces", {"detector": dict(store.document)}
            holding = there[root].get(store.digest) or Holding(root, store.digest)
            try:
                self._plan_store(store, holding, pinned)
            except Denied:
                self.catalogue.locked(root)
                continue
            if any(parcel.key == holding.key for parcel in self.parcels):
                group = group_document({"embedcache": document})
                self.documents[f"{holding.key}/segments/zarr.json"] = encode_document(
                    group_document({})
                )
                self.documents[f"{holding.key}/zarr.json"] = encode_document(group)
        if with_ids:
            self._plan_ids(there["photos"].get("") or Holding("photos", ""))
        self.tally.bytes = sum(parcel.n_bytes for parcel in self.parcels)
        if self.gone:
            for store in self._chosen(()):
                self.tally.still_here += int(forgotten(store.digests(), self.gone).sum())

    def move(self, progress: Progress | None) -> None:
        """Send it, each segment's data first and its manifest last."""
        count = counter(progress, self.tally.bytes)
        known = {key for root in ROOTS for key in self.catalogue.keys(root)}
        for key, raw in self.documents.items():
            if key not in known:
                self.remote.create(key, raw)
        whole = [parcel for parcel in self.parcels if parcel.rows is None]
        with ThreadPoolExecutor(SEGMENTS_AT_ONCE) as pool:
            jobs = [pool.submit(self._send, parcel, count) for parcel in whole]
            try:
                for job in jobs:
                    job.result()
            finally:
                for job in jobs:
                    job.cancel()
        for parcel in self.parcels:
            if parcel.rows is not None:
                with self._chosen_rows(parcel) as new:
                    self._send(new, count)

    def purge(self, *, dry_run: bool) -> None:
        """Remove from the shared copy every segment that holds forgotten rows.

        Its other rows have just been sent in new segments; where they are not here, it stays, and
        so does one that a ref there still pins.
        """
        refs = {name: pins for name, (pins, _) in self.catalogue.refs().items()} | self.sent_refs
        pinning = {one: name for name, pins in refs.items() for part in pins.parts for one in part}
        for store, holding, name, digests in self.doomed:
            if name in pinning:
                self.tally.problems.append(
                    f"segment {name} of {self.remote.name} holds forgotten photos, and ref "
                    f"{pinning[name]} there pins it: 'embedcache pull --ref {pinning[name]} "
                    f"{self.remote.name} {self.cache.path}', 'embedcache forget {self.cache.path} "
                    "--forgotten', then push --purge again"
                )
                continue
            banned = forgotten(digests, self.gone)
            others = digests[~banned]
            if not (store.status(others) != ABSENT).all():
                self.tally.problems.append(
                    f"segment {name} of {self.remote.name} holds forgotten photos beside others "
                    "that are not here: pull, then push --purge again"
                )
                continue
            self.tally.purged += 1
            self.tally.purged_rows += int(banned.sum())
            if dry_run:
                continue
            key = f"{holding.key}/segments/{name}"
            self.remote.delete(f"{key}/{MANIFEST}")  # first: from now on it does not exist
            for path in holding.segments[name]:
                if path != MANIFEST:
                    self.remote.delete(f"{key}/{path}")

    def tombstones(self, *, dry_run: bool) -> None:
        """Send what was forgotten here, so that pulls of others obey it."""
        theirs = self.catalogue.tombstones()
        for path in sorted((self.cache.path / TOMBSTONES).glob("[!.]*.json")):
            if path.name not in theirs:
                if not dry_run:
                    self.remote.create(f"{TOMBSTONES}/{path.name}", path.read_bytes())
                self.tally.tombstones += 1

    def refs(self, *, with_ids: bool, dry_run: bool) -> None:
        """Send refs; one that is there already stays as it is."""
        theirs = self.catalogue.refs()
        for path in sorted((self.cache.path / "refs").glob("[!.]*.json")):
            name = path.stem
            pins = read_ref(self.cache.path, name)
            document, _ = unseal(path.read_bytes(), what=f"ref {name}", limit=MAX_REF_BYTES)
            changes = document["changes"]
            raw = encode_ref(pins if with_ids else replace(pins, photos=None), changes=changes)
            if name in theirs:
                if same_pins(pins, theirs[name][0]):
                    continue
                if self.purges and changes:  # `forget` changed it, and says so
                    if not dry_run:
                        self.remote.write(f"refs/{name}.json", partial(_once, raw), size=len(raw))
                    self.tally.refs.append(name)
                    self.sent_refs[name] = pins
                else:
                    self.tally.notes.append(
                        f"ref {name} is there already and pins other segments: refs never change, "
                        "so take another name"
                    )
                continue
            fits = len(raw) <= MAX_REF_BYTES
            if fits and (dry_run or self.remote.create(f"refs/{name}.json", raw)):
                self.tally.refs.append(name)

    def _chosen(self, backbones: Sequence[str]) -> list[Store]:
        if not backbones:
            return [*self.cache.spaces(), *self.cache.face_spaces()]
        spaces = [self.cache.find(name) for name in dict.fromkeys(backbones)]
        detectors = {space.spec.face.detector for space in spaces if space.spec.face is not None}
        faces = [space for space in self.cache.face_spaces() if space.digest in detectors]
        return [*spaces, *faces]

    def _plan_store(self, store: Store, holding: Holding, pinned: dict[str, list[str]]) -> None:
        segments, table = store.row_table()
        there, at_remote = self._remote_rows(store, segments, holding)
        at = at_remote.find(table.digests)
        ok = np.zeros(len(at), dtype=np.bool_)
        ok[at >= 0] = at_remote.ok[at[at >= 0]]
        keep = np.where(table.ok, ~ok, at < 0)
        self.tally.already_there += int((table.ok & ok).sum())
        banned = forgotten(table.digests, self.gone)
        self.tally.withheld += int((banned & keep).sum())
        keep &= ~banned
        for number, segment in enumerate(segments):
            if segment.id in there:
                self._mend(segment, holding)
                continue
            rows = np.sort(table.row[keep & (table.segment == number)]).astype(np.int64)
            if segment.id in pinned:  # a ref must find it whole, unless that would undo a forget
                hidden = forgotten(segment.column("digest"), self.gone)
                rows = rows if hidden.any() else np.arange(len(hidden))
            if not len(rows):
                continue
            n_ok = segment.manifest.n_ok
            self.tally.segments += 1
            self.tally.rows += int((rows < n_ok).sum())
            self.tally.failures += int((rows >= n_ok).sum())
            whole = len(rows) == segment.manifest.n_rows
            files = tuple(segment.manifest.files)
            self.parcels.append(Parcel(holding.key, segment, store, files, None if whole else rows))

    def _remote_rows(
        self, store: Store, segments: Sequence[Segment], holding: Holding
    ) -> tuple[set[str], Table]:
        """Ids of the segments that are there, and all rows that are there."""
        here = {segment.id: segment for segment in segments}
        there = {name for name, files in holding.segments.items() if MANIFEST in files}
        found = [
            (name, here[name].column("digest"), here[name].manifest.n_ok)
            for name in sorted(there & here.keys())
        ]
        others = sorted(there - here.keys())
        for shared in self.pool.map(lambda name: self.catalogue.shared(holding, name), others):
            if shared is None:
                continue
            try:
                digests = self.catalogue.column(shared, "digest")
            except (Unreachable, Denied, TooMuch):
                raise
            except (RemoteError, FileNotFoundError) as error:
                self.catalogue.refuse(shared.id, error)
                continue
            found.append((shared.id, digests, shared.manifest.n_ok))
        parts: list[tuple[int, NDArray[np.uint8], int]] = []
        for name, digests, n_ok in found:
            if self.purges and forgotten(digests, self.gone).any():
                self.doomed.append((store, holding, name, digests))
                there.discard(name)
            else:
                parts.append((len(parts), digests, n_ok))
        return there, Table.empty().extended(parts, renumbered=np.empty(0, np.int64))

    def _mend(self, segment: Segment, holding: Holding) -> None:
        """Send the files that a segment there lacks, or has in another size."""
        listed = holding.segments[segment.id]
        lacking = tuple(
            path
            for path, (size, _) in segment.manifest.files.items()
            if path not in listed or listed[path].size != size
        )
        if lacking:
            self.tally.notes.append(f"segment {segment.id} there lacked {len(lacking)} files")
            self.parcels.append(Parcel(holding.key, segment, None, lacking, mends=True))

    def _plan_ids(self, holding: Holding) -> None:
        for segment in self.cache.photo_segments():
            if MANIFEST in holding.segments.get(segment.id, {}):
                continue
            contents = np.frombuffer(b"".join(read_pairs(segment)[1]), np.uint8).reshape(-1, 32)
            if forgotten(contents, self.gone).any():
                self.tally.notes.append(
                    "some photo ids stay home: they are of photos that were forgotten"
                )
                continue
            files = tuple(segment.manifest.files)
            self.parcels.append(Parcel(holding.key, segment, None, files))
            self.tally.ids += segment.manifest.n_rows

    @contextlib.contextmanager
    def _chosen_rows(self, parcel: Parcel) -> Iterator[Parcel]:
        """A segment of only the chosen rows, made for the way and removed after it."""
        assert parcel.store is not None
        assert parcel.rows is not None
        folder = self.cache.local / f"outgoing-{os.urandom(4).hex()}"
        (folder / "segments").mkdir(parents=True)
        try:
            target: Store
            if isinstance(parcel.store, Space):
                target = Space(folder, parcel.store.spec)
            else:
                target = FaceSpace(folder, dict(parcel.store.document), parcel.store.digest)
            about = dict(parcel.segment.manifest.about)
            rewrite(target, parcel.store, [(parcel.segment, parcel.rows)], about=about)
            [new] = target.segments()
            yield Parcel(parcel.key, new, None, tuple(new.manifest.files))
        finally:
            disk.remove_folder(folder)

    def _send(self, parcel: Parcel, count: Counter) -> None:
        segment, manifest = parcel.segment, parcel.segment.manifest
        key = f"{parcel.key}/segments/{segment.id}"
        raw = disk.read_inside(segment.folder, MANIFEST, limit=MAX_MANIFEST_BYTES)
        there = {}
        if not parcel.mends:
            there = {entry.key: entry.size for entry in self.remote.unfinished(key)}

        def send(path: str) -> None:
            size, digest = manifest.files[path]
            if there.get(f"{key}/{path}") != size:
                blocks = _checked(segment, path, size, digest)
                self.remote.write(f"{key}/{path}", blocks, size=size)
            count(size)

        jobs = [self.pool.submit(send, path) for path in parcel.files]
        try:
            for job in jobs:
                job.result()
        except FileNotFoundError:
            raise CacheError(
                f"segment {segment.id} was removed while it was pushed (compacted or forgotten): "
                "run the same command again"
            ) from None
        finally:
            for job in jobs:
                job.cancel()
        if parcel.mends or self.remote.create(f"{key}/{MANIFEST}", raw):
            return
        if read_small(self.remote, f"{key}/{MANIFEST}", limit=MAX_MANIFEST_BYTES) != raw:
            raise RemoteError(
                f"{self.remote.name} holds another segment under the name {segment.id}, which "
                "nobody should have written: ask who else can write there"
            )


def _once(raw: bytes) -> Iterator[bytes]:
    yield raw


def _checked(segment: Segment, path: str, size: int, digest: str) -> Callable[[], Iterator[bytes]]:
    """A file's blocks; after the last one Damaged, so that nothing is stored, for a wrong file."""

    def blocks() -> Iterator[bytes]:
        running, at = sha256(), 0
        fd = disk.open_inside(segment.folder, path)
        try:
            while block := os.pread(fd, BLOCK_BYTES, at):
                running.update(block)
                at += len(block)
                yield block
        finally:
            os.close(fd)
        if at != size or running.hexdigest() != digest:
            raise Damaged(
                f"segment {segment.id}: {path} is not what was written, so it was not pushed. Run "
                f"'embedcache verify --repair {segment.cache}'"
            )

    return blocks
