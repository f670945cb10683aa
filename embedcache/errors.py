"""The exceptions a user can cause. Imports nothing.

    EmbedcacheError              the command line prints it and exits with status 1
    ├── InputError               what was given does not fit: change the call or the file
    │   ├── PhotosError          a photo folder or table
    │   ├── LabelsError          a label table, a target, a weight, a split
    │   └── HeadError            a head's folder, or vectors that it does not fit
    ├── WeightsError             a backbone's name or weights: get them, or name others
    └── CacheError               a cache: open another, repair it, make room
        ├── NotACache            no cache there, or one of a later format
        ├── NoSuchSpace          no (or more than one) set of vectors fits the name
        ├── SpecMismatch         vectors of other weights or other preprocessing
        ├── Damaged              bytes that are not what was written: run `embedcache verify DIR`
        └── RemoteError          a shared copy that cannot be reached or believed

Each message says what was asked, what was found and what to do. Anything else that is raised is a
bug and keeps its traceback.
"""


class EmbedcacheError(Exception):
    """Any mistake that a user can mend.

    found: what is wrong. asked: what it is about, "" where `found` says it. advice: what to do.
    The three become one sentence here and nowhere else; nobody takes a sentence apart.
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
    """An argument, option or input file that does not fit."""


class PhotosError(InputError):
    """A photo folder or photo table that cannot be used."""


class LabelsError(InputError):
    """A label table, target, weight or split that cannot be used."""


class HeadError(InputError):
    """A head's folder that is refused, or vectors that do not fit the head."""


class WeightsError(EmbedcacheError):
    """A backbone that is unknown, or whose weights are not to be had."""


class CacheError(EmbedcacheError):
    """A cache that cannot do what was asked."""


class NotACache(CacheError):
    """The folder is no cache, or one of a format that this version cannot read."""


class NoSuchSpace(CacheError):
    """No set of vectors fits the name, or more than one does."""


class SpecMismatch(CacheError):
    """Vectors of other weights, another crop or other preprocessing."""


class Damaged(CacheError):
    """Stored bytes that are not what was written."""


class RemoteError(CacheError):
    """A shared copy that cannot be reached, or that holds what it should not."""
