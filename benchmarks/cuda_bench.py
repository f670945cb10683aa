"""What the steps of `benchmarks/cuda.py` share: data, networks, the time left, the rates."""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.decode import NETWORK
from embedcache import example
from embedcache.backbones import cuda_lane, facenet, forward, timm_networks
from embedcache.backbones.forward import Loaded, Network
from embedcache.backbones.loading import Backbone, decoding
from embedcache.backbones.names import Name
from embedcache.extraction.lanes import Lanes
from embedcache.extraction.prefetch import (
    Pixels,
)
from embedcache.machine import processors
from embedcache.photos import images
from embedcache.photos.resizing import place
from embedcache.photos.table import Photos
from embedcache.spec import Preprocessing, Spec

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SIZES = (64, 128, 256, 512) if CUDA else (4, 8)
INCEPTION = replace(NETWORK, decode=decoding("full"))


class Bench:
    """What the steps share: where data are, how much time is left, and what was found."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.scratch = scratch
        self.began = time.perf_counter()
        self.found: dict[str, Any] = {}
        self.rates: dict[str, float] = {}
        self.step = ""

    @property
    def left(self) -> float:
        return float(self.options.seconds) - (time.perf_counter() - self.began)

    def say(self, name: str, value: Any) -> None:
        """One figure: printed, and kept under the step's name."""
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(
            f"{time.perf_counter() - self.began:6.1f} s  {self.step}: {name}: {shown}", flush=True
        )
        self.found.setdefault(self.step, {})[name] = value
        if self.options.out:
            self.options.out.write_text(json.dumps(self.found, indent=1) + "\n")

    # --- photos -----------------------------------------------------------------------------------

    @cached_property
    def files(self) -> list[Path]:
        """Real photos, or the embedded example's."""
        data = self.options.data
        folder = data / "data/mebeauty/photos" if data else None
        if folder and folder.is_dir():
            return sorted(folder.iterdir())
        return sorted((example.make(self.scratch / "example").folder / "photos").iterdir())

    @cached_property
    def ratings(self) -> dict[str, float]:
        """Each photo's mean rating, by its id; {} where there are none."""
        table = self.options.data / "data/mebeauty/beauty.csv" if self.options.data else None
        lines = table.read_text().splitlines()[1:] if table and table.exists() else []
        return {line.split(",")[0]: float(line.split(",")[2]) for line in lines}

    @cached_property
    def pixels(self) -> U8:
        """Inputs of Inception v3, (n, 299, 299, 3)."""
        some = self.files[: 256 if CUDA else 16]
        with ThreadPoolExecutor(processors()) as pool:
            return np.stack(list(pool.map(partial(self.pixels_of, INCEPTION), some)))

    @cached_property
    def uncut(self) -> list[Pixels]:
        """The same photos at 500 pixels, still to be resized."""
        some = [images.decode(jpeg_500(file)) for file in self.files[: 64 if CUDA else 8]]
        return [place(np.asarray(one), INCEPTION) for one in some]

    @staticmethod
    def pixels_of(preprocessing: Preprocessing, file: Path) -> U8:
        return images.resize_crop(images.decode(file.read_bytes()), preprocessing)

    @cached_property
    def many(self) -> Photos:
        """Distinct files of JPEGs 500 pixels wide, as the paper's photos were: each has bytes of
        its own behind its end."""
        folder = self.scratch / "many"
        folder.mkdir()
        data = [jpeg_500(file) for file in self.files[: 256 if CUDA else 16]]
        n = self.options.photos if CUDA else 64
        for i in range(n):
            (folder / f"{i:06}.jpg").write_bytes(data[i % len(data)] + i.to_bytes(8, "little"))
        return Photos.read(folder)

    # --- networks ---------------------------------------------------------------------------------

    @cached_property
    def inception(self) -> Path | None:
        """The folder of real weights, if there is one."""
        found = sorted(self.options.data.glob("weights/inception_v3*")) if self.options.data else []
        return found[0] if found else None

    def load_inception(self) -> Loaded:
        if self.inception is not None:
            name = Name.parse(f"local-dir:{self.inception}")
            return timm_networks.load(name, decode=decoding("full"))
        import timm

        torch.manual_seed(0)
        model = timm.create_model("inception_v3", num_classes=0).eval().requires_grad_(False)
        return Loaded(model=model, architecture="inception_v3", preprocessing=INCEPTION)

    def load_efficientnet(self) -> Loaded:
        data = self.options.data
        folder = data / "weights/efficientnet_lite0" if data else None
        if not (folder and folder.is_dir()):
            folder = example.write_lite0(self.scratch / "lite0")
        return timm_networks.load(Name.parse(f"local-dir:{folder}"), decode=decoding("full"))

    def load_facenet(self) -> Loaded:
        return facenet.load(str(self.options.facenet), decode=decoding("full"))

    def network(
        self, load: Callable[[], Loaded], precision: str = "float32", device: str = DEVICE
    ) -> Network:
        loaded = load()
        loaded.model.eval().requires_grad_(False)
        return forward.build(
            loaded.model,
            loaded.preprocessing,
            devices=forward.devices(device),
            precision=precision,
        )

    def backbone(self, precision: str) -> Backbone:
        """Inception v3 as a run takes it."""
        network = self.network(self.load_inception, precision)
        spec = Spec(
            kind="computed",
            architecture="inception_v3",
            weights="0" * 64,
            dim=2048,
            preprocessing=INCEPTION,
            precision=precision,
        )
        return Backbone(name="inception_v3", place="", spec=spec, open=lambda: network)


def jpeg_500(file: Path) -> bytes:
    """The photo as a JPEG whose longer side is 500 pixels."""
    import io

    image = images.decode(file.read_bytes())
    scale = 500 / max(image.size)
    smaller = image.resize((round(image.width * scale), round(image.height * scale)))
    buffer = io.BytesIO()
    smaller.save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def passes(
    network: Network,
    pixels: U8 | Sequence[Pixels],
    n_batch: int,
    n_batches: int,
    lanes: int = 99,
) -> float:
    """Photos/s of a network that is handed ready pixels, on its lanes at once."""
    parts = np.resize(np.arange(len(pixels)), n_batch)
    batch = [pixels[i] for i in parts.tolist()] if network.resizes else cast(U8, pixels)[parts]
    runs = network.lanes[:lanes]

    def work(lane: int) -> F32:
        return runs[lane % len(runs)](batch)

    with Lanes(len(runs)) as threads:

        def go(n: int) -> float:
            began = time.perf_counter()
            for _ in range(n):
                threads.make_room()
                threads.submit(work, lambda _: None)
            threads.drain()
            return time.perf_counter() - began

        go(3 * len(runs))
        return n_batches * n_batch / go(n_batches)


def distance(found: F32, expected: F32) -> float:
    """The largest distance between two vectors of one photo, over the norm of the second."""
    gap = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return float(gap.max())


@contextmanager
def kernel_by_kernel() -> Iterator[None]:
    """No CUDA graphs in here."""
    before, cuda_lane.GRAPHED = cuda_lane.GRAPHED, 1 << 30
    try:
        yield
    finally:
        cuda_lane.GRAPHED = before
