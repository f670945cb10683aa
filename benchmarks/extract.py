"""Does a user wait for anything but the network? Extraction against it alone and against peers.

    python benchmarks/extract.py [--photos 128] [--rounds 3] [--network FOLDER] [--table NAME]
                                 [--only TEXT ...] [--thingsvision PYTHON] [--out FILE]

Photos are MEBeauty's where EMBEDCACHE_REAL_DATA names them, else the embedded example's; the
network is Inception v3 from there, else the example's EfficientNet. Every contender goes from
files to vectors once a round, in a new order each round; rates are medians, ratios are of medians.
A peer that is not installed says so. thingsvision pins older versions of torch and numpy, so it is
run by a Python of its own. Rows marked "network alone" are given pixels that are ready.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import peers
from benchmarks.decode import jpeg
from benchmarks.rounds import medians
from embedcache import example
from embedcache.backbones.loading import Backbone, Decode, load
from embedcache.extraction.lanes import Lanes
from embedcache.extraction.pace import Pace
from embedcache.extraction.run import extract
from embedcache.machine import processors
from embedcache.photos import images
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Contender = Callable[[], float | None]
"""Runs once; gives its seconds if it knows better than a clock around it."""
NETWORKS = ("efficientnet_lite0", "faceres_mobilenetv1@face")


def real_data() -> Path | None:
    named = os.environ.get("EMBEDCACHE_REAL_DATA")
    return Path(named) if named else None


def all_photos(scratch: Path) -> Photos:
    data = real_data()
    return Photos.read(data / "data/mebeauty/photos" if data else example.make(scratch).folder)


def some_of(found: Photos, n: int) -> Photos:
    """n photos as people have them, evenly out of the whole set."""
    step = max(1, len(found) // n)
    return Photos(found.ids[::step][:n], found.paths[::step][:n], found.scope)


def large_photos(n: int, scratch: Path) -> Photos:
    """n distinct JPEGs of 12 megapixels: one picture, each with bytes of its own behind its end."""
    (scratch / "large").mkdir()
    data = jpeg(4032, 3024)
    for i in range(n):
        (scratch / "large" / f"{i}.jpg").write_bytes(data + i.to_bytes(8, "little"))
    return Photos.read(scratch / "large")


def pixels_of(photos: Photos, backbone: Backbone) -> U8:
    """All inputs of the network, (n, h, w, 3)."""
    opened = (images.decode(Path(path).read_bytes()) for path in photos.paths)
    return np.stack([images.resize_crop(image, backbone.preprocessing) for image in opened])


# --- ours -----------------------------------------------------------------------------------------


def ours(photos: Photos, backbones: Sequence[Backbone], scratch: Path, *, n_batch: int) -> None:
    """A whole extraction into a cache of its own."""
    cache = Cache.open(tempfile.mkdtemp(dir=scratch) + "/c", create=True)
    found = extract(photos, cache, backbone=backbones, batch_size=n_batch)
    assert all(space.embedded + space.failed == len(photos) for space in found.spaces)


def alone(pixels: U8, backbone: Backbone, *, n_batch: int) -> None:
    """The network on ready pixels, on all its lanes as extraction runs it."""
    network = backbone.open()

    def work(part: U8, lane: int) -> F32:
        return network.lanes[lane](part)

    with Lanes.of([network]) as lanes:
        for i in range(0, len(pixels), n_batch):
            lanes.make_room()
            lanes.submit(partial(work, pixels[i : i + n_batch]), lambda _: None)
        lanes.drain()


def best_batch(pixels: U8, backbone: Backbone) -> int:
    """The batch size that a long extraction would choose, found as it finds it."""
    network = backbone.open()
    cuda = network.device.startswith("cuda")
    pace = Pace.choose(n_photos=10**9, lanes=len(network.lanes), cuda=cuda)
    while pace.trying:
        some = pixels[: pace.wanted]
        start = time.perf_counter()
        alone(some, backbone, n_batch=pace.trial)
        pace.tried(len(some), time.perf_counter() - start)
    return pace.size


# --- the table ------------------------------------------------------------------------------------


def contenders(
    photos: Photos, name: str, backbone: Backbone, scratch: Path, *, other_python: Path
) -> tuple[list[str], dict[str, Contender]]:
    """What was settled first, and everything that goes from these photos to vectors."""
    pixels = pixels_of(photos, backbone)
    n_batch = best_batch(pixels, backbone)
    notes = [f"Batches of {n_batch} for embedcache and OpenVINO, {peers.BATCH} elsewhere."]
    model = timm.create_model(name, pretrained=True, num_classes=0).eval()
    found: dict[str, Contender] = {
        "the network alone": lambda: alone(pixels, backbone, n_batch=n_batch),
        "embedcache": lambda: ours(photos, [backbone], scratch, n_batch=n_batch),
    }
    network = backbone.open()
    if network.compiler:
        began = time.perf_counter()
        faster = replace(network, lanes=network.compiled(n_batch))
        compiled = replace(backbone, open=lambda: faster)
        alone(pixels[: n_batch * len(faster.lanes)], compiled, n_batch=n_batch)
        took = time.perf_counter() - began
        notes.append(f"{network.compiler} compiled it in {took:.0f} s, which is not counted.")
        found |= {
            "the network alone, compiled": lambda: alone(pixels, compiled, n_batch=n_batch),
            "embedcache, compiled": lambda: ours(photos, [compiled], scratch, n_batch=n_batch),
        }
    for workers in (0, processors()):
        found[f"timm + DataLoader, {workers} workers"] = partial(
            peers.plain_loop, photos.paths, model, workers=workers
        )
    if why := peers.missing("openvino"):
        notes.append(f"OpenVINO is not installed: {why}.")
    else:
        transform = peers.transform_of(model)
        files = peers.Files(photos.paths, transform)
        inputs = torch.stack([files[i] for i in range(len(files))])
        other = peers.OpenVino(model, backbone.preprocessing.size, n_batch)
        found["OpenVINO f32, network alone"] = lambda: other.alone(inputs.numpy())
        found["OpenVINO f32, plain loop"] = lambda: other.loop(
            photos.paths, peers.transform_of(model)
        )
    if why := peers.missing("datasets"):
        notes.append(f"datasets is not installed: {why}.")
    else:
        found["Hugging Face datasets.map"] = lambda: peers.hugging_face(
            photos.paths, model, scratch
        )
    if why := peers.missing("thingsvision", other_python):
        notes.append(f"thingsvision is not installed: {why}.")
    else:
        folder = peers.linked(photos.paths, scratch)
        found["thingsvision"] = lambda: peers.thingsvision(folder, name, scratch, other_python)
    return notes, found


def rates(found: dict[str, Contender], n_photos: int, rounds: int) -> dict[str, float]:
    """Photos/s of each."""
    took = medians(found, rounds=rounds)
    return {name: n_photos / seconds for name, seconds in took.items()}


def lines_of(found: dict[str, float], *, to: str) -> list[str]:
    return [f"| {name} | {rate:.2f} | {found[to] / rate:.2f} |" for name, rate in found.items()]


def route(
    what: str,
    photos: Photos,
    names: list[str],
    scratch: Path,
    *,
    rounds: int,
    decode: Decode = "full",
    precision: str = "float32",
) -> tuple[str, F32]:
    """Extractions of a kind, as a user starts them, with what they say of themselves.

    The network's own rate is that of all networks of the run, one after the other. Returns a line
    of medians, and the vectors that the first network gave.
    """
    backbones = [load(name, decode=decode, precision=precision) for name in names]
    ran = []
    for _ in range(rounds):
        cache = Cache.open(tempfile.mkdtemp(dir=scratch) + "/c", create=True)
        ran.append(extract(photos, cache, backbone=backbones))
    rate = statistics.median(len(photos) / one.seconds for one in ran)
    model = statistics.median(
        1 / sum(1 / (space.model_photos_per_second or float("nan")) for space in one.spaces)
        for one in ran
    )
    space = ran[-1].spaces[0]
    shares = ", ".join(f"{k} {v:.0%}" for k, v in space.shares.items() if v >= 0.01)
    vectors, there = cache.vectors(backbones[0].name, photos.ids, scope=photos.scope)
    return (
        f"| {what} | {len(photos)} | {rate:.2f} | {model:.2f} | {rate / model:.2f} "
        f"| {space.bottleneck} | {shares} |",
        vectors[there],
    )


def routes(photos: Photos, many: Photos, name: str, scratch: Path, *, rounds: int) -> list[str]:
    """Other networks, faces, large photos and other precisions."""
    lines = []
    if data := real_data():
        lite, face = (f"local-dir:{data}/weights/{n}" for n in NETWORKS)
        asked = {
            "EfficientNet-Lite0": (many, [lite]),
            "FaceRes on face crops, with detection": (many, [face]),
            "both and Inception v3": (photos, [name, lite, face]),
        }
        for what, (some, names) in asked.items():
            lines.append(route(what, some, names, scratch, rounds=rounds)[0])
    large = large_photos(48, scratch)
    for decode in ("full", "reduced"):
        what = f"12 megapixels, decoded {decode}"
        lines.append(route(what, large, [name], scratch, rounds=rounds, decode=decode)[0])
    device = "CUDA" if torch.cuda.is_available() else "CPU"
    line, exact = route(f"{device}, float32", photos, [name], scratch, rounds=rounds)
    lines.append(line)
    for precision in ("bfloat16", "float16") if device == "CUDA" else ("bfloat16",):
        what = f"{device}, {precision}"
        line, found = route(what, photos, [name], scratch, rounds=rounds, precision=precision)
        far = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
        drift = f"; vectors {np.median(far):.0e} from float32, at most {far.max():.0e} |"
        lines.append(line.removesuffix(" |") + drift)
    if device == "CPU":
        lines.append("| CUDA | no CUDA device here | | | | | |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", type=Path)
    parser.add_argument("--table", choices=("peers", "routes"), help="default: both")
    parser.add_argument("--only", nargs="+", default=[""], help="peers with one of these texts")
    parser.add_argument(
        "--thingsvision",
        type=Path,
        default=Path(sys.executable),
        help="a Python that has thingsvision",
    )
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    data = real_data()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if data is None and asked.network is None:
            asked.network = example.write_lite0(scratch / "lite0")
        network = asked.network or (data or scratch) / "weights" / "inception_v3_nsfwjs"
        name = f"local-dir:{network}"
        n_photos = max(64, asked.photos // 64 * 64)  # whole batches, which a compiled form needs
        found_photos = all_photos(scratch)
        photos, many = some_of(found_photos, n_photos), some_of(found_photos, 4 * n_photos)
        lines = [
            f"{network.name}, {len(photos)} photos, {asked.rounds} interleaved rounds, "
            f"{processors()} cores, load {os.getloadavg()[0]:.1f}, {platform.system()}, "
            f"torch {torch.__version__}."
        ]
        if asked.table != "routes":
            notes, found = contenders(
                photos, name, load(name), scratch, other_python=asked.thingsvision
            )
            first = list(found)[:2]
            kept = {k: v for k, v in found.items() if k in first or any(t in k for t in asked.only)}
            lines += [
                " ".join(notes),
                "",
                "| from files to vectors | photos/s | embedcache / this |",
                "|---|---|---|",
                *lines_of(rates(kept, len(photos), asked.rounds), to="embedcache"),
            ]
        if asked.table != "peers":
            lines += [
                "",
                "| as a user starts it | photos | photos/s | networks alone | ratio | bottleneck "
                "| shares |",
                "|---|---|---|---|---|---|---|",
                *routes(photos, many, name, scratch, rounds=asked.rounds),
            ]
    print("\n".join(lines))
    if asked.out:
        asked.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
