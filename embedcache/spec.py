"""What a stored vector depends on, as a value with a digest.

A `Spec` holds everything that changes a vector besides the photo's own bytes: the network, the
digest of its weights, the crop, the preprocessing and the arithmetic. Two runs share vectors if
and only if their specs have the same digest. How a user called the backbone, where its weights lay
and which machine ran it are provenance: they are in a segment's manifest, never in a spec.

    spec.document()  the JSON object that a cache stores
    spec.digest      sha256 (64 hex digits) of that object in canonical form
    spec.difference(other)   what differs, field by field, for a message
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from embedcache.errors import CacheError

if TYPE_CHECKING:
    import torch

MAX_DIM = 65_536
MAX_PIXEL_SIDE = 1024
MAX_PIXEL_BYTES = 3 * MAX_PIXEL_SIDE**2
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
Select = Literal["only", "largest", "central"]
Stored = Literal["float32", "uint8"]
"""The type of a space's rows: floats of vectors, or the bytes of pixels."""
CROPS: dict[str, Select] = {"face": "only", "largest-face": "largest", "central-face": "central"}
"""What may follow the @ of a backbone's name: which face of a photo is cropped."""
Pooling = Literal["none", "avg_nchw", "avg_nhwc", "avg_tokens", "class_token"]
CLASS_TOKEN = ":cls"
"""What follows a layer's path where its class token is meant and not the mean of its tokens."""
NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_DIGEST = re.compile(r"[0-9a-f]{64}")

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def canonical_json(document: Json) -> bytes:
    """The one byte string for a JSON value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a decoded photo (or face crop) becomes the network's input.

    size: height and width of the input, in pixels.
    resize: "squash" (both sides to `size`) or "shortest" (shorter side to `size / crop_fraction`,
        then the centre).
    crop_fraction: the part of the resized photo's shorter side that the centre crop keeps.
    interpolation: Pillow's filter, antialiased: "nearest", "bilinear", "bicubic" or "lanczos".
    mean, std: per channel, of values scaled to [0, 1].
    decode: version of `embedcache.images`, which turns bytes into RGB (orientation, colour modes,
        reduced-scale JPEG decoding).
    """

    size: tuple[int, int]
    resize: Literal["squash", "shortest"]
    crop_fraction: float
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    decode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceCrop:
    """Which part of the photo is the face.

    detector: digest of the detector's own document (networks, thresholds, resize kernel).
    select: "only" embeds photos with exactly one box (the paper's 1BBOX); others end as failed.
        "largest" and "central" choose one of several: see `embedcache.faces.detector.choose`.
    margin: added around the box, as a fraction of its sides.
    """

    detector: str
    select: Select
    margin: float

    def __post_init__(self) -> None:
        if self.select not in get_args(Select):
            raise CacheError(
                f"a face is selected as {', '.join(get_args(Select))}; got {self.select!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledLayer:
    """The layer inside a network that a vector is of, and how its output became one vector.

    path: the module's path in the network, as torch names it: "layer3" or "blocks.5.mlp".
    pooling: "none" for a layer that gives one vector; "avg_nchw" and "avg_nhwc", the mean over the
        places of a map of that order; "avg_tokens", the mean of the tokens; "class_token".
    prefix_tokens: tokens before those of the patches (class token, registers), which the mean
        leaves out.
    """

    path: str
    pooling: Pooling
    prefix_tokens: int = 0

    def __post_init__(self) -> None:
        if type(self.path) is not str or not 0 < len(self.path) <= 256:
            raise CacheError("a layer's path has 1 to 256 characters")
        if self.pooling not in get_args(Pooling):
            raise CacheError(
                f"a layer is pooled as {', '.join(get_args(Pooling))}; got {self.pooling!r}"
            )
        if type(self.prefix_tokens) is not int or not 0 <= self.prefix_tokens <= 4096:
            raise CacheError(f"a layer has 0 to 4,096 prefix tokens; got {self.prefix_tokens!r}")

    @property
    def name(self) -> str:
        """What stands after the # of a backbone's name."""
        return self.path + (CLASS_TOKEN if self.pooling == "class_token" else "")

    def __str__(self) -> str:
        if self.pooling == "avg_tokens" and self.prefix_tokens:
            return f"mean over the tokens without the first {self.prefix_tokens}"
        return {
            "none": "one vector",
            "avg_nchw": "mean over the map",
            "avg_nhwc": "mean over the map, channels last",
            "avg_tokens": "mean over the tokens",
            "class_token": "class token",
        }[self.pooling]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Everything that decides a vector, for vectors computed here or declared as foreign.

    kind: "computed" by `embedcache extract`; "foreign": imported, with nothing known but a name; or
        "pixels": no vectors, but the bytes that networks with this preprocessing get of a photo.
    architecture: the network (timm's or facenet-pytorch's name for it); a foreign set's name; of
        pixels "identity".
    arguments: the network's constructor arguments, as canonical JSON text.
    weights: sha256 over the loaded tensors, "" when foreign or pixels.
    dim: floats per vector, 1 to 65,536; of pixels bytes, height x width x 3.
    preprocessing: of pixels without its last step, the normalisation: mean 0 and std 1.
    face: the face crop, or None for the whole photo.
    layer: the layer inside the network, or None for the network's own output; the document of a
        spec without one has no such key.
    """

    kind: Literal["computed", "foreign", "pixels"]
    architecture: str
    dim: int
    arguments: str = "{}"
    weights: str = ""
    preprocessing: Preprocessing | None = None
    face: FaceCrop | None = None
    precision: str = "float32"
    layer: PooledLayer | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("computed", "foreign", "pixels"):
            raise CacheError(f"a spec's kind is computed, foreign or pixels; got {self.kind!r}")
        if self.kind == "pixels":
            self._check_pixels()
            return
        if not 0 < len(self.architecture) <= 512:
            raise CacheError("a spec's architecture has 1 to 512 characters")
        if not 1 <= self.dim <= MAX_DIM:
            raise CacheError(f"a vector has 1 to {MAX_DIM:,} floats; got {self.dim}")
        if self.precision not in PRECISIONS:
            raise CacheError(f"precision is one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if self.kind == "computed" and (
            self.preprocessing is None or not _DIGEST.fullmatch(self.weights)
        ):
            raise CacheError("a computed spec needs its preprocessing and a weights digest")

    def _check_pixels(self) -> None:
        """CacheError unless this is exactly what `pixels` makes of its preprocessing."""
        p = self.preprocessing
        fits = p is not None and len(p.size) == 2 and all(type(side) is int for side in p.size)
        if p is None or not fits or not all(1 <= side <= MAX_PIXEL_SIDE for side in p.size):
            raise CacheError(
                f"kept pixels have a preprocessing whose size is two whole numbers from 1 to "
                f"{MAX_PIXEL_SIDE:,}"
            )
        if (p.mean, p.std) != (NO_MEAN, NO_STD) or self.dim != 3 * p.size[0] * p.size[1]:
            raise CacheError("kept pixels are not normalised, and have height x width x 3 bytes")
        rest = (self.architecture, self.arguments, self.weights, self.precision)
        if rest != ("identity", "{}", "", "uint8") or self.face or self.layer:
            raise CacheError("kept pixels have no network, face crop or layer")

    @property
    def stored(self) -> Stored:
        """The type of its rows."""
        return "uint8" if self.kind == "pixels" else "float32"

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dim if self.kind == "pixels" else 4 * self.dim

    def document(self) -> dict[str, Json]:
        """The JSON object that stands for this spec."""
        found: dict[str, Json] = json.loads(json.dumps(asdict(self)))
        if self.layer is None:
            del found["layer"]
        return found

    @property
    def digest(self) -> str:
        """sha256 of the canonical document, 64 hex digits."""
        return hashlib.sha256(canonical_json(self.document())).hexdigest()

    @classmethod
    def parse(cls, document: Any) -> Self:
        """Read a document (untrusted); CacheError says which field is wrong."""
        try:
            values = _fields(cls, document)
            if values.get("preprocessing") is not None:
                inner = _fields(Preprocessing, values["preprocessing"])
                for name in ("size", "mean", "std"):
                    inner[name] = tuple(inner[name])
                values["preprocessing"] = Preprocessing(**inner)
            if values.get("face") is not None:
                values["face"] = FaceCrop(**_fields(FaceCrop, values["face"]))
            if values.get("layer", ...) is None:
                raise TypeError("a spec without a layer has no such key")
            if "layer" in values:
                values["layer"] = PooledLayer(**_fields(PooledLayer, values["layer"]))
            if type(values["dim"]) is not int:
                raise TypeError(f"dim is a whole number; got {values['dim']!r}")
            if not all(type(values[n]) is str for n in ("architecture", "arguments", "weights")):
                raise TypeError("architecture, arguments and weights are text")
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise CacheError(f"not a spec document: {error}") from None

    @property
    def apart(self) -> bool:
        """Whether these vectors may be of faces, and a shared copy keeps them under a prefix apart.

        Of foreign vectors nothing is known but a name, and pixels are the photos themselves, so
        they lie where fewer may look.
        """
        return self.face is not None or self.kind != "computed"

    def difference(self, other: "Spec") -> list[str]:
        """One line per field that differs: `field: mine, theirs`."""
        mine, theirs = _flat(self.document()), _flat(other.document())
        return [
            f"{name}: {mine.get(name)!r}, {theirs.get(name)!r}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]


def digest_of_weights(state: "dict[str, torch.Tensor]") -> str:
    """sha256 over every tensor's name, dtype, shape and bytes, in the order of the names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def split_layers(name: str) -> tuple[str, tuple[str, ...]]:
    """A backbone's name without its layers, and these: ("NAME@face", ("a", "b:cls")).

    name: `NAME[@CROP]#LAYER[,LAYER]`, or with the crop at the end. A # in a folder's name above a
    network's is no layer's: no layer holds a slash.
    """
    body, mark, rest = name.rpartition("#")
    if not mark or "/" in rest:
        return name, ()
    layers, at, crop = rest.rpartition("@")
    if at and crop in CROPS:
        body, rest = f"{body}@{crop}", layers
    return body, tuple(rest.split(","))


def foreign(name: str, dim: int) -> Spec:
    """The spec of vectors computed elsewhere, known by name and size only."""
    return Spec(kind="foreign", architecture=name, dim=dim)


def pixels(preprocessing: Preprocessing) -> Spec:
    """The spec of the pixels that every network with this preprocessing gets of a whole photo.

    All of it counts but the normalisation, which is arithmetic on these bytes.
    """
    height, width = preprocessing.size
    return Spec(
        kind="pixels",
        architecture="identity",
        dim=3 * height * width,
        preprocessing=replace(preprocessing, mean=NO_MEAN, std=NO_STD),
        precision="uint8",
    )


def unnamed(spec: Spec) -> str:
    """What to call vectors, or pixels, that no writer gave a name."""
    return "pixels" if spec.kind == "pixels" else spec.architecture


def shape_of(spec: Spec) -> str:
    """What a row is, for people: `2048-d`, or `299 x 299 pixels`."""
    if spec.kind == "pixels" and spec.preprocessing is not None:
        height, width = spec.preprocessing.size
        return f"{height} x {width} pixels"
    return f"{spec.dim}-d"


def _fields(cls: type, document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise TypeError(f"{cls.__name__} is an object; got {type(document).__name__}")
    known = {field.name for field in fields(cls)}
    if unknown := sorted(set(document) - known):
        raise TypeError(f"{cls.__name__} has no field {unknown[0]!r}")
    return dict(document)


def _flat(document: dict[str, Json], prefix: str = "") -> dict[str, Json]:
    flat: dict[str, Json] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
