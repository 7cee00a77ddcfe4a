"""Where and how trials run."""

STOPPED = "\nstopped; progress is saved, run the same command again to resume"  # the last line of a stopped runner
