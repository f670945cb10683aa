"""What a cache holds, for `embedcache info`. No torch, no zarr."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedcache.photos.kinds import SEVERAL_FACES, in_words
from embedcache.photos.table import Photos
from embedcache.spec import Json, Spec, shape_of, unnamed
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, FAILED, OK
from embedcache.store.layout import check_root
from embedcache.store.rows import UNKNOWN, Counts, RowSet
from embedcache.wording import columns, counted, plain

STATES = {ABSENT: "absent", OK: "ok", FAILED: "failed"}
SHOWN_PLACES = 5
SHOWN_IDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoLine:
    """One photo: its newest content and, per backbone, "ok", "absent" or why it failed."""

    photo_id: str
    scope: str
    digest: str
    states: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A cache's spaces, faces and ids; prints itself.

    spaces: (spec document, spec digest, counts) per set of vectors.
    faces: (document, digest, counts) per detector.
    n_ids: photo ids.  places: ids per folder or table that they were read from.
    photos: one line per id, None unless asked for; its states are in the order of `spaces`.
    """

    path: str
    format: int
    spaces: tuple[tuple[dict[str, Json], str, Counts], ...]
    faces: tuple[tuple[dict[str, Json], str, Counts], ...]
    n_ids: int
    places: dict[str, int]
    photos: tuple[PhotoLine, ...] | None

    def document(self) -> dict[str, Json]:
        return {
            "path": self.path,
            "format": self.format,
            "photo_ids": self.n_ids,
            "scopes": len(self.places),
            "places": dict(self.places),
            "spaces": [
                {"spec": digest, "document": spec, "dim": spec["dim"], **_counted(counts)}
                for spec, digest, counts in self.spaces
            ],
            "faces": [
                {"detector": digest, "document": document, **_counted(counts)}
                for document, digest, counts in self.faces
            ],
            **({} if self.photos is None else {"photos": [_line(p) for p in self.photos]}),
        }

    def __str__(self) -> str:
        n_places = len(self.places)
        lines = [
            f"{self.path}: {counted(self.n_ids, 'photo id')} from {counted(n_places, 'place')}"
        ]
        for place, n in list(self.places.items())[:SHOWN_PLACES]:
            lines.append(f"  {place} ({counted(n, 'id')})")
        if n_places > SHOWN_PLACES:
            lines.append(f"  and {n_places - SHOWN_PLACES:,} more")
        for spec, digest, counts in self.spaces:
            layer = Spec.parse(spec).layer
            about = f"  ({layer})" if layer else "  imported" if spec["kind"] == "foreign" else ""
            shape = shape_of(Spec.parse(spec))
            lines += [f"{_name(spec, counts)}  {shape}  spec {digest[:8]}{about}"]
            lines += _lines(counts, "distinct photo")
        for document, digest, counts in self.faces:
            name = document.get("detector", "")
            lines += [f"faces  detector {digest[:8]}  {name}", *_lines(counts, "distinct photo")]
        if all(spec["kind"] == "pixels" for spec, _, _ in self.spaces):
            lines.append("no vectors yet: 'embedcache extract PHOTOS --cache DIR' makes some")
        if self.photos is not None:
            lines += ["", *self._table(self.photos)]
        return "\n".join(plain(line) for line in lines)

    def _table(self, photos: tuple[PhotoLine, ...]) -> list[str]:
        """One line per photo, under a header; ids of the same content share it."""
        if not photos:
            return ["no such photos"]
        same: dict[str, list[PhotoLine]] = {}
        for photo in photos:
            same.setdefault(photo.digest, []).append(photo)
        named = [_name(spec, counts) for spec, _, counts in self.spaces]
        heads = [
            name if named.count(name) == 1 else f"{name}#{digest[:8]}"
            for name, (_, digest, _) in zip(named, self.spaces, strict=True)
        ]
        rows = [["photo id", "place", "sha256", *heads]]
        for digest, lines in same.items():
            ids, places = ([*dict.fromkeys(of(x) for x in lines)] for of in (_id_of, _place_of))
            states = [in_words(state) for state in lines[0].states]
            rows.append([_some(ids), _some(places), digest[:12], *states])
        hint = [f"{SEVERAL_FACES}"] if any("several_faces" in x.states for x in photos) else []
        return [*columns(rows), *hint]


