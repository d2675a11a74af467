"""Imports what a judge process imports: one forked from a process that has imported this starts at once."""

import wrpo_engine.__main__
import wrpo_engine.judging.stage
import wrpo_engine.process.cli

__all__ = ["wrpo_engine"]
