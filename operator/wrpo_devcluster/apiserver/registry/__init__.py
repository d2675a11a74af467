"""Life cycle of objects: decoding, defaults, strategies, the pipeline of writes, deletion, eviction."""
