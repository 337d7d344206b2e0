"""The main job: recordings in, a store of pooled embeddings out.

    inputs -> manifest -> probe -> plan            what there is, before any audio is decoded
           -> decode ahead -> encode + pool -> commit      batch by batch

A run can be stopped or killed at any moment; the same call goes on where it ended.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from extractor.errors import SettingsError
from extractor.progress import Counts, Progress, Silent, Summary, showing
from extractor.types import SAMPLE_RATE, BatchResult, Failure, Manifest, Seconds, Utterance

if TYPE_CHECKING:
    from extractor.batch import BatchEncoder, Job
    from extractor.decode import DecodeAhead, DecodeOptions
    from extractor.encoders import Model
    from extractor.run_plan import RunPlan
    from extractor.store import Store
    from extractor.store.writer import RunWriter
    from extractor.types import Header

Request = tuple[Sequence[Utterance], "Sequence[Header]"]
Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

CPU_BATCH: Seconds = 30.0  # frames enough for full-speed products, few enough to stay in cache
LARGE_BATCH: Seconds = 240.0  # on a GPU, and for spectral encoders: there a commit costs more than a batch
DECODED_AHEAD = 3  # batches of audio that wait for the encoder at most


@dataclass(frozen=True, slots=True)
class Options:
    """How to extract. Made at the edge, checked once, passed down."""

    model: str = "hubert-large"
    layers: str | int | Sequence[int] = "all"
    pooling: str | Sequence[str] = "mean"
    dtype: str = "auto"
    device: str = "auto"
    corpus: str | None = None  # None: recognised from the file names
    batch_seconds: Seconds | None = None  # audio in a batch; None: by device
    window: Seconds = 60.0  # longer recordings are encoded in windows of this
    channel: int | None = None  # None: the average
    storage_dtype: str = "fp32"
    workers: int | None = None  # decoding threads; None: by the number of cores
    shard: tuple[int, int] = (0, 1)  # this process does batches with index % n == i
    retry_failed: bool = False


def extract(
    inputs: Inputs,
    model: str = "hubert-large",
    layers: str | int | Sequence[int] = "all",
    out: str | os.PathLike[str] = "runs/embeddings",
    pooling: str | Sequence[str] = "mean",
    **options: object,
) -> Store:
    """Embed recordings and return the store; what is in the store already is not done again.

    Args:
        inputs: a folder, a file, a glob, a CSV/TSV/JSONL manifest, or several of them.
        model: a name, a folder in the hub's layout, or a hub id; see `hser-extract --help`.
        layers: ``"all"``, ``"last"``, ``"0,6,12"``, ``"0-24"``, ``"-4--1"`` or numbers.
        out: folder of the run.
        pooling: one or several of mean, std, min, max, first, last, meanstd, none.
        **options: further fields of `Options`.

    Raises:
        HserError: inputs, settings, model or store cannot be used; nothing that is stored is lost.
        A recording that cannot be embedded raises nothing: see ``store.errors``.
    """
    from extractor.store import Store

    try:
        made = Options(model=model, layers=layers, pooling=pooling, **options)  # type: ignore[arg-type]
    except TypeError as e:
        raise SettingsError(f"extract(): {e}") from e
    run(inputs, made, out)
    return Store(out)


def run(
    inputs: Inputs,
    options: Options,
    out: str | os.PathLike[str],
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Summary:
    """Do what `extract` says, and say how it went.

    Args:
        progress: told how far it is.
        stop: once set, the run ends after the batches in flight, with all they gave committed.
    """
    from extractor.batch import BatchEncoder
    from extractor.decode import DecodeOptions
    from extractor.encoders import Model, parse_layers, resolve_device, resolve_dtype
    from extractor.manifest import read_manifest
    from extractor.pooling import parse_poolings
    from extractor.run_plan import make_plan
    from extractor.store import Store

    began = time.perf_counter()
    progress = progress or Silent()
    check(options)
    parse_layers(options.layers)  # the form only: the model is not known yet
    poolings, device = parse_poolings(options.pooling), resolve_device(options.device)
    resolve_dtype(options.dtype, device)
    manifest = read_manifest(inputs, options.corpus)
    progress.note(f"{len(manifest):,} recordings ({_corpus_note(manifest)})")
    for note in manifest.notes:
        progress.note(note)

    model = Model(options.model, options.dtype, device)
    layers = parse_layers(options.layers, model.encoder.num_layers)
    settings = _settings(options, model, layers, poolings)
    progress.note(f"{options.model} in {model.dtype} on {device}, layers {settings['layers']}")
    small = device.type == "cpu" and not model.spectral
    budget = options.batch_seconds or (CPU_BATCH if small else LARGE_BATCH)
    workers = options.workers or min(8, num_cores())
    with _open_run(out, options, settings, manifest, model, layers, poolings) as writer:
        for message in writer.repaired:
            progress.note(message)
        budget_samples = round(budget * SAMPLE_RATE)
        plan = make_plan(writer, manifest, budget_samples, workers, options.retry_failed, progress)
        stages = _Stages(
            plan,
            BatchEncoder(model, layers, poolings, round(options.window * SAMPLE_RATE), budget_samples),
            writer,
            DecodeOptions(channel=options.channel, workers=workers),
            num_streams(device.type, len(plan.batches)),
        )
        summary = Summary(str(out), options.model, recordings=len(plan.utterances))
        summary.padding_share = plan.padding_share(model.encoder)
        todo = [b for b in range(len(plan.batches)) if b % options.shard[1] == options.shard[0]]
        done = writer.done()
        todo = [b for b in todo if b not in done]
        summary.setup_seconds = time.perf_counter() - began
        stages.run(todo, progress, summary, stop or threading.Event())
    summary.notes += writer.warnings
    with Store(out) as store:
        summary.stored, summary.failures = len(store), store.errors
    return summary


def check(options: Options) -> None:
    """Refuse values that cannot work before anything is read or loaded."""
    from extractor.windows import OVERLAP, STEP

    if options.batch_seconds is not None and options.batch_seconds <= 0:
        raise SettingsError(f"--batch-seconds {options.batch_seconds}: must be more than 0")
    steps = options.window / STEP
    if options.window <= 2 * OVERLAP or abs(steps - round(steps)) > 1e-6:
        raise SettingsError(
            f"--window {options.window}: must be more than {2 * OVERLAP:g} seconds and a multiple of {STEP}"
        )
    if options.workers is not None and options.workers < 1:
        raise SettingsError(f"--workers {options.workers}: must be at least 1")
    if options.channel is not None and options.channel < 0:
        raise SettingsError(f"--channel {options.channel}: channels count from 0")
    if options.storage_dtype not in ("fp32", "fp16"):
        raise SettingsError(f"--storage-dtype {options.storage_dtype}: must be fp32 or fp16")
    i, n = options.shard
    if not 0 <= i < n:
        raise SettingsError(f"--shard {i}/{n}: must be i/n with 0 <= i < n")


def _corpus_note(manifest: Manifest) -> str:
    if manifest.corpus == "files":
        return "no corpus recognised"
    return f"corpus {manifest.corpus}"


def _settings(
    options: Options, model: Model, layers: Sequence[int], poolings: Sequence[str]
) -> dict[str, object]:
    """What makes an embedding: compared when a run is resumed, each by name."""
    from extractor.encoders import LAYER_CONVENTION, format_layers
    from extractor.windows import OVERLAP

    return {
        **model.provenance,
        "layers": format_layers(layers),
        "layer_convention": LAYER_CONVENTION,
        "pooling": ",".join(poolings),
        "dtype": model.dtype,
        "sample_rate": SAMPLE_RATE,
        "channel": "average" if options.channel is None else options.channel,
        "window_seconds": options.window,
        "window_overlap_seconds": OVERLAP,
        "augmentation": "none",
        "storage_dtype": options.storage_dtype,
    }


def _environment(device: str) -> dict[str, object]:
    """What computed it: stored, not compared."""
    from importlib.metadata import version

    import torch

    from extractor import __version__
    from extractor.decode import backends

    packages = ("torch", "torchaudio", "transformers", "numpy", "h5py", "soundfile", "soxr", "av")
    return {
        "hser": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "decoders": ",".join(backends()),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or device,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _reachable(model: str) -> str:
    """The model as it can be named from anywhere on this machine, to encode queries with it later."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _open_run(
    out: str | os.PathLike[str],
    options: Options,
    settings: dict[str, object],
    manifest: Manifest,
    model: Model,
    layers: Sequence[int],
    poolings: Sequence[str],
) -> RunWriter:
    from extractor.pooling import POOLINGS
    from extractor.store.writer import RunWriter

    return RunWriter.open(
        Path(out),
        settings=settings,
        environment={"model_spec": _reachable(options.model), **_environment(model.device.type)},
        columns=manifest.columns,
        layers=layers,
        dim={name: POOLINGS[name].width * model.encoder.dim for name in poolings},
        shard=options.shard,
        storage_dtype=options.storage_dtype,
    )


