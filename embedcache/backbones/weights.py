"""Weights: where they lie on this machine, reading them without running code, and their digest.

No function here waits longer than REACH_SECONDS for a host: a missing file ends in one WeightsError
that names the file, where it was looked for, and what to do on a machine without internet.
"""

import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedcache.errors import WeightsError
from embedcache.wording import counted

if TYPE_CHECKING:
    import torch

REACH_SECONDS = 5.0


def need_hub(hub_id: str, name: str) -> None:
    """Raise WeightsError unless the hub's model is in the local cache or the hub answers.

    hub_id: OWNER/MODEL;  name: the backbone as the message calls it.
    """
    from huggingface_hub import constants

    if in_hub_cache(hub_id):
        return
    folder = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    need_host(
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


def user_cache() -> Path:
    """The folder for files that any program may make again: $XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def refuse_no_weights(path: Path) -> None:
    """Raise WeightsError for a pointer, a web page or nothing in the place of a model's file."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from None
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the file itself. "
            f"Run 'git lfs pull' in {path.resolve().parent}, or download the file itself."
        )
    if not head:
        raise WeightsError(f"{path} is empty: the download was cut short. Get it again.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{path} is a web page, not weights: download the file itself.")


def read_state(path: Path) -> "dict[str, torch.Tensor]":
    """A state dict from safetensors or a torch file, without ever running code from it."""
    import torch

    refuse_no_weights(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, safetensors and torch raise many types
        if type(error).__name__ == "UnpicklingError" or "weights_only" in str(error):
            raise WeightsError(refused_pickle(path)) from error
        raise WeightsError(
            f"{path} cannot be read as weights ({first_line(error)}): the file is damaged or has "
            "another format. Get it again, or save its state_dict() as safetensors."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise WeightsError(f"{path} holds no state dict: save model.state_dict() to it")
    return dict(found)


def refused_pickle(path: Path | str) -> str:
    """The message for a torch file that is damaged or would have to run code to be read."""
    return (
        f"{path} is refused: it is damaged, or it holds more than tensors, and reading the rest "
        "would run code from the file. Save the model's state_dict() as safetensors and use that."
    )


def fill(
    model: "torch.nn.Module",
    state: "dict[str, torch.Tensor]",
    *,
    source: str,
    architecture: str,
) -> None:
    """Load `state` into `model`; WeightsError unless every tensor of either is in the other."""
    try:
        keys = model.load_state_dict(state, strict=False)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{source} is no state dict of {architecture}: {shape_fault(error)}"
        ) from None
    refuse_gaps(keys.missing_keys, keys.unexpected_keys, source=source, architecture=architecture)


def refuse_gaps(
    missing: Sequence[str], unexpected: Sequence[str], *, source: str, architecture: str
) -> None:
    """Raise WeightsError, naming tensors, where weights do not fill a network exactly.

    missing: tensors of the network that the weights lack;  unexpected: the reverse.
    """
    # Counters of training steps, which nothing reads; old files lack them.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    unexpected = [name for name in unexpected if not name.endswith("num_batches_tracked")]
    if not missing and not unexpected:
        return
    facts = []
    if missing:
        n = counted(len(missing), "tensor of the network is", "tensors of the network are")
        facts.append(f"{n} missing from it ({some(missing)})")
    if unexpected:
        facts.append(f"it holds {len(unexpected)} that the network lacks ({some(unexpected)})")
    raise WeightsError(
        f"{source} is no state dict of {architecture}: {' and '.join(facts)}. A network that is "
        "only partly loaded gives meaningless vectors. Save the whole state_dict() under the "
        "architecture's own names."
    )


def some(names: Sequence[str], *, n: int = 4) -> str:
    """The first n names, and a mark where there are more."""
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


def shape_fault(error: BaseException) -> str:
    """What torch says of a tensor that does not fit, without its headline."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    return (lines[1] if len(lines) > 1 else first_line(error)).rstrip(".:")[:300]


def need_host(url: str, *, offline: bool, missing: str, remedy: str) -> None:
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
