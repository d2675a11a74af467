"""The life of an object: decoding, defaults, strategies, the pipeline of writes, deletion, eviction."""
