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

from dpo_cli import faults
from dpo_cli.commands.caches import cache_folder
from dpo_cli.commands.places import new_adapter, policy_files, reference_place
from dpo_cli.commands.rows import Rows
from dpo_cli.config import ModelConfig, ReferenceConfig
from dpo_cli.data.collate import FlatBatch, flat_length
from dpo_cli.data.types import Group
from dpo_cli.distributed import device, rank, sequence_size
from dpo_cli.engine.frozen import Frozen
from dpo_cli.engine.second_adapter import SecondAdapter
from dpo_cli.engine.sharding import Sharder, gather_where_used
from dpo_cli.errors import DpoError
from dpo_cli.model.adapters import AsReference, NewAdapter
from dpo_cli.model.attention import own_attention
from dpo_cli.model.devices import TOKENS
from dpo_cli.model.files import ModelFiles
from dpo_cli.model.load import LoadedModel, attach, load_model, load_tokenizer, not_spread
from dpo_cli.model.policy import Policy
from dpo_cli.model.precision import choose_precision
from dpo_cli.model.probe import choose, compare
from dpo_cli.model.quantize import keep_one_path, quantization_options
from dpo_cli.model.sizes import whole_shape
from dpo_cli.reference.compute import ReferenceCounts, fill
from dpo_cli.reference.fingerprint import reference_identity
from dpo_cli.reference.store import ReferenceStore
from dpo_cli.tracking.console import Console
from dpo_cli.transfer import on_device


