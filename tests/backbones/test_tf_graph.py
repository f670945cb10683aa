"""Frozen TensorFlow graphs: their weights are read, and nothing that a file claims is believed."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from embedcache.backbones.tf_graph import constants
from embedcache.errors import WeightsError
from tests.graphs import field, graph, node, number, tensor


def read(tmp_path: Path, data: bytes) -> dict[str, npt.NDArray[np.float32]]:
    path = tmp_path / "graph.pb"
    path.write_bytes(data)
    return dict(constants(path))


def test_constants_are_read_in_the_graphs_own_layout(tmp_path: Path) -> None:
    kernel = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    found = read(
        tmp_path,
        graph(
            node("input", "Placeholder"),
            node("a/weights", "Const", tensor(kernel)),
            node("a/offset", "Const", tensor(np.arange(1, 4, dtype=np.float32), packed=False)),
            node("a", "Conv2D"),
        ),
    )
    assert list(found) == ["a/weights", "a/offset"]
    np.testing.assert_array_equal(found["a/weights"], kernel)
    np.testing.assert_array_equal(found["a/offset"], [1, 2, 3])


def test_one_value_stands_for_a_whole_tensor(tmp_path: Path) -> None:
    ones = tensor(np.ones(1, np.float32), shape=(512,), packed=False)
    found = read(tmp_path, graph(node("gamma", "Const", ones)))
    np.testing.assert_array_equal(found["gamma"], np.ones(512))


def test_constants_of_other_types_are_left_out(tmp_path: Path) -> None:
    kept = node("kept", "Const", tensor(np.zeros(2, np.float32)))
    other = node("axis", "Const", tensor(np.zeros(2, np.float32), dtype=3))
    assert list(read(tmp_path, graph(other, kept))) == ["kept"]


HUGE = (1 << 20, 1 << 20, 1 << 20)
WHOLE = graph(node("a", "Const", tensor(np.arange(64, dtype=np.float32))))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a graph",
        b"\xff" * 64,
        WHOLE[:-1],
        WHOLE[: len(WHOLE) // 2],
        graph(b""),  # no node
        graph(node("a", "Const", tensor(np.zeros(1, np.float32), shape=HUGE))),
        graph(node("a", "Const", tensor(np.zeros(1, np.float32), shape=HUGE, packed=False))),
        graph(node("a", "Const", tensor(np.zeros(5, np.float32), shape=(2, 2)))),
        graph(node("a", "Const", tensor(np.zeros(1, np.float32), shape=(1,) * 9))),
        number(1 << 3 | 2) + number(1 << 60) + b"x",  # a node of 2**60 bytes
        number(1 << 3 | 3),  # a wire type that no graph has
        field(1, field(1, b"\xff\xfe") + field(2, b"Const")),
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_a_file_that_is_no_whole_graph_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(WeightsError, match=r"graph\.pb"):
        read(tmp_path, data)
