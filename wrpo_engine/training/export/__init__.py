"""Export of trained models and their cards."""
