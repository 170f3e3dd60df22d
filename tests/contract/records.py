"""What our trainers override and use of their parents, with the parameters that the parents' members have.

The same in the lowest and the highest allowed version of every package. `None` stands beside what is no function. A
new override or use belongs here, which is the moment to think of whether the parent may be relied on for it.
"""

_OF_EVERY_TRAINER = {
    "_clip_grad_norm": "self, model",
    "_finalize_training": "self, trial, num_train_samples, start_time",
    "_get_grad_norm": "self, model, grad_norm",
    "_get_output_dir": "self, trial",
    "_load_best_model": "self",
    "_load_from_checkpoint": "self, resume_from_checkpoint, model",
    "_load_optimizer_and_scheduler": "self, checkpoint",
    "_load_rng_state": "self, checkpoint",
    "_load_scaler": "self, checkpoint",
    "_prepare_for_training": "self, max_steps, train_dataloader, resume_from_checkpoint",
    "_push_from_checkpoint": "self, checkpoint_folder",
    "_run_epoch": "self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, "
    "ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch",
    "_save_checkpoint": "self, model, trial",
    "evaluation_loop": "self, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix",
    "log": "self, logs, start_time",
    "train": "self, resume_from_checkpoint, trial, ignore_keys_for_eval",
}
_OF_TRL = {
    "_name": None,
    "_tag_names": None,
    "compute_loss": "self, model, inputs, return_outputs, num_items_in_batch",
    "get_batch_samples": "self, epoch_iterator, num_batches, device",
}

# Parent -> what our trainer overrides of it.
OVERRIDDEN: dict[str, dict[str, str | None]] = {
    "RewardTrainer": {
        **_OF_EVERY_TRAINER,
        **_OF_TRL,
        "__init__": "self, model, args, data_collator, train_dataset, eval_dataset, processing_class, "
        "compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics, "
        "quantization_config, peft_config",
        "_prepare_dataset": "self, dataset, processing_class, args, dataset_name",
        "_set_signature_columns_if_needed": "self",
        "create_model_card": "self, model_name, dataset_name, tags",
        "save_model": "self, output_dir, _internal_call",
    },
    "SFTTrainer": {
        **_OF_EVERY_TRAINER,
        **_OF_TRL,
        "__init__": "self, model, args, data_collator, train_dataset, eval_dataset, processing_class, "
        "compute_loss_func, compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, "
        "preprocess_logits_for_metrics, quantization_config, peft_config, formatting_func",
        "_prepare_dataset": "self, dataset, processing_class, args, packing, formatting_func, dataset_name",
    },
    "DPOTrainer": {
        **_OF_EVERY_TRAINER,
        **_OF_TRL,
        "__init__": "self, model, ref_model, args, data_collator, train_dataset, eval_dataset, processing_class, "
        "compute_metrics, callbacks, optimizers, quantization_config, peft_config",
        "_prepare_dataset": "self, dataset, processing_class, args, dataset_name",
        "_set_signature_columns_if_needed": "self",
    },
    "Trainer": {
        **_OF_EVERY_TRAINER,
        "__init__": "self, model, args, data_collator, train_dataset, eval_dataset, processing_class, model_init, "
        "compute_loss_func, compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, "
        "preprocess_logits_for_metrics",
        "create_optimizer": "self, model",
        "evaluate": "self, eval_dataset, ignore_keys, metric_key_prefix",
        "floating_point_ops": "self, inputs",
        "get_eval_dataloader": "self, eval_dataset",
        "get_total_train_batch_size": "self, args",
        "get_train_dataloader": "self",
        "save_model": "self, output_dir, _internal_call",
        "training_step": "self, model, inputs, num_items_in_batch",
    },
}
# Overrides that nothing but a user calls.
CALLED_BY_USERS = {"__init__", "train"}

