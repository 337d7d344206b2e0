"""``make demo``: the engine from end to end on a bare machine, or on a corpus and a model of one's own.

    synthetic speech or --corpus -> engine (mfcc, small HuBERT, or --model) -> stores -> neighbours

Without options nothing is downloaded: the recordings are synthetic speech, not recordings of people,
and the HuBERT has random weights. It shows that everything works, and how; it measures nothing.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extractor.commands.options import quiet_libraries, run_command
from extractor.run.interruption import EXIT_INTERRUPTED, stop_on_signals

if TYPE_CHECKING:
    import numpy as np

    from extractor.store import Store

POOLING = "mean,std"
NUM_NEIGHBOURS = 3  # shown of each query
MAX_QUERIES = 8  # shown
BLOCK_ROWS = 256  # of similarities in memory at a time
DISCLAIMER = "Synthetic speech, not recordings of people: this says nothing about real emotion recognition."

# The architecture of the large HuBERTs (layer norm, stable), small enough for seconds on one core.
SMALL_HUBERT: dict[str, Any] = {
    "model_type": "hubert",
    "architectures": ["HubertModel"],
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "conv_dim": [256] * 7,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}


@dataclass(frozen=True, slots=True)
class Recordings:
    """Rows of a store as the neighbour search needs them: ``[N]`` or ``[N, D]``."""

    vectors: np.ndarray  # float32 [N, D], of length 1
    ids: np.ndarray
    emotions: np.ndarray  # "" where unknown, as in `speakers`
    speakers: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, rows: np.ndarray) -> Recordings:
        return Recordings(self.vectors[rows], self.ids[rows], self.emotions[rows], self.speakers[rows])

    @property
    def parts_speakers(self) -> bool:
        """Whether neighbours by the same speaker can be left out: at least two are known."""
        return len(set(self.speakers.tolist()) - {""}) > 1


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--corpus", type=click.Path(), help="Recordings.  [default: synthetic speech]")
@click.option("--model", help="As in hser-extract.  [default: mfcc, and without --corpus a random HuBERT]")
@click.option("--out", default="demo", show_default=True, type=click.Path(), help="Folder for all of it.")
def command(corpus: str | None, model: str | None, out: str) -> None:
    """Extract a corpus, show what is stored, and which recordings sound alike.

    Run it again: nothing is done twice.
    """
    quiet_libraries()
    demo(corpus or None, model or None, Path(out))  # `make demo` passes what is not set as ""


def demo(
    corpus: str | None,
    model: str | None,
    out: Path,
    num_speakers: int = 4,
    num_sentences: int = 6,
) -> None:
    """The whole demonstration; speakers and sentences are those of the synthetic corpus."""
    from extractor.store import Store

    synthetic = corpus is None
    if corpus is None:
        corpus = str(synthetic_corpus(out, num_speakers, num_sentences))
    runs = out / "runs"
    if model is None and synthetic:
        first = runs / "mfcc"
        embed(corpus, "mfcc", first)
        hubert = small_hubert(out)
        embed(corpus, f"random:{hubert}", runs / "small-hubert-random")
    else:
        model = model or "mfcc"
        first = runs / _folder_name("synthetic-speech" if synthetic else corpus, model)
        embed(corpus, model, first)
    heading("What is stored")
    show_info(first)
    with Store(first) as store:
        if not len(store):
            click.echo("No recording could be embedded, so there are no neighbours to show.")
            return
        show_neighbours(store)
    if synthetic:
        click.echo(DISCLAIMER)


def main() -> None:
    run_command(command)


def heading(text: str) -> None:
    click.echo(f"\n== {text}")


# What is extracted


def synthetic_corpus(out: Path, num_speakers: int, num_sentences: int) -> Path:
    """The manifest of the synthetic corpus, which is written unless it is there."""
    from classifiers.demo.synthetic import write_corpus

    folder = out / "synthetic-speech"
    heading("Recordings: synthetic speech, not recordings of people")
    manifest = folder / "manifest.csv"  # written last: where it is, all recordings are
    if manifest.exists():
        click.echo(f"{folder}: there already")
        return manifest
    manifest = write_corpus(folder, num_speakers, sentences=range(num_sentences))
    num_files = sum(1 for _ in folder.rglob("*.wav"))
    click.echo(f"{folder}: {num_files} clips of {num_speakers} synthetic speakers, written just now")
    return manifest


def small_hubert(out: Path) -> Path:
    """A model folder with a config and no weights, for the model spec ``random:FOLDER``."""
    folder = out / "small-hubert"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SMALL_HUBERT, indent=2) + "\n", encoding="utf-8")
    return folder


def embed(corpus: str, model: str, out: Path) -> None:
    """Run the engine as ``hser-extract`` does, and say how it went."""
    from extractor.run.engine import run
    from extractor.run.options import Options
    from extractor.progress import print_rows, progress_for, summary_rows

    note = " (random weights: nothing that it gives means anything)" if model.startswith("random:") else ""
    heading(f"Embeddings: {model}{note}")
    click.echo(f"$ hser-extract {corpus} --model {model} --layers all --pooling {POOLING} --out {out}")
    options = Options(model=model, layers="all", pooling=POOLING)
    summary = run(corpus, options, out, progress_for(sys.stderr), stop_on_signals())
    print_rows(summary_rows(summary))
    if summary.stopped:
        sys.exit(EXIT_INTERRUPTED)
    if summary.stored and not summary.embedded:
        click.echo("All of it was stored by an earlier run: nothing was done twice.")


def show_info(run: Path) -> None:
    """What ``hser-store info`` says."""
    from extractor.commands.store import info

    click.echo(f"$ hser-store info {run}")
    info.main([str(run)], standalone_mode=False)


def _folder_name(corpus: str, model: str) -> str:
    name = f"{Path(corpus).stem or 'recordings'}-{model.strip('./')}"
    return re.sub(r"[^\w.@-]+", "-", name)


# Which recordings sound alike


def read_recordings(store: Store) -> Recordings:
    """The last layer's poolings side by side, each dimension standardised over the store."""
    import numpy as np

    from classifiers.data.standardise import standardise
    from classifiers.lookup.neighbours import unit

    vectors = np.concatenate([store.load(store.layers[-1], pooling) for pooling in store.poolings], axis=1)
    vectors = unit(standardise(vectors))
    columns = (store.ids, store.labels("emotion"), store.labels("speaker"))
    return Recordings(vectors, *(np.array(column, dtype=np.str_) for column in columns))


