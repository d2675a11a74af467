"""Lines of a stage's log that mark how far its start is. With the log's timestamps they divide the time of a pod."""

LOADED = "the code of the stage is loaded"
"""Libraries are imported. Stages import further ones when they first need them."""
ENGINE_STARTED = "the sampling engine has started"
