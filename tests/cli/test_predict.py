"""New photos of a head are embedded as its own photos were, or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file, save_file

import heads
from embedcache.store.cache import Cache

Run = Callable[..., tuple[int, str, str]]
LARGE = (640, 480)  # large enough to be decoded at a reduced scale


@pytest.fixture
def old(make_photos: Callable[..., Path], tmp_path: Path) -> Path:
    folder = make_photos(30, "old", LARGE)
    names = [f"p{i:03}.jpg" for i in range(30)]
    table = pl.DataFrame({"photo_id": names, "bright": ["yes", "no"] * 15})
    table.write_csv(tmp_path / "labels.csv")
    return folder


@pytest.fixture
def new(make_photos: Callable[..., Path], old: Path) -> Path:
    """Four photos that no cache has yet."""
    folder = make_photos(34, "new", LARGE)
    for path in sorted(folder.iterdir())[:30]:
        path.unlink()
    return folder


def head_of(run: Run, folder: Path, names: list[str], *, out: str = "head") -> Path:
    labels = ("--labels", folder / "labels.csv", "--target", "bright", "--head", "logistic")
    words = [word for name in names for word in ("--backbone", name)]
    status, _, err = run(
        "fit-head", "--cache", folder / "c", *words, *labels, "--out", folder / out
    )
    assert status == 0, err
    return folder / out


def applied(run: Run, folder: Path, head: Path, photos: Path, *words: object) -> str:
    out = folder / "p.csv"
    status, _, err = run("predict", head, photos, "--cache", folder / "c", "--out", out, *words)
    assert status == 0, err
    assert pl.read_csv(out)["prediction"].null_count() == 0, err
    return err


@pytest.mark.parametrize(
    ("options", "decode"),
    [
        (("--precision", "bfloat16"), "full"),
        (("--precision", "float16"), "full"),
        (("--decode", "reduced"), "reduced"),
        (("--precision", "bfloat16", "--decode", "reduced"), "reduced"),
    ],
)
def test_predict_embeds_with_the_precision_and_decoding_of_the_head(
    run: Run, old: Path, new: Path, tiny_weights: Path, tmp_path: Path, options: tuple[str, ...],
    decode: str,
) -> None:  # fmt: skip
    name = f"local-dir:{tiny_weights}"
    assert run("extract", old, "--cache", tmp_path / "c", "--backbone", name, *options)[0] == 0
    head = head_of(run, tmp_path, [name])
    applied(run, tmp_path, head, new)
    cache = Cache.open(tmp_path / "c")
    [space] = cache.spaces()
    assert space.digest == heads.load(head).card["spec_digest"]
    assert space.spec.preprocessing is not None
    assert space.spec.preprocessing.decode.endswith(decode)
    vectors, found = space.read(cache.digests_of(["p030.jpg", "p033.jpg"])[0])
    assert found.all()
    seen = pl.read_csv(tmp_path / "p.csv").filter(
        pl.col("photo_id").is_in(["p030.jpg", "p033.jpg"])
    )
    np.testing.assert_allclose(seen["prediction"], heads.load(head).predict(vectors), rtol=1e-6)


def test_backbones_of_two_precisions_are_each_embedded_with_their_own(
    run: Run, old: Path, new: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    name, layer = f"local-dir:{tiny_weights}", f"local-dir:{tiny_weights}#layer3"
    extract = ("extract", old, "--cache", tmp_path / "c", "--backbone")
    assert run(*extract, name, "--precision", "bfloat16")[0] == 0
    assert run(*extract, layer)[0] == 0
    head = head_of(run, tmp_path, [name, layer])
    applied(run, tmp_path, head, new)
    assert {space.spec.precision for space in Cache.open(tmp_path / "c").spaces()} == {
        "bfloat16",
        "float32",
    }
    applied(run, tmp_path, head, new, "--backbone", name, "--backbone", layer)


def test_one_of_two_spaces_of_a_name_is_found_by_what_it_is(
    run: Run, old: Path, new: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    """Also where this machine never embedded with it: a head names it NAME#DIGEST."""
    name = f"local-dir:{tiny_weights}"
    extract = ("extract", old, "--cache", tmp_path / "c", "--backbone", name)
    assert run(*extract)[0] == run(*extract, "--precision", "bfloat16")[0] == 0
    cache = Cache.open(tmp_path / "c")
    digest = next(s.digest for s in cache.spaces() if s.spec.precision == "bfloat16")
    head = head_of(run, tmp_path, [f"local-dir:tiny#{digest[:8]}"])
    applied(run, tmp_path, head, new)
    assert len(Cache.open(tmp_path / "c").spaces()) == 2


def test_what_this_machine_cannot_embed_alike_is_one_sentence_and_embeds_nothing(
    run: Run, old: Path, new: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "mine"
    shutil.copytree(tiny_weights, weights)
    name = f"local-dir:{weights}"
    assert run("extract", old, "--cache", tmp_path / "c", "--backbone", name)[0] == 0
    head = head_of(run, tmp_path, [name])
    state = load_file(weights / "model.safetensors")
    first = next(iter(state))
    state[first] = state[first] + 1
    save_file(state, weights / "model.safetensors")
    words = ("predict", head, new, "--cache", tmp_path / "c", "--out", tmp_path / "p.csv")
    status, out, err = run(*words, "--json")
    assert (status, out) == (1, "")
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "weights" in line
    assert "was fitted on" in line
    cache = Cache.open(tmp_path / "c")
    assert len(cache.spaces()) == 1
    assert not (tmp_path / "p.csv").exists()
