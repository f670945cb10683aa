"""Parts of the photos for processes that know nothing of each other."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedcache.errors import InputError
from embedcache.extraction.neighbours import Neighbours
from embedcache.extraction.parts import WorkPart
from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests import stand_in
from tests.stand_in import vectors

MakePhotos = Callable[..., Path]


SLURM = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4"}


def some(n: int) -> Photos:
    names = tuple(f"u{i // 7}/p{i}.jpg" for i in range(n))
    return Photos(names, tuple(f"/data/{name}" for name in names), "folder-1")


def test_the_parts_hold_every_photo_once_and_are_about_equal() -> None:
    photos = some(3000)
    for total in (1, 2, 7):
        parts = [WorkPart(number, total).of(photos) for number in range(1, total + 1)]
        assert sorted(name for part in parts for name in part.ids) == sorted(photos.ids)
        for part in parts:
            assert part.scope == photos.scope
            assert all(
                path == f"/data/{name}" for name, path in zip(part.ids, part.paths, strict=True)
            )
            assert abs(len(part) - 3000 / total) < 0.15 * 3000 / total


def test_a_new_photo_or_another_mount_point_moves_no_photo() -> None:
    before, after = some(500), some(600)
    elsewhere = Photos(before.ids, tuple(f"/mnt/x/{name}" for name in before.ids), "folder-2")
    part = WorkPart(2, 5)
    assert set(part.of(before).ids) <= set(part.of(after).ids)
    assert part.of(elsewhere).ids == part.of(before).ids


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        ({"EMBEDCACHE_PART": "3", "EMBEDCACHE_PARTS": "8"}, "3/8"),
        ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "4"}, "1/4"),
        ({"JOB_COMPLETION_INDEX": "3", "JOB_COMPLETIONS": "4"}, "4/4"),
        (SLURM | {"SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "5"}, "4/4"),
        (SLURM | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "13"}, "2/4"),
        ({"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "1"}, "1/1"),
        (
            {"EMBEDCACHE_PART": "1", "EMBEDCACHE_PARTS": "2", **SLURM},
            "1/2",
        ),
    ],
)
def test_auto_reads_the_part_from_the_job(environ: dict[str, str], part: str) -> None:
    assert str(WorkPart.parse("auto", environ)) == part


@pytest.mark.parametrize(
    ("text", "environ", "message"),
    [
        ("auto", {}, "found no job"),
        ("auto", {"JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETIONS is not set"),
        ("auto", {"EMBEDCACHE_PART": "x", "EMBEDCACHE_PARTS": "2"}, "'x', not a number"),
        ("auto", {"EMBEDCACHE_PART": "0", "EMBEDCACHE_PARTS": "2"}, "part 0 of 2"),
        ("auto", {"JOB_COMPLETION_INDEX": "4", "JOB_COMPLETIONS": "4"}, "part 5 of 4"),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_MAX": "7",
                "SLURM_ARRAY_TASK_STEP": "1",
            },
            "not evenly spaced",
        ),
        ("3", {}, "no such part"),
        ("0/3", {}, "part 0 of 3"),
        ("4/3", {}, "part 4 of 3"),
        ("-1/3", {}, "no such part"),
        ("1/999999", {}, "does not exist"),
    ],
)
def test_a_part_that_does_not_exist_is_refused(
    text: str, environ: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        WorkPart.parse(text, environ)


def test_runs_on_other_parts_are_no_neighbours(tmp_path: Path) -> None:
    cache, spec = Cache.open(tmp_path / "c", create=True), "ab" * 32
    mine = Neighbours(cache, [spec], WorkPart(1, 3))
    cases: tuple[tuple[WorkPart | None, bool], ...] = (
        *((WorkPart(2, 3), False), (WorkPart(1, 3), True)),
        *((WorkPart(2, 4), True), (None, True)),
    )
    for part, overlaps in cases:
        with Neighbours(cache, [spec], part).announced():
            assert mine.present(now=True) == overlaps
    everything = Neighbours(cache, [spec])
    with mine.announced():
        assert everything.present(now=True)


CHILD = """
    import sys
    from embedcache import Cache, Photos, extract
    from embedcache.extraction.parts import WorkPart
    from tests import stand_in

    found = extract(Photos.read(sys.argv[1]), Cache.open(sys.argv[2], create=True),
                    backbone=stand_in.backbone(), workers=1, part=WorkPart.parse("auto"))
    print(found.spaces[0].embedded, found.part)
"""


def test_parts_at_once_complete_a_cache_and_nothing_is_computed_twice(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(120)
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), str(tmp_path / "c")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "JOB_COMPLETIONS": "4"}
    children = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "JOB_COMPLETION_INDEX": str(index)},
        )
        for index in range(4)
    ]
    printed = [child.communicate()[0].split() for child in children]
    assert sum(int(embedded) for embedded, _ in printed) == 120
    assert [part for _, part in printed] == ["1/4", "2/4", "3/4", "4/4"]
    photos, cache = Photos.read(folder), Cache.open(tmp_path / "c")
    alone = Cache.open(tmp_path / "alone", create=True)
    extract(photos, alone, backbone=stand_in.backbone())
    np.testing.assert_array_equal(vectors(cache, photos), vectors(alone, photos))
    assert verify(cache).clean


def test_the_command_does_its_part_and_the_rest_is_left_for_the_others(
    run: Callable[..., tuple[int, str, str]],
    make_photos: MakePhotos,
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["extract", str(make_photos(9)), "--cache", str(tmp_path / "c"), "--json"]
    words += ["--backbone", f"local-dir:{tiny_weights}"]
    monkeypatch.setenv("EMBEDCACHE_PARTS", "3")
    embedded = []
    for part in ("1/3", "auto", "3/3"):
        monkeypatch.setenv("EMBEDCACHE_PART", "2")
        status, out, err = run(*words, "--part", part)
        assert status == 0, err
        document = json.loads(out)
        assert document["part"] == part.replace("auto", "2/3")
        embedded.append(document["spaces"][0]["embedded"])
    assert sum(embedded) == 9
    document = json.loads(run(*words)[1])
    assert (document["part"], document["spaces"][0]["hit"]) == (None, 9)
    assert run(*words, "--part", "4/3")[0] == 1
    # Where there are more parts than photos, some have nothing to do.
    empty = [json.loads(run(*words, "--part", f"{i}/40")[1])["photos"] for i in (1, 2, 3)]
    assert 0 in empty
