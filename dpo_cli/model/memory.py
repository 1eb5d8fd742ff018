"""How much memory a run takes, by part, before any of it is there.

Plain values in, bytes out. What DeepSpeed adds is read off its source (0.19) and measured on a CPU
(tests/runs/test_run_memory.py); docs/plan.md says what is counted and how far it is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from dpo_cli.model.activations import Activations
from dpo_cli.model.logprobs import _ROWS

_BUCKET = 500_000_000
"""Entries of the buffer in which DeepSpeed gathers gradients before it sums them up."""
_LIVE = 1_000_000_000
"""Entries of weights that ZeRO 3 lets lie about whole."""
_SUB_GROUP = 1_000_000_000
"""Entries that ZeRO 3 updates at a time."""
_FILE = 5e9
"""Bytes of weights that are written to one file, at most, and lie in memory for it."""
_PAGED = ("paged_adamw_8bit", "paged_adamw_32bit")
_MOMENTS: Mapping[str, float] = {
    "adamw": 8.0,
    "rmsprop": 4.0,
    "adamw_8bit": 2.0 + 2 * 4 / 256,
    "paged_adamw_8bit": 2.0 + 2 * 4 / 256,
    "paged_adamw_32bit": 8.0,
}
"""Bytes that an optimizer remembers of each weight; in 8 bits with a scale for 256 numbers."""
_QUANTISED: Mapping[str, float] = {"nf4": 0.5 + 4 / 64, "nf4_double": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
"""Bytes of a matrix's entry, scales included."""
FRAGMENTS = 0.25
"""Of what micro-batches keep, so much again is held on a CPU in pieces that the C library keeps for the next ones."""
LIBRARIES = 40 * 2**20
"""Bytes that libraries take on a CPU when they are first used."""

Checkpointing = Literal["none", "selective", "full"]
KINDS: tuple[Checkpointing, ...] = ("none", "selective", "full")
"""From the least work done again to the least memory."""
Offload = Literal["none", "optimizer", "all"]
Sampling = Literal["none", "policy", "policy_and_reference"]
ReferenceKind = Literal["none", "whole", "sharded", "adapter_off", "second_adapter"]


@dataclass(frozen=True)
class Shape:
    """A model's weights."""

    weights: int
    """Entries of all."""
    trained: int
    frozen_bytes: float
    """Of the others, as they are held."""
    largest: float
    """Entries of gradients on their way to where they are added up: of the largest weight, or of embeddings that are
    the head as well, whose two gradients meet first."""
    vocabulary: int
    vocabularys: int
    """Entries of embeddings and head, which are whole on each rank while a model is read, whatever the rest is."""

    @classmethod
    def of(cls, model: PreTrainedModel, quantization: str | None = None) -> Shape:
        """Read off a model, which may be on the meta device.

        Args:
            model: with its adapter, if one is trained; its matrices as they are without quantisation.
            quantization: ``nf4``, ``nf4_double`` or ``int8``; None = none.
        """
        head = model.get_output_embeddings().weight
        packed = {
            id(module.weight)
            for name, module in model.named_modules()
            if quantization and isinstance(module, nn.Linear) and ".lora_" not in name and module.weight is not head
        }
        every = {id(parameter): parameter for parameter in model.parameters()}
        trained = [parameter.numel() for parameter in every.values() if parameter.requires_grad]
        frozen = sum(
            parameter.numel() * (_QUANTISED[quantization or ""] if key in packed else parameter.itemsize)
            for key, parameter in every.items()
            if not parameter.requires_grad
        )
        count = sum(parameter.numel() for parameter in every.values())
        tied = head.requires_grad and model.get_input_embeddings().weight is head
        ends = {id(weight): weight.numel() for weight in (model.get_input_embeddings().weight, head)}
        largest = 3 * head.numel() if tied else max(trained)
        return cls(count, sum(trained), frozen, largest, head.shape[0], sum(ends.values()))


