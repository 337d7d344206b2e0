"""Augmented copies of recordings, as utterances of the plan.

    manifest -> each recording once as it is and a few times to be augmented
    probe    -> lengths -> what is drawn for each copy: its recipe, and the length it will have

A copy's row carries its original's labels and three more: ``original`` (its id), ``copy`` (0 is the
recording as it is) and ``augmentation`` (the recipe, which alone says what was done).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractor.augment.drawing import NOISE, NOTHING, RECORDING, Augmentation, Clip, Original, Pool
from extractor.augment.table import Recipe, draw
from extractor.augment.text import parse, parse_recipe
from extractor.errors import CannotAugment, InputError, SettingsError
from extractor.types import MIN_SAMPLES, SAMPLE_RATE, Failure, Manifest, Utterance

if TYPE_CHECKING:
    from extractor.augment.config import Config

COLUMNS = ("original", "copy", "augmentation")  # behind the manifest's own
UNALTERED = NOTHING  # the recipe of a recording as it is


def configured(
    augment: Augmentation | str | Sequence[str] | None,
    file: str | os.PathLike[str] | None = None,
    copies: int | None = None,
    seed: int | None = None,
    clean: bool | None = None,
    alone: bool = True,
) -> Config | None:
    """What was asked for, in one way or the other; None where nothing is to be augmented.

    ``copies``, ``seed`` and ``clean`` win over what the file says; without an augmentation they are
    refused, unless not ``alone``: something else gives them a meaning. Raises SettingsError.
    """
    from extractor.augment.config import Config, load_yaml

    asked = {"copies": copies, "seed": seed, "clean": clean}
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if isinstance(augment, Sequence) and not augment:
        augment = None
    if augment is not None and file is not None:
        raise SettingsError("--augment and --augment-config exclude each other: write all of it in the file")
    if file is not None:
        return replace(load_yaml(Path(file)), **changes)
    if augment is not None:
        return Config(augment if isinstance(augment, Augmentation) else parse(augment), **changes)
    if changes and alone:
        raise SettingsError(f"--{next(iter(changes))}: says nothing without --augment or --augment-config")
    return None


class Copies:
    """What to make of each recording. Made once for a run; refuses what cannot work at once."""

    def __init__(self, config: Config, manifest: Manifest, workers: int = 2) -> None:
        """Raises InputError for a noise folder without recordings or a label that is in the way, and
        SettingsError where the corpus has not the labels that the augmentation draws by."""
        taken = [name for name in COLUMNS if name in manifest.columns]
        if taken:
            raise InputError(
                f"the manifest has a column {taken[0]!r} already, which --augment makes; rename it, or leave"
                " the augmentation out"
            )
        self.config = config
        self.columns = (*manifest.columns, *COLUMNS)
        self._emotion, self._speaker = (manifest.columns.index(name) for name in ("emotion", "speaker"))
        self.needs_partners = config.augmentation.needs_partners
        self._noise = {folder: _noise_clips(folder, workers) for folder in config.augmentation.folders}
        # By labels alone: nothing has been probed yet.
        config.augmentation.check(self.pool({u.id: (u, 0) for u in manifest.utterances}))

    def expand(self, originals: Sequence[Utterance]) -> list[Utterance]:
        """Every recording as often as it is wanted; what is done to a copy is drawn by `draw`."""
        numbers = range(0 if self.config.clean else 1, self.config.copies + 1)
        return [self._copy(u, k) for u in originals for k in numbers]

    def _copy(self, original: Utterance, number: int) -> Utterance:
        recipe = "" if number else UNALTERED
        labels = (*original.labels, original.id, str(number), recipe)
        return replace(original, id=f"{original.id}~{number}" if number else original.id, labels=labels)

    @property
    def each(self) -> int:
        """How many rows a recording gives."""
        return self.config.copies + bool(self.config.clean)

    def like(self, copy: Utterance, original: Utterance) -> Utterance:
        """The copy, as one of a recording that is described anew: what was done to it stays."""
        anew = self._copy(original, self.number(copy))
        return replace(anew, labels=(*anew.labels[:-1], copy.labels[-1]))

    def own_labels(self, copy: Utterance) -> tuple[str, ...]:
        """The labels of the recording itself."""
        return copy.labels[: -len(COLUMNS)]

    def partners(self, copy: Utterance) -> set[str]:
        """Ids of the recordings that it takes in."""
        recipe = copy.labels[-1]
        if not recipe or recipe == UNALTERED:
            return set()
        return {clip.id for clip in self.recipe(copy).clips if clip.kind == RECORDING}

    def outcome(self, original: Utterance, number: int, num_samples: int, pool: Pool) -> tuple[str, bool]:
        """What would be drawn for a copy, and whether anything could be."""
        drawn, _, failure = self.draw(self._copy(original, number), num_samples, pool)
        return drawn.labels[-1], failure is None

    def original(self, utterance: Utterance) -> str:
        """The id of the recording that it is a copy of."""
        return utterance.labels[-3]

    def number(self, utterance: Utterance) -> int:
        return int(utterance.labels[-2])

    def recipe(self, utterance: Utterance) -> Recipe:
        """What was drawn for it."""
        return parse_recipe(utterance.labels[-1])

    def drawn_by(self, original: Utterance) -> tuple[str, str, str]:
        """What a draw reads of a recording, its own or one that it may take in, but for its length."""
        return original.id, original.labels[self._emotion], original.labels[self._speaker]

    def pool(self, originals: Mapping[str, tuple[Utterance, int]]) -> Pool:
        """What may be drawn from. ``originals``: by id, with lengths at 16 kHz."""
        found = originals.items() if self.needs_partners else ()
        return Pool((Original(name, n, *self.drawn_by(u)[1:]) for name, (u, n) in found), self._noise)

    def draw(
        self, utterance: Utterance, num_samples: int, pool: Pool
    ) -> tuple[Utterance, int, Failure | None]:
        """The copy with its recipe among its labels, its length, and why there is none if there is none.

        ``num_samples``: of the recording, at 16 kHz.
        """
        number, original = self.number(utterance), self.original(utterance)
        if number == 0:
            return utterance, num_samples, None
        source = Original(original, num_samples, *self.drawn_by(utterance)[1:])
        try:
            recipe = draw(self.config.augmentation, source, self.config.seed, number, pool)
        except CannotAugment as error:
            return utterance, 0, Failure(utterance.id, utterance.path, "augment", str(error))
        named = replace(utterance, labels=(*utterance.labels[:-1], recipe.text))
        n = recipe.num_samples(num_samples)
        if n < MIN_SAMPLES:
            reason = (
                f"too short once augmented: {n} samples at 16 kHz, at least {MIN_SAMPLES}"
                f" ({1000 * MIN_SAMPLES // SAMPLE_RATE} ms) are needed ({recipe.text})"
            )
            return named, 0, Failure(utterance.id, utterance.path, "augment", reason)
        return named, n, None


def _noise_clips(folder: str, workers: int) -> list[Clip]:
    """The recordings of a folder of noise, with their lengths; named as the user wrote the folder."""
    from extractor.audio.probe import num_samples_16k, probe
    from extractor.inputs.manifest import read_manifest

    recordings = read_manifest([folder], "files").utterances
    root = os.path.abspath(folder)  # noqa: PTH100 - as the manifest spells it
    clips = []
    for utterance, header in zip(recordings, probe(recordings, workers), strict=True):
        if not isinstance(header, Failure):
            name = os.path.join(folder, os.path.relpath(utterance.path, root))  # noqa: PTH118
            clips.append(Clip(name, NOISE, num_samples_16k(header, utterance)))
    if not clips:
        raise InputError(f"noise folder {folder!r}: none of its {len(recordings)} recordings can be read")
    return clips
