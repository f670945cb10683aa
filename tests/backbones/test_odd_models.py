"""Odd models: one message before the run, and no network that is not wholly loaded."""

import json
import shutil
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from embedcache.backbones.loading import load
from embedcache.errors import WeightsError

State = dict[str, torch.Tensor]
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1846123\n"
)


@pytest.fixture
def folder(tiny_weights: Path, tmp_path: Path) -> Path:
    """A copy of the tiny network that a test may spoil."""
    return Path(shutil.copytree(tiny_weights, tmp_path / "net"))


def refusal(name: str | Path) -> str:
    """The one message that a backbone ends in."""
    text = f"local-dir:{name}" if isinstance(name, Path) else name
    with pytest.raises(WeightsError) as caught:
        load(text, device="cpu", detector=lambda: "0" * 64)
    message = str(caught.value)
    assert "\n" not in message
    assert "weights_only" not in message
    return message


def rewrite(folder: Path, change: Callable[[State], State]) -> None:
    path = folder / "model.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path)


def configure(folder: Path, **values: Any) -> None:
    """Set values of config.json: of the network's own configuration, or at the top level."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in values.items():
        top = key in ("architecture", "model_args")
        (config if top else config["pretrained_cfg"])[key] = value
    path.write_text(json.dumps(config))


# --- not wholly loaded ----------------------------------------------------------------------------


def prefixed(state: State) -> State:
    return {f"backbone.{name}": tensor for name, tensor in state.items()}


def without_a_layer(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("layer3.")}


def without_statistics(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if "running_mean" not in name}


def of_nothing(state: State) -> State:
    return {"x": torch.zeros(3)}


def deeper(state: State) -> State:
    more = {k.replace("layer1.0", "layer1.1"): v.clone() for k, v in state.items()}
    return state | more


def narrower(state: State) -> State:
    return {name: tensor[:-1] if tensor.ndim == 4 else tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (prefixed, ["missing", "bn1.weight", "backbone.bn1.weight"]),
        (without_a_layer, ["missing", "layer3."]),
        (without_statistics, ["missing", "running_mean"]),
        (of_nothing, ["missing", "conv1.0.weight", "(x)"]),
        (deeper, ["layer1.1."]),
        (narrower, ["size mismatch", "conv1.0.weight"]),
    ],
)
def test_weights_that_do_not_fill_the_network_are_refused_by_name(
    folder: Path, change: Callable[[State], State], words: list[str]
) -> None:
    rewrite(folder, change)
    message = refusal(folder)
    assert all(word in message for word in [str(folder), *words])


def test_the_classifier_may_be_there_or_not(folder: Path, tiny_weights: Path) -> None:
    def with_classifier(state: State) -> State:
        return state | {"fc.weight": torch.zeros(5, 96), "fc.bias": torch.zeros(5)}

    configure(folder, num_classes=5, classifier="fc")
    rewrite(folder, with_classifier)
    mine, plain = (load(f"local-dir:{f}", device="cpu") for f in (folder, tiny_weights))
    assert mine.spec.weights == plain.spec.weights


def test_a_pickled_state_dict_is_the_same_network(folder: Path, tiny_weights: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert load(f"local-dir:{folder}", device="cpu").spec == (
        load(f"local-dir:{tiny_weights}", device="cpu").spec
    )


def test_two_files_with_weights_are_a_question_and_none_is_an_answer(folder: Path) -> None:
    weights = folder / "model.safetensors"
    shutil.copy(weights, folder / "b.safetensors")
    weights.rename(folder / "a.safetensors")
    assert "a.safetensors, b.safetensors" in refusal(folder)
    for name in "ab":
        (folder / f"{name}.safetensors").unlink()
    assert "no weights" in refusal(folder)


@pytest.fixture
def hub_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[State], str]:
    """hub_model(state) puts a model of timm's into an offline hub cache; returns its name."""
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("network"))

    def put(state: State) -> str:
        model = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
        snapshot = model / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text("a" * 40)
        save_file({k: v.contiguous() for k, v in state.items()}, snapshot / "model.safetensors")
        config = {"architecture": "test_resnet", "pretrained_cfg": {"num_classes": 1000}}
        (snapshot / "config.json").write_text(json.dumps(config))
        return "test_resnet.r160_in1k"

    return put


