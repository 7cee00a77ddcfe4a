"""`python docs/make_gallery.py [NAME ...]`: draw the gallery's figures from stored runs and write docs/gallery.md.

Without names all are drawn. Runs lie under `$DSV2_RUNS` (default `runs/`); a figure whose runs are not there is an
error that names the command to run, after all others are drawn. Figures of the committed reports under `results/` are
copied from there. The page is always written whole, from what the images say of themselves: each PNG carries its
finding (Title) and how to read it (Description).
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import gallery_runs as runs
import gallery_studies as studies
import matplotlib
import matplotlib.pyplot as plt
from gallery_runs import ATTENTION, BALANCE, DROPPING, Drawn, Missing
from gallery_studies import AA, BASELINES, BITS, EXTENSION, GRID, LADDER, LOSS, NEEDLE, SIMULATED, copied, ends
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dsv2 import plots

DOCS = Path(__file__).parent
IMAGES = DOCS / "figures" / "gallery"
DPI = 150
MOST_BYTES = 150_000  # of an image; larger ones are cut to 256 colours

HEAD = """# Gallery

Every kind of figure, drawn from studies that were run on two CPU cores. The commands above a figure make it: the first
runs the study, which is stored under `$DSV2_RUNS` (default `runs/`), the second draws the figure.
`python docs/make_gallery.py` without arguments draws all figures. A click on a figure shows it in full size.
"""


class Entry(NamedTuple):
    name: str
    heading: str  # what it shows
    function: Callable[..., Any]  # of `dsv2.plots`
    command: str  # that makes what it is drawn from; "" where nothing has to be run
    draw: Callable[[], Drawn]


def entry(function: Callable[..., Any], heading: str, command: str, draw: Callable[[], Drawn], name: str = "") -> Entry:
    return Entry(name or function.__name__, heading, function, command, draw)


def of_report(study: str, figure: str, *finding: Any, scale: str = "tiny") -> Callable[[], Drawn]:
    """Copy a figure of a report; `finding` is a function of its tables, or the arguments of `ends`."""
    return partial(copied, study, figure, finding[0] if callable(finding[0]) else ends(*finding), scale)


def expert(function: Callable[..., Any], heading: str, section: str, figure: str, caption: str) -> Entry:
    return entry(function, heading, ATTENTION, partial(runs.analysis, section, figure, caption))


SIZES = ["small_mha", "small_mla", "large_mha", "large_mla"]
LOSSES = ["none", "expert", "device", "paper"]
EXTENDED = ["none", "interpolation", "ntk", "yarn"]
TUNED = [f"{arm}_tuned" for arm in EXTENDED]
# fmt: off
GALLERY: dict[str, list[Entry]] = {
    "Balance and collapse": [
        entry(plots.losses_and_control, "What each balance loss controls", BALANCE, runs.losses_and_control),
        entry(plots.collapse_over_training, "Routing collapse over training", BALANCE,
            runs.collapse_over_training),
        entry(plots.imbalance_over_training, "All measures of imbalance over training", BALANCE, of_report(
            "balance_losses", "imbalance", "routing/overflow", LOSSES, ".1%")),
        entry(plots.load_heatmap, "The load of every expert over training", BALANCE, of_report(
            "balance_losses", "expert_load", "routing/max_violation", LOSSES, ".2f")),
        entry(plots.load_at, "The load of every layer at one step", BALANCE, runs.load_at),
    ],
    "Devices and drops": [
        entry(plots.device_load, "The load of the devices", BALANCE, of_report(
            "balance_losses", "device_load", "routing/device_max_violation", LOSSES, ".2f")),
        entry(plots.drops_over_training, "Dropped pairs over training", DROPPING, runs.drops_over_training),
        entry(plots.drops_over_affinity, "Which pairs are dropped", DROPPING, runs.drops_over_affinity),
        entry(plots.text_load, "The load that one text puts on the devices", BALANCE, runs.text_load),
        entry(plots.load_profiles, "The imbalance of different runs on one text", BALANCE, runs.load_profiles),
        entry(plots.paint_tokens, "Where each token goes", BALANCE, runs.paint_tokens),
    ],
    "Attention and cache": [
        entry(plots.loss_over_tokens, "Loss over training", ATTENTION, of_report(
            "attention_moe", "loss", LOSS, SIZES)),
        entry(plots.difference_over_tokens, "Loss difference over training, paired by seed", ATTENTION, of_report(
            "attention_moe", "loss_difference", studies.against_mha)),
        entry(plots.loss_over_budgets, "Loss at equal tokens, FLOPs and seconds", ATTENTION, of_report(
            "attention_moe", "budgets", studies.per_budget)),
        entry(plots.cache_over_context, "The cache of the published models", "", runs.cache_over_context),
        entry(plots.metric_over_cache, "Loss over the bytes of the cache", BITS, of_report(
            "kv_bits", "cache", LOSS, ["bits16", "bits6", "bits4", "bits2", "mha16"], scale="smoke")),
    ],
    "Long contexts": [
        entry(plots.loss_over_position, "Loss by position, beyond the trained length", EXTENSION, of_report(
            "context_extension", "loss_by_position", "bench/loss_8x", ["none", "yarn", "none_tuned", "yarn_tuned"],
            scale="smoke")),
        entry(plots.needle_heatmap, "Where a hidden sentence is found", NEEDLE, of_report(
            "needle", "needle_heatmap", "bench/needle_8x", TUNED, ".0%", scale="smoke")),
        entry(plots.found_over_length, "How far a hidden sentence is found", NEEDLE, of_report(
            "needle", "needle_over_length", "bench/needle_4x", EXTENDED, ".0%", scale="smoke")),
    ],
    "Experts": [
        expert(plots.loss_changes, "How much the shared experts contribute", "shared", "shared",
            "What switching them off adds to the validation loss, with 95% intervals over sequences."),
        expert(plots.loss_over_masked, "How redundant the routed experts are", "redundancy", "redundancy",
            "The experts of highest affinity cannot be chosen, the next best are; band: 95% over sequences."),
        expert(plots.loss_over_experts, "How many routed experts are needed", "fewer", "fewer",
            "Validation loss with fewer routed experts per token than in training; gates are not rescaled."),
        expert(plots.domain_heatmap, "Which experts favour a domain", "domains", "domain_shares",
            "An expert's share of a domain over its share of all text; experts stand by the domain they favour."),
        expert(plots.information_bars, "How much an expert reveals about the domain", "domains", "domains",
            "Mutual information of domain and expert; by chance: whole sequences given the domains of others."),
        expert(plots.token_concentration, "How concentrated an expert is on few tokens", "tokens", "expert_tokens",
            "Share of an expert's token-expert pairs that its ten most common tokens make up."),
        expert(plots.coactivation_heatmap, "Which experts are chosen together", "coactivation", "coactivation",
            "Over experts of the same loads that are independent; experts chosen together stand together."),
        expert(plots.certainty_over_layers, "How certain the router is", "router", "router",
            "Low entropy of a token and high entropy of the mean token: sure choices, spread over all experts."),
        expert(plots.overlap_over_training, "When routing settles", "saturation", "saturation",
            "Overlap of a token's experts with those after the last step, on a fixed probe of validation tokens."),
    ],
    "Studies": [
        entry(plots.forest, "Every effect with its interval", BALANCE, of_report(
            "balance_losses", "effects", LOSS, LOSSES)),
        entry(plots.metric_by_arm, "Every seed of every arm", ATTENTION, of_report(
            "attention_moe", "val_loss_by_arm", LOSS, SIZES)),
        entry(plots.loss_over_active, "Loss over active parameters", BASELINES, studies.loss_over_active),
        entry(plots.factorial_forest, "Main effects and interactions", GRID, studies.factorial_forest),
        entry(plots.interaction, "How one loss's effect depends on another", GRID, studies.interaction),
    ],
    "Ladders": [
        entry(plots.loss_over_compute, "Loss over training compute", LADDER, studies.loss_over_compute),
        entry(plots.difference_over_compute, "How a difference changes with scale", LADDER,
            studies.difference_over_compute),
    ],
    "Statistics": [
        entry(plots.false_positive_rates, "False verdicts on real trials of identical arms", AA, of_report(
            "aa", "false_verdicts", studies.told_apart), "false_verdicts"),
        entry(plots.false_positive_rates, "False verdicts on simulated studies", SIMULATED,
            studies.false_positive_rates),
        entry(plots.power_by_effect, "Power, stated and measured", SIMULATED, studies.power_by_effect),
    ],
}
# fmt: on
ENTRIES = {each.name: each for group in GALLERY.values() for each in group}


def save(name: str, drawn: Drawn) -> None:
    """Write the figure as a PNG that holds its finding and how to read it."""
    source: Path | BytesIO
    if isinstance(drawn.picture, Path):
        source, finding = drawn.picture, drawn.finding
    else:
        figure = drawn.picture if isinstance(drawn.picture, Figure) else drawn.picture.figure
        assert isinstance(figure, Figure)
        source, finding = BytesIO(), figure.get_suptitle().replace("\n", " ")
        figure.savefig(source, format="png", dpi=DPI)
        plt.close(figure)
    info, path = PngInfo(), IMAGES / f"{name}.png"
    info.add_itxt("Title", finding)
    info.add_itxt("Description", drawn.caption)
    with Image.open(source) as image:
        plain = image.convert("RGB")
    plain.save(path, pnginfo=info, dpi=(DPI, DPI), optimize=True)
    if path.stat().st_size > MOST_BYTES:
        plain.quantize(dither=Image.Dither.NONE).save(path, pnginfo=info, dpi=(DPI, DPI), optimize=True)


def page() -> str:
    """Return the whole of gallery.md, from the images that there are."""
    lines = [HEAD]
    for group, entries in GALLERY.items():
        lines += [f"## {group}", ""]
        for name, heading, function, command, _ in entries:
            commands = f"{command}\npython docs/make_gallery.py {name}".strip()
            lines += [f"### {heading}", "", f"```\n{commands}\n```", ""]
            path = IMAGES / f"{name}.png"
            if not path.is_file():
                lines += ["Not drawn yet.", ""]
                continue
            with Image.open(path) as image:
                finding, caption = image.info["Title"], image.info["Description"]
            image_path = f"figures/gallery/{name}.png"
            lines += [f"[![{finding}]({image_path})]({image_path})", ""]  # a click shows it in full size
            lines += [f"**{finding}.** {caption} Drawn by `plots.{function.__name__}`.", ""]
    return "\n".join(lines).rstrip() + "\n"


def main(names: Sequence[str]) -> int:
    """Draw the figures named, or all; return 1 where a name is unknown or runs are missing."""
    if unknown := [name for name in names if name not in ENTRIES]:
        print(f"no figure {', '.join(unknown)}; there are {', '.join(ENTRIES)}", file=sys.stderr)
        return 1
    IMAGES.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in names or ENTRIES:
        try:
            save(name, ENTRIES[name].draw())
        except Missing as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    (DOCS / "gallery.md").write_text(page())
    return int(failed)


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main(sys.argv[1:]))
