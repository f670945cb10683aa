"""Networks of timm: by timm's own name, from the hub, or from a folder. Only importer of timm.

A network is wholly loaded or refused: the file's tensors must fill it, and may lack the classifier
only, which is never built. What a configuration says is checked before any photo is read.
"""

import json
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from embedcache.backbones import timm_names, weights
from embedcache.backbones.forward import Loaded
from embedcache.backbones.names import Name
from embedcache.deferred import without_compiler
from embedcache.errors import WeightsError
from embedcache.spec import Preprocessing
from embedcache.wording import reason

if TYPE_CHECKING:
    import torch

DOCTOR = "Run 'embedcache doctor' to see which weights are installed."
MAX_SIDE = 4096
_INTERPOLATIONS = get_args(Preprocessing.__annotations__["interpolation"])
# The order in which timm looks for weights in a folder.
_WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".bin")


def load(name: Name, *, decode: str) -> Loaded:
    """Make the network that `name` stands for and load its weights.

    decode: the spec's name for how bytes become pixels.
    Raises WeightsError for a name that is unknown, a configuration that cannot be followed, and
        weights that are missing or do not fill the network.
    """
    timm = _timm()

    arguments: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    full = _shown(name)
    if name.source == "local-dir":
        arguments, state = _local_dir(Path(name.where))
        # Read with our own checks; timm is handed the tensors.
        ours = {"source": "", "file": "", "state_dict": state}
    else:
        _need(name, full)
        _refuse_bad_hub_files(name)
    try:
        with _watched_loading() as loads, _without_numbers():
            model = timm.create_model(
                full, pretrained=True, num_classes=0, pretrained_cfg_overlay=ours
            )
    except WeightsError:
        raise
    except Exception as error:  # timm, the hub, torch and safetensors raise a score of types
        if "weights_only" in str(error):
            raise WeightsError(weights.refused_pickle(full)) from error
        raise WeightsError(f"cannot load {full}: {weights.shape_fault(error)}. {DOCTOR}") from error
    model.pretrained_cfg["state_dict"] = None  # else every copy of the network has it twice
    classifier = model.pretrained_cfg.get("classifier")
    _refuse_partly_loaded(model, loads, classifier=classifier, source=full)
    config = _config(model, full)
    architecture = str(model.pretrained_cfg.get("architecture") or name.where.partition(".")[0])
    origin = {
        key: str(value)
        for key, value in (
            ("source", model.pretrained_cfg.get("hf_hub_id") or model.pretrained_cfg.get("url")),
            ("trained_on", model.pretrained_cfg.get("tag")),
            ("licence", model.pretrained_cfg.get("license")),
        )
        if value and name.source != "local-dir"
    }
    preprocessing = preprocessing_of(config, source=full, decode=decode)
    return Loaded(
        model=model,
        architecture=architecture,
        arguments=arguments,
        preprocessing=preprocessing,
        pooling=pooling_of(model),
        origin=origin,
    )


def _timm() -> Any:
    """timm; its first import takes a second less without torch's compiler."""
    with without_compiler():
        import timm
    return timm


@contextmanager
def _without_numbers() -> Iterator[None]:
    """New networks get zeros in place of random numbers: each is replaced by one of the file."""
    import torch
    from torch.overrides import TorchFunctionMode

    # Those of torch.nn.init draw where this mode does not see it.
    random = {torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.erfinv_}
    kinds = ("uniform", "normal", "trunc_normal", "kaiming", "xavier", "orthogonal", "sparse")
    initialisers = vars(torch.nn.init).items()
    random |= {one for name, one in initialisers if name.endswith("_") and name.startswith(kinds)}

    class Zeros(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, values: Any = (), named: Any = None
        ) -> Any:
            if function in random:
                with torch.no_grad():
                    return (values[0] if values else named["tensor"]).zero_()
            return function(*values, **(named or {}))

    with Zeros():
        yield


def pooling_of(model: Any) -> str:
    """How a timm network makes one vector of its last layer, in words; "" where it is not known.

    It is timm's choice, which for some networks (DINOv3, SigLIP, PE) is not that of their authors.
    """
    found = getattr(model, "global_pool", None) or getattr(
        getattr(model, "head", None), "global_pool", None
    )
    kind = found if isinstance(found, str) else getattr(found, "pool_type", "")
    prefix = getattr(model, "num_prefix_tokens", None)
    places = "the map" if prefix is None else "the tokens"
    if prefix and not getattr(model, "pool_include_prefix", False):
        places += f" without the first {prefix}"
    return {
        "token": "class token",
        "map": "attention pooling",
        "avg": f"mean over {places}",
        "max": f"maximum over {places}",
        "avgmax": f"mean and maximum over {places}",
    }.get(str(kind), str(kind or ""))


