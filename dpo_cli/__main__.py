"""``python -m dpo_cli`` is ``dpo``."""

import sys

from dpo_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
