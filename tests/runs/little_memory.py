"""``dpo WORDS`` on a machine that has little memory left, as far as it can tell."""

import json
import sys

if __name__ == "__main__":
    free, *words = json.loads(sys.argv[1])
    from dpo_cli.commands import auto_checkpointing

    auto_checkpointing.free_memory = lambda: free
    from dpo_cli.cli import main

    sys.exit(main(words))
