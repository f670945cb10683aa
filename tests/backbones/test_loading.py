import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from embedcache import example
from embedcache.backbones import loading, weights
from embedcache.backbones.loading import load
from embedcache.backbones.names import Name, refuse_crop
from embedcache.errors import WeightsError
from embedcache.photos import images


def gradient(size: tuple[int, int] = (150, 120)) -> Image.Image:
    rng = np.random.default_rng(5)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        ("inception_v3.tf_in1k", "inception_v3.tf_in1k"),
        ("inception_v3.tf_in1k@face", "inception_v3.tf_in1k@face"),
        ("hf-hub:timm/resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"),
        ("local-dir:/a/b/net", "local-dir:net"),
        ("local-dir:a/net/@face", "local-dir:net@face"),
        ("facenet:vggface2", "facenet:vggface2"),
        ("facenet:casia-webface@face", "facenet:casia-webface"),
        ("facenet:/a/b/mine.pt", "facenet:mine.pt"),
    ],
)
def test_a_recorded_name_holds_no_path(text: str, recorded: str) -> None:
    assert Name.parse(text).recorded == recorded


@pytest.mark.parametrize("text", ["", "@face", "local-dir:", "file:x", "https://x/y"])
def test_a_name_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(WeightsError, match="no such backbone"):
        Name.parse(text)