def num_cores() -> int:
    """Cores that this process may use, which containers and job schedulers limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_streams(device: str, num_batches: int) -> tuple[int, int]:
    """Batches to encode at once, and threads for each.

    On a CPU one thread a batch wastes nothing on waiting for other threads; past eight cores the
    memory that batches take counts for more. It depends on the machine and the plan alone, not on
    what is left to do: another number of threads could round differently.
    """
    cores = num_cores()
    if device != "cpu":
        return 1, cores
    streams = max(1, min(cores, 8, num_batches))
    return streams, max(1, cores // streams)


def _unchanged(utterance: Utterance, header: Header | Failure, planned: int) -> Header | Failure:
    """The header, or a failure where the recording's length is not what it was when it was planned."""
    from extractor.probe import num_samples_16k

    if isinstance(header, Failure) or not header.exact or num_samples_16k(header, utterance) == planned:
        return header
    reason = (
        f"changed since planning: {num_samples_16k(header, utterance) / SAMPLE_RATE:.2f} s long now,"
        f" {planned / SAMPLE_RATE:.2f} s then; run again with --retry-failed to take it as it is"
    )
    return Failure(utterance.id, utterance.path, "decode", reason)


class _Stages:
    """Decode ahead -> encode and pool, some batches at once -> commit, in the calling thread."""

    def __init__(
        self,
        plan: RunPlan,
        encode: BatchEncoder,
        writer: RunWriter,
        decoding: DecodeOptions,
        streams: tuple[int, int],
    ) -> None:
        self.plan, self.encode, self.writer, self.decoding = plan, encode, writer, decoding
        self.streams, self.threads = streams
        # By batch: what the header already says cannot be decoded, by index in the batch.
        self.unreadable: dict[int, dict[int, Failure]] = {}

    def run(self, todo: Sequence[int], progress: Progress, summary: Summary, stop: threading.Event) -> None:
        """Do the batches of ``todo``; a failed recording is a row, anything else ends the run."""
        import torch

        from extractor.decode import DecodeAhead

        audio = self.plan.audio(todo)
        recordings = sum(len(self.plan.batches[b]) for b in todo)
        progress.note(
            f"{len(self.plan.utterances):,} recordings planned; to do: {recordings:,} of them,"
            f" {audio / 3600:.2f} h, in batches: {len(todo):,}, padding {summary.padding_share:.1%}"
        )
        began = time.perf_counter()
        threads_before = torch.get_num_threads()
        pool = ThreadPoolExecutor(
            self.streams, "encode", initializer=torch.set_num_threads, initargs=(self.threads,)
        )
        ahead = DecodeAhead(self._requests(todo), self.decoding, ahead=DECODED_AHEAD)
        with showing(progress, "embedding", recordings, audio, summary.padding_share), ahead, pool:
            self._flow(todo, ahead, pool, progress, summary, stop)
        torch.set_num_threads(threads_before)
        summary.seconds = time.perf_counter() - began
        summary.stopped = stop.is_set()

    def _flow(
        self,
        todo: Sequence[int],
        ahead: DecodeAhead,
        pool: ThreadPoolExecutor,
        progress: Progress,
        summary: Summary,
        stop: threading.Event,
    ) -> None:
        jobs = self._jobs(todo, ahead)
        flying: set[Future[tuple[BatchResult, Seconds]]] = set()
        finished, audio, more = 0, 0.0, True
        while more or flying:
            # One batch more than streams: a stream that ends finds the next one waiting.
            while more and len(flying) <= self.streams and not stop.is_set():
                idle, asked = len(flying) < self.streams, time.perf_counter()
                job = next(jobs, None)
                summary.decode_wait += (time.perf_counter() - asked) if idle else 0.0
                more = job is not None
                if job is not None:
                    flying.add(pool.submit(self._timed, job))
            more = more and not stop.is_set()
            ready, flying = wait(flying, timeout=None, return_when=FIRST_COMPLETED)
            for future in ready:
                result, busy = future.result()
                summary.encode_seconds += busy / self.streams
                asked = time.perf_counter()
                refused = self.writer.commit(result)
                summary.write_seconds += time.perf_counter() - asked
                summary.embedded += len(result.rows) - len(refused)
                summary.rerun_in_fp32 += sum(r.precision != self.encode.model.dtype for r in result.rows)
                summary.audio += sum(r.num_samples for r in result.rows) / SAMPLE_RATE
                finished += len(self.plan.batches[result.batch])
                audio += self.plan.audio([result.batch])
                progress.update(Counts(finished, audio))

    def _timed(self, job: Job) -> tuple[BatchResult, Seconds]:
        began = time.perf_counter()
        return self.encode(job), time.perf_counter() - began

    def _requests(self, todo: Sequence[int]) -> Iterator[Request]:
        """What to decode. Headers are read again right before: a million need not be kept, and a
        recording that changed or vanished since planning is noticed."""
        from extractor.probe import probe

        for b in todo:
            positions = self.plan.batches[b]
            utterances = [self.plan.utterances[p] for p in positions]
            found = probe(utterances, self.decoding.workers)
            planned = self.plan.num_samples[positions].tolist()
            headers = [_unchanged(*each) for each in zip(utterances, found, planned, strict=True)]
            self.unreadable[b] = {i: h for i, h in enumerate(headers) if isinstance(h, Failure)}
            readable = [
                (u, h) for u, h in zip(utterances, headers, strict=True) if not isinstance(h, Failure)
            ]
            yield [u for u, _ in readable], [h for _, h in readable]

    def _jobs(self, todo: Sequence[int], ahead: DecodeAhead) -> Iterator[Job]:
        from extractor.batch import Job

        for b, decoded in zip(todo, ahead, strict=True):
            positions = self.plan.batches[b]
            utterances = [self.plan.utterances[p] for p in positions]
            failures, good = self.unreadable.pop(b), iter(decoded)
            whole = [failures[i] if i in failures else next(good) for i in range(len(positions))]
            yield Job(b, positions.tolist(), utterances, whole)
