"""What stands around every command: streams, signals, errors and exit statuses.

Exit status: 0 done, 1 a user's error, 2 wrong usage, 130 interrupted (everything done until then
is kept). A bug keeps its traceback.
"""

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from embedcache import __version__, disk
from embedcache.commands.options import INTERRUPTED, OPENED, OPTIONS, as_typed
from embedcache.deferred import ends_at_once, own_process
from embedcache.errors import Damaged, EmbedcacheError
from embedcache.wording import plain, printable

SYSTEM_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
SHORTAGES = {errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
PATH_ERRORS = {
    errno.ENOTDIR: "is a file, and a folder is needed there: name another path",
    errno.EISDIR: "is a folder, and a file is needed there: name another path",
    errno.ENAMETOOLONG: "is too long for the name of a file: name another path",
    errno.ELOOP: "is a link that leads to itself: name another path",
}
"""What is wrong with a path that a user named and no command has checked."""
ANYWHERE = {
    "-q": logging.WARNING,
    "--quiet": logging.WARNING,
    "-v": logging.DEBUG,
    "--verbose": logging.DEBUG,
}
OPTIONAL = {"--ray": "local"}
"""Options whose value may be left out, and what they mean then."""
log = logging.getLogger("embedcache")


class Commands(TyperGroup):
    """The commands. -q and -v may stand anywhere; Ctrl-C ends each command with one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = args[: args.index("--")] if "--" in args else args
        for level in [ANYWHERE[word] for word in own if word in ANYWHERE]:
            log.setLevel(level)
        kept = [word for i, word in enumerate(args) if i >= len(own) or word not in ANYWHERE]
        for i, word in enumerate(kept):
            if word in OPTIONAL and (kept[i + 1 :] or ["-"])[0].startswith("-"):
                kept[i] = f"{word}={OPTIONAL[word]}"
        return super().parse_args(ctx, kept)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command and its arguments; an option that takes one value is given once."""
        name, command, rest = super().resolve_command(ctx, args)
        words = rest[: rest.index("--")] if "--" in rest else rest
        params = [] if command is None else command.params
        OPTIONS.set(frozenset(word for param in params for word in param.opts))
        for option in params:
            given = [word for word in words if word.partition("=")[0] in option.opts]
            if option.param_type_name == "option" and not option.multiple and len(given) > 1:
                raise typer.BadParameter(
                    f"{option.opts[0]} takes one value and is given {len(given)} times", ctx=ctx
                )
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            line = "Interrupted: everything done so far is kept. Rerun the command to resume."
            print(line, file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None


def run(app: typer.Typer) -> None:
    """Run a command: a user's error is one message and exit status 1."""
    try:
        _run(app)
    except SystemExit as end:
        if ends_at_once() and (end.code is None or isinstance(end.code, int)):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code or 0)
        raise


def _run(app: typer.Typer) -> None:
    OPENED.set(())
    own_process()
    with _streams():
        try:
            app(prog_name="embedcache")
        except SystemExit as stop:
            if stop.code == 1:  # something was left out, and was said
                _miss_caches()
            raise
        except EmbedcacheError as error:
            if log.isEnabledFor(logging.DEBUG):
                log.debug("", exc_info=error)
            _miss_caches()
            _fail(_advised(error))
        except BrokenPipeError:  # `embedcache info ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            if isinstance(error, OSError | ExceptionGroup):
                _miss_caches()
            _explain(error)
            raise


def _miss_caches() -> None:
    """End with one message where a cache that the command had opened is elsewhere now.

    One that is deleted has no link left; the command deletes its own where it wrote nothing.
    """
    for path, folder in OPENED.get():
        if not path.exists() and os.fstat(folder).st_nlink:
            _fail(
                f"{path} is gone: it was renamed while this command ran. What was done "
                "until then is kept in it. Rerun the command with the place where it is now"
            )


def _advised(error: EmbedcacheError) -> str:
    """What is said of an error; of damage in a cache also that verify shows all of it."""
    said = str(error)
    is_told = error.advice or "'embedcache " in said or "move it" in said.lower()
    if not isinstance(error, Damaged) or is_told or "verify" in sys.argv[1:]:
        return said
    from embedcache.store.layout import cache_around

    named = Path(re.split(r": | is | has | was | changed ", said)[0])
    cache = cache_around(named) if named.is_absolute() or named.parent.parts else None
    if cache is None and named.name == "zarr.json":  # of the cache itself
        cache = named.parent
    return f"{said}. 'embedcache verify {cache}' shows all that is damaged" if cache else said


def _explain(error: Exception) -> None:
    """End with one message where the operating system has refused something, and not by a bug."""
    refused = error if isinstance(error, OSError) else disk.system_error_in(error)
    number = None if refused is None else refused.errno
    named = "" if refused is None else refused.filename
    if refused is not None and number in PATH_ERRORS:
        _fail(f"{_culprit(refused)} {PATH_ERRORS[number]}")
    if number in SHORTAGES or disk.lacks_memory(error):
        log.debug("", exc_info=error)
        advice = disk.advice_on(number if number in SHORTAGES else errno.ENOMEM)
        _fail(f"{named}: {advice}" if named else advice)
    if refused is not None and number in SYSTEM_ERRORS:
        _fail(f"{refused.strerror}: {named or 'while writing'}")


@contextmanager
def _streams() -> Iterator[None]:
    """Notes go to stderr; any name can be printed, and a stream that is closed is no error."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would be written to as stdout or stderr
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(os.dup(1), "w")
    sys.stderr = sys.stderr or os.fdopen(os.dup(2), "w")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable())
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = True


def _culprit(error: OSError) -> str:
    """The path that an error is about: of a name below a file, the file."""
    named = str(error.filename2 or error.filename)
    if error.errno == errno.ENOTDIR:
        above = (str(place) for place in (Path(named), *Path(named).parents) if place.is_file())
        return next(above, named)
    return named


def _fail(message: str) -> NoReturn:
    print(f"error: {plain(as_typed(message))}", file=sys.stderr)
    sys.exit(1)


class _Printable(logging.Formatter):
    """Log lines without control characters, with options as they are typed."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(as_typed(super().format(record)))


def _print_version(asked: bool) -> None:
    if asked:
        print(f"embedcache {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only errors and warnings on stderr.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print tracebacks of errors.")
    ] = False,
) -> None:
    """-q and -v may also stand after a command; see `Commands`."""