@dataclass(frozen=True)
class Work:
    """The largest micro-batch of an update."""

    activations: Activations
    rows: int
    """Positions that logits are made for."""
    micro_batches: int
    """In an update, on each rank."""
    capped: bool = False
    """Whether logits are capped softly, which on the way back takes as much twice more."""


@dataclass(frozen=True)
class Layout:
    """How a run is laid out over devices."""

    precision: str
    """``fp32`` or ``bf16``."""
    zero_stage: int = 0
    world_size: int = 1
    optimizer: str = "adamw"
    offload: Offload = "none"
    """What ZeRO 2 or 3 keeps in the host's memory: optimizer state with its copy of the weights; or weights as well."""
    checkpointing: Checkpointing = "none"
    reference: ReferenceKind = "none"
    sampling: Sampling = "none"
    """Which models are held whole while answers are sampled: the policy, then, to measure the KL, the reference."""
    gpu: bool = True
    """Otherwise a CPU, where buffers count as far as they are written to."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at one moment of a run; ``host``: of the machine's memory, per process."""

    weights: float = 0.0
    """Also ZeRO's second copy of its own part, and what it has gathered of others'; in bf16 autocast's copies."""
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    """And their gradient."""
    reference: float = 0.0
    """A second model or adapter, and its logits."""
    buffers: float = 0.0
    """DeepSpeed's; on a CPU also what the C library's allocator keeps."""
    host: float = 0.0

    @property
    def total(self) -> float:
        """Of the device."""
        return float(sum(getattr(self, name) for name in PARTS))


PARTS = tuple(field.name for field in fields(Memory) if field.name != "host")


@dataclass(frozen=True)
class Estimate:
    """What a run takes, moment by moment."""

    start: Memory
    """Weights are loaded, whole on every device but under ZeRO 3; and the reference pass."""
    backward: Memory
    """Between the forward and the backward pass of the largest micro-batch."""
    step: Memory
    """While the weights are updated."""
    save: Memory
    """While ``final/`` or a checkpoint is written by the first rank: of the host's memory, which is a CPU's own."""
    sample: Memory
    """While answers are sampled, their cache aside."""

    @cached_property
    def worst(self) -> str:
        """The moment that takes most."""
        return max(MOMENTS, key=lambda name: getattr(self, name).total)

    @property
    def peak(self) -> Memory:
        """At that moment."""
        found: Memory = getattr(self, self.worst)
        return found


MOMENTS = tuple(field.name for field in fields(Estimate))


def estimate(shape: Shape, work: Work, layout: Layout, *, saves_moments: bool = False) -> Estimate:
    """What a run takes on its fullest device.

    Args:
        shape: of the model.
        work: of its largest micro-batch.
        layout: over devices.
        saves_moments: whether checkpoints are written, and not ``final/`` alone.
    """
    state = _State(shape, layout)
    backward = _backward(shape, work, layout, state)
    step = _step(shape, layout, state, backward)
    return Estimate(
        start=_start(shape, work, layout),
        backward=backward,
        step=step,
        save=_save(shape, layout, state, step, saves_moments),
        sample=_sample(shape, layout, state),
    )


def least_checkpointing(estimates: Callable[[Checkpointing], Estimate], room: float) -> Checkpointing:
    """What ``train.activation_checkpointing=auto`` comes to: what computes least again of what fits.

    Args:
        estimates: of the run with each kind.
        room: bytes that it may take of a device. What it takes at its start anyway is not held against any kind.
    """
    for kind in KINDS:
        found = estimates(kind)
        if found.peak.total <= max(room, found.start.total):
            return kind
    return KINDS[-1]


def moment_bytes(optimizer: str) -> float:
    """What an optimizer remembers of each weight."""
    return _MOMENTS[optimizer]


