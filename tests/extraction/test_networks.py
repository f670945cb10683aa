"""Backbones of a run whose weights are not on this machine."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedcache.errors import WeightsError
from embedcache.extraction import networks
from embedcache.photos.kinds import Reason
from embedcache.store.cache import Cache
from tests import stand_in


def test_vectors_by_another_detector_do_not_stand_for_those_by_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache.open(tmp_path / "c", create=True)
    model = stand_in.backbone("net@face", face=True)
    writer = cache.space(model.spec, create=True).writer(n_rows=1, name="net@face", about={})
    writer.fail(np.zeros((1, 32), np.uint8), [Reason.no_face])
    writer.commit()

    def missing(names: Any, **options: Any) -> Any:
        raise WeightsError("the detector's package is not installed")

    monkeypatch.setattr(networks, "load_several", missing)
    options: dict[str, Any] = {"device": "cpu", "precision": "float32", "decode": "full"}

    def load(detector: str) -> Any:
        faces: Any = SimpleNamespace(name=detector, digest=lambda: "")
        return networks.load_all("net@face", faces=faces, cache=cache, **options)

    [held] = load("mtcnn")
    assert held.spec == model.spec
    with pytest.raises(WeightsError, match="not installed"):
        load("blazeface")
