"""A frozen adapter beside the one that is trained, in the same model: a reference without a second model."""

from __future__ import annotations

from dpo_cli.engine.second_weights import SecondWeights
from dpo_cli.model.adapters import REFERENCE, Adapter


class SecondAdapter(SecondWeights):
    """The weights of the reference's adapter, by the names that the policy's have under an engine."""

    def __init__(self, adapter: Adapter) -> None:
        """``adapter``: of a model in which ``keep_reference`` has put the second one."""
        super().__init__({f"model.{name}": p for name, p in adapter.weights_of(REFERENCE).items()})