@dataclass(frozen=True)
class Scorer:
    """A model that gives log-probs, proven on some of the rows."""

    policy: Policy
    loaded: LoadedModel
    attention: str
    """For people: how its attention runs, and why."""
    release: Callable[[], None] | None = None
    """Where ranks share its weights out: ends that it gathers them by itself, before an engine does."""

    @property
    def shared(self) -> bool:
        """Whether ranks share its weights out, so that all must run it equally often."""
        return self.release is not None

    @property
    def lengths(self) -> Callable[[Group], int]:
        """Tokens that a group takes in a micro-batch."""
        return partial(flat_length, share=self.policy.groups)

    def as_it_was(self) -> Policy:
        """The reference, out of a model with an adapter as yet untrained: where that is new, the model without it."""
        adapter = self.loaded.adapter
        assert adapter is not None
        return AsReference(self.policy, adapter) if adapter.new or adapter.second else self.policy

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
    live: Frozen | SecondAdapter | None = None
    """The weights of the second model or adapter in memory, if there is one."""

    def check_can_follow(self, policy: Policy) -> None:
        """Whether the reference can move towards the policy.

        Raises:
            DpoError: if it is another architecture.
        """
        if isinstance(self.live, SecondAdapter):
            return
        assert self.live is not None
        if self.live.shapes() != {name: whole_shape(p) for name, p in policy.named_parameters()}:
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
class Part:
    """A shard of the reference pass."""

    name: str
    """Such as ``3/16``."""
    rows: Sequence[Group]


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
    seed: int
    """Of a new adapter's weights, and of its dropout."""
    shard: Mapping[str, Any] | None = None
    """DeepSpeed's keys, where ranks share models out as they read them (ZeRO 3); None = each has all of them."""

    def load_policy(self) -> Scorer:
        """The model to be trained, with the adapter that is to be trained, if any."""
        files, new = policy_files(self.model), new_adapter(self.model)
        return self.load(files, new, shard=self._shard_of(files, new))

    def _shard_of(self, files: ModelFiles, new: NewAdapter | None = None) -> Mapping[str, Any] | None:
        """How ranks share a model out; None where each is to have all of it, as under an adapter."""
        plain = new is None and files.adapter is None and files.quantization is None
        return self.shard if plain else None

    def load(
        self, files: ModelFiles, new: NewAdapter | None = None, *, shard: Mapping[str, Any] | None = None
    ) -> Scorer:
        """Load a model onto this rank's device and find out whether groups give its own numbers.

        Args:
            files: the model's.
            new: an adapter to put into it.
            shard: DeepSpeed's keys, to leave each rank its part of the weights; all ranks must then call it.

        Raises:
            DpoError: if there is no such model, or it can't do ``model.attention=groups``.
        """
        wanted = self.model.attention
        faults.reached("load")
        with self.console.phase(f"load {files}"):
            loaded = self._load(files, new, shard)
        release = None if shard is None else gather_where_used(loaded.model)
        noise = None if loaded.adapter is None else loaded.adapter.noise
        why_not = loaded.why_not
        processes = sequence_size()
        spread, share = processes > 1, wanted != "plain"
        if loaded.can_group:
            window = getattr(loaded.model.config.get_text_config(), "sliding_window", None)
            some = choose(self.rows.all, window)
            agreement = compare(loaded.model, some, self.precision, share=share, spread=spread)
            if agreement.right:
                how = "groups" if share else "plain, one sequence per answer,"
                how += f" through {' and '.join(agreement.kernels)}"
                if spread:
                    how += f", each row shared by {processes} processes"
                attention = f"{how} (tokens differ from plain sequences by at most {agreement.difference:.0e} nats)"
                if agreement.fallbacks:
                    reasons = "; ".join(agreement.fallbacks)
                    attention += f"; one call for each answer: {reasons}"
                    self.console.warn(f"{files}: attention is slow on this GPU, one call for each answer: {reasons}")
                policy = Policy(loaded.model, precision=self.precision, groups=share, noise=noise, spread=spread)
                return Scorer(policy, loaded, attention, release)
            found = "layers bypass it" if agreement.layers_missed else f"{agreement.difference:.2g} nats off"
            why_not = f"groups don't give {loaded.model.config.model_type}'s own numbers ({found})"
            if spread:
                raise not_spread(processes, why_not)
            if wanted == "groups":
                raise DpoError(f"model.attention=groups: {why_not}; use model.attention=auto")
            loaded.model.set_attn_implementation(own_attention(loaded.model))
        attention = f"plain, one sequence per answer: {why_not}"
        policy = Policy(loaded.model, precision=self.precision, groups=False, noise=noise)
        return Scorer(policy, loaded, attention, release)

    def _load(self, files: ModelFiles, new: NewAdapter | None, shard: Mapping[str, Any] | None) -> LoadedModel:
        name = f"model.path={files.path}" if files.path == self.model.path else f"model {files.path}"
        vocabulary = len(self.rows.tokenizer)
        quantised = quantization_options(files.quantization, self.precision, device())
        loaded = load_model(
            files.path,
            files.revision,
            vocabulary=vocabulary,
            attention=self.model.attention,
            quantization=quantised,
            name=name,
            place=None if shard is None else Sharder(shard),
            sequence_parallel=sequence_size(),
        )
        if quantised:
            keep_one_path(loaded.model)
        else:  # a quantised one is there already
            loaded.model.to(device())
        if new is not None or files.adapter is not None:
            attach(loaded, files, new, precision=self.precision, seed=self.seed)
        return loaded

    def make_reference(
        self,
        *,
        groups: bool,
        scorer: Scorer | None,
        needed: bool,
        shard: Mapping[str, Any] | None = None,
        part: Part | None = None,
    ) -> Reference:
        """The reference for all rows: from the store, filled first where it lacks some; or a second model; or none.

        All ranks must call it.

        Args:
            groups: the attention path.
            scorer: the model of ``model.path`` as it is before training, if it is there already; it is not kept.
            needed: whether the loss makes use of it; without, nothing is computed.
            shard: the user's DeepSpeed keys, to share a second model out over the ranks; None = each has all of it.
            part: of the rows, if not all are to be computed; only a cached reference knows parts.
        """
        config, console, rows = self.reference, self.console, self.rows
        files = reference_place(config, self.model)
        if config.path is not None:
            _check_same_vocabulary(config.path, config.revision, rows.tokenizer)
        cache = cache_folder(config.cache_dir)
        vocabulary = len(rows.tokenizer)
        identity = reference_identity(
            files, precision=self.precision, groups=groups, vocabulary=vocabulary, cache=cache
        )
        usable = scorer if config.path is None else None

        def load(shard: Mapping[str, Any] | None) -> Policy:
            found = self.load(files, shard=shard)
            if found.policy.groups != groups:
                raise DpoError(f"reference {files}: attention is {found.attention}; use model.attention=plain for both")
            if shard is not None and config.mode == "live":  # an engine of its own follows
                assert found.release is not None
                found.release()
            return found.policy

        def policy() -> Policy:
            if usable is None:
                return load(self._shard_of(files))
            return usable.policy if usable.loaded.adapter is None else usable.as_it_was()

        def again() -> Policy:
            """The reference when the policy is another by now."""
            adapter = None if usable is None else usable.loaded.adapter
            return policy() if adapter is not None and adapter.new else self.load(files).policy

        none = ReferenceCounts(0, 0)
        if not needed:
            return Reference(None, again, none, identity, None)
        if config.mode == "adapter_off":
            return self._adapter_off(policy, usable, identity)
        if config.mode == "live":
            if usable is not None and usable.loaded.adapter is not None:
                raise DpoError(
                    "reference.mode=live holds a second model in memory, which an adapter spares: use "
                    "reference.mode=adapter_off"
                )
            whole = shard is None or files.adapter is not None
            live = _copy(usable.policy) if whole and usable and not usable.shared else load(None if whole else shard)
            frozen = Frozen(live, sharded=shard is not None, extra=shard or {})
            return Reference(as_lookup(live), lambda: live, none, identity, None, frozen)
        store = ReferenceStore(cache / "reference", identity)
        wanted, name = (rows.all, None) if part is None else (part.rows, part.name)
        lacking = len(store.missing(wanted)) if rank() == 0 else 0
        with console.phase("reference", lacking, "rows") if lacking else nullcontext(lambda _: None) as advance:
            counts = fill(
                store,
                wanted,
                policy,
                token_budget=self.token_budget,
                advance=advance,
                shard=name,
                warn=console.warn,
                together=self._shard_of(files) is not None if usable is None else usable.shared,
            )
        return Reference(_stored(store), again, counts, identity, store.folder)

    def _adapter_off(self, policy: Callable[[], Policy], usable: Scorer | None, identity: dict[str, Any]) -> Reference:
        """The model itself as the reference; where there is only the trained one, the reference is loaded."""
        second = None
        if usable is not None:
            adapter = usable.loaded.adapter
            if adapter is None:
                raise DpoError(
                    f"reference.mode=adapter_off: {self.model.path} is trained as a whole; use reference.mode=live, or "
                    "train an adapter with model/adapter=lora"
                )
            if not adapter.new or self.reference.update_every is not None:
                adapter.keep_reference()
                second = SecondAdapter(adapter)
        found = policy()
        return Reference(as_lookup(found), lambda: found, ReferenceCounts(0, 0), identity, None, second)


