"""DeepSpeed behind the few verbs the training loop needs; float32 weights at every ZeRO stage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from dpo_cli import liveness
from dpo_cli.distributed import rank, world_size
from dpo_cli.engine.linear import round_once
from dpo_cli.engine.optimizers import make_optimizer, moment_names, set_updates
from dpo_cli.engine.second_weights import whole_shape
from dpo_cli.engine.settings import deepspeed_config
from dpo_cli.errors import CheckpointError

_NOBODY = -1
"""No module's number."""

# DeepSpeed compiles this operation at every first start on a CPU (a compiler and half a minute) for tensor-parallel
# inference, which is not done here.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

round_once()


class Engine:
    """A module being trained under ZeRO 0 to 3."""

    def __init__(
        self,
        module: nn.Module,
        *,
        optimizer: Mapping[str, Any],
        max_grad_norm: float | None,
        zero_stage: int,
        extra: Mapping[str, Any],
        only_trained: bool = False,
    ) -> None:
        """
        Args:
            module: float32; weights of a checkpoint already loaded, as they can't be set at every stage later.
            optimizer: its name and hyperparameters, as ``make_optimizer`` takes them.
            max_grad_norm: None = no clipping.
            zero_stage: 0 to 3.
            extra: more DeepSpeed keys.
            only_trained: whether frozen parameters are left out of ``weights``.
        """
        self.zero_stage = zero_stage
        self._max_grad_norm = max_grad_norm
        self._module = module
        self._only_trained = only_trained
        self._deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=make_optimizer(parameters=[p for _, p in self._trained()], **optimizer),
            config=deepspeed_config(zero_stage=zero_stage, max_grad_norm=max_grad_norm, extra=extra),
            dist_init_required=False,
        )
        if zero_stage == 0 and world_size() == 1:
            # DeepSpeed would lay a copy of all gradients end to end, to sum it over nobody and copy it back.
            self._deepspeed.enable_backward_allreduce = False

    def __call__(self, *inputs: Any) -> Any:
        """The module's forward pass."""
        return self._deepspeed(*inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ``loss``, this rank's part of the global batch's loss.

        Ranks that share rows have one loss, whose gradient is in parts on each of them: of its own tokens.

        Args:
            loss: scalar. The update follows the *sum* over ranks and calls.
            last: whether this is the update's last call. Every rank makes the same number of calls.
        """
        self._deepspeed.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks, as if every rank's part were equally large.
        self._deepspeed.backward(loss * world_size())

    def step(self, lr: float) -> float:
        """Update the weights and clear the gradients; returns the gradient's norm before clipping.

        A norm that is not finite means that nothing was updated, on any rank. DeepSpeed leaves such a step out by
        itself, says so nowhere, and at stage 3 goes on to report the norm of the step before.
        """
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = lr
        if self.zero_stage > 0:
            self._deepspeed.step()
            left_out = self._deepspeed.optimizer.overflow
            return math.inf if left_out else float(self._deepspeed.get_global_grad_norm())
        trained = [p for p in self._module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if not math.isfinite(norm):
            self._deepspeed.optimizer.zero_grad()
            return float(norm)
        if self._max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(trained, self._max_grad_norm, norm)
        self._deepspeed.step()
        return float(norm)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter by name, whole and in float32, on the CPU. All ranks must iterate.

        Of a module with an adapter, only what is trained: the rest is as it was, and may be many times larger.
        """
        for name, parameter in self._trained() if self._only_trained else self._module.named_parameters():
            if self.zero_stage == 0 or not parameter.requires_grad:  # DeepSpeed knows nothing of frozen ones
                with deepspeed.zero.GatheredParameters([parameter], enabled=self.zero_stage == 3):
                    full = parameter.detach().to("cpu", torch.float32, copy=self.zero_stage == 3)
            else:
                full = safe_get_full_fp32_param(parameter)
            if full is None:
                raise RuntimeError(f"DeepSpeed has no float32 value of {name}")
            liveness.beat()
            yield name, full.detach().to("cpu", torch.float32)

    def bytes_of_weights(self) -> int:
        """What ``weights`` gives, on a disk."""
        given = self._trained() if self._only_trained else self._module.named_parameters()
        return sum(4 * getattr(parameter, "ds_numel", parameter.numel()) for _, parameter in given)

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """What the optimizer remembers as ``<parameter>/<moment>``, whole, on the CPU. All ranks must iterate."""
        self._link_moments()
        for name, parameter in self._trained():
            for moment in self._moments_of(parameter):
                if self.zero_stage == 0:
                    full = self._deepspeed.optimizer.state[parameter][moment]
                else:
                    full = safe_get_full_optimizer_state(parameter, moment)
                if full is None:
                    raise RuntimeError(f"DeepSpeed has no {moment} of {name}")
                liveness.beat()
                yield f"{name}/{moment}", full.detach().to("cpu")

    def set_moments(self, moments: Mapping[str, Tensor], updates: int, idle_loss: Tensor) -> None:
        """Put the optimizer where it was after ``updates`` updates.

        Args:
            moments: as ``moments`` gave them.
            updates: the optimizer's own count, which Adam's bias correction needs.
            idle_loss: a loss of weight zero, from a forward pass of this engine: ZeRO makes its optimizer state in
                the first step, so one is made with zero gradients and learning rate 0, which changes nothing.

        Raises:
            CheckpointError: they are not all of what is trained.
        """
        self.backward(idle_loss, last=True)
        self.step(lr=0.0)
        self._link_moments()
        for name, parameter in self._trained():
            for moment in self._moments_of(parameter):
                value = moments.get(f"{name}/{moment}")
                if value is None or value.shape != self._shape_of(parameter, moment):
                    raise CheckpointError(f"the checkpoint holds no {moment} of the shape of {name}")
                if self.zero_stage == 0:
                    self._deepspeed.optimizer.state[parameter][moment].copy_(value)
                elif self.zero_stage == 3:
                    safe_set_local_optimizer_state(parameter, _own_part(parameter, value), moment)
                else:
                    safe_set_full_optimizer_state(parameter, value, moment)
        for state in self._states().values():
            set_updates(state, updates)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """A context in which every rank holds all weights, for forward passes that ranks need not make alike.

        Only ZeRO 3 has anything to do for it. Its hooks release what no module is using, so somebody is made to use
        everything.
        """
        held = list(self._module.parameters()) if self.zero_stage == 3 else []
        with deepspeed.zero.GatheredParameters(held, enabled=bool(held)):
            for parameter in held:
                parameter.ds_active_sub_modules.add(_NOBODY)  # type: ignore[attr-defined]
            try:
                yield
            finally:
                for parameter in held:
                    parameter.ds_active_sub_modules.discard(_NOBODY)  # type: ignore[attr-defined]

    def destroy(self) -> None:
        """Let go of DeepSpeed's hooks and buffers."""
        self._deepspeed.destroy()

    def _link_moments(self) -> None:
        """Let DeepSpeed's ``safe_*_full_optimizer_state`` see every parameter group.

        At stages 1 and 2 DeepSpeed 0.19 links names to states once, while it steps the first group, when the
        states of the others do not exist yet; without this their moments are "not found".
        """
        if self.zero_stage in (1, 2):
            self._deepspeed.optimizer._hp_optimizer_states_linked = False
            self._deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def _states(self) -> Mapping[nn.Parameter, dict[str, Any]]:
        """The optimizer's state of each parameter, or under ZeRO of each flat part of many."""
        optimizer = self._deepspeed.optimizer
        return (optimizer if self.zero_stage == 0 else optimizer.optimizer).state  # type: ignore[no-any-return]

    def _moments_of(self, parameter: nn.Parameter) -> list[str]:
        states = self._states()
        # Under ZeRO every part has the same: what differs from parameter to parameter, the 8-bit states, is refused.
        return moment_names(states[parameter] if self.zero_stage == 0 else next(iter(states.values())))

    def _shape_of(self, parameter: nn.Parameter, moment: str) -> torch.Size:
        """The whole of a moment."""
        return self._states()[parameter][moment].shape if self.zero_stage == 0 else whole_shape(parameter)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._module.named_parameters() if p.requires_grad)


def _own_part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor under ZeRO 3, whose parts are of one size, the last padded.

    DeepSpeed's own setter forgets the padding and fails where the size is no multiple of the ranks.
    """
    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    padded = torch.nn.functional.pad(value.flatten(), (0, size * world_size() - value.numel()))
    return padded.narrow(0, size * rank(), size)
