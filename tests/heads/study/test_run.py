"""A study on planted vectors: what is fitted, what is kept, what is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

import heads
from embedcache.errors import LabelsError
from embedcache.store.cache import Cache
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.verify import verify
from heads import dataset
from heads.fitting.fit import fit
from heads.study import design, findings
from heads.study import run as study
from heads.study.design import Study
from heads.study.kept import KeptFit
from heads.study.results import Results, compare
from tests.heads.study import studies


def small(folder: Path, **changes: Any) -> Study:
    """A study of one fit with two heads, on the label table of the other tests."""
    document: dict[str, Any] = {
        "labels": "out/labels.csv",
        "heads": ["const", "ridge"],
        "folds": 0,
        "target": [{"column": "like_ratio", "weight": "swipes"}],
        "backbone": [{"name": "whole"}],
    }
    return Study.parse(document | changes, folder=folder)


def run(chosen: Study, cache: Cache, out: Path) -> Results:
    return study.run(chosen, cache, lambda _: None, out)


def test_faces_are_fitted_on_one_face_photos_and_the_rest_on_every_subset(results: Results) -> None:
    fits = {(fit.target, fit.subset, fit.backbone) for fit in results.fits}
    assert fits == {
        (target, subset, backbone)
        for target in ("like_ratio", "gender")
        for subset, backbone in (("ALL", "Inception"), ("1BBOX", "Inception"), ("1BBOX", "FaceNet"))
    }
    sizes = {fit.subset: fit.n_photos for fit in results.fits}
    assert {fit.folds for fit in results.fits} == {5}  # as few photos as these are
    assert {len(fit.ids) for fit in results.fits} == set(sizes.values())
    assert sizes == {"ALL": studies.N, "1BBOX": studies.N * 5 // 6}


def test_every_head_has_a_row_with_interval_dev_and_origin(results: Results) -> None:
    rows = results.rows()
    heads = {"const", "logistic", "0fc", "1fc", "2fc", "dev's choice"}
    assert {row.head for row in rows if row.target == "gender"} == heads
    for row in rows:
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.value <= row.high
        assert row.dev is not None or row.head == "const by gender"
        assert {len(spec) for spec in row.spec.split()} == {64}
        if len(row.spec) > 64:
            assert row.name == "Dev's choice of all"
        assert len(row.labels) == len(row.split) == 64
        assert row.n_test > row.n_train > 0  # by folds every photo is tested


def test_planted_face_vectors_win_and_the_comparison_says_so(results: Results) -> None:
    verdicts = {c.target: c for c in results.comparisons()}
    assert verdicts.keys() == {"like_ratio", "gender"}
    for comparison in verdicts.values():
        assert comparison.verdict == 1
        assert comparison.first.startswith("FaceNet")
        assert comparison.low <= comparison.difference <= comparison.high


def test_the_verdict_is_opposite_where_whole_photo_vectors_win(results: Results) -> None:
    for target in results.targets():
        fits = {fit.backbone: fit for fit in results.fits_of(target, "1BBOX")}
        turned = replace(compare(fits["Inception"], fits["FaceNet"]), faces=True)
        assert (turned.verdict, turned.n_groups) == (-1, turned.n)
        said = findings.versus(turned, simulated=False, n_comparisons=1).text
        assert "opposite to the paper" in said


def test_a_study_of_less_than_some_thousand_rows_uses_folds_unless_told(
    folder: Path, results: Results
) -> None:
    assert {fit.folds for fit in results.fits} == {5}
    by_default = small(folder, folds=None)
    assert [by_default.folds_for(n) for n in (100, 4999, 5000)] == [5, 5, None]
    assert small(folder).folds_for(100) is None
    assert small(folder, folds=7).folds_for(90_000) == 7


def test_the_row_in_bold_is_what_dev_chose_and_not_the_best_on_test(results: Results) -> None:
    other = 0
    for target in results.targets():
        for subset in results.subsets(target):
            rows = [r for r in results.rows() if (r.target, r.subset) == (target, subset)]
            best = [row for row in rows if row.best]
            assert len(best) == 1
            assert best[0].head == "dev's choice"
            dev = [row.dev for row in rows if row.head == "dev's choice" and row.dev is not None]
            assert best[0].dev is not None
            assert best[0].dev <= min(dev) + 1e-6  # the lowest in each fold
            on_test = (min if best[0].metric == "mse" else max)(row.value for row in rows)
            other += best[0].value != on_test
    assert other


def test_a_fit_compared_with_itself_differs_by_nothing(results: Results) -> None:
    for one in results.fits:
        same = compare(one, one)
        assert (same.difference, same.p, same.verdict) == (0, 1, 0)
        assert same.low <= 0 <= same.high


def test_the_labels_come_from_the_swipe_log_with_their_counts(results: Results) -> None:
    assert results.label_counts is not None
    assert results.label_counts["users"] == studies.N
    assert results.simulated
    assert len(results.truth) == studies.N


def test_a_second_run_fits_nothing_and_finds_the_same(
    folder: Path, cache: Cache, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(study, "fit", refuse)
    again = run(Study.read(folder / "study.toml"), cache, folder / "out")
    assert again.reused == len(again.fits) == len(results.fits)
    assert again.rows() == results.rows()
    assert again.fits == results.fits


def test_an_interrupted_study_repeats_no_finished_work(
    folder: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = small(
        folder, target=[{"column": "like_ratio"}, {"column": "good"}, {"column": "gender"}],
        heads=["const"],
    )  # fmt: skip
    calls: list[str] = []

    def interrupted(data: Any, **options: Any) -> Any:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(data.target)
        return fit(data, **options)

    monkeypatch.setattr(study, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(chosen, cache, tmp_path)
    assert len(list((tmp_path / "fits").glob("*.json"))) == 1
    monkeypatch.undo()
    assert run(chosen, cache, tmp_path).reused == 1


def test_two_studies_of_one_folder_at_once_both_finish(
    folder: Path, cache: Cache, tmp_path: Path
) -> None:
    chosen, others = small(folder), list[Results]()

    def counting(_: str) -> Callable[[int, int], None]:
        if not others:  # the second runs from its beginning to its end while the first fits
            others.append(run(chosen, cache, tmp_path))
        return lambda _done, _n: None

    found = study.run(chosen, cache, lambda _: None, tmp_path, counting=counting)
    assert (found.reused, others[0].reused) == (0, 0)
    first, second = ([(row.head, row.value) for row in one.rows()] for one in (found, *others))
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fits"]
    # The fit, and the head that dev chose in a folder of the same name.
    first_name, second_name = sorted(path.name for path in (tmp_path / "fits").iterdir())
    assert second_name == f"{first_name}.json"


@pytest.mark.parametrize("error", [KeyboardInterrupt, LabelsError, ValueError])
def test_a_fit_that_ends_early_leaves_no_table_of_its_rows(
    error: type[BaseException],
    folder: Path,
    cache: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Path] = []

    def stopped(_cache: Cache, _backbone: str, path: Path, **_: Any) -> None:
        assert path.is_file()
        seen.append(path)
        raise error("stopped")

    monkeypatch.setattr(dataset, "load", stopped)
    with pytest.raises(error):
        run(small(folder), cache, tmp_path)
    assert len(seen) == 1
    assert not seen[0].parent.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["fits"]


def test_a_changed_label_is_fitted_anew_and_a_damaged_file_too(
    folder: Path, cache: Cache, results: Results, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_bytes((folder / "out" / "labels.csv").read_bytes())
    chosen = small(tmp_path, labels="labels.csv")
    out = tmp_path / "out"
    assert run(chosen, cache, out).reused == 0
    assert run(chosen, cache, out).reused == 1
    kept = next((out / "fits").glob("*.json"))
    kept.write_text(kept.read_text()[:-40])
    assert run(chosen, cache, out).reused == 0
    table = pl.read_csv(tmp_path / "labels.csv")
    table.with_columns(like_ratio=1 - pl.col("like_ratio")).write_csv(tmp_path / "labels.csv")
    assert run(chosen, cache, out).reused == 0
    assert run(small(tmp_path, labels="labels.csv", seed=1), cache, out).reused == 0


def test_other_vectors_of_the_same_photos_are_fitted_anew(folder: Path, tmp_path: Path) -> None:
    """As after a repair that lost one, or an import of other vectors under the same name."""
    for name in ("photos.cache", "out"):
        shutil.copytree(folder / name, tmp_path / name)
    cache, out = Cache.open(tmp_path / "photos.cache"), tmp_path / "fitted"
    assert run(small(tmp_path), cache, out).reused == 0
    space = cache.find("whole")
    [segment] = space.segments()
    shard = segment.folder / "embedding/c/0/0"
    shard.write_bytes(b"\0" + shard.read_bytes()[1:])
    content = segment.column("digest")[:1]
    verify(cache, repair=True)
    assert run(small(tmp_path), cache, out).reused == 0  # of a photo less
    with space.writer(n_rows=1, name="whole", about={}) as writer:
        writer.add(content, np.ones((1, 24), np.float32))
    assert run(small(tmp_path), cache, out).reused == 0
    assert run(small(tmp_path), cache, out).reused == 1


def test_a_kept_fit_is_read_back_as_it_was_written(results: Results, tmp_path: Path) -> None:
    for one in results.fits:
        one.write(tmp_path / "fit.json")
        assert KeptFit.read(tmp_path / "fit.json", key=one.key) == one
        assert KeptFit.read(tmp_path / "fit.json", key="0" * 64) is None


def test_a_condition_chooses_the_rows_of_a_subset(
    folder: Path, cache: Cache, results: Results, tmp_path: Path
) -> None:
    women = results.label_counts["by_gender"]["F"]["users"]  # type: ignore[index]
    subsets = [{"name": "women", "where": "gender = 'F' AND swipes >= 1"}]
    made = run(small(folder, subset=subsets), cache, tmp_path)
    assert sum(made.fits[0].n.values()) == women


@pytest.mark.parametrize(
    "where",
    ["gender = ", "no_such_column > 1", "like_ratio", "SELECT * FROM x", "read_csv('/etc/passwd')"],
)
def test_an_invalid_condition_is_refused(
    folder: Path, cache: Cache, tmp_path: Path, where: str
) -> None:
    with pytest.raises(LabelsError, match="subset 's'"):
        run(small(folder, subset=[{"name": "s", "where": where}]), cache, tmp_path)


def test_embed_is_asked_once_per_backbone_and_never_for_imported_vectors(
    folder: Path, cache: Cache, results: Results, tmp_path: Path
) -> None:
    asked: list[str] = []
    study.run(small(folder), cache, asked.append, tmp_path)
    assert asked == ["whole"]


def test_rows_without_a_value_are_left_out_of_that_target_only(
    folder: Path, cache: Cache, results: Results, tmp_path: Path
) -> None:
    table = pl.read_csv(folder / "out" / "labels.csv").with_row_index("i")
    gaps = pl.when(pl.col("i") >= 20).then("gender").alias("gender")
    table.with_columns(gaps).drop("i").write_csv(tmp_path / "labels.csv")
    targets = [{"column": "gender"}, {"column": "like_ratio"}]
    made = run(
        small(tmp_path, labels="labels.csv", target=targets, heads=["const"]), cache, tmp_path
    )
    assert [sum(fit.n.values()) for fit in made.fits] == [studies.N - 20, studies.N]
    assert [fit.dropped for fit in made.fits] == [{"no gender": 20}, {}]


def test_what_is_left_out_is_counted_by_reason(results: Results) -> None:
    several = {"several faces (FaceNet)": studies.N // 6}
    for one in results.fits:
        assert one.dropped == ({} if one.subset == "ALL" else several)


def test_heads_of_another_task_are_ignored(folder: Path, cache: Cache, tmp_path: Path) -> None:
    targets = [{"column": "like_ratio"}, {"column": "gender"}]
    made = run(small(folder, target=targets, heads=["ridge", "logistic"]), cache, tmp_path)
    assert [fit.heads for fit in made.fits] == [("const", "ridge"), ("const", "logistic")]


def test_the_document_names_no_photo_and_no_folder(results: Results) -> None:
    text = json.dumps(results.document(), default=str)
    assert "u0001" not in text
    assert ".jpg" not in text
    assert "/" not in json.dumps(results.document()["study"], default=str)
    chosen = Study.parse(
        {
            "labels": "/home/somebody/labels.csv",
            "target": [{"column": "x"}],
            "backbone": [{"name": "local-dir:/home/somebody/net"}],
        },
        folder=Path("/home/somebody"),
    )
    assert "somebody" not in json.dumps(chosen.document())


def test_a_missing_column_is_named(folder: Path, cache: Cache) -> None:
    with pytest.raises(LabelsError, match="no column 'height'"):
        run(small(folder, target=[{"column": "height"}]), cache, folder / "out")


def test_the_digest_of_the_code_covers_every_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(Path(heads.__file__).parent, tmp_path / "heads"))
    monkeypatch.setattr(heads, "__file__", str(root / "__init__.py"))
    before = design.code()
    for changed in ("saved.py", "fitting/train.py", "study/run.py"):
        with (root / changed).open("a") as file:
            file.write("# changed\n")
        assert design.code() != before
        before = design.code()
    (root / "fitting" / "train.py").rename(root / "train.py")
    assert design.code() != before


def test_a_study_fitted_before_its_code_moved_is_refitted(
    cache: Cache, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(heads.__file__).parent
    flat = hashlib.sha256()
    for path in sorted(root.glob("*.py")):  # as the digest was taken before there were rooms
        flat.update(path.name.encode() + b"\n" + path.read_bytes())
    monkeypatch.setattr(study, "code", flat.hexdigest)
    assert run(small(folder), cache, tmp_path).reused == 0
    assert run(small(folder), cache, tmp_path).reused == 1
    monkeypatch.undo()
    again = run(small(folder), cache, tmp_path)
    assert again.reused == 0
    assert again.fits[0].inputs["code"] == design.code()


def test_a_fit_by_other_code_is_refitted(
    cache: Cache, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fresh() -> list[str]:
        lines: list[str] = []
        study.run(small(folder), cache, lambda _: None, tmp_path, progress=lines.append)
        return [line for line in lines if "fitted in" in line]

    assert len(fresh()) == 1
    assert len(fresh()) == 0
    monkeypatch.setattr(study, "code", lambda: "other")
    assert len(fresh()) == 1


def test_a_fit_that_cannot_be_made_is_left_out_and_the_rest_stands(
    folder: Path, cache: Cache, tmp_path: Path
) -> None:
    table = pl.read_csv(folder / "out" / "labels.csv").with_columns(kind=pl.lit("same"))
    table.write_csv(tmp_path / "labels.csv")
    targets = [{"column": "kind"}, {"column": "like_ratio"}]
    chosen = small(tmp_path, labels="labels.csv", target=targets)
    lines: list[str] = []
    made = study.run(chosen, cache, lambda _: None, tmp_path / "out", progress=lines.append)
    assert [fit.target for fit in made.fits] == ["like_ratio"]
    assert "needs two classes" in next(iter(made.skipped.values()))
    assert any("left out: " in line for line in lines)
    assert "left out: kind on ALL" in str(made)
    with pytest.raises(LabelsError, match="no fit could be made"):
        run(small(tmp_path, labels="labels.csv", target=targets[:1]), cache, tmp_path / "none")


def test_two_backbones_of_whole_photos_are_compared_too(results: Results) -> None:
    """Where no subset has face and whole-photo vectors, each backbone meets each other."""
    fits = [msgspec.structs.replace(fit, face=False) for fit in results.fits]
    plain = replace(results, fits=tuple(fits))
    [one] = [c for c in plain.comparisons() if (c.target, c.subset) == ("like_ratio", "1BBOX")][:1]
    assert (one.faces, one.verdict) == (False, -1)
    assert f"{one.second} beats {one.first}" in str(plain)
    text = findings.versus(one, simulated=False, n_comparisons=1).text
    assert "the paper" not in text
    assert f"{one.second} beats {one.first}" in text


def test_a_fit_with_a_photo_that_was_forgotten_goes_with_the_next_run(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "photos.cache", tmp_path / "a.cache")
    (tmp_path / "labels.csv").write_bytes((folder / "out" / "labels.csv").read_bytes())
    cache, out = Cache.open(tmp_path / "a.cache"), tmp_path / "small"
    chosen = small(tmp_path, labels="labels.csv")
    run(chosen, cache, out)
    [before] = (out / "fits").glob("*.json")
    (before.with_suffix("") / "notes.txt").write_text("mine")
    assert b"u0007" in before.read_bytes()
    forget(cache, ["u0007"])
    run(chosen, Cache.open(cache.path), out)
    [after] = (out / "fits").glob("*.json")
    assert after != before
    left = [path for path in out.rglob("*") if path.is_file() and b"u0007" in path.read_bytes()]
    assert left == []
    assert (before.with_suffix("") / "notes.txt").read_text() == "mine"


def test_near_duplicates_are_told_by_the_backbone_that_the_study_names(tmp_path: Path) -> None:
    from heads.study.vectors import alike_by

    two = [{"name": "whole"}, {"name": "other"}]
    assert alike_by(small(tmp_path, backbone=two))["backbone"] == "whole"
    named = small(tmp_path, backbone=two, near_duplicates_by="other")
    assert alike_by(named)["backbone"] == "other"
    with pytest.raises(LabelsError, match=r"near_duplicates_by: the study has no backbone gone"):
        small(tmp_path, backbone=two, near_duplicates_by="gone")
