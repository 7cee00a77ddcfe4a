"""What the caches of a study's arms hold per token, and those of published sizes."""

from typing import TYPE_CHECKING, NamedTuple

from dsv2.accounting.account import Account, account
from dsv2.accounting.deployed import kinds_of_attention
from dsv2.models.attention import MLA
from dsv2.models.attention.precision import KVPrecision
from dsv2.report.page import Section, Table

if TYPE_CHECKING:
    from ablations.trials.trials import Study

PUBLISHED = {"v2_lite": "V2-Lite", "v2": "V2"}  # sizes of the second table, by preset
BITS, FEW = 16, 6  # of an arm that says nothing, and of the second row of one with MLA


class ArmCache(NamedTuple):
    """The cache of one arm, or of an arm with MLA at fewer bits than it was evaluated with."""

    name: str
    baseline: str  # the row that it is compared with
    account: Account


def caches_of(study: "Study") -> tuple[ArmCache, ...]:
    """Account for the cache of every arm, as it is deployed or else at 16 bits; empty if all hold the same."""
    rows = []
    for arm, run in study.configs.items():
        kv = None if run.deployment is None else run.deployment.kv
        rows.append(ArmCache(arm, study.baseline_of(arm), account(run.model, kv=kv or KVPrecision.Config(bits=BITS))))
        if isinstance(run.model.attention, MLA.Config) and kv is None:
            few = account(run.model, kv=KVPrecision.Config(bits=FEW))
            rows.append(ArmCache(f"{arm}, {FEW} bits", study.baseline_of(arm), few))
    own = {row.account.kv_bytes_per_token for row in rows if row.name in study.configs}
    return tuple(rows) if len(own) > 1 else ()


def cache_section(caches: tuple[ArmCache, ...]) -> Section | None:
    """Tabulate the caches of arms beside those of the published sizes; None if arms do not differ."""
    if not caches:
        return None
    reference = {row.name: row.account.kv_bytes_per_token for row in caches}
    rows = [_row(row.name, row.account, reference[row.baseline]) for row in caches]
    published = []
    for preset, name in PUBLISHED.items():
        kinds = kinds_of_attention(preset)
        published += [_row(f"{name}: {kind.name}", kind.account, kinds[0].account.kv_bytes_per_token) for kind in kinds]
    text = (
        "What a cache allocates per token over all layers, scales and offsets included. In the same memory fit so many "
        "times the sequences of the baseline, which is MHA in the table of published sizes. GQA-8 has 8 groups."
    )
    header = ["", "elements per token", "bits per element", "bytes per token", "sequences in the same memory"]
    return Section("KV cache", [text], [Table(header, rows), Table(header, published)])


def _row(name: str, held: Account, reference: float) -> list[str]:
    size = held.kv_bytes_per_token
    return [name, f"{held.kv_elements_per_token:,}", f"{held.kv_bits:.2f}", f"{size:,.0f}", f"{reference / size:.3g}"]
