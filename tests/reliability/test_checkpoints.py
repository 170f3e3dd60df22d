"""A checkpoint is complete, or the file that is wrong with it is named."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from alignkit.reliability import DamagedCheckpointError, check_checkpoint, newest_complete_checkpoint
from alignkit.reliability.checkpoints import publish
from alignkit.reliability.manifest import MANIFEST, check_manifest, write_manifest


@pytest.fixture
def make_checkpoint(tmp_path):
    """A folder with the files that a training on one process leaves."""

    def make(step: int, *, manifest: bool = True):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "ref").mkdir(parents=True)
        for name in ("model.safetensors", "ref/adapter_model.safetensors"):
            save_file({"weight": torch.full((4,), float(step))}, folder / name)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"step": step}, folder / name)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        if manifest:
            write_manifest(folder, world_size=1)
        return folder

    return make


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


NAMES = [
    "model.safetensors",
    "optimizer.pt",
    "ref/adapter_model.safetensors",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
]


def test_the_manifest_names_every_file_but_itself(make_checkpoint):
    folder = make_checkpoint(1)
    manifest = check_checkpoint(folder)
    assert sorted(manifest["files"]) == NAMES and files_of(folder) == sorted([*NAMES, MANIFEST])
    assert manifest["files"]["model.safetensors"]["bytes"] == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", [*NAMES, MANIFEST])
def test_a_file_cut_short_or_with_another_bit_is_named(make_checkpoint, name):
    path = make_checkpoint(1) / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for contents in (whole[: len(whole) // 2], bytes(flipped), b""):
        path.write_bytes(contents)
        with pytest.raises(DamagedCheckpointError, match=str(path)):
            check_checkpoint(path.parents[name.count("/")])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_gone_is_named_with_a_manifest_and_without(make_checkpoint, name):
    folder = make_checkpoint(1)
    (folder / name).unlink()
    with pytest.raises(DamagedCheckpointError, match=f"{folder / name} is missing"):
        check_checkpoint(folder)
    (folder / MANIFEST).unlink()
    if name.startswith("ref/"):  # of which plain transformers knows nothing
        assert check_checkpoint(folder) is None
    else:
        wanted = "adapter_model.safetensors" if name == "model.safetensors" else name
        with pytest.raises(DamagedCheckpointError, match=f"{folder / wanted} is missing"):
            check_checkpoint(folder)


def test_weights_cut_short_are_noticed_without_a_manifest_too(make_checkpoint):
    folder = make_checkpoint(1, manifest=False)
    assert check_checkpoint(folder) is None
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors is damaged"):
        check_checkpoint(folder)


def test_a_shard_that_the_index_names_must_be_there(make_checkpoint):
    folder = make_checkpoint(1, manifest=False)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(DamagedCheckpointError, match=r"model-00002-of-00002\.safetensors is damaged: No such file"):
        check_checkpoint(folder)


@pytest.mark.parametrize("content", ["1", '{"weight_map": []}', '{"weight_map": {"w": 5}}', "[" * 100_000])
def test_an_index_of_weights_that_is_none_is_named(make_checkpoint, content):
    folder = make_checkpoint(3, manifest=False)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors\.index\.json is damaged"):
        check_checkpoint(folder)


def test_the_order_of_a_manifests_entries_says_nothing(make_checkpoint):
    folder = make_checkpoint(1)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(dict(reversed(manifest.items()))))
    assert check_checkpoint(folder) == manifest


def test_a_file_that_was_added_later_does_no_harm(make_checkpoint):
    folder = make_checkpoint(1)
    (folder / "notes.txt").write_text("the good one")
    assert check_checkpoint(folder) is not None


def test_a_manifest_of_a_newer_format_says_so(make_checkpoint):
    folder = make_checkpoint(1)
    from alignkit.reliability import manifest

    body = {"format": 2, "world_size": 1, "files": {}}
    (folder / MANIFEST).write_text(json.dumps({**body, "sha256": manifest._hash_of(body)}))
    with pytest.raises(DamagedCheckpointError, match="format 2, of a newer alignkit"):
        check_manifest(folder)


def test_the_newest_complete_one_is_found_by_number_and_those_passed_over_are_named(make_checkpoint, tmp_path, caplog):
    for step in (2, 10, 9):
        make_checkpoint(step)
    (tmp_path / "checkpoint-10" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-11").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / ".saving" / "checkpoint-12").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert newest_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    said = [record.getMessage() for record in caplog.records]
    assert [message.split()[0] for message in said] == ["checkpoint-12", "checkpoint-11", "checkpoint-10"]
    assert "optimizer.pt is missing" in said[2]


def test_a_folder_without_a_complete_one_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no complete checkpoint"):
        newest_complete_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoint-3 is no folder"):
        check_checkpoint(tmp_path / "checkpoint-3")


def test_publishing_replaces_a_damaged_one_of_the_same_name(make_checkpoint, tmp_path):
    damaged = make_checkpoint(4)
    (damaged / "model.safetensors").write_bytes(b"")
    written = tmp_path / ".saving" / "checkpoint-4"
    written.parent.mkdir()
    fresh = make_checkpoint(5, manifest=False)
    fresh.rename(written)
    publish(written, damaged, world_size=2)
    assert check_checkpoint(damaged)["world_size"] == 2 and not written.exists()
