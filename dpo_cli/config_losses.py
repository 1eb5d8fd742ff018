"""The types of ``loss.*``: one model per loss, so that a key that a loss makes no use of is an unknown one.

What a loss can be given is said by what its model is made of: the keys, and ``columns`` for the rows' columns that it
makes use of. ``losses/registry.py`` has the functions.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dpo_cli.config_types import Positive, Section

Smoothing = Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False, strict=True)]

_ALL = frozenset({"weight", "margin", "label_prob"})
_SOFT = frozenset({"weight", "label_prob"})
_GAP = frozenset({"weight", "margin"})
_WEIGHT = frozenset({"weight"})


class _Loss(Section):
    columns: ClassVar[frozenset[str]]
    """Of weight, margin and label_prob those that the loss makes use of."""

    def settings(self) -> dict[str, Any]:
        """As ``losses.make_loss`` takes them."""
        return self.model_dump()

    @property
    def needs_reference(self) -> bool:
        """Whether reference log-probs are needed."""
        return isinstance(self, _Referenced) and not self.reference_free


class _Beta(_Loss):
    beta: Positive


class _Smoothed(_Loss):
    label_smoothing: Smoothing


class _Pairs(_Loss):
    """Any loss of comparisons."""

    sft_weight: NotNegative


class _Likely(_Loss):
    """Losses whose comparisons can count by how likely they are."""

    wpo: bool


class _Tail(_Loss):
    """Losses of summed log-probs, in which a longer answer's tail can weigh less."""

    ld_alpha: Annotated[float, Field(ge=0, le=1, strict=True)]


class _Referenced(_Loss):
    """Losses of log-ratios."""

    humanline: tuple[Number, Number] | None
    reference_free: bool


class _Divergence(_Loss):
    """Losses of the difference of two implicit rewards."""

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    divergence_alpha: Fraction | None


class _Two(_Beta, _Pairs, _Tail, _Referenced):
    """Losses of two rewards."""


class _Ratio(_Two, _Likely):
    """Of the rewards of one row's two answers."""

    columns = _SOFT


class _Gap(_Ratio, _Divergence):
    """Losses of the difference of two rewards."""

    columns = _ALL


class _OwnLikelihood(_Beta, _Pairs, _Likely):
    """Losses of the policy's own log-probs."""

    columns = _ALL


class DpoConfig(_Gap, _Smoothed):
    name: Literal["dpo"]


class RobustConfig(_Gap, _Smoothed):
    name: Literal["robust"]


class IpoConfig(_Ratio):
    columns = _ALL
    name: Literal["ipo"]
    normalise: Literal["mean", "sum"]


class HingeConfig(_Gap):
    name: Literal["hinge"]


class SlicConfig(_Pairs, _Likely, _Tail):
    columns = _ALL
    name: Literal["slic"]
    delta: NotNegative


class ExoConfig(_Gap):
    name: Literal["exo"]
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5, strict=True)]


class NcaConfig(_Ratio):
    name: Literal["nca"]


class BcoPairConfig(_Ratio):
    name: Literal["bco_pair"]


class SppoConfig(_Ratio):
    name: Literal["sppo"]


class AotConfig(_Two, _Smoothed):
    columns = frozenset()
    name: Literal["aot"]


class AotUnpairedConfig(_Two, _Smoothed):
    columns = frozenset()
    name: Literal["aot_unpaired"]


class ApoZeroConfig(_Ratio):
    name: Literal["apo_zero"]


class ApoDownConfig(_Ratio):
    name: Literal["apo_down"]


class DiscopopConfig(_Gap):
    name: Literal["discopop"]
    tau: Fraction


class DpoNormConfig(_Ratio, _Smoothed):
    columns = _ALL
    name: Literal["dpo_norm"]


class SimpoConfig(_OwnLikelihood, _Smoothed):
    name: Literal["simpo"]
    gamma_ratio: NotNegative


class AlphapoConfig(_OwnLikelihood, _Smoothed):
    name: Literal["alphapo"]
    alpha: Number
    gamma_ratio: NotNegative


class CpoConfig(_OwnLikelihood, _Tail, _Smoothed):
    name: Literal["cpo"]


class OrpoConfig(_Beta):
    columns = _SOFT
    name: Literal["orpo"]
    nll: Literal["answer", "full"]


class _RewardAware(_Gap):
    columns = _GAP
    eta: Positive


class RpoBwdKlConfig(_RewardAware):
    name: Literal["rpo_bwd_kl"]


class RpoFwdKlConfig(_RewardAware):
    name: Literal["rpo_fwd_kl"]


class RpoSqConfig(_RewardAware):
    name: Literal["rpo_sq"]


class SftConfig(_Loss):
    columns = _WEIGHT
    name: Literal["sft"]


class KtoConfig(_Beta, _Referenced):
    columns = _WEIGHT
    name: Literal["kto"]
    desirable_weight: NotNegative
    undesirable_weight: NotNegative


class BcoConfig(_Beta, _Referenced):
    columns = _WEIGHT
    name: Literal["bco"]


class ApoZeroUnpairedConfig(_Beta, _Referenced):
    columns = _WEIGHT
    name: Literal["apo_zero_unpaired"]


class PlackettLuceConfig(_Beta, _Referenced):
    columns = _WEIGHT
    name: Literal["plackett_luce"]


SingleLoss = Annotated[
    DpoConfig
    | RobustConfig
    | IpoConfig
    | HingeConfig
    | SlicConfig
    | ExoConfig
    | NcaConfig
    | BcoPairConfig
    | SppoConfig
    | AotConfig
    | AotUnpairedConfig
    | ApoZeroConfig
    | ApoDownConfig
    | DiscopopConfig
    | DpoNormConfig
    | SimpoConfig
    | AlphapoConfig
    | CpoConfig
    | OrpoConfig
    | RpoBwdKlConfig
    | RpoFwdKlConfig
    | RpoSqConfig
    | SftConfig
    | KtoConfig
    | BcoConfig
    | ApoZeroUnpairedConfig
    | PlackettLuceConfig,
    Field(discriminator="name"),
]


class SumConfig(Section):
    """A weighted sum of losses of one kind."""

    name: Literal["sum"]
    terms: dict[str, SingleLoss]
    weights: dict[str, Number]

    @property
    def columns(self) -> frozenset[str]:
        """Weights that every term takes; margins and probabilities that any does."""
        taken = [term.columns for term in self.terms.values()]
        return frozenset().union(*taken) - (_WEIGHT - frozenset.intersection(_ALL, *taken))

    @property
    def needs_reference(self) -> bool:
        """Whether any term does."""
        return any(term.needs_reference for term in self.terms.values())

    def settings(self) -> dict[str, Any]:
        """As ``losses.make_loss`` takes them."""
        return self.model_dump()


LossConfig = SingleLoss | SumConfig

_JUDGED, _RANKED = ("kto", "bco", "apo_zero_unpaired"), ("plackett_luce",)


def kind_of(name: str) -> str:
    """What a loss counts: ``pairs``, ``answers`` or ``rankings``."""
    return "answers" if name in _JUDGED else "rankings" if name in _RANKED else "pairs"
