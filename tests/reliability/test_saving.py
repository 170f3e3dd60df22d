"""What a training keeps, names and publishes of its checkpoints."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import Trainer

from alignkit.reliability import check_checkpoint
from alignkit.reliability.manifest import write_manifest
from tests.faults.trainings import make_trainer
from tests.kl_barrier.conftest import prompts_and_completions


def test_the_best_checkpoint_is_kept_under_its_last_name_and_loaded_at_the_end(tmp_path):
    trainer = make_trainer(
        "barrier",
        tmp_path,
        eval_dataset=prompts_and_completions(4),
        max_steps=4,
        save_total_limit=2,
        load_best_model_at_end=True,
        greater_is_better=True,  # so that it is the oldest, as the loss falls
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-4"]
    best = tmp_path / "checkpoint-1"
    assert trainer.state.best_model_checkpoint == str(best)
    for folder in (best, tmp_path / "checkpoint-4"):
        check_checkpoint(folder)
        assert json.loads((folder / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    saved, weights = load_file(best / "adapter_model.safetensors"), dict(trainer.model.named_parameters())
    assert all(torch.equal(weights[name.replace(".weight", ".default.weight")], saved[name]) for name in saved)


def test_a_checkpoint_goes_to_the_hub_when_it_has_its_name(tmp_path, monkeypatch):
    pushed = []

    def push(trainer, folder):
        check_checkpoint(folder)
        pushed.append(folder)

    monkeypatch.setattr(Trainer, "_push_from_checkpoint", push)
    trainer = make_trainer("barrier", tmp_path, max_steps=2)
    trainer.args.push_to_hub = True  # not before: the parent would ask the hub for a repository
    trainer.train()
    assert pushed == [str(tmp_path / "checkpoint-1"), str(tmp_path / "checkpoint-2")]


def test_every_file_is_on_the_disk_before_the_manifest_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "ref").mkdir()
    for name in ("a", "b", "ref/c"):
        (tmp_path / name).write_text(name)
    synced, fsync = [], os.fsync

    def note(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path).as_posix())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_manifest(tmp_path, world_size=1)
    assert synced == ["a", "b", "ref/c", "ref", "manifest.json.partial", "."]
