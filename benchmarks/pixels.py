"""What does a second backbone cost where the first one kept its pixels?

    python benchmarks/pixels.py

Compared with: the same extraction from the files. Both embed the same photos with the same network,
loaded before and with random weights, into a cache that has another network's vectors of them; one
of the two caches has that network's pixels too. The last two columns are what the first run takes
without keeping pixels and with it.

JPEGs of 12 megapixels (4032 x 3024) and of 500 x 500 are made on the spot. Rounds alternate. Times
are of the processor, in the fastest round, so that a busy machine does not count; photos/s, by the
clock and of medians, are for a quiet one.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.decode import jpeg
from benchmarks.rounds import medians
from embedcache.backbones.loading import Backbone, load
from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache

NETWORKS = {"efficientnet_lite0": 224, "inception_v3": 299}
BATCH = 8
FORMS = ("files", "pixels", "first", "keeping")


def photos_of(folder: Path, n: int, width: int, height: int) -> Photos:
    """n JPEGs of one picture that differ in a comment, so that each is another content."""
    folder.mkdir()
    data = jpeg(width, height)
    for i in range(n):
        note = f"{i:06}".encode()
        comment = b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note
        (folder / f"{i:04}.jpg").write_bytes(data[:2] + comment + data[2:])
    return Photos.read(folder)


def network(folder: Path, name: str, side: int, seed: int) -> Backbone:
    """A network of random weights behind timm's usual preprocessing for its size."""
    torch.manual_seed(seed)
    folder.mkdir()
    # aux_logits is Inception's: without it timm makes a head for training, which no vector needs.
    arguments = {"aux_logits": False} if name == "inception_v3" else {}
    model = timm.create_model(name, num_classes=0, **arguments)
    save_file(model.state_dict(), folder / "model.safetensors")
    given = {"num_classes": 0, "input_size": [3, side, side], "interpolation": "bicubic"}
    given |= {"crop_pct": 0.875, "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": name, "num_classes": 0, "pretrained_cfg": given}
    (folder / "config.json").write_text(json.dumps(config | {"model_args": arguments}))
    return load(f"local-dir:{folder}", device="cpu")


def run(
    photos: Photos,
    backbone: Backbone,
    *,
    into: Path,
    template: Path | None = None,
    keep: int | None = None,
    took: list[float],
) -> float:
    """Seconds of an extraction into a copy of a cache, or into a new one.

    took: gains what it took of the processors, in milliseconds a photo.
    """
    shutil.rmtree(into, ignore_errors=True)
    if template is not None:
        shutil.copytree(template, into)
    cache = Cache.open(into, create=True)
    began = time.process_time()
    found = extract(photos, cache, backbone=backbone, batch_size=BATCH, keep_pixels=keep)
    took.append(1000 * (time.process_time() - began) / len(photos))
    assert found.spaces[0].embedded == len(photos), found
    return found.seconds


def measure(scratch: Path, what: str, photos: Photos, name: str, *, rounds: int) -> str:
    """One row of the table."""
    side = NETWORKS[name]
    first, second = (network(scratch / f"{name}-{i}", name, side, i) for i in (1, 2))
    bare, kept = scratch / "bare", scratch / "kept"
    for template, keep in ((bare, None), (kept, side)):
        run(photos, first, into=template, keep=keep, took=[])
    again = partial(run, photos, second, into=scratch / "again")
    new = partial(run, photos, first, into=scratch / "new")
    took: dict[str, list[float]] = {form: [] for form in FORMS}
    contenders: dict[str, Callable[[], object]] = {
        "files": partial(again, template=bare, took=took["files"]),
        "pixels": partial(again, template=kept, took=took["pixels"]),
        "first": partial(new, took=took["first"]),
        "keeping": partial(new, keep=side, took=took["keeping"]),
    }
    seconds = medians(contenders, rounds=rounds)
    rate = {form: len(photos) / one for form, one in seconds.items()}
    least = {form: min(some) for form, some in took.items()}
    [space] = [one for one in Cache.open(kept).spaces() if one.spec.kind == "pixels"]
    bytes_kept = space.counts().bytes_on_disk / len(photos) / 1e3
    bytes_files = sum(Path(path).stat().st_size for path in photos.paths) / len(photos) / 1e3
    for folder in (bare, kept, *scratch.glob(f"{name}-*")):
        shutil.rmtree(folder)
    return (
        f"| {what}, {bytes_files:,.0f} kB | {name}, {side} x {side} | {bytes_kept:,.0f} | "
        f"{least['files']:.0f} | {least['pixels']:.0f} | {least['files'] / least['pixels']:.2f} | "
        f"{rate['files']:.1f}, {rate['pixels']:.1f} | {least['first']:.0f} | "
        f"{least['keeping']:.0f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=24, help="photos of 12 megapixels")
    parser.add_argument("--small", type=int, default=96, help="photos of 500 x 500 pixels")
    parser.add_argument("--network", action="append", choices=[*NETWORKS])
    asked = parser.parse_args()
    print(
        "| photos, a file | backbone | kB kept a photo | second: ms a photo from files | from "
        "pixels | ratio | photos/s | first: ms a photo | keeping pixels |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for what, n, width, height in (
            ("12 megapixels", asked.large, 4032, 3024),
            ("500 x 500", asked.small, 500, 500),
        ):
            photos = photos_of(scratch / what, n, width, height)
            for name in asked.network or NETWORKS:
                print(measure(scratch, what, photos, name, rounds=asked.rounds), flush=True)


if __name__ == "__main__":
    main()
