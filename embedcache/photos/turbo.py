"""Plain JPEGs decoded by torchvision, whose threads do not hold the interpreter's lock.

Its libjpeg-turbo gives Pillow's pixels, and `decode` makes sure of it once in each process. What is
not plain, and what it refuses, is left to `images`, which has the rules and the reasons. So is all
where torchvision has the operator no more: it is deprecated since 0.29 in favour of torchcodec.
"""

import io
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

U8 = NDArray[np.uint8]
_RGB = 3  # torchvision's ImageReadMode.RGB


def decode(data: bytes) -> U8 | None:
    """The pixels of an upright gray or YCbCr JPEG, uint8 (h, w, 3); None where Pillow is needed."""
    return decoded(data) if equals_pillow() else None


def decoded(data: bytes) -> U8 | None:
    import torch

    try:
        given = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        found: U8 = torch.ops.image.decode_jpeg(given, _RGB, False).permute(1, 2, 0).numpy()
    except (RuntimeError, AttributeError):
        return None
    return found


@cache
def equals_pillow() -> bool:
    """Whether both give the same pixels of each kind of JPEG that cameras and sites write."""
    try:
        import torchvision.io  # noqa: F401  # registers the operator below
    except (ImportError, RuntimeError):
        return False
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((75, 59), Image.Resampling.BICUBIC)
    kinds: list[tuple[Image.Image, dict[str, Any]]] = [
        (picture, {"subsampling": k}) for k in ("4:4:4", "4:2:2", "4:2:0")
    ]
    kinds += [(picture, {"progressive": True}), (picture.convert("L"), {})]
    for image, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, "jpeg", quality=85, **options)
        found = decoded(buffer.getvalue())
        expected = np.asarray(Image.open(buffer, formats=["jpeg"]).convert("RGB"))
        if found is None or not np.array_equal(found, expected):
            return False
    return True
