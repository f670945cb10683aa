"""Does a user wait for anything but the network? Extraction against it alone and against peers.

    python benchmarks/extract.py [--photos 192] [--rounds 3] [--network FOLDER] [--only TEXT]

Photos are MEBeauty's where EMBEDCACHE_REAL_DATA names them, else the embedded example's; the
network is Inception v3 from there, else the example's EfficientNet. Every contender goes from
files to vectors once a round, in a new order each round; rates are medians and ratios are of them.
A peer that is not installed says so. Rows marked "network alone" are given pixels that are ready.
"""

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.decode import jpeg
from embedcache import example, images, weights
from embedcache.backbones import Backbone, load
from embedcache.extraction import extract
from embedcache.photos import Photos
from embedcache.store import Cache

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Contender = Callable[[], object]
PEERS = ("openvino", "datasets", "thingsvision")
BATCH = 32  # of every loop that has no better size of its own


def real_data() -> Path | None:
    named = os.environ.get("EMBEDCACHE_REAL_DATA")
    return Path(named) if named else None


def some_photos(n: int, scratch: Path) -> Photos:
    """n photos as people have them, evenly out of the whole set."""
    data = real_data()
    folder = data / "data" / "mebeauty" / "photos" if data else example.make(scratch).folder
    found = Photos.read(folder)
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
    parts = [pixels[i : i + n_batch] for i in range(0, len(pixels), n_batch)]
    free = list(network.lanes)

    def work(part: U8) -> F32:
        lane = free.pop()
        try:
            return lane(part)
        finally:
            free.append(lane)

    def begin() -> None:
        if network.threads is not None:
            torch.set_num_threads(network.threads)

    before = torch.get_num_threads()
    with ThreadPoolExecutor(len(network.lanes), initializer=begin) as pool:
        list(pool.map(work, parts))
    torch.set_num_threads(before)


def best_batch(pixels: U8, backbone: Backbone) -> int:
    """The batch size that a long extraction would choose, found as it finds it."""
    rates: dict[int, float] = {}
    lanes = len(backbone.open().lanes)
    sizes = (4, 8, 16, 32) if backbone.open().device == "cpu" else (64, 128, 256)
    for _ in range(2):
        for size in sizes:
            some = pixels[: size * lanes]
            start = time.perf_counter()
            alone(some, backbone, n_batch=size)
            rate = len(some) / (time.perf_counter() - start)
            rates[size] = max(rate, rates.get(size, 0))
    return min(size for size, rate in rates.items() if rate >= 0.97 * max(rates.values()))


# --- peers ----------------------------------------------------------------------------------------