def cosines(recordings: Recordings, rows: np.ndarray) -> np.ndarray:
    """float32 ``[len(rows), N]``: how similar each recording is to each of ``rows``.

    -inf for the recording itself and, where speakers are known, for others by its speaker: that a
    voice is like itself is no answer.
    """
    import numpy as np

    similar = recordings.vectors[rows] @ recordings.vectors.T
    similar[np.arange(len(rows)), rows] = -np.inf
    if recordings.parts_speakers:
        speakers = recordings.speakers
        similar[(speakers == speakers[rows, None]) & (speakers != "")] = -np.inf
    return similar


def share_of_same_emotion(recordings: Recordings) -> tuple[float, float]:
    """How often the nearest neighbour has the query's emotion, and how often a random one would."""
    import numpy as np

    emotions = recordings.emotions
    same, chance = 0, 0.0
    for start in range(0, len(recordings), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(recordings)))
        similar = cosines(recordings, rows)
        same += int((emotions[similar.argmax(axis=1)] == emotions[rows]).sum())
        allowed = similar > -np.inf
        alike = allowed & (emotions == emotions[rows, None])
        chance += float((alike.sum(axis=1) / allowed.sum(axis=1)).sum())
    return same / len(recordings), chance / len(recordings)


def choose_queries(recordings: Recordings) -> list[int]:
    """One recording of each emotion, by different speakers where it can be; without labels a few."""
    import numpy as np

    known = sorted(set(recordings.emotions.tolist()) - {""})[:MAX_QUERIES]
    if not known:
        return np.linspace(0, len(recordings) - 1, min(4, len(recordings))).astype(int).tolist()
    # Corpora are often in the order of their speakers: further on for each emotion is someone else.
    rows = [np.flatnonzero(recordings.emotions == emotion) for emotion in known]
    return [int(of_emotion[i * len(of_emotion) // len(known)]) for i, of_emotion in enumerate(rows)]


def show_neighbours(store: Store) -> None:
    """Print the nearest neighbours of a few recordings, and how many have the same emotion."""

    recordings = read_recordings(store)
    heading("Which recordings sound alike")
    others = " by other speakers" if recordings.parts_speakers else ""
    click.echo(
        f"Nearest{others} by cosine, on {' and '.join(store.poolings)} of layer {store.layers[-1]}"
        f" ({store.settings['model']}), each dimension standardised."
    )
    if not recordings.parts_speakers:
        click.echo("Fewer than two speakers are known, so neighbours may be by the same speaker.")
    print_neighbours(recordings, choose_queries(recordings))
    show_share(recordings)


def print_neighbours(recordings: Recordings, queries: list[int]) -> None:
    """A table: each query, and its neighbours below it."""
    import numpy as np

    rows = [("recording", "emotion", "speaker", "cosine")]
    for query, similar in zip(queries, cosines(recordings, np.array(queries)), strict=True):
        rows.append((*_described(recordings, query), ""))
        for row in np.argsort(-similar, kind="stable")[:NUM_NEIGHBOURS]:
            if similar[row] > -np.inf:
                name, emotion, speaker = _described(recordings, row)
                rows.append((f"  {name}", emotion, speaker, f"{similar[row]:6.3f}"))
    widths = [max(len(cells[column]) for cells in rows) for column in range(4)]
    for cells in rows:
        padded = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _described(recordings: Recordings, row: int) -> tuple[str, str, str]:
    unknown = "-"
    return str(recordings.ids[row]), recordings.emotions[row] or unknown, recordings.speakers[row] or unknown


def show_share(recordings: Recordings) -> None:
    """Print how many recordings have a nearest neighbour of their own emotion, if emotions are known."""
    known = recordings.only(recordings.emotions != "")
    num_emotions = len(set(known.emotions.tolist()))
    if num_emotions < 2:
        click.echo(
            f"\n{'One emotion is' if num_emotions else 'No emotions are'} labelled, so there is no share of"
            " matching neighbours to give. Labels come\nfrom the file names of known corpora, from folders"
            " named for emotions, or from a column `emotion`."
        )
        return
    share, chance = share_of_same_emotion(known)
    others = " by another speaker" if known.parts_speakers else ""
    click.echo(
        f"\nOf {len(known):,} recordings {share:.0%} have a nearest neighbour{others} with the same emotion"
        f" ({chance:.0%} by chance)."
    )


if __name__ == "__main__":
    main()
