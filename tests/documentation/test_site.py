"""The site builds without a warning, and its pages fetch nothing from another host."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documentation.pages import ROOT

pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text("utf-8")
        # Links that a reader follows may lead anywhere; nothing may be loaded.
        fetched = re.findall(
            r"""<(?:script|img|link|iframe)[^>]+(?:src|href)="(\w+:)?//[^"]+""", text
        )
        assert not fetched, page


def test_the_api_page_shows_every_public_name_and_its_parameters(site: Path) -> None:
    import embedcache
    import heads

    text = (site / "api.html").read_text("utf-8")
    for name in (*embedcache.__all__, *heads.__all__):
        assert re.search(rf'id="(embedcache|heads)[\w.]*\.{name}"', text), name
    assert "<li><code>batch_size</code>: images per forward pass" in text.replace("<p>", "")
