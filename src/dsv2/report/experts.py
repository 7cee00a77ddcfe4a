"""The analyses of one run, each as a section: what it found, the table that it rests on, the figure that shows it.

They are those of DeepSeekMoE (arXiv 2401.06066, sections 4.4 and 4.5) and their neighbours. An analysis that has no
meaning for a run raises DoesNotApply.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from dsv2.data.source import Source
from dsv2.models.transformer import Transformer
from dsv2.plots import experts as plots_experts
from dsv2.routing import coactivation, specialisation
from dsv2.routing import interventions as experts
from dsv2.routing.interventions import DoesNotApply
from dsv2.routing.observed import Observed, SequenceLosses, losses_of, observe

PAIRED = "Intervals: 95%, over validation sequences, paired by sequence; of one trained model, so not seed noise."


class Analysis(NamedTuple):
    """What was found, and the tables and figures, each under its file's name, that show it."""

    title: str
    finding: str
    note: str
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure]


class ModelOnText:
    """A trained model with the validation text it is looked at on, read `batch_size` sequences at a time."""

    def __init__(
        self,
        name: str,
        model: Transformer,
        source: Source,
        *,
        batch_size: int,
        snapshots: pd.DataFrame | None = None,
        against: "ModelOnText | None" = None,
    ) -> None:
        """`snapshots` are the routing of a probe over training; `against` is another model on the same text."""
        self.name, self.model, self.source, self.batch_size = name, model, source, batch_size
        self.snapshots, self.against = snapshots, against
        self.validation = source.validation()

    def reading(self, what: str, models: int = 1) -> Any:
        """A progress bar of so many passes over the validation text."""
        total = models * len(self.validation.inputs)
        return tqdm(total=total, desc=what, unit="seq", file=sys.stderr, leave=False)

    @cached_property
    def observed(self) -> Observed:
        """One pass, made when it is first asked for."""
        experts.moe_config(self.model)
        with self.reading("routing") as bar:
            return observe(self.model, self.validation, batch_size=self.batch_size, seen=bar.update)

    def compared(self, what: str, models: Mapping[Any, Transformer], column: str) -> pd.DataFrame:
        """A row per model, with its loss on the validation text."""
        with self.reading(what, len(models)) as bar:
            measure: Callable[[Transformer], SequenceLosses] = partial(
                losses_of, batch=self.validation, batch_size=self.batch_size, seen=bar.update
            )
            return experts.compared(models, measure, column=column)


def _shared(run: ModelOnText) -> Analysis:
    table = run.compared("shared experts", experts.shared_off(run.model), "model")
    costs = dict(zip(table["model"], table["difference"], strict=True))
    both = costs.get("shared off, one more routed")
    recovered = "" if both is None else f"; one more routed expert takes {costs['shared off'] - both:+.3f} off that"
    off = table[table["model"] == "shared off"].iloc[0]
    return Analysis(
        "Can a routed expert stand in for the shared ones?",
        f"Without the shared experts the loss is {off['loss']:.3f} instead of {table['loss'][0]:.3f}, "
        f"{_signed(off)}{recovered}.",
        "If shared experts hold what every token needs, the loss rises and another routed expert does not help. "
        f"DeepSeekMoE 2B: 1.808 to 2.414, with one more routed (section 4.4). {PAIRED}",
        {"shared": table},
        {
            "shared": plots_experts.loss_changes(
                table, title=f"Shared experts off: {costs['shared off']:+.3f}{recovered}"
            )
        },
    )


