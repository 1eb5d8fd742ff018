"""Three checkpoints, one after another, the first deleted when the third is there. Run under strace.

After each it says so on stderr, which the trace shows.
"""

import os
import sys
from pathlib import Path

import torch

from dpo_cli.training.checkpoint import TrainingState, clean_up, write

checkpoints = Path(sys.argv[1]) / "run" / "checkpoints"
for step in (1, 2, 3):
    weights = {"a": torch.full((5,), float(step)), "b": torch.full((3, 3), -float(step))}
    state = TrainingState(step=step, data="f00d", settings={})
    write(checkpoints, state, weights.items(), ((f"{name}/m", 2 * t) for name, t in weights.items()), first=True)
    clean_up(checkpoints, keep_last=2, best_step=None, newest=step)
    os.write(2, f"committed {step}".encode())
