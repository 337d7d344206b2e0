"""The figures of `benchmarks.accuracy`: what each is of, and the commands that make it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MFCC, LOGMEL, WHISPER, EGEMAPS = "mfcc", "logmel", "whisper", "egemaps"
MFCC_FRAMES = "mfcc-frames"
# Named, since `auto` is bf16 on one machine and fp32 on another, and a figure moves by a recording or two.
DTYPE = "fp32"
EXTRACTION = {
    MFCC: f"--model mfcc --pooling meanstd --dtype {DTYPE}",
    LOGMEL: f"--model logmel --pooling meanstd --dtype {DTYPE}",
    MFCC_FRAMES: f"--model mfcc --pooling none --dtype {DTYPE}",
    WHISPER: f"--model ./whisper-tiny-en --layers all --pooling mean --dtype {DTYPE}",
}
IN_WORDS = {
    MFCC: "MFCC, mean and deviation",
    LOGMEL: "log-mel, mean and deviation",
    MFCC_FRAMES: "MFCC, frames",
    WHISPER: "Whisper tiny.en",
    EGEMAPS: "openSMILE eGeMAPSv02",
}
PROTOCOLS = {"emodb": "loso", "ravdess": "emobox-ravdess"}  # of each corpus
CLASSIFIERS = {
    "svm": "linear SVM",
    "logistic": "logistic regression",
    "bilstm": "two-layer BiLSTM",
    "attentive-stats": "attentive statistics pooling",
    "superb": "SUPERB's head, all layers",
}
# `--fusion`, what a row is called by, and in words. Rows of the gate without a prior are no longer it.
FUSIONS = {
    "concat": ("concat", "side by side"),
    "average": ("average", "probabilities averaged"),
    "gate": ("gate-with-prior", "learned gate"),
}
# How a row comes about
TRAIN, MATRIX, NEIGHBOURS = "hser-train", "hser-evaluate matrix", "hser-lookup evaluate"
REFERENCE = "reference"

AT_DEFAULTS = (
    "at its defaults but for what the command says; the epoch is the best one for speakers"
    " held out of the training recordings, nothing else is selected"
)
FLATTERS = (
    "layer 3 was found best on these very recordings, so this figure flatters; it is here because"
    " an independent script gave UA 94.2 % for the same"
)
OUTSIDE = (
    "the outside reference: features of another package, the same folds and the same SVM, in a loop"
    " of its own"
)
BY_CORPUS = (
    "`--normalise corpus` standardises each corpus by all of its own recordings, without their"
    " labels; within a corpus that changes nothing, since the classifier standardises anyway"
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a table. ``features`` and ``classifier`` in words; ``arguments`` as they are typed."""

    name: str
    corpora: tuple[str, ...]
    features: str
    classifier: str
    runs: tuple[str, ...]
    arguments: str  # of a reference the protocol alone
    kind: str = TRAIN
    note: str = ""


def trained(corpus: str, features: str, classifier: str, options: str, note: str = "") -> Figure:
    """On one run."""
    arguments = f"--classifier {classifier}{options} --protocol {PROTOCOLS[corpus]}"
    words = IN_WORDS[features], CLASSIFIERS[classifier]
    name, runs = f"{corpus}-{features}-{classifier}", (f"{corpus}-{features}",)
    return Figure(name, (corpus,), *words, runs, arguments, note=note)


def all_figures() -> Iterator[Figure]:
    for corpus in PROTOCOLS:
        # Layer and C are selected inside each fold's training rows.
        for features, classifier in ((MFCC, "svm"), (LOGMEL, "svm"), (WHISPER, "svm"), (WHISPER, "logistic")):
            best = " --grid default --layer best" if features == WHISPER else " --grid default"
            yield trained(corpus, features, classifier, best)
        if corpus == "emodb":
            name, words = (
                "emodb-whisper-3-logistic",
                ("Whisper tiny.en, layer 3", "logistic regression, C = 0.01"),
            )
            arguments = "--classifier logistic --layer 3 --protocol loso"
            yield Figure(name, (corpus,), *words, ("emodb-whisper",), arguments, note=FLATTERS)
        else:
            # Without selection: a fold takes minutes. In bf16 an epoch takes half the time.
            bilstm = " --param dtype=bf16 --param patience=5"
            yield trained(corpus, MFCC_FRAMES, "bilstm", bilstm, AT_DEFAULTS)
            yield trained(corpus, MFCC_FRAMES, "attentive-stats", "", AT_DEFAULTS)
            yield trained(corpus, WHISPER, "superb", "", AT_DEFAULTS)
        for fusion, (called, how) in FUSIONS.items():
            for classifier in ("svm", "logistic"):
                yield Figure(
                    f"{corpus}-fusion-{called}-{classifier}",
                    (corpus,),
                    f"{IN_WORDS[MFCC]}; {IN_WORDS[WHISPER]}",
                    f"{CLASSIFIERS[classifier]}, {how}",
                    (f"{corpus}-{MFCC}", f"{corpus}-{WHISPER}"),
                    f"--classifier {classifier} --grid default --layer best --fusion {fusion}"
                    f" --protocol {PROTOCOLS[corpus]}",
                )
        # Ids, labels and speakers are those of the MFCC run.
        name, words = f"{corpus}-{EGEMAPS}-svm", (IN_WORDS[EGEMAPS], CLASSIFIERS["svm"])
        yield Figure(name, (corpus,), *words, (f"{corpus}-{MFCC}",), PROTOCOLS[corpus], REFERENCE, OUTSIDE)
    for normalise, note in (("none", ""), ("corpus", BY_CORPUS)):
        words, runs = (IN_WORDS[WHISPER], CLASSIFIERS["logistic"]), tuple(f"{c}-{WHISPER}" for c in PROTOCOLS)
        arguments = f"--classifier logistic --layer best --normalise {normalise}"
        yield Figure(f"cross-{normalise}", tuple(PROTOCOLS), *words, runs, arguments, MATRIX, note)
    for corpus in PROTOCOLS:
        for features in (MFCC, WHISPER):
            name, words = f"{corpus}-{features}-neighbours", (IN_WORDS[features], "10 neighbours")
            runs, arguments = (f"{corpus}-{features}",), "--leave-out speaker --k 10"
            yield Figure(name, (corpus,), *words, runs, arguments, NEIGHBOURS)


ROWS: Mapping[str, Figure] = {each.name: each for each in all_figures()}


def extraction(run: str) -> str:
    """The command that makes a run."""
    corpus, _, features = run.partition("-")
    return f"hser-extract {corpus}/ {EXTRACTION[features]} --out runs/{run}"


def commands(figure: Figure) -> list[str]:
    """What a user types for a figure, from recordings on; the last one gives it."""
    runs, name = [f"runs/{run}" for run in figure.runs], figure.name
    together = " ".join(runs)
    if figure.kind == REFERENCE:
        corpus = figure.corpora[0]
        last = [f"python -m benchmarks.egemaps {corpus}/ --out runs/{corpus}-{EGEMAPS}.npz"]
        last.append(f"python -m benchmarks.accuracy --data . --only {name}")
    elif figure.kind == TRAIN:
        sources = together if len(runs) == 1 else " ".join(f"--features {run}" for run in runs)
        last = [f"{TRAIN} {sources} {figure.arguments} --out models/{name}"]
    else:
        out = f" --out studies/{name}" if figure.kind == MATRIX else ""
        last = [f"{figure.kind} {together} {figure.arguments}{out}"]
    return [extraction(run) for run in figure.runs] + last
