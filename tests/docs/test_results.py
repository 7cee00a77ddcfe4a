"""Numbers that studies gave stand in blocks, which are what the committed results say; none stands outside of them."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from ablations.reporting.write import judged_again
from dsv2.study.files import read
from dsv2.study.plan import Plan
from tests.references.markdown import without_code

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs"))  # as `python docs/make_results.py` has it
RESULTS, STORED, GALLERY = map(importlib.import_module, ("make_results", "results_stored", "make_gallery"))
GIVEN = re.compile(r"(?<![\w./-])[+-]?\d+\.\d+(?!\.?\d)%?|(?<![\w.])\d+%")

# Numbers outside of blocks, and where they are from.
OTHERS = {
    "README.md": {
        *("0.65", "1.808", "2.414", "4.5"),  # the account of tiny (tested below); DeepSeekMoE, section 4.5
        *("95%", "1%", "4.3"),  # the level of intervals; within what budgets are equal; DeepSeekMoE, section 4.3
        *("5%", "0.02"),  # what verdicts may err in; a margin (tested below)
        *("2408.15664", "2.2", "4.1", "4.2", "4.4"),  # arXiv; sections of the DeepSeek-V2 report
    },
    "docs/alignment.md": {"0.2", "0.8", "4.2", "95%"},  # shares at which tasks teach; a section; a level
    "docs/corpus.md": {"12%"},  # the DeepSeek-V2 report
    "docs/cluster.md": {"90%"},  # of the memory, for weights and cache (throughput.USABLE)
    "docs/report.md": {
        "95%",
        "5%",
        "4%",
        "1%",
        "0.5%",
        "0.25%",
        "80%",
        "90%",
        "99.2%",
        "1.0",
    },  # levels; a capacity factor
    "docs/equations.md": {
        *("2405.04434", "2202.08906", "2408.15664", "2412.19437"),  # arXiv
        *("43%", "0.001", "0.5"),  # an assertion below the text; steps and a coefficient of those papers
    },
    "docs/parallel.md": {
        *("1806.03377", "1811.06965", "2104.04473", "2401.10241", "2412.19437"),  # arXiv
        *("0.5", "7.5", "0.0%", "4.46", "6.9%", "60.2%", "37.1%", "33.4%"),  # `dsv2 simulate pipeline` and `traffic`
        *("172.8", "8.1", "0.5%", "1.5%", "5.8%", "9.1%", "9.9%", "13.1%", "21.4%", "30.2%", "51.9%"),
        *("14.9", "28.5", "55.6", "109.9"),
    },  # and `dsv2 simulate hours`
    "docs/runs.md": {"95%"},  # the level of intervals
    "docs/tutorial.md": {"3.11"},  # Python
    "docs/extending.md": {"1%"},
    "docs/traces.md": {"2505.20225"},  # arXiv
    "notebooks/01_latent_attention.ipynb": {"2.1", "93.3%"},  # a section and a figure of the DeepSeek-V2 report
    "notebooks/02_routing_collapse.ipynb": set(),
    "notebooks/04_device_load_and_drops.ipynb": {"1.0"},  # a capacity factor
    "notebooks/05_expert_specialisation.ipynb": {"4.5"},  # a section
    "notebooks/07_moe_baselines.ipynb": {"1.0"},
    "notebooks/12_alignment.ipynb": {"0.2", "0.8"},  # shares at which tasks teach
    "notebooks/08_your_own_ablation.ipynb": {"1%"},
}


def prose(path: Path) -> str:
    """A page without its code and its blocks, or the text cells of a notebook."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        return without_code("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown"))
    return without_code(RESULTS.BLOCK.sub("", path.read_text()))


def pages() -> list[Path]:
    written = [ROOT / "README.md", ROOT / "results" / "README.md", *(ROOT / "docs").glob("*.md")]
    of_others = ("gallery.md", "calibration.md")  # written by make_gallery and by benchmarks.verdicts
    return sorted(path for path in written if path.name not in of_others) + sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", RESULTS.PAGES)
def test_every_block_is_what_the_results_say(name: str) -> None:
    """If not: python docs/make_results.py"""
    text = (ROOT / name).read_text()
    assert "<!-- results: " in text
    assert RESULTS.filled(text) == text


