"""Which recordings of a run are which of another list, by one kind of evidence after the other."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

_K = TypeVar("_K")
_G = TypeVar("_G")


class Pairing(Generic[_K, _G]):
    """The known ones beside the given ones; each is paired once at most."""

    def __init__(self, known: Sequence[_K], given: Sequence[_G]) -> None:
        self.given = given
        self.found: list[_K | None] = [None] * len(given)  # aligned with the given ones
        self.left = dict(enumerate(known))  # those without a given one, in their order

    def pair(self, key: Callable[[_K], Hashable], key_of_given: Callable[[int, _G], Hashable]) -> None:
        """Pair what is left on both sides and has equal keys, in order. A key that is None is none."""
        waiting: dict[Hashable, deque[int]] = defaultdict(deque)
        for number, k in self.left.items():
            if (name := key(k)) is not None:
                waiting[name].append(number)
        for i, g in enumerate(self.given) if waiting else ():
            if self.found[i] is None and (there := waiting.get(key_of_given(i, g))):
                self.found[i] = self.left.pop(there.popleft())