class _State:
    """What lies on a device from the first update on."""

    def __init__(self, shape: Shape, layout: Layout) -> None:
        stage, world = layout.zero_stage, layout.world_size
        trained = 4.0 * shape.trained
        self.part = trained / world if stage else trained
        """Bytes of float32 numbers, one for each weight that this rank updates."""
        offloaded = layout.offload != "none"
        moments = _MOMENTS[layout.optimizer] / 4 * self.part
        paged = layout.optimizer in _PAGED and layout.gpu
        self.moments = 0.0 if offloaded or paged else moments
        whole = trained + shape.frozen_bytes
        second = self.part if stage in (1, 2) else 0.0
        """ZeRO 1 and 2 update a copy of their own part."""
        if stage == 3:
            self.weights = 0.0 if layout.offload == "all" else whole / world
        else:
            self.weights = whole + (0.0 if offloaded else second)
        self.host = moments if offloaded or paged else 0.0
        if offloaded:  # the copy that is updated, its gradient, and the gradients that are summed up
            self.host += 3 * self.part + (whole / world if layout.offload == "all" else 0.0)
        self.reference = {
            "none": 0.0,
            "adapter_off": 0.0,
            "whole": 4.0 * shape.weights,
            "sharded": 4.0 * shape.weights / world,
            "second_adapter": trained,
        }[layout.reference]


def _start(shape: Shape, work: Work, layout: Layout) -> Memory:
    """Weights as they are loaded, and the reference's pass, which keeps nothing but what one layer is at."""
    packed = shape.frozen_bytes < 4.0 * (shape.weights - shape.trained) / 3
    kept, ends = work.activations, 4.0 * shape.vocabularys
    if layout.zero_stage == 3 and shape.trained == shape.weights:  # shared out as they are read
        part = 0.0 if layout.offload == "all" else 4.0 * shape.weights / layout.world_size
        loaded, host = part + ends, ends + (4.0 * shape.weights / layout.world_size - part)
    else:
        loaded = shape.frozen_bytes + 4.0 * shape.trained if packed else 4.0 * shape.weights
        host = 0.0 if packed else 4.0 * shape.weights
    return Memory(
        weights=loaded + kept.layer_copies,
        activations=kept.layer,
        logits=_logits(shape, work, layout),
        host=host,
    )


def _backward(shape: Shape, work: Work, layout: Layout, state: _State) -> Memory:
    kept = work.activations
    full, stage, trained = kept.layers + kept.head, layout.zero_stage, 4.0 * shape.trained
    if layout.checkpointing == "none":
        activations, copies = full, kept.copies
    else:  # while a layer's backward pass runs, all of that layer is there again
        inputs = kept.inputs + (kept.selected if layout.checkpointing == "selective" else 0.0)
        activations, copies = min(full, inputs + kept.layer + kept.head), kept.layer_copies
    gradients = trained if stage < 2 else state.part
    if stage == 2 and work.micro_batches > 1:  # of earlier micro-batches, beside those of this one
        gradients *= 2
    if layout.offload != "none":
        gradients = 0.0
    logits = _logits(shape, work, layout)
    reference = state.reference
    if layout.reference != "none":
        reference += work.rows * shape.vocabulary * _size(layout)
    if layout.reference == "sharded":
        reference += _live(shape)
    fragments = 0.0 if layout.gpu or work.micro_batches == 1 else FRAGMENTS * (activations + logits)
    return Memory(
        weights=state.weights + copies + (_live(shape) if stage == 3 else 0.0),
        gradients=gradients,
        optimizer=state.moments,
        activations=activations,
        logits=logits,
        reference=reference,
        buffers=_buffers(shape, layout, state, work.micro_batches) + 4.0 * shape.largest + fragments,
        host=state.host,
    )


