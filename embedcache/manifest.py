"""What a segment says about itself, and what is believed of it.

A segment exists once its `manifest.json` does. The manifest names every file with size and sha256,
and carries its own digest: sha256 of the file's bytes with the 64 digits of "self" set to zeros.
`Manifest.parse` takes untrusted bytes and checks sizes before anyone reserves memory for them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from json import JSONDecoder, loads
from secrets import token_hex
from typing import Any, Literal, Self

from embedcache.errors import Damaged, NotACache
from embedcache.shard import Geometry
from embedcache.spec import MAX_DIM, Json, canonical_json

Kind = Literal["vectors", "faces", "photos"]

FORMAT = 1
MAX_ROWS = 1 << 20
MAX_COLUMN_BYTES = 192 << 20  # all columns of a segment together: a reader takes them whole
MAX_MANIFEST_BYTES = 1 << 20
MAX_LIST_BYTES = 16 << 20  # a ref or a tombstone
MAX_ITEMS = 400_000  # in one JSON document: a few bytes of it can cost a hundred in memory
MAX_FILES = 4096
MAX_NAME_BYTES = 1 << 16

SEGMENT_ID = re.compile(r"\d{8}T\d{12}-[0-9a-f]{8}")
HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"(?:[a-z_]{1,32}/(?:c(?:/\d{1,9}){1,3}|zarr\.json)|zarr\.json)")
_SELF = b'"self":"'
_NAME = b',"name":"'
_DECODER = JSONDecoder()
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Column:
    """A small array of a segment: one Zarr chunk. dtype is Zarr's name; tail the inner shape."""

    dtype: str
    tail: tuple[int, ...] = ()


