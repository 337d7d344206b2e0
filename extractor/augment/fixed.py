"""What a recipe says, asked for again: an operation whose every number is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from extractor.augment.chance import Random
from extractor.augment.latent import LatentMasks
from extractor.augment.operation import NOTHING, Augmentation, Operation
from extractor.augment.parameters import number_text
from extractor.augment.pool import NOISE, RECORDING, Clip, Pool, Source
from extractor.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Fixed(Augmentation):
    """One operation, the same for every copy, or none at all: so a stored recipe makes its copy again."""

    name: ClassVar[str] = "fixed"
    operation: Operation | None

    def draw(self, source: Source, random: Random, pool: Pool) -> tuple[Operation, ...]:
        return () if self.operation is None else (self.operation,)

    def check(self, pool: Pool) -> None:
        clip = self._clip
        if clip and clip.kind == NOISE and not Path(clip.id).is_file():
            raise SettingsError(f"{self.text}: there is no file {clip.id!r}")
        if clip and clip.kind == RECORDING and not pool.has(clip.id):
            raise SettingsError(f"{self.text}: no recording of the input has the id {clip.id!r}")

    @property
    def inside_encoder(self) -> bool:
        return isinstance(self.operation, LatentMasks)

    @property
    def needs_partners(self) -> bool:
        return self._clip is not None and self._clip.kind == RECORDING

    @property
    def _clip(self) -> Clip | None:
        return None if self.operation is None else self.operation.clip_needed

    @property
    def text(self) -> str:
        text = NOTHING if self.operation is None else self.operation.text
        if self.p == 1:
            return text
        return f"{text}{',' if ':' in text else ':'}p={number_text(self.p)}"
