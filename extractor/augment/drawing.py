"""From an augmentation to each copy's recipe, and what an augmentation needs beforehand."""

from __future__ import annotations

from extractor.augment.chance import Random
from extractor.augment.operation import Augmentation
from extractor.augment.pool import Pool, Source
from extractor.augment.recipe import Recipe
from extractor.augment.waveform import AdditiveNoise


def draw(augmentation: Augmentation, source: Source, seed: int, copy: int, pool: Pool) -> Recipe:
    """The recipe of copy number ``copy`` of ``source``: a function of its arguments alone.

    Of ``pool``, it depends on the candidates of this recording. Raises CannotAugment where the recording
    leaves nothing to draw from, such as a partner that does not exist.
    """
    return Recipe(augmentation.drawn(source, Random(seed, source.id, copy), pool))


def check(augmentation: Augmentation, pool: Pool) -> None:
    """Raises SettingsError where the corpus, or a folder of noise, has nothing that could be drawn."""
    for leaf in augmentation.leaves():
        leaf.check(pool)


def folders(augmentation: Augmentation) -> list[str]:
    """Folders of noise that are needed, as they were written, each once."""
    noises = (leaf for leaf in augmentation.leaves() if isinstance(leaf, AdditiveNoise))
    return list(dict.fromkeys(noise.folder for noise in noises if noise.folder is not None))


def needs_partners(augmentation: Augmentation) -> bool:
    """Whether other recordings of the corpus may be needed."""
    return any(leaf.needs_partners for leaf in augmentation.leaves())


def is_latent(augmentation: Augmentation) -> bool:
    """Whether masks inside the encoder may be drawn: it must be one that has a mask embedding."""
    return any(leaf.inside_encoder for leaf in augmentation.leaves())
