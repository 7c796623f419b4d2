"""The seal over what a gallery's database holds besides its entries, and what a repair makes of that."""

from __future__ import annotations

from deploy.store.connection import Connection
from deploy.store.metadata import unsound
from deploy.store.schema import Fault
from deploy.store.seal import seal_holds, write_seal


class Sealed(Connection):
    """The part of :class:`deploy.store.Store` that knows its seal."""

    def sealed(self) -> bool:
        """Whether everything but the entries is intact; call it in a transaction."""
        with self._guarded():
            return seal_holds(self._db)

    def unsound(self) -> list[Fault]:
        """List what lifelong-reid can't have written besides the entries, sealed or not; call it in a transaction."""
        with self._guarded():
            return unsound(self._db)

    def mend(self) -> None:
        """Mend what is not sound, inside a :meth:`holding` block; raises GalleryError if only a backup helps."""
        with self._guarded():
            faults = unsound(self._db)
            if hopeless := [fault.what for fault in faults if fault.outcome is None]:
                raise self._corrupted(hopeless[0].rstrip(","))
            for fault in faults:
                for statement, values in fault.statements:
                    self._db.execute(statement, values)

    def reseal(self) -> None:
        """Accept the facts and rules as they are, inside a :meth:`holding` block, after the owner was told."""
        with self._guarded():
            write_seal(self._db)

    def _check_metadata(self) -> None:
        """Raise GalleryError if the facts or rules are not as they were sealed, or can't have been written by us."""
        if not self.sealed():
            raise self._corrupted()
        if faults := self.unsound():
            raise self._corrupted(faults[0].what.rstrip(","))
