"""The log of removals of a shared copy, as `embedcache.store.log` states it.

Only a storage that creates an object only if it does not exist can have one: that is asked of it
before the first entry, because some ignore the condition.
"""

from collections.abc import Callable
from secrets import token_hex

from embedcache.errors import CacheError, RemoteError
from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import Remote, Unconditional
from embedcache.sharing.memo import Memo
from embedcache.sharing.refusals import advice
from embedcache.sharing.small_objects import MAX_SMALL_BYTES, TooMuch
from embedcache.store.log import ENTRY, FOLDER, Entry, Log
from embedcache.store.sealed import MAX_LIST_BYTES, own_digest
from embedcache.store.zarr_json import encode_document, group_document


class RemoteLog:
    """Reads and extends the log of one shared copy."""

    def __init__(self, remote: Remote, memo: Memo) -> None:
        self._remote = remote
        self._memo = memo
        self._log = Log()
        self._bytes = 0
        self._is_conditional = False
        self._looked = False

    @property
    def known(self) -> Log:
        """The log as it was at the last look; the first one looks."""
        return self._log if self._looked else self.read()

    def read(self) -> Log:
        """The log as it is now: entries are opened by name, because a listing may be old.

        Raises RemoteError for an entry that is damaged: nobody knows what it removed.
        """
        entries: list[Entry] = []
        while True:
            number = self._log.n + len(entries) + 1
            key = _key(number)

            def fetch(key: str = key) -> bytes:
                return read_small(self._remote, key, limit=MAX_LIST_BYTES)

            try:
                raw = self._memo.get(key, fetch, lambda raw: own_digest(raw) is not None)
                entries.append(Entry.parse(raw, number=number)[0])
            except FileNotFoundError:
                break
            except RemoteError:
                raise
            except CacheError as error:
                raise RemoteError(
                    error.found, asked=f"{key} of {self._remote.name}", advice=advice(self._remote)
                ) from None
            self._check_successors(entries)
            self._bytes += len(raw)
            if self._bytes > MAX_SMALL_BYTES:
                raise TooMuch(f"{self._remote.name} has too much under {FOLDER}/: refused")
        self._looked = True
        if entries:
            self._log = self._log.with_entries(entries)
        return self._log

    def _check_successors(self, entries: list[Entry]) -> None:
        """RemoteError where what stands in a segment's place was removed before: a circle."""
        *before, last = entries
        gone = self._log.with_entries(before).gone if before else self._log.gone
        for name, found in last.segments.items():
            for successor in found.successors or ():
                key = f"{name.partition('/')[0]}/{successor}"
                if key in gone or key in last.segments:
                    raise RemoteError(
                        f"the removal log replaces {name} by a segment that was removed",
                        asked=self._remote.name,
                        advice=advice(self._remote),
                    )

    def append(self, decide: Callable[[Log], Entry | None]) -> bool:
        """Append the entry that `decide` makes of the log; asked again when another came first.

        Returns whether there is an entry: False where `decide` returned None.
        Raises Unconditional for a storage that cannot have a log.
        """
        self.require_conditional()
        while True:
            log = self.read()
            entry = decide(log)
            if entry is None:
                return False
            raw = entry.encode(nonce=token_hex(16))
            if self._remote.create_once(_key(log.n + 1), raw):
                self._log = log.with_entries([entry])
                return True

    def require_conditional(self) -> None:
        """Raises Unconditional unless the storage refuses to create what exists.

        Tried on a document that every shared copy has, always with the same bytes.
        """
        if self._is_conditional:
            return
        document = encode_document(group_document({}))
        if self._remote.create_once("spaces/zarr.json", document) and self._remote.create_once(
            "spaces/zarr.json", document
        ):
            raise Unconditional(f"{self._remote.name} does not support conditional writes")
        self._is_conditional = True


def _key(number: int) -> str:
    return f"{FOLDER}/{number:08d}/{ENTRY}"
