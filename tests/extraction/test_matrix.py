"""Every way to run a network gives its vectors: compiled or not, faces, batch size, precision.

The short form runs stand-ins, whose compiled form refuses any batch but its own size, and one tiny
real network. The torture form runs twelve unusual architectures and three trained networks over
2,500 photos; EMBEDCACHE_MATRIX_PHOTOS names another number.
"""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from embedcache import disk
from embedcache.backbones.loading import Backbone, load
from embedcache.extraction import engine, pace
from embedcache.extraction.face_finder import FaceFinder
from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from tests import stand_in

Compile = Literal["on", "auto", "off"]

COMPILE: tuple[Compile, ...] = ("on", "auto", "off")
BATCH_SIZES = (None, 3, 64)
PRECISIONS = ("float32", "bfloat16", "float16")
N_PHOTOS = int(os.environ.get("EMBEDCACHE_MATRIX_PHOTOS", "2500"))
# Relative differences of a vector, in the 2-norm, between two ways to run a network.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}
ODD = (
    *("test_byobnet", "test_convnext", "test_convnext2", "test_convnext3", "test_efficientnet_ln"),
    *("test_efficientnet_evos", "test_efficientnet_gn", "test_mambaout", "test_nfnet"),
    *("test_resnet", "test_vit4", "test_vit_relpos"),
)
REAL = ("inception_v3_nsfwjs", "efficientnet_lite0", "faceres_mobilenetv1@face")


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)


@pytest.fixture
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of few photos looks for its batch size, and `auto` compiles as soon as it can."""
    monkeypatch.setattr(pace, "CPU_SIZES", (2, 4))
    monkeypatch.setattr(pace, "PATIENCE", 1)
    monkeypatch.setitem(pace.COMPILERS, "openvino", (0.15, 0.0))
    # Of stand-ins, how fast the machine seems is no matter: the compiled form is always faster.
    monkeypatch.setattr(engine, "elapsed", lambda passes: 1e-9)


@pytest.fixture
def mostly_one_face(detector: stand_in.Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(picture: Image.Image) -> int:
        red = int(np.asarray(picture)[0, 0, 0])
        return 1 if red % 10 > 1 else 2 * (red % 10)

    monkeypatch.setattr(detector, "count", count)


def vectors_of(
    photos: Photos,
    backbones: Sequence[Backbone],
    cache: Cache,
    *,
    compiling: Compile = "off",
    batch_size: int | None = None,
) -> dict[str, np.ndarray]:
    """The vectors of each backbone, NaN for photos without; every photo has one or a reason."""
    found = extract(photos, cache, backbone=backbones, compiling=compiling, batch_size=batch_size)
    for space in found.spaces:
        assert space.left == 0
        assert set(space.failures) <= {"no_face", "several_faces"}, space.failures
        assert space.embedded > space.wanted / 2
    return {
        b.name: cache.space(b.spec).read(photos.digests().value)[0].astype(np.float64)
        for b in backbones
    }


def far(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative difference of a photo's vector; infinite if other photos have one."""
    if (np.isnan(found) != np.isnan(expected)).any():
        return float("inf")
    there = ~np.isnan(expected).any(axis=1)
    gap = np.linalg.norm(found[there] - expected[there], axis=1)
    return float((gap / np.linalg.norm(expected[there], axis=1)).max())


