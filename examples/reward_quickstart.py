"""Train, evaluate, save, reload and probe a reward model of four heads on generated texts, offline.

    python examples/reward_quickstart.py  # or accelerate launch

Seen on 2026-11-21 with 2 CPU cores, no GPU, about 20 to 35 seconds (60 steps, one thread):

    head       AUROC   d'      accuracy: all   soft    semi_firm   furthest
    recipe     0.986   5.238   0.986           1.000   0.961       1.000
    ship_log   1.000   8.570   1.000           1.000   0.999       1.000
    ledger     0.998   8.791   0.998           1.000   0.994       1.000
    fable      0.993   6.116   0.993           1.000   0.980       1.000
    ok     a plain reload gives equal scores: largest difference 0.0e+00

The body is `alignkit.reward_model.quickstart`, so that an installed package runs it without this file:
`python -m alignkit.reward_model.quickstart [--steps N] [--output DIR]`.
"""

import sys

from alignkit.reward_model.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
