"""The report of ``hser-report``: trained models side by side, as one HTML file that needs nothing else.

contents   what is read of a model's folder
markup     HTML as values: text is escaped, numbers that are none are "-"; charts in the page's own colours
sections   what the page says, section by section
page       the page from its static parts
static/    HTML, CSS and JS: inlined, no build step; colours are in ../static/
"""

from __future__ import annotations

from classifiers.report.page import write_report

__all__ = ["write_report"]
