"""`import alignkit` is light, and imports inside the package go down only."""

import ast
import json
import statistics
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import alignkit

SOURCE = Path(alignkit.__file__).parent

# Patterns of module names below `alignkit`. A module imports modules of its own level or of a lower one.
LEVELS = {
    0: [
        "_lazy",
        "_version",
        "dpo.beta",
        "dpo.metrics",
        "dpo.truncation",
        "es_lora.estimator",
        "es_lora.fitness",
        "es_lora.noise",
        "reliability.config",
        "reliability.manifest",
        "reliability.not_finite",
        "reliability.process_count",
        "reliability.termination",
        "evaluation",
        "evaluation.comparison",
        "evaluation.conclusion",
        "evaluation.document",
        "evaluation.human_sheet_html",
        "evaluation.judge.asking",
        "evaluation.judge.cache",
        "evaluation.judge.conversations",
        "evaluation.judge.prompts",
        "evaluation.judge.protocol",
        "evaluation.judge.reward_model",
        "evaluation.judge.subject",
        "evaluation.judge.usage",
        "evaluation.judge.verdicts",
        "evaluation.preference",
        "evaluation.metrics.inputs",
        "evaluation.overfitting",
        "evaluation.pareto",
        "evaluation.power",
        "evaluation.metrics.code",
        "evaluation.program_examiner",
        "evaluation.program_tests",
        "evaluation.sandbox",
        "evaluation.sandbox_child",
        "evaluation.sandbox_filter",
        "evaluation.sandbox_namespaces",
        "evaluation.sandbox_process",
        "evaluation.results",
        "evaluation.settings",
        "evaluation.statistics",
        "evaluation.suites",
        "evaluation.suites.suite",
        "evaluation.tatqa_rules",
        "evaluation.tatqa_text",
        "evaluation.report_html",
        "evaluation.unpaired",
        "evaluation.verdicts",
        "evaluation.wording",
        "evaluation.whole_lines",
        "metrics",
        "schedules",
        "shared_prefix.layout",
        "storage",
        "fused_head",
        "fused_head.function",
        "fused_head.passes",
        "fused_head.plain",
        "fused_head.tiles",
        "kl_barrier.aggregation",
        "kl_barrier.barrier",
        "kl_barrier.divergences",
        "kl_barrier.dual",
        "kl_barrier.rounds.signals",
        "kl_barrier.sequences",
        "command_line.one_line",
        "named_objects",
        "provenance",
        "reward_model.comparisons",
        "reward_model.losses",
        "reward_model.metrics",
        "reward_model.separation",
        "reward_model.training_metrics",
        "rewards",
        "rewards.arithmetic",
        "rewards.completions",
        "rewards.guard",
        "rewards.guard_process",
        "rewards.guard_worker",
        "rewards.hybrid",
        "rewards.judge",
        "rewards.parts",
        "rewards.refusals",
        "rewards.standardize",
        "rewards.word_lists",
    ],
    1: [
        "_compat",
        "versions",
        "quiet",
        "dpo",
        "dpo.collator",
        "dpo.hidden_states",
        "dpo.low_memory",
        "dpo.pairs",
        "dpo.policy",
        "dpo.reference_logps",
        "dpo.rows",
        "es_lora",
        "es_lora.adapters",
        "es_lora.backends",
        "es_lora.backends.*",
        "es_lora.centre",
        "es_lora.checkpoints",
        "es_lora.evaluation",
        "es_lora.finished_rows",
        "es_lora.grouped_lora",
        "es_lora.history",
        "es_lora.outcome",
        "es_lora.plots",
        "es_lora.population",
        "es_lora.population_step",
        "es_lora.prompts",
        "es_lora.records",
        "es_lora.report",
        "es_lora.rewards",
        "es_lora.rollout",
        "es_lora.sampling",
        "es_lora.sigmas",
        "es_lora.step_metrics",
        "es_lora.timing",
        "es_lora.update",
        "evaluation.agreement",
        "evaluation.human_answers",
        "evaluation.human_ratings",
        "evaluation.human_sheets",
        "evaluation.judge",
        "evaluation.judge.client",
        "evaluation.judge.endpoint",
        "evaluation.judge.spec",
        "evaluation.pictures",
        "evaluation.ratings_command",
        "evaluation.plots",
        "evaluation.report",
        "evaluation.report_command",
        "evaluation.decoding",
        "evaluation.generation",
        "evaluation.metrics",
        "evaluation.metrics.code_similarity",
        "evaluation.metrics.embeddings",
        "evaluation.metrics.fact_quantities",
        "evaluation.metrics.facts",
        "evaluation.metrics.hf_metrics",
        "evaluation.metrics.math_answers",
        "evaluation.metrics.math_comparison",
        "evaluation.metrics.overlap",
        "evaluation.metrics.packages",
        "evaluation.metrics.perplexity",
        "evaluation.metrics.safety",
        "evaluation.metrics.words",
        "evaluation.instructions",
        "evaluation.instructions.*",
        "evaluation.suites.instructions",
        "evaluation.tatqa",
        "evaluation.suites.*",
        "evaluation.tatqa_generation",
        "fused_head.modeling",
        "kl_barrier.checkpoints",
        "kl_barrier.checks",
        "kl_barrier.evaluation",
        "kl_barrier.evaluation_report",
        "kl_barrier.faults",
        "kl_barrier.policy",
        "kl_barrier.reference_states",
        "kl_barrier.rows",
        "kl_barrier.training_metrics",
        "kl_barrier.window",
        "reference",
        "reference.*",
        "reliability",
        "reliability.checkpoints",
        "reliability.pickles",
        "plan",
        "plan.flops",
        "plan.models",
        "plan.request",
        "plan.sharding",
        "plan.simulation",
        "plan.sizes",
        "growing_row_cache",
        "row_cache",
        "row_checks",
        "model_folder",
        "row_file",
        "shared_prefix",
        "shared_prefix.attention",
        "shared_prefix.backbone",
        "shared_prefix.support",
        "spec_files",
        "steps",
        "experiments",
        "experiments.data",
        "experiments.history",
        "experiments.locks",
        "experiments.run_folder",
        "experiments.task",
        "kl_barrier.rounds.adapters",
        "kl_barrier.rounds.coherence",
        "kl_barrier.rounds.directions",
        "kl_barrier.rounds.filters",
        "kl_barrier.rounds.plots",
        "kl_barrier.rounds.proposals",
        "kl_barrier.rounds.records",
        "kl_barrier.rounds.report",
        "kl_barrier.rounds.scoring",
        "kl_barrier.rounds.settings",
        "kl_barrier.rounds.steering",
        "reward_model",
        "reward_model.batching",
        "reward_model.card",
        "reward_model.data",
        "reward_model.export",
        "reward_model.loading",
        "reward_model.modeling",
        "reward_model.negatives",
        "reward_model.plots",
        "reward_model.probe_command",
        "reward_model.probing",
        "reward_model.receptivity_report",
        "reward_model.report",
        "reward_model.rows",
        "rewards.model",
        "rewards.shared_scores",
        "rewards.heuristics",
        "tasks",
        "tasks.*",
    ],
    2: [
        "",
        "dpo.batches",
        "dpo.checkpoints",
        "dpo.checks",
        "dpo.config",
        "dpo.control",
        "dpo.references",
        "dpo.trainer",
        "es_lora.config",
        "es_lora.trainer",
        "kl_barrier.config",
        "kl_barrier.strength",
        "kl_barrier.trainer",
        "reliability.trainer",
        "reward_model.config",
        "reward_model.evaluation",
        "reward_model.preparation",
        "reward_model.trainer",
    ],
    3: [
        "kl_barrier",
        "experiments.command",
        "experiments.experiment",
        "experiments.launch",
        "experiments.processes",
        "experiments.run_one",
        "experiments.search",
        "experiments.settings",
        "experiments.spec",
        "experiments.status",
        "experiments.training",
        "__main__",
        "cli",
        "command_line",
        "command_line.*",
        "kl_barrier.calibration",
        "kl_barrier.rounds",
        "kl_barrier.rounds.*",
        "reward_model.quickstart",
        "stages",
        "stages.*",
        "plan.command",
        "plan.estimate",
        "plan.generation",
        "plan.gpu_heads",
        "plan.probe",
        "plan.suggestion",
        "plan.trainer",
    ],
}
METHODS = ["reward_model", "kl_barrier", "es_lora", "dpo"]
PURE_PACKAGES = {"alignkit", "numpy", "scipy", "torch", *sys.stdlib_module_names}
FILES_THAT_MAY_IMPORT_TRL = {"_compat", "cli", "config", "parser", "trainer"}
NEVER_LOADED_BY_ALIGNKIT = ["matplotlib", "sglang", "transformers", "trl", "vllm"]