_USED_BY_EVERY_TRAINER = {
    "accelerator": None,
    "add_callback": "callback",
    "args": None,
    "is_deepspeed_enabled": None,
    "is_fsdp_enabled": None,
    "is_local_process_zero": "",
    "is_world_process_zero": "",
    "model": None,
    "remove_callback": "callback",
    "state": None,
}
_USED_BY_A_POLICY = {
    "_metrics": None,
    "_total_train_tokens": None,
    "compute_loss_context_manager": "",
    "eval_dataset": None,
    "model_wrapped": None,
    "processing_class": None,
    "train_dataset": None,
}

# Parent -> what our trainer reads or sets of it, as it is when the parent is made and before it trains.
USED: dict[str, dict[str, str | None]] = {
    "RewardTrainer": {
        **_USED_BY_EVERY_TRAINER,
        "_signature_columns": None,
        "_total_train_tokens": None,
        "_tp_size": None,
        "data_collator": None,
        "eval_dataset": None,
        "evaluate": "eval_dataset, ignore_keys, metric_key_prefix",
        "loss_is_scaled_for_ga": None,
        "processing_class": None,
        "train_dataset": None,
    },
    "SFTTrainer": {
        **_USED_BY_EVERY_TRAINER,
        **_USED_BY_A_POLICY,
        "_prepare_inputs": "inputs",
        "compute_loss_func": None,
        "get_test_dataloader": "test_dataset",
        "get_tp_size": "",
    },
    "DPOTrainer": {
        **_USED_BY_EVERY_TRAINER,
        **_USED_BY_A_POLICY,
        "_is_vision_dataset": None,
        "_signature_columns": None,
        "_tokenizer": None,
        "aux_loss_enabled": None,
        "beta": None,
        "data_collator": None,
        "ld_alpha": None,
        "precompute_ref_logps": None,
        "ref_model": None,
    },
    "Trainer": {
        **_USED_BY_EVERY_TRAINER,
        "callback_handler": None,
    },
}

# What `_compat.py` imports of the packages below, with the parameters of functions.
IMPORTED: dict[str, str | None] = {
    "peft.PeftModel": None,
    "peft.tuners.tuners_utils.BaseTuner": None,
    "peft.tuners.tuners_utils.BaseTunerLayer": None,
    "peft.utils.other.AuxiliaryTrainingWrapper": None,
    "transformers.AutoModelForSequenceClassification": None,
    "transformers.PreTrainedModel": None,
    "transformers.PretrainedConfig": None,
    "trl.kernels.chunked_logprob": None,
    "trl.models.prepare_fsdp": "model, accelerator",
    "trl.trainer.reward_trainer.suppress_seqcls_warning": "",
    "trl.trainer.utils": None,
    "trl.trainer.utils.add_fused_lm_head": "model, temperature, cast_lm_head_to_fp32, outputs",
    "trl.trainer.utils.create_model_from_path": "model_id, architecture, **kwargs",
}
# What it reads or replaces in them.
REACHED_INTO = {
    "peft.tuners.tuners_utils.BaseTuner.disable_adapter_layers",
    "peft.tuners.tuners_utils.BaseTunerLayer._active_adapter",
    "peft.tuners.tuners_utils.BaseTunerLayer._disable_adapters",
    "peft.tuners.tuners_utils.BaseTunerLayer.active_adapters",
    "peft.tuners.tuners_utils.BaseTunerLayer.adapter_layer_names",
    "peft.tuners.tuners_utils.BaseTunerLayer.other_param_names",
    "peft.utils.other.AuxiliaryTrainingWrapper.active_adapters",
    "peft.utils.other.AuxiliaryTrainingWrapper.adapter_layer_names",
    "peft.utils.other.AuxiliaryTrainingWrapper.other_param_names",
    "transformers.AutoModelForSequenceClassification._model_mapping",
    "transformers.PreTrainedModel._keep_in_fp32_modules_strict",
    "trl.kernels.chunked_logprob._backward_tile",
    "trl.kernels.chunked_logprob._forward_tile",
    "trl.trainer.utils._use_triton",
}
