"""`study(...)`: a study at a scale, for notebooks and scripts."""

from collections.abc import Sequence

from ablations.trials.trials import Study


def study(name: str, scale: str = "smoke", seeds: Sequence[int] | None = None, overrides: Sequence[str] = ()) -> Study:
    """Load a study at a scale: `configs/sweep/<name>.yaml`, or the YAML file at the path `name`.

    ConfigError (a ValueError) names what is wrong with it.
    """
    return Study(name, scale, seeds, overrides)
