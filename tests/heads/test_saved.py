"""A head comes back as it went, and a folder that is anything else is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import heads
from embedcache.errors import HeadError
from embedcache.spec import canonical_json, foreign
from heads import saved
from heads.dataset.arrays import from_arrays
from heads.dataset.rows import Dataset

QUICK: dict[str, Any] = {"epochs": 2, "hidden": 8, "resamples": 50, "learning_rates": (1e-2,)}


@pytest.fixture
def fitted(tmp_path: Path, sample: Callable[..., Dataset]) -> tuple[Path, Any]:
    data = sample(n=200)
    vectors = data.vectors[np.arange(200)]
    data = from_arrays(vectors, data.targets, weights=data.weights, spec=foreign("net", 12))
    fit = heads.fit(data, members=2, **QUICK)
    return fit.save(tmp_path / "out"), fit


def test_a_saved_head_predicts_what_the_fitted_one_did(fitted: tuple[Path, Any]) -> None:
    folder, fit = fitted
    vectors = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    for name, head in fit.heads.items():
        loaded = heads.load(folder / name)
        assert (loaded.predict(vectors) == head.predict(vectors)).all()
        assert loaded.card["spec_digest"] == foreign("net", 12).digest
        assert loaded.card["split"]["sha256"] == fit.dataset.provenance.split
    assert heads.load(folder).name == fit.best
    rows = (folder / fit.best / "predictions.csv").read_text().splitlines()
    assert rows[0] == "id,truth,weight,prediction,group"
    assert len(rows) == 1 + fit.dataset.n["test"]
    assert (folder / "1fc" / "curves.csv").read_text().startswith("rate,epoch,train,dev\n0.01,0,")
    assert json.loads((folder / "fit.json").read_text())["best"] == fit.best


def test_a_folder_of_the_user_where_a_fit_writes_a_file_moves_beside_it(
    fitted: tuple[Path, Any],
) -> None:
    folder, fit = fitted
    place = folder / fit.best / "predictions.csv"
    place.unlink()
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "notes.txt").write_text("mine")
    (place / "empty").mkdir()
    for _ in range(2):
        fit.save(folder)
        assert place.is_file()
        [notes] = folder.rglob("notes.txt")
        assert notes.read_text() == "mine"
    assert not list(folder.parent.glob(f".{folder.name}*"))


def test_saving_again_replaces_a_fit_and_nothing_else(fitted: tuple[Path, Any]) -> None:
    folder, fit = fitted
    (folder / "1fc" / "notes.txt").write_text("mine")
    (folder / "0fc").mkdir(exist_ok=True)
    (folder / "0fc" / "plot.png").write_text("mine too")
    fit.save(folder)
    assert (folder / "1fc" / "notes.txt").read_text() == "mine"
    assert (folder / "0fc" / "plot.png").read_text() == "mine too"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["out"]
    other = folder.parent / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(HeadError, match="something other than an earlier fit"):
        fit.save(other)


def test_an_open_log_an_empty_folder_and_links_in_an_earlier_fit_stay(
    fitted: tuple[Path, Any],
) -> None:
    folder, fit = fitted
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("fit.json")
    by_link = folder.parent / "latest"
    by_link.symlink_to(folder)
    with (folder / "log.txt").open("w") as log:
        log.write("before\n")
        log.flush()
        assert fit.save(by_link) == folder.resolve()
        log.write("after\n")
    assert (folder / "log.txt").read_text() == "before\nafter\n"
    assert (folder / "empty").is_dir()
    assert (folder / "link").readlink() == Path("fit.json")
    assert by_link.is_symlink()


def test_a_file_of_a_fit_that_was_changed_is_not_replaced(fitted: tuple[Path, Any]) -> None:
    folder, fit = fitted
    curves = folder / fit.best / "curves.csv"
    curves.write_text("annotated")
    with pytest.raises(HeadError, match=r"curves\.csv is not what an earlier fit wrote"):
        fit.save(folder)
    assert curves.read_text() == "annotated"
    assert saved.load(folder).name == fit.best
    (folder / "fit.json").write_text("mine")
    with pytest.raises(HeadError, match=r"fit\.json is not what an earlier fit wrote"):
        saved.check_out(folder)


def test_a_save_that_fails_leaves_the_earlier_fit(
    fitted: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fit = fitted
    before = (folder / "fit.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(saved, "_predictions", full)
    with pytest.raises(OSError, match="no space"):
        fit.save(folder)
    assert (folder / "fit.json").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def edit_card(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "card.json").read_text()) | changes
    (folder / "card.json").write_text(json.dumps(card))


def signed(folder: Path, **changes: object) -> None:
    """Change a card and give it the digest that belongs to the change."""
    from hashlib import sha256

    edit_card(folder, **changes)
    card = json.loads((folder / "card.json").read_text())
    rest = {name: value for name, value in card.items() if name != "digest"}
    edit_card(folder, digest=sha256(canonical_json(rest)).hexdigest())


def test_a_changed_figure_on_a_card_is_refused(fitted: tuple[Path, Any]) -> None:
    edit_card(fitted[0] / "ridge", figures=[])
    with pytest.raises(HeadError, match="changed after it was written"):
        heads.load(fitted[0] / "ridge")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 2**40}, "dim must be a whole number from 1 to 65536; got"),
        ({"dim": True}, "dim must be a whole number from 1 to 65536; got"),
        ({"dim": 13, "spec": None, "spec_digest": ""}, "other tensors"),
        ({"dim": 13}, "spec and its digest"),
        ({"members": 10**9}, "members must be a whole number from 1 to 1024; got 1000000000"),
        ({"hidden": 60_000}, "bytes; the card says"),
        ({"hidden": 0}, "hidden is 0, which a 1fc head cannot have"),
        ({"head": "../../etc"}, "head must be one of 0fc, 1fc"),
        ({"link": "eval"}, "link must be one of identity, sigmoid"),
        ({"format": 9}, "format 9"),
        ({"classes": "FM"}, "classes must be a list, each text; got 'FM'"),
        ({"spec": None}, "digest but no spec"),
        ({"spec": {"dim": 12}}, "not a spec document"),
        ({"weights_bytes": 2**40}, "weights_bytes must be a whole number from 8 to"),
        ({"colour": "red"}, "has no 'colour'; it has"),
        ({"split": {"rule": "hash"}}, "split lacks 'sha256'"),
        ({"n": {"train": "many"}}, r"n\[\.\.\.\]: Expected int, got str"),
        ({"weights_sha256": "0" * 64}, "sha256 differs"),
    ],
)
def test_a_card_that_lies_is_refused(
    fitted: tuple[Path, Any], changes: dict[str, object], message: str
) -> None:
    signed(fitted[0] / "1fc", **changes)
    with pytest.raises(HeadError, match=message):
        heads.load(fitted[0] / "1fc")


def reweigh(folder: Path, tensors: dict[str, Any]) -> None:
    from hashlib import sha256

    save_file(tensors, folder / "weights.safetensors")
    raw = (folder / "weights.safetensors").read_bytes()
    signed(folder, weights_sha256=sha256(raw).hexdigest(), weights_bytes=len(raw))


def test_other_weights_than_the_card_implies_are_refused(fitted: tuple[Path, Any]) -> None:
    folder = fitted[0] / "1fc"
    good = load_file(folder / "weights.safetensors")
    half = {name: tensor.astype(np.float16) for name, tensor in good.items()}
    turned = dict(good)
    turned["layer0.weight"] = good["layer0.weight"].reshape(2, 12, 8)
    broken = dict(good)
    broken["layer0.bias"] = np.full_like(good["layer0.bias"], np.nan)
    flat = dict(good)
    flat["standard.scale"] = np.zeros_like(good["standard.scale"])
    for tensors, message in (
        (half, "bytes; the card says"),
        (turned, "other tensors"),
        (broken, "NaN"),
        (flat, "scale is not above zero"),
    ):
        reweigh(folder, tensors)
        with pytest.raises(HeadError, match=message):
            heads.load(folder)


def test_a_flipped_byte_in_the_weights_is_refused(fitted: tuple[Path, Any]) -> None:
    path = fitted[0] / "2fc" / "weights.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(HeadError, match="sha256 differs"):
        heads.load(fitted[0] / "2fc")


def test_another_head_put_in_the_best_ones_place_is_refused(fitted: tuple[Path, Any]) -> None:
    folder, fit = fitted
    shutil.rmtree(folder / fit.best)
    shutil.copytree(folder / "const", folder / fit.best)
    with pytest.raises(HeadError, match=r"not the head that fit\.json lists"):
        heads.load(folder)


def test_folders_that_are_not_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=r"neither fit\.json nor card\.json"):
        heads.load(tmp_path)
    (tmp_path / "fit.json").write_text("[" * 10_000)
    with pytest.raises(HeadError, match="not JSON"):
        heads.load(tmp_path)
    (tmp_path / "fit.json").write_text('{"best": "../x", "heads": {"../x": ""}}')
    with pytest.raises(HeadError, match="has format None; this version reads 1"):
        heads.load(tmp_path)


def test_vectors_of_another_length_are_refused(fitted: tuple[Path, Any]) -> None:
    with pytest.raises(HeadError, match="vectors of 12 floats; got an array of shape"):
        heads.load(fitted[0]).predict(np.zeros((2, 5), np.float32))
