"""The file that describes a study: what `init` writes, and the mistakes that are found in it."""

from pathlib import Path

import pytest

from embedcache.errors import LabelsError
from heads.study.design import Study, init


def test_init_writes_a_study_that_reads_back(tmp_path: Path) -> None:
    path = init(tmp_path / "study.toml")
    read = Study.read(path)
    assert [target.column for target in read.target] == ["like_ratio", "gender"]
    assert [backbone.shown for backbone in read.backbone] == ["Inception", "FaceNet"]
    with pytest.raises(LabelsError, match="exists"):
        init(path)


@pytest.mark.parametrize("header", ["user_id,photo,stars,age", "stars,photo_id", "id,path,stars"])
def test_init_for_a_label_table_begins_with_it(header: str, tmp_path: Path) -> None:
    (tmp_path / "my data").mkdir()
    table = tmp_path / "my data" / "labels.csv"
    table.write_text(f"{header}\n{','.join('1' for _ in header.split(','))}\n")
    path = init(tmp_path / "study.toml", labels=table)
    read = Study.read(path)
    assert (read.labels, read.users, read.swipes) == ("my data/labels.csv", None, None)
    assert [(target.column, target.weight) for target in read.target] == [("stars", None)]
    assert read.report_by == ()
    text = path.read_text()
    assert f"# its columns: {header.replace(',', ', ')}" in text
    assert "swipe" not in text
    assert read.title == "Predicting stars"
    assert [line for line in text.splitlines() if line[:1].isalpha()][1].startswith("labels = ")


def test_init_for_a_table_without_labels_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user_id,photo\n1,a.jpg\n")
    for name, message in (("t.csv", "has no column but ids and photos"), ("u.csv", "u.csv")):
        with pytest.raises(LabelsError, match=message):
            init(tmp_path / "study.toml", labels=tmp_path / name)
        assert not (tmp_path / "study.toml").exists()


BASE = 'labels = "l.csv"\n[[target]]\ncolumn = "x"\n[[backbone]]\nname = "b"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels = ", "study.toml: "),
        (
            '[[target]]\ncolumn = "x"\n[[backbone]]\nname = "b"\n',
            "labels, or users and swipes",
        ),
        ('swipes = "s.csv"\n[[target]]\ncolumn = "x"\n', "both users and swipes"),
        ('labels = "l.csv"\n[[backbone]]\nname = "b"\n', r"at least one \[\[target\]\]"),
        (BASE + "[[target]]\ncolumn = 3\n", r"target\[1\].column must be text; got 3"),
        (BASE + '[[target]]\ncolumn = "x"\n', "have the same name"),
        (BASE + '[[target]]\nweight = "x"\n', r"target\[1\] lacks 'column'"),
        ('colour = "red"\n' + BASE, "has no 'colour'"),
        ('heads = ["3fc"]\n' + BASE, "no head '3fc'"),
        ("heads = 3\n" + BASE, "heads must be a list, each text; got 3"),
        (BASE + "[fit]\nepoch = 3\n", "no 'epoch'"),
        (BASE + "[fit]\nepochs = 0\n", "epochs must be 1 or more"),
        (BASE + '[fit]\nepochs = "many"\n', r"\[fit\]"),
        (BASE + '[[subset]]\nname = "a/b"\n', "letters, digits"),
        (BASE.replace('"b"', '["b", "c", "b"]'), "names 'b' twice: name it once"),
        (BASE.replace('"b"', '["b#x", "b#x,y"]'), "names 'b#x' twice"),
        (BASE.replace('"b"', '"b#x,x"'), "names 'b#x' twice"),
        (BASE.replace('"b"', '"b@face"'), "face vectors need faces = 1"),
    ],
)
def test_a_mistake_in_the_study_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(LabelsError, match=message):
        Study.read(path)
