"""Extensions of RoPE to longer contexts: their frequencies, how YaRN acts on attention, and where they end."""

import math
from itertools import pairwise

import pytest
import torch

import dsv2
from dsv2.config import ConfigError, plain
from dsv2.inference.cache import allocate_model
from dsv2.interop.hf_config import config_from_hf
from dsv2.models.attention.mla import MLA
from dsv2.models.rope import NTK, Interpolation, Partition, Rope, Yarn, rotate
from tests import references
from tests.references.tolerances import ANGLE, FLOAT32
from tests.references.twins import twin

LONG = {"factor": 40.0, "original_length": 4096}


# ---- frequencies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 4, 10, 64])
@pytest.mark.parametrize("base", [100.0, 10000.0])
def test_interpolation_divides_positions(base: float, dim: int) -> None:
    rope = Rope.Config(base=base, extension=Interpolation.Config(**LONG)).build()
    thetas = references.rope_frequencies(dim, base)
    rotations = rope.rotations(torch.tensor([0, 40, 4000]), dim)
    for rotation, position in zip(rotations, (0, 1, 100), strict=True):
        expected = torch.tensor([complex(math.cos(position * t), math.sin(position * t)) for t in thetas])
        assert (rotation - expected).abs().max() <= ANGLE * 100
    assert (rope.softmax_factor, rope.limit) == (1.0, 163840)


@pytest.mark.parametrize("dim", [4, 10, 64])
@pytest.mark.parametrize("base", [100.0, 10000.0])
def test_ntk_slows_the_slowest_pair_by_the_factor_and_the_fastest_not_at_all(base: float, dim: int) -> None:
    rope = Rope.Config(base=base, extension=NTK.Config(**LONG)).build()
    plain = torch.tensor(references.rope_frequencies(dim, base))
    slowed = (plain / rope.frequencies(dim)).tolist()
    assert slowed[0] == 1.0
    assert slowed[-1] == pytest.approx(40.0, rel=1e-5)
    steps = [later / earlier for earlier, later in pairwise(slowed)]
    assert steps == pytest.approx([40 ** (2 / (dim - 2))] * len(steps), rel=1e-5)  # evenly, in the logarithm
    assert (rope.softmax_factor, rope.limit) == (1.0, 163840)


def test_of_a_single_pair_ntk_leaves_the_frequency() -> None:
    assert Rope.Config(extension=NTK.Config()).build().frequencies(2).tolist() == [1.0]


def test_a_factor_of_one_changes_nothing() -> None:
    plain = Rope.Config().build().frequencies(64)
    for extension in (Interpolation.Config(factor=1), NTK.Config(factor=1)):
        torch.testing.assert_close(
            Rope.Config(extension=extension).build().frequencies(64), plain, rtol=FLOAT32, atol=0
        )


def test_how_yarn_divides_the_pairs() -> None:
    assert Yarn.Config().partition(10000.0, 64) == Partition(11, 12, 9)
    small = Yarn.Config(original_length=128)
    assert small.partition(10000.0, 32) == Partition(1, 5, 10)  # what turns less than once is interpolated
    assert Yarn.Config(original_length=128).partition(100.0, 32) == Partition(1, 10, 5)
    assert Yarn.Config(original_length=128, beta_fast=4.4).partition(100.0, 32) == Partition(6, 5, 5)


@pytest.mark.parametrize(("base", "length", "dim"), [(10000.0, 4096, 64), (100.0, 128, 32), (100.0, 64, 16)])
def test_betas_in_proportion_divide_the_pairs_as_published(base: float, length: int, dim: int) -> None:
    fast, slow = Yarn.Config(original_length=length).proportional(base)
    chosen = Yarn.Config(original_length=length, beta_fast=fast, beta_slow=slow)
    shares = [count / (dim / 2) for count in chosen.partition(base, dim)]
    assert shares == pytest.approx([11 / 32, 12 / 32, 9 / 32], abs=1.01 / (dim / 2))
    if dim == 64:
        assert (fast, slow) == pytest.approx((32.0, 1.0))


# ---- YaRN acts once --------------------------------------------------------------------------------------------------


def weight_of_the_first_key(rope: Rope, absorbed: bool) -> float:
    """Of two keys whose products with the query differ by 10 before scaling, as MLA of the released widths sees it."""
    config = MLA.Config(num_heads=1, head_dim=128, rope_dim=64, v_dim=2, kv_latent_dim=2)
    mla = references.randomise(config.build(8, rope), 0)
    with torch.no_grad():
        mla.w_uv.copy_(torch.eye(2))
        q_rope, k_rope = torch.zeros(1, 2, 1, 64), torch.zeros(1, 2, 64)
        q_rope[..., 0], k_rope[0, 0, 0] = 10.0, 1.0
        rotations = rope.rotations(torch.zeros(2, dtype=torch.int64), 64)  # of one position, so that only factors act
        q_rope, k_rope = rotate(q_rope, rotations), rotate(k_rope.unsqueeze(2), rotations).squeeze(2)
        attend = mla._absorbed if absorbed else mla._expanded
        out = attend(torch.zeros(1, 2, 1, 128), q_rope, torch.eye(2).unsqueeze(0), k_rope)  # values (1, 0) and (0, 1)
    assert out[0, 1].sum().item() == pytest.approx(1.0, rel=1e-6)
    return out[0, 1, 0, 0].item()


