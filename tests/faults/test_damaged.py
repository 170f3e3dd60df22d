"""A damaged checkpoint is refused by the name of its file, or the training goes on from an older one."""

import json
import re
import shutil

import pytest

from alignkit import storage
from alignkit.reliability import DamagedCheckpointError, check_checkpoint, manifest, newest_complete_checkpoint
from tests.faults.damages import DAMAGES, MANIFEST, copy_checkpoints, delete, files_of
from tests.faults.trainings import METHODS, make_trainer

# Every method's own files, and the parts of a checkpoint that plain TRL would do without.
OWN_FILES = {
    "reward": [],
    "barrier": ["kl_barrier_state.json", "kl_barrier_reference.safetensors"],
    "es": ["es_lora.json", "es_lora_anchor.safetensors"],
    "dpo": ["dpo_state.json", "dpo_reference.safetensors"],
}
COMMON_FILES = ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("method", METHODS)
def test_any_damage_to_any_file_is_found_and_its_file_named(tmp_path, uninterrupted, caplog, method, damage):
    run = uninterrupted(method).folder
    names = [name for name in files_of(run / "checkpoint-3") if (damage, name.name) != ("deleted", MANIFEST)]
    assert len(names) >= 12
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        checkpoint = copy_checkpoints(run, folder, 2, 3)
        DAMAGES[damage](checkpoint / name)
        with pytest.raises(DamagedCheckpointError, match=re.escape(f"{checkpoint / name} ")):
            check_checkpoint(checkpoint)
        caplog.clear()
        assert newest_complete_checkpoint(folder) == folder / "checkpoint-2"
        (warning,) = caplog.messages
        assert warning.startswith("checkpoint-3 is passed over") and str(checkpoint / name) in warning
        shutil.rmtree(folder)


def test_damage_to_a_manifest_is_not_blamed_on_the_file_that_it_describes(tmp_path, uninterrupted):
    path = copy_checkpoints(uninterrupted("barrier").folder, tmp_path, 3) / MANIFEST
    text = path.read_text()
    stated = json.loads(text)["files"]["optimizer.pt"]["sha256"]
    path.write_text(text.replace(stated, stated[::-1]))
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint-3/manifest\.json is damaged"):
        check_checkpoint(path.parent)


@pytest.mark.parametrize("method", METHODS)
def test_training_refuses_a_damaged_checkpoint_and_goes_on_from_an_older_one(tmp_path, uninterrupted, caplog, method):
    whole = uninterrupted(method)
    checkpoint = copy_checkpoints(whole.folder, tmp_path, 5, 6)
    DAMAGES["one byte flipped"](checkpoint / "optimizer.pt")
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint-6/optimizer\.pt is not what was saved"):
        make_trainer(method, tmp_path).train(resume_from_checkpoint=str(checkpoint))
    resumed = make_trainer(method, tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert re.search(r"checkpoint-6 is passed over: .*checkpoint-6/optimizer\.pt", caplog.text)
    whole.assert_equals(resumed)
    check_checkpoint(checkpoint)  # which has been saved again


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_without_a_manifest_is_resumed_exactly_with_a_warning(tmp_path, uninterrupted, caplog, method):
    whole = uninterrupted(method)
    checkpoint = copy_checkpoints(whole.folder, tmp_path, 7)
    delete(checkpoint / MANIFEST)
    resumed = make_trainer(method, tmp_path, save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-7 has no manifest" in caplog.text
    whole.assert_equals(resumed)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_manifest_each_file_that_a_resume_reads_is_missed_by_name(tmp_path, uninterrupted, method):
    whole, trainer = uninterrupted(method), make_trainer(method, tmp_path, save_strategy="no")
    for name in [*COMMON_FILES, *OWN_FILES[method]]:
        checkpoint = copy_checkpoints(whole.folder, tmp_path / name, 7)
        delete(checkpoint / MANIFEST)
        delete(checkpoint / name)
        with pytest.raises(ValueError, match=re.escape(f"{checkpoint / name} ")):
            trainer.train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize(
    ("method", "content", "missing"),
    [
        ("barrier", {}, "'dual'"),
        ("barrier", {"dual": {"weight": 1.0}}, "'average_nats'"),
        ("dpo", {}, "'beta'"),
        ("es", {"settings": {}, "modules": {}}, "sigmas"),
    ],
)
def test_without_a_manifest_an_entry_that_a_method_reads_is_missed_by_name(
    tmp_path, uninterrupted, method, content, missing
):
    checkpoint = copy_checkpoints(uninterrupted(method).folder, tmp_path, 7)
    delete(checkpoint / MANIFEST)
    path = checkpoint / OWN_FILES[method][0]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is damaged.* has no {missing}"):
        make_trainer(method, tmp_path, save_strategy="no").train(resume_from_checkpoint=str(checkpoint))


def test_a_resume_hashes_each_file_once(tmp_path, uninterrupted, monkeypatch):
    checkpoint, hashed = copy_checkpoints(uninterrupted("barrier").folder, tmp_path, 8), []

    def digest(path):
        hashed.append(path.relative_to(checkpoint))
        return storage.digest(path)

    monkeypatch.setattr(manifest, "digest", digest)
    make_trainer("barrier", tmp_path, save_strategy="no").train(resume_from_checkpoint=True)
    assert sorted(hashed) == [name for name in files_of(checkpoint) if name.name != MANIFEST]


def test_random_states_of_another_number_of_processes_are_warned_of(tmp_path, uninterrupted, caplog):
    checkpoint = copy_checkpoints(uninterrupted("barrier").folder, tmp_path, 7)
    delete(checkpoint / MANIFEST)
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    make_trainer("barrier", tmp_path, save_strategy="no").train(resume_from_checkpoint=True)
    assert re.search(r"checkpoint-7/rng_state\.pth is missing: dropout", caplog.text)


def test_a_checkpoint_of_two_processes_is_warned_of_by_one(tmp_path, uninterrupted, caplog):
    checkpoint = copy_checkpoints(uninterrupted("barrier").folder, tmp_path, 8)
    manifest.write_manifest(checkpoint, world_size=2)
    make_trainer("barrier", tmp_path, save_strategy="no").train(resume_from_checkpoint=True)
    assert "checkpoint-8 was saved by 2 processes and there are 1 now: the order of the data" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_with_any_damage_a_training_ends_as_if_uninterrupted_or_names_the_file(
    tmp_path, uninterrupted, method, full, damage
):
    """The whole matrix through `train`, with the manifest there or not: what is not refused is exact."""
    if method == "es" and full:
        pytest.skip("ES-LoRA trains a LoRA alone")
    whole = uninterrupted(method, full=full)
    names = files_of(whole.folder / "checkpoint-6")
    for number, name in enumerate(names):
        checkpoint = copy_checkpoints(whole.folder, tmp_path / str(number), 6)
        DAMAGES[damage](checkpoint / name)
        trainer = make_trainer(method, tmp_path / str(number), full=full, save_strategy="no")
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint))
        except DamagedCheckpointError as error:
            assert str(checkpoint / name) in str(error)
        else:
            assert name.name == MANIFEST and damage == "deleted"
            whole.assert_equals(trainer)