TIME_THE_IMPORT = f"""
import json, sys, time
import torch
start = time.perf_counter()
import alignkit
seconds = time.perf_counter() - start
print(json.dumps([seconds, [name for name in {NEVER_LOADED_BY_ALIGNKIT} if name in sys.modules]]))
"""


def import_alignkit_in_a_fresh_process() -> tuple[float, list[str]]:
    """Seconds that `import alignkit` takes after `import torch`, and which of the heavy packages are then loaded."""
    command = [sys.executable, "-c", TIME_THE_IMPORT]
    seconds, loaded = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return seconds, loaded


def test_importing_alignkit_is_fast_and_loads_no_heavy_package() -> None:
    # A busy machine may spoil one round of measurements, but not three.
    medians_s = []
    for _ in range(3):
        seconds, loaded = zip(*(import_alignkit_in_a_fresh_process() for _ in range(3)), strict=True)
        assert not any(loaded)
        medians_s.append(statistics.median(seconds))
        if medians_s[-1] < 0.3:
            return
    pytest.fail(f"`import alignkit` takes {medians_s} s beyond `import torch`; it must take less than 0.3 s")


@pytest.mark.parametrize("name", alignkit.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(alignkit, name) is not None
    assert name in dir(alignkit)


def test_an_unknown_public_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match=r"'MultiHeadTrainer'.*MultiHeadRewardTrainer"):
        alignkit.MultiHeadTrainer  # noqa: B018


