"""The report of ``hser-report``: trained models side by side, as one HTML file that needs nothing else.

contents   what is read of a model's folder
markup     HTML as values: text is escaped, numbers that are none are "-"
svg        a chart as part of a page, in the page's own colours
sections   what the page says, section by section
origins    where the embeddings came from, and the commands
page       the page from its static parts
static/    HTML, CSS and JS: inlined, no build step; colours are in ../static/
"""

from __future__ import annotations

from classifiers.report.page import write_report

__all__ = ["write_report"]
