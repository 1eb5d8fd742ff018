"""One process of a sequence group. Started by ``test_sequence_parallel.py``."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers import sequence_case as case
from helpers.families import awkward_groups
from helpers.plain_model import gradients
from safetensors.torch import save_file
from torch import Tensor

from dpo_cli import distributed
from dpo_cli.data.collate import Layout, collate
from dpo_cli.engine.engine import Engine
from dpo_cli.errors import StorageError
from dpo_cli.losses import Sums, make_loss
from dpo_cli.model import attention
from dpo_cli.model.attention import Segments, group_attention
from dpo_cli.model.attention_varlen import Found, Kernel, plain
from dpo_cli.model.checkpointing import checkpoint_layers
from dpo_cli.model.sequence_parallel import exchange, own_share, own_slice, padded_length, to_heads, to_tokens
from dpo_cli.objective import Objective
from dpo_cli.reference.compute import fill
from dpo_cli.reference.store import ReferenceStore
from dpo_cli.training.step import train_step


def exchanges(out: Path) -> None:
    """What an exchange gives, and numerical derivatives of one, entry by entry."""
    size, own = distributed.sequence_size(), distributed.sequence_rank()
    sent = torch.arange(size * 3.0).view(size, 3) + 100 * own
    received = exchange(sent)
    for other in range(size):
        assert received[other].tolist() == [100 * other + 3 * own + column for column in range(3)]

    def total(states: Tensor) -> Tensor:
        """A number of all processes' states, of which each computes a part."""
        query, key, value = to_heads(states[:, :4], states[:, 4:6], states[:, 6:, :, :2], 5, states.dtype)
        assert query.shape[1:3] == (4 // size, 5)
        mixed = torch.tanh(query) * key.sum(dim=2, keepdim=True) * (1.0 + own)
        back = to_tokens((mixed[..., :2] * value.exp()).transpose(1, 2))
        weights = torch.linspace(-1.0, 1.0, back.numel(), dtype=back.dtype).view(back.shape)
        return (back * weights).sum() * (2.0 - own)

    def summed(states: Tensor) -> float:
        part = total(states).detach()
        dist.all_reduce(part)
        return float(part)

    random = torch.Generator().manual_seed(own)
    states = torch.randn(1, 8, padded_length(5) // size, 3, dtype=torch.float64, generator=random).requires_grad_()
    total(states).backward()
    assert states.grad is not None
    for process in range(size):
        for entry in range(states.numel()):
            step = torch.zeros(states.numel(), dtype=torch.float64)
            step[entry] = 1e-6 if process == own else 0.0
            step = step.view(states.shape)
            with torch.no_grad():
                slope = (summed(states + step) - summed(states - step)) / 2e-6
            if process == own:
                assert abs(slope - float(states.grad.flatten()[entry])) < 1e-7


def sinks(out: Path) -> None:
    """Attention sinks: each process has its heads', and the gradients of these alone."""
    random = torch.Generator().manual_seed(0)
    layouts = (Layout(0, 4, (3, 2)), Layout(9, 2, (2, 0)))
    whole = [torch.randn(1, heads, 14, 8, dtype=torch.float64, generator=random) for heads in (4, 2, 2)]
    sink = torch.randn(4, dtype=torch.float64, generator=random).requires_grad_()
    module = torch.nn.Identity()
    part = own_slice(13)
    expected, _ = group_attention(
        module, *[state[:, :, :13] for state in whole], None, segments=Segments(layouts, sink.device), s_aux=sink
    )
    segments = Segments(layouts, sink.device, spread=True)
    found, _ = group_attention(module, *[s[:, :, part] for s in whole], None, segments=segments, s_aux=sink)
    there = expected[:, part]
    assert torch.allclose(found[:, : there.shape[1]], there, atol=1e-13)
    assert not found[:, there.shape[1] :].any()
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=random)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), sink)
    (own,) = torch.autograd.grad((found[:, : there.shape[1]] * weights[:, part]).sum(), sink)
    dist.all_reduce(own)
    assert torch.allclose(own, gradient, atol=1e-12)