def below_package(module: str) -> str:
    """`alignkit.a.b` -> `a.b`; `alignkit` itself -> the empty string."""
    return module.removeprefix("alignkit").removeprefix(".")


def level_of(module: str) -> int | None:
    """The level whose patterns match the module; None for a module that is not listed."""
    levels = [level for level, patterns in LEVELS.items() if any(fnmatch(below_package(module), p) for p in patterns)]
    return min(levels, default=None)


def method_of(module: str) -> str | None:
    """The method whose slice the module belongs to; None for shared modules."""
    package = below_package(module).split(".")[0]
    return package if package in METHODS else None


def module_of(path: Path) -> str:
    """`src/alignkit/a/b.py` -> `alignkit.a.b`; `src/alignkit/a/__init__.py` -> `alignkit.a`."""
    parts = ["alignkit", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported_modules(tree: ast.Module, module: str, is_package: bool) -> set[str]:
    """Absolute names of all modules that the tree imports, at any depth, also under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            ancestors = module.split(".")[: len(module.split(".")) - node.level + is_package]
            origin = ".".join([*(ancestors if node.level else []), *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                names.add(submodule if submodule in MODULES or submodule == "trl.experimental" else origin)
    return names


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """One line for every import of the module that the architecture does not allow."""
    level = level_of(module)
    if level is None:
        return [f"{module} has no level: list it in LEVELS of tests/test_imports.py"]
    found = []
    for name in sorted(imported_modules(ast.parse(source), module, is_package)):
        package = name.split(".")[0]
        if level == 0 and package not in PURE_PACKAGES:
            found.append(f"{module} (level 0) imports {name}: pure maths uses only torch, numpy, scipy and the stdlib")
        if package == "trl" and module.split(".")[-1] not in FILES_THAT_MAY_IMPORT_TRL:
            found.append(f"{module} imports {name}: trl belongs in config, trainer, _compat and cli files")
        if name == "trl.experimental" or name.startswith("trl.experimental."):
            found.append(f"{module} imports {name}: trl.experimental changes without notice")
        if package == "alignkit":
            found.extend(violations_within_package(module, level, name))
    return found


def violations_within_package(module: str, level: int, name: str) -> list[str]:
    """One line for every rule that `module` of the given level breaks by importing `name` of this package."""
    found = []
    imported_level = level_of(name)
    if imported_level is None:
        found.append(f"{module} imports {name}, which has no level: list it in LEVELS of tests/test_imports.py")
    elif imported_level > level:
        found.append(f"{module} (level {level}) imports {name} (level {imported_level}): imports go down only")
    if method_of(name) and method_of(module) and method_of(name) != method_of(module):
        found.append(f"{module} imports {name}: methods never import each other")
    if name == "alignkit.cli" and module != "alignkit.__main__":
        found.append(f"{module} imports {name}: nothing imports the command line")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    path = MODULES[module]
    found = violations(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("reward_model.losses", "import transformers", "pure maths"),
        ("reward_model.losses", "def f():\n    from datasets import Dataset", "pure maths"),
        ("reward_model.losses", "from .trainer import MultiHeadRewardTrainer", "imports go down only"),
        ("reward_model.data", "import alignkit.reward_model.trainer", "imports go down only"),
        ("reward_model.trainer", "from ..cli import main", "nothing imports the command line"),
        ("reward_model.trainer", "import alignkit.dpo.trainer", "methods never import each other"),
        ("reward_model.data", "from trl.trainer.reward_config import RewardConfig", "trl belongs in"),
        ("reward_model.trainer", "from trl import experimental", "changes without notice"),
        ("reward_model.trainer", "from trl.experimental.bco import BCOTrainer", "changes without notice"),
        ("reward_model.surprise", "import torch", "list it in LEVELS"),
    ],
)
def test_a_forbidden_import_is_named(module: str, source: str, complaint: str) -> None:
    assert any(complaint in line for line in violations(f"alignkit.{module}", source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("reward_model.losses", "import math\nimport torch.nn.functional as F\nfrom .comparisons import Comparisons"),
        ("reward_model.data", "from datasets import Dataset\nfrom alignkit.reward_model import losses"),
        ("reward_model.trainer", "from trl.trainer.reward_trainer import RewardTrainer\nfrom . import config"),
        ("reward_model.quickstart", "from alignkit import MultiHeadRewardTrainer"),
    ],
)
def test_an_allowed_import_is_let_through(module: str, source: str) -> None:
    assert violations(f"alignkit.{module}", source) == []
