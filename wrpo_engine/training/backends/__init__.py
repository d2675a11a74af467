"""Execution of optimizer steps: DeepSpeed, a single process, offload and schedules."""
