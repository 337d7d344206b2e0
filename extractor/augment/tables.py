"""The tables: augmentations by the name that is written, operations by the name that is stored.

To add one: a dataclass of each kind beside those in `spectral`, `waveform`, `mixing` or `latent`, a row in
each table, and a pass in `extractor.augment.apply`. Text, YAML and the tests go through these tables.
"""

from __future__ import annotations

from extractor.augment.latent import LatentMask, LatentMasks
from extractor.augment.mixing import CopyPaste, Join
from extractor.augment.operation import Augmentation, Operation
from extractor.augment.spectral import (
    MaskSpectrogram,
    PitchShift,
    Shift,
    SpecAugment,
    Stretch,
    TimeStretch,
)
from extractor.augment.waveform import (
    AdditiveNoise,
    AddNoise,
    Band,
    BandPass,
    Gain,
    Scale,
    Silence,
    TimeMask,
)

AUGMENTATIONS: dict[str, type[Augmentation]] = {
    row.name: row
    for row in (
        TimeStretch,
        SpecAugment,
        LatentMask,
        AdditiveNoise,
        CopyPaste,
        PitchShift,
        TimeMask,
        BandPass,
        Gain,
    )
}

OPERATIONS: dict[str, type[Operation]] = {
    row.name: row
    for row in (Stretch, MaskSpectrogram, LatentMasks, AddNoise, Join, Shift, Silence, Band, Scale)
}
