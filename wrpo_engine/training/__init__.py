"""Training of the target: SFT and preference optimisation on one loop."""
