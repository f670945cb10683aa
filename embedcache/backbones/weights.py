"""Weights: where they lie on this machine, reading them without running code, and their digest.

No function here waits longer than REACH_SECONDS for a host: a missing file ends in one WeightsError
that names the file, where it was looked for, and what to do on a machine without internet.
"""

import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from embedcache.errors import WeightsError

if TYPE_CHECKING:
    import torch


REACH_SECONDS = 5.0
FACENET_RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9"
FACENET_FILES = {
    "vggface2": "20180402-114759-vggface2.pt",
    "casia-webface": "20180408-102900-casia-webface.pt",
}


def need_hub(hub_id: str, name: str) -> None:
    """Raise WeightsError unless the hub's model is in the local cache or the hub answers.

    hub_id: OWNER/MODEL;  name: the backbone as the message calls it.
    """
    from huggingface_hub import constants

    if in_hub_cache(hub_id):
        return
    folder = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    _need_host(
        str(constants.ENDPOINT),
        offline=bool(constants.HF_HUB_OFFLINE),
        missing=f"the weights of {name} are not here: looked for {hub_id}'s model.safetensors in "
        f"{folder}",
        remedy=f"On a machine with internet run 'hf download {hub_id}' and copy that folder to the "
        "same place here; or bring any timm folder and use local-dir:FOLDER.",
    )


def in_hub_cache(hub_id: str) -> bool:
    """Whether a model's weights lie in the Hugging Face cache of this machine."""
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
    return any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in files)


def hub_files(hub_id: str) -> list[Path]:
    """The files of a model in the Hugging Face cache of this machine, and the mark of its revision;
    none where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json") if hub_id else None
    if not isinstance(config, str):
        return []
    snapshot = Path(config).parent
    marks = snapshot.parent.parent / "refs"
    return [path for path in (*snapshot.iterdir(), *marks.iterdir()) if path.is_file()]


def facenet_places(where: str) -> list[Path]:
    """The files that are looked for, in order, for one of FACENET_FILES."""
    home = os.environ.get("TORCH_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch"
    )
    folder = Path(home).expanduser()
    file = FACENET_FILES[where]
    return [folder / "checkpoints" / file, folder / "hub" / "checkpoints" / file]


def command_for(name: str) -> str:
    """What gets a backbone's weights on a machine with internet; names no path of this one."""
    source, colon, where = name.partition(":")
    if colon and source == "facenet":
        file = FACENET_FILES[where]
        place = f"~/.cache/torch/checkpoints/{file}"
        return f"curl -L --create-dirs -o {place} {FACENET_RELEASE}/{file}"
    return f"hf download timm/{name}"


def facenet_file(where: str) -> Path:
    """The file with FaceNet weights: a path of the user's, or one of FACENET_FILES, fetched if
    its release page can be reached."""
    if where not in FACENET_FILES:
        if not Path(where).is_file():
            raise WeightsError(
                f"no file {where} with FaceNet weights; give facenet:vggface2, "
                "facenet:casia-webface, or facenet: and the path of a state dict"
            )
        return Path(where)
    places = facenet_places(where)
    for place in places:
        if place.is_file():
            return place
    url = f"{FACENET_RELEASE}/{FACENET_FILES[where]}"
    _need_host(
        FACENET_RELEASE,
        offline=False,
        missing=f"the weights of facenet:{where} are not here: looked for {places[0]}",
        remedy=f"On a machine with internet download {url} and copy it there, or anywhere and say "
        "facenet:FILE.",
    )
    import torch

    places[0].parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(places[0]))
    except OSError as error:
        raise WeightsError(f"cannot download {url}: {first_line(error)}") from error
    return places[0]


def read_state(path: Path) -> "dict[str, torch.Tensor]":
    """A state dict from safetensors or a torch file, without ever running code from it."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, safetensors and torch have their own types each
        raise WeightsError(
            f"{path} cannot be read as weights ({first_line(error)}). A checkpoint that needs "
            "more than tensors is refused: save its state_dict() as safetensors."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise WeightsError(f"{path} holds no state dict: save model.state_dict() to it")
    return dict(found)


def _need_host(url: str, *, offline: bool, missing: str, remedy: str) -> None:
    """Raise WeightsError unless the host of `url` answers within REACH_SECONDS."""
    host = url.partition("://")[2].partition("/")[0]
    name, _, port = host.partition(":")
    reached = threading.Event()

    def connect() -> None:
        try:
            with socket.create_connection((name, int(port or 443)), timeout=REACH_SECONDS):
                reached.set()
        except OSError:
            pass

    if not offline:
        # A thread, because looking up a name has no timeout of its own.
        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        thread.join(REACH_SECONDS)
    if not reached.is_set():
        why = "HF_HUB_OFFLINE is set" if offline else f"{name} cannot be reached from here"
        raise WeightsError(f"{missing}, and {why}. {remedy}")


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")[:300]
