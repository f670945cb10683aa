"""The layers of a network as a list that prints itself, for `embedcache doctor --layers NAME`.

No weights are needed: the network is made without numbers, on torch's meta device.
"""

from dataclasses import dataclass
from pathlib import Path

from embedcache.backbones import facenet, timm_names, timm_networks
from embedcache.backbones.layers import ListedLayer, listed
from embedcache.backbones.names import Name, refuse_crop
from embedcache.spec import Json
from embedcache.wording import columns, counted


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerList:
    """The layers that `NAME#LAYER` takes, in the order in which the network runs them.

    backbone: the name as it was given, without layers.  size: height and width of the input.
    pooling: how the network's own output becomes a vector, in words.
    """

    backbone: str
    size: tuple[int, int]
    pooling: str
    layers: tuple[ListedLayer, ...]

    def document(self) -> dict[str, Json]:
        return {
            "backbone": self.backbone,
            "size": list(self.size),
            "pooling": self.pooling or None,
            "layers": [
                {
                    "layer": one.layer.path,
                    "shape": list(one.shape),
                    "dim": one.dim,
                    "pooling": one.layer.pooling,
                    "prefix_tokens": one.layer.prefix_tokens,
                }
                for one in self.layers
            ],
        }

    def __str__(self) -> str:
        height, width = self.size
        rows = [["layer", "output of one photo", "vector", "pooled by"]]
        for one in (shown := self._blocks()):
            shape = " x ".join(map(str, one.shape))
            rows.append([one.layer.path, shape, f"{one.dim:,}-d", str(one.layer)])
        inside = len(self.layers) - len(shown)
        command = f"'embedcache doctor --layers {self.backbone} --json'"
        more = [f"and {inside:,} inside these blocks: {command} lists all"] if inside else []
        return "\n".join(
            [
                f"{self.backbone}: {counted(len(self.layers), 'layer')}, input {height} x {width}",
                f"without a layer: {self.pooling or 'its own output'}",
                *columns(rows),
                *more,
            ]
        )

    def _blocks(self) -> list[ListedLayer]:
        """The layers that people choose from: at the top of the network, or made of others."""
        paths = [one.layer.path for one in self.layers]
        blocks = {path[:place] for path in paths for place, c in enumerate(path) if c == "."}
        return [
            one
            for one, path in zip(self.layers, paths, strict=True)
            if "." not in path or path in blocks
        ]


def list_layers(name: str) -> LayerList:
    """The layers of a backbone. WeightsError for a name that stands for no network."""
    asked = Name.parse(name).network
    refuse_crop(asked)
    if asked.source == "facenet":
        model, size, pooling = facenet.without_weights(), facenet.SIZE, facenet.POOLING
    else:
        if asked.source == "local-dir":
            timm_networks.refuse_no_folder(Path(asked.where))
        else:
            timm_names.refuse_unknown(asked)
        model, size = timm_networks.without_weights(asked)
        pooling = timm_networks.pooling_of(model)
    return LayerList(
        backbone=asked.place, size=size, pooling=pooling, layers=tuple(listed(model, size))
    )
