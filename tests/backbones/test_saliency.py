"""What moved a score lies where the score comes from, adds up to it, and depends on the weights."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from embedcache.backbones.forward import Network
from embedcache.backbones.loading import Backbone
from embedcache.backbones.saliency import placed, saliency
from embedcache.backbones.taps import Taps
from embedcache.spec import PooledLayer, Preprocessing, Spec
from heads.saliency import strength

SIZE, PATCH = 64, 16
U8 = NDArray[np.uint8]
GIVEN = Preprocessing(
    size=(SIZE, SIZE),
    resize="squash",
    crop_fraction=1.0,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    decode="images-1-full",
)


def photo(seed: int, *, patch: bool) -> tuple[U8, NDArray[np.bool_]]:
    """A soft random photo, with a patch of red and white squares or without; where the patch is."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 200, (6, 6, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    top, left = rng.integers(0, SIZE - PATCH, 2)
    place = np.zeros((SIZE, SIZE), bool)
    place[top : top + PATCH, left : left + PATCH] = True
    if patch:
        squares = (np.add.outer(np.arange(PATCH) // 4, np.arange(PATCH) // 4) % 2)[..., None]
        drawn = np.where(squares, (230, 30, 30), (240, 240, 240)).astype(np.uint8)
        pixels[place] = drawn.reshape(-1, 3)
    return pixels, place


def as_input(pixels: U8) -> torch.Tensor:
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 12, 5, stride=2, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(12, 12, 3, padding=1),
        torch.nn.ReLU(inplace=True),
        torch.nn.AdaptiveMaxPool2d(1),
        torch.nn.Flatten(),
    )


@pytest.fixture(scope="module")
def trained() -> tuple[torch.nn.Sequential, torch.nn.Linear]:
    """A small network and a head that tell photos with a patch from photos without."""
    model, head = network(), torch.nn.Linear(12, 1)
    photos = np.stack([photo(k, patch=k % 2 == 0)[0] for k in range(256)])
    given, label = as_input(photos), (torch.arange(256) % 2 == 0).float()
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=0.01)
    for step in range(60):
        at = torch.arange(64) + 64 * (step % 4)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            head(model(given[at]))[:, 0], label[at]
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    right = ((head(model(given))[:, 0] > 0) == (label > 0)).float().mean()
    assert right > 0.97
    model.eval().requires_grad_(False)
    head.requires_grad_(False)
    return model, head


def found_in(
    model: torch.nn.Module, head: torch.nn.Module, pixels: U8, samples: int = 24
) -> NDArray[np.float32]:
    return saliency([seeing(model)], {0: pixels}, lambda v: head(v)[:, 0], samples=samples)


def seeing(model: torch.nn.Module, given: Preprocessing = GIVEN) -> Backbone:
    """A backbone of a model, as far as a picture needs one."""
    built = Network(lanes=(), module=model)
    dim = model(torch.zeros(1, 3, *given.size)).shape[1]
    spec = Spec(kind="computed", architecture="net", dim=dim, weights="a" * 64, preprocessing=given)
    return Backbone(name="net", place="", spec=spec, open=lambda: built)


def shares_of(of_patch: Callable[[U8], NDArray[np.floating[Any]]]) -> list[float]:
    """The share of the mass that lies on the patch, of some photos that nothing was trained on."""
    shares = []
    for seed in range(1000, 1010):
        pixels, place = photo(seed, patch=True)
        mass = of_patch(pixels)
        shares.append(float(mass[place].sum() / mass.sum()))
    return shares


def test_the_mass_lies_on_the_patch_where_nothing_else_can_move_the_score() -> None:
    model = of_red()
    shares = shares_of(lambda pixels: np.abs(found_in(model, torch.nn.Identity(), pixels)))
    assert min(shares) >= 0.8, shares
    shares = shares_of(lambda pixels: strength(found_in(model, torch.nn.Identity(), pixels)))
    assert min(shares) >= 0.8, shares


