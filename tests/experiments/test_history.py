"""What a record keeps of a log."""

from alignkit.experiments.history import MOST_ROWS, final_training_loss, trimmed


def test_rows_keep_the_curves_and_lose_times_and_the_rest():
    log = [
        {"loss": 0.7, "logratio/chosen": 0.3, "logratio/margin": 0.1, "entropy": 2.0, "step": 1, "epoch": 0.5},
        {"eval_loss": 0.6, "eval_runtime": 3.0, "eval_dev_rewards/margins": 0.2, "step": 1, "epoch": 0.5},
        {"train_runtime": 9.0, "train_loss": 0.7, "step": 1, "epoch": 0.5},
    ]
    assert trimmed(log) == [
        {"loss": 0.7, "logratio/chosen": 0.3, "logratio/margin": 0.1, "step": 1, "epoch": 0.5},
        {"eval_loss": 0.6, "eval_dev_rewards/margins": 0.2, "step": 1, "epoch": 0.5},
    ]


def test_a_long_log_is_thinned_but_keeps_every_evaluation_and_its_end():
    log = [{"loss": 1.0, "step": step, "epoch": 0.0} for step in range(1, 1002)]
    log += [{"eval_loss": 1.0, "step": step, "epoch": 0.0} for step in range(300)]
    kept = trimmed(log)
    steps = [row["step"] for row in kept if "loss" in row]
    assert len(steps) <= MOST_ROWS + 1 and steps[:3] == [1, 7, 13] and steps[-1] == 1001
    assert sum("eval_loss" in row for row in kept) == 300


def test_the_final_loss_is_the_mean_over_the_steps_of_the_last_epoch():
    rows = [(10, 0.5, 9.0), (20, 1.0, 5.0), (30, 1.5, 4.0), (35, 1.75, 1.0)]
    log = [{"loss": loss, "step": step, "epoch": epoch} for step, epoch, loss in rows]
    assert final_training_loss(log) == (10 * 4.0 + 5 * 1.0) / 15
    assert final_training_loss(log[:2]) == (10 * 9.0 + 10 * 5.0) / 20
    assert final_training_loss([{"eval_loss": 1.0, "step": 1, "epoch": 1.0}]) is None
