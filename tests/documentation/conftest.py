"""A folder as the documents assume it, on a machine without a network."""

import csv
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests import stand_in

N_PHOTOS = 72


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of the model hub and of torch, as a machine has them that was online once.

    They hold the networks that the documents name, with random weights.
    """
    import timm
    import torch
    from facenet_pytorch.models.inception_resnet_v1 import InceptionResnetV1
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    name = "inception_v3.tf_in1k"
    kept = folder / "hub" / f"models--timm--{name}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    snapshot = kept / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(timm.create_model(name).state_dict(), snapshot / "model.safetensors")
    (snapshot / "config.json").write_text("{}")
    checkpoints = folder / "torch" / "checkpoints"
    checkpoints.mkdir(parents=True)
    state = InceptionResnetV1(pretrained=None).state_dict()
    torch.save(state, checkpoints / "20180402-114759-vggface2.pt")
    return folder


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine reaches no network, and has no weights from earlier days."""
    from huggingface_hub import constants

    from embedcache.backbones import weights

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no torch"))
    monkeypatch.setattr(weights, "REACH_SECONDS", 0.0)


@pytest.fixture
def short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study files that commands write ask for one epoch and one split: most of their time."""
    from heads.study import design

    written = design.template

    def shorter(name: str) -> str:
        text = re.sub(r"^(folds|epochs) = .*\n", "", written(name), flags=re.MULTILINE)
        text = text.replace("seed = ", "folds = 0\nseed = ", 1)
        return re.sub(r"^\[fit\].*\n|\Z", "[fit]\nepochs = 1\n", text, count=1, flags=re.MULTILINE)

    monkeypatch.setattr(design, "template", shorter)


@pytest.fixture
def online_once(hub: Path, no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has the weights that the documents name, and reaches no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(hub / "torch"))


@pytest.fixture
def world(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_photos: Callable[..., Path],
    tiny_weights: Path,
    detector: stand_in.Detector,
) -> Path:
    """The current folder: photos, new photos, users, swipes, labels, and a network in a folder."""
    monkeypatch.chdir(tmp_path)
    # One face on most photos, so that the subset "exactly one face" can be split and fitted.
    monkeypatch.setattr(detector, "count", lambda photo: min(1, photo.getpixel((0, 0))[0] % 5))
    photos = sorted(make_photos(N_PHOTOS).iterdir())
    make_photos(6, "new_photos", (80, 96))
    shutil.copytree(tiny_weights, tmp_path / "weights" / "efficientnet_lite0")
    rng = np.random.default_rng(0)
    people = [[p.stem, "FM"[i % 2], f"photos/{p.name}"] for i, p in enumerate(photos)]
    likes = rng.binomial(20, rng.uniform(0.2, 0.8, N_PHOTOS))
    write("users.csv", ["user_id", "gender", "photo"], people)
    write(
        "labels.csv",
        ["user_id", "gender", "photo", "like_ratio", "swipes"],
        [[*person, k / 20, 20] for person, k in zip(people, likes, strict=True)],
    )
    write(
        "swipes.csv",
        ["recipient_id", "liked", "sender_id", "sender_gender"],
        [
            [person[0], int(sender < k), f"s{sender}", "FM"[sender % 2]]
            for person, k in zip(people, likes, strict=True)
            for sender in range(20)
        ],
    )
    return tmp_path


def write(path: str, header: list[str], rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
