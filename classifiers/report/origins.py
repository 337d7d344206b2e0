"""Where a model's embeddings came from, and what makes them and the model again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from classifiers.report.contents import ModelContents
from classifiers.report.markup import Html, facts, tag
from classifiers.training.model_folder import Origin

_ORIGIN = (
    "model",
    "source",
    "revision",
    "weights",
    "dtype",
    "normalisation",
    "channel",
    "window_seconds",
    "augmentation",
)


def origin_facts(origin: Origin) -> Html:
    layers = ", ".join(map(str, origin.layers))
    settings = [
        (name.replace("_", " "), tag("span", origin.settings[name], class_="code"))
        for name in _ORIGIN
        if name in origin.settings
    ]
    versions = ", ".join(
        f"{name} {origin.environment[name]}"
        for name in ("hser", "torch", "transformers")
        if name in origin.environment
    )
    return facts(
        [
            ("run", tag("span", origin.path, class_="code")),
            ("pooling, layers", f"{origin.pooling}, {layers}"),
            *settings,
            ("rows", f"{origin.num_rows:,}, stored as {origin.storage_dtype}"),
            ("made with", versions),
        ]
    )


def command_block(lines: Sequence[str]) -> Html:
    return tag("pre", tag("code", "\n".join(lines)), tabindex="0")


def commands_of(model: ModelContents) -> list[str]:
    """What makes this model again, from the recordings on."""
    config = f"{model.path.rstrip('/')}/config.yaml"
    return [
        *(extract_command(origin) for origin in model.origins),
        shlex.join(["hser-train", "--config", config, "--out", model.path]),
        shlex.join(["hser-predict", model.path]) + " RECORDINGS",
    ]


# Settings and the flags of hser-extract that give them, where they are not the default.
_FLAGS: dict[str, tuple[str, Any]] = {
    "channel": ("--channel", "average"),
    "window_seconds": ("--window", 60.0),
    "storage_dtype": ("--storage-dtype", "fp32"),
    "augmentation": ("--augment", "none"),
    "copies": ("--copies", 1),
    "seed": ("--seed", 0),
}


def extract_command(origin: Origin) -> str:
    """The hser-extract that made a run, but for the recordings' own place."""
    settings = origin.settings
    words = ["--model", str(origin.environment.get("model_spec", settings["model"]))]
    words += ["--layers", str(settings["layers"]), "--pooling", str(settings["pooling"])]
    words += ["--dtype", str(settings["dtype"]), "--out", origin.path]
    for name, (flag, default) in _FLAGS.items():
        if settings.get(name, default) != default:
            words += [flag, str(settings[name])]
    if settings.get("clean") is False:
        words.append("--no-clean")
    return "hser-extract RECORDINGS " + shlex.join(words)
