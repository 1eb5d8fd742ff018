"""TRL's losses as ours, one by one, and what is said of the differences."""

from __future__ import annotations

from typing import Any

import pytest

from dpo_cli.errors import DpoError

TRL = {"model_name_or_path": "m", "dataset_name": "d", "beta": 0.3, "label_smoothing": 0.2}

# loss_type to our loss, and to the keys it has.
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("dpo", {"beta": 0.3, "label_smoothing": 0.0}),
    "hinge": ("hinge", {"beta": 0.3}),
    "ipo": ("ipo", {"beta": 0.3, "normalise": "mean"}),
    "exo_pair": ("exo", {"beta": 0.3, "label_smoothing": 0.2}),
    "nca_pair": ("nca", {"beta": 0.3}),
    "robust": ("robust", {"beta": 0.3, "label_smoothing": 0.2}),
    "bco_pair": ("bco_pair", {"beta": 0.3}),
    "sppo_hard": ("sppo", {"beta": 0.3}),
    "aot": ("aot", {"beta": 0.3, "label_smoothing": 0.2}),
    "aot_unpaired": ("aot_unpaired", {"beta": 0.3, "label_smoothing": 0.2}),
    "apo_zero": ("apo_zero", {"beta": 0.3}),
    "apo_down": ("apo_down", {"beta": 0.3}),
    "discopop": ("discopop", {"beta": 0.3, "tau": 0.05}),
    "sft": ("sft", {}),
    "sigmoid_norm": ("dpo_norm", {"beta": 0.3, "label_smoothing": 0.0}),
}
IGNORES_SMOOTHING = LOSSES.keys() - {"exo_pair", "robust", "aot", "aot_unpaired"}


def loss_of(result: Any) -> tuple[str, dict[str, Any]]:
    """Its name and its keys; dpo is the default and is not named."""
    return result.keys.get("loss", "dpo"), result.tree.get("loss", {})


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_dpo(name: str, convert) -> None:
    for loss_type in (name, [name]):
        result = convert(TRL | {"loss_type": loss_type})
        assert loss_of(result) == LOSSES[name]
        assert ("label_smoothing=0.2 has no effect in TRL" in result.remarks) == (name in IGNORES_SMOOTHING)


def test_all_losses_of_dpo_are_tried() -> None:
    from dpo_cli.importing.losses import DPO_LOSSES

    assert LOSSES.keys() == DPO_LOSSES.keys()


def test_two_losses_of_which_one_is_sft(convert) -> None:
    result = convert(TRL | {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.25]})
    assert loss_of(result) == ("ipo", {"beta": 0.3, "normalise": "mean", "sft_weight": 0.25})
    assert "averaged otherwise" in result.section("Not the same")
    old = convert(TRL | {"loss_type": "ipo", "rpo_alpha": 0.25})
    assert loss_of(old) == loss_of(result)


def test_several_losses(convert) -> None:
    result = convert(
        TRL | {"loss_type": ["sigmoid", "robust", "sft"], "loss_weights": [0.8, 0.2, 1], "ld_alpha": 0.5, "beta": 0.1}
    )
    name, keys = loss_of(result)
    assert name == "sum"
    assert keys == {
        "terms": {
            "dpo": {"beta": 0.1, "label_smoothing": 0.0, "ld_alpha": 0.5},
            "robust": {"beta": 0.1, "label_smoothing": 0.2, "ld_alpha": 0.5},
        },
        "weights": {"dpo": 0.8, "robust": 0.2, "sft": 1.0},
    }
    assert "has no effect" not in result.remarks  # robust reads the smoothing


def test_a_weight_alone_is_a_sum(convert) -> None:
    """Half a loss is no loss with another beta."""
    result = convert(TRL | {"loss_type": ["sigmoid"], "loss_weights": [0.5]})
    assert loss_of(result)[1]["weights"] == {"dpo": 0.5}


def test_modifiers(convert) -> None:
    result = convert(
        TRL
        | {
            "use_weighting": True,
            "reference_free": True,
            "f_divergence_type": "alpha_divergence",
            "f_alpha_divergence_coef": 0.7,
        }
    )
    assert loss_of(result)[1] == {
        "beta": 0.3,
        "label_smoothing": 0.0,
        "wpo": True,
        "reference_free": True,
        "divergence": "alpha",
        "divergence_alpha": 0.7,
    }


def test_tr_dpo(convert) -> None:
    result = convert(TRL | {"sync_ref_model": True, "ref_model_sync_steps": 64})
    assert result.tree["reference"] == {"mode": "live", "update_every": 64, "update_mix": 0.6}


