import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from embedcache.backbones import loading, spec_memo
from embedcache.backbones.loading import load
from embedcache.errors import WeightsError

OLD = 1_600_000_000


def aged(folder: Path) -> Path:
    """The folder with files that nobody has touched for years."""
    for path in folder.iterdir():
        os.utime(path, (OLD, OLD))
    return folder


@pytest.fixture
def weights(tiny_weights: Path, tmp_path: Path) -> Path:
    return aged(Path(shutil.copytree(tiny_weights, tmp_path / "net")))


def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_load", lambda *_, **__: pytest.fail("loaded"))


def test_a_backbone_seen_before_is_not_loaded_until_it_is_needed(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo, name = tmp_path / "specs.json", f"local-dir:{weights}"
    first = load(name, device="cpu", memo=memo)
    with monkeypatch.context() as patched:
        no_loading(patched)
        again = load(name, device="cpu", memo=memo)
        assert (again.spec, again.name, again.place) == (first.spec, first.name, first.place)
    assert again.open().device == "cpu"
    assert again.open() is again.open()


def test_another_precision_or_decoding_is_another_spec(weights: Path, tmp_path: Path) -> None:
    memo, name = tmp_path / "specs.json", f"local-dir:{weights}"
    specs = {
        load(name, device="cpu", memo=memo, **options).spec.digest  # type: ignore[arg-type]
        for options in ({}, {"precision": "bfloat16"}, {"decode": "reduced"})
        for _ in range(2)
    }
    assert len(specs) == 3


def test_a_file_that_changed_is_loaded_again(weights: Path, tmp_path: Path) -> None:
    memo, name = tmp_path / "specs.json", f"local-dir:{weights}"
    first = load(name, device="cpu", memo=memo)
    state = load_file(weights / "model.safetensors")
    state["conv1.0.weight"] += 1e-3
    save_file(state, weights / "model.safetensors")
    assert load(name, device="cpu", memo=memo).spec.weights != first.spec.weights
    # so new that it may change once more within a tick of the clock: nothing is remembered
    assert load(name, device="cpu", memo=memo).spec.weights != first.spec.weights
    (weights / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json"):
        load(name, device="cpu", memo=memo)


def test_weights_that_changed_unseen_are_refused_when_they_are_loaded(
    weights: Path, tmp_path: Path
) -> None:
    memo, name = tmp_path / "specs.json", f"local-dir:{weights}"
    load(name, device="cpu", memo=memo)
    state = load_file(weights / "model.safetensors")
    state["conv1.0.weight"] += 1e-3
    save_file(state, weights / "model.safetensors")
    aged(weights)  # same size, same time: the memo cannot know
    stale = load(name, device="cpu", memo=memo)
    with pytest.raises(WeightsError, match=r"have changed.*weights: .*Rerun the command"):
        stale.open()
    assert load(name, device="cpu", memo=memo).open().device == "cpu"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": 1}', b"[" * 100_000, b"\xff"])
def test_a_damaged_memo_only_costs_time(weights: Path, tmp_path: Path, content: bytes) -> None:
    memo, name = tmp_path / "specs.json", f"local-dir:{weights}"
    memo.write_bytes(content)
    first = load(name, device="cpu", memo=memo)
    assert load(name, device="cpu", memo=memo).spec == first.spec


def test_a_rerun_with_nothing_to_do_loads_no_torch(
    weights: Path, tmp_path: Path, make_photos: "object"
) -> None:
    photos = make_photos(3)  # type: ignore[operator]
    command = ["extract", str(photos), "--cache", str(tmp_path / "c")]
    command += ["--backbone", f"local-dir:{weights}", "--device", "cpu"]
    script = (
        "import sys, cli\n"
        f"try:\n    cli.app({command!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('torch' in sys.modules, 'timm' in sys.modules)"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(2)
    ]
    assert printed[0][-1] == "True True"
    assert printed[1][-1] == "False False"
    assert "3 present, 0 embedded" in printed[1][1]


def test_the_files_behind_the_detector_are_found_without_importing_it() -> None:
    assert {path.name for path in spec_memo.detector_files()} == {"pnet.pt", "rnet.pt", "onet.pt"}
