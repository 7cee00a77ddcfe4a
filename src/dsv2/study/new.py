"""A new study's file, to be edited."""

from pathlib import Path

from dsv2.config import CONFIG_DIR, NAME, ConfigError
from dsv2.storage.files import write_text
from dsv2.study.files import FOLDERS, SUFFIXES, names

TEMPLATE = Path(__file__).with_name("template.yaml")


def new_study(name: str, path: Path | None = None) -> tuple[Path, str]:
    """Write the commented file of a study, which can be run at once; return its path, and what `sweep=` takes for it.

    Without `path`, it is written beside the other studies. Raises ConfigError for a name or a path that cannot be
    used, or is.
    """
    if not NAME.fullmatch(name):
        raise ConfigError("name", name, "letters, digits and . _ + -")
    if path is None:
        if name in names("sweep"):
            raise ConfigError("name", name, f"a new name; there are {', '.join(names('sweep'))}")
        path, sweep = CONFIG_DIR / FOLDERS["sweep"] / f"{name}.yaml", name
    else:
        sweep = str(path)
        if path.suffix not in SUFFIXES:
            raise ConfigError("--out", sweep, f"a file that ends in {' or '.join(SUFFIXES)}")
        if path.exists():
            raise ConfigError("--out", sweep, "a file that does not exist yet")
        if not path.parent.is_dir():
            raise ConfigError("--out", sweep, f"a file in a folder that exists; there is no {path.parent}")
    text = TEMPLATE.read_text().format(name=name, sweep=sweep)
    write_text(path, text if path.stem == name else text.replace("\nquestion:", f"\nname: {name}\nquestion:", 1))
    return path, sweep
