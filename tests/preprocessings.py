"""How a photo becomes a network's input, for tests that need one and not which."""

from embedcache.spec import Preprocessing

INCEPTION = Preprocessing(
    size=(299, 299),
    resize="shortest",
    crop_fraction=0.875,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    decode="x",
)