def test_vectors_equal_timms_own_forward(tiny_weights: Path) -> None:
    backbone = load(f"local-dir:{tiny_weights}", device="cpu")
    model = timm.create_model(f"local-dir:{tiny_weights}", pretrained=True, num_classes=0).eval()
    config = timm.data.resolve_data_config({}, model=model)
    transform = timm.data.create_transform(**config, is_training=False)
    pictures = [gradient((150, 120)), gradient((96, 200)), gradient((97, 97))]
    with torch.inference_mode():
        expected = model(torch.stack([transform(p) for p in pictures])).numpy()
    pixels = np.stack([images.resize_crop(p, backbone.preprocessing) for p in pictures])
    np.testing.assert_allclose(backbone.forward(pixels), expected, rtol=1e-4, atol=1e-5)
    assert backbone.spec.dim == expected.shape[1]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_no_random_numbers_are_drawn_for_a_network_that_a_file_fills(
    name: str, tmp_path: Path
) -> None:
    model = timm.create_model(name, num_classes=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 0}))
    before = torch.get_rng_state()
    load(f"local-dir:{tmp_path}", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_digest_is_of_the_weights_and_not_of_their_place(
    tiny_weights: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "renamed"
    shutil.copytree(tiny_weights, copy)
    first, second = (load(f"local-dir:{f}", device="cpu") for f in (tiny_weights, copy))
    assert first.spec == second.spec
    assert first.name != second.name
    state = load_file(copy / "model.safetensors")
    state["conv1.0.weight"] += 1e-3
    save_file(state, copy / "model.safetensors")
    assert load(f"local-dir:{copy}", device="cpu").spec.weights != first.spec.weights


def test_reduced_and_full_decoding_are_two_specs(tiny_weights: Path) -> None:
    name = f"local-dir:{tiny_weights}"
    reduced = load(name, device="cpu", decode="reduced")
    full = load(name, device="cpu")
    assert reduced.spec.difference(full.spec) == [
        f"preprocessing.decode: '{images.VERSION}-reduced', '{images.VERSION}-full'"
    ]
    assert loading.shorter_side(reduced.preprocessing) == 102  # ceil(96 / 0.95)
    assert loading.shorter_side(full.preprocessing) is None


def test_half_precision_is_a_spec_of_its_own_and_close(tiny_weights: Path) -> None:
    name = f"local-dir:{tiny_weights}"
    pixels = np.array(gradient((96, 96)))[None]
    exact, half = load(name, device="cpu"), load(name, device="cpu", precision="bfloat16")
    a, b = exact.forward(pixels)[0], half.forward(pixels)[0]
    assert exact.spec.digest != half.spec.digest
    assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)


@pytest.fixture
def facenet_state() -> dict[str, torch.Tensor]:
    from facenet_pytorch.models.inception_resnet_v1 import InceptionResnetV1

    torch.manual_seed(1)
    return dict(InceptionResnetV1(pretrained=None).state_dict())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_facenet_loads_a_state_dict_and_equals_the_packages_module(
    facenet_state: dict[str, torch.Tensor], tmp_path: Path, suffix: str
) -> None:
    from facenet_pytorch import fixed_image_standardization
    from facenet_pytorch.models.inception_resnet_v1 import InceptionResnetV1

    path = tmp_path / f"mine{suffix}"
    trained = {**facenet_state, "logits.weight": torch.zeros(9, 512), "logits.bias": torch.zeros(9)}
    if suffix == ".pt":
        torch.save(trained, path)
    else:
        save_file(trained, path)
    backbone = load(f"facenet:{path}", device="cpu", detector=lambda: "0" * 64)
    module = InceptionResnetV1(pretrained=None)
    module.load_state_dict(facenet_state)
    pixels = np.stack([np.asarray(gradient((160, 160))), np.asarray(gradient((320, 160)))[:, :160]])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        expected = module.eval()(fixed_image_standardization(batch)).numpy()
    found = backbone.forward(pixels)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (backbone.spec.dim, backbone.name) == (512, f"facenet:mine{suffix}")
    assert backbone.spec.face is not None


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_a_checkpoint_that_wants_to_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="refused"):
        load(f"facenet:{tmp_path / 'evil.pt'}", device="cpu")
    assert not Path("executed").exists()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, tiny_weights: Path) -> None:
    torch.save({"x": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="no state dict of"):
        load(f"facenet:{tmp_path / 'other.pt'}", device="cpu")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds no state dict"):
        load(f"facenet:{tmp_path / 'list.pt'}", device="cpu")
    folder = tmp_path / "net"
    shutil.copytree(tiny_weights, folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load(f"local-dir:{folder}", device="cpu")
    (folder / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="cannot read"):
        load(f"local-dir:{folder}", device="cpu")
    with pytest.raises(WeightsError, match="no such folder"):
        load(f"local-dir:{tmp_path / 'nowhere'}", device="cpu")
    with pytest.raises(WeightsError, match="no file"):
        load(f"facenet:{tmp_path / 'nowhere.pt'}", device="cpu")


def test_an_unknown_model_names_its_neighbours() -> None:
    with pytest.raises(WeightsError, match="has no model 'inception_v3x'") as caught:
        load("inception_v3x", device="cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match=r"Did you mean .*inception_v3"):
        load("inception_v3.typo", device="cpu")


def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(WeightsError, match="no such device"):
        load("resnet18", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(WeightsError, match="sees 0 CUDA devices"):
            load("resnet18", device="cuda")


def no_network(*_: object, **__: object) -> Any:
    raise OSError("no network in tests")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("inception_v3.tf_in1k", ["timm/inception_v3.tf_in1k", "hub", "hf download", "local-dir"]),
        ("hf-hub:someone/model", ["someone/model", "hf download"]),
        ("facenet:vggface2", ["20180402-114759-vggface2.pt", "checkpoints", "internet"]),
    ],
)
def test_missing_weights_say_what_where_and_what_to_do(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(weights, "in_hub_cache", lambda hub_id: False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        load(name, device="cpu", detector=lambda: "0" * 64)
    assert all(word in str(caught.value) for word in words)


def slow_network(*_: object, **__: object) -> Any:
    time.sleep(0.6)
    raise OSError("slow")


def test_a_hub_that_never_answers_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "REACH_SECONDS", 0.2)
    monkeypatch.setattr(socket, "create_connection", slow_network)
    monkeypatch.setattr(weights, "in_hub_cache", lambda hub_id: False)
    started = time.monotonic()
    with pytest.raises(WeightsError, match="cannot be reached"):
        weights.need_hub("timm/inception_v3.tf_in1k", "inception_v3")
    assert time.monotonic() - started < 0.5
    time.sleep(0.5)  # lets the thread end before pytest looks for lost ones


def test_the_examples_weights_are_imagenets(tmp_path: Path) -> None:
    folder = example.write_lite0(tmp_path / "lite0")
    assert json.loads((folder / "config.json").read_text())["architecture"] == (
        "tf_efficientnet_lite0"
    )
    backbone = load(f"local-dir:{folder}", device="cpu")
    vectors = backbone.forward(np.stack([np.asarray(gradient((224, 224)))] * 2))
    assert vectors.shape == (2, 1280)
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-4, atol=1e-5)


@pytest.mark.real
def test_the_examples_weights_equal_the_known_file(tmp_path: Path, real_data: Path) -> None:
    mine = load_file(example.write_lite0(tmp_path / "lite0") / "model.safetensors")
    known = load_file(real_data / "weights/efficientnet_lite0/model.safetensors")
    assert mine.keys() == known.keys()
    assert all(torch.equal(mine[name].float(), known[name].float()) for name in known)


def test_an_at_that_belongs_to_a_path_or_to_a_revision_is_no_choice_of_a_face(
    tmp_path: Path,
) -> None:
    (tmp_path / "me@fac").mkdir()
    names = f"local-dir:{tmp_path}/me@fac", f"local-dir:{tmp_path}/me@fac/net", "hf-hub:a/b@v1.0"
    for name in names:
        refuse_crop(Name.parse(name))
        refuse_crop(Name.parse(f"{name}@face"))