class Files(torch.utils.data.Dataset[Any]):
    """Photos as a user's Dataset has them."""

    def __init__(self, paths: Sequence[str], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        return self.transform(Image.open(self.paths[i]).convert("RGB"))


def missing(package: str) -> str:
    """Why a peer cannot be imported beside torch, "" if it can. Asked apart: one of them aborts."""
    code = f"import torch, {package}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def transform_of(model: torch.nn.Module) -> Any:
    config = timm.data.resolve_data_config({}, model=model)
    return timm.data.create_transform(**config, is_training=False)


def plain_loop(photos: Photos, model: Any, *, workers: int) -> None:
    """timm's model and transform behind a DataLoader."""
    files = Files(photos.paths, transform_of(model))
    loader = torch.utils.data.DataLoader(files, batch_size=BATCH, num_workers=workers)
    with torch.inference_mode():
        np.concatenate([model(batch).numpy() for batch in loader])


def hugging_face(photos: Photos, model: Any, scratch: Path) -> None:
    """datasets.map over the files, which writes Arrow as it goes."""
    import datasets

    datasets.disable_progress_bars()
    transform = transform_of(model)

    def embed(rows: dict[str, list[str]]) -> dict[str, F32]:
        opened = [transform(Image.open(path).convert("RGB")) for path in rows["path"]]
        with torch.inference_mode():
            return {"vector": model(torch.stack(opened)).numpy()}

    table = datasets.Dataset.from_dict({"path": list(photos.paths)})
    table.map(
        embed,
        batched=True,
        batch_size=BATCH,
        cache_file_name=tempfile.mktemp(".arrow", dir=scratch),
    )


def thingsvision(photos: Photos, model: Any) -> None:
    """Its extractor around the same network, over the folder's files."""
    from thingsvision import get_extractor_from_model
    from thingsvision.utils.data import DataLoader

    class Listed(Files):
        """What its DataLoader asks of a dataset."""

    extractor = get_extractor_from_model(
        model=model, device="cpu", transforms=transform_of(model), backend="pt"
    )
    loader = DataLoader(
        dataset=Listed(photos.paths, transform_of(model)), batch_size=BATCH, backend="pt"
    )
    extractor.extract_features(
        batches=loader, module_name="global_pool", flatten_acts=True, output_type="ndarray"
    )


class OpenVino:
    """The same network converted, float32, in its throughput mode."""

    def __init__(self, model: Any, size: tuple[int, int], n_batch: int) -> None:
        import openvino

        self.n_batch = n_batch
        converted = openvino.convert_model(
            model, example_input=torch.zeros(n_batch, 3, *size), input=[n_batch, 3, *size]
        )
        self.queue_type = openvino.AsyncInferQueue
        self.compiled = openvino.compile_model(
            converted,
            "CPU",
            {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"},
        )

    def alone(self, inputs: F32) -> None:
        queue = self.queue_type(self.compiled)
        for i in range(0, len(inputs) - self.n_batch + 1, self.n_batch):
            queue.start_async({0: inputs[i : i + self.n_batch]})
        queue.wait_all()

    def loop(self, photos: Photos, transform: Any) -> None:
        """Behind a DataLoader that decodes in the main process, as its tutorials have it."""
        loader = torch.utils.data.DataLoader(
            Files(photos.paths, transform), batch_size=self.n_batch, drop_last=True
        )
        queue = self.queue_type(self.compiled)
        for batch in loader:
            queue.start_async({0: batch.numpy()})
        queue.wait_all()


# --- the table ------------------------------------------------------------------------------------


def contenders(
    photos: Photos, name: str, backbone: Backbone, scratch: Path
) -> tuple[int, dict[str, Contender]]:
    """The batch size of ours, and everything that goes from these photos to vectors."""
    pixels = pixels_of(photos, backbone)
    n_batch = best_batch(pixels, backbone)
    network = backbone.open()
    began = time.perf_counter()
    faster = replace(network, lanes=network.compiled(n_batch))
    compiled = replace(backbone, open=lambda: faster)
    alone(pixels[: n_batch * len(faster.lanes)], compiled, n_batch=n_batch)
    print(
        f"{network.compiler} compiled it in {time.perf_counter() - began:.0f} s, not counted below"
    )
    model = timm.create_model(name, pretrained=True, num_classes=0).eval()
    found: dict[str, Contender] = {
        "the network alone": lambda: alone(pixels, backbone, n_batch=n_batch),
        "embedcache": lambda: ours(photos, [backbone], scratch, n_batch=n_batch),
        "the network alone, compiled": lambda: alone(pixels, compiled, n_batch=n_batch),
        "embedcache, compiled": lambda: ours(photos, [compiled], scratch, n_batch=n_batch),
        "timm + DataLoader, 0 workers": lambda: plain_loop(photos, model, workers=0),
        f"timm + DataLoader, {os.cpu_count()} workers": lambda: plain_loop(
            photos, model, workers=os.cpu_count() or 1
        ),
    }
    absent = {peer: missing(peer) for peer in PEERS}
    if not absent["openvino"]:
        files = Files(photos.paths, transform_of(model))
        inputs = torch.stack([files[i] for i in range(len(files))])
        other = OpenVino(model, backbone.preprocessing.size, n_batch)
        found["OpenVINO f32, network alone"] = lambda: other.alone(inputs.numpy())
        found["OpenVINO f32, plain loop"] = lambda: other.loop(photos, transform_of(model))
    if not absent["datasets"]:
        found["Hugging Face datasets.map"] = lambda: hugging_face(photos, model, scratch)
    if not absent["thingsvision"]:
        found["thingsvision"] = lambda: thingsvision(photos, model)
    return n_batch, found


def rates(found: dict[str, Contender], n_photos: int, rounds: int) -> dict[str, float]:
    """Photos/s of each, medians; a round not counted comes first."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds):
        names = list(found)
        random.Random(number).shuffle(names)
        for name in names:
            start = time.perf_counter()
            found[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: n_photos / statistics.median(took) for name, took in seconds.items()}


def lines_of(what: str, found: dict[str, float], *, to: str) -> list[str]:
    return [
        f"| {what} | {name} | {rate:.2f} | {found[to] / rate:.2f} |" for name, rate in found.items()
    ]


def route(what: str, photos: Photos, names: list[str], scratch: Path, **options: Any) -> list[str]:
    """One extraction of a kind, with what it says of itself."""
    backbones = [load(name, device="auto", **options) for name in names]
    cache = Cache.open(tempfile.mkdtemp(dir=scratch) + "/c", create=True)
    found = extract(photos, cache, backbone=backbones)
    space = found.spaces[0]
    shares = ", ".join(f"{k} {v:.0%}" for k, v in space.shares.items() if v >= 0.01)
    model = space.model_photos_per_second or float("nan")
    rate = len(photos) / found.seconds
    return [f"| {what} | {rate:.2f} | {model:.2f} | {space.bottleneck} | {shares} |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", type=Path)
    parser.add_argument("--only", default="", help="contenders whose name holds this text")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    data = real_data()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if data is None and asked.network is None:
            asked.network = weights.write_lite0(scratch / "lite0")
        network = asked.network or (data or scratch) / "weights" / "inception_v3_nsfwjs"
        name = f"local-dir:{network}"
        # whole batches, which a compiled form needs
        photos = some_photos(asked.photos // 64 * 64, scratch)
        backbone = load(name)
        n_batch, found = contenders(photos, name, backbone, scratch)
        kept = {k: v for k, v in found.items() if asked.only in k or k in list(found)[:2]}
        lines = [
            f"{network.name}, {len(photos)} photos, {asked.rounds} interleaved rounds, batches of "
            f"{n_batch} for embedcache and OpenVINO, {BATCH} elsewhere, {os.cpu_count()} cores, "
            f"load {os.getloadavg()[0]:.1f}, {platform.system()}, torch {torch.__version__}.",
            "",
            "| what | who | photos/s | embedcache / this |",
            "|---|---|---|---|",
            *lines_of("files to vectors", rates(kept, len(photos), asked.rounds), to="embedcache"),
        ]
        for peer in PEERS:
            if why := missing(peer):
                lines.append(f"| files to vectors | {peer} | not here: {why} | |")
        lines += [
            "",
            "| route, once | photos/s | network alone | bottleneck | shares |",
            "|---|---|---|---|---|",
        ]
        if data is not None and not asked.only:
            lite, face = (f"local-dir:{data}/weights/{n}" for n in NETWORKS)
            lines += route("EfficientNet-Lite0", photos, [lite], scratch)
            lines += route("FaceRes on face crops, with detection", photos, [face], scratch)
            lines += route("both and Inception v3", photos, [name, lite, face], scratch)
        large = large_photos(24, scratch)
        lines += route("12 megapixels, every pixel", large, [name], scratch, decode="full")
        lines += route("12 megapixels, reduced", large, [name], scratch, decode="reduced")
        if not torch.cuda.is_available():
            lines.append("| CUDA | no CUDA device here | | | |")
        else:
            for precision in ("float32", "bfloat16"):
                lines += route(f"CUDA, {precision}", photos, [name], scratch, precision=precision)
    print("\n".join(lines))
    if asked.out:
        asked.out.write_text("\n".join(lines) + "\n")


NETWORKS = ("efficientnet_lite0", "faceres_mobilenetv1@face")

if __name__ == "__main__":
    main()