def _step(shape: Shape, layout: Layout, state: _State, backward: Memory) -> Memory:
    """Under ZeRO gradients are laid end to end once more, and weights gathered."""
    stage = layout.zero_stage
    own = 0.0 if layout.offload != "none" or not stage else state.part
    again = min(own, 4.0 * _SUB_GROUP) if stage == 3 else own
    if not layout.gpu:  # what the backward pass had is free by now, but in pieces that are of no use for this
        gathered = 4.0 * shape.trained if stage in (1, 2) else 0.0
        return replace(backward, gradients=backward.gradients + again, buffers=backward.buffers + gathered)
    return Memory(
        weights=state.weights,
        gradients=(4.0 * shape.trained if stage < 2 else own) + again,
        optimizer=state.moments,
        reference=state.reference,
        buffers=_buffers(shape, layout, state) if stage in (0, 3) else 0.0,
        host=state.host,
    )


def _save(shape: Shape, layout: Layout, state: _State, step: Memory, moments: bool) -> Memory:
    """The first rank gathers what it writes in the host's memory, a file at a time: of the weights, and for a
    checkpoint of the moments after them."""
    trained = 4.0 * shape.trained
    written = min(_FILE, max(trained, _MOMENTS[layout.optimizer] / 4 * trained if moments else 0.0))
    copies = written * (2 if layout.zero_stage or layout.gpu else 1)
    if layout.gpu:
        return Memory(weights=state.weights, optimizer=state.moments, reference=state.reference, host=copies)
    # Three buffers of the weights' size are free by then under ZeRO 1 and 2, and one of them under ZeRO 3.
    free = {0: 0.0, 1: 3 * trained, 2: 3 * trained, 3: trained}[layout.zero_stage]
    return replace(step, buffers=step.buffers + max(0.0, copies - free))


def _sample(shape: Shape, layout: Layout, state: _State) -> Memory:
    """ZeRO 3 gathers the policy on every rank; then a reference of which there are but log-probs is loaded there."""
    if layout.sampling == "none":
        return Memory()
    policy = 4.0 * shape.trained + shape.frozen_bytes if layout.zero_stage == 3 else 0.0
    reference = 4.0 * shape.weights if layout.sampling == "policy_and_reference" else 0.0
    return Memory(
        weights=state.weights + (policy if policy >= reference else 0.0),
        optimizer=state.moments,
        reference=state.reference + (reference if policy < reference else 0.0),
        host=state.host,
    )


def _live(shape: Shape) -> float:
    """Weights that ZeRO 3 has gathered at a time."""
    return 4.0 * min(shape.weights, _LIVE)


def _buffers(shape: Shape, layout: Layout, state: _State, micro_batches: int = 1) -> float:
    """DeepSpeed's, and where weights and gradients are sent from on a CPU."""
    stage = layout.zero_stage
    bucket = 4.0 * min(shape.trained, _BUCKET)
    if layout.gpu:  # in full, however small the model; at stage 0 gradients end to end, to be summed up
        return 4.0 * _BUCKET if stage else bucket if layout.world_size > 1 else 0.0
    if stage == 0:
        return LIBRARIES + (bucket if layout.world_size > 1 else 0.0)
    if stage < 3:  # with a second copy of the bucket, which is summed up, and the place of the last micro-batch's
        return LIBRARIES + (2 if micro_batches == 1 else 3) * bucket
    # With what gathering gives, and with what was there at the start and whose place is free, but in pieces: all
    # weights, and gradients of zero with which ZeRO 3 begins.
    return LIBRARIES + bucket + _live(shape) + 4.0 * shape.weights + state.part


def _logits(shape: Shape, work: Work, layout: Layout) -> float:
    """Logits, over which their gradient is written, and two of the pieces in which it is made."""
    pieces = 2 * 4.0 * min(work.rows, _ROWS) * shape.vocabulary
    return (3 if work.capped else 1) * work.rows * shape.vocabulary * _size(layout) + pieces


def _size(layout: Layout) -> float:
    return 4.0 if layout.precision == "fp32" else 2.0
