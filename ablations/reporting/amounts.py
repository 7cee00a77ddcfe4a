"""Times and counts in few digits; apart from what needs pandas, for plans."""


def duration(seconds: float) -> str:
    """Format a time, as in 42 s, 12 min or 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def large(value: float, digits: int = 3) -> str:
    """Format a count with few digits, as in 651K or 15.7B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.0f}"
