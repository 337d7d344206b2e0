"""A checkpoint's normalisation is what transformers' AutoFeatureExtractor reads, however it was saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import MakeCheckpoint, reference_layers
from encoder_cases import CPU, assert_same, encode
from run_cases import Notes

from extractor.commands.store import _facts
from extractor.encoders import Model
from extractor.encoders.checkpoint import load_checkpoint
from extractor.errors import ModelError, SettingsDiffer
from extractor.run.engine import run
from extractor.run.options import Options
from extractor.store import Store
from extractor.store.run_folder import same_setting

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALLER: dict[str, Any] = {
    "num_hidden_layers": 1,
    "conv_dim": [16] * 3,
    "conv_kernel": [10, 8, 4],
    "conv_stride": [5, 8, 8],
}


def soft() -> torch.Tensor:
    """A quarter of a second, soft and off centre: normalising it changes the embedding a lot."""
    return 0.01 * torch.randn(4_000, generator=torch.Generator().manual_seed(3)) + 0.003


# The ways of saving, each with both values


def extractor(do_normalize: bool) -> Any:
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(do_normalize=do_normalize)


def tokenizer(folder: Path) -> Any:
    from transformers import Wav2Vec2CTCTokenizer

    vocabulary = folder / "made-up.json"
    vocabulary.write_text(json.dumps({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5}))
    return Wav2Vec2CTCTokenizer(str(vocabulary))


def by_extractor(folder: Path, do_normalize: bool) -> None:
    extractor(do_normalize).save_pretrained(folder)


def by_processor(folder: Path, do_normalize: bool) -> None:
    from transformers import Wav2Vec2Processor

    Wav2Vec2Processor(extractor(do_normalize), tokenizer(folder)).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()  # what transformers 5 no longer writes


def by_pipeline(folder: Path, do_normalize: bool) -> None:
    from transformers import HubertForCTC, Wav2Vec2Processor, pipeline

    model = HubertForCTC.from_pretrained(folder, vocab_size=6)
    processor = Wav2Vec2Processor(extractor(do_normalize), tokenizer(folder))
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    pipeline("automatic-speech-recognition", model=model, processor=processor, **parts).save_pretrained(
        folder
    )


def by_transformers_4(folder: Path, do_normalize: bool) -> None:
    """As 4.x wrote a processor: its extractor flat, and what is not of the extractor beside it."""
    by_extractor(folder, do_normalize)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processor_class": "Wav2Vec2Processor"}))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Wav2Vec2Processor"}))


def write(folder: Path, **files: Any) -> None:
    for name, values in files.items():
        (folder / f"{name}_config.json").write_text(json.dumps(values))


def nested_beside_flat(folder: Path, do_normalize: bool) -> None:
    """They contradict each other: the nested one wins."""
    write(folder, processor={"feature_extractor": {"do_normalize": do_normalize}})
    write(folder, preprocessor={"do_normalize": not do_normalize})


def null_beside_flat(folder: Path, do_normalize: bool) -> None:
    write(folder, processor={"feature_extractor": None}, preprocessor={"do_normalize": do_normalize})


def by_audio_processor(folder: Path, do_normalize: bool) -> None:
    write(folder, processor={"audio_processor": {"do_normalize": do_normalize}})


WAYS: tuple[Callable[[Path, bool], None], ...] = (
    *(by_extractor, by_processor, by_pipeline, by_transformers_4, nested_beside_flat, null_beside_flat),
    by_audio_processor,
)


@pytest.fixture
def in_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Puts a folder into a cache of the hub's layout, offline; returns its id."""
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(folder: Path) -> str:
        repository = cache / "models--org--name"
        snapshot = repository / "snapshots" / COMMIT
        (repository / "blobs").mkdir(parents=True)
        (repository / "refs").mkdir()
        snapshot.mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        for number, file in enumerate(sorted(folder.iterdir())):
            shutil.copy(file, repository / "blobs" / f"{number:040x}")
            (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040x}")
        return "org/name"

    return put