def test_every_block_is_on_a_page() -> None:
    used = [name for page in RESULTS.PAGES for _, name, _ in RESULTS.BLOCK.findall((ROOT / page).read_text())]
    assert sorted(used) == sorted(RESULTS.BLOCKS)


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_no_number_of_a_study_stands_outside_of_a_block(path: Path) -> None:
    """A new number is either written by a block, or named above with where it is from."""
    found = set(GIVEN.findall(prose(path)))
    assert found - OTHERS.get(str(path.relative_to(ROOT)), set()) == set()


def test_blocks_follow_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("*.png", "*.html"))
    monkeypatch.setattr(STORED, "RESULTS", tmp_path / "results")
    before = {name: block() for name, block in RESULTS.BLOCKS.items()}
    folder = tmp_path / "results" / "balance_losses" / "smoke"
    table = pd.read_csv(folder / "table.csv")
    table.loc[table["arm"] == "paper", "routing/max_violation mean"] = 0.123
    table.to_csv(folder / "table.csv", index=False)
    after = {name: block() for name, block in RESULTS.BLOCKS.items()}
    assert {name for name in before if before[name] != after[name]} == {"demo", "order"}
    assert "**0.12 ± " in after["demo"]


def test_differences_are_paired_by_seed() -> None:
    """By hand from trials.csv, and with the t quantile of 4 degrees of freedom, 2.776."""
    trials = pd.read_csv(ROOT / "results" / "balance_losses" / "smoke" / "trials.csv").set_index(["arm", "seed"])
    each = trials.loc["paper", "val/loss"] - trials.loc["none", "val/loss"]
    half = 2.776 * each.std() / 5**0.5
    text = f"{each.mean():+.3f} [{each.mean() - half:+.3f}, {each.mean() + half:+.3f}]"
    assert STORED.Stored("balance_losses", "smoke").difference("paper", "none") == text


def test_the_table_of_the_demo_is_that_of_its_trials() -> None:
    folder = ROOT / "results" / "balance_losses" / "smoke"
    table, trials = pd.read_csv(folder / "table.csv", index_col="arm"), pd.read_csv(folder / "trials.csv")
    for metric in ("val/loss", *STORED.LOADS):
        by_arm = trials.groupby("arm")[metric]
        pd.testing.assert_series_equal(by_arm.mean()[table.index], table[f"{metric} mean"], check_names=False)
        pd.testing.assert_series_equal(by_arm.std()[table.index], table[f"{metric} sd"], check_names=False)


def test_an_order_is_kept_where_the_signs_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STORED, "RESULTS", tmp_path)
    for scale, means in (("smoke", (1.0, 2.0, 3.0)), ("tiny", (1.0, 3.0, 2.0))):
        (tmp_path / "a" / scale).mkdir(parents=True)
        rows = pd.DataFrame({"arm": list("xyz"), "n": 2, "val/loss mean": means})
        rows.to_csv(tmp_path / "a" / scale / "table.csv", index=False)
    assert STORED.orders_kept(STORED.Stored("a", "smoke"), STORED.Stored("a", "tiny"), ("val/loss",)) == (2, 3)


def test_check_says_what_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in RESULTS.PAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(RESULTS, "ROOT", tmp_path)
    assert RESULTS.main(["--check"]) == 0
    page = tmp_path / "README.md"
    whole = page.read_text()
    page.write_text(whole.replace("(`expert`) | 5.", "(`expert`) | 4."))
    assert RESULTS.main(["--check"]) == 1
    assert "stale: README.md" in capsys.readouterr().out
    assert RESULTS.main([]) == 0
    assert page.read_text() == whole
    assert RESULTS.main(["--chekc"]) == 2


# ---- what sentences outside of blocks say ----------------------------------------------------------------------------


def test_sizes_in_the_readme_are_those_of_the_account() -> None:
    tiny = {row["arm"]: row for row in Plan("attention_moe", "tiny").budgets()}
    assert f"{tiny['small_mha']['total_params'] / 1e6:.2f}" == "0.65"
    assert f"{tiny['large_mla']['total_params'] / 1e6:.1f}" == "2.0"
    assert tiny["small_mha"]["steps"] == 600
    assert tiny["small_mha"]["kv_elements_per_token"] == 4 * tiny["small_mla"]["kv_elements_per_token"]
    smoke = {row["arm"]: row for row in Plan("balance_losses", "smoke").budgets()}
    assert (len(smoke), smoke["none"]["steps"]) == (6, 160)


