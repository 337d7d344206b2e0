"""GPU kernels, each in a folder beside the plain PyTorch function that defines it.

    spectral         phase-vocoder time stretch with frequency and time masks, on complex spectrograms
    waveform         gain, noise at an SNR, time masks, mean-variance normalisation of waveforms
    resample         polyphase resampling by a ratio of whole numbers
    norm_gelu        GroupNorm and GELU behind the CNN's first layer
    attention        attention of each utterance to itself, with WavLM's gated relative position bias
    add_norm         residual sum and LayerNorm; LayerNorm and GELU
    positional_conv  the convolutional position embedding
    pool             mean, squared deviations, minimum and maximum of runs of rows

In each folder stands the definition, the path of every device without Triton, beside ``kernel.py``, the
Triton path; the folder's own function takes ``backend="auto" | "torch" | "triton"`` (`backend.resolve`).
Batches are ragged: recordings lie one behind the other in a packed tensor, with their lengths beside it
(`packing`, where several kernels share them), and none sees another or any padding. Forward only: nothing
here is trained.
"""
