"""Options that several commands share, so that one word means one thing in all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from extractor.errors import SettingsError
from extractor.inputs.corpora.words import parse_renames

if TYPE_CHECKING:
    from classifiers.training.config import Experiment

POOLING = click.option("--pooling", help="[default: the only one]")
LAYERS = click.option("--layers", default="all", show_default=True, help="all, or numbers with commas.")
QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress.")
INCOMPLETE = click.option(
    "--incomplete", is_flag=True, help="Take a run that is not finished as it is; what is missing is said."
)
TEST_ON = click.option(
    "--test-on",
    metavar="clean|copies|NAME",
    help="Test on recordings as they are, on augmented copies, or on an augmentation's.  [default: clean]",
)
INCLUDE_HEARD = click.option(
    "--include-heard", is_flag=True, help="Test on recordings and speakers heard in training, too."
)
FORCE = click.option("--force", is_flag=True, help="Overwrite --out, whatever it holds of ours.")


def layer_numbers(spec: str) -> tuple[int, ...] | None:
    """What `LAYERS` names; None: all. Raises SettingsError."""
    if spec == "all":
        return None
    try:
        return tuple(int(part) for part in spec.split(","))
    except ValueError as error:
        raise SettingsError(f"--layers {spec!r}: write all, or numbers such as 0,6,12") from error


def experiment_of(command: str, config: str | None, options: Mapping[str, Any]) -> Experiment:
    """Flags, by the names of an experiment's keys, over the keys of the file. Raises SettingsError."""
    from classifiers.training.config import experiment_from, read_yaml

    values = read_yaml(config) if config is not None else {}
    for name, given in options.items():
        if name in _CONVERT:
            given = _CONVERT[name](given) if given else None
        if name == "incomplete":
            given = given or None  # the file may say so, too
        if given is not None:
            values["params" if name == "param" else name] = given
    return experiment_from(values, config or command)


def _pairs(option: str, texts: Sequence[str], several: bool = False) -> dict[str, Any]:
    from classifiers.training.config import parse_value

    pairs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise SettingsError(f"{option} {text!r}: write name=value")
        pairs[name] = [parse_value(each) for each in value.split(",")] if several else parse_value(value)
    return pairs


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "param": lambda texts: _pairs("--param", texts),
    "grid": lambda texts: "default" if list(texts) == ["default"] else _pairs("--grid", texts, several=True),
    "map": parse_renames,
    "classes": lambda text: text.split(","),
}
