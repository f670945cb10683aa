"""The names of backbones, parsed: `NAME`, `NAME@face`, `local-dir:FOLDER`, `facenet:WEIGHTS`.

Each may end in #LAYER, or in several with commas between: `NAME@face#layer3,layer4`. That is how it
is written everywhere; `NAME#layer3@face` is read as the same.
"""

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Self

from embedcache.errors import WeightsError
from embedcache.spec import CLASS_TOKEN, CROPS, Select, split_layers

DEFAULT = "inception_v3.tf_in1k"
FACENET = ("vggface2", "casia-webface")
"""The weights that `facenet:` knows by name."""


SOURCES = ("timm", "hf-hub", "local-dir", "facenet")
_LAYER = re.compile(rf"\w+(\.\w+)*({CLASS_TOKEN})?")


@dataclass(frozen=True, slots=True)
class Name:
    """A backbone as a user writes it.

    source: "timm", "hf-hub", "local-dir" or "facenet".
    where: the model's name, the hub's id, or a path.
    select: which face of a photo is cropped; None for the whole photo.
    layers: paths of modules inside the network, () for its own output.
    """

    source: str
    where: str
    select: Select | None
    layers: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `[SOURCE:]WHERE[@CROP][#LAYER[,LAYER]]`; WeightsError for anything else."""
        body, layers = _layers_of(text)
        select = None
        for crop, chosen in CROPS.items():
            if body.endswith(f"@{crop}"):
                body, select = body[: -len(crop) - 1], chosen
        source, colon, where = body.partition(":")
        if not colon:
            source, where = "timm", body
        if source not in SOURCES or not where or body.partition("@")[0] in SOURCES:
            close = get_close_matches(source, SOURCES) if colon else ()
            hint = f"Did you mean {close[0]}:{where}? " if close and where else ""
            raise WeightsError(
                f"no such backbone: {text!r}. {hint}Give a timm name (inception_v3.tf_in1k), "
                "hf-hub:OWNER/MODEL, local-dir:FOLDER, facenet:vggface2, facenet:casia-webface or "
                "facenet:FILE, with @face at the end for the crop of the only face, or "
                "@largest-face or @central-face to choose one of several; then #LAYER for a layer "
                "inside the network."
            )
        if source == "facenet" and select is None:
            select = "only"
        return cls(source, where, select, layers)

    @property
    def network(self) -> Self:
        """The name without its layers."""
        return replace(self, layers=())

    def each(self) -> "list[Name]":
        """A name for each of its layers; itself where it has none."""
        return [replace(self, layers=(layer,)) for layer in self.layers] or [self]

    @property
    def recorded(self) -> str:
        """The name that a cache keeps: without the folders in front, which are this machine's."""
        return self._written(Path(self.where).resolve().name if self._is_path else self.where)

    @property
    def place(self) -> str:
        """The name with its path made absolute, so that it can be loaded from any folder."""
        return self._written(str(Path(self.where).resolve()) if self._is_path else self.where)

    @property
    def _is_path(self) -> bool:
        named = self.source == "facenet" and self.where in FACENET
        return self.source in ("local-dir", "facenet") and not named

    def _written(self, where: str) -> str:
        text = where if self.source == "timm" else f"{self.source}:{where}"
        crop = next((crop for crop, select in CROPS.items() if select == self.select), None)
        implied = self.source == "facenet" and self.select == "only"
        text = text if crop is None or implied else f"{text}@{crop}"
        return f"{text}#{','.join(self.layers)}" if self.layers else text


def _layers_of(text: str) -> tuple[str, tuple[str, ...]]:
    """A name without its layers, and these, each once. A path that is there may hold a #."""
    kind, _, path = text.partition(":")
    if kind in ("local-dir", "facenet") and Path(path).expanduser().exists():
        return text, ()
    body, layers = split_layers(text)
    if bad := [layer for layer in layers if not _LAYER.fullmatch(layer)]:
        raise WeightsError(
            f"no such layer: {bad[0]!r} in {text!r}",
            advice="After the # stand paths of modules inside the network, with commas between "
            "several; a path ends in :cls for the class token. "
            f"Run 'embedcache doctor --layers {body}' for a list",
        )
    return body, tuple(dict.fromkeys(layers))


def refuse_crop(name: Name) -> None:
    """WeightsError for a name that ends in @ and a word that is no choice of a face.

    A path may hold an @, and so does the revision of a model on the hub: such a word is refused
    only where nothing is there, and where it resembles a choice or cannot be anything else.
    """
    body, at, word = name.where.rpartition("@")
    crops = {crop.replace("-", ""): crop for crop in CROPS}
    close = get_close_matches(re.sub(r"[\W_]", "", word.lower()), crops, 1)
    if not at or "/" in word or (name._is_path and Path(name.where).expanduser().exists()):
        return
    if not close and (name.source == "hf-hub" or "." in word):
        return
    meant = replace(name, where=body, select=CROPS[crops[close[0]]])._written(body) if close else ""
    raise WeightsError(
        f"no such choice of a face: '@{word}'",
        asked=name._written(name.where),
        advice=(f"Did you mean {meant}? " if meant else "")
        + "End the name in @face for the crop of the only face, or in @largest-face or "
        "@central-face to choose one of several. Without an @ facenet crops the only face, and "
        "other networks see the whole photo",
    )


def resolved(name: str, folder: Path) -> str:
    """The name with a relative path read as lying in `folder`, such as a study file's."""
    asked = Name.parse(name)
    if not asked._is_path or Path(asked.where).is_absolute():
        return name
    return asked._written(str(folder / asked.where))