def test_the_picture_of_a_trained_network_lies_on_the_patch_that_decides(
    trained: tuple[torch.nn.Sequential, torch.nn.Linear],
) -> None:
    shares = shares_of(lambda pixels: strength(found_in(*trained, pixels)))
    assert min(shares) >= 0.8, shares


def test_a_photo_without_a_patch_has_its_mass_elsewhere(
    trained: tuple[torch.nn.Sequential, torch.nn.Linear],
) -> None:
    for seed in range(1000, 1004):
        pixels, place = photo(seed, patch=False)
        mass = strength(found_in(*trained, pixels))
        assert mass[place].sum() / mass.sum() < 0.4


def test_random_weights_give_another_picture(
    trained: tuple[torch.nn.Sequential, torch.nn.Linear],
) -> None:
    model, head = trained
    pixels, _ = photo(1002, patch=True)
    real = found_in(model, head, pixels).ravel()
    alike = []
    for seed in range(6):
        other = copy.deepcopy(model)
        torch.manual_seed(seed)
        for part in other:
            if isinstance(part, torch.nn.Conv2d):
                part.reset_parameters()
        other.requires_grad_(False)
        alike.append(float(np.corrcoef(real, found_in(other, head, pixels).ravel())[0, 1]))
    assert max(map(abs, alike)) < 0.5, alike
    again = found_in(model, head, pixels, 96).ravel()
    assert np.corrcoef(real, again)[0, 1] > 0.9  # what another draw of baselines changes


def test_the_pixels_add_up_to_the_score_less_that_of_the_baselines(
    trained: tuple[torch.nn.Sequential, torch.nn.Linear],
) -> None:
    """So whatever raised the score is somewhere on the picture."""
    model, head = trained
    pixels, _ = photo(1003, patch=True)
    whole = float(head(model(as_input(pixels[None])))[0, 0])
    few, many = (float(found_in(model, head, pixels, n).sum()) for n in (24, 960))
    plain = float(head(model(as_input(photo(1003, patch=False)[0][None])))[0, 0])
    assert 0.7 * (whole - plain) < many < 1.5 * (whole - plain)
    assert abs(few - many) < 0.3 * abs(many)


