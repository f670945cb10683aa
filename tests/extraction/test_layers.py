"""Layers of one network in a run: one pass, a space each, resumed like any other."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
from numpy.typing import NDArray
from torch import Tensor, nn

from embedcache.backbones.forward import Network
from embedcache.backbones.loading import Backbone, load
from embedcache.errors import NoSuchSpace, WeightsError
from embedcache.extraction import pace
from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.spec import PooledLayer
from embedcache.store.cache import Cache
from tests import stand_in

MakePhotos = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
LAYERS = "layer1,layer3,layer4.0.conv1"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every batch that a ResNet has seen."""
    seen: list[int] = []
    forward = timm.models.ResNet.forward

    def counting(self: nn.Module, x: Tensor) -> Tensor:
        seen.append(len(x))
        return forward(self, x)  # type: ignore[no-any-return]

    monkeypatch.setattr(timm.models.ResNet, "forward", counting)
    return seen


def opened(tmp_path: Path) -> Cache:
    return Cache.open(tmp_path / "c", create=True)


@pytest.mark.parametrize("together", [True, False])
def test_one_pass_serves_a_network_and_its_layers(
    make_photos: MakePhotos,
    tmp_path: Path,
    tiny_weights: Path,
    passes: list[int],
    together: bool,
) -> None:
    photos, cache = Photos.read(make_photos(7)), opened(tmp_path)
    name = f"local-dir:{tiny_weights}"
    names = [name, f"{name}#{LAYERS}"] if together else [f"{name}#{LAYERS}"]
    found = extract(photos, cache, backbone=names, device="cpu", batch_size=7)
    assert passes.count(7) == 1  # the others look at the network
    assert passes[-1] == 7
    assert [space.embedded for space in found.spaces] == [7] * (3 + together)
    assert [space.dim for space in found.spaces][-3:] == [32, 192, 96]
    for layer in LAYERS.split(","):
        backbone = load(f"{name}#{layer}", device="cpu")
        vectors, there = cache.vectors(f"local-dir:tiny#{layer}", photos.ids)
        assert there.all()
        assert vectors.shape[1] == backbone.spec.dim
    passes.clear()
    again = extract(photos, cache, backbone=names, device="cpu")
    assert [space.hit for space in again.spaces] == [7] * (3 + together)


class Layered:
    """A stand-in for a network and its layers: one pass, three backbones."""

    def __init__(self, *, face: bool = False) -> None:
        self.batches: list[int] = []
        plain = stand_in.backbone(dim=12, face=face)

        def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.batches.append(len(pixels))
            return plain.forward(pixels)

        def lanes(n_batch: int) -> tuple[Callable[..., NDArray[np.float32]], ...]:
            return (forward,)

        network = Network(lanes=(forward,), widths=(4, 4, 4), compiled=lanes, compiler="inductor")

        def open_() -> Network:
            return network

        from dataclasses import replace

        self.backbones = [
            Backbone(
                name=f"net#{path}" if path else "net",
                place=f"net#{path}" if path else "net",
                spec=replace(
                    plain.spec,
                    dim=4,
                    layer=PooledLayer(path=path, pooling="none") if path else None,
                ),
                open=open_,
                first=4 * i,
            )
            for i, path in enumerate(["", "a", "b"])
        ]


