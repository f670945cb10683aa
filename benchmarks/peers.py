"""The alternatives that people write or install, compared in benchmarks/extract.py.

Each computes vectors from files with a timm network. A package is imported when its row runs.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

F32 = NDArray[np.float32]
BATCH = 32  # for every loop without a better size of its own


class Files(torch.utils.data.Dataset[Any]):
    """Photos as a user's Dataset."""

    def __init__(self, paths: Sequence[str], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        return self.transform(Image.open(self.paths[i]).convert("RGB"))


def missing(package: str, python: Path = Path(sys.executable)) -> str:
    """Why a peer cannot be imported beside torch, "" if it can. Asked apart: some abort."""
    code = f"import torch, {package}"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def transform_of(model: torch.nn.Module) -> Any:
    config = timm.data.resolve_data_config({}, model=model)
    return timm.data.create_transform(**config, is_training=False)


def plain_loop(paths: Sequence[str], model: Any, *, workers: int) -> None:
    """timm's model and transform behind a DataLoader."""
    files = Files(paths, transform_of(model))
    loader = torch.utils.data.DataLoader(files, batch_size=BATCH, num_workers=workers)
    with torch.inference_mode():
        np.concatenate([model(batch).numpy() for batch in loader])


def hugging_face(paths: Sequence[str], model: Any, scratch: Path) -> None:
    """datasets.map over the files, which writes Arrow as it goes."""
    import datasets

    datasets.disable_progress_bars()
    transform = transform_of(model)

    def embed(rows: dict[str, list[str]]) -> dict[str, F32]:
        opened = [transform(Image.open(path).convert("RGB")) for path in rows["path"]]
        with torch.inference_mode():
            return {"vector": model(torch.stack(opened)).numpy()}

    table = datasets.Dataset.from_dict({"path": list(paths)})
    table.map(
        embed,
        batched=True,
        batch_size=BATCH,
        cache_file_name=tempfile.mktemp(".arrow", dir=scratch),
    )


THINGSVISION = """
import os, sys, time
import timm, torch
from thingsvision import get_extractor_from_model
from thingsvision.utils.data import DataLoader, ImageDataset
folder, scratch, network, n_batch = *sys.argv[1:4], int(sys.argv[4])
model = timm.create_model(network, pretrained=True, num_classes=0).eval()
extractor = get_extractor_from_model(model=model, device="cpu", backend="pt")
config = timm.data.resolve_data_config({}, model=model)
transform = timm.data.create_transform(**config, is_training=False)
model(torch.zeros(n_batch, *config["input_size"]))
start = time.perf_counter()
dataset = ImageDataset(root=folder, out_path=scratch, backend="pt", transforms=transform)
found = extractor.extract_features(
    batches=DataLoader(dataset=dataset, batch_size=n_batch, backend="pt"),
    module_name="global_pool",
    flatten_acts=True,
)
assert len(found) == len(os.listdir(folder))
print(time.perf_counter() - start)
"""


def thingsvision(folder: Path, network: str, scratch: Path, python: Path) -> float:
    """Its extractor around the same network, over a folder; the seconds, without its start."""
    command = [str(python), "-c", THINGSVISION, str(folder), str(scratch), network, str(BATCH)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def linked(paths: Sequence[str], scratch: Path) -> Path:
    """A folder that holds these photos and nothing else."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    for i, path in enumerate(paths):
        (folder / f"{i:05}{Path(path).suffix}").symlink_to(Path(path).resolve())
    return folder


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

    def loop(self, paths: Sequence[str], transform: Any) -> None:
        """Behind a DataLoader that decodes in the main process, as its tutorials have it."""
        loader = torch.utils.data.DataLoader(
            Files(paths, transform), batch_size=self.n_batch, drop_last=True
        )
        queue = self.queue_type(self.compiled)
        for batch in loader:
            queue.start_async({0: batch.numpy()})
        queue.wait_all()
