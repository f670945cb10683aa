"""Layers inside a network: the same vectors as hooks on the plain network, from one pass."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from embedcache.backbones import loading
from embedcache.backbones.folding import close
from embedcache.backbones.layers import listed, pooled_layers
from embedcache.backbones.loading import Backbone, load, load_several
from embedcache.backbones.names import Name
from embedcache.errors import WeightsError
from embedcache.spec import Spec

F32 = NDArray[np.float32]
CNN = "layer1", "layer3.0.conv1", "layer3.0.bn1", "layer3.0.act2", "conv1.0", "layer4", "fc"
CONVNEXT = "stem", "stages.1", "stages.1.blocks.0.mlp", "stages.1.blocks.0.conv_dw", "head.norm"
EFFICIENTNET = "conv_stem", "bn1", "bn1.act", "blocks.1.0", "blocks.1.0.bn2.act", "bn2.drop"
VIT = "patch_embed", "blocks.0", "blocks.1:cls", "blocks.1", "blocks.1.mlp.fc1", "norm", "norm:cls"

KINDS = [("cnn", CNN), ("efficientnet", EFFICIENTNET), ("convnext", CONVNEXT), ("vit", VIT)]


def written(folder: Path, name: str, side: int, **arguments: Any) -> Path:
    """A timm folder with a random network whose normalisations are not trivial."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) / 9
            module.running_var = torch.rand(module.num_features) + 0.5
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    stated = {"num_classes": 0, "input_size": [3, side, side], "interpolation": "bicubic"}
    stated |= {"crop_pct": 0.9, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]}
    config = {"architecture": name, "num_classes": 0, "pretrained_cfg": stated}
    (folder / "config.json").write_text(json.dumps(config | {"model_args": arguments}))
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names of tiny networks: a CNN, one with both orders of channels, and a ViT."""
    place = tmp_path_factory.mktemp("layers")
    kinds = {"cnn": ("test_resnet", 96), "efficientnet": ("test_efficientnet", 96)}
    kinds |= {"convnext": ("test_convnext", 96), "vit": ("test_vit", 160)}
    return {
        kind: f"local-dir:{written(place / kind, name, side)}"
        for kind, (name, side) in kinds.items()
    }


def hooked(model: nn.Module, backbone: Backbone, pixels: NDArray[np.uint8], name: str) -> F32:
    """What a forward hook on the plain network sees at a layer, pooled by hand."""
    p = backbone.preprocessing
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (p.mean, p.std))
    inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    seen: list[Tensor] = []
    path = name.removesuffix(":cls")
    hook = model.get_submodule(path).register_forward_hook(
        lambda module, inputs, output: seen.append(output.detach().clone())
    )
    with torch.inference_mode():
        model(inputs)
    hook.remove()
    out = seen[0]
    if out.ndim == 2:
        return out.numpy()
    if out.ndim == 3:
        prefix = int(getattr(model, "num_prefix_tokens", 0))
        return (out[:, 0] if name != path else out[:, prefix:].mean(1)).numpy()
    last = path.endswith(("mlp", "patch_embed"))  # the only maps with channels last in these tests
    return out.mean((1, 2) if last else (2, 3)).numpy()


def plain(name: str) -> nn.Module:
    return timm.create_model(name, pretrained=True, num_classes=0).eval()  # type: ignore[no-any-return]


def photos(n: int, backbone: Backbone) -> NDArray[np.uint8]:
    size = backbone.preprocessing.size
    return np.random.default_rng(n).integers(0, 256, (n, *size, 3), dtype=np.uint8)


def assert_equal(found: F32, expected: F32, *, within: float = 1e-5) -> None:
    assert found.shape == expected.shape
    gap = np.linalg.norm(found - expected, axis=1)
    assert (gap <= within * np.linalg.norm(expected, axis=1)).all()


@pytest.mark.parametrize(("kind", "paths"), KINDS)
@pytest.mark.parametrize("n", [1, 5])
def test_layers_equal_hooks_on_the_plain_network(
    networks: dict[str, str], kind: str, paths: Sequence[str], n: int
) -> None:
    name = networks[kind]
    model = plain(name)
    found = load_several([f"{name}#{','.join(paths)}", name], device="cpu")
    assert [one.name.partition("#")[2] for one in found] == [*paths, ""]
    pixels = photos(n, found[0])
    for path, backbone in zip(paths, found, strict=False):
        vectors = backbone.forward(pixels)
        assert vectors.dtype == np.float32
        assert_equal(vectors, hooked(model, backbone, pixels, path))
        assert vectors.shape[1] == backbone.spec.dim
    assert_equal(found[-1].forward(pixels), load(name, device="cpu").forward(pixels))


@pytest.mark.real
def test_layers_of_facenet_equal_hooks_on_the_packages_network(real_data: Path) -> None:
    from embedcache.backbones import facenet

    try:
        model = facenet.load("casia-webface", decode="x").model.eval()
    except WeightsError as error:
        pytest.skip(str(error))
    paths = "conv2d_4b", "repeat_1", "mixed_6a.branch0.conv", "mixed_7a", "block8", "last_linear"
    name = f"facenet:casia-webface#{','.join(paths)}"
    found = load_several([name], device="cpu", detector=lambda: "0" * 64)
    pixels = photos(3, found[0])
    for path, backbone in zip(paths, found, strict=True):
        assert_equal(backbone.forward(pixels), hooked(model, backbone, pixels, path))


def test_a_network_alone_has_the_spec_that_it_always_had(networks: dict[str, str]) -> None:
    backbone = load(networks["cnn"], device="cpu")
    assert "layer" not in backbone.spec.document()
    beside = load_several([f"{networks['cnn']}#layer1", networks["cnn"]], device="cpu")
    assert beside[1].spec == backbone.spec
    layer = beside[0].spec
    assert layer.document()["layer"] == {
        "path": "layer1",
        "pooling": "avg_nchw",
        "prefix_tokens": 0,
    }
    assert Spec.parse(layer.document()) == layer
    assert any(line.startswith("layer") for line in layer.difference(backbone.spec))


def test_pooling_and_prefix_tokens_are_said(networks: dict[str, str]) -> None:
    name = networks["vit"]
    found = load_several([f"{name}#blocks.0,blocks.0:cls,patch_embed", name], device="cpu")
    assert [one.pooling for one in found] == [
        "mean over the tokens without the first 1",
        "class token",
        "mean over the map, channels last",
        "class token",
    ]
    assert load(networks["cnn"], device="cpu").pooling == "mean over the map"


def test_several_names_of_one_network_share_one_pass(
    networks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    forward = timm.models.ResNet.forward

    def counting(self: nn.Module, x: Tensor) -> Tensor:
        passes.append(len(x))
        return forward(self, x)  # type: ignore[no-any-return]

    monkeypatch.setattr(timm.models.ResNet, "forward", counting)
    name, other = networks["cnn"], networks["vit"]
    found = load_several([name, f"{name}#layer1,layer2", other, f"{name}#layer4"], device="cpu")
    assert len({one.open for one in found}) == 2
    passes.clear()
    found[0].open().lanes[0](photos(4, found[0]))
    assert passes == [4]


def test_threads_that_share_a_network_do_not_mix_their_layers(networks: dict[str, str]) -> None:
    backbone = load(f"{networks['cnn']}#layer1", device="cpu")
    lanes = backbone.open().lanes
    batches = [photos(n, backbone) for n in range(1, 9)]
    expected = [lanes[0](batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda i: lanes[i % len(lanes)](batches[i]), range(len(batches)))
            for one, other in zip(found, expected, strict=True):
                assert_equal(one, other)


def test_half_precision_pools_in_single(networks: dict[str, str]) -> None:
    name = f"{networks['cnn']}#layer1,layer4"
    exact = load_several([name], device="cpu")
    half = load_several([name], device="cpu", precision="bfloat16")
    pixels = photos(3, exact[0])
    for one, other in zip(exact, half, strict=True):
        assert one.spec.digest != other.spec.digest
        vectors = other.forward(pixels)
        assert vectors.dtype == np.float32
        assert_equal(vectors, one.forward(pixels), within=0.05)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_a_compiled_network_gives_the_same_layers_or_is_not_used(
    networks: dict[str, str], kind: str
) -> None:
    pytest.importorskip("openvino")
    name = networks[kind]
    paths = CNN if kind == "cnn" else VIT
    found = load_several([name, f"{name}#{','.join(paths)}"], device="cpu")
    network, pixels = found[0].open(), photos(3, found[0])
    assert network.compiler == "openvino"
    vectors = network.compiled(3)[0](pixels)
    expected = [hooked(plain(name), b, pixels, p) for p, b in zip(paths, found[1:], strict=True)]
    if close(vectors, network.lanes[0](pixels), network.widths):
        for backbone, one in zip(found[1:], expected, strict=True):
            assert_equal(backbone.part_of(vectors), one, within=2e-5)
    else:  # gelu, which OpenVINO computes to four digits
        assert kind == "vit"


def test_each_layer_is_compared_for_itself() -> None:
    expected = np.ones((2, 8), np.float32)
    found = expected.copy()
    found[:, 4:] += 5e-5
    assert close(found, expected)
    assert not close(found, expected, (4, 4))
    assert close(found[:, :4], expected[:, :4], (4,))


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_the_graph_that_torch_compiles_gives_the_same_layers(
    networks: dict[str, str], kind: str
) -> None:
    from embedcache.backbones.taps import Taps, exported

    name = networks[kind]
    model = plain(name).requires_grad_(False)
    side = load(name, device="cpu").preprocessing.size[0]
    layers = pooled_layers(model, (side, side), CNN if kind == "cnn" else VIT, source=name)
    network = Taps(model, layers, whole=True)
    pixels = torch.rand(3, 3, side, side)
    with torch.inference_mode():
        expected = network(pixels)
    graph = exported(network, torch.zeros_like(pixels))
    network.remove()
    with torch.inference_mode():
        found = torch.compile(graph, backend="aot_eager")(pixels)
    assert_equal(found.numpy(), expected.numpy())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("layer9", ["no module of that path", "layer", "doctor --layers"]),
        ("layer3.0.con1", ["Did you mean", "layer3.0.conv1"]),
        ("layer3:cls", ["no class token"]),
        ("layer3..0", ["no such layer", "doctor --layers"]),
        ("", ["no such layer"]),
    ],
)
def test_an_unknown_layer_is_one_message_with_what_may_be_meant(
    networks: dict[str, str], asked: str, words: list[str]
) -> None:
    with pytest.raises(WeightsError) as caught:
        load(f"{networks['cnn']}#{asked}", device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


class Odd(nn.Module):
    """Outputs of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 4, stride=4)
        self.twice, self.idle, self.pair = nn.ReLU(), nn.ReLU(), nn.Identity()
        self.windows, self.scalar, self.last = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.conv(x)))
        self.pair((x, x))
        self.windows(x.reshape(len(x) * 4, -1, 12))
        self.scalar(x.mean())
        return self.last(x.permute(0, 2, 3, 1)).mean((1, 2))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("twice", "runs 2 times"),
        ("idle", "takes no part"),
        ("pair", "no tensor"),
        ("windows", "no vector, map or tokens of each photo"),
        ("scalar", "no vector, map or tokens of each photo"),
    ],
)
def test_an_output_that_is_no_vector_of_each_photo_is_refused(path: str, word: str) -> None:
    with pytest.raises(WeightsError, match=word):
        pooled_layers(Odd().eval(), (48, 48), [path], source="odd")


