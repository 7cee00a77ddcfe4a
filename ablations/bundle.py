"""`python -m ablations.bundle sweep=NAME [scale=...] [weights=true] [OUT]`, `python -m ablations.bundle --open FILE`.

The first packs a study into one archive: its definition, looks and report, and of every finished trial the config, data
identity, tokenizer, metrics, routing and result. OUT is NAME-SCALE.zip by default.

sweep       a study's name, or the path of its YAML file
scale       smoke by default
weights     true: the checkpoints too

The second verifies an archive and puts the study into the store of runs, its trials read-only. The report can be built
anew there, and seeds added.
"""

import shutil
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from ablations.request import parse, usage
from dsv2.config import ConfigError
from dsv2.printing import refuse

FORMAT, MANIFEST = 1, "bundle.json"
OPEN, WEIGHTS = "--open", "weights"
KEYS = ("sweep", "scale", WEIGHTS)
EPOCH = (1980, 1, 1, 0, 0, 0)  # of all entries, so that the same study gives the same archive
PACKAGES = ("dsv2", "torch", "lightning")


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status: 2 for an invalid request or a damaged archive."""
    if any(word in ("-h", "--help") for word in arguments):
        print(usage(__doc__))
        return 0
    try:
        if arguments[:1] == [OPEN]:
            if len(arguments) != 2:
                raise ConfigError(OPEN, " ".join(arguments[1:]), "the path of one archive")
            print(open_bundle(Path(arguments[1])))
        else:
            print(_pack(arguments))
    except (ValueError, OSError) as error:
        return refuse(error)
    return 0


def _pack(arguments: list[str]) -> str:
    targets = [word for word in arguments if "=" not in word]
    weights = [word.partition("=")[2] for word in arguments if word.partition("=")[0] == WEIGHTS]
    if weights not in ([], ["true"], ["false"]):
        raise ConfigError(WEIGHTS, " ".join(weights), "true or false")
    others = [word for word in arguments if word not in targets and not word.startswith(f"{WEIGHTS}=")]
    request, overrides = parse(others, KEYS)
    if overrides or len(targets) > 1 or not isinstance(request.scale, str):
        given = (*overrides, *targets[1:], "several scales")[0]
        raise ConfigError("argument", given, f"one study at one scale; keys are {', '.join(KEYS)}, then OUT")
    from ablations.trials.trials import stored

    study = stored(request.sweep, request.scale)
    out = Path(targets[0] if targets else f"{study.name}-{study.scale}.zip")
    count, left_out = pack(study.folder, study.name, study.scale, out, weights=weights == ["true"])
    note = f"; {left_out} unfinished ones are left out" if left_out else ""
    size = out.stat().st_size / 1e6
    return f"{out}: {count} trials, {size:.1f} MB{note}\nopen it with python -m ablations.bundle {OPEN} {out}"


def pack(folder: Path, name: str, scale: str, out: Path, *, weights: bool = False) -> tuple[int, int]:
    """Write the study in `folder` to the archive `out`; return how many trials it has, and how many are left out.

    Raises ConfigError if none has finished or `out` exists.
    """
    from ablations.trials.record import DEFINITION, RECORD, read_record
    from dsv2.storage.files import replacing
    from dsv2.storage.rundir import finished
    from dsv2.storage.sealed import hashes, write_sealed

    if out.exists():
        raise ConfigError("OUT", str(out), "a path where there is nothing yet")
    try:
        trials = sorted(set(read_record(folder).folders.values()))
    except FileNotFoundError:
        raise ConfigError("sweep", name, f"a study that has been run; {folder} has no {RECORD}") from None
    done = [trial for trial in trials if finished(folder / "trials" / trial) is not None]
    if not done:
        raise ConfigError("sweep", name, f"a study with a finished trial, unlike the one in {folder}")
    files = sorted(_files(folder, done, weights=weights))
    content = {
        "format": FORMAT,
        "study": name,
        "scale": scale,
        "definition": DEFINITION,
        "trials": done,
        "weights": weights,
        "versions": {package: version(package) for package in PACKAGES},
        "files": hashes(folder, files),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as scratch, replacing(out.with_name(f"{out.name}.{MANIFEST}")) as manifest:
        write_sealed(manifest, content)
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, path in [(MANIFEST, manifest), *((file, folder / file) for file in files)]:
                info = zipfile.ZipInfo(entry, EPOCH)
                info.compress_type = zipfile.ZIP_DEFLATED
                with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target)
    return len(done), len(trials) - len(done)


def _files(folder: Path, trials: list[str], *, weights: bool) -> Iterator[str]:
    """Yield the paths, relative to the study's folder, of everything that is packed."""
    from ablations.trials.looks import LOOKS
    from ablations.trials.record import DEFINITION, RECORD
    from dsv2.storage.rundir import CHECKPOINTS, FILES, RESULT

    names = [DEFINITION, RECORD, LOOKS]
    for trial in trials:
        names += [f"trials/{trial}/{name}" for name in (*FILES, RESULT)]
    yield from (name for name in names if (folder / name).is_file())
    roots = [folder / "report", *(folder / "trials" / trial / CHECKPOINTS for trial in trials if weights)]
    for path in (path for root in roots for path in root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path.relative_to(folder).as_posix()


def open_bundle(path: Path) -> str:
    """Verify an archive and extract it into the store of runs; return what it holds and what can be done with it.

    Raises ConfigError that names the first file which is damaged, missing or not listed; then nothing is extracted.
    """
    from ablations.trials.record import folder_of_study
    from dsv2.storage.files import new_directory

    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _manifest(archive, path)
            folder = folder_of_study(manifest["study"], manifest["scale"])
            with new_directory(folder) as scratch:
                for name, expected in manifest["files"].items():
                    _extract(archive, name, scratch / name, expected, path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise _not(path, f"an archive of this command: {error}") from None
    return _described(folder, manifest)


def _manifest(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    """Read and check what an archive lists. Raises ConfigError."""
    from dsv2.storage.sealed import read_sealed
    from dsv2.study.words import require_name

    names = archive.namelist()
    if MANIFEST not in names:
        raise _not(path, f"an archive of this command; it has no {MANIFEST}")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, MANIFEST)
        copy.write_bytes(archive.read(MANIFEST))
        try:
            manifest = read_sealed(copy)
            if manifest["format"] != FORMAT:
                raise _not(path, f"an archive of format {FORMAT}, not {manifest['format']}")
            require_name("sweep", manifest["study"])
            require_name("scale", manifest["scale"])
            files = dict(manifest["files"])
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError):
            raise _not(path, f"an undamaged archive; its {MANIFEST} does not fit its checksum") from None
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise _not(path, f"an archive that has every file once, unlike {twice[0]}")
    if unlisted := set(names) - {MANIFEST, *files}:
        raise _not(path, f"an archive of what its {MANIFEST} lists, which {min(unlisted)} is not")
    if missing := set(files) - set(names):
        raise _not(path, f"a whole archive; {min(missing)} is missing")
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise _not(path, f"an archive whose files stay in its folder, unlike {name}")
    return manifest


def _not(path: Path, valid: str) -> ConfigError:
    return ConfigError(OPEN, str(path), valid)


def _extract(archive: zipfile.ZipFile, name: str, target: Path, expected: str, path: Path) -> None:
    """Write one entry, read-only if it is of a trial. Raises ConfigError if its contents are not as listed."""
    from dsv2.storage.sealed import file_hash

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(name) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        whole = file_hash(target) == expected
    except (zipfile.BadZipFile, EOFError, zlib.error):
        whole = False
    if not whole:
        raise _not(path, f"an undamaged archive; {name} is not as it was packed")
    if name.startswith("trials/"):
        target.chmod(0o444)


def _described(folder: Path, manifest: dict[str, Any]) -> str:
    from ablations.trials.trials import stored

    study = stored(manifest["study"], manifest["scale"])
    if study.source.endswith((".yaml", ".yml")) and not Path(study.source).is_file():  # of the other machine
        study.source = str(folder / manifest["definition"])
    name = f"sweep={study.name} scale={study.scale}"
    more = study.with_seeds((*study.seeds, max(study.seeds) + 1))
    return "\n".join(
        [
            f"{folder}: {len(manifest['trials'])} trials, {len(manifest['files'])} files, all as they were packed",
            f"its report:   {folder / 'report' / 'report.html'}",
            f"report again: python -m ablations.report {name}",
            f"another seed: {more.command}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
