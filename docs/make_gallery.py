"""`python docs/make_gallery.py`: write docs/gallery.md and its figures from the reports under `results/`.

Every figure is the one of a committed report, with the command that ran the study.
"""

import re
import shutil
from pathlib import Path

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results"
HEAD = """# Gallery

Every figure here is of a study that was run, on two CPU cores, with the command above it; `python docs/make_gallery.py`
takes them from the reports under `results/`. Once a study has run on your machine, its figures are drawn again from
what it stored:

```
python -m ablations.report sweep=balance_losses scale=tiny
```
"""


def main() -> None:
    """Copy the figures and write the page, studies in alphabetical order."""
    folder = DOCS / "figures" / "gallery"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    commands = dict(re.findall(r"\[(\w+)\]\(.*?`(python -m ablations.run .*?)`", (RESULTS / "README.md").read_text()))
    lines = [HEAD]
    for report in sorted(RESULTS.glob("*/*/report.md")):
        study, scale = report.parts[-3:-1]
        lines += [f"## {study} ({scale})", "", f"`{commands[study]}`", ""]
        for caption, name in re.findall(r"!\[(.*?)\]\(figures/(.*?)\)", report.read_text()):
            shutil.copy(report.parent / "figures" / name, folder / f"{study}_{name}")
            lines += [f"![{caption}](figures/gallery/{study}_{name})", "", f"*{caption}*", ""]
    (DOCS / "gallery.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
