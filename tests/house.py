"""The house as its files' syntax trees show it: who imports whom, and what that may not be.

    faults(root)    every arrow up, circle, private name and unread file below `root`, as sentences

Nothing is imported to find out: an import inside a function counts like one at the top.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

# Bottom up. A file may import what stands on a lower floor, and its own room; rooms of one floor
# know nothing of each other, but for the ground floor of each stage, whose files are loose.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "embedcache.errors",
        "embedcache.spec",
        "embedcache.deferred",
        "embedcache.disk",
        "embedcache.locks",
        "embedcache.machine",
        "embedcache.tables",
        "embedcache.texts",
        "embedcache.wording",
    ),
    ("embedcache.photos", "embedcache.store", "embedcache.remotes"),
    ("embedcache.faces", "embedcache.upkeep", "embedcache.settings"),
    ("embedcache.backbones", "embedcache.sharing"),
    ("embedcache.extraction",),
    ("embedcache.alike", "embedcache.display", "embedcache.doctor", "embedcache.example"),
    ("embedcache.commands",),
    ("heads.documents", "heads.head", "heads.labels", "heads.outputs"),
    ("heads.dataset", "heads.folders"),
    ("heads.fitting", "heads.saved"),
    ("heads.comparison", "heads.predict", "heads.saliency", "heads.taste"),
    ("heads.study",),
    ("cli",),
)
LOOSE = {0, 9}  # on these floors files may import each other across rooms
# `heads` is a house of its own: of stage one it takes these rooms only.
GROUND_OF_HEADS = (
    "embedcache.errors",
    "embedcache.spec",
    "embedcache.disk",
    "embedcache.locks",
    "embedcache.tables",
    "embedcache.machine",
    "embedcache.wording",
    "embedcache.photos",
    "embedcache.store",
)
FACES = {"embedcache", "heads"}  # their `__init__` hands on names of any room


def files_of(root: Path) -> dict[str, Path]:
    """Every module of the product below `root`, by its dotted name."""
    files = [*root.glob("embedcache/**/*.py"), *root.glob("heads/**/*.py"), root / "cli.py"]
    return {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted(files)
        if file.exists()
    }


def imports_of(file: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in `file`; the name is "" where a module is imported."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), a.name) for a in node.names)


def graph_of(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which modules each module imports, of those in `files`."""
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        found = set()
        for source, name in imports_of(file):
            whole = f"{source}.{name}"
            found.add(whole if name and whole in files else source)
        graph[module] = {one for one in found if one in files and one != module}
    return graph


def room_of(module: str) -> str:
    """The room that a module stands in, or itself where it stands in none."""
    return ".".join(module.split(".")[:2])


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Every circle that a walk over `graph` meets, each as the modules along it."""
    found, state, path = [], dict[str, int](), list[str]()

    def visit(module: str) -> None:
        state[module] = 1
        path.append(module)
        for other in sorted(graph[module]):
            if state.get(other) == 1:
                found.append([*path[path.index(other) :], other])
            elif other not in state:
                visit(other)
        path.pop()
        state[module] = 2

    for module in sorted(graph):
        if module not in state:
            visit(module)
    return found


def longest_chain(graph: Mapping[str, set[str]]) -> list[str]:
    """The longest way down from one module to another; `graph` holds no circle."""
    best: dict[str, list[str]] = {}

    def down(module: str) -> list[str]:
        if module not in best:
            best[module] = [module, *max((down(o) for o in graph[module]), key=len, default=[])]
        return best[module]

    return max((down(module) for module in graph), key=len)


def faults(root: Path) -> list[str]:
    """What is wrong with the house below `root`, a sentence each; sorted."""
    files = files_of(root)
    graph = graph_of(files)
    inner = {m: set() if files[m].name == "__init__.py" else graph[m] for m in graph}
    found = [f"circle: {' -> '.join(circle)}" for circle in circles(inner)]
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    for module in files:
        if room_of(module) not in floor_of and module not in FACES | {"embedcache.__main__"}:
            found.append(f"unread: {module} stands on no floor")
    listed = {path.resolve() for path in files.values()}
    for path in root.rglob("*.py"):
        package = path.relative_to(root).parts[0] in ("embedcache", "heads")
        if package and path.resolve() not in listed:
            found.append(f"unread: {path.relative_to(root)}")
    for module, others in graph.items():
        found += [
            f"up: {module} imports {other}"
            for other in others
            if not _may(module, other, floor_of=floor_of)
        ]
    for module, file in files.items():
        for source, name in imports_of(file):
            if source.startswith("."):
                found.append(f"relative: {module} imports from {source}")
            private = name.startswith("_") and not name.startswith("__")
            if private and source in files and source != module:
                found.append(f"private: {module} imports {source}.{name}")
    found += [*_private_attributes(files), *_unlisted(files, graph)]
    return sorted(found)


def face_of(file: Path) -> list[str]:
    """The names in a room's `__all__`; empty where it has none."""
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _unlisted(files: Mapping[str, Path], graph: Mapping[str, set[str]]) -> Iterator[str]:
    """Modules that another room imports and their own room's face does not name."""
    for module, others in graph.items():
        for other in others:
            room = room_of(other)
            inside = other.removeprefix(f"{room}.")
            if other == room or room_of(module) == room or module in FACES:
                continue
            if inside not in face_of(files[room]):
                yield f"unlisted: {module} imports {other}, which {room} does not name"


def _may(module: str, other: str, *, floor_of: Mapping[str, int]) -> bool:
    """Whether `module` may import `other`."""
    mine, theirs = room_of(module), room_of(other)
    if mine == theirs or module in FACES or module == "embedcache.__main__":
        return True
    if other in FACES:
        return mine.startswith(other) or mine == "cli"
    if mine not in floor_of or theirs not in floor_of:
        return False
    if mine.startswith("heads") and theirs.startswith("embedcache"):
        return theirs in GROUND_OF_HEADS
    below = floor_of[theirs] < floor_of[mine]
    return below or (floor_of[mine] == floor_of[theirs] and floor_of[mine] in LOOSE)


def _private_attributes(files: Mapping[str, Path]) -> list[str]:
    """`module._name` where `module` is one of ours: a private name reached by another way."""
    found = []
    for module, file in files.items():
        tree = ast.parse(file.read_text("utf-8"))
        bound = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if f"{node.module}.{alias.name}" in files:
                        bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in bound
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            ):
                found.append(f"private: {module} uses {bound[node.value.id]}.{node.attr}")
    return found