def test_a_layer_that_is_there_is_not_written_again(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder, cache, net = make_photos(5), opened(tmp_path), Layered()
    extract(Photos.read(folder), cache, backbone=net.backbones[1])
    photos = Photos.read(make_photos(9))
    net.batches.clear()
    found = extract(photos, cache, backbone=net.backbones)
    assert sum(net.batches) == 9
    assert [(space.hit, space.embedded) for space in found.spaces] == [(0, 9), (5, 4), (0, 9)]
    whole = stand_in.backbone(dim=12)
    extract(photos, cache, backbone=whole)
    expected = cache.vectors("stand-in", photos.ids)[0]
    both = cache.vectors(["net", "net#a,b"], photos.ids)[0]
    np.testing.assert_array_equal(both, expected)


def test_a_stopped_run_of_layers_is_resumed(make_photos: MakePhotos, tmp_path: Path) -> None:
    photos, cache, net = Photos.read(make_photos(12)), opened(tmp_path), Layered()
    left = iter(range(6))
    first = extract(
        photos, cache, backbone=net.backbones, batch_size=2, stop=lambda: next(left, None) is None
    )
    assert first.interrupted
    second = extract(photos, cache, backbone=net.backbones, batch_size=2)
    assert [space.hit + space.embedded for space in second.spaces] == [12] * 3
    assert sum(net.batches) == 12


def test_layers_of_faces_share_detection_crop_and_refusal(
    make_photos: MakePhotos, tmp_path: Path, detector: stand_in.Detector
) -> None:
    photos, cache, net = Photos.read(make_photos(20)), opened(tmp_path), Layered(face=True)
    found = extract(photos, cache, backbone=net.backbones)
    good = found.spaces[0].embedded
    assert 0 < good < 20
    assert detector.n_seen == 20
    assert sum(net.batches) == good
    assert {(space.embedded, space.failed) for space in found.spaces} == {(good, 20 - good)}
    again = extract(photos, cache, backbone=net.backbones, retry_failed=True)
    assert {(space.hit, space.failed) for space in again.spaces} == {(good, 20 - good)}


def test_a_compiled_pass_is_compared_layer_by_layer(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "CPU_SIZES", (4,))
    photos, cache, net = Photos.read(make_photos(99)), opened(tmp_path), Layered()
    lines: list[str] = []
    found = extract(photos, cache, backbone=net.backbones, compiling="on", log=lines.append)
    assert [space.embedded for space in found.spaces] == [99] * 3
    assert any("compiled net in" in line for line in lines)


def test_an_unknown_layer_ends_before_the_run(
    make_photos: MakePhotos, tmp_path: Path, tiny_weights: Path, run: Run
) -> None:
    words = ("--cache", tmp_path / "c", "--backbone", f"local-dir:{tiny_weights}#layer33")
    status, out, err = run("extract", make_photos(3), *words)
    assert (status, out) == (1, "")
    assert "has no layer 'layer33'" in err
    assert "layer3" in err.partition("Did you mean")[2]
    with pytest.raises(WeightsError, match="no such layer"):
        extract(Photos.read(make_photos(3)), opened(tmp_path), backbone="resnet18#a b")


def test_the_command_takes_layers_and_says_how_they_are_pooled(
    make_photos: MakePhotos, tmp_path: Path, tiny_weights: Path, run: Run
) -> None:
    name, cache = f"local-dir:{tiny_weights}", tmp_path / "c"
    words = ("--cache", cache, "--backbone", f"{name}#layer1,layer2", "--backbone", name)
    status, out, err = run("extract", make_photos(4), *words)
    assert status == 0, err
    assert "local-dir:tiny#layer1  32-d" in out
    assert out.count("(mean over the map)") == 3
    assert "(mean over the map)" in run("info", cache)[1]
    status, out, err = run("extract", make_photos(4), *words, "--json")
    assert [one["pooling"] for one in json.loads(out)["spaces"]] == ["mean over the map"] * 3
    export = ("export", cache, "--out", tmp_path / "F.npy", "--backbone")
    status, out, err = run(*export, "local-dir:tiny#layer1", "--backbone", "local-dir:tiny")
    assert status == 0, err
    assert np.load(tmp_path / "F.npy").shape == (4, 32 + 96)
    assert run(*export, "local-dir:tiny#layer1,layer2")[0] == 0


def test_doctor_lists_layers_without_weights(tiny_weights: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_weights / "config.json").read_bytes())
    status, out, err = run("doctor", "--layers", f"local-dir:{folder}")
    assert status == 0, err
    assert "\nlayer3.0 " in out
    assert "layer3.0.conv1" not in out  # inside a block
    assert "without a layer: mean over the map" in out
    status, out, err = run("doctor", "--layers", f"local-dir:{folder}", "--json")
    assert "layer3.0.conv1" in {one["layer"] for one in json.loads(out)["layers"]}
    status, out, err = run("doctor", "--layers", "test_vit", "--json")
    found = json.loads(out)
    assert found["pooling"] == "class token"
    row = next(one for one in found["layers"] if one["layer"] == "blocks.1")
    assert row == {
        "layer": "blocks.1",
        "shape": [101, 64],
        "dim": 64,
        "pooling": "avg_tokens",
        "prefix_tokens": 1,
    }
    status, out, err = run("doctor", "--layers", "test_vitt")
    assert (status, out) == (1, "")
    assert "Did you mean" in err


def test_a_layer_that_a_cache_lacks_is_not_taken_for_a_digest(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos, cache, net = Photos.read(make_photos(2)), opened(tmp_path), Layered()
    extract(photos, cache, backbone=net.backbones)
    digest = cache.find("net").digest
    assert cache.find(f"net#{digest[:8]}").digest == digest
    with pytest.raises(NoSuchSpace, match="has no vectors of 'net#"):
        cache.find(f"net#{digest[:2]}")  # short names of layers, such as fc, are hex digits too
    with pytest.raises(NoSuchSpace, match="the same vectors"):
        cache.vectors(["net", f"net#{digest[:8]}"], photos.ids)
    for names in (["net#a", "net#a,b"], "net#a,a", ["net#b,a", "net", "net#a"]):
        with pytest.raises(NoSuchSpace, match="'net#a' is named twice: name it once"):
            cache.side_by_side(names)
    assert cache.find("net#a").spec.layer == PooledLayer(path="a", pooling="none")
