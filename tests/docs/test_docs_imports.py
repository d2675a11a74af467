"""Imports between modules, the deferred ones and those of type checkers included."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("wrpo_devcluster", "wrpo_engine", "wrpo_operator", cache_dir=None)
    # CycleError names the modules of a circle.
    TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}).prepare()
