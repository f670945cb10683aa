"""The study on planted vectors that is run once, its folder and its cache."""

from pathlib import Path

import pytest

from embedcache.store.cache import Cache
from heads.study.results import Results
from tests.heads.study import studies


@pytest.fixture(scope="module")
def folder() -> Path:
    return studies.ran()[0]


@pytest.fixture(scope="module")
def results() -> Results:
    return studies.ran()[1]


@pytest.fixture(scope="module")
def cache(folder: Path) -> Cache:
    return Cache.open(folder / "photos.cache")