def without_weights(name: Name) -> tuple["torch.nn.Module", tuple[int, int]]:
    """The network that `name` stands for without its weights, and its input's height and width.

    Made on the meta device where the network allows that, and else with random numbers.
    WeightsError for a name that is unknown, or whose configuration cannot be followed.
    """
    import torch

    timm = _timm()

    if name.source == "timm":
        _refuse_unknown(name)
    full = _shown(name)
    made: Any = None
    for where in ("meta", "cpu"):
        try:
            with torch.device(where):
                made = timm.create_model(full, pretrained=False, num_classes=0)
            break
        except Exception as error:  # timm and the hub raise a score of types
            if where == "cpu":
                fault = weights.shape_fault(error)
                raise WeightsError(f"cannot make {full}: {fault}. {DOCTOR}") from error
    size = preprocessing_of(_config(made, full), source=full, decode="").size
    return made.eval(), size


def preprocessing_of(config: dict[str, Any], *, source: str, decode: str) -> Preprocessing:
    """timm's data configuration as ours; WeightsError where a value cannot be followed."""

    fault = partial(_fault, config, source)

    def numbers(key: str, *, positive: bool) -> tuple[float, float, float]:
        try:
            a, b, c = (float(value) for value in config[key])
        except (TypeError, ValueError, KeyError):
            raise fault(key, "three numbers are needed, one for each colour") from None
        if not all(math.isfinite(v) and (v > 0 or not positive) for v in (a, b, c)):
            raise fault(key, f"the numbers must be finite{' and above 0' if positive else ''}")
        return a, b, c

    size: Any = config.get("input_size")
    if not _is_size(size):
        raise fault("input_size", f"[3, height, width] with 1 to {MAX_SIDE:,} pixels is needed")
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise fault("crop_mode", "only center and squash are supported")
    interpolation: Any = config.get("interpolation")
    if interpolation not in _INTERPOLATIONS:
        raise fault("interpolation", f"it must be one of {', '.join(_INTERPOLATIONS)}")
    fraction = config.get("crop_pct")
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise fault("crop_pct", "it must be a number above 0 and at most 1")
    return Preprocessing(
        size=(size[1], size[2]),
        resize="squash" if mode == "squash" else "shortest",
        crop_fraction=float(fraction),
        interpolation=interpolation,
        mean=numbers("mean", positive=False),
        std=numbers("std", positive=True),
        decode=decode,
    )


def _fault(config: Mapping[str, Any], source: str, key: str, wanted: str) -> WeightsError:
    return WeightsError(
        f"{source}: its configuration has {key} = {config.get(key)!r}, but {wanted}. "
        "Correct it in config.json, or name other weights."
    )


def _is_size(size: Any) -> bool:
    """Whether `size` is 3, height, width."""
    return (
        isinstance(size, Sequence)
        and len(size) == 3
        and size[0] == 3
        and all(type(side) is int and 1 <= side <= MAX_SIDE for side in size)
    )


def hub_id_of(name: Name) -> str:
    """The hub's id of a timm or hf-hub name; "" for one whose weights lie elsewhere."""
    timm = _timm()

    if name.source == "hf-hub":
        return name.where.partition("@")[0]
    config = timm.get_pretrained_cfg(name.where)
    hub_id = str(config.hf_hub_id or "") if config else ""
    if hub_id and not hub_id.count("/"):
        return f"timm/{name.where}"
    return hub_id + name.where if hub_id.endswith("/") else hub_id


def _shown(name: Name) -> str:
    return name.where if name.source == "timm" else f"{name.source}:{name.where}"


def _config(model: Any, source: str) -> dict[str, Any]:
    timm = _timm()

    try:
        config: dict[str, Any] = timm.data.resolve_data_config({}, model=model)
    except Exception as error:  # whatever an odd configuration makes it raise
        raise WeightsError(
            f"{source}: its configuration cannot be used ({weights.first_line(error)}). "
            "Correct it in config.json, or name other weights."
        ) from error
    # timm repeats a lone number; what was meant is not known.
    written = {key: model.pretrained_cfg.get(key) for key in ("mean", "std")}
    return config | {key: value for key, value in written.items() if value is not None}


# --- folders --------------------------------------------------------------------------------------


def refuse_no_folder(folder: Path) -> None:
    """WeightsError for a folder that is not there, or holds no network."""
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"local-dir:{folder} needs a config.json and weights (model.safetensors), as timm's "
            "`save_for_hf` writes them; "
            + ("the folder has no config.json" if folder.is_dir() else "there is no such folder")
        )


