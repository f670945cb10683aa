"""Photo bytes -> upright RGB pixels, or one typed reason why not. No torch.

The rules below are named by `VERSION`, which is part of every spec: another rule is another name.

- The kind of file is read from its first bytes, never from its name: JPEG (and the first picture
  of an MPO), PNG, GIF, WebP, TIFF and BigTIFF, BMP, PBM/PGM/PPM (binary and plain), AVIF, and HEIC
  where pillow-heif is installed. Nothing that interprets a program (EPS, PDF, SVG) is ever opened.
- The first frame or page counts. EXIF orientation is applied. Embedded colour profiles are not.
- Transparency is laid on white. 16-bit samples keep their high byte; where a TIFF says that its
  lowest value is white, they are inverted.
- A JPEG that lacks only its end marker is decoded.
- CMYK JPEGs with Adobe's marker hold inverted inks and others do not.
- A large JPEG may be decoded at 1/2, 1/4 or 1/8 by libjpeg-turbo: the smallest of these whose
  shorter side is at least twice what the caller needs.

Pixels in memory are bounded over all threads (`decoding`). docs/decisions/020 and 089 have the
reasons and the measurements.
"""

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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

from embedcache.photos.kinds import (
    DecodeError,
    Reason,
    check_scans,
    cut_short,
    kind_of,
    webp_size,
    without_profiles,
)
from embedcache.photos.resizing import needed_side, resize_crop, stretched
from embedcache.spec import Preprocessing

__all__ = [
    "VERSION",
    "DecodeError",
    "Reason",
    "TooLargeHere",
    "decode",
    "decode_each",
    "decoding",
    "needed_side",
    "reducible",
    "refuse_above",
    "resize_crop",
    "stretched",
]

VERSION = "images-1"
MAX_PIXELS = 120_000_000  # 480 MB while decoded; above the 108 megapixels of common phones
MEMORY_BYTES = 2**30
"""All threads together hold so much while they decode; a larger photo waits to be alone."""


class TooLargeHere(Exception):
    """A photo takes more memory than this process may give it; see `refuse_above`."""


def refuse_above(n_bytes: int) -> None:
    """From now on, raise TooLargeHere for a photo that takes more while it is decoded.

    For one of several processes that share the memory of one.
    """
    _MEMORY.most = n_bytes


