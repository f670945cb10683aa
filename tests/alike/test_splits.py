"""Planted near-duplicates and the sides of a split: kept together, or warned of."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedcache.store import Cache
from heads.dataset import load
from heads.study.kept import KeptFit
from heads.study.parted import parted
from tests.alike import copies

Run = Callable[..., tuple[int, str, str]]
N = 90


@pytest.fixture
def world(run: Run, tiny_weights: Path, tmp_path: Path) -> tuple[Path, str, dict[str, str]]:
    """A cache and labels.csv of 90 photos and near-copies of 30 of them; which is whose copy."""
    photos = tmp_path / "photos"
    made = copies.make(photos, N)
    planted = copies.plant(made[:30], photos)
    rng = np.random.default_rng(0)
    names = [path.name for path in made]
    value = dict(zip(names, rng.uniform(size=N), strict=True))
    rows = [[name, f"photos/{name}", value[planted.get(name, name)]] for name in [*names, *planted]]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["photo_id", "photo", "score"], *rows])
    name = f"local-dir:{tiny_weights}"
    cache = tmp_path / "c.cache"
    status, _, err = run("extract", tmp_path / "labels.csv", "--cache", cache, "--backbone", name)
    assert status == 0, err
    # So that the threshold can be measured: the memo leaves out files this new.
    assert run("duplicates", cache, "--backbone", name, "--photos", photos)[0] == 0
    return cache, name, planted


def test_kept_together_every_planted_copy_is_on_its_photos_side(
    run: Run, world: tuple[Path, str, dict[str, str]], tmp_path: Path
) -> None:
    cache, name, planted = world
    from embedcache.commands.alike import near_duplicates

    labels = tmp_path / "labels.csv"
    plain = load(Cache.open(cache), name, labels, target="score")
    side = dict(zip(plain.ids, plain.subset.tolist(), strict=True))
    assert any(side[copy] != side[original] for copy, original in planted.items())
    near = near_duplicates(Cache.open(cache), name)
    kept = load(Cache.open(cache), name, labels, target="score", keep_together=[near])
    side = dict(zip(kept.ids, kept.subset.tolist(), strict=True))
    group = dict(zip(kept.ids, kept.groups.tolist(), strict=True))
    assert all(side[copy] == side[original] for copy, original in planted.items())
    assert all(group[copy] == group[original] for copy, original in planted.items())
    assert kept.provenance.split_rule.endswith("grouped by near-duplicates")
    fold = kept.folds(5, seed=0)
    place = dict(zip(kept.ids, fold.tolist(), strict=True))
    assert all(place[copy] == place[original] for copy, original in planted.items())


def test_photos_without_near_duplicates_keep_their_side() -> None:
    from heads.dataset import split

    keys: list[str | None] = [f"{i:02}" for i in range(40)]
    near: list[str | None] = ["7" if i in (3, 9) else None for i in range(40)]
    before = split.by_hash(*split.join_groups([keys]), seed=0)
    after = split.by_hash(*split.join_groups([keys, near]), seed=0)
    assert [i for i in range(40) if before[i] != after[i]] in ([], [3], [9])


def test_fit_head_keeps_them_together_and_says_so(
    run: Run, world: tuple[Path, str, dict[str, str]], tmp_path: Path
) -> None:
    cache, name, _ = world
    words = (
        *("fit-head", "--cache", cache, "--backbone", name, "--labels", tmp_path / "labels.csv"),
        *("--target", "score", "--head", "ridge", "--out", tmp_path / "head"),
    )
    status, _, err = run(*words, "--keep-together", "near-duplicates")
    assert status == 0, err
    assert "near-duplicates are kept together: 120 groups became" in err
    assert run(*words, "--keep-together", "near-duplicates:1")[0] == 0
    status, _, err = run(*words, "--keep-together", "near-duplicates:0.1")
    assert "Name a higher near-duplicates:X, or another backbone" in err
    assert "threshold`" not in err
    status, _, err = run(*words, "--keep-together", "near")
    assert status == 1
    assert "--keep-together is near-duplicates, or near-duplicates:X" in err


@pytest.mark.parametrize("folds", [0, 5])
@pytest.mark.parametrize("together", [False, True])
def test_a_study_warns_of_every_planted_copy_that_its_split_parts(
    run: Run,
    world: tuple[Path, str, dict[str, str]],
    tmp_path: Path,
    folds: int,
    together: bool,
) -> None:
    cache, name, planted = world
    keep = 'keep_together = "near-duplicates"\n' if together else ""
    (tmp_path / "study.toml").write_text(
        f'labels = "labels.csv"\nfolds = {folds}\nheads = ["ridge"]\nprotocols = ["warm"]\n{keep}'
        f'[[target]]\ncolumn = "score"\n[[backbone]]\nname = "{name}"\nlabel = "tiny"\n'
    )
    status, _, err = run(
        "study", tmp_path / "study.toml", "--out", tmp_path / "out", "--cache", cache
    )
    assert status == 0, err
    [kept] = (tmp_path / "out" / "fits").glob("*.json")
    fit = KeptFit.read(kept, key=json.loads(kept.read_bytes())["key"])
    assert fit is not None
    numbers = {one: i for i, pair in enumerate(planted.items()) for one in pair}
    torn = parted(fit, numbers)  # of the planted ones alone
    assert torn.any() == (not together)
    assert ("have a near-duplicate on another side" in err) == (not together)
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("have a near-duplicate on another side" in page) == (not together)
    if not together:
        said = int(err.partition("warning: ")[2].partition(" on ALL: ")[2].split()[0])
        assert said >= torn.sum()
        assert "in place of" in err


def test_of_several_layers_in_one_name_the_last_tells_near_duplicates(
    run: Run, world: tuple[Path, str, dict[str, str]], tmp_path: Path
) -> None:
    cache, name, _ = world
    layers = f"{name}#layer1,layer2"
    assert run("extract", tmp_path / "photos", "--cache", cache, "--backbone", layers)[0] == 0
    status, _, err = run(
        *("fit-head", "--cache", cache, "--backbone", layers, "--labels", tmp_path / "labels.csv"),
        *("--target", "score", "--head", "ridge", "--out", tmp_path / "head"),
        *("--keep-together", "near-duplicates:0.999"),
    )
    assert status == 0, err
    assert f"near-duplicates by {name}#layer2" in err
    status, _, err = run("duplicates", cache, "--backbone", layers)
    assert status == 1
    assert "are 2 sets of vectors, and one is wanted here" in err
