"""Expert analyses of one run, each with a finding, its tables and its figures.

They follow DeepSeekMoE (arXiv 2401.06066, sections 4.4 and 4.5) and related work. An analysis that does not apply to
a run raises DoesNotApply; a figure that cannot be drawn leaves its tables.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dsv2.data.source import Source
from dsv2.models.transformer import Transformer
from dsv2.plots import experts as plots_experts
from dsv2.report.findings import NO_PAIRS, ONE_EXPERT, SAME_EXPERTS, Analysis, by_token, drawn, settling, together
from dsv2.routing import coactivation, specialisation
from dsv2.routing import interventions as experts
from dsv2.routing.interventions import DoesNotApply
from dsv2.routing.observed import Observed, SequenceLosses, losses_of, observe

PAIRED = "95% intervals over validation sequences, paired by sequence; for one trained model, so without seed noise."


class ModelOnText:
    """A trained model with its validation text, read `batch_size` sequences at a time."""

    def __init__(
        self,
        name: str,
        model: Transformer,
        source: Source,
        *,
        batch_size: int,
        snapshots: pd.DataFrame | Path | None = None,
        against: "ModelOnText | None" = None,
    ) -> None:
        """Take `snapshots`, a table of the routing of a probe over training or its file, and `against`, another model.

        Both models are on the same text.
        """
        self.name, self.model, self.source, self.batch_size = name, model, source, batch_size
        self.snapshots, self.against = snapshots, against
        self.validation = source.validation()

    def reading(self, what: str, models: int = 1) -> Any:
        """Open a progress bar for one pass over the validation text per model."""
        total = models * len(self.validation.inputs)
        return tqdm(total=total, desc=what, unit="seq", file=sys.stderr, leave=False)

    @cached_property
    def observed(self) -> Observed:
        """Routing and losses on the validation text, computed on first use."""
        experts.moe_config(self.model)
        with self.reading("routing") as bar:
            return observe(self.model, self.validation, batch_size=self.batch_size, seen=bar.update)

    def compared(self, what: str, models: Mapping[Any, Transformer], column: str) -> pd.DataFrame:
        """Return one row per model with its loss on the validation text."""
        with self.reading(what, len(models)) as bar:
            measure: Callable[[Transformer], SequenceLosses] = partial(
                losses_of, batch=self.validation, batch_size=self.batch_size, seen=bar.update
            )
            return experts.compared(models, measure, column=column)


def _shared(run: ModelOnText) -> Analysis:
    table = run.compared("shared experts", experts.shared_off(run.model), "model")
    costs = dict(zip(table["model"], table["difference"], strict=True))
    both = costs.get("shared off, one more routed")
    recovered = "" if both is None else f"; one more routed expert changes that by {both - costs['shared off']:+.3f}"
    off = table[table["model"] == "shared off"].iloc[0]
    return drawn(
        "Can a routed expert replace the shared experts?",
        f"Without the shared experts the loss is {off['loss']:.3f} instead of {table['loss'][0]:.3f}, "
        f"{_signed(off)}{recovered}.",
        "If shared experts hold what every token needs, the loss rises and another routed expert does not help. "
        f"DeepSeekMoE 2B: from 1.808 to 2.414 with one more routed expert (section 4.4). {PAIRED}",
        {"shared": table},
        {
            "shared": lambda: plots_experts.loss_changes(
                table, title=f"Shared experts off: {costs['shared off']:+.3f}{recovered}"
            )
        },
    )


def _redundancy(run: ModelOnText) -> Analysis:
    frames, unfit = [], ""
    for subject in (run, run.against) if run.against else (run,):
        try:
            table = subject.compared(f"masking, {subject.name}", experts.top_masked(subject.model), "masked")
        except DoesNotApply as reason:
            if subject is run:
                raise
            unfit = f" {subject.name} is not shown: {reason}."
            continue
        num_experts = experts.moe_config(subject.model).num_experts
        frames.append(table.assign(run=subject.name, ratio=table["masked"] / num_experts))
    table = pd.concat(frames, ignore_index=True)
    most = [(frame["run"].iloc[-1], frame.iloc[-1]) for frame in frames]
    finding = "; ".join(f"{name}, top {row['ratio']:.0%} masked: {_signed(row)}" for name, row in most)
    short = ", ".join(f"{row['difference']:+.3f} ({name})" for name, row in most)
    title = f"Top {most[0][1]['ratio']:.0%} of experts masked: {short if len(most) > 1 else short.partition(' ')[0]}"
    return drawn(
        "How redundant are the routed experts?",
        f"{finding} nats per token.",
        "In every layer, each token's experts of highest affinity are masked and the next best chosen instead. The "
        f"more the loss rises, the less redundant the experts are (section 4.4).{unfit} {PAIRED}",
        {"redundancy": table},
        {"redundancy": lambda: plots_experts.loss_over_masked(table, title=title)},
    )


def _fewer(run: ModelOnText) -> Analysis:
    table = run.compared("fewer experts", experts.fewer_experts(run.model), "experts")
    ffn = experts.moe_config(run.model)
    table["active_width"] = (ffn.num_shared + table["experts"]) * ffn.expert_dim
    reference, note = None, ""
    if run.against is not None:
        with run.against.reading("the other run") as bar:
            other = losses_of(run.against.model, run.validation, batch_size=run.batch_size, seen=bar.update).mean
        reference = (run.against.name, other)
        enough = table[table["loss"] <= other]["experts"]
        least = f"{enough.min()} routed experts reach it" if len(enough) else "no number of experts reaches it"
        note = f" {run.against.name} has {other:.3f}{_width(run.against)}: {least}."
    half = table.iloc[len(table) // 2]
    title = f"{half['experts']:.0f} of {ffn.top_k} routed experts: {half['difference']:+.3f} nats"
    return drawn(
        "How many routed experts are needed?",
        f"With {half['experts']:.0f} of {ffn.top_k} routed experts the loss is {half['loss']:.3f} instead of "
        f"{table['loss'][0]:.3f}, {_signed(half)}.{note}",
        "The model was trained with the largest number; gates are not rescaled. active_width: total hidden width of "
        f"the shared and chosen experts (section 4.4). {PAIRED}",
        {"fewer": table},
        {"fewer": lambda: plots_experts.loss_over_experts(table, against=reference, title=title)},
    )


def _domains(run: ModelOnText) -> Analysis:
    observed = _choosing(run)
    if observed.domains is None or len(np.unique(observed.domains)) < 2:
        raise DoesNotApply("the validation text has fewer than two domains (data=mixture has three)")
    table = specialisation.domain_information(observed)
    shares = specialisation.domain_shares(observed, run.source.domains)
    best = table.iloc[int(table["information"].argmax())]
    much = f"{best['information']:.3f} of {best['most']:.3f} nats, {best['chance']:.3f} by chance"
    return drawn(
        "Do experts specialise by domain?",
        f"Most in layer {best['layer']:.0f}: the mutual information is {much} (p = {best['p']:.3f}).",
        f"Mutual information of domain and expert. Chance: the domains of whole sequences shuffled "
        f"{specialisation.SHUFFLES} times, so p is at least {1 / (1 + specialisation.SHUFFLES):.3f}. share: the "
        "fraction of a domain's tokens that an expert gets; lift: that share over the expert's share of all text.",
        {"domains": table, "domain_shares": shares},
        {
            "domains": lambda: plots_experts.information_bars(
                table, "domain", title=f"Domains, layer {best['layer']:.0f}: {much}"
            ),
            "domain_shares": lambda: plots_experts.domain_heatmap(shares, title=_domain_title(shares)),
        },
    )


def _domain_title(shares: pd.DataFrame) -> str:
    top = shares.iloc[int(shares["lift"].argmax())]
    times = f"{top['lift']:.1f} times its overall share of {top['domain']}"
    return f"Expert {top['expert']} of layer {top['layer']} gets {times}"


def _tokens(run: ModelOnText) -> Analysis:
    observed, tokenizer = _choosing(run), run.source.tokenizer
    table = specialisation.token_information(observed)
    text_of = str if tokenizer is None else lambda kind: "".join(tokenizer.pieces([kind]))  # with its leading space
    return by_token(table, specialisation.expert_tokens(observed, text_of))


def _coactivation(run: ModelOnText) -> Analysis:
    if experts.moe_config(run.model).top_k < 2:
        raise DoesNotApply(NO_PAIRS)
    return together(coactivation.coactivation(_choosing(run)))


def _router(run: ModelOnText) -> Analysis:
    _require_several(run)
    table = coactivation.router_certainty(run.observed)
    token, mean, top = (table[name].mean() for name in ("entropy_token", "entropy_mean", "top_gate"))
    title = f"A token's affinities have {token:.0%} of the maximum entropy, their mean {mean:.0%}"
    return drawn(
        "How confident is the router?",
        f"{title}; the top gate is {top:.0%} of the sum of the chosen gates.",
        "Low entropy per token and high entropy of the mean: choices are confident and spread over all experts. The "
        "finding averages over layers; the table lists each.",
        {"router": table},
        {"router": lambda: plots_experts.certainty_over_layers(table, title=title)},
    )


def _saturation(run: ModelOnText) -> Analysis:
    num_experts = _require_several(run)
    if run.snapshots is None:
        raise DoesNotApply("the run recorded no routing snapshots")
    snapshots = pd.read_parquet(run.snapshots) if isinstance(run.snapshots, Path) else run.snapshots
    table = coactivation.saturation(snapshots, num_experts)
    return settling(table, "for a fixed probe of validation tokens")


def _require_several(run: ModelOnText) -> int:
    """Return the number of routed experts. Raises DoesNotApply for a dense model and for a single expert."""
    num_experts = experts.moe_config(run.model).num_experts
    if num_experts == 1:
        raise DoesNotApply(ONE_EXPERT)
    return num_experts


def _choosing(run: ModelOnText) -> Observed:
    """Return the routing. Raises DoesNotApply if every token has the same experts, so that nothing depends on it."""
    _require_several(run)
    chosen = np.sort(run.observed.experts, -1)  # (L, S, T, K)
    if (chosen == chosen[:, :1, :1]).all():
        raise DoesNotApply(SAME_EXPERTS)
    return run.observed


def _signed(row: "pd.Series[Any]") -> str:
    return f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def _width(run: ModelOnText) -> str:
    moe = run.model.config.moe
    return "" if moe is None else f" at an active width of {(moe.num_shared + moe.top_k) * moe.expert_dim}"


ANALYSES: dict[str, Callable[[ModelOnText], Analysis]] = {
    "shared": _shared,
    "redundancy": _redundancy,
    "fewer": _fewer,
    "domains": _domains,
    "tokens": _tokens,
    "coactivation": _coactivation,
    "router": _router,
    "saturation": _saturation,
}
