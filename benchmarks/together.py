"""How well do several depths and several networks together predict a rating?

    EMBEDCACHE_REAL_DATA=shared python benchmarks/together.py [--cache DIR]

Question: what Pearson correlation does a ridge reach on MEBeauty's ratings (`beauty.csv`, photos
with exactly one face), five folds, from FaceNet's last layer, from six depths of it, and with two
other networks beside it? Compared with: the last layer alone, which one has without layers.

The cache, in the temporary folder unless one is named, is filled first where it lacks vectors: some
twenty minutes of one core, resumed where it was cut off. The fits take seconds; their time is of
the processor, with reading. Ratings are means of 5 to 50 raters: `weighted` gives each photo its
raters as weight, in fitting and in figures.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import embedcache
import heads
from heads import dataset

DEPTHS = "facenet:casia-webface#repeat_1,mixed_6a,repeat_2,mixed_7a,repeat_3,block8"
ROWS = {
    "FaceNet, last layer": ["facenet:casia-webface"],
    "FaceNet, six depths": [DEPTHS],
    "and FaceRes": [DEPTHS, "FACERES@face"],
    "and EfficientNet": [DEPTHS, "FACERES@face", "EFFICIENTNET"],
    "and depths of both": [
        DEPTHS,
        "FACERES@face",
        "FACERES@face#blocks.3,blocks.4.0",
        "EFFICIENTNET@face#blocks.3,blocks.4,blocks.5,blocks.6",
    ],
}


def named(row: list[str], weights: Path) -> list[str]:
    """The names of a row, with the folders of the weights."""
    return [
        name.replace("FACERES", f"local-dir:{weights / 'faceres_mobilenetv1'}").replace(
            "EFFICIENTNET", f"local-dir:{weights / 'efficientnet_lite0'}"
        )
        for name in row
    ]


def fitted(cache: embedcache.Cache, names: list[str], labels: Path, weight: str | None) -> str:
    """One cell pair of the table: Pearson with its interval, and seconds of the processor."""
    began = time.process_time()
    data = dataset.load(
        cache, names, labels, target="beauty_score", weight=weight, faces=1, id_column="user_id"
    )
    found = heads.fit(data, heads=["ridge"], folds=5, seed=0)
    row = next(row.document() for row in found.rows if row.head == "ridge")
    seconds = time.process_time() - began
    interval = f"{row['pearson_low']:.3f}, {row['pearson_high']:.3f}"
    return f"{row['pearson']:.4f} [{interval}] | {seconds:.1f}"


def main() -> None:
    """Fill the cache, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kept = Path(tempfile.gettempdir(), "embedcache-together.cache")
    parser.add_argument("--cache", type=Path, default=kept, metavar="DIR")
    chosen = parser.parse_args()
    if "EMBEDCACHE_REAL_DATA" not in os.environ:
        print("EMBEDCACHE_REAL_DATA names no folder of real photos: nothing is measured")
        return
    real = Path(os.environ["EMBEDCACHE_REAL_DATA"])
    data = real / "data" / "mebeauty"
    cache = embedcache.Cache.open(chosen.cache, create=True)
    rows = {name: named(row, real / "weights") for name, row in ROWS.items()}
    photos = embedcache.Photos.read(data / "users.csv", id_column="user_id")
    asked = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(embedcache.extract(photos, cache, backbone=asked), file=sys.stderr, flush=True)
    print("| vectors | floats | Pearson, weighted | s | Pearson, all alike | s |")
    print("|---|---|---|---|---|---|")
    for name, names in rows.items():
        floats = cache.side_by_side(names).dim
        cells = [fitted(cache, names, data / "beauty.csv", weight) for weight in ("raters", None)]
        print(f"| {name} | {floats:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
