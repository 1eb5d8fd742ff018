"""A causal language model as a function from a FlatBatch to the log-probs of its answers' tokens."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpo_cli.data.collate import FlatBatch
from dpo_cli.model.attention import Segments
from dpo_cli.model.dropout import Noise
from dpo_cli.model.logprobs import token_concentration, token_logps
from dpo_cli.model.sequence_parallel import evened_out, own_share, together
from dpo_cli.transfer import on_device


class Policy(nn.Module):
    """What is trained, and what scores: the model, in which precision, in groups or one sequence per answer."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        precision: str,
        groups: bool,
        noise: Noise | None = None,
        spread: bool = False,
    ) -> None:
        """
        Args:
            model: float32 weights; frozen ones may be of other formats.
            precision: ``fp32``, or ``bf16``: matrix products in bfloat16 by autocast, entered here because
                DeepSpeed switches off one that is entered outside.
            groups: run shared tokens once, through ``group_attention``. Otherwise batches must be collated with
                ``share=False``, and run as padded rows through the model's own attention.
            noise: of the model's dropout; None = it has none.
            spread: whether the processes of a sequence group share each row, also one without groups, through
                ``group_attention``. All of them must call it with the same batches.
        """
        super().__init__()
        self.model = model
        self.precision = precision
        self.groups = groups
        self.noise = noise
        self.spread = spread

    def forward(self, batch: FlatBatch, concentration: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Log-probs of the batch's predicted tokens: ``[N]`` nats, float32 or wider.

        With ``concentration`` also the log of the sum of squared probabilities where each was predicted, ``[N]``
        without gradient.
        """
        device = next(self.model.parameters()).device
        if self.noise is not None:
            self.noise.look_at(batch, share=self.groups, spread=self.spread)
        own, places = own_share(batch) if self.spread else (batch, None)
        # Without autocast's cache: it would hold bfloat16 copies of all weights until the end of the pass, and a weight
        # is used but once in it.
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False):
            if self.groups or self.spread:
                with evened_out(self.model.get_output_embeddings(), batch) if self.spread else nullcontext():
                    logits = run_row(self.model, own, own.rows, Segments(batch.layouts, device, spread=self.spread))
            else:
                logits = self._padded(batch, device)
        rows, targets = torch.from_numpy(own.token_rows), torch.from_numpy(own.targets)
        found = [token_concentration(logits, rows)] if concentration else []
        found.append(token_logps(logits, rows, targets))
        if places is not None:
            found = [together(each, places, len(batch.targets)) for each in found]
        return (found[1], found[0]) if concentration else found[0]

    def _padded(self, batch: FlatBatch, device: torch.device) -> Tensor:
        """One row per answer, padded on the right.

        Without a mask: nothing in a causal model sees what comes after it, and a mask would turn padding rows that
        see nothing inside a sliding window into NaN.
        """
        if any(len(layout.branches) > 1 for layout in batch.layouts):
            raise ValueError("a model that can't do groups was given a batch with shared prompts")
        lengths = [layout.end - layout.start for layout in batch.layouts]
        starts = [layout.start for layout in batch.layouts]
        ids = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            ids[row, :length] = batch.input_ids[start : start + length]
        sequence = np.searchsorted(starts, batch.rows, side="right") - 1
        columns = batch.position_ids[batch.rows]
        kept, kept_index = np.unique(columns, return_inverse=True)
        logits: Tensor = self.model(
            input_ids=on_device(ids, device),
            logits_to_keep=on_device(kept, device),
            use_cache=False,
        ).logits
        # Flat [sequence, kept position] rows; indexing copies, so that what token_logps overwrites is its own.
        return logits[on_device(sequence, device), on_device(kept_index, device)]


def run_row(model: PreTrainedModel, batch: FlatBatch, rows: np.ndarray, segments: Segments) -> Tensor:
    """The logits ``[R, V]`` of some positions of a row, or of a process's slice of one, through ``group_attention``."""
    device = segments.device
    logits: Tensor = model(
        input_ids=on_device(batch.input_ids, device)[None],
        position_ids=on_device(batch.position_ids, device)[None],
        segments=segments,
        logits_to_keep=on_device(rows, device),
        use_cache=False,
    ).logits
    return logits.squeeze(0)  # not logits[0], whose gradient is a second tensor of the logits' size