def test_maps_are_told_apart_by_the_axis_that_grows() -> None:
    # 48 / 4 = 12: of these maps all three sides are 12.
    found = pooled_layers(Odd().eval(), (48, 48), ["conv", "last"], source="odd")
    assert [one.pooling for one in found] == ["avg_nchw", "avg_nhwc"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swin_tiny_patch4_window7_224", {"layers.1": "avg_nhwc", "norm": "avg_nhwc"}),
        ("vit_small_patch14_reg4_dinov2", {"blocks.3": 5, "patch_embed": 0}),
        ("deit_tiny_distilled_patch16_224", {"blocks.3": 2}),
        ("eva02_tiny_patch14_224", {"blocks.3": 1}),
        ("vit_base_patch16_siglip_224", {"blocks.3": 0}),
        ("cait_xxs24_224", {"blocks.3": 0, "norm": 1}),
        ("mixer_s16_224", {"blocks.3": 0}),
    ],
)
def test_pooling_follows_the_network_without_its_weights(
    name: str, expected: dict[str, object]
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0).eval()
    size = model.pretrained_cfg["input_size"][1:]
    for layer in pooled_layers(model, size, [*expected], source=name):
        known = layer.pooling if layer.pooling != "avg_tokens" else layer.prefix_tokens
        assert known == expected[layer.path]
    rows = listed(model, size)
    assert len({row.layer.path for row in rows}) == len(rows) > 50


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("resnet18#layer3", "resnet18#layer3"),
        ("resnet18#layer3@face", "resnet18@face#layer3"),
        ("resnet18@face#layer3,layer4", "resnet18@face#layer3,layer4"),
        ("facenet:vggface2#repeat_1", "facenet:vggface2#repeat_1"),
        ("facenet:vggface2@face#repeat_1", "facenet:vggface2#repeat_1"),
        ("local-dir:/a/b#c/net#blocks.1:cls", "local-dir:net#blocks.1:cls"),
        ("hf-hub:timm/x@v1#stem", "hf-hub:timm/x@v1#stem"),
    ],
)
def test_a_layer_has_one_spelling(text: str, written: str) -> None:
    assert Name.parse(text).recorded == written
    assert Name.parse(Name.parse(text).recorded).recorded == written


