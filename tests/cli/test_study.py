"""The study on the command line: from photos and a swipe log to the page, twice."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import cli


def test_a_study_on_the_command_line_goes_from_the_log_to_the_page(
    make_photos: Callable[..., Path],
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_photos(60)
    ids = [f"u{i:03}" for i in range(60)]
    rng = np.random.default_rng(0)
    pl.DataFrame(
        {
            "user_id": ids,
            "gender": ["F", "M"] * 30,
            "photo": [f"photos/p{i:03}.jpg" for i in range(60)],
        }
    ).write_csv(tmp_path / "users.csv")
    pl.DataFrame(
        {
            "sender_id": [f"s{i % 12}" for i in range(720)],
            "sender_gender": ["M", "F"] * 360,
            "recipient_id": [ids[i // 12] for i in range(720)],
            "liked": rng.integers(0, 2, 720),
        }
    ).write_csv(tmp_path / "swipes.csv")
    toml = tmp_path / "study.toml"
    toml.write_text(
        'users = "users.csv"\nswipes = "swipes.csv"\nheads = ["ridge"]\n'
        '[[target]]\ncolumn = "like_ratio"\nweight = "swipes"\n[[subset]]\nname = "ALL"\n'
        f'[[backbone]]\nname = "local-dir:{tiny_weights}"\nlabel = "tiny"\n'
    )
    out = tmp_path / "out"

    def study(*words: str) -> dict[str, object]:
        monkeypatch.setattr(sys, "argv", ["embedcache", "study", str(toml), *words, "--json"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    first = study("--out", str(out), "--link")
    assert Path(str(first["report"])) == out / "report.html"
    rows = first["rows"]
    assert isinstance(rows, list)
    assert {row["head"] for row in rows} == {"const", "ridge", "dev's choice"}
    assert all(str(row["ref"]).startswith("as-of-") for row in rows)
    assert list((out / "thumbnails").iterdir())
    again = study("--out", str(out), "--no-photos")
    assert (first["fits_reused"], again["fits_reused"]) == (0, 1)
    assert "data:image/jpeg" not in (out / "report.html").read_text()
    assert again["rows"] == rows
