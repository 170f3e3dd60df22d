"""`ReliableTraining`: the part of the four trainers that keeps their promises under faults.

How this differs from `transformers.Trainer`:

1. A checkpoint gets its name when it is complete, and older ones go only then.
2. A training resumes exactly or not at all.
3. NaN and infinity stop a run before they reach the weights, and are never saved. It waits for the device once in an
   optimiser step for that, where the filter of the log waits twice in a micro-batch.
4. SIGTERM ends a run with a checkpoint.
"""

import logging
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn
from transformers import TrainerCallback

from alignkit._compat import shown_to_parent
from alignkit.reliability.checkpoints import (
    SAVING,
    TRAINER_STATE,
    check_checkpoint,
    check_writable,
    newest_complete_checkpoint,
    publish,
    remove_older,
)
from alignkit.reliability.manifest import MANIFEST
from alignkit.reliability.not_finite import NonFiniteError, are_finite, describe, first_not_finite
from alignkit.reliability.pickles import only_tensors_unpickled
from alignkit.reliability.termination import EXIT_CODE, Termination
from alignkit.storage import PICKLED_WEIGHTS, read_json, refused_pickles_named, write_json

logger = logging.getLogger(__name__)

COUNTS_FILE = "counts.json"


class _EndWithCheckpoint(TrainerCallback):
    """Ends a training after the step in which that was agreed on."""

    def __init__(self, is_agreed: Callable[[], bool]):
        self._is_agreed = is_agreed

    def on_step_end(self, args, state, control, **kwargs):
        if self._is_agreed():
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False  # there may be little time left

    def on_epoch_end(self, args, state, control, **kwargs):
        if self._is_agreed():  # and the step has saved already
            control.should_save = control.should_evaluate = False


