"""Pictures of why: a head as a function of torch vectors, and what it saw drawn on the photo.

A picture shows which pixels the network and the head react to. It is not a cause: changing these
pixels in the world may change nothing, and what looks like a reason to a person may be none.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedcache.errors import HeadError
from embedcache.spec import Spec
from heads.head import Head, instead_of_constant, specs_of
from heads.outputs import Outputs

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]
Score = Callable[["torch.Tensor"], "torch.Tensor"]
Seen = tuple[NDArray[np.uint8], Callable[[Score], Floats]]
"""A photo as the networks saw it, uint8 (h, w, 3), and what gives for a score how much each pixel
moved it, (h, w); the command line hands it in."""
README = "README.txt"
LEAST_SIDE = 320  # of a picture, in pixels
_MOST_PAINT = 0.85
_SOFT = 40  # blur: one such part of the shorter side
_MOST_NAME_BYTES = 120
_RAISES, _LOWERS = (214, 39, 40), (31, 119, 180)
TEXT = """Pictures by 'embedcache predict --explain'.

Left the photo as the network saw it, right what moved the prediction: red pixels raised it, blue
ones lowered it, against soft random pictures of the same colours (integrated gradients). The
strength of a colour is squared, so that weak traces fade. Of a classifier it is the log-odds of the
class that was predicted; of two classes, of the second one.

A picture shows what the network and the head react to in this photo. It is not a cause: it does not
say that another photo without these pixels would be rated otherwise, nor what people react to. Two
heads that predict equally well may show different pixels.
"""


def check_explainable(head: Head, folder: Path) -> None:
    """HeadError for a head of which no picture can be drawn, or a folder that is a file."""
    if folder.exists() and not folder.is_dir():
        raise HeadError(f"{folder} is a file; name a folder for the pictures")
    if odd := next((one for one in _entries(folder) if one.suffix != ".png"), None):
        raise HeadError(f"{folder} holds {odd.name}: name a folder for pictures only, or a new one")
    if why := unexplained(head):
        instead = f". {instead_of_constant(head)}" if head.name == "const" else ""
        raise HeadError(f"{why}; without `explain` it predicts{instead}")


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, hidden files apart."""
    found = sorted(folder.iterdir()) if folder.exists() else []
    return [one for one in found if not one.name.startswith(".")]


def unexplained(head: Head) -> str:
    """Why no picture can be drawn of a head; "" where one can."""
    specs = specs_of(head.card)
    if not specs or all(spec.kind == "foreign" for _, spec in specs):
        return (
            "this head was fitted on vectors that were computed elsewhere: there is no network to "
            "ask which pixels moved a prediction"
        )
    if alien := [name for name, spec in specs if spec.kind == "foreign"]:
        return (
            f"this head also takes vectors that were computed elsewhere ({alien[0]}): there is no "
            "network to ask which pixels moved them"
        )
    first = specs[0]
    for other in specs[1:]:
        if _view(other[1]) != _view(first[1]):
            return (
                f"this head's backbones see different parts of a photo ({first[0]}: "
                f"{_in_words(first[1])}; {other[0]}: {_in_words(other[1])}), so that no one "
                "picture can show what moved a prediction. Explain a head of each instead"
            )
    if head.name == "const":
        return "a const head predicts the same for every photo: nothing moves it"
    return ""


def _view(spec: Spec) -> tuple[object, ...]:
    """Equal for specs whose networks see the same part of any photo, up to what a centre crop of
    it leaves out: a view then lies in the middle of a wider one."""
    given = spec.preprocessing
    assert given is not None  # computed specs have one
    height, width = given.size
    return spec.face, given.resize, height / width if given.resize == "shortest" else 1.0


def _in_words(spec: Spec) -> str:
    """What of a photo a network sees."""
    given = spec.preprocessing
    assert given is not None
    how = {"squash": "all of it, squashed", "shortest": "its middle"}[given.resize]
    if spec.face is None:
        return f"the whole photo, {how}"
    chosen = {"only": "only", "largest": "largest", "central": "central"}[spec.face.select]
    return f"the {chosen} face with {100 * spec.face.margin:.0f} % around it, {how}"


