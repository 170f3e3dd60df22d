"""The reference at the labelled positions of a batch: from its forward, or found once and read from files.

A causal model's hidden states depend on a document's own tokens alone, so that one document has one entry, however
rows are shuffled, batched or packed. An entry's key is made of the tokens and of which of them have a label.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from alignkit._compat import prepare_frozen_model
from alignkit.fused_head.modeling import HeadInput, add_reference_head, causal_lm_of, whole
from alignkit.kl_barrier.sequences import IGNORED_LABEL, documents_of
from alignkit.kl_barrier.window import RandomState
from alignkit.reference import ReferenceManager
from alignkit.row_cache import RowCache, RowCacheWriter, row_key

LAYOUT = "last hidden states of labelled positions, version 1"


class ReferenceStates:
    """Gives the fused head what it needs of the reference, which it places as the trainer places the policy.

    Args:
        reference: which weights are the reference.
        accelerator: of the trainer.
        precompute: whether [`keep_on_disk`] will be called.

    Raises:
        ValueError: a separate reference under FSDP1.
    """

    def __init__(self, reference: ReferenceManager, accelerator: Any, *, precompute: bool = False):
        self._reference = reference
        self._accelerator = accelerator
        # Under FSDP rank 0 alone may have the weights yet. Later no rank has: they are sharded, and the policy moves.
        self._fingerprint = broadcast_object_list([reference.fingerprint()])[0] if precompute else None
        if reference.ref_model is not None:
            add_reference_head(causal_lm_of(reference.ref_model))
            reference.ref_model = prepare_frozen_model(reference.ref_model, accelerator)
        self._cache: RowCache | None = None
        self._no_rows = torch.empty(0)  # (0, H) in the dtype of the files

    @property
    def wait_for_disk(self) -> bool:
        """Whether [`keep_on_disk`] still has to be called."""
        return self._fingerprint is not None and self._cache is None

    def of_batch(self, model: nn.Module, inputs: Mapping[str, Any]) -> HeadInput:
        """By the reference's forward.

        Args:
            model: the policy, wrapped as it is trained.
            inputs: everything that the policy's forward takes, and `labels`.
        """
        with self._reference.active(model) as ref_model:
            hidden = ref_model(**inputs, output_head_input=True).hidden
            return self._with_head(hidden, ref_model)

    def of_training_batch(self, model: nn.Module, inputs: Mapping[str, Any]) -> HeadInput:
        """From the files, when there are any (waits for the device once, for the tokens); else by a forward.

        Raises:
            KeyError: a document that the training set did not have when the files were written.
        """
        if self._cache is None:
            return self.of_batch(model, inputs)
        rows = [self._cache[document_key(*document)] for document in documents_of(inputs)]
        # Without a label no forward either: the other ranks would not be part of it.
        return self.with_hidden(model, torch.cat([self._no_rows, *rows]).to(self._accelerator.device))

    def with_hidden(self, model: nn.Module, hidden: Tensor) -> HeadInput:
        """From hidden states `(N, H)` that were found before."""
        with self._reference.active(model) as ref_model:
            return self._with_head(hidden, ref_model)

    def keep_on_disk(
        self,
        folder: Path,
        model: nn.Module,
        batches: Iterable[Mapping[str, Any]],
        computing: AbstractContextManager,
    ) -> None:
        """Find the states of all documents of some batches, unless the folder has them already. Collective.

        The random state stays, so that a first start and a resumed one go on alike.

        Args:
            folder: which all ranks can read.
            model: the policy, wrapped as it is trained.
            batches: this rank's share of the training set.
            computing: precision that the forward runs in.

        Raises:
            ValueError: files of another meaning, or damaged ones.
        """
        random_state = RandomState.now(self._accelerator.device)
        remaining = iter(batches)
        first = next(remaining)
        with computing:
            hidden = self._hidden(model, first)
        layout: dict[str, Any] = {
            "meaning": {
                "layout": LAYOUT,
                "weights": str(self._fingerprint),
                "precision": str(self._accelerator.mixed_precision),
            },
            "dtype": hidden.dtype,
            "width": hidden.shape[1],
        }
        is_there = any(folder.glob("part-*.arrow"))
        self._accelerator.wait_for_everyone()  # every rank has looked before one of them writes
        if not is_there:
            ranks = {"rank": self._accelerator.process_index, "world_size": self._accelerator.num_processes}
            with computing, RowCacheWriter(folder, **layout, **ranks) as writer:
                for batch in chain([first], remaining):
                    write_documents(writer, batch, self._hidden(model, batch))
        self._accelerator.wait_for_everyone()
        self._cache = RowCache.open(folder, **layout)
        self._no_rows = hidden.new_empty(0, hidden.shape[1], device="cpu")
        random_state.restore()

    def _hidden(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        hidden = self.of_batch(model, batch).hidden
        assert hidden is not None
        return hidden

    def _with_head(self, hidden: Tensor, ref_model: nn.Module) -> HeadInput:
        """With the reference's output embedding, where it is not the policy's own."""
        if self._reference.shares_head:
            return HeadInput(hidden=hidden)
        # Outside the forward: FSDP2 frees what a forward sees of a sharded weight when the forward ends.
        head: Any = causal_lm_of(self._accelerator.unwrap_model(ref_model)).get_output_embeddings()
        bias = None if head.bias is None else whole(head.bias.detach())
        return HeadInput(hidden=hidden, weight=whole(head.weight.detach()), bias=bias)


def document_key(tokens: list[int], labels: list[int]) -> bytes:
    """Key of a document: its tokens, and which of them are predicted."""
    return row_key(tokens, [int(label != IGNORED_LABEL) for label in labels])


def write_documents(writer: RowCacheWriter, batch: Mapping[str, Any], hidden: Tensor) -> None:
    """Write a row per document of a batch, from the hidden states `(N, H)` at its labelled positions."""
    documents = documents_of(batch)
    lengths = [sum(label != IGNORED_LABEL for label in labels) for _, labels in documents]
    for document, states in zip(documents, hidden.cpu().split(lengths), strict=True):
        writer.write(document_key(*document), states)
