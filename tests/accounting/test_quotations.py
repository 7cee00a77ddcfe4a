"""Wrong quotations of the report, corrected from its own numbers."""

import pytest

from dsv2.accounting.quotations import quotations


def test_every_quotation_is_off_by_what_the_reports_numbers_say() -> None:
    found = {row.said: (row.quoted, pytest.approx(row.right), pytest.approx(row.off)) for row in quotations()}
    assert found == {
        "width of an expert of V2": (1408, 1536, 1408 / 1536 - 1),
        "cache saved, 15.6 instead of 110.6": (93.3, 100 * (1 - 15.6 / 110.6), 93.3 / (100 * (1 - 15.6 / 110.6)) - 1),
        "cache of the small MLA": (15.6, 31.2, -0.5),
        "MMLU that GQA-8 costs at 7B": (3.4, 45.2 - 41.2, 3.4 / 4.0 - 1),
        "MMLU that MLA gains on MHA, small": (2.0, 50.0 - 48.7, 2 / 1.3 - 1),
        "MMLU that MLA gains on MHA, large": (2.0, 59.0 - 57.5, 2 / 1.5 - 1),
    }
    assert quotations()[0].why == "1408 is V2-Lite's; V2 would have 217B parameters"
