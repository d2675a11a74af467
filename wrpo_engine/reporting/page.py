"""Template engine of the HTML pages; it escapes all text of prompts, models and users."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment() -> Environment:
    """Return the engine with the templates of this package."""
    return Environment(
        loader=PackageLoader("wrpo_engine.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