@pytest.fixture
def copy(checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """A model alone, in a folder of its own."""
    return Path(shutil.copytree(checkpoint("hubert", do_normalize=None, **SMALLER), tmp_path / "model"))


def assert_equals_the_reference(spec: str) -> None:
    from transformers import AutoFeatureExtractor, AutoModel

    extractor = AutoFeatureExtractor.from_pretrained(spec, trust_remote_code=False)
    model = AutoModel.from_pretrained(spec, trust_remote_code=False).eval()
    values = extractor(soft().numpy(), sampling_rate=16_000, return_tensors="pt").input_values[0]
    encoder = Model(spec, "fp32", CPU).encoder
    assert_same(encode(encoder, encoder.normalise([soft()])), [reference_layers(model, values)])


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_a_soft_recording_gives_what_the_reference_gives(
    way: Callable[[Path, bool], None], do_normalize: bool, copy: Path
) -> None:
    way(copy, do_normalize)
    found = load_checkpoint(str(copy))
    assert found.normalise is do_normalize
    assert "assumed" not in found.provenance["normalisation"]
    assert_equals_the_reference(str(copy))


@pytest.mark.parametrize("way", [by_extractor, by_processor, nested_beside_flat])
def test_the_hubs_cache_gives_what_the_folder_gives(
    way: Callable[[Path, bool], None], copy: Path, in_the_hub: Callable[[Path], str]
) -> None:
    way(copy, True)
    folder = load_checkpoint(str(copy))
    spec = in_the_hub(copy)
    found = load_checkpoint(spec)
    assert found.normalise is True and found.notes == folder.notes
    assert found.provenance == {**folder.provenance, "model": spec, "source": "hub", "revision": COMMIT}
    assert_equals_the_reference(spec)


def test_a_flat_processor_file_is_better_than_a_guess(copy: Path) -> None:
    write(copy, processor={"do_normalize": True, "feature_extractor_type": "Wav2Vec2FeatureExtractor"})
    found = load_checkpoint(str(copy))
    assert found.normalise and found.provenance["normalisation"] == "True (processor_config.json)"


def test_where_there_is_none_the_run_says_what_was_assumed_and_stores_it(copy: Path, tmp_path: Path) -> None:
    write(copy, processor={"processor_class": "Wav2Vec2Processor"})  # says nothing of the input
    soundfile.write(tmp_path / "a.wav", soft().numpy(), 16_000)
    told = Notes()
    run(tmp_path / "a.wav", Options(model=str(copy), dtype="fp32"), tmp_path / "run", told)
    note = told.of("assumed")
    assert "takes each recording as it is" in note and "no preprocessor_config.json" in note
    with Store(tmp_path / "run") as store:
        assert store.settings["normalisation"].startswith("False (assumed: no preprocessor_config.json")
        assert [note] == [f"{copy}: {each}" for each in store.environment["model_notes"]]
        assert ("note", note.removeprefix(f"{copy}: ")) in _facts(store)  # hser-store info


def test_in_the_hub_it_is_assumed_offline_only(
    copy: Path, in_the_hub: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    spec = in_the_hub(copy)
    (note,) = load_checkpoint(spec).notes
    assert "assumed" in note and "the hub itself was not asked" in note
    # The hub cannot be reached, and nobody said that the cache is all there is.
    cached = huggingface_hub.hf_hub_download  # without a network it ends as if it had not been asked for one
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *a, **k: cached(*a, **{**k, "local_files_only": True})
    )
    with pytest.raises(ModelError, match="try again with a network, or set HF_HUB_OFFLINE=1"):
        load_checkpoint(spec)


def test_old_runs_resume_where_the_value_is_the_same_and_no_other(copy: Path, tmp_path: Path) -> None:
    """Runs from before called a value assumed that is read from processor_config.json now."""
    soundfile.write(tmp_path / "a.wav", soft().numpy(), 16_000)
    by_processor(copy, False)
    options, out = Options(model=str(copy), dtype="fp32"), tmp_path / "run"
    run(tmp_path / "a.wav", options, out)
    description = json.loads((out / "run.json").read_text())
    assert description["settings"]["normalisation"] == "False (processor_config.json)"
    for old, same in (("False", True), ("True", False)):
        description["settings"]["normalisation"] = (
            f"{old} (no preprocessor_config.json; by feat_extract_norm)"
        )
        (out / "run.json").write_text(json.dumps(description))
        if same:
            run(tmp_path / "a.wav", options, out)
        else:
            with pytest.raises(SettingsDiffer, match="normalisation: the run has True"):
                run(tmp_path / "a.wav", options, out)


def test_queries_of_an_old_run_are_encoded_where_the_value_is_the_same(copy: Path) -> None:
    from model_cases import origin

    from extractor.encoders import LAYER_CONVENTION
    from extractor.plan.windows import OVERLAP
    from extractor.run.recipe import refuse_other_model
    from extractor.types import SAMPLE_RATE

    by_processor(copy, False)
    here = load_checkpoint(str(copy)).provenance
    fixed = {
        "layer_convention": LAYER_CONVENTION,
        "sample_rate": SAMPLE_RATE,
        "window_overlap_seconds": OVERLAP,
    }
    for old in ("False (no preprocessor_config.json; by feat_extract_norm)", "False (processor_config.json)"):
        refuse_other_model(origin(**{**here, **fixed, "normalisation": old}), str(copy), here)
    with pytest.raises(SettingsDiffer, match="normalisation: the run has 'True"):
        refuse_other_model(origin(**{**here, **fixed, "normalisation": "True (x)"}), str(copy), here)


def test_of_other_settings_every_character_counts() -> None:
    assert same_setting("normalisation", "True (a)", "True (b)")
    assert not same_setting("normalisation", "True (a)", "False (a)")
    assert not same_setting("augmentation", "noise (a)", "noise (b)")
    assert not same_setting("window_seconds", 60, 30)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("preprocessor", '{"do_normalize": "false"}', r"do_normalize is text \('false'\); it must be true"),
        ("preprocessor", '{"do_normalize": 1}', "do_normalize is a number"),
        ("preprocessor", '{"do_normalize": null}', "do_normalize is null"),
        ("preprocessor", '{"sampling_rate": "16000"}', "sampling_rate is text"),
        ("preprocessor", '{"sampling_rate": 44100}', "takes audio at 44100 Hz; hser encodes at 16000"),
        ("preprocessor", '{"feature_extractor_type": "Other"}', "feature_extractor_type is 'Other'"),
        ("preprocessor", "[]", "holds a list where an object belongs"),
        ("preprocessor", "{do_normalize: true}", "is not JSON"),
        ("preprocessor", "", "is not JSON"),
        ("preprocessor", "[" * 100_000, "is not JSON"),
        ("processor", '{"feature_extractor": "Wav2Vec2FeatureExtractor"}', "feature_extractor is text"),
        ("processor", '{"feature_extractor": {"do_normalize": "no"}}', r"extractor\.do_normalize is text"),
        ("processor", '{"feature_extractor": {"sampling_rate": 8000}}', r"feature_extractor\.sampling_rate"),
        ("processor", "\udcff", "is not JSON"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_by_its_name_and_field(
    name: str, text: str, message: str, copy: Path
) -> None:
    (copy / f"{name}_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=message) as error:
        load_checkpoint(str(copy))
    assert str(copy / f"{name}_config.json") in str(error.value)


def test_whispers_front_end_is_read_from_its_processor(tmp_path: Path) -> None:
    from test_whisper import feature_extractor, make_whisper, reference

    model = make_whisper()
    model.save_pretrained(tmp_path)
    (note,) = [each for each in load_checkpoint(str(tmp_path)).notes if "assumed" in each]
    assert "assumed log-mel as WhisperFeatureExtractor" in note
    nested = {"feature_extractor": feature_extractor(model.config).to_dict()}
    nested = json.loads(json.dumps(nested, default=np.ndarray.tolist))
    write(tmp_path, processor=nested)
    found = load_checkpoint(str(tmp_path))
    assert not any("assumed" in each for each in found.notes)
    encoder = Model(str(tmp_path), "fp32", CPU).encoder
    assert_same(encode(encoder, [soft()]), [reference(model, soft())])
    nested["feature_extractor"]["hop_length"] = 200
    write(tmp_path, processor=nested)
    with pytest.raises(ModelError, match=r"processor_config\.json: has hop_length 200; hser computes 160"):
        load_checkpoint(str(tmp_path))