def decode(
    data: bytes, *, at_least: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode one photo to an upright image of mode RGB.

    data: the file's bytes, at most MAX_FILE_BYTES.
    at_least: the shorter side, in pixels, that the caller will resize to; a large JPEG may then
        be decoded at a reduced scale, its shorter side never below twice this. None: full size.
    max_pixels: a larger width x height is refused, before any pixel is decoded.
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
    with decoding(data, at_least, max_pixels=max_pixels) as found:
        return found


@contextmanager
def decoding(
    data: bytes, at_least: Sequence[int | None], *, max_pixels: int = MAX_PIXELS
) -> Iterator[list[Image.Image]]:
    """`decode_each` whose pixels count against MEMORY_BYTES until the block ends.

    A thread waits here while the photos that others decode fill that memory.
    """
    kind = kind_of(data)
    if kind == "jpeg":
        check_scans(data)
    if kind == "png":
        data = without_profiles(data)
    with _as_decode_errors(data, kind):
        size = _open(data, kind, max_pixels).size
    scales = [_scale(size, need) if kind == "jpeg" else 1 for need in at_least]
    n_bytes = sum(
        size[0] * size[1] * _BYTES_PER_PIXEL.get(kind, 12) // scale**2 for scale in {*scales}
    )
    with _MEMORY.hold(n_bytes):
        with _as_decode_errors(data, kind):
            images = _decode(data, kind, max_pixels, {*scales})
        yield [images[scale] for scale in scales]


def _decode(data: bytes, kind: str, max_pixels: int, scales: set[int]) -> dict[int, Image.Image]:
    """The photo at each scale; a JPEG without its end marker as if it were there."""
    try:
        return {scale: _pixels(_open(data, kind, max_pixels), scale) for scale in scales}
    except OSError as error:
        if kind != "jpeg" or not cut_short(data, kind, error) or not _lacks_only_its_end(data):
            raise
    whole = data + b"\xff\xd9"
    return {scale: _pixels(_open(whole, kind, max_pixels), scale) for scale in scales}


@contextmanager
def _as_decode_errors(data: bytes, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a DecodeError, and ignore Pillow's warnings."""
    try:
        with _SILENCE():
            yield
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError(Reason.too_many_pixels, "not enough memory to decode it") from error
    except Exception as error:
        # Pillow's plugins raise a dozen kinds of exception on broken files, and fuzzing finds more:
        # at this boundary all of them mean that the file is bad.
        cut = cut_short(data, kind, error)
        detail = f"{kind}: {type(error).__name__}: {error}"[:300]
        raise DecodeError(Reason.truncated if cut else Reason.damaged, detail) from error


def reducible(data: bytes, size: tuple[int, int], preprocessing: Preprocessing) -> bool:
    """Whether a photo of (width, height) `size` is a JPEG that a reduced scale would serve."""
    return data.startswith(b"\xff\xd8\xff") and _scale(size, needed_side(preprocessing)) > 1


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
# What a decode holds at its peak per pixel: the decoder's canvases, Pillow's picture (4 bytes, also
# for RGB) and its conversion to RGB. Measured in docs/decisions/089.
_BYTES_PER_PIXEL = {"jpeg": 8, "webp": 16, "heic": 12, "avif": 12}


def _open(data: bytes, kind: str, max_pixels: int) -> ImageFile.ImageFile:
    """Parse the header; the pixel limit holds before anything of the image's size is allocated."""
    if kind in ("webp", "avif") and not features.check(kind):
        raise DecodeError(
            Reason.no_decoder, f"this Pillow cannot read {kind}: reinstall Pillow from its wheel"
        )
    if kind == "webp":  # its decoder allocates two canvases as soon as it is opened
        _check_pixels(webp_size(data), max_pixels)
    image = _OPENERS[kind](io.BytesIO(data))
    _check_pixels(image.size, max_pixels)
    return image


_ENDS = (b"", b"\x55" * 64, b"\xb6\xdb\x6d" * 64)  # no 0xFF, and no zeros: libjpeg's filling


def _lacks_only_its_end(data: bytes) -> bool:
    """Whether every pixel of a baseline JPEG without an end marker is there.

    libjpeg fills in what is missing without an error. So the picture is decoded with nothing and
    with two kinds of noise before the marker: bits after the last block change nothing, bits in the
    place of a missing one do. A progressive JPEG may lack whole scans, so it counts as truncated.
    """
    progressive = re.search(rb"\xff[\xc2\xc6\xca\xce]..\x08", data, re.DOTALL)
    if progressive or b"\xff\xda" not in data:
        return False
    found = {
        JpegImagePlugin.JpegImageFile(io.BytesIO(data + end + b"\xff\xd9")).tobytes()
        for end in _ENDS
    }
    return len(found) == 1


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise DecodeError(
            Reason.too_many_pixels, f"{size[0]:,} x {size[1]:,}; at most {max_pixels:,} are decoded"
        )


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
        return Image.fromarray(_high_byte(image)).convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        raise DecodeError(Reason.unsupported, f"pixels of mode {image.mode} have no defined RGB")
    if image.has_transparency_data:
        over = image if image.mode in ("RGBA", "RGBa") else image.convert("RGBA")
        white = Image.new("RGB", over.size, "white")
        white.paste(over, mask=over)
        return white
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        return ImageChops.invert(image).convert("RGB")  # Pillow takes every CMYK JPEG for Adobe's
    # convert also copies: the result holds no reference to the file's bytes
    return image.convert("RGB")


_PHOTOMETRIC, _BITS_PER_SAMPLE, _WHITE_IS_ZERO = 262, 258, 0


def _high_byte(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """The high byte of gray samples of 16 bits, or of the 12 that some TIFFs have."""
    samples, shift = np.asarray(image).astype(np.uint16), 8
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        shift = max(int(tags.get(_BITS_PER_SAMPLE, (16,))[0]) - 8, 0)
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts up to 8 bits only
            samples = ~samples if shift == 8 else (1 << (8 + shift)) - 1 - samples
    return (samples >> shift).astype(np.uint8)


class _Memory:
    """Bytes that all threads share; one that asks for more than all of them waits to be alone.

    most: a photo that takes more is refused.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, n_bytes: int) -> Iterator[None]:
        if self.most is not None and n_bytes > self.most:
            raise TooLargeHere
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + n_bytes <= MEMORY_BYTES)
            self._held += n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held -= n_bytes
                self._changed.notify_all()


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


_SILENCE, _MEMORY = _Silence(), _Memory()
