"""TRL's losses as ours. axolotl and LLaMA-Factory name theirs after them, so that this serves all three.

Formulas: TRL 1.16, ``DPOTrainer._compute_loss``, ``KTOTrainer``, ``CPOTrainer.cpo_loss``, ``ORPOTrainer``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.importing.draft import Draft
from dpo_cli.importing.options import Options

DPO_LOSSES = {
    "sigmoid": "dpo",
    "hinge": "hinge",
    "ipo": "ipo",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "robust": "robust",
    "bco_pair": "bco_pair",
    "sppo_hard": "sppo",
    "aot": "aot",
    "aot_unpaired": "aot_unpaired",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
    "sft": "sft",
    "sigmoid_norm": "dpo_norm",
}
"""DPOConfig's ``loss_type``."""
CPO_LOSSES = {"sigmoid": "cpo", "hinge": "hinge", "ipo": "ipo", "simpo": "simpo", "alphapo": "alphapo"}
KTO_LOSSES = ("kto", "apo_zero_unpaired")
DIVERGENCES = {
    "reverse_kl": "reverse_kl",
    "forward_kl": "forward_kl",
    "js_divergence": "js",
    "alpha_divergence": "alpha",
}

_SMOOTHED = ("robust", "exo", "aot", "aot_unpaired")
"""Losses of ours whose counterpart in TRL reads ``label_smoothing``."""
_SFT_MEAN = "over all tokens of a micro-batch there, over each answer's tokens and then over the answers here"


def dpo(options: Options, draft: Draft) -> None:
    """DPOConfig's losses, several of them with weights included."""
    names = _loss_types(options)
    shares = {DPO_LOSSES[name]: weight for name, weight in zip(names, _weights(options, names), strict=True)}
    rpo_alpha = options.number("rpo_alpha")
    if rpo_alpha is not None:
        shares.setdefault("sft", rpo_alpha)
    terms = {name: _dpo_term(name, options) for name in shares}
    _say_smoothing_is_ignored(options, names, draft)
    _say_what_differs(shares, draft)
    modifiers = _modifiers(options)
    main, *others = [name for name in shares if name != "sft"] or ["sft"]
    if others or shares[main] != 1:
        write_sum(draft, shares, {name: term | (modifiers if name != "sft" else {}) for name, term in terms.items()})
    elif main == "sft":
        write(draft, "sft", {})
        draft.set("reference.mode", "none")
    else:
        sft: Term = {"sft_weight": (shares["sft"], "")} if "sft" in shares else {}
        write(draft, main, terms[main] | modifiers | sft)


def _loss_types(options: Options) -> list[str]:
    value = options.take("loss_type")
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise DpoError(f"{options.name('loss_type')}={value!r}: expected names of losses")
    names = [str(name).strip() for name in names]
    for name in names:
        if name not in DPO_LOSSES:
            raise DpoError(f"{options.name('loss_type')}={name}: expected one of {', '.join(DPO_LOSSES)}")
    if len(set(names)) < len(names):
        raise DpoError(f"{options.name('loss_type')}={value!r}: a loss stands twice; add its weights up")
    return names


def _weights(options: Options, names: list[str]) -> list[float]:
    value = options.take("loss_weights")
    weights = [1.0] * len(names) if value is None else value
    if not isinstance(weights, list) or len(weights) != len(names):
        raise DpoError(f"{options.name('loss_weights')}={value!r}: expected {len(names)} numbers, one per loss")
    try:
        return [float(weight) for weight in weights]
    except (TypeError, ValueError):
        raise DpoError(f"{options.name('loss_weights')}={value!r}: expected numbers") from None


Term = dict[str, tuple[Any, str]]
"""Keys of one loss, each with its value and a remark."""


def _dpo_term(name: str, options: Options) -> Term:
    if name == "sft":
        return {}
    term: Term = {"beta": (options.number("beta"), options.origin("beta"))}
    if name in _SMOOTHED:
        term["label_smoothing"] = (options.number("label_smoothing"), options.origin("label_smoothing"))
    elif name in ("dpo", "dpo_norm"):
        term["label_smoothing"] = (0.0, "TRL has none in this loss")
    elif name == "ipo":
        term["normalise"] = ("mean", "as TRL: log-ratios per token")
    elif name == "discopop":
        term["tau"] = (options.number("discopop_tau"), options.origin("discopop_tau"))
    return term