def _local_dir(folder: Path) -> "tuple[dict[str, Any], dict[str, torch.Tensor]]":
    """The constructor's arguments that a folder states, and its weights."""
    config = folder / "config.json"
    refuse_no_folder(folder)
    weights.refuse_no_weights(config)
    try:
        found = json.loads(config.read_text("utf-8"))
        arguments = found.get("model_args") or {}
        if not isinstance(arguments, dict) or not isinstance(found.get("architecture"), str):
            raise ValueError("it needs an architecture, and model_args must be an object")
        stated = found.get("pretrained_cfg") or found
        if not _is_size(stated.get("input_size", (3, 1, 1))):
            raise _fault(
                stated, f"local-dir:{folder}", "input_size", "[3, height, width] is needed"
            )
    except (ValueError, OSError, AttributeError, RecursionError) as error:
        raise WeightsError(f"cannot read {config}: {reason(error)}") from None
    return arguments, weights.read_state(_weights_file(folder))


def _weights_file(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    for suffix in _WEIGHT_SUFFIXES:
        if files := sorted(folder.glob(f"*{suffix}")):
            if len(files) > 1:
                names = weights.some([file.name for file in files])
                raise WeightsError(
                    f"local-dir:{folder} holds several files with weights ({names}): rename the "
                    "right one to model.safetensors, or remove the others"
                )
            return files[0]
    raise WeightsError(
        f"local-dir:{folder} has a config.json and no weights: copy model.safetensors there"
    )


# --- timm's names and the hub ---------------------------------------------------------------------


def _need(name: Name, full: str) -> None:
    """Say what is missing before timm spends minutes on an unreachable hub."""
    timm = _timm()

    if name.source == "timm":
        _refuse_unknown(name)
        config = timm.get_pretrained_cfg(name.where)
        if config is None or not config.has_weights:
            raise WeightsError(
                f"timm {timm.__version__} has no pretrained weights for {name.where}"
            )
    if hub_id := hub_id_of(name):
        weights.need_hub(hub_id, full)


def _refuse_unknown(name: Name) -> None:
    """WeightsError for a name of timm's form that timm does not know."""
    timm = _timm()

    base, _, tag = name.where.partition(".")
    tags = timm.list_pretrained(f"{base}*") if timm.is_model(base) else []
    if not timm.is_model(base) or (tag and name.where not in tags):
        raise timm_names.unknown(name.where, tags or timm.list_pretrained())


def _refuse_bad_hub_files(name: Name) -> None:
    """Refuse pointers and web pages that were copied into the hub's cache as weights."""
    if hub_id := hub_id_of(name):
        for path in weights.hub_files(hub_id):
            if path.suffix in (".safetensors", ".bin", ".pth", ".pt"):
                weights.refuse_no_weights(path)


# --- wholly loaded or refused ---------------------------------------------------------------------

_patching = threading.Lock()


@contextmanager
def _watched_loading() -> "Iterator[list[tuple[torch.nn.Module, Any]]]":
    """Collect (module, keys that did not fit) of every `load_state_dict` within the block.

    timm passes over missing tensors in silence wherever the classifier differs, and has no way to
    ask for them; so for the time of one load torch's own method is replaced by one that listens.
    """
    import torch

    loads: list[tuple[torch.nn.Module, Any]] = []
    plain = torch.nn.Module.load_state_dict

    def listening(
        self: torch.nn.Module, state: Any, strict: bool = True, assign: bool = False
    ) -> Any:
        keys = plain(self, state, strict=False, assign=assign)
        loads.append((self, keys))
        return keys

    builder = logging.getLogger("timm.models._builder")  # it warns of what is checked here
    level = builder.level
    with _patching:
        builder.setLevel(logging.ERROR)
        torch.nn.Module.load_state_dict = listening  # type: ignore[assignment]
        try:
            yield loads
        finally:
            torch.nn.Module.load_state_dict = plain  # type: ignore[method-assign]
            builder.setLevel(level)


def _refuse_partly_loaded(
    model: "torch.nn.Module",
    loads: "list[tuple[torch.nn.Module, Any]]",
    *,
    classifier: Any,
    source: str,
) -> None:
    """Raise WeightsError unless the last load filled `model`.

    A tensor without a place is refused where the network has a part of that name: another network
    was saved. The classifier, auxiliary heads and the like, which are not built here, are accepted.
    """
    mine = [keys for module, keys in loads if module is model]
    architecture = type(model).__name__
    if not mine:
        raise WeightsError(
            f"{source}: no state dict was loaded into {architecture}, so it cannot be checked that "
            "the network is whole. Save it with timm's `save_for_hf` and use local-dir:FOLDER."
        )
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    heads = {str(name).partition(".")[0] for name in classifiers}
    parts = {name for name, part in model.named_children() if part.state_dict()}
    misplaced = [
        key
        for key in mine[-1].unexpected_keys
        if (part := key.partition(".")[0]) in parts and part not in heads
    ]
    missing = list(mine[-1].missing_keys)
    if missing and not misplaced:  # the names that stand in the file show what went wrong
        misplaced = list(mine[-1].unexpected_keys)
    weights.refuse_gaps(missing, misplaced, source=source, architecture=architecture)
