"""The errors that a user can cause. Imports nothing.

    EmbedcacheError              the command line prints it and exits with status 1
    ├── InputError               an argument or input file is wrong: change it
    │   ├── PhotosError          a photo folder or table
    │   ├── LabelsError          a label table, a target, a weight, a split
    │   └── HeadError            a head's folder, or vectors of another spec than the head's
    ├── WeightsError             a backbone's name or weights: download them, or name another
    └── CacheError               a cache: open another, repair it, make room
        ├── NotACache            the folder holds no cache, or one of a later format
        ├── NoSuchSpace          no set of vectors has that name, or several have
        ├── SpecMismatch         vectors of other weights or other preprocessing
        ├── Damaged              bytes differ from what was written: run `embedcache verify DIR`
        └── RemoteError          a shared copy is unreachable, or holds what it must not

Each message says what was asked, what was found and what to do. Any other exception is a bug and
keeps its traceback.
"""


class EmbedcacheError(Exception):
    """Any error that a user can fix.

    found: what is wrong. asked: what it is about, "" where `found` says it. advice: what to do.
    Only this class builds the sentence; code that needs a part reads the field.
    """

    def __init__(self, found: object = "", *, asked: str = "", advice: str = "") -> None:
        super().__init__(found)
        self.found = str(found)
        self.asked = asked
        self.advice = advice

    @property
    def fact(self) -> str:
        """What was asked and what was found, without the advice."""
        return f"{self.asked}: {self.found}" if self.asked else self.found

    def __str__(self) -> str:
        return f"{self.fact}. {self.advice}" if self.advice else self.fact


class InputError(EmbedcacheError):
    """An argument, option or input file that is wrong."""


class PhotosError(InputError):
    """A photo folder or photo table that cannot be used."""


class LabelsError(InputError):
    """A label table, target, weight or split that cannot be used."""


class HeadError(InputError):
    """A head's folder that is refused, or vectors of another spec than the head's."""


class WeightsError(EmbedcacheError):
    """A backbone that is unknown, or whose weights are unavailable."""


class CacheError(EmbedcacheError):
    """A cache that cannot do what was asked."""


class NotACache(CacheError):
    """The folder is not a cache, or its format is too new for this version."""


class NoSuchSpace(CacheError):
    """No set of vectors has the name, or more than one has."""


class SpecMismatch(CacheError):
    """The vectors come from other weights, another crop or other preprocessing."""


class Damaged(CacheError):
    """Stored bytes differ from what was written."""


class RemoteError(CacheError):
    """A shared copy is unreachable, or holds what it must not."""
