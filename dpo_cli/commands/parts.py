"""What the commands set up alike: a model that scores, a reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpo_cli.commands.caches import cache_folder
from dpo_cli.commands.rows import Rows
from dpo_cli.config import ModelConfig, ReferenceConfig
from dpo_cli.data.collate import FlatBatch, flat_length
from dpo_cli.data.types import Group
from dpo_cli.distributed import device, rank
from dpo_cli.engine.frozen import Frozen
from dpo_cli.errors import DpoError
from dpo_cli.model.attention import own_attention
from dpo_cli.model.load import LoadedModel, load_model, load_tokenizer
from dpo_cli.model.policy import Policy
from dpo_cli.model.precision import choose_precision
from dpo_cli.model.probe import choose, compare
from dpo_cli.reference.compute import ReferenceCounts, fill
from dpo_cli.reference.fingerprint import reference_identity
from dpo_cli.reference.store import ReferenceStore
from dpo_cli.tracking.console import Console


@dataclass(frozen=True)
class Scorer:
    """A model that gives log-probs, proven on some of the rows."""

    policy: Policy
    loaded: LoadedModel
    attention: str
    """For people: how its attention runs, and why."""

    @property
    def lengths(self) -> Callable[[Group], int]:
        """Tokens that a group takes in a micro-batch."""
        return partial(flat_length, share=self.policy.groups)

    def room(self, groups: Sequence[Group], mismatched: Sequence[Group]) -> list[int]:
        """Tokens to allow each group in a micro-batch, which its mismatched answer must fit as well."""
        others = mismatched or groups
        return [max(self.lengths(own), self.lengths(other)) for own, other in zip(groups, others, strict=True)]


@dataclass(frozen=True)
class Reference:
    """Where reference log-probs come from."""

    lookup: Callable[[FlatBatch], Tensor] | None
    """``[M]`` of a batch; None where the loss needs none."""
    policy: Callable[[], Policy]
    """The reference model itself, for rows that were not known before; loaded when it is asked for."""
    counts: ReferenceCounts
    identity: dict[str, Any]
    store: Path | None
    live: Frozen | None = None
    """The weights of the second model in memory, if there is one."""

    def check_can_follow(self, policy: Policy) -> None:
        """Whether the reference can move towards the policy.

        Raises:
            DpoError: if it is another architecture.
        """
        assert self.live is not None
        if self.live.shapes() != {name: p.shape for name, p in policy.named_parameters()}:
            raise DpoError(
                "reference.update_every moves the reference towards the policy, and reference.path is a model of other "
                "weights: expected the same architecture"
            )

    def follow(self, weights: Iterable[tuple[str, Tensor]], mix: float) -> None:
        """TR-DPO (Gorbatovski et al. 2024, eq. 8 and 9): ``mix`` x the policy + (1 - mix) x the reference as it was.

        Args:
            weights: the policy's, by parameter name; whole on every rank.
            mix: 1 puts the policy in the reference's place.
        """
        assert self.live is not None
        self.live.move(weights, mix)


@dataclass(frozen=True)
class Setup:
    """What loading a model and making a reference takes."""

    model: ModelConfig
    reference: ReferenceConfig
    rows: Rows
    precision: str
    """``fp32`` or ``bf16``."""
    token_budget: int
    """Per micro-batch."""
    console: Console

    def load_policy(self) -> Scorer:
        """The model that ``model.path`` names."""
        return self.load(self.model.path, self.model.revision)

    def load(self, path: str, revision: str | None) -> Scorer:
        """Load a model onto this rank's device and find out whether groups give its own numbers.

        Raises:
            DpoError: if there is no such model, or it can't do ``model.attention=groups``.
        """
        wanted = self.model.attention
        with self.console.phase(f"load {path}"):
            name = None if path == self.model.path else f"model {path}"
            vocabulary = len(self.rows.tokenizer)
            loaded = load_model(path, revision, vocabulary=vocabulary, attention=wanted, name=name)
            loaded.model.to(device())
        why_not = loaded.why_not
        if loaded.can_group:
            window = getattr(loaded.model.config.get_text_config(), "sliding_window", None)
            agreement = compare(loaded.model, choose(self.rows.all, window), self.precision)
            if agreement.right:
                attention = f"groups (tokens differ from plain sequences by at most {agreement.difference:.0e} nats)"
                return Scorer(Policy(loaded.model, precision=self.precision, groups=True), loaded, attention)
            found = "layers bypass it" if agreement.layers_missed else f"{agreement.difference:.2g} nats off"
            why_not = f"groups don't give {loaded.model.config.model_type}'s own numbers ({found})"
            if wanted == "groups":
                raise DpoError(f"model.attention=groups: {why_not}; use model.attention=auto")
            loaded.model.set_attn_implementation(own_attention(loaded.model))
        attention = f"plain, one sequence per answer: {why_not}"
        return Scorer(Policy(loaded.model, precision=self.precision, groups=False), loaded, attention)

    def make_reference(
        self, *, groups: bool, scorer: Scorer | None, needed: bool, shard: Mapping[str, Any] | None = None
    ) -> Reference:
        """The reference for all rows: from the store, filled first where it lacks some; or a second model; or none.

        All ranks must call it.

        Args:
            groups: the attention path.
            scorer: the model of ``model.path`` as it is before training, if it is there already; it is not kept.
            needed: whether the loss makes use of it; without, nothing is computed.
            shard: the user's DeepSpeed keys, to share a second model out over the ranks; None = each has all of it.
        """
        config, console, rows = self.reference, self.console, self.rows
        path, revision = reference_place(config, self.model)
        if config.path is not None:
            _check_same_vocabulary(config.path, rows.tokenizer)
        cache = cache_folder(config.cache_dir)
        identity = reference_identity(
            path, revision, precision=self.precision, groups=groups, vocabulary=len(rows.tokenizer), cache=cache
        )
        usable = scorer if config.path is None else None

        def policy() -> Policy:
            found = usable if usable is not None else self.load(path, revision)
            if found.policy.groups != groups:
                raise DpoError(f"reference {path}: attention is {found.attention}; use model.attention=plain for both")
            return found.policy

        if not needed:
            return Reference(None, lambda: self.load(path, revision).policy, ReferenceCounts(0, 0), identity, None)
        if config.mode == "live":
            live = policy() if usable is None else _copy(usable.policy, to_cpu=shard is not None)
            frozen = Frozen(live, sharded=shard is not None, extra=shard or {})
            return Reference(_live(live), lambda: live, ReferenceCounts(0, 0), identity, None, frozen)
        store = ReferenceStore(cache / "reference", identity)
        lacking = len(store.missing(rows.all)) if rank() == 0 else 0
        with console.phase("reference", lacking, "rows") if lacking else nullcontext(lambda _: None) as advance:
            counts = fill(store, rows.all, policy, token_budget=self.token_budget, advance=advance)
        return Reference(_stored(store), lambda: self.load(path, revision).policy, counts, identity, store.folder)


def _stored(store: ReferenceStore) -> Callable[[FlatBatch], Tensor]:
    return lambda batch: torch.from_numpy(store.lookup(batch.groups))


def _copy(policy: Policy, *, to_cpu: bool) -> Policy:
    """A second model; with ``to_cpu`` its weights lie there, because the device may have no room for them whole."""
    where = torch.device("cpu") if to_cpu else device()
    known = {id(p): nn.Parameter(p.detach().to(where, copy=True)) for p in policy.parameters()}
    return copy.deepcopy(policy, known)  # all but the weights, which it takes for copied already


def _live(policy: Policy) -> Callable[[FlatBatch], Tensor]:
    def lookup(batch: FlatBatch) -> Tensor:
        with torch.no_grad():
            logps: Tensor = policy(batch)
        return logps[torch.from_numpy(batch.answer_tokens).to(device())]

    return lookup


def resolve_precision(wanted: str, cache_dir: str | None, before: str | None = None) -> str:
    """``fp32`` or ``bf16``; what a run began with, when it goes on."""
    if wanted == "auto" and before is not None:
        return before
    return choose_precision(wanted, device(), cache_folder(cache_dir))


def resolve_token_budget(wanted: int | str) -> int:
    """Tokens per micro-batch."""
    if isinstance(wanted, int):
        return wanted
    return 16384 if device().type == "cuda" else 1024


def reference_place(config: ReferenceConfig, model: ModelConfig) -> tuple[str, str | None]:
    """Path and revision of the reference model: the policy's own before training, unless another is named."""
    return (model.path, model.revision) if config.path is None else (config.path, None)


def _check_same_vocabulary(path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    other = load_tokenizer(path, None, name=f"reference.path={path}").get_vocab()
    if differing := sum(tokenizer.get_vocab().get(token) != number for token, number in other.items()):
        raise DpoError(
            f"reference.path={path}: {differing} of its tokens have another number or are absent in the model's "
            "tokenizer, so its log-probs would be of other text; expected a reference with the same tokenizer"
        )
