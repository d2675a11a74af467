"""The process of a stage: signals, environment, progress and termination message."""
