"""Run by test_evaluation.py on two ranks: five rows in batches of two, the last rank's last batch filled up."""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from evaluated_rows import TOKENIZER, padded, some_rows

from alignkit.kl_barrier.evaluation import BarrierEvaluation

rank = PartialState(cpu=True).process_index
rows = some_rows()
record = BarrierEvaluation(n_worst=7)
# Batches go to the ranks in turn: rows 0 1 | 2 3, then 4 and a row from the start | two such rows.
record.add(*padded(rows[2 * rank : 2 * rank + 2]))
record.add(*padded([rows[4], rows[0]] if rank == 0 else rows[1:3]), n_real=1 - rank)
report = record.assemble(TOKENIZER, aggregate="mean", tau_nats=0.5)
mine = {**report.flat("eval"), "worst": [vars(worst) for worst in report.worst_tokens]}
every = gather_object([mine])
if rank == 0:
    Path(sys.argv[1]).write_text(json.dumps(every))
PartialState().destroy_process_group()
