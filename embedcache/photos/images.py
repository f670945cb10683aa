"""Photo bytes -> upright RGB pixels, or one typed reason why not. No torch.

The rules below are named by `VERSION`, which is part of every spec: another rule is another name.

- The kind of file is read from its first bytes, never from its name: JPEG (and the first picture
  of an MPO), PNG, GIF, WebP, TIFF, BMP, PPM/PGM, AVIF, and HEIC where pillow-heif is installed.
  Nothing that interprets a program (EPS, PDF, SVG) is ever opened.
- The first frame or page counts. EXIF orientation is applied. Embedded colour profiles are not.
- Transparency is laid on white. 16-bit samples keep their high byte.
- CMYK JPEGs with Adobe's marker hold inverted inks and others do not.
- A large JPEG may be decoded at 1/2, 1/4 or 1/8 by libjpeg-turbo: the smallest of these whose
  shorter side is at least twice what the caller needs.

docs/decisions/020 has the reasons and the measurements.
"""

import io
import math
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from embedcache.spec import Preprocessing

VERSION = "images-1"
MAX_PIXELS = 120_000_000  # 480 MB while decoded; above the 108 megapixels of common phones
MAX_FILE_BYTES = 256 * 1024**2
MAX_SCANS = 200  # of a JPEG; encoders write one, or about ten
_LONG = 8  # a photo longer than this many times its shorter side is resized in its centre only


class Reason(StrEnum):
    """Why a photo has no vector. The text is what a ledger stores; it never changes meaning."""

    vanished = "vanished"  # there when the run was planned, gone when it was read
    unreadable = "unreadable"  # the file system refused
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


class DecodeError(Exception):
    """A photo that cannot become pixels. Extraction turns it into a row of the ledger."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def decode(
    data: bytes, *, at_least: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode one photo to an upright image of mode RGB.

    data: the file's bytes, at most MAX_FILE_BYTES.
    at_least: the shorter side, in pixels, that the caller will resize to; a large JPEG may then
        come at a reduced scale, its shorter side never below twice this. None: full size.
    max_pixels: width x height that is refused, checked before any pixel is decoded.
    Raises DecodeError with the reason, and nothing else, whatever the bytes are.
    """
    return decode_each(data, [at_least], max_pixels=max_pixels)[0]


def decode_each(
    data: bytes, at_least: Sequence[int | None], *, max_pixels: int = MAX_PIXELS
) -> list[Image.Image]:
    """Decode one photo for several needs; needs that mean the same scale share one image.

    A network's pixels must not depend on which other networks run beside it, so each need keeps the
    scale it would have alone. Photos that are not large JPEGs are decoded once.
    Returns one image per entry of `at_least`, as `decode` would. Raises DecodeError.
    """
    kind = _kind(data)
    if kind == "jpeg":
        _check_scans(data)
    images: dict[int, Image.Image] = {}
    found = []
    try:
        with _SILENCE():
            size = _open(data, kind, max_pixels).size
            for need in at_least:
                scale = _scale(size, need) if kind == "jpeg" else 1
                if scale not in images:
                    images[scale] = _pixels(_open(data, kind, max_pixels), scale)
                found.append(images[scale])
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError(Reason.too_many_pixels, "not enough memory to decode it") from error
    except Exception as error:
        # Pillow's plugins raise a dozen kinds of exception on broken files, and fuzzing finds more:
        # at this boundary all of them mean that the file is bad.
        cut = _cut_short(data, kind, error)
        detail = f"{kind}: {type(error).__name__}: {error}"[:300]
        raise DecodeError(Reason.truncated if cut else Reason.damaged, detail) from error
    return found


def needed_side(preprocessing: Preprocessing) -> int:
    """Pixels of a photo's shorter side that `resize_crop` makes use of."""
    return math.ceil(max(preprocessing.size) / preprocessing.crop_fraction)


def reducible(data: bytes, size: tuple[int, int], preprocessing: Preprocessing) -> bool:
    """Whether a photo of (width, height) `size` is a JPEG that a reduced scale would serve."""
    return data.startswith(b"\xff\xd8\xff") and _scale(size, needed_side(preprocessing)) > 1


