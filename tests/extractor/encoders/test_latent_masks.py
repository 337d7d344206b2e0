"""Masks on the encoder's latent features: against the reference's own, and of nothing but what is asked."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from conftest import FP32_RELATIVE, MakeCheckpoint, make_model, relative_error
from encoder_cases import CPU, KINDS, Kept, assert_same, changed, encode, noises

from extractor.encoders import Model
from extractor.encoders.checkpoint import load_checkpoint
from extractor.encoders.wav2vec2 import Wav2Vec2Encoder
from extractor.types import LatentMask

LENGTHS = (16_000, 8_400, 23_456)


def build(model: Any) -> Wav2Vec2Encoder:
    return Wav2Vec2Encoder(
        model.state_dict(), model.config, torch.float32, CPU, mask_embedding=model.masked_spec_embed.data
    )


def waveforms() -> list[torch.Tensor]:
    return noises(LENGTHS, seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_frames_equal_the_reference_s_own(kind: str) -> None:
    model = make_model(kind)
    encoder, audio = build(model), waveforms()
    mask = LatentMask(frames=((3, 13), (20, 24)))
    ours = encode(encoder, audio, masks=[mask, None, mask])
    for i, waveform in enumerate(audio):
        indices = torch.zeros(1, encoder.num_frames(len(waveform)), dtype=torch.bool)
        if i != 1:
            indices[0, 3:13] = indices[0, 20:24] = True
        with torch.no_grad():
            theirs = model(waveform[None], mask_time_indices=indices).last_hidden_state[0]
        assert relative_error(ours[i][-1], theirs) < FP32_RELATIVE


@pytest.mark.parametrize("kind", KINDS)
def test_masked_channels_are_zero_where_the_reference_has_them_zero(kind: str) -> None:
    """The reference masks channels in training only, so its projected features are masked by a hook."""
    model = make_model(kind)
    encoder, audio = build(model), waveforms()[:1]
    mask = LatentMask(frames=((5, 9),), channels=((0, 4), (10, 12)))

    def hide(module: Any, inputs: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, 5:9] = model.masked_spec_embed
        hidden[:, :, 0:4] = hidden[:, :, 10:12] = 0.0
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.feature_projection.register_forward_hook(hide)
    with torch.no_grad():
        theirs = model(audio[0][None]).last_hidden_state[0]
    handle.remove()
    ours = encode(encoder, audio, masks=[mask])[0][-1]
    assert relative_error(ours, theirs) < FP32_RELATIVE


def test_a_mask_touches_its_own_recording_only() -> None:
    encoder, audio = build(make_model("hubert")), waveforms()
    clean = encode(encoder, audio, masks=[])
    masked = encode(encoder, audio, masks=[None, LatentMask(frames=((0, 5),)), None])
    assert_same(masked[::2], clean[::2], limit=0)
    assert not torch.equal(masked[1][0], clean[1][0])


def test_a_checkpoint_without_a_mask_embedding_cannot_be_masked(checkpoint: MakeCheckpoint) -> None:
    with_one = checkpoint("hubert")
    without = checkpoint("hubert", mask_time_prob=0.0, mask_feature_prob=0.0)
    assert load_checkpoint(str(with_one)).mask_embedding is not None
    assert load_checkpoint(str(without)).mask_embedding is None
    assert Model(str(with_one), "fp32", CPU).encoder.can_mask
    encoder = Model(str(without), "fp32", CPU).encoder
    assert not encoder.can_mask
    with pytest.raises(ValueError, match="no mask embedding"):
        encoder.forward(waveforms()[:1], Kept(), masks=[LatentMask(frames=((0, 1),))])


def test_a_copy_that_lost_its_mask_embedding_keeps_its_weights_hash(
    checkpoint: MakeCheckpoint, tmp_path: Any
) -> None:
    """Hub copies of one model differ in having it; it is made up at random then, and must not be used."""
    whole = checkpoint("hubert")
    copy = shutil.copytree(whole, tmp_path / "copy")
    found = load_checkpoint(str(changed(copy, lambda tensors: tensors.pop("masked_spec_embed"))))
    assert found.mask_embedding is None
    assert found.provenance["weights"] == load_checkpoint(str(whole)).provenance["weights"]
