"""The house's order: who may import whom, what the public names are, what every command says."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "timm", "facenet_pytorch", "torchvision", "sklearn", "matplotlib")


def modules_after(code: str) -> set[str]:
    """The top-level modules that are loaded once `code` has run in a fresh interpreter."""
    script = f"import sys\n{code}\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers(prefix: str) -> set[str]:
    files = [*ROOT.glob("embedcache/**/*.py"), *ROOT.glob("heads/**/*.py"), ROOT / "cli.py"]
    return {
        str(path.relative_to(ROOT))
        for path in files
        if any(name == prefix or name.startswith(prefix + ".") for name in imports_of(path))
    }


def test_help_loads_nothing_heavy() -> None:
    code = "import cli\ntry:\n    cli.app(['--help'])\nexcept SystemExit:\n    pass"
    assert not modules_after(code) & {*HEAVY, "numpy", "polars", "zarr"}


def test_info_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "from embedcache.store import Cache\n"
        f"Cache.open({str(tmp_path / 'c')!r}, create=True)\n"
        f"import cli\ntry:\n    cli.app(['info', {str(tmp_path / 'c')!r}])\n"
        "except SystemExit:\n    pass"
    )
    assert not modules_after(code) & {*HEAVY, "polars"}


def test_importing_the_packages_loads_no_torch() -> None:
    assert not modules_after("import embedcache, heads") & set(HEAVY)


@pytest.mark.parametrize("command", ["--help", "extract --help", "fit-head --help"])
def test_help_answers_at_once(command: str) -> None:
    seconds = []
    for _ in range(3):
        start = time.process_time(), time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "cli", *command.split()],
            check=True,
            capture_output=True,
            cwd=ROOT,
        )
        seconds.append(time.monotonic() - start[1])
    assert min(seconds) < 2  # 0.25 s alone; the bound leaves room for a crowded machine


def test_arrows_point_down_only() -> None:
    assert {path for path in importers("heads") if path.startswith("embedcache/")} == set()
    assert importers("cli") == set()
    first_floor = {
        "embedcache.store",
        "embedcache.photos.table",
        "embedcache.spec",
        "embedcache.errors",
    }
    assert len([*ROOT.glob("heads/**/*.py")]) > 25
    for path in ROOT.glob("heads/**/*.py"):
        seen = {n for n in imports_of(path) if n.startswith("embedcache.")}
        allowed = {n for n in seen if any(n == m or n.startswith(m + ".") for m in first_floor)}
        assert seen == allowed, path.name


def test_each_outside_library_has_one_home() -> None:
    assert importers("timm") <= {"embedcache/backbones.py", "embedcache/weights.py"}
    faces = {"embedcache/backbones.py", "embedcache/faces.py", "embedcache/mtcnn.py"}
    assert importers("facenet_pytorch") <= faces
    assert importers("pickle") == set()
    assert importers("zarr") <= set()


def test_the_public_names_are_these() -> None:
    import embedcache
    import heads

    assert embedcache.__all__ == ["Cache", "Photos", "extract"]
    assert heads.__all__ == ["Fit", "Head", "fit", "load"]
    assert callable(embedcache.extract)
    assert embedcache.extract is embedcache.extract
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = embedcache.nonsense
