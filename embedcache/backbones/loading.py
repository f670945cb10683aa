"""Frozen backbones behind one small interface: names to networks, networks to vectors.

    inception_v3.tf_in1k     any timm name (this one is the default); weights from the hub
    hf-hub:OWNER/MODEL       a timm model on the Hugging Face hub
    local-dir:FOLDER         timm's own folder form: config.json and weights
    facenet:vggface2         facenet-pytorch's InceptionResnetV1; weights from its release page
    facenet:casia-webface    the same, other weights
    facenet:FILE             the same, a state dict of yours (.pt or .safetensors)
    NAME@face                the same network on the face crop (facenet:* implies it)

Only importer of timm and of facenet-pytorch's embedding network. What a name stands for is settled
by `load`; the digest of the weights *as loaded* goes into the spec.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from embedcache.backbones import forward, spec_memo, weights
from embedcache.backbones.forward import Network
from embedcache.backbones.names import Name
from embedcache.backbones.weights import first_line
from embedcache.errors import WeightsError
from embedcache.faces.detector import VERSION, Detector
from embedcache.photos import images
from embedcache.spec import FaceCrop, Json, Preprocessing, Spec, digest_of_weights

if TYPE_CHECKING:
    import torch

FACE_MARGIN = 0.0
DOCTOR = "Run 'embedcache doctor' to see which weights are at hand."

Decode = Literal["full", "reduced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A frozen network, by what it is; its weights may still lie on the disk.

    name: as it is recorded in a cache;  place: with this machine's path, to load it again.
    spec: everything that changes its vectors.
    open: gives the network; the first call may load its weights.
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

    device: "auto" (every CUDA device where there is one), "cpu", "cuda" or "cuda:N".
    precision: of the network's arithmetic; vectors are float32 in any case.
    decode: "full" decodes every pixel, as timm does; "reduced" reads large JPEGs at a reduced
        scale, never below twice the input's size, several times faster (docs/decisions/024).
    detector: gives the digest of the face detector, asked only for a face crop.
    memo: a file that remembers specs; where this backbone's files have not changed since, the
        network is loaded by the first call of `open` only.
    Raises WeightsError when the name is unknown, or the weights are missing or do not fit; it says
        where they were looked for and what to do without internet.
    """
    asked = Name.parse(name)
    key: dict[str, Json] = {
        "place": asked.place,
        "precision": precision,
        "decode": decoding(decode),
        "face": [VERSION, FACE_MARGIN] if asked.face else None,
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
                f"the weights of {asked.recorded} have changed since this cache last saw them: "
                f"{'; '.join(loaded.spec.difference(spec))}. Run the same command again."
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
    places = forward.devices(device)
    model, architecture, arguments, preprocessing = (
        _facenet(asked, decode) if asked.source == "facenet" else _timm(asked, decode)
    )
    model.eval().requires_grad_(False)
    digest = digest_of_weights(model.state_dict())
    built = forward.build(model, preprocessing, devices=places, precision=precision)
    dim = built.lanes[0](np.zeros((1, *preprocessing.size, 3), np.uint8)).shape[1]
    face = None
    if asked.face:  # boxes count pixels of the whole photo
        preprocessing = replace(preprocessing, decode=decoding("full"))
        if detector is None:
            detector = lambda: Detector().digest  # noqa: E731
        face = FaceCrop(detector=detector(), select="only", margin=FACE_MARGIN)
    spec = Spec(
        kind="computed",
        architecture=architecture,
        arguments=json.dumps(arguments, sort_keys=True, separators=(",", ":")),
        weights=digest,
        dim=dim,
        preprocessing=preprocessing,
        face=face,
        precision=precision,
    )
    return Backbone(name=asked.recorded, place=asked.place, spec=spec, open=lambda: built)


def _files(name: Name) -> list[Path]:
    """The files that decide what a name means; none where that cannot be told."""
    if name.source == "local-dir":
        found = [path for path in Path(name.where).resolve().iterdir() if path.is_file()]
    elif name.source == "facenet":
        found = [weights.facenet_file(name.where).resolve()]
    else:
        found = weights.hub_files(_hub_id(name))
    if found and name.face:
        detector = spec_memo.detector_files()
        found = [*found, *detector] if detector else []
    return found


def decoding(decode: Decode) -> str:
    """The spec's name for how bytes become pixels."""
    return f"{images.VERSION}-{decode}"


def shorter_side(preprocessing: Preprocessing) -> int | None:
    """Pixels of the shorter side that decoding has to keep for it; None: all there are."""
    if preprocessing.decode != decoding("reduced"):
        return None
    return images.needed_side(preprocessing)


def _timm(
    name: Name, decode: Decode
) -> "tuple[torch.nn.Module, str, dict[str, Any], Preprocessing]":
    import timm

    arguments: dict[str, Any] = {}
    if name.source == "local-dir":
        full, arguments = _local_dir(Path(name.where))
    else:
        full = name.where if name.source == "timm" else f"hf-hub:{name.where}"
        _check_timm(name, full)
    try:
        model = timm.create_model(full, pretrained=True, num_classes=0)
    except Exception as error:  # timm, hub, torch and safetensors raise a score of types
        raise WeightsError(f"cannot load {full}: {first_line(error)}. {DOCTOR}") from error
    config = timm.data.resolve_data_config({}, model=model)
    architecture = str(model.pretrained_cfg.get("architecture") or name.where.partition(".")[0])
    return model, architecture, arguments, _timm_preprocessing(full, config, decode)


def _timm_preprocessing(name: str, config: dict[str, Any], decode: Decode) -> Preprocessing:
    channels, height, width = config["input_size"]
    mode = config.get("crop_mode") or "center"
    if channels != 3 or mode not in ("center", "squash"):
        raise WeightsError(f"{name} wants {channels} channels and {mode!r} cropping: not supported")
    return Preprocessing(
        size=(height, width),
        resize="squash" if mode == "squash" else "shortest",
        crop_fraction=float(config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=_three(config["mean"]),
        std=_three(config["std"]),
        decode=decoding(decode),
    )


def _local_dir(folder: Path) -> tuple[str, dict[str, Any]]:
    config = folder / "config.json"
    if not config.is_file():
        raise WeightsError(
            f"local-dir:{folder} needs a config.json and weights (model.safetensors), as timm's "
            "`save_for_hf` writes them; there is no "
            + ("config.json in it" if folder.is_dir() else "such folder")
        )
    try:
        found = json.loads(config.read_text("utf-8"))
        arguments = found.get("model_args") or {}
        if not isinstance(arguments, dict) or not isinstance(found.get("architecture"), str):
            raise ValueError("no architecture, or model_args is no object")
    except (ValueError, OSError, AttributeError) as error:
        raise WeightsError(f"cannot read {config}: {error}") from None
    return f"local-dir:{folder}", arguments


def _check_timm(name: Name, full: str) -> None:
    """Say what is missing before timm spends minutes on an unreachable hub."""
    import timm

    if name.source == "timm":
        base, _, tag = name.where.partition(".")
        tags = timm.list_pretrained(f"{base}*") if timm.is_model(base) else []
        if not timm.is_model(base) or (tag and name.where not in tags):
            close = (tags or timm.list_pretrained(f"*{base}*"))[:5]
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise WeightsError(
                f"timm {timm.__version__} knows no model {name.where!r}.{hint} "
                "List all with python -c 'import timm; print(timm.list_pretrained())'."
            )
        config = timm.get_pretrained_cfg(name.where)
        if config is None or not config.has_weights:
            raise WeightsError(
                f"timm {timm.__version__} has no pretrained weights for {name.where}"
            )
    if hub_id := _hub_id(name):
        weights.need_hub(hub_id, full)


def _hub_id(name: Name) -> str:
    """The hub's id of a timm or hf-hub name; "" for one whose weights lie elsewhere."""
    import timm

    if name.source == "hf-hub":
        return name.where.partition("@")[0]
    config = timm.get_pretrained_cfg(name.where)
    hub_id = str(config.hf_hub_id or "") if config else ""
    if hub_id and not hub_id.count("/"):
        return f"timm/{name.where}"
    return hub_id + name.where if hub_id.endswith("/") else hub_id


def _facenet(
    name: Name, decode: Decode
) -> "tuple[torch.nn.Module, str, dict[str, Any], Preprocessing]":
    try:
        from facenet_pytorch.models.inception_resnet_v1 import InceptionResnetV1
    except ImportError:
        raise WeightsError(
            f"{name.recorded} needs the package facenet-pytorch: "
            "pip install --no-deps facenet-pytorch==2.6.0"
        ) from None
    path = weights.facenet_file(name.where)
    state = weights.read_state(path)
    for key in ("logits.weight", "logits.bias"):  # the classifier that training used
        state.pop(key, None)
    model = InceptionResnetV1(pretrained=None)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} is no state dict of facenet-pytorch's InceptionResnetV1: {first_line(error)}"
        ) from None
    preprocessing = Preprocessing(
        size=(160, 160),
        resize="squash",
        crop_fraction=1.0,
        interpolation="bilinear",
        # fixed_image_standardization: (x - 127.5) / 128
        mean=(127.5 / 255,) * 3,
        std=(128 / 255,) * 3,
        decode=decoding(decode),
    )
    return model, "facenet_inception_resnet_v1", {}, preprocessing


def _three(values: Any) -> tuple[float, float, float]:
    a, b, c = (float(value) for value in values)
    if not all(map(math.isfinite, (a, b, c))):
        raise WeightsError("mean and std are finite numbers")
    return a, b, c
