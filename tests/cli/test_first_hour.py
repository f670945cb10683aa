"""The first hour of a new user: ids that meet, photos that fail, streams, names, outputs."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import embedcache
from embedcache.backbones.loading import Backbone
from embedcache.errors import PhotosError
from embedcache.photos.table import Photos
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from tests import stand_in
from tests.stores import fill, photos

MakePhotos = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backbone's name is the stand-in's."""
    from embedcache.extraction import networks

    def load(*_: Any, **__: Any) -> list[Backbone]:
        return [stand_in.backbone()]

    monkeypatch.setattr(networks, "load_several", load)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    cache = Cache.open(tmp_path / "c", create=True)
    fill(cache.space(foreign("net", 8), create=True), photos(0, 1, 2))
    cache.record_photos("folder-1", ["é.jpg", "b.jpg", "c.jpg"], photos(0, 1, 2))
    return cache.path


def shell(line: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
    )


def test_a_folders_photos_meet_the_ids_of_a_label_table(
    network: None, run: Run, make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(40)
    ids = [f"p{i:03}" for i in range(40)]
    table = pl.DataFrame({"user_id": ids, "g": ["F", "M"] * 20, "r": range(40)})
    table.write_csv(tmp_path / "labels.csv")
    status, out, err = run("extract", folder, "--cache", tmp_path / "c")
    assert (status, f"vectors are in {tmp_path / 'c'}" in out) == (0, True), err
    fit = ("--cache", tmp_path / "c", "--backbone", "stand-in", "--labels", tmp_path / "labels.csv")
    status, out, err = run(
        "fit-head", *fit, "--target", "g", "--head", "logistic", "--out", tmp_path / "h"
    )
    assert status == 0, err
    assert "ids are joined by path without suffix: 'p000' is 'p000.jpg' (40 of 40" in err
    assert "classes: F (20), M (20)" in err
    assert f"wrote {tmp_path / 'h'}" in err
    quiet = run("fit-head", *fit, "--target", "r", "--head", "ridge", "--out", tmp_path / "q", "-q")
    assert (quiet[0], quiet[2]) == (0, "")


def test_photos_without_a_vector_are_named_and_listed(
    network: None, run: Run, make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(8)
    for i in range(6):
        (folder / f"bad{i}.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("x")
    status, _, err = run("extract", folder, "--cache", tmp_path / "c")
    assert status == 0
    assert "ignored 1 other file (1 .txt)" in err
    assert "no vector: bad0.jpg (not an image)" in err
    assert f"... and 1 more: 'embedcache info {tmp_path / 'c'} --failed' lists all" in err
    head, *lines = run("info", tmp_path / "c", "--failed")[1].partition("\n\n")[2].splitlines()
    assert [*head.split()] == ["photo", "id", "place", "sha256", "stand-in"]
    assert len(lines) == 1  # the six have the same bytes
    assert lines[0].startswith("bad0.jpg, bad1.jpg, bad2.jpg and 3 more  photos-")
    assert lines[0].endswith("  not an image")
    found = json.loads(run("info", tmp_path / "c", "--failed", "--json")[1])["photos"]
    assert [photo["photo_id"] for photo in found] == [f"bad{i}.jpg" for i in range(6)]
    status, _, err = run("extract", folder, "--cache", tmp_path / "c", "--max-failed", 0.1)
    assert (status, "6 of 14 photos without a vector of stand-in, mostly: not an image" in err) == (
        1,
        True,
    )


def test_a_forgotten_photo_is_called_forgotten(
    network: None, run: Run, make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(4)
    (folder / "bad.jpg").write_bytes(b"no picture")
    extract = ("extract", folder, "--cache", tmp_path / "c")
    assert run(*extract)[0] == 0
    for name in ("p001.jpg", "bad.jpg"):
        assert run("forget", tmp_path / "c", name)[0] == 0
    (folder / "worse.jpg").write_bytes(b"no picture either")
    status, out, err = run(*extract)
    assert status == 0, err
    assert "no vector: p001.jpg (forgotten)" in err
    assert "no vector: bad.jpg (forgotten)" in err
    assert "no vector: worse.jpg (not an image)" in err
    assert "not read" not in err
    assert "skipped: 2 forgotten before; --again embeds them" in out


def test_a_run_in_which_everything_failed_is_an_error(
    network: None, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"no picture")
    status, _, err = run("extract", tmp_path / "in", "--cache", tmp_path / "c")
    assert (status, "1 of 1 photo without a vector of stand-in, mostly: not an image" in err) == (
        1,
        True,
    )


def test_a_table_without_its_files_is_an_error(network: None, run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user_id,photo\na,x/a.jpg\nb,x/b.jpg\n")
    for words in ((), ("--dry-run",)):
        status, out, err = run("extract", tmp_path / "t.csv", "--cache", tmp_path / "c", *words)
        assert (status, out) == (1, "")
        assert f"2 of 2 files not found (first: {tmp_path}/x/a.jpg): column 'photo'" in err


def test_predict_says_why_a_photo_has_no_prediction(
    network: None, run: Run, make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(40)
    table = pl.DataFrame({"id": [f"p{i:03}.jpg" for i in range(40)], "g": ["F", "M"] * 20})
    table.write_csv(tmp_path / "labels.csv")
    run("extract", folder, "--cache", tmp_path / "c")
    fit = ("--cache", tmp_path / "c", "--backbone", "stand-in", "--target", "g")
    labels = ("--labels", tmp_path / "labels.csv", "--head", "logistic")
    assert run("fit-head", *fit, *labels, "--out", tmp_path / "h")[0] == 0
    assert run("forget", tmp_path / "c", "p000.jpg")[0] == 0
    (folder / "p001.jpg").write_bytes(b"no photo")
    apply = ("predict", tmp_path / "h", folder, "--cache", tmp_path / "c", "--out")
    status, out, err = run(*apply, tmp_path / "p.csv", "--json")
    assert status == 0, err
    missing = json.loads(out)["missing"]
    assert missing["p000.jpg"] == "forgotten"
    assert missing.keys() == {"p000.jpg", "p001.jpg"}
    assert "cache" not in missing["p001.jpg"]
    _, out, _ = run(*apply, tmp_path / "p.csv")
    assert "38 photos predicted" in out
    assert "2 without a vector: 1 forgotten" in out


def test_predictions_are_what_the_name_says(
    network: None, run: Run, make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(40)
    table = pl.DataFrame({"id": [f"p{i:03}.jpg" for i in range(40)], "g": ["F", "M"] * 20})
    table.write_csv(tmp_path / "labels.csv")
    run("extract", folder, "--cache", tmp_path / "c")
    fit = ("--cache", tmp_path / "c", "--backbone", "stand-in", "--target", "g")
    labels = ("--labels", tmp_path / "labels.csv", "--head", "logistic")
    assert run("fit-head", *fit, *labels, "--out", tmp_path / "h")[0] == 0
    apply = ("predict", tmp_path / "h", folder, "--cache", tmp_path / "c", "--out")
    status, out, err = run(*apply, tmp_path / "p.parquet")
    assert (status, f"wrote {tmp_path / 'p.parquet'}" in err) == (0, True)
    found = pl.read_parquet(tmp_path / "p.parquet")
    assert found.columns == ["photo_id", "prediction", "class"]
    assert found["class"].to_list() == ["M" if p >= 0.5 else "F" for p in found["prediction"]]
    status, out, _ = run(*apply, "-")
    assert status == 0
    assert out.splitlines()[0] == "photo_id,prediction,class"
    assert len(out.splitlines()) == 41
    status, _, err = run(*apply, tmp_path / "p.json")
    assert (status, "a .csv or .parquet file, or - for stdout" in err) == (1, True)
    status, _, err = run(*apply, tmp_path / "nowhere" / "p.csv")
    assert (status, "there is no folder" in err) == (1, True)


def test_a_head_on_imported_vectors_predicts_what_the_cache_holds(
    run: Run, make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(40)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "v.npy", rng.standard_normal((40, 8), dtype=np.float32))
    names = [f"p{i:03}" for i in range(40)]
    pl.DataFrame({"user_id": names, "r": rng.random(40)}).write_csv(tmp_path / "ids.csv")
    words = ("import", tmp_path / "c", tmp_path / "v.npy", "--ids", tmp_path / "ids.csv")
    status, _, err = run(*words, "--photos", folder, "--name", "elsewhere")
    assert status == 0, err
    assert Cache.open(tmp_path / "c").some_ids(1) == ["p000.jpg"]
    fit = ("--cache", tmp_path / "c", "--backbone", "elsewhere", "--labels", tmp_path / "ids.csv")
    more = ("--target", "r", "--head", "ridge", "--out", tmp_path / "h")
    assert run("fit-head", *fit, *more)[0] == 0
    make_photos(3, size=(70, 60), folder="new")
    for i in range(3):
        (tmp_path / "new" / f"p{i:03}.jpg").rename(folder / f"q{i}.jpg")
    status, out, err = run(
        *("predict", tmp_path / "h", folder, "--cache", tmp_path / "c", "--json"),
        *("--out", tmp_path / "p.csv"),
    )
    assert status == 0, err
    found = json.loads(out)
    assert (found["photos"], found["predicted"]) == (43, 40)
    assert found["missing"] == {f"q{i}.jpg": "without an imported vector" for i in range(3)}


def test_a_photo_of_two_places_is_exported_once(cache: Path, run: Run, tmp_path: Path) -> None:
    Cache.open(cache).record_photos("renamed-2", ["é.jpg", "x/b.jpg"], photos(0, 1))
    out = tmp_path / "F.parquet"
    words = ("export", cache, "--backbone", "net", "--out", out)
    assert run(*words)[0] == 0
    assert sorted(pl.read_parquet(out)["photo_id"]) == ["c.jpg", "x/b.jpg", "é.jpg"]
    assert run(*words, "--all-ids")[0] == 0
    assert len(pl.read_parquet(out)) == 5


def test_the_command_does_not_depend_on_a_module_called_cli(tmp_path: Path) -> None:
    (tmp_path / "cli.py").write_text("raise SystemExit('the wrong cli')\n")
    line = f"cd {tmp_path} && $1 -m embedcache --version"
    found = shell(line)
    assert (found.returncode, found.stdout) == (0, f"embedcache {embedcache.__version__}\n")
    code = "import embedcache.__main__ as m, sys; sys.argv = ['embedcache', '--version']; m.main()"
    found = shell(f'cd {tmp_path} && PYTHONPATH="{tmp_path}:$PYTHONPATH" $1 -c "$2"', code)
    assert (found.returncode, found.stdout) == (0, f"embedcache {embedcache.__version__}\n")


@pytest.mark.parametrize("closed", ["2>&-", "<&-", "2>&- <&-"])
def test_a_closed_stream_is_no_error(cache: Path, closed: str) -> None:
    found = shell(f"$1 -m cli info $2 {closed}", cache)
    assert (found.returncode, "3 photo ids" in found.stdout) == (0, True)
    assert shell(f"$1 -m cli info $2/nowhere {closed}", cache).returncode == 1


def test_any_name_can_be_printed_in_any_encoding(cache: Path) -> None:
    found = shell("$1 -m cli info $2 --photos", cache, PYTHONIOENCODING="ascii")
    assert found.returncode == 0, found.stderr
    assert "\\xe9.jpg" in found.stdout


def test_a_link_to_nowhere_is_one_message(run: Run, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for words in (("info", tmp_path / "link"), ("merge", tmp_path / "link", cache)):
        status, out, err = run(*words)
        assert (status, out) == (1, "")
        assert (
            f"{tmp_path / 'link'} is a link to {tmp_path / 'nowhere'}, which does not exist" in err
        )


def test_control_characters_never_reach_the_terminal(run: Run, tmp_path: Path) -> None:
    status, _, err = run("info", tmp_path / "a\x1b[31mred")
    assert (status, "\x1b" in err, "\\x1b[31mred" in err) == (1, False, True)


def test_verbose_errors_have_a_traceback_and_quiet_ones_none(run: Run, tmp_path: Path) -> None:
    for words, traceback in ((("-v",), True), ((), False), (("--quiet",), False)):
        status, _, err = run("info", tmp_path / "nowhere", *words)
        assert (status, "Traceback" in err) == (1, traceback)
    assert not logging.getLogger("embedcache").handlers


def test_a_misspelt_backbone_gets_suggestions(
    run: Run, make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_photos(1)
    monkeypatch.chdir(tmp_path)
    for name, hint in (
        ("incpetion_v3", "Did you mean inception_v3."),
        ("photos", "did you mean local-dir:photos?"),
        ("local_dir:photos", "Did you mean local-dir:photos?"),
    ):
        status, _, err = run("extract", folder, "--cache", tmp_path / "c", "--backbone", name)
        assert (status, hint in err) == (1, True), err


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (
            "efficentnet_lite0",
            "Did you mean tf_efficientnet_lite0.in1k, efficientnet_lite0.ra_in1k",
        ),
        ("p", "did you mean local-dir:p?"),
        ("facenet:vggface3", "give facenet:vggface2"),
        ("local-dir:nowhere", "there is no such folder"),
        ("facenet@fac", "facenet:casia-webface or facenet:FILE, with @face at the end"),
        ("facenet:vggface2@fac", "Did you mean facenet:vggface2? End the name in @face for the"),
        ("facenet:vggface2@centre-face", "Did you mean facenet:vggface2@central-face?"),
        ("inception_v3.tf_in1k@fcae", "no such choice of a face: '@fcae'. Did you mean"),
        ("inception_v3.tf_in1k@FACE", "Did you mean inception_v3.tf_in1k@face?"),
        ("inception_v3.tf_in1k@largest", "Did you mean inception_v3.tf_in1k@largest-face?"),
        ("inception_v3.tf_in1k@x", "@largest-face or @central-face to choose one of several"),
        ("inception_v3.tf_in1k@", "no such choice of a face: '@'. End the name in @face"),
        ("inception_v3.tf_in1k@face@face", "no such choice of a face"),
        ("local-dir:p@faces", "Did you mean local-dir:p@face?"),
        ("hf-hub:a/b@largest_face", "Did you mean hf-hub:a/b@largest-face?"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused_before_torch_is_loaded(
    name: str, hint: str, make_photos: MakePhotos, tmp_path: Path
) -> None:
    make_photos(1, "p")
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
        "from embedcache.__main__ import main; main()"
    )
    words = ["extract", "p", "--cache", "c", "--backbone", name]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert (done.returncode, done.stdout) == (1, "False\n"), done.stderr
    assert hint in done.stderr


def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    from embedcache.__main__ import __file__ as main

    line = """bash -c '"$1" "$2" --show-completion; true' sh "$1" "$2" """
    shown = shell(line, main)  # which shell this is shows in its parent process
    assert "complete -o default -F _embedcache" in shown.stdout, shown.stderr
    for words, found in (("embedcache ex", "extract\nexport"), ("embedcache pull --ph", "--photo")):
        done = shell(
            '"$1" "$2"',
            main,
            _EMBEDCACHE_COMPLETE="complete_bash",
            COMP_WORDS=words,
            COMP_CWORD=str(words.count(" ")),
        )
        assert done.stdout.startswith(found), done


def test_advice_names_what_the_reader_can_write(
    run: Run, make_photos: MakePhotos, tmp_path: Path
) -> None:
    """An option at the command line, a key in a study.toml, a parameter in Python."""
    make_photos(2)
    table = tmp_path / "t.csv"
    table.write_text("user_id,picture,g\np0,photos/p000.jpg,1\np1,photos/p001.jpg,2\n")
    _, _, err = run("extract", table, "--cache", tmp_path / "c")
    assert "Name the photo column with --photo-column\n" in err
    toml = tmp_path / "study.toml"
    keys = '[[target]]\ncolumn = "g"\n[[backbone]]\nname = "local-dir:x"\n'
    toml.write_text(f'labels = "t.csv"\n{keys}')
    _, _, err = run("study", toml, "--out", tmp_path / "out")
    assert "`photo_column`" in err, err
    assert "--photo-column" not in err
    with pytest.raises(PhotosError, match="Name the photo column with `photo_column`"):
        Photos.read(table)


@pytest.mark.parametrize(
    ("command", "text", "shown"),
    [
        ("extract", "name it with `id_column`", "name it with --id-column"),
        ("fit-head", "add `task='multiclass'`.", "add --task multiclass."),
        ("study", "name it with `id_column`", "name it with `id_column`"),
        ("extract", "a photo called `no such option`", "a photo called `no such option`"),
    ],
)
def test_parameters_are_printed_as_the_commands_options(
    run: Run, command: str, text: str, shown: str
) -> None:
    from embedcache.commands.options import as_typed

    run(command, "--help")
    assert as_typed(text) == shown
