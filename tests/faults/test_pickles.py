"""No file of a folder that a user was given runs code when it is read: not a pickle, and not a model's own modules."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset

import alignkit
from alignkit.command_line.data import load_splits
from alignkit.evaluation.results import read_results
from alignkit.evaluation.suites.subjects import load_model
from alignkit.growing_row_cache import GrowingRowCache
from alignkit.plan.models import read_config
from alignkit.reliability.manifest import MANIFEST, write_manifest
from alignkit.reward_model import load_reward_model
from alignkit.row_cache import RowCache
from alignkit.spec_files import read_spec_file
from alignkit.storage import read_json, read_lines
from alignkit.tasks.toy import STYLES, byte_tokenizer, tiny_causal_lm, tiny_sequence_classifier
from tests.faults.damages import files_of
from tests.faults.pickles import write_touching_pickle
from tests.faults.processes import finish, start_ranks
from tests.faults.trainings import METHODS, make_trainer

# Files of a checkpoint that no resume reads.
NOT_READ = {"README.md", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "training_args.bin"}
FILES = {
    "reward": ["optimizer.pt"],
    "barrier": ["kl_barrier_state.json", "kl_barrier_reference.safetensors", "rng_state.pth"],
    "es": ["es_lora.json", "es_lora_anchor.safetensors", "optimizer.pt"],
    "dpo": ["dpo_state.json", "dpo_reference.safetensors", "scheduler.pt"],
}
BASE_OF_ADAPTER = Path("base_model", "config.json")  # read where a reward model is loaded, not in a resume
OTHER_WEIGHTS = {"adapter_model.bin": "adapter_model.safetensors", "pytorch_model.bin": "model.safetensors"}


@pytest.fixture
def marker(tmp_path):
    """What every file here would touch, if anyone unpickled or imported it."""
    path = tmp_path / "touched"
    yield path
    assert not path.exists()


# ---- Checkpoints ----


def refused_by_name(trainer: Any, checkpoint: Path, name: Path, marker: Path, *, is_zip: bool, forged: bool) -> None:
    write_touching_pickle(checkpoint / name, marker, in_zip=is_zip)
    if forged:  # by whoever made the pickle
        write_manifest(checkpoint, world_size=1)
    elif name.name != MANIFEST:
        (checkpoint / MANIFEST).unlink()
    if name.name in NOT_READ or name == BASE_OF_ADAPTER:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    else:
        with pytest.raises(ValueError) as refusal:
            trainer.train(resume_from_checkpoint=str(checkpoint))
        assert str(checkpoint / name) in str(refusal.value)
    assert not marker.exists(), name


def check_every_file(method: str, folder: Path, marker: Path, names: Callable[[Path], bool], **how: bool) -> None:
    trainer = make_trainer(method, folder / "out", max_steps=2)
    trainer.train()
    trainer.args.save_strategy = "no"
    for number, name in enumerate(filter(names, files_of(folder / "out" / "checkpoint-1"))):
        checkpoint = folder / str(number) / "checkpoint-1"
        shutil.copytree(folder / "out" / "checkpoint-1", checkpoint)
        refused_by_name(trainer, checkpoint, name, marker, **how)


@pytest.mark.parametrize("method", METHODS)
def test_a_pickle_in_place_of_a_file_that_a_resume_reads_is_refused_by_name(tmp_path, marker, method):
    names = {*FILES[method], "counts.json", "adapter_model.safetensors"}
    check_every_file(method, tmp_path, marker, lambda name: name.name in names, is_zip=True, forged=True)


@pytest.mark.slow
@pytest.mark.parametrize(("is_zip", "forged"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("method", METHODS)
def test_a_pickle_in_place_of_any_file_of_a_checkpoint_is_refused_by_name_or_not_read(
    tmp_path, marker, method, is_zip, forged
):
    def is_there(name: Path) -> bool:
        return not (forged and name.name == MANIFEST)

    check_every_file(method, tmp_path, marker, is_there, is_zip=is_zip, forged=forged)


@pytest.mark.parametrize("name", OTHER_WEIGHTS)
def test_a_pickle_as_the_weights_of_a_checkpoint_is_refused_by_name(tmp_path, marker, name):
    full = name == "pytorch_model.bin"
    trainer = make_trainer("reward", tmp_path / "out", full=full, max_steps=1)
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    (checkpoint / OTHER_WEIGHTS[name]).unlink()
    refused_by_name(trainer, checkpoint, Path(name), marker, is_zip=True, forged=True)


def test_a_pickle_as_the_state_of_a_scaler_is_refused_by_name(tmp_path, marker):
    trainer = make_trainer("barrier", tmp_path / "out")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    write_touching_pickle(tmp_path / "scaler.pt", marker)
    with pytest.raises(ValueError, match=r"scaler\.pt is refused"):
        trainer._load_scaler(str(tmp_path))


ZERO = {
    "zero_optimization": {"stage": 2},
    "gradient_accumulation_steps": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
}


def resume_with_deepspeed(folder: Path, marker: Path) -> None:
    make_trainer("reward", folder, deepspeed=ZERO, max_steps=2).train()
    checkpoint = folder / "checkpoint-1"
    make_trainer("reward", folder, deepspeed=ZERO, max_steps=2).train(resume_from_checkpoint=str(checkpoint))
    (path,) = checkpoint.glob("global_step1/*_optim_states.pt")
    write_touching_pickle(path, marker)
    write_manifest(checkpoint, world_size=1)
    with pytest.raises(ValueError, match=rf"{path}.* is refused"):
        make_trainer("reward", folder, deepspeed=ZERO, max_steps=2).train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.slow
def test_a_pickle_as_the_optimiser_of_deepspeed_is_refused_by_name_and_its_own_is_loaded(tmp_path, marker):
    pytest.importorskip("deepspeed")
    (process,) = start_ranks(1, resume_with_deepspeed, tmp_path / "out", marker, output=tmp_path / "output")
    assert finish(process) == 0, (tmp_path / "output-0").read_text()


# ---- Models ----


def saved_model(folder: Path, *, is_reward_model: bool = False) -> Path:
    model = tiny_sequence_classifier(list(STYLES)) if is_reward_model else tiny_causal_lm()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def trained_on(method: str) -> Callable[[Path], Any]:
    return lambda folder: make_trainer(method, folder.parent / "out", model=str(folder))


def with_reference(folder: Path) -> Any:
    return make_trainer("barrier", folder.parent / "out", ref=str(folder), target_kl=None)


LOADERS: dict[str, Callable[[Path], Any]] = {
    **{method: trained_on(method) for method in METHODS},
    "reference": with_reference,
    "load_reward_model": load_reward_model,
    "evaluation": lambda folder: load_model(str(folder)),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_pickle_as_the_weights_of_a_model_is_refused_by_name(tmp_path, marker, loader):
    folder = saved_model(tmp_path / "model", is_reward_model="reward" in loader)
    (folder / "model.safetensors").unlink()
    write_touching_pickle(folder / "pytorch_model.bin", marker)
    with pytest.raises(ValueError, match=r"model/pytorch_model\.bin is refused: it holds more than tensors"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("loader", ["load_reward_model", "evaluation"])
def test_a_pickle_as_the_weights_of_an_adapter_is_refused_by_name(tmp_path, marker, loader):
    method = "reward" if "reward" in loader else "barrier"
    base = saved_model(tmp_path / "base", is_reward_model="reward" in loader)
    folder = tmp_path / "adapter"
    make_trainer(method, tmp_path / "out", model=str(base)).save_model(str(folder))
    (folder / "adapter_model.safetensors").unlink()
    write_touching_pickle(folder / "adapter_model.bin", marker)
    with pytest.raises(ValueError, match=r"adapter/adapter_model\.bin is refused: it holds more than tensors"):
        LOADERS[loader](folder)


# ---- Modules of a model's own ----


def with_own_modules(folder: Path, marker: Path, *, model_type: str | None) -> Path:
    """Let the folder name modules of its own, which touch a file when they are imported."""
    names = {
        name: f"own.{name}" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    }
    for name, entries in {"config.json": names, "tokenizer_config.json": {"AutoTokenizer": [None, "own.T"]}}.items():
        content = json.loads((folder / name).read_text()) | {"auto_map": entries}
        if model_type is not None:
            content |= {"model_type": model_type, "tokenizer_class": "T"}
        (folder / name).write_text(json.dumps(content))
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    return folder


@pytest.mark.parametrize("loader", [*LOADERS, "plan"])
def test_a_model_that_needs_modules_of_its_own_is_refused(tmp_path, marker, loader):
    folder = saved_model(tmp_path / "model", is_reward_model="reward" in loader)
    with_own_modules(folder, marker, model_type="nobody_knows")
    load = LOADERS.get(loader, lambda folder: read_config(str(folder)))
    with pytest.raises(ValueError, match="custom code"):
        load(folder)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_model_of_a_known_kind_is_loaded_without_the_modules_that_it_brings(tmp_path, marker, loader):
    folder = saved_model(tmp_path / "model", is_reward_model="reward" in loader)
    LOADERS[loader](with_own_modules(folder, marker, model_type=None))


# ---- Caches, results, data, settings ----


def pickled(path: Path, marker: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_touching_pickle(path, marker, in_zip=False)
    return path


def test_a_pickle_as_a_cache_of_rows_is_refused_by_name(tmp_path, marker):
    layout: dict[str, Any] = {"meaning": {"weights": "a"}, "dtype": torch.float32, "width": 1}
    path = pickled(tmp_path / "part-00000-of-00001.arrow", marker)
    with pytest.raises(ValueError, match=r"part-00000-of-00001\.arrow is cut off or damaged"):
        RowCache.open(tmp_path, **layout)
    path.unlink()


def test_a_pickle_in_a_cache_that_grows_is_deleted_with_a_warning(tmp_path, marker, caplog):
    cache = GrowingRowCache(tmp_path, meaning={"weights": "a"}, dtype=torch.float32, width=1)
    path = pickled(cache.folder / "other.arrow", marker)
    cache.refresh()
    assert len(cache) == 0 and not path.exists() and f"{path} is deleted" in caplog.text


@pytest.mark.parametrize("read", [read_json, read_lines, read_results, lambda path: read_spec_file(path, dict)])
def test_a_pickle_in_place_of_a_text_file_is_refused_by_name(tmp_path, marker, read):
    with pytest.raises(ValueError, match=r"results\.jsonl"):
        read(pickled(tmp_path / "results.jsonl", marker))


@pytest.mark.parametrize("name", ["rows.pkl", "rows.arrow", "rows.parquet", "rows.jsonl"])
def test_a_pickle_in_place_of_a_data_set_is_refused_by_name(tmp_path, marker, name):
    pickled(tmp_path / "data" / name, marker)
    with pytest.raises((ValueError, OSError), match="data"):
        load_splits(str(tmp_path / "data"))


def test_a_pickle_in_a_data_set_that_datasets_saved_is_refused(tmp_path, marker):
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "data")
    pickled(tmp_path / "data" / "data-00000-of-00001.arrow", marker)
    with pytest.raises(ValueError, match="data cannot be read"):
        load_splits(str(tmp_path / "data"))


def test_yaml_that_names_a_function_is_refused_by_the_name_of_its_file(tmp_path, marker):
    path = tmp_path / "spec.yaml"
    path.write_text(f"model: !!python/object/apply:builtins.open [{str(marker)!r}, w]")
    yaml.unsafe_load(path.read_text())["model"].close()
    marker.unlink()
    with pytest.raises(ValueError, match=r"spec\.yaml is no YAML"):
        read_spec_file(path, dict)


# ---- The source ----

# The process of a guarded reward function gets it from its parent, through a pipe.
MAY_UNPICKLE = {"rewards/guard_process.py", "rewards/guard_worker.py"}
LOADING = {"torch.load", "np.load", "numpy.load", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"}


def calls_in(module: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def test_the_source_unpickles_no_file_and_never_trusts_a_models_own_modules_by_itself():
    source = Path(alignkit.__file__).parent
    for module in source.rglob("*.py"):
        name = module.relative_to(source).as_posix()
        for call in calls_in(module):
            keywords = {word.arg: word.value for word in call.keywords}
            if isinstance(call.func, ast.Attribute) and call.func.attr.startswith(("load", "unsafe_load")):
                function = ast.unparse(call.func)
                is_safe_yaml = name == "spec_files.py" and ast.unparse(keywords.get("Loader", call)) == "_Loader"
                is_of_parent = name in MAY_UNPICKLE and function == "pickle.loads"
                assert function not in LOADING or is_safe_yaml or is_of_parent, f"{name}: {ast.unparse(call)}"
            trusted = keywords.get("trust_remote_code", ast.Constant(False))
            assert not (isinstance(trusted, ast.Constant) and trusted.value), f"{name}: {ast.unparse(call)}"
    for config in (alignkit.MultiHeadRewardConfig, alignkit.KLBarrierConfig, alignkit.ScheduledDPOConfig):
        assert config.trust_remote_code is False