@pytest.mark.parametrize("absorbed", [False, True], ids=["expanded", "absorbed"])
@pytest.mark.parametrize(
    ("mscale", "on_rotations", "weight"), [(0.707, 1.0, 0.759002), (1.0, 1.085726, 0.794511), (0.0, 0.793145, 0.672979)]
)
def test_yarn_acts_once_on_the_scale_and_once_on_the_rotations(
    absorbed: bool, mscale: float, on_rotations: float, weight: float
) -> None:
    rope = Rope.Config(yarn=Yarn.Config(mscale=mscale, mscale_all_dim=0.707)).build()
    scale = MLA.Config(num_heads=1, head_dim=128, rope_dim=64, v_dim=2, kv_latent_dim=2).build(8, rope).scale
    assert scale == pytest.approx(0.1147214, abs=5e-8)
    assert rope.rotations(torch.tensor([1, 4096]), 64).abs().flatten().tolist() == pytest.approx([on_rotations] * 64)
    assert weight_of_the_first_key(rope, absorbed) == pytest.approx(weight, abs=2e-6)


def test_without_yarn_the_scale_is_that_of_the_width() -> None:
    for extension in (None, Interpolation.Config(), NTK.Config()):
        rope = Rope.Config(extension=extension).build()
        assert weight_of_the_first_key(rope, absorbed=True) == pytest.approx(
            1 / (1 + math.exp(-10 * 0.0721688)), abs=1e-6
        )


# ---- the factor is that of the config, and nothing else --------------------------------------------------------------


def from_hf(**parameters: object) -> Rope.Config:
    config = twin().config.to_dict() | {"rope_scaling": None}
    length = parameters.pop("maximum")
    parameters = {"rope_type": "yarn", "rope_theta": 1e4, **parameters}
    return config_from_hf(config | {"max_position_embeddings": length, "rope_parameters": parameters}).rope


def test_the_maximum_of_a_config_does_not_change_the_factor() -> None:
    stretched = from_hf(maximum=163840, original_max_position_embeddings=4096, factor=40.0)
    assert (stretched.limit, stretched.yarn.factor) == (163840, 40.0)
    left = from_hf(maximum=4096, factor=4.0)
    assert (left.limit, left.yarn.factor, left.yarn.original_length) == (16384, 4.0, 4096)
    slowest = (Rope.Config().build().frequencies(64) / left.build().frequencies(64))[-1].item()
    assert slowest == pytest.approx(4.0, rel=1e-6)
    assert left.build().rotations(torch.tensor([5]), 64).abs().mean().item() == pytest.approx(1.138629, abs=5e-7)


def test_an_explicit_attention_factor_wins_over_the_formula() -> None:
    explicit = from_hf(maximum=4096, factor=4.0, attention_factor=1.0)
    assert explicit.build().rotations(torch.tensor([5]), 64).abs().mean().item() == pytest.approx(1.0, rel=1e-6)
    assert explicit.build().softmax_factor == 1.0


# ---- the last position -----------------------------------------------------------------------------------------------

SHORT = ["model/rope=yarn", "model.rope.yarn.factor=4", "model.rope.yarn.original_length=4"]
TINY = ["model.dim=16", "model.num_layers=2", "model/ffn=dense", "data.vocab_size=300", "trainer.sequence_length=16"]


@pytest.mark.parametrize("kind", ["mla", "gqa"])
@pytest.mark.parametrize("rope", ["yarn", "interpolation", "ntk"])
def test_one_position_beyond_the_limit_is_refused(kind: str, rope: str) -> None:
    key = "yarn" if rope == "yarn" else "extension"
    words = [f"model/rope={rope}", f"model.rope.{key}.factor=4", f"model.rope.{key}.original_length=4"]
    model = dsv2.load([*TINY, *words, f"model/attention={kind}"]).model.build()
    tokens = torch.arange(17).unsqueeze(0)
    model(tokens[:, :16])
    beyond = "position 16: must be less than 16, factor x original_length of model.rope"
    with pytest.raises(ValueError, match=beyond):
        model(tokens)
    caches = allocate_model(model, batch_size=1, max_length=32)
    model(tokens[:, :15], caches=caches)
    model(tokens[:, 15:16], caches=caches)
    with pytest.raises(ValueError, match=beyond):
        model(tokens[:, 16:], caches=caches)
    rows, positions = torch.zeros(2, 2, dtype=torch.int64), torch.tensor([[-1, 0], [14, 15]])
    model(rows, positions=positions)
    with pytest.raises(ValueError, match=beyond):
        model(rows, positions=positions + 1)


def test_plain_rope_states_no_limit() -> None:
    dsv2.load(TINY).model.build()(torch.zeros(1, 300, dtype=torch.int64))


def test_a_run_beyond_the_limit_is_refused_before_it_starts() -> None:
    assert dsv2.load([*TINY, *SHORT]).model.rope.limit == 16
    message = r"trainer.sequence_length=17 is not valid: at most 16, factor x original_length"
    with pytest.raises(ConfigError, match=message):
        dsv2.load([*TINY, *SHORT, "trainer.sequence_length=17"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: Interpolation.Config(factor=0.5), "factor=0.5 is not valid: at least 1"),
        (lambda: NTK.Config(original_length=0), "original_length=0 is not valid: positive"),
        (
            lambda: Rope.Config(yarn=Yarn.Config(), extension=NTK.Config()),
            "extension=.* is not valid: null beside yarn",
        ),
    ],
)
def test_impossible_extensions_are_refused(config, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        config()


def test_old_runs_with_yarn_keep_their_names() -> None:
    identity = plain(Rope.Config(yarn=Yarn.Config()), identity=True)
    fields = {"factor", "original_length", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "_target_"}
    assert identity.keys() == {"_target_", "base", "yarn"}
    assert identity["yarn"].keys() == fields
    assert identity["yarn"]["_target_"] == "dsv2.models.rope.Yarn.Config"
