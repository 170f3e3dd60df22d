"""What happens over a version that was not tested. The version is real to Python: the metadata of another release."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import alignkit
from alignkit import versions
from alignkit.command_line.environment import environment
from alignkit.versions import ALLOW_UNTESTED_TRL, UntestedVersionError, check_versions, is_tested, untested_packages

TRL_LINE = "trl 1.17.0 is not among the versions that alignkit"


@pytest.fixture
def pretend(tmp_path):
    """A folder in which `package` is installed in another version, as far as its metadata says."""

    def pretend(package: str, version: str) -> Path:
        [installed] = [file for file in metadata.files(package) or [] if file.match("*.dist-info/METADATA")]
        source = Path(str(installed.locate())).parent
        copy = tmp_path / f"{package}-{version}.dist-info"
        shutil.copytree(source, copy)
        text = (copy / "METADATA").read_text(encoding="utf-8")
        before = f"\nVersion: {metadata.version(package)}\n"
        assert before in text
        (copy / "METADATA").write_text(text.replace(before, f"\nVersion: {version}\n"), encoding="utf-8")
        return tmp_path

    return pretend


def python(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that finds packages in `folder` first."""
    path = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_what_is_installed_is_tested():
    assert untested_packages() == {}


def test_an_untested_trl_is_one_line_before_anything_of_it_is_imported(pretend):
    folder = pretend("trl", "1.17.0")
    seen = "import sys, alignkit\ntry: alignkit.KLBarrierTrainer\nfinally: print({'trl', 'torch'} & set(sys.modules))"
    result = python(folder, "-c", seen)
    line = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and result.stdout == "set()\n"
    assert TRL_LINE in line and "pip install 'trl<1.17,>=1.16'" in line and f"{ALLOW_UNTESTED_TRL}=1" in line


def test_an_untested_trl_stops_a_command_with_one_line_and_code_2(pretend):
    result = python(pretend("trl", "1.17.0"), "-m", "alignkit.cli", "barrier", "--model_name_or_path", "any")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"alignkit barrier: {TRL_LINE}") and result.stderr.count("\n") == 1


def test_pure_functions_do_not_ask_for_a_tested_trl(pretend, monkeypatch):
    monkeypatch.syspath_prepend(pretend("trl", "1.17.0"))
    check_versions.cache_clear()
    with pytest.raises(UntestedVersionError, match=TRL_LINE):
        alignkit.__getattr__("KLBarrierConfig")
    assert callable(alignkit.__getattr__("plain_nll_kl"))


def test_an_untested_trl_can_be_asked_for(pretend):
    check = "from alignkit.versions import check_versions; check_versions()"
    folder = pretend("trl", "1.17.0.dev0")
    assert python(folder, "-c", check, **{ALLOW_UNTESTED_TRL: "0"}).returncode == 1
    result = python(folder, "-W", "error", "-c", check, **{ALLOW_UNTESTED_TRL: "1"})
    assert (result.returncode, result.stderr) == (0, "")


def test_another_untested_package_is_one_warning(pretend):
    check = "from alignkit.versions import check_versions; check_versions(); check_versions()"
    result = python(pretend("transformers", "5.18.0"), "-c", check)
    [line] = [line for line in result.stderr.splitlines() if "UserWarning" in line]
    assert result.returncode == 0 and "transformers 5.18.0 is not among the versions" in line


def test_the_environment_has_a_row_for_what_is_not_tested(pretend, monkeypatch):
    assert not [name for name in environment() if name.startswith("untested")]
    monkeypatch.syspath_prepend(pretend("trl", "1.17.0"))
    rows = environment()
    assert rows["untested trl"].startswith(TRL_LINE) and "OUTSIDE" in rows["trl"]


@pytest.mark.slow  # imports torch and TRL in a new process
def test_a_trainer_that_is_imported_by_its_module_asks_too(pretend):
    result = python(pretend("trl", "1.17.0"), "-c", "from alignkit.kl_barrier.trainer import KLBarrierTrainer")
    assert result.returncode == 1 and TRL_LINE in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("version", "tested"),
    [("1.16.0", True), ("1.16.3rc1", True), ("1.17.0.dev0", False), ("1.15.9", False), ("not installed", True)],
)
def test_a_prerelease_is_tested_as_its_release_and_what_is_not_installed_breaks_no_rule(version, tested):
    assert is_tested(version, Requirement("trl>=1.16,<1.17")) is tested


def test_the_packages_of_an_extra_have_no_tested_range():
    assert "vllm" in {requirement.name for requirement in versions.requirements()}
    assert "vllm" not in versions.tested_ranges()


def test_all_ranges_with_a_floor_have_a_cap_but_for_torch_and_scipy():
    ranges = {name: str(requirement.specifier) for name, requirement in versions.tested_ranges().items()}
    assert {name for name, allowed in ranges.items() if ">=" in allowed and "<" not in allowed} == {"torch", "scipy"}
