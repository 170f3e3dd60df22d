"""What the trainers promise when something breaks: whole checkpoints, exact resume, a stop at the first NaN."""

from alignkit.reliability.checkpoints import check_checkpoint, newest_complete_checkpoint
from alignkit.reliability.manifest import DamagedCheckpointError
from alignkit.reliability.not_finite import NonFiniteError
from alignkit.reliability.process_count import check_process_count

__all__ = [
    "DamagedCheckpointError",
    "NonFiniteError",
    "check_checkpoint",
    "check_process_count",
    "newest_complete_checkpoint",
]
