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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extractor.commands.options import quiet_libraries, run_command, table_lines
from extractor.run.interruption import EXIT_INTERRUPTED, stop_on_signals

if TYPE_CHECKING:
    import numpy as np

    from extractor.store import Store

POOLING = "mean,std"
NUM_NEIGHBOURS = 3  # shown of each query
MAX_QUERIES = 8  # shown
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


main = partial(run_command, command)


def demo(
    corpus: str | None, model: str | None, out: Path, num_speakers: int = 4, num_sentences: int = 6
) -> None:
    """The whole demonstration; speakers and sentences are those of the synthetic corpus."""
    from classifiers.data.runs import open_run
    from classifiers.demo.synthetic import write_corpus
    from extractor.commands.store import info

    synthetic = corpus is None
    if corpus is None:
        folder = out / "synthetic-speech"
        heading("Recordings: synthetic speech, not recordings of people")
        corpus = str(folder / "manifest.csv")
        if Path(corpus).exists():  # written last: where it is, all recordings are
            click.echo(f"{folder}: there already")
        else:
            write_corpus(folder, num_speakers, range(num_sentences))
            num_files = sum(1 for _ in folder.rglob("*.wav"))
            click.echo(f"{folder}: {num_files} clips of {num_speakers} synthetic speakers, written just now")
    runs = out / "runs"
    if model is None and synthetic:
        first = runs / "mfcc"
        embed(corpus, "mfcc", first)
        hubert = out / "small-hubert"  # a config and no weights, for the model spec ``random:FOLDER``
        hubert.mkdir(parents=True, exist_ok=True)
        (hubert / "config.json").write_text(json.dumps(SMALL_HUBERT, indent=2) + "\n", encoding="utf-8")
        embed(corpus, f"random:{hubert}", runs / "small-hubert-random")
    else:
        model = model or "mfcc"
        name = "synthetic-speech" if synthetic else Path(corpus).stem or "recordings"
        first = runs / re.sub(r"[^\w.@-]+", "-", f"{name}-{model.strip('./')}")
        embed(corpus, model, first)
    heading("What is stored")
    click.echo(f"$ hser-store info {first}")
    info.main([str(first)], standalone_mode=False)
    with open_run(first, incomplete=True) as store:
        if not len(store):
            click.echo("No recording could be embedded, so there are no neighbours to show.")
            return
        show_neighbours(store)
    if synthetic:
        click.echo(DISCLAIMER)


def heading(text: str) -> None:
    click.echo(f"\n== {text}")


def embed(corpus: str, model: str, out: Path) -> None:
    """Run the engine as ``hser-extract`` does, and say how it went."""
    from extractor.progress import print_rows, progress_for, summary_rows
    from extractor.run.engine import run
    from extractor.run.options import Options

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


# Which recordings sound alike


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Recordings of a store, and how near they are to each other: ``[N]`` or ``[N, D]``."""

    units: np.ndarray  # float32 [N, D], of length 1
    ids: list[str]
    emotions: np.ndarray  # of str, "" where unknown, as in `speakers`
    speakers: np.ndarray

    @property
    def parts_speakers(self) -> bool:
        """Whether neighbours by the same speaker can be left out: at least two are known."""
        return len(set(self.speakers.tolist()) - {""}) > 1

    @property
    def voices(self) -> np.ndarray:
        """int64 ``[N]``: recordings of one voice are no neighbours, since that it is like itself is no answer.

        A recording whose speaker is not known, or that cannot be told from others by it, is a voice of its own.
        """
        import numpy as np

        own = np.arange(len(self.ids))
        if not self.parts_speakers:
            return own
        _, codes = np.unique(self.speakers, return_inverse=True)
        return np.where(self.speakers == "", own + len(own), codes)

    def neighbours(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosine ``[N, k]``, descending, and row ``[N, k]``, -1 where there are fewer."""
        from extractor.index.exact import nearest

        return nearest(self.units, self.units, k, [(self.voices, self.voices)])

    def only(self, rows: np.ndarray) -> Embeddings:
        ids = [self.ids[row] for row in rows.tolist()]
        return Embeddings(self.units[rows], ids, self.emotions[rows], self.speakers[rows])


def read_embeddings(store: Store) -> Embeddings:
    """The last layer's poolings side by side, each dimension standardised over the store."""
    import numpy as np

    from classifiers.data.standardise import standardise
    from extractor.index.exact import unit

    poolings = [store.load(store.layers[-1], pooling) for pooling in store.poolings]
    labels = (np.array(store.labels(name), np.str_) for name in ("emotion", "speaker"))
    return Embeddings(unit(standardise(np.concatenate(poolings, axis=1))), store.ids, *labels)


def share_of_same_emotion(recordings: Embeddings) -> tuple[float, float]:
    """How often the nearest neighbour has the query's emotion, and how often a random one would."""
    import numpy as np

    emotions, voices = recordings.emotions, recordings.voices
    _, row = recordings.neighbours(1)
    same = emotions[row[:, 0]] == emotions

    def alike(*columns: np.ndarray) -> np.ndarray:
        """Of each recording how many are like it in all of these, itself among them."""
        _, code, count = np.unique(np.stack(columns), axis=1, return_inverse=True, return_counts=True)
        return count[code]

    _, emotion = np.unique(emotions, return_inverse=True)
    chance = (alike(emotion) - alike(emotion, voices)) / (len(voices) - alike(voices))
    return float(same.mean()), float(chance.mean())


def choose_queries(recordings: Embeddings) -> list[int]:
    """One recording of each emotion, by different speakers where it can be; without labels a few."""
    import numpy as np

    known = sorted(set(recordings.emotions.tolist()) - {""})[:MAX_QUERIES]
    count = len(recordings.ids)
    if not known:
        return np.linspace(0, count - 1, min(4, count)).astype(int).tolist()
    # Corpora are often in the order of their speakers: further on for each emotion is someone else.
    rows = [np.flatnonzero(recordings.emotions == emotion) for emotion in known]
    return [int(of_emotion[i * len(of_emotion) // len(known)]) for i, of_emotion in enumerate(rows)]


def show_neighbours(store: Store) -> None:
    """Print the nearest neighbours of a few recordings, and how many have the same emotion."""
    import numpy as np

    found = read_embeddings(store)
    heading("Which recordings sound alike")
    others = " by other speakers" if found.parts_speakers else ""
    click.echo(
        f"Nearest{others} by cosine, on {' and '.join(store.poolings)} of layer {store.layers[-1]}"
        f" ({store.settings['model']}), each dimension standardised."
    )
    if not found.parts_speakers:
        click.echo("Fewer than two speakers are known, so neighbours may be by the same speaker.")
    cosine, row = found.neighbours(NUM_NEIGHBOURS)
    lines = [("recording", "emotion", "speaker", "cosine")]
    for query in choose_queries(found):
        near = [(n, f"  {found.ids[n]}", f"{c:6.3f}") for n, c in zip(row[query], cosine[query], strict=True)]
        for n, name, shown in [(query, found.ids[query], ""), *(each for each in near if each[0] >= 0)]:
            lines.append((name, found.emotions[n] or "-", found.speakers[n] or "-", shown))
    click.echo("\n".join(table_lines(lines)))
    known = found.only(np.flatnonzero(found.emotions != ""))
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
        f"\nOf {len(known.ids):,} recordings {share:.0%} have a nearest neighbour{others} with the same emotion"
        f" ({chance:.0%} by chance)."
    )


if __name__ == "__main__":
    main()
