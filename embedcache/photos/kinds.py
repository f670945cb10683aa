"""What a photo file is, from its bytes alone, before any pixel is decoded. No Pillow.

kind_of(data)            "jpeg", "png", ... or a DecodeError
check_scans, webp_size   what must be known before a decoder is started
without_profiles(data)   a PNG without what only some readers need
"""

import re
import zlib
from enum import StrEnum

from embedcache.photos.digests import MAX_FILE_BYTES

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
    + [".heic", ".heif", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"]
)
KINDS = ("avif", "bmp", "gif", "heic", "jpeg", "png", "ppm", "tiff", "webp")
MAX_SCANS = 200  # of a JPEG; encoders write one, or about ten


class Reason(StrEnum):
    """Why a photo has no vector. The text is what a ledger stores; it never changes meaning."""

    vanished = "vanished"  # no such file, or gone between the plan and the reading
    unreadable = "unreadable"  # the file system refused, or it is no regular file
    empty_file = "empty_file"
    too_large_file = "too_large_file"
    not_an_image = "not_an_image"  # no kind of picture that is read here
    no_decoder = "no_decoder"  # a known kind whose decoder is not installed
    too_many_pixels = "too_many_pixels"
    too_many_scans = "too_many_scans"  # a JPEG that would take hours to decode
    truncated = "truncated"  # the end is missing
    damaged = "damaged"
    unsupported = "unsupported"  # pixels without a defined RGB meaning (float, 32-bit, Lab)
    no_face = "no_face"
    several_faces = "several_faces"
    worker_ended = "worker_ended"  # on a cluster: each process that read it ended


_WORDS: dict[str, str] = {
    Reason.vanished: "file not found",
    Reason.unreadable: "cannot be read",
    Reason.too_large_file: "file too large",
    Reason.no_decoder: "no decoder installed: pip install pillow-heif",
    Reason.unsupported: "pixels of no known colour",
    Reason.worker_ended: "worker ended each time",
}
SEVERAL_FACES = "several faces: NAME@largest-face or NAME@central-face takes one of them"


def in_words(reason: str) -> str:
    """A reason as a screen shows it: `several_faces` is several faces."""
    return _WORDS[reason] if reason in _WORDS else reason.replace("_", " ")


class DecodeError(Exception):
    """A photo that cannot become pixels. Extraction turns it into a row of the ledger."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),  # BigTIFF
    (b"MM\0+", "tiff"),
    (b"BM", "bmp"),
)
_NETPBM = re.compile(rb"P[1-6][\s#]")
SNIFF_BYTES = 256
"""Bytes from which `kind_of` knows every kind."""
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def kind_of(data: bytes) -> str:
    """The kind of picture by its first bytes; DecodeError for any other file."""
    if not data:
        raise DecodeError(Reason.empty_file, "the file has no bytes")
    if len(data) > MAX_FILE_BYTES:
        raise DecodeError(
            Reason.too_large_file, f"{len(data):,} bytes; at most {MAX_FILE_BYTES:,} are read"
        )
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    if _NETPBM.match(data):
        return "ppm"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[i : i + 4] for i in range(8, end, 4)}
        if brands & {b"avif", b"avis"}:
            return "avif"
        if brands & _HEIC_BRANDS:
            return "heic"
    raise DecodeError(
        Reason.not_an_image,
        f"starts with {data[:8]!r}; the kinds read here are {', '.join(KINDS)}",
    )


_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_EOI, _SOS = 0xD9, 0xDA
_BARE = {0x01, 0xD8}  # markers that no length follows


def check_scans(data: bytes) -> None:
    """Refuse a JPEG with more scans than any encoder writes.

    A scan of a few bytes makes libjpeg go through all coefficients once more, so that one file
    could hold a thread for hours. Bytes after the picture's end are ignored: the films of moving
    photos lie there.
    """
    if data.count(b"\xff\xda") <= MAX_SCANS:
        return
    at, scans = 2, 0
    while (marker := _MARKER.search(data, at)) and (code := marker[1][0]) != _EOI:
        at = marker.end()
        scans += code == _SOS
        if scans > MAX_SCANS:
            raise DecodeError(Reason.too_many_scans, f"at most {MAX_SCANS} scans are decoded")
        if code not in _BARE:
            at += int.from_bytes(data[at : at + 2], "big")


_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_MAX_PNG_TEXT = 2**19  # half of what Pillow accepts


def without_profiles(data: bytes) -> bytes:
    """A PNG without its colour profile and texts, but for the two that may hold an orientation.

    No pixel depends on them, and one above a megabyte, as scanners and editors write, would make
    Pillow refuse the file.
    """
    parts, at, kept = [data[:8]], 8, 8
    seen: set[bytes] = set()
    while at + 12 <= len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body, end = at + 8, at + 12 + length
        drop = name == b"iCCP"
        if name in _PNG_TEXTS:
            key = next((k for k in _PNG_ORIENTATION if data.startswith(k, body)), b"")
            drop = key in seen or not key or not _is_small_text(data[body : end - 4])
            seen.add(key)
        if drop:
            parts.append(data[kept:at])
            kept = end
        at = end
    return data if len(parts) == 1 else b"".join([*parts, data[kept:]])


def _is_small_text(body: bytes) -> bool:
    """Whether a text chunk stays small when its text is decompressed."""
    if len(body) > _MAX_PNG_TEXT:
        return False
    start = body.find(b"\x78")  # every zlib stream in use starts so; plain texts fail to inflate
    while 0 <= start < 200:
        try:
            return len(zlib.decompressobj().decompress(body[start:], _MAX_PNG_TEXT)) < _MAX_PNG_TEXT
        except zlib.error:
            start = body.find(b"\x78", start + 1)
    return True


def webp_size(data: bytes) -> tuple[int, int]:
    """Canvas size from the first chunk's header (RFC 9649)."""
    chunk, start = data[12:16], data[20:30]
    if len(start) < 10:
        raise DecodeError(Reason.truncated, "webp: the header is cut short")
    if chunk == b"VP8X":
        return (
            int.from_bytes(start[4:7], "little") + 1,
            int.from_bytes(start[7:10], "little") + 1,
        )
    if chunk == b"VP8L":
        bits = int.from_bytes(start[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        bits = int.from_bytes(start[6:10], "little")
        return bits & 0x3FFF, bits >> 16 & 0x3FFF
    raise DecodeError(Reason.damaged, f"webp: unknown first chunk {chunk!r}")


def cut_short(data: bytes, kind: str, error: BaseException) -> bool:
    """Whether a file that failed to decode lacks its end, as far as its kind can tell."""
    if kind == "jpeg":
        return not data.rstrip(b"\0").endswith(b"\xff\xd9")
    if kind == "png":
        return b"IEND" not in data[-64:]
    if kind == "gif":
        return not data.rstrip(b"\0").endswith(b";")
    if kind == "webp":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    if kind in ("avif", "heic"):
        start = 0
        while start + 8 <= len(data):
            size = int.from_bytes(data[start : start + 4], "big")
            if size < 8:  # 0: to the end of the file; 1: a 64-bit size, which no photo needs
                return False
            start += size
        return start != len(data)
    return isinstance(error, EOFError) or "truncated" in str(error).lower()