def summarise(cache: Cache, *, photos: bool = False, failed: bool = False) -> Summary:
    """Count what `cache` holds.

    photos: also list every id with its state per backbone.
    failed: list only ids that failed for a backbone or that no backbone has embedded.
    """
    spaces = sorted(cache.spaces(), key=lambda space: (space.names, space.digest))
    table = cache.photo_table()
    places = table.places()
    lines = None
    if photos or failed:
        newest = np.flatnonzero(table.newest).tolist()
        digests = table.digests[newest]
        columns = [_states(space, digests) for space in spaces]
        of_vectors = [k for k, space in enumerate(spaces) if space.spec.kind != "pixels"]
        lines = tuple(
            PhotoLine(
                photo_id=table.ids[i],
                scope=table.scopes[i],
                digest=table.digests[i].tobytes().hex(),
                states=tuple(column[row] for column in columns),
            )
            for row, i in enumerate(newest)
            if photos or _lacks_a_vector([columns[k][row] for k in of_vectors])
        )
    return Summary(
        path=str(cache.path),
        format=check_root(cache.path),
        spaces=tuple((s.spec.document(), s.digest, s.counts()) for s in spaces),
        faces=tuple((f.document, f.digest, f.counts()) for f in cache.face_spaces()),
        n_ids=sum(places.values()),
        places=places,
        photos=lines,
    )


def failures_of(photos: Photos, cache: Cache, specs: Sequence[str]) -> list[tuple[str, str]]:
    """(id, reason) of the photos that have no vector of a spec, in the photos' order."""
    digests = photos.digests(cache)
    reasons = dict(digests.reasons)
    readable = np.flatnonzero(digests.readable)
    dead = cache.dead(digests.value[readable])
    for space in cache.spaces():
        if space.digest not in specs:
            continue
        states = _states(space, digests.value[readable])
        reasons |= {
            int(i): ("forgotten" if gone else "not read") if state == STATES[ABSENT] else state
            for i, state, gone in zip(readable, states, dead, strict=True)
            if state != STATES[OK]
        }
    return [(photos.ids[i], reasons[i]) for i in sorted(reasons)]


def _lacks_a_vector(states: Sequence[str]) -> bool:
    """Whether a photo failed somewhere, or was embedded nowhere."""
    return STATES[OK] not in states or bool({*states} - {STATES[OK], STATES[ABSENT]})


def _states(space: RowSet, digests: npt.NDArray[np.uint8]) -> list[str]:
    status = space.status(digests)
    reasons = space.reasons(digests)
    return [
        "ok" if code == OK else reason or STATES[int(code)]
        for code, reason in zip(status, reasons, strict=True)
    ]


def _counted(counts: Counts) -> dict[str, Json]:
    return {
        "names": list(counts.names),
        "rows": counts.ok,
        "failed": dict(counts.failed),
        "segments": counts.segments,
        "bytes": counts.bytes_on_disk,
        "writers": dict(counts.writers),
        "devices": dict(counts.devices),
        "first": counts.first,
        "last": counts.last,
    }


def _name(spec: dict[str, Json], counts: Counts) -> str:
    return " = ".join(counts.names) or unnamed(Spec.parse(spec))


def _id_of(photo: PhotoLine) -> str:
    return photo.photo_id


def _place_of(photo: PhotoLine) -> str:
    return photo.scope


def _some(names: list[str]) -> str:
    """`a.jpg, b.jpg, c.jpg and 4 more`."""
    more = len(names) - SHOWN_IDS
    return ", ".join(names[:SHOWN_IDS]) + (f" and {more:,} more" if more > 0 else "")


def _lines(counts: Counts, noun: str) -> list[str]:
    megabytes = counts.bytes_on_disk / 1e6
    lines = [
        f"  {counted(counts.ok, noun)} in {counted(counts.segments, 'segment')}, "
        f"{megabytes:,.1f} MB" + (f", last written {counts.last[:10]}" if counts.last else "")
    ]
    for what, known in (("writer", counts.writers), ("device", counts.devices)):
        if known.keys() - {UNKNOWN}:
            shown = ", ".join(f"{name} ({n:,})" for name, n in known.items())
            lines.append(f"  segments by {what}: {shown}")
    if counts.failed:
        reasons = ", ".join(f"{n:,} {in_words(reason)}" for reason, n in counts.failed.items())
        lines.append(f"  failed: {reasons}")
    return lines


def _line(photo: PhotoLine) -> dict[str, Json]:
    return {
        "photo_id": photo.photo_id,
        "scope": photo.scope,
        "digest": photo.digest,
        "states": list(photo.states),
    }
