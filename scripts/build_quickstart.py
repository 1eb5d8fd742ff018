"""Builds what the quickstart trains on: a small base model, its tokenizer, and preference pairs over its own samples.

    python scripts/build_quickstart.py            writes dpo_cli/quickstart/assets
    python scripts/build_quickstart.py --check    builds again elsewhere and compares

The model imitates answers of mixed quality, then answers prompts it has not seen; the pairs are its own answers, so DPO
starts on the distribution it is meant for. The seed decides everything, and the arithmetic is held to one thread and
to code paths that do not depend on the processor's newer instructions, so the check means something elsewhere too.
"""

from __future__ import annotations

import os

# Read when the libraries load: sums are grouped by vector width, so the widest one at hand must not decide the result.
os.environ |= {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from dpo_cli.quickstart import task  # noqa: E402

ASSETS = REPOSITORY / "dpo_cli" / "quickstart" / "assets"
SEED = 20240607

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- ('' if loop.first else '\\n') + '<|im_start|>' + message['role'] + '\\n' + message['content'] -}}"
    "{{- '<|im_end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '\\n<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""A finished turn ends in the end-of-sequence token; what separates turns belongs to the turn that follows."""

STEPS, BATCH, PEAK_LR, WARMUP = 1500, 64, 3e-3, 50
TRAIN_PAIRS, EVAL_PAIRS = 8192, 256
EVAL_GAP = 0.25
"""Held-out pairs differ by at least this much in reward, so that which one is better is no matter of taste."""
WEIGHT_TOLERANCE = 1e-3
MOST_NEW_TOKENS = 16

Row = dict[str, Any]


def message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so that any text can be encoded, with every word of the task as a single token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    corpus = [f"{instruction} {' '.join(task.WORDS)}" for instruction in (task.FORWARDS, task.BACKWARDS)]
    corpus += [*task.WORDS, "user", "assistant", "system"]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    for word in task.WORDS:
        for text in (word, " " + word):
            assert len(tokenizer.encode(text)) == 1, text
    return tokenizer


def encode_chat(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    text = tokenizer.apply_chat_template(message("user", prompt), tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def demonstrations(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of token ids and of labels, which ask for the answer only."""
    while True:
        ids, labels = [], []
        for _ in range(BATCH):
            prompt = task.make_prompt(rng)
            head = encode_chat(tokenizer, prompt)
            tail = tokenizer.encode(task.demonstration(prompt, rng) + END, add_special_tokens=False)
            ids.append(torch.tensor(head + tail))
            labels.append(torch.tensor([-100] * len(head) + tail))
        pad = torch.nn.utils.rnn.pad_sequence
        yield pad(ids, True, tokenizer.pad_token_id), pad(labels, True, -100)


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of under a million weights, taught by imitation alone."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))
    )
    started = time.monotonic()
    for step, (ids, labels) in zip(range(STEPS), demonstrations(tokenizer, random.Random(SEED)), strict=False):
        logits = model(input_ids=ids, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"imitation step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", flush=True)
    return model.eval()


@torch.inference_mode()
def sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    """One answer to each prompt, drawn from the model's own distribution."""
    answers: list[str] = []
    for first in range(0, len(prompts), 256):
        heads = [encode_chat(tokenizer, prompt) for prompt in prompts[first : first + 256]]
        batch = tokenizer.pad({"input_ids": heads}, padding_side="left", return_tensors="pt")
        ids = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=MOST_NEW_TOKENS)
        answers += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def build_data(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, list[Row]]:
    """Pairs of the model's own answers; no prompt serves more than one of the files."""
    torch.manual_seed(SEED + 1)
    rng = random.Random(SEED + 1)
    wanted = TRAIN_PAIRS + 4 * EVAL_PAIRS
    prompts = list(dict.fromkeys(task.make_prompt(rng) for _ in range(2 * wanted)))
    first, second = sample(model, tokenizer, prompts), sample(model, tokenizer, prompts)

    evaluation: list[Row] = []
    train: list[Row] = []
    for prompt, *answers in zip(prompts, first, second, strict=True):
        (low, worse), (high, better) = sorted((task.true_reward(prompt, answer), answer) for answer in answers)
        if high - low >= EVAL_GAP and len(evaluation) < EVAL_PAIRS:
            evaluation.append(pair(prompt, better, worse))
        elif better != worse and len(train) < TRAIN_PAIRS and len(evaluation) == EVAL_PAIRS:
            agrees = rng.random() < task.preference_probability(high, low)
            train.append(pair(prompt, *((better, worse) if agrees else (worse, better))))
    assert len(train) == TRAIN_PAIRS
    assert len(evaluation) == EVAL_PAIRS
    return {"train.jsonl": train, "eval.jsonl": evaluation}


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    return {
        "prompt": message("user", prompt),
        "chosen": message("assistant", chosen),
        "rejected": message("assistant", rejected),
        "reward_chosen": task.true_reward(prompt, chosen),
        "reward_rejected": task.true_reward(prompt, rejected),
    }


def write_model(folder: Path) -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=0,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(folder: Path, model_folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(model_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    for name, rows in build_data(model, tokenizer).items():
        lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in rows]
        (folder / name).write_text("".join(lines), encoding="utf-8", newline="\n")


def files_in(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def write_manifest(folder: Path) -> None:
    manifest = {
        "seed": SEED,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files_in(folder).items()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8", newline="\n")


def check(fresh: Path) -> list[str]:
    """How a fresh build differs from the shipped one, one line each.

    Weights may differ by rounding, and a rounding error may tip a sample over, so the data is drawn from the shipped
    weights: it then has to match byte for byte whether or not the weights do.
    """
    write_model(fresh / "model")
    write_data(fresh, ASSETS / "model")
    shipped, built = files_in(ASSETS), files_in(fresh)
    problems = [f"{name}: only in one of the two builds" for name in sorted(shipped.keys() ^ built.keys())]
    for name in sorted(shipped.keys() & built.keys()):
        same = shipped[name].read_bytes() == built[name].read_bytes()
        if not same and name.endswith(".safetensors"):
            old, new = load_file(shipped[name]), load_file(built[name])
            far = max(float((old[key] - new[key]).abs().max()) for key in old) if old.keys() == new.keys() else 9.9
            print(f"{name}: weights differ by at most {far:.2e} (allowed: {WEIGHT_TOLERANCE:.0e})")
            same = far <= WEIGHT_TOLERANCE
        elif same:
            print(f"{name}: identical")
        if not same:
            problems.append(f"{name}: differs")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the quickstart's model and data.")
    parser.add_argument("--check", action="store_true", help="build again in a temporary folder and compare")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    if not arguments.check:
        write_model(ASSETS / "model")
        write_data(ASSETS, ASSETS / "model")
        write_manifest(ASSETS)
        return 0
    with tempfile.TemporaryDirectory() as fresh:
        problems = check(Path(fresh))
    for problem in problems:
        print(f"quickstart assets are out of date: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
