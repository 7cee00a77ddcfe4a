"""Where and how trials run."""

STOPPED = "\nstopped; what was saved stays, the same command goes on from there"  # the last line of a stopped runner
