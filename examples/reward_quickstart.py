"""Train, evaluate, save, reload and probe a reward model of four heads on generated texts, offline.

    accelerate launch examples/reward_quickstart.py

HEADER
The body is `alignkit.reward_model.quickstart`, so that an installed package runs it without this file:
`python -m alignkit.reward_model.quickstart [--steps N] [--output DIR]`.
"""

import sys

from alignkit.reward_model.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
