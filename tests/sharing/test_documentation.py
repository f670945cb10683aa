"""Every code block of docs/sharing.md runs, by two members on one machine, as it is written."""

import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.settings import read_settings
from embedcache.store.cache import Cache

PAGE = (Path(__file__).parents[2] / "docs" / "sharing.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
Run = Callable[..., tuple[int, str, str]]


def commands(block: str) -> list[tuple[str, list[str]]]:
    """(member, words) of every line "member$ words" of a block; a backslash continues a line."""
    lines = block.replace("\\\n", " ").splitlines()
    return [(name, shlex.split(rest)) for name, rest in (line.split("$ ", 1) for line in lines)]


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = [kind for kind, _ in BLOCKS]
    assert set(kinds) == {"console", "toml", "python", "json"}
    assert kinds.count("console") >= 6
    assert "    " not in re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)  # no indented block


def test_the_blocks_run_as_written(
    run: Run,
    tmp_path: Path,
    make_photos: Callable[..., Path],
    tiny_weights: Path,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from urllib.request import Request, urlopen

    bucket = Request(f"{os.environ['AWS_ENDPOINT_URL']}/documented-bucket", method="PUT")
    urlopen(bucket, timeout=30).close()
    monkeypatch.setenv("AWS_REGION", os.environ["AWS_REGION"])  # the page sets another one
    shutil.copytree(tiny_weights, tmp_path / "inception")
    (tmp_path / "team").mkdir()
    for name, n in (("ada", 3), ("ben", 5)):
        (tmp_path / name).mkdir()
        make_photos(n, f"{name}/my-photos")

    def here(text: str) -> str:
        text = text.replace("s3://our-bucket", "s3://documented-bucket")
        text = text.replace("/mnt/team", f"{tmp_path}/team")
        return text.replace("inception_v3.tf_in1k", f"local-dir:{tmp_path}/inception")

    n_run = 0
    for kind, block in BLOCKS:
        if kind == "toml":
            for name in ("ada", "ben"):
                (tmp_path / name / "embedcache.toml").write_text(here(block))
        elif kind == "python":
            monkeypatch.chdir(tmp_path / "ada")
            exec(here(block), {})
        for name, words in commands(here(block)) if kind == "console" else ():
            monkeypatch.chdir(tmp_path / name)
            if words[0] == "export":
                monkeypatch.setenv(*words[1].split("=", 1))
                continue
            status, _, err = run(*words[1:])
            assert (words[0], status) == ("embedcache", 0), (words, err)
            n_run += 1
    assert n_run == 14
    assert not Cache.open(tmp_path / "ben" / "from-s3.cache").photo_table().ids
    cited = Cache.open(tmp_path / "ada" / "cited.cache", ref="paper-2027")
    assert len(cited.spaces()[0].digests()) == 5
    mine = Cache.open(tmp_path / "ben" / "my.cache")
    assert len(mine.spaces()[0].segments()) >= 2  # ada's, and what ben computed


def test_the_settings_file_is_accepted_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(_, text)] = [block for block in BLOCKS if block[0] == "toml"]
    (tmp_path / "embedcache.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    settings, written = read_settings(), tomllib.loads(text)
    assert (settings.remote, settings.offer, settings.writer) == tuple(written.values())