def local_dir(architecture: str, folder: Path) -> str:
    """A timm folder with random weights."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(len(architecture))
    model = timm.create_model(architecture, num_classes=0)
    patches = getattr(model, "patch_embed", None)  # a transformer takes one size only
    size = patches.img_size[0] if patches else model.pretrained_cfg["input_size"][1]
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"num_classes": 0, "input_size": [3, size, size], "crop_pct": 0.95}
    cfg |= {"interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": architecture, "num_classes": 0, "pretrained_cfg": cfg}
    config |= {"model_args": {"img_size": size}} if patches else {}
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


@pytest.mark.usefixtures("short_trials", "mostly_one_face")
def test_stand_ins_give_the_same_vectors_every_way(make_photos: object, tmp_path: Path) -> None:
    photos = Photos.read(make_photos(60))  # type: ignore[operator]
    expected: dict[tuple[str, bool], np.ndarray] = {}
    ways = itertools.product(PRECISIONS, (False, True), COMPILE, BATCH_SIZES)
    for i, (precision, face, compiling, batch_size) in enumerate(ways):
        sizes: list[int] = []

        model = stand_in.backbone(
            f"{precision}-{face}",
            face=face,
            precision=precision,
            compiler="openvino",
            n_lanes=2,
            before=sizes.append,
        )
        cache = Cache.open(tmp_path / str(i), create=True)
        [found] = vectors_of(
            photos, [model], cache, compiling=compiling, batch_size=batch_size
        ).values()
        np.testing.assert_array_equal(found, expected.setdefault((precision, face), found))
        forwarded = sum(sizes) < (~np.isnan(found[:, 0])).sum()
        tried = batch_size != 64  # 2 lanes x 64 x 2 trials are more than there are photos
        assert forwarded == (compiling != "off" and tried), (precision, face, compiling, batch_size)


@pytest.mark.usefixtures("short_trials", "mostly_one_face")
def test_a_tiny_network_gives_the_same_vectors_every_way(
    make_photos: object, tiny_weights: Path, tmp_path: Path
) -> None:
    photos = Photos.read(make_photos(40))  # type: ignore[operator]
    names = [f"local-dir:{tiny_weights}", f"local-dir:{tiny_weights}@face"]
    digest = stand_in.Detector().digest
    for precision in PRECISIONS:
        loaded = [
            load(name, device="cpu", precision=precision, detector=lambda: digest) for name in names
        ]
        plain = vectors_of(photos, loaded, Cache.open(tmp_path / precision, create=True))
        # Other precisions are compiled by inductor, which takes half a minute.
        modes: tuple[Compile, ...] = ("on", "off") if precision == "float32" else ("off",)
        for compiling in modes:
            for batch_size in (None, 3):
                cache = Cache.open(tmp_path / f"{precision}-{compiling}-{batch_size}", create=True)
                found = vectors_of(
                    photos, loaded, cache, compiling=compiling, batch_size=batch_size
                )
                for name, vectors in found.items():
                    assert far(vectors, plain[name]) <= TOLERANCE[precision]


@pytest.mark.torture
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of what these networks do
@pytest.mark.usefixtures("short_trials", "mostly_one_face")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_unusual_networks_give_the_same_vectors_every_way(
    make_photos: object, tmp_path: Path, precision: str
) -> None:
    photos = Photos.read(make_photos(N_PHOTOS))  # type: ignore[operator]
    folders = [local_dir(name, tmp_path / name) for name in ODD]
    check_every_way(
        photos, [*folders, *(f"{name}@face" for name in folders)], tmp_path, precision=precision
    )


@pytest.mark.real
@pytest.mark.torture
@pytest.mark.timeout(7 * 3600)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_trained_networks_give_the_same_vectors_every_way(
    real_data: Path, tmp_path: Path, precision: str
) -> None:
    folders = [real_data / "data" / "mebeauty" / "photos", real_data / "data" / "lfw"]
    found = [Photos.read(folder) for folder in folders if folder.exists()]
    paths = [path for some in found for path in some.paths][:N_PHOTOS]
    photos = Photos(tuple(map(str, range(len(paths)))), tuple(paths), "matrix")
    names = [f"local-dir:{real_data}/weights/{name}" for name in REAL]
    check_every_way(photos, names, tmp_path, precision=precision)


def check_every_way(photos: Photos, names: Sequence[str], folder: Path, *, precision: str) -> None:
    """All networks in one run for each way: they share reading, decoding and detection."""
    finder = FaceFinder(Cache.open(folder / "detector", create=True), "cpu")
    loaded = [
        load(name, device="cpu", precision=precision, detector=finder.digest) for name in names
    ]
    plain = vectors_of(photos, loaded, Cache.open(folder / "plain", create=True))
    for compiling, batch_size in itertools.product(COMPILE, BATCH_SIZES):
        cache = Cache.open(folder / f"{compiling}-{batch_size}", create=True)
        found = vectors_of(photos, loaded, cache, compiling=compiling, batch_size=batch_size)
        gaps = {name: far(vectors, plain[name]) for name, vectors in found.items()}
        print(f"{precision}, --compile {compiling}, --batch-size {batch_size}: {gaps}")
        assert max(gaps.values()) <= TOLERANCE[precision]
