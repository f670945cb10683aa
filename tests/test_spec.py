import json
from dataclasses import replace

import pytest

from embedcache.errors import CacheError
from embedcache.spec import FaceCrop, Spec, canonical_json, foreign
from tests.preprocessings import INCEPTION

SPEC = Spec(
    kind="computed",
    architecture="inception_v3",
    dim=2048,
    weights="ab" * 32,
    preprocessing=replace(INCEPTION, decode="images-1-reduced"),
)


def test_a_spec_survives_its_own_document() -> None:
    face = replace(SPEC, face=FaceCrop(detector="cd" * 32, select="only", margin=0.1))
    for spec in (SPEC, face, foreign("facenet512", 512)):
        again = Spec.parse(json.loads(canonical_json(spec.document())))
        assert again == spec
        assert again.digest == spec.digest


def test_every_field_changes_the_digest() -> None:
    assert SPEC.preprocessing is not None
    others = [
        replace(SPEC, weights="ba" * 32),
        replace(SPEC, precision="bfloat16"),
        replace(SPEC, architecture="inception_v4"),
        replace(SPEC, arguments='{"pad_type":"same"}'),
        replace(SPEC, preprocessing=replace(SPEC.preprocessing, size=(298, 299))),
        replace(SPEC, preprocessing=replace(SPEC.preprocessing, decode="images-1-full")),
        replace(SPEC, face=FaceCrop(detector="cd" * 32, select="only", margin=0.0)),
    ]
    assert len({spec.digest for spec in [SPEC, *others]}) == 1 + len(others)


def test_the_digest_never_changes_between_versions() -> None:
    # Written down once: a change here makes every stored vector unreachable.
    assert foreign("facenet512", 512).digest == (
        "39a5d0792e445d5520b44094cae5a38988f4b828c5cc46ac81af1b80a1dacf8e"
    )


def test_a_difference_names_the_field_and_both_values() -> None:
    other = replace(SPEC, weights="ba" * 32)
    assert SPEC.difference(other) == [f"weights: {'ab' * 32!r}, {'ba' * 32!r}"]
    assert SPEC.difference(SPEC) == []


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 0},
        {"dim": 10**18},
        {"dim": "2048"},
        {"dim": True},
        {"kind": "other"},
        {"precision": "int8"},
        {"weights": "xyz"},
        {"weights": 3},
        {"preprocessing": None},
        {"preprocessing": {"size": 3}},
        {"surprise": 1},
        {"architecture": ""},
    ],
)
def test_a_hostile_document_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CacheError):
        Spec.parse({**SPEC.document(), **change})


@pytest.mark.parametrize("document", [None, 3, [], "x", {}])
def test_a_file_that_is_not_a_document_is_refused(document: object) -> None:
    with pytest.raises(CacheError):
        Spec.parse(document)
