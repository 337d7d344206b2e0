"""The list of planted faults still fits the sources, so that `make mutants` can plant them."""

from __future__ import annotations

from mutants import ROOT, read


def test_every_fault_can_be_planted() -> None:
    mutants = read()
    assert [problem for mutant in mutants if (problem := mutant.problem(ROOT))] == []
    assert len({mutant.name for mutant in mutants}) == len(mutants)
    assert all(mutant.old != mutant.new for mutant in mutants)