def test_a_path_may_hold_the_mark_of_a_layer(tmp_path: Path) -> None:
    (tmp_path / "a#b").mkdir()
    name = Name.parse(f"local-dir:{tmp_path}/a#b")
    assert (name.layers, name.recorded) == ((), "local-dir:a#b")
    assert Name.parse(f"local-dir:{tmp_path}/a#b#layer1").layers == ("layer1",)


def test_the_memo_knows_layers_and_loads_a_network_once(
    networks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    folder = Path(networks["vit"].partition(":")[2])
    for path in folder.iterdir():
        os.utime(path, (1_600_000_000, 1_600_000_000))
    memo, names = tmp_path / "specs.json", [networks["vit"], f"{networks['vit']}#blocks.0,norm"]
    first = load_several(names, device="cpu", memo=memo)
    loads: list[object] = []
    load_one: Callable[..., Any] = loading._load

    def counting(*args: Any, **options: Any) -> Any:
        loads.append(args)
        return load_one(*args, **options)

    monkeypatch.setattr(loading, "_load", counting)
    again = load_several(names, device="cpu", memo=memo)
    assert not loads
    facts = [(b.spec, b.first, b.pooling, b.name) for b in first]
    assert [(b.spec, b.first, b.pooling, b.name) for b in again] == facts
    pixels = photos(2, first[0])
    for one, other in zip(first, again, strict=True):
        assert_equal(other.forward(pixels), one.forward(pixels))
    assert len(loads) == 1
