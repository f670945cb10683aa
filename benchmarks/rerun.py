"""A rerun over unchanged photos, compared with a bare recursive scandir + stat.

Run: python benchmarks/rerun.py

The benchmark makes its own files: tiny, distinct, in nested folders. It writes their vectors into
the cache without a network, then runs `extract` on them with the network loaded: listing, digests,
the record of ids and the plan. Runs alternate; the ratio is of medians. The last line is the whole
process of the command line, imports included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rounds import medians
from embedcache.backbones.loading import Backbone, load
from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache

PER_FOLDER = 500
LONG_AGO = time.time() - 86_400


def make_files(folder: Path, n: int) -> None:
    """n files of a few bytes, 500 to a folder, 20 folders to a folder above."""
    for start in range(0, n, PER_FOLDER):
        number = start // PER_FOLDER
        place = folder / f"year{number // 20:03}" / f"album{number:05}"
        place.mkdir(parents=True)
        for i in range(start, min(n, start + PER_FOLDER)):
            path = f"{place}/IMG_{i:07}.jpg"
            with open(path, "wb") as file:
                file.write(b"%d" % i)
            os.utime(path, (LONG_AGO, LONG_AGO))


def make_backbone(folder: Path) -> str:
    """A folder with the smallest network of timm, untrained; returns its name."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"num_classes": 0, "input_size": [3, 160, 160], "interpolation": "bicubic"}
    config = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def fill(cache: Cache, photos: Photos, backbone: Backbone) -> None:
    """Put a vector of every photo into the cache, and record the ids."""
    digests = photos.digests(cache).value
    cache.record_photos(photos.scope, photos.ids, digests)
    space = cache.space(backbone.spec, create=True)
    for start in range(0, len(digests), 16_384):
        some = digests[start : start + 16_384]
        writer = space.writer(n_rows=len(some), name=backbone.name, about={})
        writer.add(some, np.zeros((len(some), backbone.spec.dim), np.float32))
        writer.commit()


def bare(folder: str) -> int:
    """List and stat everything below a folder, as plainly as Python can."""
    n, waiting = 0, [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(entry.path)
                else:
                    entry.stat()
                    n += 1
    return n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="say where one rerun's time goes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="embedcache-rerun-") as made:
        folder, kept = Path(made) / "photos", Path(made) / "cache"
        make_files(folder, asked.files)
        name = make_backbone(Path(made) / "network")
        backbone = load(name, device="cpu")
        fill(Cache.open(kept, create=True), Photos.read(folder), backbone)

        def rerun() -> None:
            found = extract(Photos.read(folder), Cache.open(kept), backbone=backbone).spaces[0]
            assert (found.hit, found.embedded, found.failed) == (asked.files, 0, 0), found

        def scan() -> None:
            assert bare(str(folder)) == asked.files

        sides = {"scandir + stat": scan, "extract, in this process": rerun}
        for run in sides.values():
            run()
        if asked.profile:
            import cProfile
            import pstats

            profile = cProfile.Profile()
            profile.runcall(rerun)
            pstats.Stats(profile).sort_stats("cumulative").print_stats(40)
        took = medians(sides, rounds=asked.rounds)
        command = [sys.executable, "-m", "cli", "extract", str(folder), "--cache", str(kept)]
        for _ in range(2):  # the first learns what the network is, which later ones remember
            start = time.perf_counter()
            subprocess.run(
                [*command, "--backbone", name, "--device", "cpu"],
                cwd=Path(__file__).parents[1],
                stdout=subprocess.DEVNULL,
                check=True,
            )
            process = time.perf_counter() - start

    reference = took["scandir + stat"]
    print(f"{asked.files:,} unchanged files, {asked.rounds} alternating rounds, medians\n")
    print(f"{'':28}{'seconds':>9}{'us/file':>9}{'ratio':>8}")
    for side, median in (took | {"the command, whole process": process}).items():
        each = 1e6 * median / asked.files
        print(f"{side:28}{median:9.2f}{each:9.2f}{median / reference:7.2f}x")


if __name__ == "__main__":
    main()
