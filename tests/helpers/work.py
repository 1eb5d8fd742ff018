"""Work that a model does, counted: what a clock says depends on the machine, these numbers do not."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.profiler import ProfilerActivity, profile


@dataclass
class Work:
    """Of some passes through a model."""

    forwards: int = 0
    backwards: int = 0
    tokens: int = 0
    """Positions run through the decoder's layers, padding included; a layer that is run again counts again."""
    rows: int = 0
    """Positions of which logits over the vocabulary were computed."""


class Meter:
    """Counts the work of every Llama in the process, by phase."""

    def __init__(self, layers: int) -> None:
        """
        Args:
            layers: of the models.
        """
        self.found: dict[str, Work] = {}
        self._layers = layers
        self._positions: dict[str, int] = {}
        self._phase = "elsewhere"

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The hook after every module's forward pass."""
        kind = type(module).__name__
        if kind == "LlamaDecoderLayer":
            batch, length, _ = output.shape
            positions = self._positions.get(self._phase, 0) + batch * length
            self._positions[self._phase] = positions
            # Rounded up: a layer too many shows, in whichever phase.
            self._of(self._phase).tokens = -(-positions // self._layers)
        elif kind == "LlamaForCausalLM":
            work = self._of(self._phase)
            work.forwards += 1
            work.rows += output.logits.shape[:-1].numel()
            if output.logits.requires_grad:
                output.logits.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self._of(self._phase).backwards += 1

    def _of(self, phase: str) -> Work:
        return self.found.setdefault(phase, Work())

    def during(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with the work done in it counted as the phase's; of phases within phases as the inner one's."""

        @wraps(function)
        def counted(*args: Any, **more: Any) -> Any:
            before, self._phase = self._phase, phase
            try:
                return function(*args, **more)
            finally:
                self._phase = before

        return counted


@contextmanager
def metered(layers: int) -> Iterator[Meter]:
    """All work inside, counted."""
    meter = Meter(layers)
    handle = register_module_forward_hook(meter)
    try:
        yield meter
    finally:
        handle.remove()


def held_by(function: Callable[[], object]) -> tuple[int, int]:
    """Bytes that the CPU's allocator gave out in a call, kernels' own scratch memory included: at most at one time, and
    left at its end; both beyond what was held before."""
    gc.disable()  # what other tests left behind must not be freed meanwhile, and counted
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = function()
    finally:
        gc.enable()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    del result
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak, held