def _modifiers(options: Options) -> Term:
    """What DPOConfig can do to any of its losses, where the file asks for it."""
    found: Term = {}
    if options.has("ld_alpha"):
        found["ld_alpha"] = (options.number("ld_alpha"), "")
    if options.truth("use_weighting"):
        found["wpo"] = (True, "")
    if options.truth("reference_free"):
        found["reference_free"] = (True, "")
    divergence = options.text("f_divergence_type") or "reverse_kl"
    if divergence not in DIVERGENCES:
        raise DpoError(f"f_divergence_type={divergence}: expected one of {', '.join(DIVERGENCES)}")
    if divergence != "reverse_kl":
        found["divergence"] = (DIVERGENCES[divergence], "")
    if divergence == "alpha_divergence":
        alpha = "f_alpha_divergence_coef"
        found["divergence_alpha"] = (options.number(alpha), options.origin(alpha))
    return found


def _say_smoothing_is_ignored(options: Options, names: list[str], draft: Draft) -> None:
    smoothing = options.number("label_smoothing")
    if smoothing and not any(DPO_LOSSES[name] in _SMOOTHED for name in names):
        name = options.name("label_smoothing")
        draft.check(
            f"{name}={smoothing} has no effect in TRL with loss_type={', '.join(names)}, so that there is none here. "
            "loss.label_smoothing would be conservative DPO."
        )


def _say_what_differs(names: Collection[str], draft: Draft) -> None:
    if "bco_pair" in names:
        draft.check(
            "bco_pair: TRL 1.16 subtracts no running mean of the rewards; here it is subtracted, as in the paper."
        )
    if "aot" in names or "aot_unpaired" in names:
        draft.check(
            "aot: TRL sorts within one device's micro-batch, so that its result depends on the batch per device."
        )
    if "sft" in names:
        draft.check(f"The SFT term is averaged otherwise: {_SFT_MEAN}.")


def kto(options: Options, draft: Draft) -> None:
    """KTOConfig's losses."""
    name = options.text("loss_type")
    if name not in KTO_LOSSES:
        raise DpoError(f"{options.name('loss_type')}={name}: expected one of {', '.join(KTO_LOSSES)}")
    weights = ("desirable_weight", "undesirable_weight")
    term: Term = {"beta": (options.number("beta"), options.origin("beta"))}
    if name == "kto":
        term |= {weight: (options.number(weight), options.origin(weight)) for weight in weights}
        draft.check(
            "kto: the KL is a mean over one micro-batch per device there, so that the result depends on the batch per "
            "device."
        )
    if options.default("train_sampling_strategy") == "sequential" and name == "kto":
        draft.check(f"kto: {options.tool} takes rows in the order of the file; here they are shuffled.")
    for weight in weights:
        if name != "kto" and options.number(weight) != 1:
            draft.lose(options.name(weight), options.number(weight), f"{name} weighs both kinds alike here")
    write(draft, name, term)
    draft.check("Rows must have the columns prompt, completion and label (true or false).")


def cpo(options: Options, draft: Draft) -> None:
    """CPOConfig's losses: CPO, SimPO, AlphaPO, and DPO's hinge and IPO without a reference."""
    loss_type = options.text("loss_type")
    if loss_type not in CPO_LOSSES:
        raise DpoError(f"{options.name('loss_type')}={loss_type}: expected one of {', '.join(CPO_LOSSES)}")
    alpha = options.number("alpha") or 0.0
    name = CPO_LOSSES[loss_type]
    if name in ("simpo", "alphapo"):
        name = "alphapo" if alpha else "simpo"
    elif alpha:
        draft.lose("alpha", alpha, f"AlphaPO's reward exists here with loss=alphapo only, not with {name}")
    beta = options.number("beta") or 0.0
    term: Term = {"beta": (beta, options.origin("beta"))}
    smoothing = (options.number("label_smoothing"), options.origin("label_smoothing"))
    if name == "alphapo":
        term["alpha"] = (alpha, "")
    if name in ("simpo", "alphapo"):
        term["gamma_ratio"] = gamma_ratio(options, beta)
    if name in ("cpo", "simpo", "alphapo"):
        term["label_smoothing"] = smoothing
    elif smoothing[0]:
        draft.lose(options.name("label_smoothing"), smoothing[0], f"{name} has no label smoothing here")
    if name in ("hinge", "ipo"):
        term["reference_free"] = (True, "")
    if name == "ipo":
        term["normalise"] = ("mean", "as TRL: log-probs per token")
    write(draft, name, term | _cpo_sft(options, loss_type, name, draft))
    draft.set("reference.mode", "none")


