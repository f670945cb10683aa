"""`embedcache` and `python -m embedcache`: runs the command line, wherever a `cli` of others lies.

In a checkout the command line is `cli.py` beside this package; an installed wheel holds the same
file inside it, so that no top-level name `cli` is installed or imported.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

NAME = "embedcache.cli"


def main() -> None:
    """Run a command."""
    _command_line().main()


def _command_line() -> Any:
    package = Path(__file__).parent
    for path in (package / "cli.py", package.parent / "cli.py"):
        spec = spec_from_file_location(NAME, path) if path.is_file() else None
        if spec is not None and spec.loader is not None:
            module = module_from_spec(spec)
            sys.modules[NAME] = module
            spec.loader.exec_module(module)
            return module
    raise ModuleNotFoundError(f"no cli.py in or beside {package}: reinstall embedcache")


if __name__ == "__main__":
    main()
