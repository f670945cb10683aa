"""Sealed JSON: documents that carry their own sha256, and bounds on what is parsed."""

from hashlib import sha256
from json import loads
from typing import Any

from embedcache.errors import Damaged, NotACache
from embedcache.spec import Json, canonical_json

FORMAT = 1
MAX_MANIFEST_BYTES = 1 << 20
MAX_LIST_BYTES = 16 << 20  # a ref or a tombstone
MAX_ITEMS = 400_000  # in one JSON document: a few bytes of it can cost a hundred in memory
_SELF = b'"self":"'
_PRINTABLE = bytes(range(0x20, 0x7F))  # canonical JSON holds no other bytes
# A search in vain takes two seconds for 4 KiB; its time grows with the square of the size.
MAX_SEARCH_BYTES = 3 << 10


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


def mended(raw: bytes) -> bytes | None:
    """Sealed bytes as they were written, where one byte of them is wrong; None otherwise.

    Their own digest is the proof. Long ones are not searched (MAX_SEARCH_BYTES).
    """
    long = len(raw) > MAX_SEARCH_BYTES
    for start in range(0 if long else len(raw) - 72):  # the key of the digest may be wrong
        part = raw[start : start + len(_SELF)]
        if sum(a != b for a, b in zip(part, _SELF, strict=True)) == 1:
            whole = raw[:start] + _SELF + raw[start + len(_SELF) :]
            if own_digest(whole) is not None:
                return whole
    at = raw.rfind(_SELF) + len(_SELF)
    if at < len(_SELF) or len(raw) < at + 64:
        return None
    stated, blank = raw[at : at + 64], b"".join((raw[:at], b"0" * 64, raw[at + 64 :]))
    true = sha256(blank).hexdigest().encode()
    if sum(a != b for a, b in zip(stated, true, strict=True)) == 1:
        return raw[:at] + true + raw[at + 64 :]
    if long:
        return None
    before = sha256()
    for position in range(len(blank)):
        rest = blank[position + 1 :]
        for byte in _PRINTABLE if not at <= position < at + 64 else b"":
            trial = before.copy()
            trial.update(bytes((byte,)) + rest)
            if trial.hexdigest().encode() == stated:
                right = bytearray(raw)
                right[position] = byte
                return bytes(right)
        before.update(blank[position : position + 1])
    return None
