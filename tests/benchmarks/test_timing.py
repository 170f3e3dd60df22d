from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_ratio_of_two_sides_adds_up_rounds_before_it_compares(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from timing import StepTimes, time_ratio

    top, bottom = StepTimes([3.0, 5.0, 2.0, 4.0], [1.0, 3.0, 2.0, 6.0]), StepTimes([2.0] * 4, [1.0] * 4)
    ratio = time_ratio(top, bottom, turns_of_a_round=2)
    if ratio.measured_in == "CPU time":
        assert ratio.values == [2.0, 4.0] and ratio.also == {"median_of_wall_time": 1.75}
    else:
        assert ratio.values == [2.0, 1.5] and ratio.also == {"median_of_cpu_time": 3.0}
