"""The documents of a shared copy's parts are checked and mended, also where no space lies there."""

from pathlib import Path

import pytest

from embedcache.sharing.share import push
from embedcache.sharing.survey import verify_remote
from embedcache.store.layout import APART, GROUPS
from tests.sharing.members import Make

PARTS = (*GROUPS, APART)


@pytest.mark.parametrize("how", ["empty", "flipped", "longer"])
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_document_is_named_and_written_again(
    tmp_path: Path, make: Make, part: str, how: str
) -> None:
    cache, there = make("a", [0, 1]), tmp_path / "S"
    push(cache, str(there))
    path = there / part / "zarr.json"
    right = path.read_bytes()
    wrong = {"empty": b"", "flipped": bytes([right[0] ^ 1]) + right[1:], "longer": right + b" "}
    path.write_bytes(wrong[how])
    checked = verify_remote(str(there))
    assert not checked.clean
    assert len([text for text in checked.findings if f"{part}/zarr.json" in text]) == 1, checked
    assert any(f"{part}/zarr.json there was damaged" in n for n in push(cache, str(there)).notes)
    assert path.read_bytes() == right
    assert verify_remote(str(there)).clean
    assert push(cache, str(there)).notes == ()
