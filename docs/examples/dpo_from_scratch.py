"""A whole DPO run in plain PyTorch and transformers, to be read from top to bottom beside docs/dpo.md.

    python docs/examples/dpo_from_scratch.py --out scratch          # the quickstart's model, pairs and settings
    python docs/examples/dpo_from_scratch.py --model MODEL --data pairs.jsonl --beta 0.1 --lr 5e-7 --out scratch

Rows are JSON lines with `prompt`, `chosen` and `rejected`, each a list of messages. `dpo train` makes the same updates
(tests/docs/test_from_scratch.py), with less memory, in less time, and with checks. "Step n" is docs/dpo.md's.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

assets = Path(__file__).resolve().parents[2] / "dpo_cli" / "quickstart" / "assets"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default=assets / "model", help="hub id or folder; also the reference")
parser.add_argument("--data", default=assets / "train.jsonl", type=Path)
parser.add_argument("--out", required=True, help="folder for the trained model")
parser.add_argument("--beta", default=1.0, type=float, help="pull towards the reference; 0.1 is usual")
parser.add_argument("--lr", default=3e-4, type=float, help="peak learning rate; 5e-7 is usual for large models")
parser.add_argument("--epochs", default=1, type=int)
parser.add_argument("--batch-size", default=64, type=int, help="pairs per update")
parser.add_argument("--seed", default=0, type=int, help="of the order of the rows")
args = parser.parse_args()

# The model, in float32. It starts as its own reference. Dropout stays off: the model is in eval mode as loaded.
device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(args.model)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(device)


def encode(prompt: list[dict], answer: list[dict]) -> tuple[torch.Tensor, int]:
    """Token ids of prompt and answer, and how many of them are the prompt's."""
    before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
    assert whole.startswith(before), "this chat template rewrites a prompt once an answer follows"
    # Apart, so that both answers of a pair follow the very same prompt ids. An answer's last token is its end.
    prompt_ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    ids = tokenizer(whole[len(before) :], add_special_tokens=False)["input_ids"]
    return torch.tensor(prompt_ids + ids[: ids.index(tokenizer.eos_token_id) + 1]), len(prompt_ids)


rows = [json.loads(line) for line in args.data.read_text(encoding="utf-8").splitlines()]
pairs = [[encode(row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in rows]


def answer_logps(batch: list[int]) -> torch.Tensor:
    """log pi(answer | prompt) in nats for the pairs of these indices: [pairs, 2], the chosen answer first."""
    sequences = [sequence for index in batch for sequence in pairs[index]]
    # Padded on the right, where a causal model's earlier positions can't see it; so there is no attention mask.
    ids = pad_sequence([ids for ids, _ in sequences], batch_first=True).to(device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # position t predicts token t + 1
    token_logps = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    answer = torch.zeros_like(token_logps)
    for row, (tokens, prompt_length) in enumerate(sequences):
        answer[row, prompt_length - 1 : len(tokens) - 1] = 1.0
    return (token_logps * answer).sum(-1).view(-1, 2)  # summed, not averaged: step 2 is about whole answers


# The reference's log-probs never change, so they are computed once, before the first update.
with torch.no_grad():
    chunks = [list(range(len(pairs)))[start : start + 64] for start in range(0, len(pairs), 64)]
    reference = torch.cat([answer_logps(chunk) for chunk in chunks])

# Every epoch in an order of its own; numpy's generator and this seed give the order of dpo_cli/data/plan.py.
orders = [np.random.default_rng([args.seed, epoch]).permutation(len(pairs)).tolist() for epoch in range(args.epochs)]
batches = [order[at : at + args.batch_size] for order in orders for at in range(0, len(order), args.batch_size)]

optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
warmup = min(math.ceil(0.1 * len(batches)), len(batches) - 1)
for step, batch in enumerate(batches):
    done = (step - warmup) / (len(batches) - warmup)
    scale = step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * done))  # linear up, cosine down
    optimizer.param_groups[0]["lr"] = args.lr * scale

    log_ratios = answer_logps(batch) - reference[batch]  # step 2: an answer's reward is beta times this
    margins = args.beta * (log_ratios[:, 0] - log_ratios[:, 1])  # step 4: log Z(x) has cancelled
    loss = -logsigmoid(margins).mean()  # step 5
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    accuracy = (margins > 0).float().mean()
    numbers = {"loss": loss, "accuracy": accuracy, "margin": margins.mean(), "grad_norm": norm}
    print(json.dumps({"step": step + 1, **{name: value.item() for name, value in numbers.items()}}), flush=True)

model.save_pretrained(args.out)
tokenizer.save_pretrained(args.out)