def test_the_margin_in_the_readme_is_the_study_s() -> None:
    contrasts = Plan("balance_losses", "smoke").contrasts
    assert len(contrasts) == 5
    (loss,) = [contrast for contrast in contrasts if contrast.metric == "val/loss"]
    assert (loss.arm, loss.margin) == ("paper", 0.02)


def test_equal_within_3_percent_is_so() -> None:
    for scale in ("tiny", "small", "base"):
        rows = {row["arm"]: row["active_params"] for row in Plan("moe_baselines", scale).budgets()}
        assert rows["dense_active"] == pytest.approx(rows["deepseek_moe"], rel=0.03)


def test_no_expert_is_dead_at_the_end_of_the_longer_study() -> None:
    """Notebook 02 says so."""
    stored = STORED.Stored("balance_losses", "tiny")
    assert stored.mean("none", "routing/dead_experts") == 0
    assert stored.mean("none", "routing/max_violation") > 1


COPIED = [name for name, entry in GALLERY.ENTRIES.items() if getattr(entry.draw, "func", None) is GALLERY.copied]


@pytest.mark.parametrize("name", COPIED)
def test_findings_under_copied_figures_are_those_of_the_results(name: str) -> None:
    """If not: python docs/make_gallery.py NAME"""
    with Image.open(GALLERY.IMAGES / f"{name}.png") as image:
        assert image.info["Title"] == GALLERY.ENTRIES[name].draw().finding


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*/*/contrasts.csv")), ids=lambda path: path.parts[-3])
def test_committed_verdicts_are_those_of_the_committed_trials(path: Path) -> None:
    stored = pd.read_csv(path, dtype={"arm": str})
    again = judged_again(path.parent)
    assert [(effect.arm, effect.metric, effect.word) for effect in again] == [
        *stored[["arm", "metric", "word"]].itertuples(index=False, name=None)
    ]


# ---- the eight effects -----------------------------------------------------------------------------------------------

EFFECTS = importlib.import_module("results_effects")


@pytest.mark.parametrize(
    ("effect", "study"),
    [(effect, study) for effect in EFFECTS.EFFECTS for study in effect.studies],
    ids=lambda value: value if isinstance(value, str) else value.what[:30],
)
def test_an_effect_names_arms_and_metrics_of_its_study(effect, study: str) -> None:
    node = read("sweep", study)
    for claim in effect.claims:
        assert {claim.arm, claim.baseline} <= set(node["arms"])
        assert claim.metric in node["judged"]


def test_the_numbers_of_effects_are_those_of_the_trials() -> None:
    """Recomputed without the module: mean and t interval of the differences by seed."""
    rows = RESULTS.eight().splitlines()[2:10]
    assert [row.split(" | ")[0] for row in rows] == [f"| {number}" for number in range(1, 9)]
    found = 0
    for effect, row in zip(EFFECTS.EFFECTS, rows, strict=True):
        source = re.search(r"\| (\w+) at (\w+), (\d+) seeds \|$", row)
        if source is None:
            assert "python -m " in row
            assert "| yes |" not in row
            continue
        assert source[1] in effect.studies
        trials = pd.read_csv(ROOT / "results" / source[1] / source[2] / "trials.csv", dtype={"arm": str})
        agree = []
        for claim in effect.claims:
            wide = trials.pivot(index="seed", columns="arm", values=claim.metric)
            each = (wide[claim.arm] - wide[claim.baseline]).dropna()
            half = stats.t.ppf(0.975, len(each) - 1) * each.std() / len(each) ** 0.5
            low, high = each.mean() - half, each.mean() + half
            assert f"{each.mean():+.3f} [{low:+.3f}, {high:+.3f}]" in row
            agree.append({-1: high < 0, 1: low > 0, 0: low > -0.02 and high < 0.02}[claim.side])
        assert ("| yes |" in row) == all(agree)
        found += 1
    assert found >= 4


def test_an_effect_whose_study_has_not_run_says_how_to_run_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(STORED, "RESULTS", tmp_path)
    text = RESULTS.eight()
    assert "Shown: 0 of 8." in text
    assert text.count("| not run |") == 7
    assert "`python -m ablations.run sweep=moe_baselines scale=tiny`" in text
