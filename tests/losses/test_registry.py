"""What configurations may give a loss, and what the loss says it needs, are the same thing."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from helpers.loss_cases import settings

from dpo_cli.config_losses import SingleLoss, kind_of
from dpo_cli.losses import LOSSES, make_loss
from dpo_cli.losses.loss import Modifiers

MODELS = {get_args(model.model_fields["name"].annotation)[0]: model for model in get_args(get_args(SingleLoss)[0])}


def test_every_loss_has_a_model_and_a_file() -> None:
    assert list(MODELS) == list(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_schema_and_registry_agree(name: str) -> None:
    spec, model = LOSSES[name], MODELS[name]
    config = model.model_validate(settings(name))
    assert kind_of(name) == spec.kind
    assert model.columns == spec.columns
    assert config.needs_reference == make_loss(config.settings()).needs_reference == spec.reference
    # What is no modifier is an argument of the function, and the other way round.
    hyper = set(model.model_fields) - set(Modifiers.__dataclass_fields__) - {"name"}
    arguments = set(spec.function.__annotations__) - {"return", "pairs", "judged", "rankings"}
    assert hyper == arguments


@pytest.mark.parametrize("name", LOSSES)
def test_modifiers_are_off_but_where_a_loss_is_made_with_one(name: str) -> None:
    given: dict[str, Any] = {
        key: value for key, value in settings(name).items() if key in Modifiers.__dataclass_fields__
    }
    on = {key: value for key, value in given.items() if value != getattr(Modifiers(), key)}
    assert on == {"slic": {"sft_weight": 0.1}, "cpo": {"sft_weight": 1.0}}.get(name, {})
