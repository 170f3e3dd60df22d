"""Every member of a parent that a trainer overrides or uses: recorded, with its signature, and called.

An override that the parent no longer calls raises nothing; the training goes on without it.
"""

import ast
from pathlib import Path
from pkgutil import resolve_name

import pytest

import alignkit
from alignkit import _compat
from tests.contract.overridden import noting_callers, overridden, signature_of, takes_all_of, used
from tests.contract.records import CALLED_BY_USERS, IMPORTED, OVERRIDDEN, REACHED_INTO, USED
from tests.contract.trainings import PARENT_OF, make

BELOW_US = {"trl", "transformers", "peft", "accelerate"}
SOURCE = Path(alignkit.__file__).parent

of_each_trainer = pytest.mark.parametrize(("ours", "parent"), PARENT_OF.items(), ids=lambda each: each.__name__)


@of_each_trainer
def test_the_overrides_are_the_recorded_ones_with_the_parameters_that_the_parent_has(ours, parent):
    found = {name: signature_of(parent, name) for name in overridden(ours, parent)}
    assert found == OVERRIDDEN[parent.__name__]


@of_each_trainer
def test_an_override_takes_all_that_the_parents_member_takes(ours, parent):
    functions = {name for name, parameters in OVERRIDDEN[parent.__name__].items() if parameters} - {"__init__"}
    assert [name for name in functions if not takes_all_of(getattr(ours, name), getattr(parent, name))] == []


@of_each_trainer
def test_trl_or_transformers_call_every_override(ours, parent, tmp_path):
    functions = {name for name, parameters in OVERRIDDEN[parent.__name__].items() if parameters} - CALLED_BY_USERS
    spy, callers = noting_callers(ours, functions, stop_at="_push_from_checkpoint")  # which would go to the hub
    settings = {"max_steps": 1, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_grad_norm": 1.0}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_runtime", "save_strategy": "steps"}
    trainer = make(spy, tmp_path, **settings)
    trainer.args.push_to_hub = True  # not before: the parent would ask the hub for a repository
    trainer.train()
    resumed = make(
        spy, tmp_path, **settings | {"max_steps": 2, "save_strategy": "no", "load_best_model_at_end": False}
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert [name for name, packages in callers.items() if not packages & {"trl", "transformers"}] == []


@of_each_trainer
def test_what_is_used_of_the_parent_is_recorded_and_there(ours, parent, tmp_path):
    trainer = make(parent, tmp_path)
    assert {name: signature_of(trainer, name) for name in used(ours, trainer)} == USED[parent.__name__]


# ---- Functions and classes ----


def imported_from_below(path: Path) -> list[str]:
    """Everything that a file imports of the packages below, as `package.module.name`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return sorted(
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 0 and str(node.module).split(".")[0] in BELOW_US
        for alias in node.names
    )


def test_what_compat_imports_is_recorded():
    assert imported_from_below(Path(_compat.__file__)) == sorted(IMPORTED)


@pytest.mark.parametrize("path", IMPORTED)
def test_what_compat_imports_has_the_recorded_parameters(path):
    owner, _, name = path.rpartition(".")
    assert signature_of(resolve_name(owner), name) == IMPORTED[path]


@pytest.mark.parametrize("path", sorted(REACHED_INTO))
def test_what_compat_reaches_into_is_there(path):
    owner, _, name = path.rpartition(".")
    assert hasattr(resolve_name(owner), name)


def test_no_other_file_imports_anything_private():
    private = [
        f"{path.relative_to(SOURCE)}: {name}"
        for path in sorted(SOURCE.rglob("*.py"))
        for name in imported_from_below(path)
        if any(part.startswith("_") for part in name.split("."))
    ]
    assert private == []
