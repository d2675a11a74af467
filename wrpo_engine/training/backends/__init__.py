"""Training backends: DeepSpeed, a single process, offload and learning-rate schedules."""
