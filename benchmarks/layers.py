"""What do layers inside a network cost? One pass with six of them beside one without.

    python benchmarks/layers.py [NAME LAYER,LAYER ...]

Passes of both forms alternate on one thread, in processor time, so that a busy machine does not
count; the figures are the ratios of their fastest passes and of their medians. Compared with: the
network's own output alone, which is what an extraction without layers computes.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from embedcache.backbones.loading import load_several

BATCH, PASSES = 8, 10
DEFAULT = ("facenet:casia-webface", "conv2d_4b,repeat_1,mixed_6a,repeat_2,mixed_7a,repeat_3")


def measure(name: str, layers: str) -> str:
    """One row of the table."""
    plain = load_several([name], device="cpu", detector=lambda: "0" * 64)[0]
    tapped = load_several([name, f"{name}#{layers}"], device="cpu", detector=lambda: "0" * 64)
    size = plain.preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, *size, 3), dtype=np.uint8)
    forms = {"alone": plain.open().lanes[0], "layers": tapped[0].open().lanes[0]}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for form in [*forms] * 2:
        forms[form](pixels)
    for _ in range(PASSES):
        for form, run in forms.items():
            began = time.thread_time()
            run(pixels)
            seconds[form].append(time.thread_time() - began)
    fastest = min(seconds["layers"]) / min(seconds["alone"])
    median = float(np.median(seconds["layers"]) / np.median(seconds["alone"]))
    each = 1000 * min(seconds["alone"]) / BATCH
    return f"| {plain.name} | {len(tapped) - 1} | {each:.1f} | {fastest:.3f} | {median:.3f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("asked", nargs="*", metavar="NAME LAYER,LAYER", default=DEFAULT)
    asked = parser.parse_args().asked
    torch.set_num_threads(1)
    print("| network | layers | ms a photo alone | fastest, ratio | median, ratio |")
    print("|---|---|---|---|---|")
    for name, layers in zip(asked[::2], asked[1::2], strict=True):
        print(measure(name, layers), flush=True)


if __name__ == "__main__":
    main()