def _stored(store: ReferenceStore) -> Callable[[FlatBatch], Tensor]:
    return lambda batch: torch.from_numpy(store.lookup(batch.groups))


def _copy(policy: Policy) -> Policy:
    """A second model."""
    known = {id(p): nn.Parameter(p.detach().clone()) for p in policy.parameters()}
    return copy.deepcopy(policy, known)  # all but the weights, which it takes for copied already


def as_lookup(policy: Policy) -> Callable[[FlatBatch], Tensor]:
    """A model in memory as a reference: ``[M]`` of a batch."""

    def lookup(batch: FlatBatch) -> Tensor:
        with torch.no_grad():
            logps: Tensor = policy(batch)
        return logps[on_device(batch.answer_tokens, device())]

    return lookup


def resolve_precision(wanted: str, cache_dir: str | None, before: str | None = None) -> str:
    """``fp32`` or ``bf16``; what a run began with, when it goes on."""
    if wanted == "auto" and before is not None:
        return before
    return choose_precision(wanted, device(), cache_folder(cache_dir))


def resolve_token_budget(wanted: int | str) -> int:
    """Tokens per micro-batch."""
    return wanted if isinstance(wanted, int) else TOKENS[device().type]


def _check_same_vocabulary(path: str, revision: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
    other = load_tokenizer(path, revision, name=f"reference.path={path}").get_vocab()
    if differing := sum(tokenizer.get_vocab().get(token) != number for token, number in other.items()):
        raise DpoError(
            f"reference.path={path}: {differing} of its tokens have another number or are absent in the model's "
            "tokenizer, so its log-probs would be of other text; expected a reference with the same tokenizer"
        )
