"""The steps of `benchmarks/cuda.py`.

Every step prints a line per figure as soon as it has it, and is written to --out at once; a step
that fails says why, and one for which no time is left is named. Without a CUDA device the same
steps run small on the CPU, to see that the program works, and the table says so.

--data is a folder as EMBEDCACHE_REAL_DATA names one (data/mebeauty/photos, weights/inception_v3*,
weights/efficientnet_lite0); photos are otherwise the embedded example's, and Inception v3 has
made-up weights: its speed is the same. --facenet is a state dict.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cuda_bench import (
    CUDA,
    DEVICE,
    F32,
    INCEPTION,
    SIZES,
    Bench,
    distance,
    jpeg_500,
    kernel_by_kernel,
    passes,
)
from benchmarks.decode import jpeg
from benchmarks.detect import overlap
from embedcache.backbones.forward import Loaded
from embedcache.extraction.clock import Clock, RunProgress
from embedcache.extraction.decoders import children
from embedcache.extraction.decoders import decoding as in_children
from embedcache.extraction.engine import Engine
from embedcache.extraction.pace import Pace
from embedcache.extraction.prefetch import (
    Decoding,
    Gate,
    Job,
    Need,
    here,
    prefetch,
)
from embedcache.extraction.run import extract
from embedcache.faces.detector import Detector
from embedcache.machine import processors
from embedcache.photos import images
from embedcache.spec import PRECISIONS
from embedcache.store.cache import Cache


def machine(bench: Bench) -> None:
    bench.say("torch", torch.__version__)
    bench.say("processors", processors())
    bench.say("intra-op threads", torch.get_num_threads())
    if not CUDA:
        bench.say("device", "no CUDA device: the rows below are the CPU's")
        return
    bench.say("device", torch.cuda.get_device_name())
    host = torch.empty(2**28, dtype=torch.uint8).pin_memory()
    there = host.cuda()

    def copies() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(8):
            there.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        return 8 * len(host) / (time.perf_counter() - began) / 1e9

    bench.say("host to device, GB/s", statistics.median(copies() for _ in range(3)))


def drift(bench: Bench) -> None:
    """Vectors of each precision against the CPU's float32, and what it does to a head."""
    networks: dict[str, Callable[[], Loaded]] = {
        "inception": bench.load_inception,
        "efficientnet": bench.load_efficientnet,
    }
    if bench.options.facenet:
        networks["facenet"] = bench.load_facenet
    some = bench.files[: 192 if CUDA else 6]
    target = np.array([bench.ratings.get(file.stem, np.nan) for file in some])
    for name, load in networks.items():
        plain = bench.network(load, device="cpu")
        preprocessing = load().preprocessing
        with ThreadPoolExecutor(processors()) as pool:
            pixels = np.stack(list(pool.map(partial(bench.pixels_of, preprocessing), some)))
        expected = np.concatenate(
            [plain.lanes[0](pixels[i : i + 32]) for i in range(0, 192, 32) if i < len(some)]
        )
        score = _figure(expected, target)
        if score is not None:
            bench.say(f"{name}: figure of the CPU's vectors", score)
        for precision in PRECISIONS:
            network = bench.network(load, precision)
            n = 64 if CUDA else 3
            parts = [pixels[i : i + n] for i in range(0, len(pixels), n)]
            found = np.concatenate([network.lanes[0](part) for part in parts])
            bench.say(f"{name} {precision}: largest distance", distance(found, expected))
            with kernel_by_kernel():
                other = bench.network(load, precision)
                eager = np.concatenate([other.lanes[-1](part) for part in parts])
            bench.say(f"{name} {precision}: graph against none", distance(found, eager))
            short = network.lanes[1 % len(network.lanes)](pixels[: n // 2 + 1])
            bench.say(f"{name} {precision}: a short batch", distance(short, found[: len(short)]))
            score = _figure(found, target)
            if score is not None:
                bench.say(f"{name} {precision}: figure", score)


def _figure(vectors: F32, target: NDArray[np.float64]) -> float | None:
    """Pearson's r of a ridge head in five folds; None without ratings."""
    rated = np.isfinite(target)
    if rated.sum() < 50:
        return None
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), Ridge(alpha=1000.0))
    guess = cross_val_predict(model, vectors[rated].astype(np.float64), target[rated], cv=KFold(5))
    return float(np.corrcoef(guess, target[rated])[0, 1])


