"""What the solver changed in an arm to make budgets equal: such changes are part of the difference between arms."""

from ablations.reporting.words import StudyText
from dsv2.report.page import Section, Table

TEXT = (
    "To hold budgets equal, the solver changed these settings of an arm's model from the values that its overrides "
    "give. A difference between arms is due to what the study varies and to these changes together."
)


def change_text(change: tuple[str, tuple[int, int]]) -> str:
    """Format a changed key with its old and new value, as in `dense.width from 176 to 92 (-48%)`."""
    key, (old, new) = change
    return f"{key} from {old:,} to {new:,} ({new / old - 1:+.0%})"


def adjusted(study: StudyText) -> Section | None:
    """Tabulate what the solver changed in every arm, from and to; None if it changed nothing."""
    rows = [
        [arm, f"model.{key}", f"{old:,}", f"{new:,}", f"{new / old - 1:+.0%}"]
        for arm, changes in study.adjusted.items()
        for key, (old, new) in changes.items()
    ]
    if not rows:
        return None
    return Section("Adjusted to equal budgets", [TEXT], [Table(["arm", "setting", "from", "to", "change"], rows)])