_LEDGER = {"reason_offset": Column("int64"), "reason_text": Column("uint8")}
COLUMNS: dict[str, dict[str, Column]] = {
    "vectors": {
        "digest": Column("uint8", (32,)),
        "status": Column("uint8"),
        "row_crc": Column("uint32"),
        **_LEDGER,
    },
    "faces": {
        "digest": Column("uint8", (32,)),
        "status": Column("uint8"),
        "face_offset": Column("int64"),
        "box": Column("float32", (4,)),
        "probability": Column("float32"),
        "landmark": Column("float32", (5, 2)),
        **_LEDGER,
    },
    "photos": {
        "digest": Column("uint8", (32,)),
        "id_offset": Column("int64"),
        "id_text": Column("uint8"),
    },
}
ITEM_BYTES = {"uint8": 1, "uint32": 4, "int64": 8, "float32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A parsed manifest.

    segment: the folder's name. kind: which columns it has. space: digest of what its rows depend
        on (a spec's or a detector's), or for photos a scope.
    n_rows: rows, the first n_ok of them good, the others failures with reasons.
    lengths: rows of each column. geometry, chunk_crcs: of `embedding`, for kind "vectors".
    files: {path in the segment: (size, sha256)}. name, about, created: provenance.
    digest: the manifest's own, which a ref pins.
    """

    segment: str
    kind: Kind
    space: str
    n_rows: int
    n_ok: int
    lengths: dict[str, int]
    geometry: Geometry | None
    chunk_crcs: bytes
    files: dict[str, tuple[int, str]]
    name: str
    about: dict[str, Json]
    created: str
    digest: str

    @property
    def bytes_on_disk(self) -> int:
        return sum(size for size, _ in self.files.values())

    def column_shape(self, name: str) -> tuple[int, ...]:
        return (self.lengths[name], *COLUMNS[self.kind][name].tail)

    def encode(self) -> bytes:
        """The bytes of manifest.json; `digest` is filled in here and not read."""
        document: dict[str, Json] = {
            "format": FORMAT,
            "segment": self.segment,
            "kind": self.kind,
            "space": self.space,
            "rows": self.n_rows,
            "ok": self.n_ok,
            "columns": dict(self.lengths),
            "files": {path: [size, digest] for path, (size, digest) in self.files.items()},
            "name": self.name,
            "about": self.about,
            "created": self.created,
        }
        if self.geometry is not None:
            document["embedding"] = {
                "dim": self.geometry.dim,
                "rows_per_chunk": self.geometry.rows_per_chunk,
                "chunks_per_shard": self.geometry.chunks_per_shard,
                "chunk_crc32c": self.chunk_crcs.hex(),
            }
        return seal(document)

    @classmethod
    def parse(cls, raw: bytes, *, segment: str, kind: Kind, space: str | None = None) -> Self:
        """Read a manifest found in folder `segment`; Damaged says what is wrong with it.

        Raises NotACache for a manifest of a later format.
        """
        document, digest = unseal(raw, what=f"the manifest of segment {segment}")
        try:
            return cls._parse(document, digest, segment=segment, kind=kind, space=space)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"the manifest of segment {segment} is refused: {error}") from None

    @classmethod
    def _parse(
        cls, document: dict[str, Any], digest: str, *, segment: str, kind: Kind, space: str | None
    ) -> Self:
        _require(document["segment"] == segment, f"it belongs to {document['segment']!r:.80}")
        _require(document["kind"] == kind, f"its kind is {document['kind']!r:.80}, not {kind}")
        if space is not None:
            _require(document["space"] == space, f"it belongs to {document['space']!r:.80}")
        n_rows = _count(document["rows"], MAX_ROWS, "rows")
        n_ok = _count(document["ok"], n_rows, "ok")
        columns = COLUMNS[kind]
        _require(document["columns"].keys() == columns.keys(), "its columns are not the kind's")
        lengths = {}
        for name, column in columns.items():
            row_bytes = ITEM_BYTES[column.dtype] * _product(column.tail)
            lengths[name] = _count(document["columns"][name], MAX_COLUMN_BYTES // row_bytes, name)
        _require(column_bytes(kind, lengths) <= MAX_COLUMN_BYTES, "its columns are too large")
        n_failed = n_rows - n_ok
        fixed = {"digest": n_rows, "status": n_rows, "row_crc": n_ok, "face_offset": n_ok + 1}
        fixed |= {"reason_offset": n_failed + 1, "id_offset": n_rows + 1}
        for name in fixed.keys() & lengths.keys():
            _require(lengths[name] == fixed[name], f"column {name} does not fit {n_rows:,} rows")
        geometry, chunk_crcs = None, b""
        if kind == "vectors":
            cut = document["embedding"]
            geometry = Geometry(
                dim=_count(cut["dim"], MAX_DIM, "dim", least=1),
                rows_per_chunk=_count(cut["rows_per_chunk"], MAX_ROWS, "rows_per_chunk", least=1),
                chunks_per_shard=_count(cut["chunks_per_shard"], 4096, "chunks_per_shard", least=1),
            )
            _require(geometry.chunk_bytes <= 64 << 20, "a chunk of it is over 64 MiB")
            chunk_crcs = bytes.fromhex(cut["chunk_crc32c"])
            _require(len(chunk_crcs) == 4 * geometry.n_chunks(n_ok), "it lacks chunk CRCs")
        for text in ("space", "name", "created"):
            _require(type(document[text]) is str and len(document[text]) <= 4096, f"{text} is text")
            document[text].encode()  # half of a surrogate pair cannot even be printed
        _require(isinstance(document["about"], dict), "about is an object")
        _require(len(document["files"]) <= MAX_FILES, f"it names over {MAX_FILES} files")
        return cls(
            segment=segment,
            kind=kind,
            space=document["space"],
            n_rows=n_rows,
            n_ok=n_ok,
            lengths=lengths,
            geometry=geometry,
            chunk_crcs=chunk_crcs,
            files={path: (size, sha) for path, (size, sha) in document["files"].items()},
            name=document["name"],
            about=document["about"],
            created=document["created"],
            digest=digest,
        )

    def check_files(self) -> None:
        """Damaged unless every file named is one that a segment may hold, inside the segment."""
        for path, (size, digest) in self.files.items():
            if not (
                _FILE.fullmatch(path)
                and type(size) is int
                and size >= 0
                and type(digest) is str
                and HEX_DIGEST.fullmatch(digest)
            ):
                raise Damaged(f"the manifest of {self.segment} names {path!r:.100}: refused")


def column_bytes(kind: Kind, lengths: Mapping[str, int]) -> int:
    """What the columns of a segment take, from their lengths."""
    columns = COLUMNS[kind].items()
    return sum(lengths[name] * ITEM_BYTES[c.dtype] * _product(c.tail) for name, c in columns)


def seal(document: dict[str, Json]) -> bytes:
    """Canonical JSON with the digest of itself under "self"."""
    blank = canonical_json(document | {"self": "0" * 64})
    at = blank.rfind(_SELF) + len(_SELF)
    return blank[:at] + sha256(blank).hexdigest().encode() + blank[at + 64 :]


def own_digest(raw: bytes) -> str | None:
    """The digest that sealed bytes carry; None unless it is theirs. Parses nothing."""
    at = raw.rfind(_SELF) + len(_SELF)
    digest = raw[at : at + 64]
    blank = b"".join((raw[:at], b"0" * 64, raw[at + 64 :]))
    if at < len(_SELF) or sha256(blank).hexdigest().encode() != digest:
        return None
    return digest.decode()


def own_name(raw: bytes) -> str:
    """The "name" of a sealed manifest, without parsing the rest; "" where there is none.

    Keys are sorted and quotes in texts are escaped, so the last such key is the outermost.
    """
    at = raw.rfind(_NAME)
    try:
        name, _ = _DECODER.raw_decode(raw[at + len(_NAME) - 1 : at + MAX_NAME_BYTES].decode())
    except ValueError:
        return ""
    whole = at >= 0 and isinstance(name, str) and not _HALF.search(name)
    return name if whole else ""


def unseal(raw: bytes, *, what: str, limit: int = MAX_MANIFEST_BYTES) -> tuple[dict[str, Any], str]:
    """Read sealed bytes: (document, its digest). Damaged, or NotACache for a later format."""
    if len(raw) > limit:
        raise Damaged(f"{what} has {len(raw):,} bytes; at most {limit:,} are accepted")
    digest = own_digest(raw)
    if digest is None:
        raise Damaged(f"{what} is not as it was written (its own digest differs)")
    try:
        document = loads(raw) if raw.count(b",") <= MAX_ITEMS else None
        # Canonical, so that there is one reading of it: no key twice, no NaN.
        as_written = canonical_json(document) == raw
    except (ValueError, RecursionError):
        document, as_written = None, False
    if not isinstance(document, dict) or not as_written or document.get("self") != digest:
        raise Damaged(f"{what} is not the JSON that was written")
    if document.get("format") != FORMAT:
        raise NotACache(
            f"{what} has format {document.get('format')!r:.40}; this version of embedcache reads "
            f"format {FORMAT}. A newer embedcache wrote it: update yours"
        )
    return document, digest


def new_segment_id(*, after: str = "") -> str:
    """An id that sorts by time (UTC, microseconds), after segment `after`, and never collides."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    if now <= after[:21]:  # a clock that went back: count on from the newest
        date, clock = after[:8], int(after[9:21]) + 1
        now = f"{date}T{clock:012d}"
    return f"{now}-{token_hex(4)}"


def replacement_id(segment: str) -> str:
    """An id for what takes a segment's place: as old as it, and still its own."""
    return f"{segment[:21]}-{token_hex(4)}"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _count(value: object, most: int, name: str, *, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is a whole number from {least} to {most:,}; got {value!r:.40}")
    return value


def _product(shape: tuple[int, ...]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n
