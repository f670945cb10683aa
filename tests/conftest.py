"""Small named fixtures: photos made on the spot, and a network of a few thousand weights."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import stand_in

REAL_DATA = os.environ.get("EMBEDCACHE_REAL_DATA")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if REAL_DATA:
        return
    skip = pytest.mark.skip(reason="EMBEDCACHE_REAL_DATA names no folder")
    for item in items:
        if item.get_closest_marker("real"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def real_data() -> Path:
    assert REAL_DATA is not None  # tests that ask for it are marked `real`
    return Path(REAL_DATA)


@pytest.fixture
def make_photos(tmp_path: Path) -> Callable[..., Path]:
    """make_photos(n, folder="photos", size=(96, 80)): n different JPEGs, p000.jpg and so on."""

    def make(n: int, folder: str = "photos", size: tuple[int, int] = (96, 80)) -> Path:
        out = tmp_path / folder
        out.mkdir(exist_ok=True)
        for i in range(n):
            rng = np.random.default_rng([i, *size])
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(
                out / f"p{i:03}.jpg", quality=92
            )
        return out

    return make


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timm folder with a random `test_resnet` (160 px, under half a million weights)."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights") / "tiny"
    folder.mkdir()
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0)
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {
        "num_classes": 0,
        "input_size": [3, 96, 96],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    config = {"architecture": "test_resnet", "num_classes": 0, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """run("extract", path, ...) -> (exit status, stdout, stderr)."""
    import cli

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["embedcache", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> stand_in.Detector:
    """A face detector that costs nothing, in the place of the real one."""
    from embedcache.extraction.face_finder import FaceFinder

    fake = stand_in.Detector()
    monkeypatch.setattr(FaceFinder, "detector", fake)
    return fake
