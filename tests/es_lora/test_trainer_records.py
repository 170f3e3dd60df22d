"""What a run leaves behind: history, times and pictures."""

import json
import time

import pytest
from PIL import Image
from transformers import TrainerCallback

from alignkit.es_lora.history import History, read_history
from alignkit.es_lora.plots import ONCE, PER_STEP, save_time_breakdown
from alignkit.es_lora.timing import PHASES, Stopwatch
from tests.es_lora.conftest import prompts


def test_phases_add_up_to_the_wall_time(make_trainer):
    start = time.perf_counter()
    trainer = make_trainer(max_steps=4, eval_steps=2, eval_dataset=prompts(3), save_strategy="steps", save_steps=2)
    middle = time.perf_counter()
    time.sleep(0.3)  # between making and training: not the run's
    again = time.perf_counter()
    trainer.train()
    wall = time.perf_counter() - again + middle - start
    breakdown = json.loads((trainer._folder / "time_breakdown.json").read_text())
    assert set(breakdown["phases"]) == set(PHASES)
    assert sum(phase["seconds"] for phase in breakdown["phases"].values()) == pytest.approx(breakdown["wall_s"])
    assert 0.95 * wall <= breakdown["wall_s"] <= wall
    assert all(phase["seconds"] > 0 for phase in breakdown["phases"].values())
    assert {name for name, phase in breakdown["phases"].items() if phase["kind"] == "once"} == {"setup"}


def test_the_clock_is_in_one_phase_at_a_time_and_stands_still_between():
    watch = Stopwatch()
    watch.stop()
    before = watch.seconds()
    time.sleep(0.02)
    assert watch.seconds() == before
    watch.enter("generate")
    with watch.during("eval"):
        time.sleep(0.02)
    seconds = watch.seconds()
    assert watch.phase == "generate" and seconds["eval"] >= 0.02 > seconds["generate"]


def test_both_pictures_are_drawn(make_trainer):
    trainer = make_trainer(max_steps=3, eval_dataset=prompts(3), eval_steps=1)
    trainer.train()
    for name in ("evolution.png", "time_breakdown.png"):
        with Image.open(trainer._folder / name) as picture:
            assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_the_legend_of_the_times_has_the_colours_of_the_bars(tmp_path):
    save_time_breakdown(tmp_path / "times.png", {**dict.fromkeys(PHASES, 0.1), "generate": 9.0})
    with Image.open(tmp_path / "times.png") as picture:
        width, height = picture.size
        legend = picture.convert("RGB").crop((width // 2, height // 2, width, height))  # the long bar is above
    colours = {f"#{red:02x}{green:02x}{blue:02x}" for _, (red, green, blue) in legend.getcolors(1 << 24)}
    assert colours >= {ONCE, PER_STEP}


def test_history_has_a_line_for_each_step_when_the_step_ends(make_trainer):
    lines = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            lines.append(len(read_history(trainer._folder / "results.jsonl")))

    trainer = make_trainer(max_steps=3, completions_steps=2, callbacks=[Count()])
    trainer.train()
    assert lines == [1, 2, 3]
    records = read_history(trainer._folder / "results.jsonl")
    for record in records:
        fitness = record["fitness"]
        assert len(fitness) == 6 and record["best"] == max(fitness) == fitness[record["best_member"]]
        assert record["mean"] == pytest.approx(sum(fitness) / 6)
        assert min(fitness) <= record["percentiles"]["20"] <= record["percentiles"]["80"] <= max(fitness)
    assert ["completions" in record for record in records] == [False, True, False]


def test_history_is_cut_after_a_step_and_loses_a_half_written_line(tmp_path):
    path = tmp_path / "results.jsonl"
    history = History(path)
    for step in range(1, 5):
        history.append({"step": step, "value": float("nan")})
    with path.open("a") as file:
        file.write('{"step": 5, "va')
    assert [record["step"] for record in read_history(path)] == [1, 2, 3, 4]
    history.cut(2)
    assert read_history(path) == [{"step": 1, "value": None}, {"step": 2, "value": None}]
    history.cut(0)
    assert path.read_text() == ""
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 1 is damaged"):
        read_history(path)


def test_a_history_that_is_no_text_is_named(tmp_path):
    (tmp_path / "results.jsonl").write_bytes(b'{"step": 1}\n\xff\n')
    with pytest.raises(ValueError, match=r"results\.jsonl is no UTF-8 at byte 12"):
        read_history(tmp_path / "results.jsonl")


def test_the_centre_is_evaluated_every_eval_steps_and_at_the_end_on_one_fixed_subset(make_trainer):
    seen = []

    def reward(completions, number, **columns):
        seen.append(number)
        return [float(len(set(text))) for text in completions]

    trainer = make_trainer(
        max_steps=5, eval_steps=2, eval_dataset=prompts(20), eval_prompts=4, reward_funcs=reward, temperature=0.0
    )
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert [entry["step"] for entry in evaluations] == [2, 4, 5]
    subsets = [tuple(numbers) for numbers in seen if len(numbers) == 4]
    assert len(subsets) == 3 and len(set(subsets)) == 1 and subsets[0] == tuple(sorted(set(subsets[0])))
    assert evaluations[0]["eval_loss"] == -evaluations[0]["eval_reward"]
    assert trainer.evaluate()["eval_reward"] == evaluations[-1]["eval_reward"]


def test_several_evaluation_sets_are_named(make_trainer):
    trainer = make_trainer(eval_dataset={"easy": prompts(2), "hard": prompts(3)}, max_steps=1)
    trainer.train()
    names = [r["evaluation"] for r in read_history(trainer._folder / "results.jsonl") if "evaluation" in r]
    assert names == ["eval_easy", "eval_hard"]


def test_the_progress_bar_shows_the_last_evaluation_of_the_centre(make_trainer, capsys):
    make_trainer(disable_tqdm=False, eval_dataset=prompts(2), eval_steps=1, max_steps=2).train()
    assert "eval=" in capsys.readouterr().err
