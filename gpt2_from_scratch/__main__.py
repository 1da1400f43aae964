"""`python -m gpt2_from_scratch` is the command `gpt2-classifier`."""

import sys

from gpt2_from_scratch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
