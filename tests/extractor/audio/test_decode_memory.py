"""Memory while decoding: bounded whatever headers claim and streams unpack to, and nobody waits for ever."""

from __future__ import annotations

import gc
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import soundfile
from audio_cases import good, noise, only, outcomes, sparse_wav, wav_bytes, write

from extractor import extract
from extractor.audio import room
from extractor.audio.decode import DecodeOptions, decode_batch
from extractor.audio.probe import probe
from extractor.audio.room import NoRoom, Room, Stopped, machine_bytes
from extractor.errors import DecodeError
from extractor.types import SAMPLE_RATE, Decoded, Failure, Header, Utterance

MIB = 1 << 20
SECOND = 4 * SAMPLE_RATE  # bytes of a second's waveform


def silent_flac(path: Path, seconds: int, claims: int | None = None) -> Path:
    """Mono 16-bit silence at 16 kHz in the largest blocks there are: some 13 bytes for four seconds."""
    block, num_frames = 65_535, seconds * SAMPLE_RATE
    stated = num_frames if claims is None else claims
    packed = SAMPLE_RATE << 44 | 0 << 41 | 15 << 36 | stated
    info = struct.pack(">HH", block, block) + bytes(6) + packed.to_bytes(8) + bytes(16)
    data = bytearray(b"fLaC" + b"\x80\0\0\x22" + info)
    for number in range(-(-num_frames // block)):
        size = min(block, num_frames - number * block)
        frame = b"\xff\xf8\x75\x08" + chr(number).encode("utf-8", "surrogatepass")
        frame += (size - 1).to_bytes(2)
        frame += bytes([_crc(frame, 8, 0x07)]) + b"\0\0\0"
        data += frame + _crc(frame, 16, 0x8005).to_bytes(2)
    path.write_bytes(data)
    return path


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    crc, top = 0, 1 << bits - 1
    for byte in data:
        crc ^= byte << bits - 8
        for _ in range(8):
            crc = (crc << 1 ^ (polynomial if crc & top else 0)) & (1 << bits) - 1
    return crc


def reasons(results: list[Decoded | Failure]) -> list[str]:
    return [result.reason if isinstance(result, Failure) else "" for result in results]


@pytest.mark.parametrize("claims", [None, 0])
@pytest.mark.parametrize("backend", ["auto", "pyav"])
def test_an_hour_in_little_is_an_hour(claims: int | None, backend: str, tmp_path: Path) -> None:
    path = silent_flac(tmp_path / "hour.flac", 3600, claims)
    assert path.stat().st_size < 20_000
    with only(backend):
        (result,) = outcomes([path])
    assert isinstance(result, Decoded) and len(result.waveform) == 3600 * SAMPLE_RATE
    assert not result.waveform.any()


def in_a_process(code: str, *paths: Path) -> list[str]:
    """What it prints, where `audio_cases` can be imported: memory is measured from its start."""
    command, folder = [sys.executable, "-c", code, *map(str, paths)], Path(__file__).parent
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_what_memory_does_not_hold_is_an_error_row_and_stays_small(tmp_path: Path) -> None:
    """Decided while it streams: a header may claim more or less than there is."""
    claims = (None, 0, 140_000_000)
    bombs = [silent_flac(tmp_path / f"{k}.flac", 2 * 3600, claim) for k, claim in enumerate(claims)]
    code = """
import resource, sys
from audio_cases import only, outcomes
from extractor.audio.room import Room
paths = sys.argv[1:]
for backend in ("auto", "soundfile", "pyav"):
    with only(backend):
        outcomes(paths[:1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
for backend in ("auto", "soundfile", "pyav"):
    with only(backend):
        good, *bad = outcomes(paths, room=Room(20 << 20))
    print(backend, len(good.waveform), *[each.reason for each in bad], sep="|")
print(peak() - before)
"""
    *said, growth = in_a_process(code, good(tmp_path), *bombs)
    too_long = "longer than 0.091 h, which is what the memory for decoding holds: 20 MiB (--decode-memory)"
    assert said == [
        "|".join(["auto", "3000", *[too_long] * 3]),
        "|".join(["soundfile", "3000", too_long, "not audio in a format that can be read", too_long]),
        "|".join(["pyav", "3000", *[too_long] * 3]),
    ]
    assert float(growth) < 20 + 30  # MiB: the waveform as it grows, and blocks


def test_a_long_recording_takes_little_more_memory_than_its_waveform(tmp_path: Path) -> None:
    code = """
import resource, sys
from audio_cases import outcomes
import soundfile, soxr
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
(result,) = outcomes(sys.argv[1:])
print(len(result.waveform), peak() - before)
"""
    (said,) = in_a_process(code, sparse_wav(tmp_path / "long.wav", 1800 * 48_000, 2, 48_000))
    num_samples, growth_mb = map(float, said.split())
    assert num_samples == 1800 * SAMPLE_RATE
    assert growth_mb < 1.1 * 4 * num_samples / 2**20 + 16  # the waveform, a tenth of it, and blocks


def test_max_hours_is_decided_by_what_comes_out(tmp_path: Path) -> None:
    paths = [silent_flac(tmp_path / f"{k}.flac", 8, claims) for k, claims in enumerate((None, 0))]
    paths.append(good(tmp_path, "two.wav", 2 * SAMPLE_RATE))
    for name, rate, channels in (
        ("eight.aiff", SAMPLE_RATE, 1),
        ("eight.mp3", SAMPLE_RATE, 1),
        ("eight.wav", 8_000, 2),
    ):
        soundfile.write(tmp_path / name, noise(8 * rate, channels), rate)
        paths.append(tmp_path / name)
    for backend in ("auto", "pyav"):
        too_long = ["longer than 0.001 h (--max-hours)"] * 2
        expected = [*too_long, "", *too_long, too_long[0]]
        with only(backend):
            assert reasons(outcomes(paths, max_hours=0.001)) == expected
            assert reasons(outcomes(paths, max_hours=0.01)) == [""] * 6


def test_a_segment_counts_by_its_own_length(tmp_path: Path) -> None:
    path = silent_flac(tmp_path / "long.flac", 100)
    utterances = [Utterance("a", str(path), 90.0, 92.0), Utterance("b", str(path), 1.0, 60.0)]
    headers = [header for header in probe(utterances) if isinstance(header, Header)]
    short, long = decode_batch(utterances, headers, DecodeOptions(max_hours=0.001))
    assert isinstance(short, Decoded) and len(short.waveform) == 2 * SAMPLE_RATE
    assert isinstance(long, Failure) and "--max-hours" in long.reason


@pytest.mark.parametrize("claims", [None, 0])
def test_recordings_wait_for_room_rather_than_fail(claims: int | None, tmp_path: Path) -> None:
    """Each fits alone, two do not; what they claim tells it or does not."""
    paths = [silent_flac(tmp_path / f"{k}.flac", 40 + k, claims) for k in range(6)]
    held: list[int] = []

    class Watched(Room):
        def change(self, num_bytes: int) -> bool:
            done = super().change(num_bytes)
            held.append(self._held)
            return done

    with only("pyav"):
        results = outcomes(paths, workers=4, room=Watched(60 * SECOND))
    assert [len(r.waveform) for r in results if isinstance(r, Decoded)] == [
        (40 + k) * SAMPLE_RATE for k in range(6)
    ]
    assert max(held) <= 60 * SECOND and held[-1] == 0


def test_what_outgrows_its_claim_starts_again_alone(tmp_path: Path) -> None:
    """Two that grow together meet in the middle: neither waits for the other."""
    paths = [silent_flac(tmp_path / f"{k}.flac", 50, 0) for k in range(2)]
    for _ in range(5):
        results = outcomes(paths, workers=2, room=Room(60 * SECOND))
        assert [len(r.waveform) for r in results if isinstance(r, Decoded)] == [50 * SAMPLE_RATE] * 2


def test_many_that_unpack_to_more_than_they_claim_are_bounded_together(tmp_path: Path) -> None:
    """A plan counts on claims, so what is decoded and waits could be of any size."""
    paths = [silent_flac(tmp_path / f"{k}.flac", 50, 0) for k in range(5)]
    memory = Room(120 * SECOND, excess=120 * SECOND)
    results = outcomes(paths, room=memory, workers=1)
    said = reasons(results)
    assert said.count("") == 2 and all("more than its header" in reason for reason in said if reason)
    del results
    gc.collect()
    assert reasons(outcomes(paths[:2], room=memory)) == ["", ""], "what is gone takes no room"
    honest = [silent_flac(tmp_path / f"honest{k}.flac", 50) for k in range(5)]
    assert reasons(outcomes(honest, room=memory)) == [""] * 5, "what was planned is no excess"


def test_large_files_of_little_audio_are_not_held_by_dali(tmp_path: Path) -> None:
    whole = wav_bytes((noise(4000) * 32767).astype("<i2").tobytes())
    path = tmp_path / "padded.wav"
    with path.open("wb") as file:
        file.write(whole[:12] + b"LIST" + struct.pack("<I", 40 << 20))
        file.seek(40 << 20, 1)
        file.write(whole[12:])
    (result,) = outcomes([path])
    assert isinstance(result, Decoded) and len(result.waveform) == 4000


@pytest.mark.parametrize("coding", ["VORBIS", "OPUS"])
def test_granule_positions_that_lie(coding: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogg", "OGG", coding, 48_000, noise(48_000))
    data = bytearray(path.read_bytes())
    page = data.rfind(b"OggS")
    data[page + 6 : page + 14] = struct.pack("<q", 1 << 40)
    path.write_bytes(data)
    bad, fine = outcomes([path, good(tmp_path)])
    assert isinstance(bad, Failure) and isinstance(fine, Decoded)


def test_a_claim_beyond_the_budget_takes_all_of_it() -> None:
    memory, stop = Room(100), threading.Event()
    with memory.take(1000, stop) as all_of_it:
        assert all_of_it.num_bytes == 100
        with pytest.raises(DecodeError, match="--decode-memory"):
            all_of_it.need(101)
    with memory.take(60, stop) as one, memory.take(40, stop):
        one.need(50)
        with pytest.raises(NoRoom):
            one.need(61)


def test_a_large_claim_is_not_overtaken_for_ever() -> None:
    memory, stop, order = Room(100), threading.Event(), []
    with ThreadPoolExecutor(2) as pool:

        def take(num_bytes: int) -> None:
            with memory.take(num_bytes, stop):
                order.append(num_bytes)

        with memory.take(50, stop):
            large = pool.submit(take, 100)
            while not memory._waiting:
                pass
            small = pool.submit(take, 10)  # would fit, and comes behind
            while len(memory._waiting) < 2 and not small.done():
                pass
        large.result()
        small.result()
    assert order == [100, 10]


def test_who_waits_for_room_stops_when_the_consumer_has_gone() -> None:
    memory, stop = Room(100), threading.Event()
    stop.set()
    with memory.take(100, threading.Event()), pytest.raises(Stopped), memory.take(1, stop):
        pass
    assert memory._held == 0 and not memory._waiting


def test_a_quarter_of_what_the_machine_or_its_cgroup_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    physical = machine_bytes()
    assert physical > 1 << 28
    second, first = ("", "memory.max", "0::/a/b"), ("memory", "memory.limit_in_bytes", "4:memory:/a/b")
    for tree, name, line in (second, first):
        root = tmp_path / name
        (root / tree / "a" / "b").mkdir(parents=True)
        (root / tree / "a" / "b" / name).write_text("max\n")
        (root / tree / "a" / name).write_text(f"{64 * MIB}\n")
        own = root / "own"
        own.write_text(f"12:cpu:/elsewhere\n{line}\n")
        assert list(room._cgroup_limits(own, root)) == [64 * MIB]
    assert list(room._cgroup_limits(tmp_path / "none", tmp_path)) == []
    monkeypatch.setattr(room, "_cgroup_limits", lambda own, root: iter([64 * MIB]))
    assert machine_bytes() == 64 * MIB


def test_a_run_with_a_bomb_in_it_ends_well(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    silent_flac(folder / "bomb.flac", 100 * 3600)
    silent_flac(folder / "liar.flac", 60, 0)
    good(folder)
    options = {"model": "mfcc", "out": tmp_path / "run", "decode_memory": 0.002}
    with extract(folder, **options) as store:
        assert store.ids == ["good"]
        assert {failure.id: failure.reason.split(" (")[0] for failure in store.errors} == {
            "bomb": "longer than 0.00932 h, which is what the memory for decoding holds: 2.05 MiB",
            "liar": "longer than 0.00932 h, which is what the memory for decoding holds: 2.05 MiB",
        }
    with extract(folder, **options | {"decode_memory": 0.1, "retry_failed": True}) as store:
        assert store.ids == ["good", "liar"], "more room is no difference of settings"
