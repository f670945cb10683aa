"""torch's compiler, imported only by whom it serves.

timm and facenet-pytorch import torchvision, one of whose operators, which no network here has, asks
`torch._dynamo` at its top for a function that it calls at its first use. That alone imports 1,000
modules: a second of the two and a half that a run waits for its imports (docs/decisions/110).

    with without_compiler():
        import timm

Only in a process that runs a command: where embedcache is a library, other threads may be importing
or using the compiler at that moment, and would meet what stands in its place.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
_process = {"is ours": False, "ends at once": False}


def own_process() -> None:
    """To be called where a command begins: nobody else's code runs in this process."""
    _process["is ours"] = True


def is_own_process() -> bool:
    """Whether `own_process` was called."""
    return _process["is ours"]


def end_at_once() -> None:
    """Let the command end without Python's own end, which crashes beside a thread that hangs in a
    library."""
    _process["ends at once"] = True


def ends_at_once() -> bool:
    """Whether `end_at_once` was called."""
    return _process["ends at once"]


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within the block, what others take from `torch._dynamo` by name is looked up once it is used.

    To call it, or to ask for its attributes, imports the compiler after all; to decorate a function
    by its `disable` waits until that is called. Nothing is put off in a process that is not our own
    or has imported the compiler before, and after the block its import is a plain one again.
    """
    if COMPILER in sys.modules or not _process["is ours"]:
        yield
        return
    sys.meta_path.insert(0, _FINDER)
    try:
        yield
    finally:
        _withdraw()


class _Later:
    """A name of a module that has not been imported yet."""

    def __init__(self, module: str, name: str) -> None:
        self.__dict__.update(_module=module, _name=name)

    def _real(self) -> Any:
        _withdraw()
        return getattr(importlib.import_module(self._module), self._name)

    def __call__(self, *values: Any, **named: Any) -> Any:
        if self._name == "disable" and _FINDER in sys.meta_path and values and callable(values[0]):
            return _disabled_later(self._real, *values, **named)
        return self._real()(*values, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real(), name, value)


def _disabled_later(
    disable: Callable[[], Any], function: Callable[..., Any], *options: Any, **named: Any
) -> Callable[..., Any]:
    """What `torch.compiler.disable` as a decorator makes of a function, at its first call."""
    made = functools.cache(lambda: disable()(function, *options, **named))

    @functools.wraps(function)
    def disabled(*values: Any, **others: Any) -> Any:
        return made()(*values, **others)

    return disabled


class _Placeholder(ModuleType):
    """Stands in the place of a module of the compiler."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(self.__name__, name)


class _Finder(MetaPathFinder, Loader):
    """Finds the compiler's modules before Python does; they do nothing."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == COMPILER or name.startswith(f"{COMPILER}."):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


_FINDER = _Finder()


def _withdraw() -> None:
    """Let the next import of the compiler be the real one."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
    for name, module in [*sys.modules.items()]:
        if isinstance(module, _Placeholder):
            del sys.modules[name]
            parent, _, last = name.rpartition(".")
            if isinstance(vars(sys.modules.get(parent, module)).get(last), _Placeholder):
                delattr(sys.modules[parent], last)
