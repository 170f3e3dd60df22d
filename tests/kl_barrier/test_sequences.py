"""Which sequence a labelled position belongs to, worked out by hand."""

import torch

from alignkit.kl_barrier.sequences import documents_of, sequences_of

NO = -100


def batch(labels: list[list[int]], **columns: list) -> dict[str, torch.Tensor]:
    ids = columns.pop("input_ids", None) or [[10 * row + column for column in range(len(labels[0]))] for row in (1, 2)]
    made = {"input_ids": torch.tensor(ids[: len(labels)]), "labels": torch.tensor(labels)}
    return made | {name: torch.tensor(values) for name, values in columns.items()}


def test_without_position_ids_every_row_is_a_sequence():
    found = sequences_of(batch([[NO, 5, 6], [NO, NO, 7]]))
    assert found.index.tolist() == [0, 0, 1]
    assert (found.count, found.n_labelled.item()) == (2, 2)


def test_the_label_of_a_rows_first_token_is_never_predicted():
    found = sequences_of(batch([[4, 5, 6], [7, NO, NO]]))
    assert found.index.tolist() == [0, 0]
    assert (found.count, found.n_labelled.item()) == (2, 1)


def test_a_row_without_labels_counts_as_a_sequence_but_not_as_a_labelled_one():
    found = sequences_of(batch([[NO, NO, NO], [NO, 5, 6]]))
    assert found.index.tolist() == [1, 1]
    assert (found.count, found.n_labelled.item()) == (2, 1)


def test_a_batch_without_any_label_has_no_position_and_no_labelled_sequence():
    found = sequences_of(batch([[NO, NO, NO], [7, NO, NO]]))
    assert found.index.tolist() == []
    assert (found.count, found.n_labelled.item()) == (2, 0)


def test_padding_on_either_side_changes_nothing():
    plain = sequences_of(batch([[NO, 5, 6], [NO, 7, 8]]))
    right = sequences_of(batch([[NO, 5, 6, NO, NO], [NO, 7, 8, NO, NO]]))
    left = sequences_of(batch([[NO, NO, NO, 5, 6], [NO, NO, NO, 7, 8]]))
    for padded in (right, left):
        assert padded.index.tolist() == plain.index.tolist() == [0, 0, 1, 1]
        assert padded.n_labelled == plain.n_labelled


def test_a_document_starts_where_position_ids_restart():
    # Documents of 3, 2 and 3 tokens; the collator masks the first label of each, as here.
    found = sequences_of(batch([[NO, 1, 2, NO, 4, NO, NO, 7]], position_ids=[[0, 1, 2, 0, 1, 0, 1, 2]]))
    assert found.index.tolist() == [0, 0, 1, 2]
    assert (found.count, found.n_labelled.item()) == (3, 3)


def test_a_padding_free_batch_of_one_token_is_a_sequence_without_a_label():
    found = sequences_of(batch([[NO]], position_ids=[[0]]))
    assert (found.index.tolist(), found.count, found.n_labelled.item()) == ([], 1, 0)


def test_the_boundaries_of_flash_attention_give_the_same_count_of_documents():
    columns = {"position_ids": [[0, 1, 2, 0, 1, 0, 1, 2]]}
    labels = [[NO, 1, 2, NO, 4, NO, NO, NO]]
    without = sequences_of(batch(labels, **columns))
    found = sequences_of(batch(labels, **columns, cu_seq_lens_q=[0, 3, 5, 8]))
    assert found.index.tolist() == without.index.tolist() == [0, 0, 1]
    assert (found.count, found.n_labelled.item()) == (without.count, without.n_labelled.item()) == (3, 2)


def test_documents_of_several_packed_rows_are_numbered_through():
    positions = [[0, 1, 0, 1], [0, 1, 2, 0]]
    found = sequences_of(batch([[NO, 1, NO, 3], [NO, 5, 6, NO]], position_ids=positions))
    assert found.index.tolist() == [0, 1, 2, 2]
    assert (found.count, found.n_labelled.item()) == (4, 3)


def test_a_row_cut_inside_a_document_does_not_continue_the_row_before():
    found = sequences_of(batch([[NO, 1, 2], [NO, 4, 5]], position_ids=[[0, 1, 2], [3, 4, 0]]))
    assert found.index.tolist() == [0, 0, 1, 2]
    assert found.count == 3


def test_documents_end_with_their_last_label_and_begin_without_one():
    rows = batch([[1, 5, 6, NO, NO], [NO, NO, 7, NO, NO]], input_ids=[[1, 5, 6, 256, 256], [2, 3, 7, 8, 256]])
    assert documents_of(rows) == [([1, 5, 6], [NO, 5, 6]), ([2, 3, 7], [NO, NO, 7])]


def test_sequences_without_a_label_are_no_documents():
    assert documents_of(batch([[NO, NO], [3, NO]])) == []


def test_documents_of_a_padding_free_row_are_those_of_the_padded_rows():
    padded = batch([[NO, 5, 6], [NO, 7, NO]], input_ids=[[4, 5, 6], [9, 7, 256]])
    packed = batch([[NO, 5, 6, NO, 7]], input_ids=[[4, 5, 6, 9, 7]], position_ids=[[0, 1, 2, 0, 1]])
    assert documents_of(packed) == documents_of(padded) == [([4, 5, 6], [NO, 5, 6]), ([9, 7], [NO, 7])]


def test_the_positions_of_the_documents_are_those_of_the_sequences_in_their_order():
    rows = batch(
        [[NO, 5, NO, NO, 8, 9], [NO, NO, NO, NO, NO, 3]],
        position_ids=[[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]],
    )
    lengths = [sum(label != NO for label in labels) for _, labels in documents_of(rows)]
    index = sequences_of(rows).index
    assert lengths == [(index == sequence).sum().item() for sequence in index.unique()] == [1, 2, 1]