def families(out: Path) -> None:
    """Log-probs and gradients, summed over the processes, of many families."""
    for name, share, dtype, kernel in case.FAMILIES_TRIED:
        if kernel:
            written_out = Found(Kernel("written out", plain, softcaps=True))
            attention.find_kernel = lambda shape, found=written_out: found
        policy = case.policy_of(name, share, dtype, spread=True)
        tensors: dict[str, Tensor] = {}
        for rows, groups in case.ROWS.items():
            batch = collate(groups(), share=share)
            logps, concentrations = policy(batch, True)
            tokens = torch.from_numpy(batch.answer_tokens)
            found = gradients(policy.model, logps[tokens])
            for gradient in found.values():
                dist.all_reduce(gradient)
            tensors |= {f"{rows}/{key}": value for key, value in found.items()}
            tensors |= {f"{rows}/logps": logps.detach()[tokens], f"{rows}/concentration": concentrations[tokens]}
        if kernel:
            attention.find_kernel = FIND_KERNEL
        save_file(tensors, out / f"{case.key(name, share, dtype, kernel)}-{distributed.rank()}.safetensors")


FIND_KERNEL = attention.find_kernel


def reference(out: Path) -> None:
    """A store of its own for each process: the first keeps all, and the second, which computes the same, nothing."""
    store = ReferenceStore(out / f"process-{distributed.rank()}", {"of": "a test"})
    policy = case.policy_of("llama", True, "float32", spread=True)
    groups = awkward_groups()
    lacking = False
    try:
        fill(store, groups, lambda: policy, token_budget=48)
    except StorageError:
        lacking = True
    assert lacking == (distributed.rank() == 1)
    store.refresh()
    assert store.missing(groups) == (list(range(len(groups))) if lacking else [])


def logits(out: Path) -> None:
    """Positions that logits are made for here."""
    policy = case.policy_of("llama", True, "float32", spread=True)
    made: list[int] = []
    policy.model.lm_head.register_forward_hook(lambda head, args, output: made.append(output.shape[1]))
    found = {}
    for rows, groups in {**case.ROWS, "long": lambda: [case.long_group()]}.items():
        with torch.no_grad():
            policy(collate(groups()))
        found[rows] = made[-1]
    found["long, of the slice"] = len(own_share(collate([case.long_group()]))[0].rows)
    assert len(made) == len(found) - 1
    (out / f"logits-{distributed.rank()}.json").write_text(json.dumps(found))


def memory(out: Path) -> None:
    """Bytes that the forward pass of a long row keeps, whole and spread."""
    kept = {}
    for spread in (False, True):
        policy = case.policy_of("llama", True, "float32", spread=spread)
        weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
        found: dict[int, tuple[Any, int]] = {}

        def pack(tensor: Tensor, known: set[int] = weights, found: dict[int, tuple[Any, int]] = found) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                found[storage.data_ptr()] = storage, storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logps = policy(collate([case.long_group()]))
        kept[spread] = sum(size for _, size in found.values())
        del logps
    (out / f"memory-{distributed.rank()}.json").write_text(json.dumps([kept[False], kept[True]]))


def runs(out: Path, several: list[case.Run]) -> None:
    """Whole runs through the engine."""
    for number, run in enumerate(several):
        engine = Engine(
            case.trained(run, spread=distributed.sequence_size() > 1),
            optimizer={"name": "adamw", **case.ADAMW},
            max_grad_norm=case.CLIP,
            zero_stage=run.stage,
            extra=case.DEEPSPEED,
            only_trained=run.adapter,
        )
        loss = make_loss({"name": run.loss, "beta": case.BETA})
        objective = Objective(case.groups(), loss, case.reference, share=run.share)
        checkpoint_layers(engine._module.model, run.checkpointing)
        state: Any = {}
        curve = []
        for update, lr in enumerate(case.RATES):
            sums = Sums(loss.metric_names)
            step = case.step(update, distributed.data_ranks(), share=run.share)
            noise = engine._module.noise
            with nullcontext() if noise is None else noise.of(update):
                made = train_step(engine, step, objective, lr, sums, state)
            state = made.state
            means = sums.means(distributed.sums)
            curve.append([means["loss"], made.norm, means["logps/chosen"]])
        weights = dict(engine.weights())
        engine.destroy()
        (out / f"run-{number}-{distributed.rank()}.json").write_text(json.dumps(curve))
        if distributed.rank() == 0:
            save_file(weights, out / f"run-{number}.safetensors")


if __name__ == "__main__":
    job, group, folder, *more = json.loads(sys.argv[1])
    distributed.start(group)
    if job == "runs":
        runs(Path(folder), [case.Run(*run) for run in more[0]])
    else:
        {each.__name__: each for each in (exchanges, sinks, families, logits, memory, reference)}[job](Path(folder))
    distributed.stop()
