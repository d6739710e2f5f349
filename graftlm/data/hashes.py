"""A set of 64-bit hashes in little memory."""

from __future__ import annotations

from array import array


class Hashes:
    """A growing set of hashes that takes 12 to 24 bytes for each, where Python's own takes some seventy.

    Open addressing in one array of numbers; 0 marks a free place, so a hash of 0 counts as 1.
    """

    def __init__(self, places: int = 1024) -> None:
        self.table = array("Q", bytes(8 * places))
        self.mask = places - 1  # places is a power of two
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, key: int) -> bool:
        """Put a hash in; False if it was there."""
        table, mask, key = self.table, self.mask, key or 1
        place = key & mask
        while found := table[place]:
            if found == key:
                return False
            place = (place + 1) & mask
        table[place] = key
        self.count += 1
        if 3 * self.count > 2 * mask:
            self._grow()
        return True

    def _grow(self) -> None:
        old, places = self.table, 2 * len(self.table)
        table, mask = array("Q", bytes(8 * places)), places - 1
        for key in old:
            if key:
                place = key & mask
                while table[place]:
                    place = (place + 1) & mask
                table[place] = key
        self.table, self.mask = table, mask
