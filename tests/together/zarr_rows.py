"""Rows of a segment by plain zarr-python, in a process of its own: zarr starts threads.

python -m tests.together.zarr_rows      a folder in, {digest: row} as JSON out
"""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

Rows = dict[bytes, bytes]
"""{content digest: the row's bytes, little-endian float32}, of the good rows of a segment."""


class ZarrRows:
    """Asks the reading process, once for each content of a segment."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._known: dict[bytes, Rows | str] = {}

    def read(self, folder: Path) -> Rows:
        """The good rows of a segment; ValueError says why zarr cannot read it."""
        running = sha256()
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != "manifest.json":
                running.update(f"\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
        n_ok = json.loads((folder / "manifest.json").read_bytes())["ok"]
        key = running.digest() + n_ok.to_bytes(8, "little")
        if key not in self._known:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(f"{n_ok} {folder}\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            if isinstance(answer, str):
                self._known[key] = answer
            else:
                self._known[key] = {
                    bytes.fromhex(digest): bytes.fromhex(row) for digest, row in answer.items()
                }
        found = self._known[key]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait(20)


def _answer(line: str) -> dict[str, str] | str:
    import zarr

    n_ok, _, folder = line.rstrip("\n").partition(" ")
    try:
        group = zarr.open_group(folder, mode="r")
        n = int(n_ok)
        digests = group["digest"][:n]
        if "embedding" not in group:
            return {row.tobytes().hex(): "" for row in digests}
        vectors = group["embedding"][:n].astype("<f4")
        return {
            digest.tobytes().hex(): vector.tobytes().hex()
            for digest, vector in zip(digests, vectors, strict=True)
        }
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    for asked in sys.stdin:
        print(json.dumps(_answer(asked)), flush=True)