@pytest.mark.parametrize(
    ("options", "name", "keys"),
    [
        ({}, "kto", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
        ({"desirable_weight": 2}, "kto", {"beta": 0.1, "desirable_weight": 2, "undesirable_weight": 1.0}),
        ({"loss_type": "apo_zero_unpaired"}, "apo_zero_unpaired", {"beta": 0.1}),
    ],
)
def test_kto(options: dict[str, Any], name: str, keys: dict[str, Any], convert) -> None:
    result = convert({"dataset_name": "d"} | options, trainer="kto")
    assert loss_of(result) == (name, keys)
    assert "prompt, completion and label" in result.section("Not the same")
    assert ("in the order of the file" in result.section("Not the same")) == (name == "kto")


def test_a_weight_that_a_loss_has_not_is_lost(convert) -> None:
    result = convert({"loss_type": "apo_zero_unpaired", "undesirable_weight": 2.0}, trainer="kto")
    assert "undesirable_weight: 2.0" in result.section("Not converted, and the run differs")


@pytest.mark.parametrize(
    ("options", "name", "keys"),
    [
        ({}, "cpo", {"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 1.0}),
        ({"cpo_alpha": 0}, "cpo", {"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 0}),
        (
            {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.25},
            "simpo",
            {"beta": 2.5, "gamma_ratio": 0.5, "label_smoothing": 0.0, "sft_weight": 1.0},
        ),
        (
            {"loss_type": "simpo", "beta": 2.5, "cpo_alpha": 0},
            "simpo",
            {"beta": 2.5, "gamma_ratio": 0.2, "label_smoothing": 0.0},
        ),
        (
            {"loss_type": "alphapo", "beta": 2.5, "alpha": 0.25, "simpo_gamma": 0.25},
            "alphapo",
            {"beta": 2.5, "alpha": 0.25, "gamma_ratio": 0.1, "label_smoothing": 0.0},
        ),
        ({"loss_type": "alphapo", "beta": 2.5}, "simpo", {"beta": 2.5, "gamma_ratio": 0.2, "label_smoothing": 0.0}),
        (
            {"loss_type": "simpo", "alpha": 0.25, "beta": 2.5},
            "alphapo",
            {"beta": 2.5, "alpha": 0.25, "gamma_ratio": 0.2, "label_smoothing": 0.0, "sft_weight": 1.0},
        ),
        ({"loss_type": "hinge", "cpo_alpha": 0}, "hinge", {"beta": 0.1, "reference_free": True}),
        (
            {"loss_type": "ipo"},
            "ipo",
            {"beta": 0.1, "reference_free": True, "normalise": "mean", "sft_weight": 1.0},
        ),
    ],
)
def test_cpo(options: dict[str, Any], name: str, keys: dict[str, Any], convert) -> None:
    """CPOConfig sets ``cpo_alpha`` to 0 for alphapo, and for nothing else."""
    result = convert({"dataset_name": "d"} | options, trainer="cpo")
    assert loss_of(result) == (name, keys)
    assert result.keys["reference.mode"] == "none"
    has_sft = bool(keys.get("sft_weight"))
    assert ("SFT term is averaged otherwise" in result.section("Not the same")) == has_sft
    assert ("which the paper does not have" in result.section("Not the same")) == (has_sft and "gamma_ratio" in keys)


def test_what_cpo_loses(convert) -> None:
    result = convert({"loss_type": "hinge", "alpha": 0.2, "label_smoothing": 0.1}, trainer="cpo")
    lost = result.section("Not converted, and the run differs")
    assert "alpha: 0.2" in lost
    assert "label_smoothing: 0.1" in lost


def test_no_beta_to_divide_by(convert) -> None:
    with pytest.raises(DpoError, match=r"beta=0\.0: expected a number over 0"):
        convert({"loss_type": "simpo", "beta": 0}, trainer="cpo")


def test_simpo_of_its_authors(convert) -> None:
    result = convert({"gamma_beta_ratio": 0.55, "beta": 2.5})
    assert loss_of(result) == ("simpo", {"beta": 2.5, "gamma_ratio": 0.55, "label_smoothing": 0.0})
    result = convert({"gamma_beta_ratio": 0.3, "sft_weight": 0.1, "output_dir": "o"})
    assert loss_of(result)[1] == {"beta": 2.0, "gamma_ratio": 0.3, "label_smoothing": 0.0, "sft_weight": 0.1}
    with pytest.raises(DpoError, match="loss_type=hinge with gamma_beta_ratio"):
        convert({"gamma_beta_ratio": 0.3, "loss_type": "hinge"})


def test_orpo(convert) -> None:
    result = convert({"beta": 0.05, "dataset_name": "d"}, trainer="orpo")
    assert loss_of(result) == ("orpo", {"beta": 0.05, "nll": "full"})
    assert result.keys["reference.mode"] == "none"


@pytest.mark.parametrize(
    ("options", "trainer"),
    [
        ({"beta": 0.1, "seed": 1}, "DPOConfig"),
        ({"loss_type": "kto"}, "KTOConfig"),
        ({"undesirable_weight": 1.0}, "KTOConfig"),
        ({"loss_type": "simpo"}, "CPOConfig"),
        ({"cpo_alpha": 1.0}, "CPOConfig"),
    ],
)
def test_the_trainer_shows_in_the_options(options: dict[str, Any], trainer: str, convert) -> None:
    assert f"read as TRL 1.16's {trainer}" in convert(options).text.replace("\n# ", " ")


AXOLOTL = {"base_model": "m", "datasets": [{"path": "d"}], "micro_batch_size": 1, "learning_rate": 1e-6}


@pytest.mark.parametrize(
    ("options", "name", "keys"),
    [
        ({"rl": "dpo"}, "dpo", {"beta": 0.1, "label_smoothing": 0.0}),
        ({"rl": "dpo", "rl_beta": 0.2, "trl": {"beta": 0.3}}, "dpo", {"beta": 0.3, "label_smoothing": 0.0}),
        ({"rl": "dpo", "dpo_beta": 0.2}, "dpo", {"beta": 0.2, "label_smoothing": 0.0}),
        ({"rl": "dpo", "dpo_loss_type": ["ipo"]}, "ipo", {"beta": 0.1, "normalise": "mean"}),
        ({"rl": "ipo", "rl_beta": 0.2}, "ipo", {"beta": 0.2, "normalise": "mean"}),
        ({"rl": "kto"}, "kto", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
        ({"rl": "orpo", "orpo_alpha": 0.2}, "orpo", {"beta": 0.2, "nll": "full"}),
        (
            {"rl": "simpo", "rl_beta": 2, "simpo_gamma": 1},
            "simpo",
            {"beta": 2, "gamma_ratio": 0.5, "label_smoothing": 0.0, "sft_weight": 1.0},
        ),
    ],
)
def test_axolotl(options: dict[str, Any], name: str, keys: dict[str, Any], convert) -> None:
    assert loss_of(convert(AXOLOTL | options)) == (name, keys)


LLAMAFACTORY = {"model_name_or_path": "m", "dataset": "d", "stage": "dpo", "finetuning_type": "full"}


@pytest.mark.parametrize(
    ("options", "name", "keys"),
    [
        ({}, "dpo", {"beta": 0.1, "label_smoothing": 0.0}),
        ({"dpo_label_smoothing": 0.1}, "dpo", {"beta": 0.1, "label_smoothing": 0.1}),
        ({"pref_loss": "hinge"}, "hinge", {"beta": 0.1}),
        ({"pref_loss": "ipo"}, "ipo", {"beta": 0.1, "normalise": "mean"}),
        ({"pref_loss": "orpo"}, "orpo", {"beta": 0.1, "nll": "answer"}),
        ({"pref_loss": "simpo", "pref_beta": 2.0}, "simpo", {"beta": 2.0, "gamma_ratio": 0.25}),
        ({"pref_ftx": 0.5}, "dpo", {"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 0.5}),
        ({"stage": "kto"}, "kto", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
        (
            {"pref_bco_weight": 0.25, "pref_ftx": 0.5},
            "sum",
            {
                "terms": {"dpo": {"beta": 0.1, "label_smoothing": 0.0}, "bco_pair": {"beta": 0.1}},
                "weights": {"dpo": 0.8, "bco_pair": 0.2, "sft": 0.5},
            },
        ),
    ],
)
def test_llamafactory(options: dict[str, Any], name: str, keys: dict[str, Any], convert) -> None:
    """``(loss + w BCO) / (1 + w)``, and the SFT term beside it."""
    assert loss_of(convert(LLAMAFACTORY | options)) == (name, keys)


def test_no_word_where_nothing_differs(convert) -> None:
    """The SFT term of LLaMA-Factory is averaged as ours."""
    assert "SFT term" not in convert(LLAMAFACTORY | {"pref_ftx": 0.5}).remarks
