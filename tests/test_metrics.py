"""Every metric has one name and one unit."""

from dsv2.metrics import BUDGETS, CHANCE, METRICS, chance, quantity
from dsv2.study.files import names, read


def test_a_label_is_the_name_with_its_unit() -> None:
    assert quantity("val/loss").label == "validation loss (nats/token)"
    assert quantity("routing/devices_per_token").label == "devices per token"


def test_a_domain_belongs_to_the_name() -> None:
    assert quantity("val/bpb_maths") == ("validation bits per byte, maths", "", "lower", "bits per byte, maths")
    assert quantity("bench/cloze_code") == ("cloze, code", "share correct", "higher", "cloze, code")
    assert quantity("bench/cloze_context") is METRICS["bench/cloze_context"]  # not a domain called context


def test_what_is_not_known_keeps_its_own_name() -> None:
    assert quantity("perf/idle_share") == ("perf/idle_share", "", "", "")


def test_names_tell_metrics_apart() -> None:
    known = METRICS | BUDGETS
    assert len({metric.name for metric in known.values()}) == len(known)
    assert len({metric.brief for metric in known.values()}) == len(known)


def test_studies_judge_by_the_direction_of_the_table() -> None:
    for study in names("sweep"):
        for metric, better in read("sweep", study)["judged"].items():
            assert quantity(metric).better in ("", better), (study, metric)


def test_chance_is_of_metrics_and_of_their_domains() -> None:
    assert set(CHANCE) <= set(METRICS)
    assert chance("bench/cloze_code") == chance("bench/cloze") == 1 / 4
    assert chance("bench/cloze_margin") is None
    assert chance("val/loss") is None
