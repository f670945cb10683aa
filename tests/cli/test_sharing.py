"""Sharing on the command line: what is typed, what is printed, what stands in embedcache.toml."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.tombstones import content_mark
from tests.stores import fill, model, photos

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command here runs in a folder of its own, where no embedcache.toml lies above."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    cache = Cache.open(tmp_path / "a", create=True)
    fill(cache.space(foreign("net", 8), create=True), photos(*range(50)))
    return cache.path


def test_push_info_pull_verify(run: Run, filled: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    would = json.loads(run("push", filled, url, "--dry-run", "--json")[1])
    assert (would["rows"], would["dry_run"]) == (50, True)
    assert not (tmp_path / "shared").exists()
    made = json.loads(run("push", filled, url, "--json")[1])
    assert (made["bytes"], made["new_copy"]) == (would["bytes"], True)
    assert json.loads(run("push", filled, url, "--json")[1])["new_copy"] is False
    assert (
        f"a new shared copy was created at {tmp_path}/c2" in run("push", filled, tmp_path / "c2")[1]
    )
    [space] = json.loads(run("info", url, "--json")[1])["spaces"]
    assert (space["names"], space["rows"], space["dim"]) == (["net"], 50, 8)
    status, out, _ = run("pull", url, tmp_path / "b", "--backbone", "net")
    assert (status, "50 rows in 1 segment " in out) == (0, True)
    assert json.loads(run("verify", url, "--json")[1])["clean"] is True
    shard = next((tmp_path / "shared").rglob("embedding/c/0/0"))
    shard.write_bytes(bytes(shard.stat().st_size))
    status, out, _ = run("verify", url)
    assert status == 1
    assert "embedding/c/0/0 is not what was written" in out
    status, out, _ = run("pull", url, tmp_path / "c")
    assert status == 1
    assert f"'embedcache verify file://{tmp_path}/shared'" in out
    status, out, _ = run("pull", "shared", tmp_path / "c")  # a relative path, of a folder
    [problem] = [line for line in out.splitlines() if line.startswith("problem: ")]
    assert f"'embedcache verify file://{tmp_path}/shared'" in problem
    assert problem.count(shard.parents[3].name) == 1
    manifest = shard.parents[3] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    status, out, _ = run("verify", url)
    assert (status, "its own digest differs" in out) == (1, True)
    assert "embedcache verify" not in out  # which is what runs
    out = run("verify", tmp_path / "shared")[1]
    assert f"Run 'embedcache verify --repair {tmp_path}/shared'" in out
    assert out.count("embedcache verify") == 1
    assert f"Run 'embedcache verify {tmp_path}/shared'" in run("info", tmp_path / "shared")[2]


def test_the_project_file_names_the_remote(run: Run, filled: Path, tmp_path: Path) -> None:
    status, _, err = run("push", filled)
    assert status == 1
    assert "name the shared copy" in err
    (tmp_path / "embedcache.toml").write_text('remote = "shared"\n')
    assert run("push", filled)[0] == 0
    assert "50 rows" in run("pull", tmp_path / "b")[1]


def test_an_impossible_request_is_one_message(run: Run, filled: Path, tmp_path: Path) -> None:
    for words, message in (
        (("pull", tmp_path / "nowhere", tmp_path / "b"), "there is no shared copy at"),
        (("push", filled, "s3://key:secret@bucket"), "perhaps a credential"),
        (("push", filled, "gopher://x"), "cannot have the scheme gopher://"),
        (("push", filled, "s3:/bucket"), "did you mean s3://bucket?"),
        (("push", filled, "none"), "extract --remote none"),
        (("push", filled, filled), "is the cache itself"),
        (("push", filled, filled / "sub"), "lies in the cache"),
        (("push", filled, f"file://{filled}/sub"), "lies in the cache"),
        (("push", filled, tmp_path / "taem" / "faces"), f"there is no folder {tmp_path}/taem"),
        (
            ("extract", "absent", "--cache", tmp_path / "b", "--remote", "s4://x"),
            "cannot have the scheme s4://",
        ),
        (
            ("extract", "absent", "--cache", tmp_path / "b", "--remote", tmp_path / "taem" / "x"),
            f"there is no folder {tmp_path}/taem",
        ),
        (("push", tmp_path / "absent", tmp_path / "s"), "there is no cache at"),
        (("info", "file:///x", "--ref", "r"), "need a cache's folder, not a URL"),
        (("info", "file:///x", "--photos"), "need a cache's folder, not a URL"),
        (("extract", tmp_path, "--cache", tmp_path / "b", "--offer"), "--offer needs"),
    ):
        status, out, err = run(*words)
        assert (status, out) == (1, "")
        assert message in err
        assert "secret" not in err
        assert err.count("\n") == 1


def test_extract_reads_through_a_shared_copy(
    run: Run, tmp_path: Path, make_photos: Callable[..., Path], tiny_weights: Path
) -> None:
    folder = make_photos(12)
    words = ("--backbone", f"local-dir:{tiny_weights}", "--remote", tmp_path / "shared", "--json")
    status, out, _ = run("extract", folder, "--cache", tmp_path / "a", *words, "--offer")
    assert (status, json.loads(out)["spaces"][0]["embedded"]) == (0, 12)
    status, out, _ = run("extract", folder, "--cache", tmp_path / "b", *words, "--dry-run")
    [space] = json.loads(out)["spaces"]
    assert (space["from_remote"], space["missing"]) == (12, 0)
    status, out, _ = run("extract", folder, "--cache", tmp_path / "b", *words)
    report = json.loads(out)
    [space] = report["spaces"]
    assert (space["hit"], space["embedded"]) == (12, 0)
    assert (report["remote"]["taken"], report["remote"]["offered"]) == (12, 0)


def test_a_pull_or_push_that_fails_leaves_no_folder(
    run: Run, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedcache.remotes import patience

    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDSECRETID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secretsecret")
    run("push", filled, tmp_path / "shared")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for words in (
        ("pull", tmp_path / "nowhere", tmp_path / "new" / "deep" / "b"),
        ("pull", "s3://team/x", tmp_path / "b"),
        ("pull", tmp_path / "nowhere", tmp_path / "empty"),
        ("pull", tmp_path / "shared", tmp_path / "b", "--ref", "absent"),
        ("pull", tmp_path / "shared", tmp_path / "b", "--backbone", "absent"),
        ("pull", tmp_path / "shared", tmp_path / "b", "--photos", tmp_path / "absent"),
        ("push", filled, tmp_path / "elsewhere", "--backbone", "absent"),
        ("push", filled, "s3://team/x"),
        ("push", tmp_path / "absent", tmp_path / "elsewhere"),
    ):
        status, out, err = run(*words)
        assert (status, out) == (1, ""), words
        assert err.startswith("error: "), words
        assert "secretsecret" not in err
        assert sorted(tmp_path.rglob("*")) == before, words
    assert run("pull", tmp_path / "shared", tmp_path / "b", "--dry-run")[0] == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert run("pull", tmp_path / "shared", tmp_path / "empty")[0] == 0
    assert Cache.open(tmp_path / "empty").spaces()


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (("push", "a", "s"), "sharing.share.push"),
        (("pull", "s", "b"), "sharing.share.pull"),
        (("info", "file:///s"), "sharing.survey.survey"),
        (("verify", "file:///s"), "sharing.survey.verify_remote"),
    ],
)
def test_ctrl_c_is_one_line(
    run: Run, filled: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], called: str
) -> None:
    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"embedcache.{called}", cut)
    status, out, err = run(*words)
    assert (status, out) == (130, "")
    assert err == "Interrupted: everything done so far is kept. Rerun the command to resume.\n"


def test_a_world_writable_project_file_is_ignored_with_a_warning(
    run: Run, filled: Path, tmp_path: Path
) -> None:
    file = tmp_path / "embedcache.toml"
    file.write_text('remote = "shared"\n')
    file.chmod(0o666)
    for place in (file, tmp_path):
        status, _, err = run("push", filled)
        assert status == 1
        assert err.count(f"warning: {file} is ignored: {place} is world-writable") == 1
        assert "name the shared copy" in err
        file.chmod(0o644)
        tmp_path.chmod(0o777 if place == file else 0o755)
    assert run("push", filled)[0] == 0


def test_what_a_shared_copy_says_is_printed_without_control_characters(
    run: Run, filled: Path, tmp_path: Path
) -> None:
    """Names, refs and manifests come from others: none may move the cursor or rename a window."""
    shared = tmp_path / "shared"
    run("push", filled, shared)
    wild = "\x1b[2J\x1b]0;x\x07\x9b31m"
    for place in ("spaces", "face-spaces"):
        for space in (shared / place).glob("*/segments"):
            (space / f"20261125T000000000000-0000000{wild}").mkdir()
    (shared / "refs").mkdir(exist_ok=True)
    (shared / "refs" / f"a{wild}.json").write_text("{}")
    outputs = [
        *run("pull", shared, tmp_path / "b")[1:],
        *run("pull", tmp_path / f"no{wild}where", tmp_path / "c")[1:],
        *run("pull", shared, tmp_path / "c", "--ref", wild)[1:],
        *run("pull", shared, tmp_path / "c", "--backbone", wild)[1:],
        *run("verify", f"file://{shared}")[1:],
        *run("info", f"file://{shared}")[1:],
        *run("verify", shared)[1:],
        *run("ref", filled, wild)[1:],
    ]
    assert any("\\x1b[2J" in text for text in outputs)
    for text in outputs:
        assert not any(c in text for c in "\x1b\x07\x9b"), text


@pytest.mark.parametrize(
    ("limit", "size"), [("NOFILE", 14), ("NOFILE", 24), ("AS", 400), ("AS", 700)]
)
def test_a_pull_within_tight_limits_is_one_message_and_resumes(
    limit: str, size: int, filled: Path, tmp_path: Path
) -> None:
    cache = Cache.open(filled)
    for n in range(12):
        fill(cache.space(foreign("net", 8)), photos(*range(100 + 40 * n, 140 + 40 * n)))
    root = Path(__file__).parents[2]
    most = size if limit == "NOFILE" else size << 20
    code = f"import resource, cli\nresource.setrlimit(resource.RLIMIT_{limit}, ({most}, {most}))\n"
    code += "cli.main()"
    shared, b = tmp_path / "shared", tmp_path / "b"
    subprocess.run(
        [sys.executable, "-m", "cli", "push", str(filled), str(shared)], check=True, cwd=root
    )
    words = [sys.executable, "-c", code, "pull", str(shared), str(b)]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)
    if done.returncode:
        assert done.stderr.count("\n") == 1
        assert "rerun the command" in done.stderr.lower()
    again = subprocess.run(
        [sys.executable, "-m", "cli", "pull", str(shared), str(b)], check=True, cwd=root
    )
    assert again.returncode == 0
    assert len(Cache.open(b).find("net").digests()) == 50 + 480


@pytest.mark.parametrize("words", [("push",), ("push", "--purge")], ids=["push", "purge"])
@pytest.mark.parametrize(
    ("limit", "size"), [("NOFILE", 14), ("NOFILE", 24), ("AS", 400), ("AS", 700)]
)
def test_a_push_within_tight_limits_is_one_message_and_resumes(
    limit: str, size: int, words: tuple[str, ...], filled: Path, run: Run, tmp_path: Path
) -> None:
    cache = Cache.open(filled)
    space, shared = cache.space(foreign("net", 8)), tmp_path / "shared"
    for n in range(12):
        fill(space, photos(*range(100 + 40 * n, 140 + 40 * n)))
        if n == 5:  # half is there already, of each segment a photo to be forgotten
            assert run("push", filled, shared)[0] == 0
    forgotten = [*range(100, 580, 40), 0]
    cache.history.forget(contents=[content_mark(photos(n).tobytes()) for n in forgotten])
    most = size if limit == "NOFILE" else size << 20
    code = f"import resource, cli\nresource.setrlimit(resource.RLIMIT_{limit}, ({most}, {most}))\n"
    code += "cli.main()"
    typed = [sys.executable, "-c", code, words[0], str(filled), str(shared), *words[1:]]
    done = subprocess.run(typed, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1), done.stderr
    if done.returncode:
        assert done.stderr.count("\n") == 1
        assert "rerun the command" in done.stderr.lower()
    assert run(*words[:1], filled, shared, *words[1:])[0] == 0
    status, out, _ = run("verify", f"file://{shared}")
    assert status == (0 if words[1:] else 1), out  # until a purge it stores what was forgotten
    assert ("of forgotten photos, which no pull brings" in out) == (not words[1:])
    there = Cache.open(shared).space(foreign("net", 8))
    assert len(there.digests()) == 50 + 480 - len(forgotten)
    rows = [path.read_bytes() for path in shared.rglob("c/0/0") if "embedding" in str(path)]
    kept = [n for n in forgotten if any(model(photos(n)).tobytes() in raw for raw in rows)]
    assert kept == ([] if words[1:] else [n for n in forgotten if n < 340])


def test_pull_takes_a_url_and_a_folder_or_the_folder_alone(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("pull", "--help")
    assert (status, "[URL] DIR" in out, "default" in out.partition("Options:")[0]) == (
        0,
        True,
        False,
    )
    assert run("pull")[0] == 2
    status, _, err = run("pull", "a", "b", "c")
    assert (status, "at most a URL and a folder; got 3 words" in err) == (2, True)


def test_compact_joins_the_small_segments_of_a_shared_copy(run: Run, tmp_path: Path) -> None:
    cache, shared = Cache.open(tmp_path / "a", create=True), tmp_path / "shared"
    for n in range(3):
        fill(cache.space(foreign("net", 8), create=True), photos(n))
    assert run("push", cache.path, shared)[0] == 0
    status, out, err = run("compact", cache.path, "--remote", shared, "--json")
    assert status == 0, err
    done = json.loads(out)
    assert (done["before"], done["after"], done["rows"]) == (3, 1, 3)
    assert run("verify", shared)[0] == 0
