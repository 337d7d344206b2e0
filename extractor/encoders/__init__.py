"""Encoders: what turns waveforms into frames, layer by layer.

model          a model by its name: its encoder, its device, its precision
layers         where ``--layers`` becomes numbers
pooling        frames to rows, while the model runs
families       a row for each family of checkpoints that is run, and for each model with a name
checkpoint     reads one: its config, how its input is made; checkpoint_files; tensors
wav2vec2       the family's forward pass: cnn, transformer (CPUs), fused (GPUs)
whisper        Whisper's encoder
linear         linear layers and convolutions, prepacked, in int8; weights: of a checkpoint, for them
spectral       log-mel and MFCC
"""

from extractor.encoders.families import Encoder
from extractor.encoders.layers import LAYER_CONVENTION, format_layers, parse_layers
from extractor.encoders.model import Model, exact_fp32, resolve_device, resolve_dtype

__all__ = [
    "LAYER_CONVENTION",
    "Encoder",
    "Model",
    "exact_fp32",
    "format_layers",
    "parse_layers",
    "resolve_device",
    "resolve_dtype",
]
