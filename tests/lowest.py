"""The whole path in some seconds, in an environment with the lowest versions that are allowed.

    python -m tests.lowest      from the repository's root; prints the versions, then each step

It makes its own photos and weights and needs no pytest. A step that fails ends it with a traceback.
"""

import csv
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
N_PHOTOS = 60


def main() -> None:
    """Run every step in a temporary folder; SystemExit where one fails."""
    print_versions()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_weights(folder / "weights")
        make_photos(folder)
        steps(folder)
    print("the lowest versions work")


def print_versions() -> None:
    """The installed version of each dependency beside the lowest that is allowed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for wanted in (*project["dependencies"], *extras["faces"], *extras["demo"]):
        name = re.split(r"[=<>]", wanted)[0]
        print(f"{wanted:45} {importlib.metadata.version(name)}")


def make_weights(folder: Path) -> None:
    """A timm folder with a small random network."""
    import timm
    from safetensors.torch import save_file

    folder.mkdir()
    model = timm.create_model("resnet10t", num_classes=0)
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {
        "num_classes": 0,
        "input_size": [3, 64, 64],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    config = {"architecture": "resnet10t", "num_classes": 0, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))


def make_photos(folder: Path) -> None:
    """N_PHOTOS photos, and a table with a ratio, its weight and a class for each."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["user_id", "photo", "like_ratio", "swipes", "light"])
        for i in range(N_PHOTOS):
            bright = i % 2
            pixels = rng.integers(120 * bright, 120 * bright + 120, (80, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / f"u{i:02}.jpg")
            ratio = round(0.3 + 0.3 * bright + float(rng.normal(0, 0.05)), 3)
            table.writerow([f"u{i:02}", f"photos/u{i:02}.jpg", ratio, 20, ["low", "high"][bright]])


def steps(folder: Path) -> None:
    """Every command that touches another library, in the order of a user's first hour."""
    os.chdir(folder)
    backbone, table = "local-dir:weights", ["--id-column", "user_id"]
    use = ["--cache", "a.cache", "--backbone", backbone]
    made = run("extract", "labels.csv", *table, *use, "--json")
    assert json.loads(made)["spaces"][0]["embedded"] == N_PHOTOS, made
    fit = ["fit-head", *use, "--labels", "labels.csv", *table, "--epochs", "3"]
    run(*fit, "--target", "like_ratio", "--weight", "swipes", "--out", "ratio")
    run(*fit, "--target", "light", "--out", "light")
    predict = ["predict", "light", "labels.csv", *table, "--cache", "a.cache", "--out"]
    run(*predict, "predictions.csv")
    assert len(Path("predictions.csv").read_text().splitlines()) == N_PHOTOS + 1
    run("push", "a.cache", "shared")
    run("pull", "shared", "b.cache")
    run("verify", "b.cache")
    run("export", "a.cache", "--backbone", backbone, "--out", "vectors.npy")
    run("export", "a.cache", "--backbone", backbone, "--out", "vectors.parquet")
    run("demo", "--out", "demo", "--photos", "60")
    assert Path("demo/report.html").exists()
    run("doctor")


def run(*words: str) -> str:
    """One command of the product in a process of its own; what it printed."""
    command = [sys.executable, "-m", "cli", *words]
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    print("embedcache", *words, "->", done.returncode, flush=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
