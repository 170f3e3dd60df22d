"""What accelerate's launcher leaves in the environment, by which a lost process is noticed."""

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from alignkit.reliability import check_process_count

VARIABLES = ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "WORLD_SIZE")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def launcher_environment(monkeypatch):
    """Sets the variables to what `accelerate launch --cpu` sets them to for a number of processes."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def set_for(processes: int) -> None:
        options = ["--cpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
        options += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "script.py"]
        args = launch_command_parser().parse_args(options)
        args.use_cpu = True
        _, environment = prepare_simple_launcher_cmd_env(args)
        for name in VARIABLES:
            if name in environment:
                monkeypatch.setenv(name, environment[name])

    return set_for


def test_two_processes_of_which_accelerate_starts_one_are_noticed(launcher_environment):
    launcher_environment(2)
    with pytest.raises(ValueError, match=r"several CPU processes .*torchrun .* script\.py --use_cpu`"):
        check_process_count(CPU, world_size=1)
    with pytest.raises(ValueError, match=r"several CUDA processes .*torchrun .* script\.py`"):
        check_process_count(GPU, world_size=1)


def test_one_process_started_by_accelerate_passes(launcher_environment):
    launcher_environment(1)
    check_process_count(CPU, world_size=1)
    check_process_count(GPU, world_size=1)


def test_the_address_of_a_cluster_alone_asks_for_nothing(launcher_environment, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node-1")
    check_process_count(CPU, world_size=1)
    launcher_environment(1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_process_count(CPU, world_size=1)


def test_a_torchrun_process_that_trains_alone_is_noticed(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 CPU processes"):
        check_process_count(CPU, world_size=1)


def test_a_process_among_others_passes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_process_count(CPU, world_size=2)
    check_process_count(GPU, world_size=2)
