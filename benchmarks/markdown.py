"""Tables of documents."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Markdown; all columns but the first ``words`` are figures."""
    lines = [header, [*["---"] * words, *["---:"] * (len(header) - words)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
