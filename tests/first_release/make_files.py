"""Make the files of a release: `python -m tests.first_release.make_files FOLDER`, in the checkout of that release.

Those in `files/` were made by version 0.1.0 and are never made again: they are what every later version must read.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import yaml

from alignkit.experiments.experiment import Experiment
from alignkit.experiments.spec import read_experiment
from alignkit.provenance import package_versions
from alignkit.tasks.toy import byte_tokenizer
from tests.first_release.trainings import BASE, MAKERS, SAVED_STEP, make_trainer, values_of
from tests.tiny_models import lively_lm

EXPERIMENT = {
    "name": "first",
    "output_dir": "experiment",
    "method": "dpo",
    "task": "tests.experiments.tiny_task:task",
    "model": BASE,
    "training": {"max_steps": 1, "logging_steps": 1, "max_length": 96, "kl_steps": 0},
    "lora": {"r": 2, "target_modules": ["q_proj"]},
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    os.chdir(folder)
    lively_lm(1, hidden_size=16, layers=1).save_pretrained(BASE)
    byte_tokenizer().save_pretrained(BASE)
    expected = {}
    for method in MAKERS:
        trainer = make_trainer(method, "out")
        if method == "reward":  # an adapter's config names the folder of its base by an absolute path
            trainer.model.config._name_or_path = ""
        trainer.train()
        trainer.save_model(method)
        shutil.move(f"out/checkpoint-{SAVED_STEP}", f"{method}_checkpoint")
        shutil.rmtree("out")
        expected[method] = values_of(method, method).tolist()
    trainer = make_trainer("reward", "out", full=True)
    trainer.train()
    trainer.save_model("reward_full")
    shutil.rmtree("out")
    expected["reward_full"] = values_of("reward", "reward_full").tolist()
    Path("experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT), encoding="utf-8")
    Experiment(read_experiment(Path("experiment.yaml"))).carry_out()
    shutil.rmtree("experiment/cache")
    for pattern in ("*.lock", "runs/*/lock", "runs/*/log.txt"):
        for path in Path("experiment").glob(pattern):
            path.unlink()
    made = {"versions": package_versions(), "values": expected}
    Path("expected.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