def score_of(head: Head, output: int) -> Score:
    """One number per vector that the prediction rises with: vectors (b, dim) -> (b,).

    output: the target or class. Of a softmax it is the class's log-odds, else what the link takes.
    """
    import torch

    def score(vectors: torch.Tensor) -> torch.Tensor:
        def own(values: Floats) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(vectors.device)

        start = (vectors - own(head.standard.mean)) / own(head.standard.scale)
        members = len(head.layers[0].weight)
        total = torch.zeros(len(vectors), head.outputs, device=vectors.device)
        for member in range(members):
            hidden = start
            for depth, layer in enumerate(head.layers):
                hidden = torch.relu(hidden) if depth else hidden
                hidden = hidden @ own(layer.weight[member]).T + own(layer.bias[member])
            total = total + hidden / members
        if head.link != "softmax":
            return total[:, output]
        others = torch.arange(head.outputs, device=vectors.device) != output
        return total[:, output] - torch.logsumexp(total[:, others], 1)

    return score


def outputs_of(head: Head, values: NDArray[np.float64]) -> dict[str, int]:
    """What is explained of one photo, by a suffix of the picture's name.

    values: the photo's prediction, (), or (k,). A regression of several targets has them all.
    """
    if head.outputs == 1:
        return {"": 0}
    if head.classes:
        return {"": int(np.argmax(values))}
    return {f".{name}": k for k, name in enumerate(str(head.card["target"]).split(","))}


def picture(pixels: NDArray[np.uint8], found: Floats) -> bytes:
    """A PNG: the network's input (h, w, 3), and beside it what moved the score (h, w) drawn on it.

    The colour's strength is that of `strength`.
    """
    height, width = found.shape
    larger = max(1.0, LEAST_SIDE / min(height, width))
    size = (round(width * larger), round(height * larger))
    photo = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    share = Image.fromarray((strength(found) * (_MOST_PAINT * 255)).astype(np.uint8))
    share = share.resize(size, Image.Resampling.BICUBIC)
    colours = np.where((softened(found) > 0)[..., None], _RAISES, _LOWERS).astype(np.uint8)
    paint = Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
    grey = photo.convert("L").convert("RGB")
    both = Image.new("RGB", (2 * size[0], size[1]))
    both.paste(photo, (0, 0))
    both.paste(Image.composite(paint, grey, share), (size[0], 0))
    packed = io.BytesIO()
    both.save(packed, "PNG")
    return packed.getvalue()


def strength(found: Floats) -> Floats:
    """How strongly each pixel (h, w) is painted, 0 to 1: the square of what moved the score there.

    Squared, weak values fade, which are mostly noise (Hooker et al. 2019 found squares to name the
    pixels that matter more often). The strongest half per cent are 1.
    """
    soft = np.abs(softened(found))
    most = float(np.quantile(soft, 0.995)) or 1.0
    return np.asarray(np.clip(soft / most, 0, 1) ** 2, np.float32)


def softened(found: Floats) -> Floats:
    """The values (h, w) blurred a little, so that areas show and no single pixels."""
    from scipy.ndimage import gaussian_filter

    radius = min(found.shape) / _SOFT
    return np.asarray(gaussian_filter(found, radius, mode="nearest"), np.float32)


def file_name(photo_id: str, suffix: str = "") -> str:
    """A picture's file name: the id with every odd character escaped; a long one is cut, with a
    part of its sha256, so that two never share a name."""
    safe = quote((photo_id + suffix).encode("utf-8", "surrogateescape"), safe=" ._-")
    if safe.startswith((".", " ", "-")):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    if len(safe) > _MOST_NAME_BYTES:
        digest = hashlib.sha256(safe.encode()).hexdigest()[:12]
        safe = f"{safe[:_MOST_NAME_BYTES]}.{digest}"
    return f"{safe}.png"


@dataclass(frozen=True, slots=True)
class Drawn:
    """How many pictures were written, and why there is none of some photos, by id."""

    pictures: int
    lost: Mapping[str, str]


def draw(
    head: Head,
    photos: Iterable[tuple[str, NDArray[np.float64], Seen | str]],
    folder: Path,
    *,
    progress: Callable[[int], None],
) -> Drawn:
    """Write a picture for each output of each photo, and beside them what they are not.

    photos: id, prediction, and what the networks saw of it or why there is nothing.
    Other files in the folder stay; a picture whose name is taken by one gets another name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = Outputs(folder)
    files.write(README, TEXT.encode())
    n, lost = 0, {}
    for done, (name, values, seen) in enumerate(photos, 1):
        if isinstance(seen, str):
            lost[name] = seen
            continue
        pixels, moved = seen
        for suffix, output in outputs_of(head, values).items():
            found = moved(score_of(head, output))
            files.write(file_name(name, suffix), picture(pixels, found))
            n += 1
        progress(done)
    return Drawn(n, lost)
