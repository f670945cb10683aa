"""The spec of kept pixels."""

from dataclasses import replace

import pytest

from embedcache.errors import CacheError
from embedcache.spec import Spec, pixels
from tests.preprocessings import INCEPTION

INPUT = replace(INCEPTION, size=(8, 8), resize="squash", crop_fraction=1.0)


def test_a_spec_of_pixels_is_its_preprocessing_and_nothing_else() -> None:
    spec = pixels(INPUT)
    assert (spec.dim, spec.row_bytes, spec.stored, spec.apart) == (192, 192, "uint8", True)
    assert Spec.parse(spec.document()) == spec
    assert pixels(replace(INPUT, mean=(0.1, 0.1, 0.1))) == spec
    assert pixels(replace(INPUT, interpolation="bilinear")) != spec


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 193},
        {"dim": 191},
        {"precision": "float32"},
        {"weights": "0" * 64},
        {"architecture": "net"},
        {"arguments": '{"a":1}'},
        {"preprocessing": None},
        {"preprocessing": {"size": [8, 8, 3]}},
        {"preprocessing": {"size": [True, 192]}},
        {"preprocessing": {"size": ["8", "8"]}},
        {"preprocessing": {"size": [2048, 8]}},
        {"preprocessing": {"size": [0, 8]}},
        {"preprocessing": {"mean": [0.5, 0.5, 0.5]}},
        {"preprocessing": {"std": [0.5, 0.5, 0.5]}},
        {"face": {"detector": "0" * 64, "select": "only", "margin": 0.0}},
        {"layer": {"path": "a", "pooling": "none", "prefix_tokens": 0}},
    ],
)
def test_a_spec_of_pixels_that_says_more_is_refused(changes: dict[str, object]) -> None:
    document = pixels(INPUT).document()
    inner = changes.get("preprocessing")
    if isinstance(inner, dict):
        assert isinstance(document["preprocessing"], dict)
        changes = {"preprocessing": document["preprocessing"] | inner}
    with pytest.raises(CacheError, match="pixels"):
        Spec.parse(document | changes)
