"""Studies: their files, and plans of their trials."""

REQUEST_KEYS = (
    "sweep",
    "scale",
    "seeds",
    "workers",
    "launcher",
    "dry_run",
    "plan",
    "until_decided",
    "mixed_kernels",
    "report.formats",
    "hardware",
    "price",
)
