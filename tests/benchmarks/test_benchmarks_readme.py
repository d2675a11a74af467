"""The page of figures."""

from __future__ import annotations

from benchmarks import readme


def test_the_page_has_a_section_for_every_benchmark() -> None:
    text = readme.README.read_text()
    for name in dict(readme.PARTS):
        assert text.count(f"<!-- {name} -->") == 1, name
        assert text.count(f"<!-- /{name} -->") == 1, name
