"""API models of WRPOExperiment: spec, status, conditions, and what is generated from them."""
