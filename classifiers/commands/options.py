"""Options that several commands share, so that one word means one thing in all of them."""

from __future__ import annotations

import click

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