class ReliableTraining:
    """A `Trainer` whose checkpoints are whole and whose runs stop at the first NaN. Stands before it in the bases."""

    _termination: Termination
    _is_ending = False  # on every rank alike
    _is_saving = False

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        source = model if isinstance(model, str) else None
        with refused_pickles_named(source, *PICKLED_WEIGHTS):
            super().__init__(model, *args, **kwargs)  # type: ignore[call-arg]  # of the Trainer

    # ---- Training ----

    def train(self: Any, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in the parent.

        Args:
            resume_from_checkpoint: a checkpoint, or True for the newest complete one in `args.output_dir`.

        Raises:
            DamagedCheckpointError: the checkpoint is not what was saved; names the file.
            NonFiniteError: a loss, a gradient or a weight is NaN or infinite.
            OSError: `args.output_dir` cannot be written to, before the first step; or a checkpoint cannot, after which
                the ones before it are as they were.
            SystemExit: code 143 after a SIGTERM, when the checkpoint is saved.
        """
        checkpoint = self._checked(resume_from_checkpoint)
        if self.args.should_save and self.args.save_strategy != "no":
            check_writable(Path(self.args.output_dir))
        self.before_training(checkpoint)
        self._is_ending, self._termination = False, Termination()
        end = _EndWithCheckpoint(lambda: self._is_ending)
        self.add_callback(end)
        heeds = self.args.enable_jit_checkpoint and self.args.save_strategy != "no"
        try:
            with self._termination.heeded() if heeds else nullcontext():
                output = super().train(checkpoint, *args, **kwargs)  # type: ignore[misc]  # of the Trainer
        finally:
            self.remove_callback(end)
        self._refuse_bad_weights("at the end of the training")
        if self._is_cut_short():
            if self.args.should_save:
                step = self.state.global_step
                print(f"SIGTERM: ended after step {step}, checkpoint-{step} is complete", file=sys.stderr)
            raise SystemExit(EXIT_CODE)
        return output

    def before_training(self, checkpoint: str | None) -> None:
        """Called before every training with the checkpoint that it goes on from. Override it at will."""

    def save_own_state(self, folder: Path) -> None:
        """Write what a subclass needs besides the parent's files into a checkpoint. Called on every rank."""

    def load_own_state(self, checkpoint: Path) -> None:
        """Take up what `save_own_state` wrote. Called on every rank, after the optimiser and the schedule."""

    def _checked(self: Any, asked: str | bool | None) -> str | None:
        """The checkpoint to go on from, which the first process has looked at on behalf of all."""
        if asked is None or asked is False:
            return None
        answer: list[Any] = [None]
        if self.is_world_process_zero():
            try:
                answer = [str(self._choose(asked))]
            except (OSError, ValueError) as error:  # which every process raises
                answer = [error]
        broadcast_object_list(answer)
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    def _choose(self: Any, asked: str | bool) -> Path:
        if asked is True:
            checkpoint = newest_complete_checkpoint(self.args.output_dir)
        else:
            checkpoint = Path(str(asked))
            check_checkpoint(checkpoint)
        manifest = read_json(checkpoint / MANIFEST) if (checkpoint / MANIFEST).is_file() else None
        if manifest is None:
            logger.warning(
                "%s has no manifest, so its files cannot be compared with what was saved; they are all there",
                checkpoint,
            )
        elif manifest["world_size"] != self.args.world_size:
            logger.warning(
                "%s was saved by %d processes and there are %d now: the order of the data and the random states are "
                "not those of the run that is resumed",
                checkpoint,
                manifest["world_size"],
                self.args.world_size,
            )
        return checkpoint

    def _run_epoch(self: Any, *args: Any, **kwargs: Any) -> None:
        # From a checkpoint of the last step the Trainer would take one more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]  # of the Trainer

    def _is_cut_short(self: Any) -> bool:
        return self._is_ending and self.state.global_step < self.state.max_steps

    def _finalize_training(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Else the Trainer loads the best model and, with `save_total_limit=1`, removes the checkpoint just saved.
        as_of_no_end = {"load_best_model_at_end": False, "save_total_limit": None} if self._is_cut_short() else {}
        with shown_to_parent(self.args, **as_of_no_end):
            return super()._finalize_training(*args, **kwargs)  # type: ignore[misc]  # of the Trainer

    def _prepare_for_training(self: Any, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        with only_tensors_unpickled(resume_from_checkpoint, by_deepspeed=self.is_deepspeed_enabled):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)  # type: ignore[misc]

    def _load_best_model(self: Any) -> None:
        with only_tensors_unpickled(self.state.best_model_checkpoint, by_deepspeed=self.is_deepspeed_enabled):
            super()._load_best_model()  # type: ignore[misc]  # of the Trainer

    # ---- Before every optimiser step ----

    def _clip_grad_norm(self: Any, model: nn.Module) -> Any:
        self._agree_to_go_on(model)  # before the clipping, which makes every gradient NaN if one is
        return super()._clip_grad_norm(model)  # type: ignore[misc]  # of the Trainer

    def _get_grad_norm(self: Any, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            self._agree_to_go_on(model)
        return super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]  # of the Trainer

    def _agree_to_go_on(self: Any, model: nn.Module) -> None:
        """Stop every rank if the loss or a gradient of one is not finite; note where one was asked to end.

        Raises:
            NonFiniteError: on every rank, with what this one sees.
        """
        loss = self._tr_loss
        # A scaler skips the steps whose float16 gradients overflow. DeepSpeed shows no gradients.
        parameters = model.parameters() if self.accelerator.scaler is None else ()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        is_good = torch.isfinite(loss) & are_finite(gradients, loss.device)
        is_free = torch.tensor(not self._termination.is_asked).to(loss.device, non_blocking=True)
        n_good, n_free = self._sum_over_ranks(torch.stack([is_good, is_free]).float()).tolist()
        if n_good < self.accelerator.num_processes:
            raise NonFiniteError(
                f"step {self.state.global_step + 1}: {describe(self.model, loss.item())}"
                + (f" (on rank {self.args.process_index})" if self.accelerator.num_processes > 1 else "")
                + "; the optimiser has not touched the weights in this step"
            )
        self._is_ending = n_free < self.accelerator.num_processes

    def _refuse_bad_weights(self: Any, when: str) -> None:
        trained = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        n_good = self._sum_over_ranks(are_finite(trained, self.args.device).float()).item()
        if n_good < self.accelerator.num_processes:
            name = first_not_finite(self.model.named_parameters()) or "on another rank"
            raise NonFiniteError(
                f"step {self.state.global_step}: {when} a weight is not finite: {name}; it is not saved"
            )

    def _sum_over_ranks(self: Any, values: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(values, "sum") if self.accelerator.num_processes > 1 else values

    # ---- Checkpoints ----

    def _get_output_dir(self: Any, trial: Any) -> str:
        folder = super()._get_output_dir(trial)  # type: ignore[misc]  # of the Trainer
        return str(Path(folder) / SAVING) if self._is_saving else folder

    def _save_checkpoint(self: Any, model: nn.Module, trial: Any) -> None:
        self._refuse_bad_weights("before a checkpoint")
        args, name = self.args, f"checkpoint-{self.state.global_step}"
        folder = Path(self._get_output_dir(trial))
        written, checkpoint = folder / SAVING / name, folder / name
        if args.should_save:
            shutil.rmtree(folder / SAVING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self._is_saving = True
            super()._save_checkpoint(model, trial)  # type: ignore[misc]  # of the Trainer
            self._is_saving = False
            self._write_what_the_parent_leaves_out(written, checkpoint)
            self.save_own_state(written)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                publish(written, checkpoint, world_size=args.world_size)
            self.accelerator.wait_for_everyone()
            if self.is_local_process_zero() and written.exists():  # a machine whose disk is its own
                publish(written, checkpoint, world_size=args.world_size)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder / SAVING, ignore_errors=True)
            raise OSError(
                f"{checkpoint} could not be written ({error}); the checkpoints before it are as they were"
            ) from error
        finally:
            self._is_saving = False
        if args.should_save:
            remove_older(checkpoint, limit=args.save_total_limit, best=self.state.best_model_checkpoint)
            shutil.rmtree(folder / SAVING, ignore_errors=True)
        if args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))

    def _write_what_the_parent_leaves_out(self: Any, written: Path, checkpoint: Path) -> None:
        """The tokens so far, and the best checkpoint under the name that it will have."""
        is_best = self.state.best_model_checkpoint == str(written)
        if is_best:
            self.state.best_model_checkpoint = str(checkpoint)
        if not self.args.should_save:
            return
        if is_best:
            self.state.save_to_json(str(written / TRAINER_STATE))
        if hasattr(self, "_total_train_tokens"):  # of TRL's trainers
            write_json(written / COUNTS_FILE, {"num_tokens": self._total_train_tokens})

    def _push_from_checkpoint(self: Any, checkpoint_folder: str) -> None:
        if not self._is_saving:  # once it has its name
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]  # of the Trainer

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        with refused_pickles_named(resume_from_checkpoint, *PICKLED_WEIGHTS):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]  # of the Trainer

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        rank = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        if checkpoint is not None and not (path := Path(checkpoint) / f"rng_state{rank}.pth").is_file():
            logger.warning("%s is missing: dropout and the like are not drawn as in the run that is resumed", path)
        with refused_pickles_named(checkpoint, "rng_state*.pth"):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]  # of the Trainer

    def _load_scaler(self: Any, checkpoint: str | None) -> None:
        with refused_pickles_named(checkpoint, "scaler.pt"):
            super()._load_scaler(checkpoint)  # type: ignore[misc]  # of the Trainer

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        with refused_pickles_named(checkpoint, "optimizer.*", "scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]  # of the Trainer
        if checkpoint is None:
            return
        if (Path(checkpoint) / COUNTS_FILE).is_file():
            self._total_train_tokens = read_json(Path(checkpoint) / COUNTS_FILE)["num_tokens"]
        self.load_own_state(Path(checkpoint))  # here and not with the model, which DeepSpeed loads by itself