def gamma_ratio(options: Options, beta: float) -> tuple[float, str]:
    """SimPO's gamma over beta, as ``loss.gamma_ratio`` has it, and where it comes from."""
    gamma = options.number("simpo_gamma") or 0.0
    if beta <= 0:
        raise DpoError(f"{options.name('beta')}={beta}: expected a number over 0")
    return float(f"{gamma / beta:.12g}"), f"{options.name('simpo_gamma')} / beta = {gamma:g} / {beta:g}"


def _cpo_sft(options: Options, loss_type: str, name: str, draft: Draft) -> Term:
    """CPO's SFT term, which stays on for SimPO too unless ``cpo_alpha`` is 0."""
    weight = options.number("cpo_alpha") or 0.0
    if loss_type == "alphapo":
        return {}
    if weight:
        draft.check(f"The SFT term is averaged otherwise: {_SFT_MEAN}.")
    if weight and name in ("simpo", "alphapo"):
        draft.check(
            f"{options.name('cpo_alpha')}={weight:g}: this run has an SFT term beside SimPO's loss, which the paper "
            "does not have. Take loss.sft_weight out to be without."
        )
    if name == "cpo" or weight:
        return {"sft_weight": (weight, options.origin("cpo_alpha"))}
    return {}


def simpo_of_its_authors(options: Options, draft: Draft) -> None:
    """The options of princeton-nlp/SimPO, which has its own trainer on top of TRL."""
    defaults = {"beta": 2.0, "gamma_beta_ratio": 0.25, "label_smoothing": 0.0, "sft_weight": 0.0}
    given = {name: options.number(name) if options.has(name) else default for name, default in defaults.items()}
    remarks = {name: "" if options.has(name) else "the default of SimPO's repository" for name in defaults}
    if options.has("loss_type") and options.take("loss_type") != "sigmoid":
        raise DpoError(f"loss_type={options.take('loss_type')} with gamma_beta_ratio: expected sigmoid, SimPO's loss")
    term: Term = {
        "beta": (given["beta"], remarks["beta"]),
        "gamma_ratio": (given["gamma_beta_ratio"], remarks["gamma_beta_ratio"]),
        "label_smoothing": (given["label_smoothing"], remarks["label_smoothing"]),
    }
    if given["sft_weight"]:
        term["sft_weight"] = (given["sft_weight"], "")
    write(draft, "simpo", term)
    draft.set("reference.mode", "none")


def orpo(options: Options, draft: Draft) -> None:
    """ORPOConfig's loss, whose SFT term counts the prompt's tokens too."""
    write(
        draft,
        "orpo",
        {
            "beta": (options.number("beta"), options.origin("beta")),
            "nll": ("full", "as TRL: the SFT term is over the prompt's tokens as well"),
        },
    )
    draft.set("reference.mode", "none")


def write(draft: Draft, name: str, term: Term) -> None:
    """One loss."""
    if name != "dpo":
        draft.groups["loss"] = name
    for key, (value, remark) in term.items():
        draft.set(f"loss.{key}", value, remark)


def write_sum(draft: Draft, shares: dict[str, float], terms: dict[str, Term]) -> None:
    """Several losses with their weights."""
    draft.groups["loss"] = "sum"
    for name, term in terms.items():
        draft.added[f"/loss@loss.terms.{name}"] = name
        for key, (value, remark) in term.items():
            draft.set(f"loss.terms.{name}.{key}", value, remark)
        draft.set(f"loss.weights.{name}", shares[name])
