"""What a segment says about itself, and what is believed of it.

A segment exists once its `manifest.json` does. The manifest names every file with size and sha256,
and carries its own digest: sha256 of the file's bytes with the 64 digits of "self" set to zeros.
`Manifest.parse` takes untrusted bytes and checks sizes before anyone reserves memory for them.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from json import JSONDecoder
from secrets import token_hex
from typing import Any, Self

from embedcache.errors import Damaged
from embedcache.spec import MAX_DIM, MAX_PIXEL_BYTES, Json
from embedcache.store.columns import COLUMNS, ITEM_BYTES, Kind, column_bytes, product
from embedcache.store.sealed import FORMAT, seal, unseal
from embedcache.store.shard import Geometry

MAX_ROWS = 1 << 20
MAX_COLUMN_BYTES = 192 << 20  # all columns of a segment together: a reader takes them whole
MAX_FILES = 4096
MAX_NAME_BYTES = 1 << 16

_SEGMENT_ID = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)(\d{6})-[0-9a-f]{8}", re.ASCII)
# Nearly all ids, which need no look at the calendar.
_PLAIN_ID = re.compile(
    r"2\d{3}(?:0[1-9]|1[0-2])(?:0[1-9]|1\d|2[0-8])T(?:[01]\d|2[0-3])[0-5]\d\d{8}-[0-9a-f]{8}",
    re.ASCII,
)
HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"(?:[a-z_]{1,32}/(?:c(?:/\d{1,9}){1,3}|zarr\.json)|zarr\.json)")
_NAME = b',"name":"'
_DECODER = JSONDecoder()
_HALF = re.compile("[\ud800-\udfff]")


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
            cut: dict[str, Json] = {
                "dim": self.geometry.dim,
                "rows_per_chunk": self.geometry.rows_per_chunk,
                "chunks_per_shard": self.geometry.chunks_per_shard,
                "chunk_crc32c": self.chunk_crcs.hex(),
            }
            if self.geometry.stored != "float32":  # which goes without saying
                cut["dtype"] = self.geometry.stored
            document["embedding"] = cut
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
            row_bytes = ITEM_BYTES[column.dtype] * product(column.tail)
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
            stored = cut.get("dtype", "float32")
            _require(stored == "uint8" or "dtype" not in cut, "its dtype is unknown")
            most = MAX_PIXEL_BYTES if stored == "uint8" else MAX_DIM
            geometry = Geometry(
                dim=_count(cut["dim"], most, "dim", least=1),
                rows_per_chunk=_count(cut["rows_per_chunk"], MAX_ROWS, "rows_per_chunk", least=1),
                chunks_per_shard=_count(cut["chunks_per_shard"], 4096, "chunks_per_shard", least=1),
                stored=stored,
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


def is_segment_id(name: str) -> bool:
    """Whether `name` is a segment's: a moment of the years 1970 to 9998, and 8 hex digits."""
    return _PLAIN_ID.fullmatch(name) is not None or time_of(name) is not None


def time_of(segment: str) -> datetime | None:
    """The moment in a segment's id (UTC); None for a name that is no id, or holds no moment."""
    match = _SEGMENT_ID.fullmatch(segment)
    if match is None:
        return None
    year, month, day, hour, minute, second, microsecond = map(int, match.groups())
    try:
        # Seconds to 99: an earlier version counted on past 59 where many ids had one second.
        start = datetime(year, month, day, hour, minute, tzinfo=UTC)
    except ValueError:
        return None
    if not 1970 <= year <= 9998:
        return None
    return start + timedelta(seconds=second, microseconds=microsecond)


def new_segment_id(*, after: str = "") -> str:
    """An id that sorts by time (UTC, microseconds), after segment `after`, and never collides."""
    now = datetime.now(UTC)
    then = time_of(after)
    if then is not None and now <= then:  # a clock that went back: count on from the newest
        now = then + timedelta(microseconds=1)
    name = now.strftime("%Y%m%dT%H%M%S%f")
    if then is not None and name <= after[:21]:  # `after` counts seconds past 59
        name = (then + timedelta(minutes=1)).strftime("%Y%m%dT%H%M%S%f")
    return f"{name}-{token_hex(4)}"


def are_twins(one: Manifest, other: Manifest) -> bool:
    """Whether two photo segments are of one scope and time: one may hold what the other did.

    What counts for an id is its newest pair, so a segment of another time is no substitute.
    """
    return one.name == other.name and replaces(one.segment, other.segment)


def replaces(name: str, segment: str) -> bool:
    """Whether a segment's id may be a `replacement_id` of another one, or of its predecessor."""
    return moment_of(name) == moment_of(segment)


def moment_of(segment: str) -> str:
    """The part of a segment's id that its replacements have too: its time, to the microsecond."""
    return segment[:21]


def replacement_id(segment: str) -> str:
    """An id for what takes a segment's place: as old as it, and still its own."""
    return f"{moment_of(segment)}-{token_hex(4)}"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _count(value: object, most: int, name: str, *, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is a whole number from {least} to {most:,}; got {value!r:.40}")
    return value


MANIFEST = "manifest.json"
