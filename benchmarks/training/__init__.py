"""The training engine against a plain padded implementation of the released recipe and against TRL."""
