"""The memo of digests against a dict, in blocks of any size, and damaged in any byte."""

import os
from pathlib import Path

import numpy as np
import pytest

from embedcache.photos import memo as memo_module
from embedcache.photos.memo import DigestMemo
from embedcache.texts import Below, Texts

NOW = 10**18
NAMES = ["/a", "/ab", "/ü.jpg", "/日本/x", "/" + "b" * 9, os.fsdecode(b"/caf\xe9"), "/c d", "/e"]


@pytest.mark.parametrize("colliding", [False, True])
@pytest.mark.parametrize("block", [1, 7, 1 << 22])
def test_a_memo_answers_as_a_dict_does(
    block: int, colliding: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memo_module, "BLOCK_BYTES", block)
    monkeypatch.setattr(memo_module, "BLOCK_FILES", block)
    if colliding:
        real = Texts.hashes
        monkeypatch.setattr(Texts, "hashes", lambda self: real(self) % np.uint64(3))
    rng = np.random.default_rng(7)
    model: dict[str, tuple[int, int, bytes]] = {}
    memos = [DigestMemo(tmp_path / "memo.npz") for _ in range(2)]
    for turn in range(40):
        memo = memos[turn % 2]
        for i in rng.integers(0, len(NAMES), int(rng.integers(0, 5))).tolist():
            size, mtime = (int(n) for n in rng.integers(0, 9, 2))
            model[NAMES[i]] = (size, mtime, bytes([turn]) * 32)
            memo.put(NAMES[i], *model[NAMES[i]], NOW)
        memo.write()
        asked = [NAMES[i] for i in rng.integers(0, len(NAMES), int(rng.integers(0, 20)))]
        asked += ["/nobody", "a", "/x\0/a"]
        forms = (asked, tuple(asked), Texts.of(asked), Below("/x", Texts.of(asked)))
        found = memos[int(rng.integers(0, 2))].recall(forms[turn % 4])
        nothing = (-1, -1, bytes(32))
        assert [
            *zip(
                found.sizes.tolist(), found.mtimes.tolist(), map(bytes, found.digests), strict=True
            )
        ] == [model.get(name, nothing) for name in asked]
        assert dict(memo.files()) == {name: digest for name, (_, _, digest) in model.items()}
    wanted = np.frombuffer(b"".join(sorted({row[2] for row in model.values()})[:2]), np.uint8)
    contents = [*map(bytes, wanted.reshape(-1, 32))]
    assert sorted(memos[0].files_of(wanted.reshape(-1, 32))) == sorted(
        (name, contents.index(digest))
        for name, (_, _, digest) in model.items()
        if digest in contents
    )


def test_a_memo_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    text = "\0".join(NAMES).encode("utf-8", "surrogateescape")
    n = len(NAMES)
    np.savez(
        tmp_path / "memo.npz",
        paths=np.frombuffer(text, np.uint8),
        sizes=np.arange(n),
        mtimes=np.arange(n) * 2,
        digests=np.arange(32 * n, dtype=np.uint8).reshape(n, 32),
    )
    found = DigestMemo(tmp_path / "memo.npz").recall([NAMES[3], "/nobody", NAMES[0]])
    assert found.sizes.tolist() == [3, -1, 0]
    assert found.mtimes.tolist() == [6, -1, 0]
    assert found.digests[:, 0].tolist() == [96, 0, 0]


def test_a_damaged_byte_never_gives_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "memo.npz"
    memo = DigestMemo(path)
    for i, name in enumerate(NAMES[:3]):
        memo.put(name, i, i, bytes([i + 1]) * 32, NOW)
    memo.write()
    raw = path.read_bytes()
    whole = memo.recall(NAMES)
    for at in [*range(len(raw))]:
        wrong = bytearray(raw)
        wrong[at] ^= 0x41
        path.write_bytes(wrong)
        found = DigestMemo(path).recall(NAMES)
        known = found.sizes >= 0
        assert (found.digests[known] == whole.digests[known]).all()
        assert (found.mtimes[known] == whole.mtimes[known]).all()
        assert not found.digests[~known].any()
    for length in range(0, len(raw), 11):
        path.write_bytes(raw[:length])
        assert (DigestMemo(path).recall(NAMES).sizes == -1).all()
    path.write_bytes(raw[: len(raw) // 2])
    memo.put("/new", 1, 1, bytes(32), NOW)
    memo.write()
    assert dict(DigestMemo(path).files()) == {"/new": bytes(32)}
    np.savez(path, paths=np.zeros(3, np.uint8), sizes=[1], mtimes=[1], digests=np.zeros((1, 32)))
    assert (DigestMemo(path).recall(NAMES).sizes == -1).all()
