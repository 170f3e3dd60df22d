"""`alignkit experiment` in a process of its own, which tests interrupt and kill."""

import argparse
import sys

from alignkit.experiments.command import add_experiment_commands

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_experiment_commands(parser)
    arguments = parser.parse_args(sys.argv[1:])
    arguments.run(arguments)
