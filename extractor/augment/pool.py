"""What an augmentation may draw from: the recordings of the corpus and recordings of noise."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

RECORDING = "recording"  # of the corpus: `Clip.id` is its utterance's id
NOISE = "noise"  # from a folder of noise: `Clip.id` is its path


@dataclass(frozen=True, slots=True)
class Source:
    """An original recording, as far as drawing needs to know it; "" where a label is not known."""

    id: str
    num_samples: int  # at 16 kHz, as planned: an estimate where a header does not tell
    emotion: str = ""
    speaker: str = ""


@dataclass(frozen=True, slots=True)
class Clip:
    """Other audio that a recipe needs. The same clip whatever is known of its length."""

    id: str
    kind: str = RECORDING
    num_samples: int = field(default=0, compare=False)  # at 16 kHz, as planned; 0: not known


class Pool:
    """Candidates in the order of their ids, found by label without a pass over all recordings."""

    def __init__(
        self, sources: Iterable[Source] = (), noise: Mapping[str, Sequence[Clip]] | None = None
    ) -> None:
        """``sources``: originals, ids unique. ``noise``: the clips of each folder, as it was written."""
        self._sources = tuple(sources)
        self.noise = {
            folder: tuple(sorted(clips, key=lambda clip: clip.id)) for folder, clips in (noise or {}).items()
        }

    def has(self, recording: str) -> bool:
        """Whether a recording of this id is in it."""
        return any(source.id == recording for source in self._sources)

    @cached_property
    def by_emotion(self) -> dict[str, list[Source]]:
        return _group(self._sources, lambda source: source.emotion)

    @cached_property
    def by_emotion_and_speaker(self) -> dict[tuple[str, str], list[Source]]:
        return _group(self._sources, lambda source: (source.emotion, source.speaker))

    @cached_property
    def speakers(self) -> set[str]:
        return {source.speaker for source in self._sources} - {""}

    def partners(self, source: Source, emotion: str, same_speaker: bool) -> Partners:
        """Recordings of ``emotion`` other than ``source``; none where a label is not known."""
        if not emotion or (same_speaker and not source.speaker):
            return Partners([], None)
        if same_speaker:
            found = self.by_emotion_and_speaker.get((emotion, source.speaker), [])
        else:
            found = self.by_emotion.get(emotion, [])
        at = bisect_left(found, source.id, key=lambda other: other.id)
        itself = at < len(found) and found[at].id == source.id
        return Partners(found, at if itself else None)


@dataclass(frozen=True, slots=True)
class Partners:
    """A sorted list less the recording itself (at ``itself``), which is skipped, not copied around."""

    found: Sequence[Source]
    itself: int | None

    def __len__(self) -> int:
        return len(self.found) - (self.itself is not None)

    def __getitem__(self, index: int) -> Source:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.found[index + (self.itself is not None and index >= self.itself)]


def _group(sources: Iterable[Source], key: Callable[[Source], K]) -> dict[K, list[Source]]:
    groups: dict[K, list[Source]] = {}
    for source in sources:
        groups.setdefault(key(source), []).append(source)
    for group in groups.values():
        group.sort(key=lambda source: source.id)
    return groups