def resize_crop(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize and centre-crop as timm's evaluation transform does, pixel for pixel.

    "shortest": the shorter side to floor(size / crop_fraction), then the centre.
    "squash": each side to floor(size / crop_fraction), then the centre; all of the photo when
        crop_fraction is 1.
    A photo more than eight times longer than wide is resized in its central part only: the full
    strip could take any amount of memory, and its ends are cropped away.
    Returns (height, width, 3).
    """
    height, width = preprocessing.size
    target = (
        math.floor(width / preprocessing.crop_fraction),
        math.floor(height / preprocessing.crop_fraction),
    )
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    size = target if preprocessing.resize == "squash" else _cover(image.size, target)
    left, top = (round((have - want) / 2) for have, want in zip(size, (width, height), strict=True))
    if max(image.size) > _LONG * min(image.size) and size != target:
        across, down = (old / new for old, new in zip(image.size, size, strict=True))
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return np.asarray(image.resize((width, height), resample, box=box))
    resized = image if image.size == size else image.resize(size, resample)
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def _cover(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(width, height) that covers `target` with the photo's aspect, rounded as timm rounds."""
    width, height = size
    if target[0] == target[1]:
        short = target[0]  # torchvision's Resize truncates, timm's ResizeKeepRatio rounds
        if width <= height:
            return short, int(short * height / width)
        return int(short * width / height), short
    ratio = min(height / target[1], width / target[0])
    return round(width / ratio), round(height / ratio)


def _heif(data: io.BytesIO) -> ImageFile.ImageFile:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise DecodeError(
            Reason.no_decoder, "HEIC needs a plugin: pip install pillow-heif"
        ) from None
    image: ImageFile.ImageFile = HeifImageFile(data)
    return image


# The classes are called directly, not through Image.open: no other format can be reached, no plugin
# is registered globally, and an MPO is simply the JPEG that it starts with.
_OPENERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "ppm": PpmImagePlugin.PpmImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
    "heic": _heif,
}

_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"BM", "bmp"),
    (b"P5", "ppm"),
    (b"P6", "ppm"),
)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def _kind(data: bytes) -> str:
    """The kind of picture by its first bytes."""
    if not data:
        raise DecodeError(Reason.empty_file, "the file has no bytes")
    if len(data) > MAX_FILE_BYTES:
        raise DecodeError(
            Reason.too_large_file, f"{len(data):,} bytes; at most {MAX_FILE_BYTES:,} are read"
        )
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
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
        f"starts with {data[:8]!r}; read here: {', '.join(sorted(_OPENERS))}",
    )


def _open(data: bytes, kind: str, max_pixels: int) -> ImageFile.ImageFile:
    """Parse the header; the pixel limit holds before anything of the image's size is allocated."""
    if kind in ("webp", "avif") and not features.check(kind):
        raise DecodeError(
            Reason.no_decoder, f"this Pillow has no {kind}: install it from its wheel"
        )
    if kind == "webp":  # its decoder allocates two canvases as soon as it is opened
        _check_pixels(_webp_size(data), max_pixels)
    image = _OPENERS[kind](io.BytesIO(data))
    _check_pixels(image.size, max_pixels)
    return image


_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_EOI, _SOS = 0xD9, 0xDA
_BARE = {0x01, 0xD8}  # markers that no length follows


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG that passes over its picture more often than any encoder has it do.

    A scan of a few bytes makes libjpeg go through all coefficients once more, so that one file
    could hold a thread for hours. What follows the picture's end is not looked at: the films of
    moving photos lie there.
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


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise DecodeError(
            Reason.too_many_pixels, f"{size[0]:,} x {size[1]:,}; at most {max_pixels:,} are decoded"
        )


def _webp_size(data: bytes) -> tuple[int, int]:
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
        width, height = struct.unpack("<HH", start[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise DecodeError(Reason.damaged, f"webp: unknown first chunk {chunk!r}")


def _scale(size: tuple[int, int], at_least: int | None) -> int:
    """libjpeg's reduction for a need: 1, 2, 4 or 8."""
    if at_least is None:
        return 1
    fits = min(size) // (2 * max(at_least, 1))
    return next((scale for scale in (8, 4, 2) if fits >= scale), 1)


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _pixels(image: ImageFile.ImageFile, scale: int) -> Image.Image:
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()
    rgb = _rgb(image)
    turn = _TRANSPOSE.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 when there is none or the metadata cannot be read."""
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # broken metadata is no reason to lose good pixels; viewers do the same
        return 1
    return found if isinstance(found, int) else 1


def _rgb(image: ImageFile.ImageFile) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        samples = np.asarray(image).astype(np.uint16)
        return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        raise DecodeError(Reason.unsupported, f"pixels of mode {image.mode} have no defined RGB")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGB", over.size, "white")
        white.paste(over, mask=over)
        return white
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        return ImageChops.invert(image).convert("RGB")  # Pillow takes every CMYK JPEG for Adobe's
    # convert also copies: the result holds no reference to the file's bytes
    return image.convert("RGB")


def _cut_short(data: bytes, kind: str, error: BaseException) -> bool:
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


class _Silence:
    """Ignores Pillow's warnings while any thread decodes, and only then.

    Broken metadata makes Pillow warn; the photo's reason says what matters. `catch_warnings` swaps
    the process's filters and is unsafe with threads, so one filter is added by the first thread to
    enter and removed by the last to leave.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filter: object = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._filter = warnings.filters[0]
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0 and self._filter in warnings.filters:
                    warnings.filters.remove(self._filter)  # type: ignore[attr-defined]


_SILENCE = _Silence()
