"""Training over many devices: pipeline schedules, and simulators of what they and expert parallelism cost."""