def alone(bench: Bench) -> None:
    """The network's own photos/s, by precision, batch, lanes, and with or without graphs."""
    n = 4096 if CUDA else 16
    size = SIZES[-2]
    uncut = bench.uncut
    for precision in PRECISIONS:
        network = bench.network(bench.load_inception, precision)
        with kernel_by_kernel():
            plain = bench.network(bench.load_inception, precision)
            bench.say(f"{precision}, no graphs", passes(plain, bench.pixels, size, n // size))
            if precision == "float16":
                with busy(processors() - 2):
                    rate = passes(plain, bench.pixels, size, n // size)
                    bench.say(f"{precision}, no graphs, beside decoders", rate)
        for other in (size,) if precision != "float16" else SIZES[1:]:
            rate = passes(network, bench.pixels, other, n // other)
            bench.say(f"{precision}, batches of {other}", rate)
        bench.rates[precision] = passes(network, bench.pixels, size, n // size)
        rate = passes(network, bench.pixels, size, n // size, lanes=1)
        bench.say(f"{precision}, one lane", rate)
        if network.resizes:
            bench.say(f"{precision}, resizing too", passes(network, uncut, size, n // size))
        with busy(processors() - 2):
            rate = passes(network, bench.pixels, size, n // size)
            bench.say(f"{precision}, beside decoders", rate)
        del network, plain
        if CUDA:
            torch.cuda.empty_cache()


@contextmanager
def busy(n: int) -> Iterator[None]:
    """n threads that decode and resize one photo again and again, as a run's do."""
    data = _made_up_jpeg()
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            images.resize_crop(images.decode(data), INCEPTION)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(n)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@cache
def _made_up_jpeg() -> bytes:
    return jpeg(500, 375)


def compiled(bench: Bench) -> None:
    """What torch.compile gives on the device."""
    size = SIZES[-2]
    for precision in ("float32", "float16") if CUDA else ("float32",):
        network = bench.network(bench.load_inception, precision)
        plain = passes(network, bench.pixels, size, 8)
        began = time.perf_counter()
        lanes = network.compiled(size)
        batch = np.resize(bench.pixels, (size, *bench.pixels.shape[1:]))
        expected = network.lanes[0](batch)
        gap = distance(lanes[0](batch), expected)
        bench.say(f"{precision}: seconds to compile", time.perf_counter() - began)
        rate = passes(replace(network, lanes=lanes), bench.pixels, size, 8)
        bench.say(f"{precision}: compiled, photos/s", rate)
        bench.say(f"{precision}: plain, photos/s", plain)
        bench.say(f"{precision}: largest distance", gap)


def memory(bench: Bench) -> None:
    """A device whose memory ends: batches are halved, and every vector is there."""
    if not CUDA:
        bench.say("not measured", "no CUDA device")
        return
    network = bench.network(bench.load_inception, "float32")
    total = torch.cuda.get_device_properties(0).total_memory
    pixels = [bench.pixels[i % len(bench.pixels)] for i in range(1024)]
    expected = np.concatenate([network.lanes[0](pixels[i : i + 64]) for i in range(0, 1024, 64)])
    del network
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(4 * 2**30 / total)
    try:
        tight = bench.network(bench.load_inception, "float32")
        engine = Engine("inception", tight, Pace(size=1024))
        done = engine.run(0, pixels)
        again = engine.run(1, pixels)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    bench.say("batches of 1,024 became", engine.pace.most)
    bench.say("largest distance", distance(done.vectors, expected))
    bench.say("largest distance, second lane", distance(again.vectors, expected))


def decode(bench: Bench) -> None:
    """Files to what a network takes, without a network, by threads, children and decoder."""
    paths = bench.many.paths[: 8192 if CUDA else 64]
    for threads in sorted({1, 8, processors()}):
        some = list(_jobs(paths[: 200 * threads]))
        bench.say(f"cut, {threads} threads", _decoded(some, Gate(threads), here(Clock())))
    some = list(_jobs(paths))
    with children(10**9, wanted=lambda: True) as decoders:
        how = in_children(decoders, Clock(), {0})
        _decoded(some[:256], Gate(None), how)  # the children are there
        bench.rates["decode"] = _decoded(some, Gate(None), how)
    bench.say("uncut, as a run does it", bench.rates["decode"])
    _torchvision(bench, paths)


def _decoded(jobs: Sequence[Job], gate: Gate, how: Decoding) -> float:
    """Photos/s."""
    began = time.perf_counter()
    for _ in prefetch(jobs, gate=gate, ahead=lambda: 1024, clock=Clock(), decoding=how):
        pass
    return len(jobs) / (time.perf_counter() - began)


def _jobs(paths: Sequence[str]) -> Iterator[Job]:
    import hashlib

    for path in paths:
        digest = hashlib.sha256(Path(path).read_bytes()).digest()
        yield Job(path, digest, (0,), (Need(0, INCEPTION),), (), (), 1)


def _torchvision(bench: Bench, paths: Sequence[str]) -> None:
    from torchvision.io import ImageReadMode, decode_jpeg

    warnings.simplefilter("ignore", DeprecationWarning)
    data = [torch.from_numpy(np.fromfile(path, np.uint8)) for path in paths[:1024]]
    first = decode_jpeg(data[0], mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
    same = np.array_equal(first, np.asarray(images.decode(data[0].numpy().tobytes())))
    bench.say("torchvision's pixels equal Pillow's", bool(same))

    def pillow(one: torch.Tensor) -> None:
        images.decode(one.numpy().tobytes())

    def torchvision(one: torch.Tensor) -> None:
        decode_jpeg(one, mode=ImageReadMode.RGB)

    for name, work in {"Pillow": pillow, "torchvision": torchvision}.items():
        with ThreadPoolExecutor(processors()) as pool:
            began = time.perf_counter()
            for _ in pool.map(work, data):
                pass
            rate = len(data) / (time.perf_counter() - began)
        bench.say(f"{name}, decoding alone, {processors()} threads", rate)
    if CUDA:
        decode_jpeg(data[:64], mode=ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()
        began = time.perf_counter()
        for i in range(0, len(data), 64):
            decode_jpeg(data[i : i + 64], mode=ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()
        bench.say("nvJPEG, decoding alone", len(data) / (time.perf_counter() - began))
        there = decode_jpeg(data[0], mode=ImageReadMode.RGB, device="cuda").cpu()
        gap = np.abs(there.permute(1, 2, 0).numpy().astype(int) - first.astype(int))
        bench.say("nvJPEG: pixels that differ from Pillow's", float((gap > 0).mean()))
        bench.say("nvJPEG: largest difference of a pixel", int(gap.max()))


def end_to_end(bench: Bench) -> None:
    """`extract` from files, against the slower of decoding and the network alone."""
    half = "float16" if bench.inception else "bfloat16"  # made-up weights overflow
    for precision in ("float32", "tf32", half) if CUDA else ("float32",):
        backbone = bench.backbone(precision)
        cache = Cache.open(tempfile.mkdtemp(dir=bench.scratch) + "/c", create=True)
        progress = [RunProgress(0, 0, 0, 0.0)]
        began = time.perf_counter()
        found = extract(
            bench.many,
            cache,
            backbone=backbone,
            batch_size=SIZES[-2],
            compiling="off",
            progress=progress.append,
        )
        (space,) = found.spaces
        rate = space.embedded / (time.perf_counter() - began)
        embedding = space.embedded / progress[-1].seconds
        slower = min(bench.rates.get(precision, np.inf), bench.rates.get("decode", np.inf))
        bench.say(f"{precision}: photos/s, all of it", rate)
        bench.say(f"{precision}: photos/s, first to last photo", embedding)
        bench.say(f"{precision}: of the slower of decoding and the network", embedding / slower)
        bench.say(f"{precision}: bottleneck", [space.bottleneck, space.shares])


def detection(bench: Bench) -> None:
    """Boxes against the CPU's, and the rate against facenet-pytorch's on the same device."""
    pictures = [images.decode(jpeg_500(file)) for file in bench.files[: 192 if CUDA else 6]]
    if CUDA:
        here = Detector("cpu").detect(pictures)
        there = Detector(DEVICE).detect(pictures)
        same = here.counts == there.counts
        bench.say("photos", len(pictures))
        bench.say("photos with as many faces", int(same.sum()))
        pairs = [overlap(here.of(i).box, there.of(i).box) for i in np.flatnonzero(same).tolist()]
        bench.say("least IoU of their boxes", float(np.concatenate(pairs).min()))
    detector = Detector(DEVICE)
    detector.detect(pictures[:8])

    def rate(work: Callable[[], object], n: int) -> float:
        work()
        began = time.perf_counter()
        work()
        return n / (time.perf_counter() - began)

    bench.say("ours, photos/s", rate(lambda: detector.detect(pictures), len(pictures)))
    both = [Detector(DEVICE), Detector(DEVICE)]

    def on_two_lanes() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda i: both[i].detect(pictures[i::2]), range(2)))

    bench.say("ours on two lanes, photos/s", rate(on_two_lanes, len(pictures)))
    from facenet_pytorch import MTCNN

    package = MTCNN(keep_all=True, device=DEVICE)
    some = pictures[:48]
    arrays = [np.asarray(picture) for picture in some]

    def one_by_one() -> None:
        for array in arrays:
            package.detect(array)

    bench.say("facenet-pytorch one by one, photos/s", rate(one_by_one, len(some)))
    shapes = [array.shape for array in arrays]
    common = max(set(shapes), key=shapes.count)
    alike = [array for array in arrays if array.shape == common]
    together = rate(lambda: package.detect(alike), len(alike))
    bench.say(f"facenet-pytorch, {len(alike)} of one size together, photos/s", together)


def heads(bench: Bench) -> None:
    """The paper's tables at its size, where heads are trained on the device."""
    from benchmarks.tables import tables_on

    found = tables_on(DEVICE, n_photos=76_000 if CUDA else 2_000)
    for name, value in found.items():
        bench.say(name, value)


STEPS: dict[str, tuple[Callable[[Bench], None], int]] = {
    "machine": (machine, 15),
    "drift": (drift, 60),
    "alone": (alone, 50),
    "decode": (decode, 25),
    "end_to_end": (end_to_end, 60),
    "detection": (detection, 45),
    "memory": (memory, 20),
    "heads": (heads, 40),
    "compiled": (compiled, 90),
}
"""Each step, and the seconds that it is expected to take: it is left out where fewer are left."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDCACHE_REAL_DATA"))
    parser.add_argument("--facenet", type=Path)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--photos", type=int, default=16_000)
    parser.add_argument("--only", nargs="*", choices=STEPS, default=list(STEPS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.data = Path(options.data) if options.data else None
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        for name in options.only:
            step, seconds = STEPS[name]
            bench.step = name
            if bench.left < seconds:
                bench.say("left out", f"{bench.left:.0f} s left, {seconds} needed")
                continue
            began = time.perf_counter()
            try:
                step(bench)
            except Exception as error:  # the other steps are worth having
                traceback.print_exc()
                bench.say("failed", f"{type(error).__name__}: {error}"[:500])
            bench.say("seconds", round(time.perf_counter() - began, 1))