def _redundancy(run: ModelOnText) -> Analysis:
    frames, unfit = [], ""
    for each in (run, run.against) if run.against else (run,):
        try:
            table = each.compared(f"masking, {each.name}", experts.top_masked(each.model), "masked")
        except DoesNotApply as reason:
            if each is run:
                raise
            unfit = f" {each.name} is not drawn: {reason}."
            continue
        num_experts = experts.moe_config(each.model).num_experts
        frames.append(table.assign(run=each.name, ratio=table["masked"] / num_experts))
    table = pd.concat(frames, ignore_index=True)
    most = [(frame["run"].iloc[-1], frame.iloc[-1]) for frame in frames]
    finding = "; ".join(f"{name}, top {row['ratio']:.0%} masked: {_signed(row)}" for name, row in most)
    short = ", ".join(f"{row['difference']:+.3f} ({name})" for name, row in most)
    title = f"Best {most[0][1]['ratio']:.0%} of experts masked: {short if len(most) > 1 else short.partition(' ')[0]}"
    return Analysis(
        "How redundant are the routed experts?",
        f"{finding} nats per token.",
        "The experts of highest affinity cannot be chosen, layer by layer, token by token; the next best are. The more "
        f"this costs, the less another expert can stand in (section 4.4).{unfit} {PAIRED}",
        {"redundancy": table},
        {"redundancy": plots_experts.loss_over_masked(table, title=title)},
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
        least = f"{enough.min()} routed experts reach it" if len(enough) else "no number reaches it"
        note = f" {run.against.name} has {other:.3f}{_width(run.against)}: {least}."
    half = table.iloc[len(table) // 2]
    title = f"{half['experts']:.0f} of {ffn.top_k} routed experts: {half['difference']:+.3f} nats"
    return Analysis(
        "How many routed experts are needed?",
        f"With {half['experts']:.0f} of {ffn.top_k} routed experts the loss is {half['loss']:.3f} instead of "
        f"{table['loss'][0]:.3f}, {_signed(half)}.{note}",
        "The model was trained with the largest number; gates are not rescaled. active_width: hidden width of the "
        f"shared and chosen experts (section 4.4). {PAIRED}",
        {"fewer": table},
        {"fewer": plots_experts.loss_over_experts(table, against=reference, title=title)},
    )


def _domains(run: ModelOnText) -> Analysis:
    observed = run.observed
    if observed.domains is None or len(np.unique(observed.domains)) < 2:
        raise DoesNotApply("the validation text has fewer than two domains (data=mixture has three)")
    table = specialisation.domain_information(observed)
    shares = specialisation.domain_shares(observed, run.source.domains)
    best = table.iloc[int(table["information"].argmax())]
    much = f"{best['information']:.3f} of {best['most']:.3f} nats, {best['chance']:.3f} by chance"
    return Analysis(
        "Do experts specialise by domain?",
        f"Layer {best['layer']:.0f} most: an expert tells {much} (p = {best['p']:.3f}).",
        f"Mutual information of domain and expert. Chance: whole sequences given the domains of others, "
        f"{specialisation.SHUFFLES} times, so p is at least {1 / (1 + specialisation.SHUFFLES):.3f}. share: of the "
        "domain's tokens, which expert gets how many; lift: the same over the expert's share of all text.",
        {"domains": table, "domain_shares": shares},
        {
            "domains": plots_experts.information_bars(
                table, "domain", title=f"Domains, layer {best['layer']:.0f}: {much}"
            ),
            "domain_shares": plots_experts.domain_heatmap(shares, title=_domain_title(shares)),
        },
    )


def _domain_title(shares: pd.DataFrame) -> str:
    top = shares.iloc[int(shares["lift"].argmax())]
    times = f"{top['lift']:.1f} times as much of {top['domain']} as of all text"
    return f"Expert {top['expert']} of layer {top['layer']} gets {times}"


def _tokens(run: ModelOnText) -> Analysis:
    observed, tokenizer = run.observed, run.source.tokenizer
    table = specialisation.token_information(observed)
    text_of = str if tokenizer is None else lambda kind: tokenizer.decode([kind])
    by_expert = specialisation.expert_tokens(observed, text_of)
    best = table.iloc[int(table["share_of_most"].argmax())]
    settled = f"layer {best['layer']:.0f}, the token settles {best['share_of_most']:.0%} of the choice of experts"
    return Analysis(
        "Do experts specialise by token?",
        f"In {settled}; 100% would be a table from token to experts.",
        "Mutual information of token and expert, less what it is with tokens shuffled, over the most possible. By "
        "expert: its load over the mean, the share of its pairs that its ten commonest tokens make up, the same with "
        "tokens shuffled, and the tokens that tell it best.",
        {"tokens": table, "expert_tokens": by_expert},
        {
            "tokens": plots_experts.information_bars(table, "token", title=f"In {settled}"),
            "expert_tokens": plots_experts.token_concentration(
                by_expert,
                title=f"Ten tokens make up {by_expert['concentration'].median():.0%} of the middle expert's work, "
                f"{by_expert['chance'].median():.0%} by chance",
            ),
        },
    )


def _coactivation(run: ModelOnText) -> Analysis:
    top_k = experts.moe_config(run.model).top_k
    if top_k < 2:
        raise DoesNotApply("a token chooses one expert, so none are chosen together")
    pairs = coactivation.coactivation(run.observed)
    far = coactivation.far_from_independent(pairs)
    table = pairs.sort_values("ratio", ascending=False, kind="stable")
    often = table[table["expected"] >= 10]
    top = (often if len(often) else table).iloc[0]
    much = f"{top['ratio']:.1f} times as often as if they were independent"
    return Analysis(
        "Which experts are chosen together?",
        f"Experts {top['expert']:.0f} and {top['other']:.0f} of layer {top['layer']:.0f} are chosen together {much}.",
        "Independent: experts of the same loads. far: share of pairs over 3 standard deviations of a count from that, "
        "0.3% by chance if tokens were independent, which in text they are not; log_ratio: mean size of log2 of ratio.",
        {"coactivation": far, "pairs": table},
        {"coactivation": plots_experts.coactivation_heatmap(pairs, title=f"Pairs of experts are chosen up to {much}")},
    )


def _router(run: ModelOnText) -> Analysis:
    table = coactivation.router_certainty(run.observed)
    token, mean, top = (table[name].mean() for name in ("entropy_token", "entropy_mean", "top_gate"))
    title = f"A token's affinities have {token:.0%} of the largest entropy, their mean {mean:.0%}"
    return Analysis(
        "How sure is the router?",
        f"{title}; the top gate is {top:.0%} of the chosen gates.",
        "Low entropy of a token and high entropy of the mean: choices are sure and spread over all experts. The "
        "finding is the mean over layers; the table has each.",
        {"router": table},
        {"router": plots_experts.certainty_over_layers(table, title=title)},
    )


def _saturation(run: ModelOnText) -> Analysis:
    ffn = experts.moe_config(run.model)
    if run.snapshots is None:
        raise DoesNotApply("the run recorded no snapshots of its routing")
    table = coactivation.saturation(run.snapshots, ffn.num_experts)
    last = table["step"].max()
    halfway = table[table["step"] <= last / 2].groupby("layer").last()
    settled = f"by half of the steps {halfway['overlap'].mean():.0%} of a token's experts are its final ones"
    return Analysis(
        "When does routing settle?",
        f"{settled.capitalize()}, {halfway['chance'].mean():.0%} by chance.",
        f"Overlap of the chosen experts with those after step {last}, of a fixed probe of validation tokens; by "
        "chance: tokens shuffled, loads as they were. Step 0 is the untrained router.",
        {"saturation": table},
        {"saturation": plots_experts.overlap_over_training(table, title=settled.capitalize())},
    )


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
