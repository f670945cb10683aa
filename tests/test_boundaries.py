"""The house's order: who may import whom, what the public names are, what every command says."""

import ast
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "timm", "facenet_pytorch", "torchvision", "sklearn", "matplotlib")


def modules_after(code: str) -> set[str]:
    """The top-level modules that are loaded once `code` has run in a fresh interpreter."""
    script = f"import sys\n{code}\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


def importers(prefix: str) -> set[str]:
    """The files that import the module `prefix` or something below it."""
    return {
        str(file.relative_to(ROOT))
        for file in house.files_of(ROOT).values()
        if any(f"{name}.".startswith(f"{prefix}.") for name, _ in house.imports_of(file))
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
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "cli", *command.split()],
            check=True,
            capture_output=True,
            cwd=ROOT,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.4  # of a processor: 0.1 to 0.2 on a quiet machine


def test_the_house_is_in_order() -> None:
    assert len(house.files_of(ROOT)) > 90
    assert house.faults(ROOT) == []


# name -> path, text, the beginning of the sentence that finds it
WRONG = {
    "an arrow up": ("store/a.py", "import embedcache.commands", "up: embedcache.store.a"),
    "an arrow up in a function": (
        "store/a.py",
        "def f():\n    from embedcache.sharing import b",
        "up: embedcache.store.a",
    ),
    "a neighbour": ("photos/a.py", "import embedcache.store.b", "up: embedcache.photos.a"),
    "stage one knows stage two": ("spec.py", "import heads.head", "up: embedcache.spec"),
    "stage two reaches too far": (
        "../heads/head.py",
        "from embedcache.backbones import b",
        "up: heads.head",
    ),
    "a circle": (
        "store/b.py",
        "def f():\n    from embedcache.store.c import g",
        "circle: embedcache.store.b -> embedcache.store.c",
    ),
    "a private name": (
        "store/a.py",
        "from embedcache.store.b import _x",
        "private: embedcache.store.a",
    ),
    "a private name of a module": (
        "store/a.py",
        "from embedcache.store import b\nb._x()",
        "private: embedcache.store.a",
    ),
    "a file on no floor": ("utils.py", "", "unread: embedcache.utils"),
    "a module that its room does not name": (
        "upkeep/a.py",
        "from embedcache.store import c",
        "unlisted: embedcache.upkeep.a",
    ),
    "a relative import": ("store/a.py", "from . import b", "relative: embedcache.store.a"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_tree_is_found_out(tmp_path: Path, name: str) -> None:
    wrong, code, fault = WRONG[name]
    rooms = {"store": "b", "sharing": "b", "photos": "a", "upkeep": "a", "backbones": "b"}
    plain = {
        "embedcache/__init__.py": "",
        "embedcache/commands.py": "",
        "embedcache/spec.py": "",
        "embedcache/store/c.py": "from embedcache.store import b",
        "heads/__init__.py": "",
        "heads/head.py": "",
        "cli.py": "import embedcache.commands",
    }
    for room, module in rooms.items():
        plain[f"embedcache/{room}/__init__.py"] = f"__all__ = ['{module}']"
        plain[f"embedcache/{room}/{module}.py"] = ""
    for path, text in plain.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert house.faults(tmp_path) == []
    (tmp_path / "embedcache" / wrong).write_text(code)
    assert any(found.startswith(fault) for found in house.faults(tmp_path)), house.faults(tmp_path)


def test_every_room_says_what_it_owns() -> None:
    for module, file in house.files_of(ROOT).items():
        if file.name != "__init__.py":
            continue
        tree = ast.parse(file.read_text("utf-8"))
        assert ast.get_docstring(tree), module
        bound = {name for _, name in house.imports_of(file)}
        for name in house.face_of(file):
            assert name in bound or (file.parent / f"{name}.py").exists(), f"{module}: {name}"


def test_each_outside_library_has_one_home() -> None:
    networks, facenet = (f"embedcache/backbones/{name}.py" for name in ("timm_networks", "facenet"))
    assert importers("timm") <= {networks, "embedcache/example.py"}
    assert importers("facenet_pytorch") <= {facenet, "embedcache/faces/networks.py"}
    assert importers("pickle") == set()
    assert importers("zarr") <= {"embedcache/store/zarr_view.py"}


def test_the_public_names_are_these() -> None:
    import embedcache
    import heads

    assert embedcache.__all__ == ["Cache", "Photos", "extract"]
    assert heads.__all__ == ["Fit", "Head", "compare", "fit", "load", "load_taste", "save"]
    assert callable(embedcache.extract)
    assert embedcache.extract is embedcache.extract
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = embedcache.nonsense


def sentences(file: Path) -> list[str]:
    """The strings of a module that are no docstrings, a formatted one whole."""
    tree = ast.parse(file.read_text("utf-8"))
    seen = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            seen |= {id(part) for part in node.values}
            parts = [part.value if isinstance(part, ast.Constant) else "" for part in node.values]
            found.append("".join(map(str, parts)))
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in seen
        ):
            found.append(node.value)
    return found


def test_the_library_names_parameters_and_no_options_of_commands() -> None:
    """A Python caller and a study.toml have `id_column`: `commands.options.as_typed` makes of it
    --id-column. Whole commands (in advice, and on a study's page) have options."""
    whole = re.compile(r"'?(embedcache|pip|curl|ray) [^']*'?")
    for module, file in house.files_of(ROOT).items():
        if not module.startswith(("cli", "embedcache.commands", "heads.study.report")):
            for text in sentences(file):
                assert not re.search(r"(?<![\w-])--[a-z]", whole.sub("", text)), f"{module}: {text}"


def test_no_photo_vector_or_weight_is_committed() -> None:
    """A cache that a command made in the checkout, or a file of a user, is not the project's."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True, cwd=ROOT)
    names = [Path(name) for name in listed.stdout.decode().split("\0") if name]
    places = {"tests/golden", "examples", "docs", "data", "embedcache"}
    assert not [name for name in names if name.parts[0].startswith("-")]
    data = [
        name
        for name in names
        if name.name in ("zarr.json", "manifest.json")
        or name.suffix in (".npy", ".npz", ".safetensors", ".jpg", ".jpeg", ".png", ".pt", ".onnx")
    ]
    assert not [name for name in data if not any(name.is_relative_to(p) for p in places)]


def test_benchmarks_take_words_by_name_and_none_for_a_path() -> None:
    """`--help` was once taken for the path of a cache, which was then filled and committed."""
    for file in (ROOT / "benchmarks").glob("*.py"):
        tree = ast.parse(file.read_text())
        main = next((one for one in tree.body if getattr(one, "name", "") == "main"), None)
        said = {ast.unparse(one) for one in ast.walk(main or ast.Pass())}
        assert not {"sys.argv"} & said, f"{file.name} reads sys.argv itself"
