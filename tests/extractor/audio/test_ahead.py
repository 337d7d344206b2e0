"""Decoding ahead: in order, no further than asked, and no thread outlives its consumer."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from audio_cases import header_of, sparse_wav, wav_bytes

from extractor.audio.ahead import DecodeAhead
from extractor.audio.cut import Cut
from extractor.audio.decode import DecodeOptions
from extractor.audio.readers import BLOCK_FRAMES
from extractor.types import Decoded, Header, Utterance

BATCH = tuple[None, Sequence[Utterance], Sequence[Header]]


def batches_of(tmp_path: Path, count: int) -> list[BATCH]:
    batches = []
    for k in range(count):
        path = tmp_path / f"{k}.wav"
        path.write_bytes(wav_bytes(struct.pack("<h", k + 1) * 16_000))
        batches.append((None, [Utterance(f"{k}", str(path))], [header_of(path)]))
    return batches


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_batches_come_in_order_and_no_thread_is_left(tmp_path: Path) -> None:
    with DecodeAhead(batches_of(tmp_path, 20), DecodeOptions()) as ahead:
        for k, (_, (result,)) in enumerate(ahead):
            assert isinstance(result, Decoded)
            assert (result.waveform * 32768 == k + 1).all()
    assert k == 19
    assert decoding_threads() == []


def test_no_more_than_asked_is_decoded_ahead(tmp_path: Path) -> None:
    taken = 0

    def counted() -> Iterator[BATCH]:
        nonlocal taken
        for batch in batches_of(tmp_path, 12):
            taken += 1
            yield batch

    with DecodeAhead(counted(), DecodeOptions(), ahead=2) as ahead:
        for k, _ in enumerate(ahead):
            sleep(0.02)
            assert taken <= k + 1 + 2 + 1  # the consumer's, those that wait, the one being decoded


def test_a_consumer_that_leaves_stops_the_threads(tmp_path: Path) -> None:
    class Interrupted(KeyboardInterrupt):
        pass

    def forever() -> Iterator[BATCH]:
        batches = batches_of(tmp_path, 1)
        while True:
            yield from batches

    with pytest.raises(Interrupted), DecodeAhead(forever(), DecodeOptions()) as ahead:
        for _ in ahead:
            raise Interrupted
    assert decoding_threads() == []


def test_a_bug_in_the_thread_reaches_the_consumer(tmp_path: Path) -> None:
    def broken() -> Iterator[BATCH]:
        yield from batches_of(tmp_path, 2)
        raise ZeroDivisionError("a bug")

    seen = 0
    with pytest.raises(ZeroDivisionError, match="a bug"), DecodeAhead(broken(), DecodeOptions()) as ahead:
        for _ in ahead:
            seen += 1
    assert seen == 2 and decoding_threads() == []


def test_closing_stops_a_long_recording_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_frames = 2 * 3600 * 8000
    path = sparse_wav(tmp_path / "hours.wav", num_frames, 1, 8000)
    ahead = DecodeAhead([(None, [Utterance("long", str(path))], [header_of(path)])], DecodeOptions())
    blocks = 0
    original = Cut.add

    def counted(*args: Any) -> None:
        nonlocal blocks
        blocks += 1
        if blocks == 3:
            threading.Thread(target=ahead.close).start()
        if blocks >= 3:
            ahead._stop.wait()  # what was begun may end
        original(*args)

    monkeypatch.setattr(Cut, "add", counted)
    assert list(ahead) == []
    assert blocks == 3 < num_frames // BLOCK_FRAMES and decoding_threads() == []
