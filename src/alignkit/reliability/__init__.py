"""What the trainers promise when something breaks: whole checkpoints, exact resume, a stop at the first NaN."""

from alignkit.reliability.checkpoints import check_checkpoint, newest_complete_checkpoint
from alignkit.reliability.manifest import DamagedCheckpointError
from alignkit.reliability.not_finite import NonFiniteError

__all__ = ["DamagedCheckpointError", "NonFiniteError", "check_checkpoint", "newest_complete_checkpoint"]
