"""What the caches of arms hold, beside those of published sizes."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ablations.reporting.caches import cache_section, caches_of
from ablations.reporting.figures import draw
from ablations.reporting.sections import sections_of
from ablations.trials.trials import Study
from tests.references.tables import Tables

STUDY = {
    "name": "caches",
    "question": "?",
    "prediction": "!",
    "metric": "val/loss",
    "judged": {"val/loss": "lower"},
    "equal": ["tokens"],
    "differs": ["total_params", "active_params", "flops_per_token", "kv_elements_per_token"],
    "seeds": 2,
    "baseline": "mha",
}
MHA = {"about": "MHA", "overrides": ["model/attention=mha"]}


def study(**arms: dict) -> Study:
    return Study(STUDY | {"arms": {"mha": MHA, **arms}}, "smoke")


def test_arms_are_as_they_are_deployed_and_latents_at_six_bits_too() -> None:
    arms = {
        "mla": {"about": "MLA", "overrides": ["model/attention=mla"]},
        "four": {
            "about": "4 bits",
            "overrides": ["deployment=kv", "deployment.kv.bits=4", "deployment.kv.rope_bits=16"],
        },
    }
    caches = caches_of(study(**arms))
    sizes = {row.name: row.account.kv_bytes_per_token for row in caches}
    assert sizes == {  # 3 layers; 4 heads of 16 or a latent of 24 and a key of 8, 4 bytes of ranges per vector
        "mha": 3 * 2 * 64 * 2,
        "mla": 3 * 32 * 2,
        "mla, 6 bits": 3 * (18 + 4 + 6 + 4),
        "four": 3 * (12 + 4 + 16),
    }
    section = cache_section(caches)
    assert section is not None
    rows = {row[0]: row[1:] for table in section.tables for row in table.rows}
    assert rows["mha"] == ["384", "16.00", "768", "1"]
    assert rows["mla, 6 bits"] == ["96", "8.00", "96", "8"]
    assert rows["V2-Lite: MHA"] == ["110,592", "16.00", "221,184", "1"]
    assert rows["V2-Lite: GQA-8"][-1] == "2"
    assert rows["V2-Lite: MLA, 6 bits"] == ["15,552", "6.50", "12,636", "17.5"]
    assert [row[0] for row in section.tables[1].rows if row[0].startswith("V2: ")] == [
        f"V2: {kind}" for kind in ("MHA", "GQA-8", "MQA", "MLA", "MLA, 6 bits")
    ]


def test_arms_that_hold_the_same_have_no_table() -> None:
    same = study(wide={"about": "wider", "overrides": ["model/attention=mha", "model.dense.width=200"]})
    assert caches_of(same) == ()
    assert cache_section(()) is None


@pytest.mark.slow
def test_a_report_has_the_table_and_the_figures(six_arms: Tables, findings_of: Callable) -> None:
    """The figure over bytes only where a cache was measured."""
    caches = caches_of(study(mla={"about": "MLA", "overrides": ["model/attention=mla"]}))
    findings = replace(findings_of(six_arms, routing=False), caches=caches)
    assert "KV cache" in [section.title for section in sections_of(findings, [])]
    names = {picture.name for picture in draw(findings)[0]}
    assert "cache_over_context" in names
    assert "cache" not in names
    measured = findings.results.assign(**{"deployed/kv_bytes_per_token": 96.0})
    assert "cache" in {picture.name for picture in draw(replace(findings, results=measured))[0]}
    assert "cache_over_context" not in {picture.name for picture in draw(findings_of(six_arms, routing=False))[0]}


def test_precision_alone_makes_caches_differ() -> None:
    arms = {
        "three": {"about": "3 bits", "overrides": ["model/attention=mha", "deployment=kv", "deployment.kv.bits=3"]},
    }
    rows = caches_of(study(**arms))
    assert [row.account.kv_bits for row in rows] == [16.0, 3 + 32 / 16]