def of_red() -> torch.nn.Sequential:
    """A network of red: only the patch is red enough to fire it."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )
    kernel, bias = torch.zeros(8, 3, 3, 3), torch.zeros(8)
    kernel[0] = torch.tensor([1.0, -0.5, -0.5])[:, None, None] / 9
    bias[0] = -1.35  # redder than any of the other pixels
    model.load_state_dict({"0.weight": kernel, "0.bias": bias})
    return model.requires_grad_(False)


def sized(pixels: U8, size: int) -> U8:
    small = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small)


def layers_of(
    model: torch.nn.Module, paths: list[str], given: Preprocessing = GIVEN, *, whole: bool
) -> list[Backbone]:
    """Layers of a model, as maps, and its own output before them; one pass for all."""
    layers = [PooledLayer(path=path, pooling="avg_nchw") for path in paths]
    own = seeing(model, given)
    network = Network(lanes=(), module=Taps(copy.deepcopy(model), layers, whole=whole))
    open_ = lambda: network  # noqa: E731
    found = [replace(own, open=open_)] if whole else []
    first = own.spec.dim if whole else 0
    outputs = dict(model.named_modules())
    for layer in layers:
        conv = outputs[layer.path]
        assert isinstance(conv, torch.nn.Conv2d)
        spec = replace(own.spec, dim=conv.out_channels, layer=layer)
        found.append(replace(own, spec=spec, open=open_, first=first))
        first += spec.dim
    return found


def test_the_picture_of_two_networks_and_a_layer_lies_on_the_patch(
    trained: tuple[torch.nn.Sequential, torch.nn.Linear],
) -> None:
    """A network with a layer inside of it, and another of another size between the two."""
    model, head = trained
    own, layer = layers_of(model, ["2"], whole=True)
    other = seeing(of_red(), replace(GIVEN, size=(96, 96)))
    backbones = [own, other, layer]

    def score(vectors: torch.Tensor) -> torch.Tensor:
        assert vectors.shape[1] == 12 + 8 + 12
        of_patch: torch.Tensor = head(vectors[:, :12])[:, 0]
        return of_patch + 1000 * vectors[:, 12]

    def shown(pixels: U8) -> NDArray[np.float32]:
        found = saliency(backbones, {0: pixels, 1: sized(pixels, 96)}, score)
        assert found.shape == (96, 96)
        return np.asarray(sized((255 * strength(found)).astype(np.uint8), SIZE))

    shares = shares_of(shown)
    assert min(shares) >= 0.8, shares


@pytest.mark.parametrize("whole", [True, False])
def test_the_picture_of_layers_lies_on_the_patch(whole: bool) -> None:
    """What fires in a layer is followed to the pixels, from one pass for all of them."""
    last = torch.nn.Conv2d(8, 4, 3)
    with torch.no_grad():
        last.weight.zero_()
        last.weight[0, 0] = 1.0
    model = torch.nn.Sequential(of_red()[0], torch.nn.ReLU(inplace=True), last)
    full = torch.nn.Sequential(*model, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    backbones = layers_of(full.requires_grad_(False), ["2"], whole=whole)
    first = 4 if whole else 0
    shares = shares_of(
        lambda pixels: strength(saliency(backbones, {0: pixels}, lambda v: v[:, first]))
    )
    assert min(shares) >= 0.8, shares


def test_a_narrower_view_lies_in_the_middle_of_the_wider_one() -> None:
    pixels, _ = photo(1005, patch=False)
    narrow = np.ascontiguousarray(pixels[16:48, 16:48])
    narrow[12:20, 12:20] = (240, 20, 20)
    pixels = pixels.copy()
    pixels[16:48, 16:48] = narrow
    middle = replace(GIVEN, size=(32, 32), crop_fraction=0.5, resize="shortest")
    backbones = [seeing(of_red(), replace(GIVEN, resize="shortest")), seeing(of_red(), middle)]
    score = lambda v: v[:, 8]  # noqa: E731  # of the narrower view alone
    found = saliency(backbones, {0: pixels, 1: narrow}, score)
    assert found.shape == (SIZE, SIZE)
    mass = np.abs(found)
    assert mass[28:36, 28:36].sum() > 0.8 * mass.sum()
    alone = saliency(backbones[1:], {0: narrow}, lambda v: v[:, 0])
    np.testing.assert_allclose(found[16:48, 16:48], alone, atol=1e-7)


def test_what_moved_a_score_keeps_its_sum_in_another_size() -> None:
    found = torch.rand(31, 40, generator=torch.Generator().manual_seed(0)) - 0.2
    for size, share in (((62, 80), 1.0), ((96, 96), 1.0), ((96, 96), 0.875), ((20, 24), 1.0)):
        drawn = placed(found, size, share=share)
        assert drawn.shape == size
        assert float(drawn.sum()) == pytest.approx(float(found.sum()), rel=0.02)


def test_several_networks_add_up_to_the_score_as_one_does(
    trained: tuple[torch.nn.Sequential, torch.nn.Linear],
) -> None:
    model, head = trained
    pixels, _ = photo(1003, patch=True)
    backbones = [seeing(model), seeing(of_red())]
    halves = saliency(backbones, {0: pixels, 1: pixels}, lambda v: head(v[:, :12])[:, 0])
    np.testing.assert_allclose(halves, found_in(model, head, pixels), atol=1e-6)


def test_the_same_photo_gives_the_same_picture(
    trained: tuple[torch.nn.Sequential, torch.nn.Linear],
) -> None:
    pixels, _ = photo(1004, patch=True)
    assert found_in(*trained, pixels).tobytes() == found_in(*trained, pixels).tobytes()