@pytest.mark.parametrize("form", ["{}", "hf-hub:timm/{}"])
def test_the_hub_is_believed_no_more_than_a_folder(
    hub_model: Callable[[State], str], form: str
) -> None:
    state = timm.create_model("test_resnet", num_classes=1000).state_dict()
    name = form.format(hub_model(without_a_layer(state)))
    message = refusal(name)
    assert name in message
    assert "layer3." in message


def test_a_whole_model_of_the_hub_is_used(hub_model: Callable[[State], str]) -> None:
    state = timm.create_model("test_resnet", num_classes=1000).state_dict()
    network = load(hub_model(state), device="cpu").open()
    assert network.lanes[0](np.zeros((1, 160, 160, 3), np.uint8)).shape[0] == 1
    assert network.origin["trained_on"] == "r160_in1k"


# --- files that are no weights --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "git lfs pull"),
        (b"", "empty"),
        (b"<!DOCTYPE html><html>Sign in", "web page"),
        (b"\xff" * 100, "cannot be read as weights"),
    ],
)
def test_a_file_that_is_not_weights_is_named_for_what_it_is(
    folder: Path, tmp_path: Path, content: bytes, words: str
) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert words in refusal(folder)
    for suffix in (".pt", ".safetensors"):
        file = tmp_path / f"mine{suffix}"
        file.write_bytes(content)
        message = refusal(f"facenet:{file}")
        assert str(file) in message
        assert words in message or (suffix == ".pt" and "refused" in message)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_a_pickle_with_code_is_refused_in_our_words(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state: dict[str, Any] = dict(load_file(folder / "model.safetensors"))
    torch.save(state | {"x": Evil()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "evil.bin").write_bytes((tmp_path / "evil.pt").read_bytes())
    for name in (folder, f"facenet:{tmp_path / 'evil.pt'}", f"facenet:{tmp_path / 'evil.bin'}"):
        assert "would run code" in refusal(name)
    assert not Path("executed").exists()


def test_a_compiled_torchscript_file_is_refused_in_our_words(tmp_path: Path) -> None:
    file = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(torch.nn.ReLU(), torch.zeros(1))  # type: ignore[no-untyped-call]
        script.save(str(file))
    assert str(file) in refusal(f"facenet:{file}")


def test_a_configuration_that_is_a_pointer_is_called_one(folder: Path) -> None:
    (folder / "config.json").write_bytes(POINTER)
    assert "git lfs pull" in refusal(folder)


# --- odd configurations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"global_pool": ""}, "global_pool"),
        ({"model_args": {"global_pool": ""}}, "global_pool"),
        ({"mean": [0.5]}, "mean = [0.5]"),
        ({"mean": 0.5}, "mean = 0.5"),
        ({"mean": ["a", "b", "c"]}, "three numbers"),
        ({"std": [0.2, 0.2, 0.0]}, "above 0"),
        ({"std": [0.2, 0.2, float("nan")]}, "std"),
        ({"interpolation": "random"}, "nearest, bilinear, bicubic, lanczos"),
        ({"interpolation": "hamming"}, "interpolation"),
        ({"crop_pct": -1}, "crop_pct"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"crop_pct": "most"}, "crop_pct"),
        ({"crop_mode": "border"}, "crop_mode"),
        ({"input_size": [3, 0, 96]}, "input_size"),
        ({"input_size": [3, 96]}, ""),
        ({"input_size": [1, 96, 96]}, ""),
        ({"input_size": [3, 100_000, 100_000]}, "input_size"),
        ({"input_size": [3, 2, 2], "crop_pct": 1.0, "fixed_input_size": True}, ""),
        ({"model_args": {"features_only": True}}, ""),
        ({"model_args": {"in_chans": 1}}, ""),
        ({"model_args": {"no_such": 1}}, "no_such"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, ""),
        ({"model_args": {"pretrained_cfg": {}}}, ""),
        ({"model_args": ["a"]}, "config.json"),
        ({"architecture": "no_such_network"}, "no_such_network"),
        ({"architecture": 3}, "config.json"),
        ({"no_such_field": 1}, ""),
    ],
)
def test_an_odd_configuration_ends_in_one_message(
    folder: Path, values: dict[str, Any], words: str
) -> None:
    configure(folder, **values)
    assert words in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe", b"null"])
def test_a_configuration_that_is_no_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refusal(folder)


def test_weights_that_are_not_numbers_are_refused(folder: Path) -> None:
    rewrite(folder, lambda state: {k: v * float("nan") for k, v in state.items()})
    assert "not finite" in refusal(folder)
