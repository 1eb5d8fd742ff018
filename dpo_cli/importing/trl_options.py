"""The options of TRL 1.16 on transformers 5.24, and what each becomes here."""

from __future__ import annotations

from dpo_cli.importing.huggingface import NO_ADAPTERS
from dpo_cli.importing.options import Table, becomes, harmless, lost, table, with_defaults

VERSION = "TRL 1.16"
SPEED = "speed or memory only"
LOGS = "metrics.jsonl has every number; the console shows progress"
ATTENTION = "attention runs through SDPA, over groups of answers where the model can: model.attention"
HUB = "nothing is uploaded: final/ is a plain Hugging Face folder, upload it with hf upload"
BY_TOKENS = "evaluation works in micro-batches of tokens"
ONE_ORDER = "rows are shuffled anew in every pass, decided by seed"
UNUSED = "of other trainers: without effect on preference losses in TRL"

_LENGTH = [
    *becomes("train.epochs", "whole numbers", num_train_epochs=3.0),
    *becomes("train.max_steps, train.epochs", "the data are repeated until then", max_steps=-1),
    *becomes(
        "train.batch_size",
        "per_device_train_batch_size x gradient_accumulation_steps x processes (`--processes N`)",
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
    ),
    *becomes("seed", seed=42),
    *lost("one seed decides everything here, the order of rows too", data_seed=None),
    *lost(ONE_ORDER, train_sampling_strategy="random"),
    *lost("the last, smaller batch of a pass is always kept", dataloader_drop_last=False),
    *harmless("memory is bounded by train.tokens_per_micro_batch", auto_find_batch_size=False),
]
_OPTIMISER = [
    *becomes("optim.lr", learning_rate=5e-5),
    *becomes(
        "optim",
        "adamw_torch, adamw_torch_fused, adamw_8bit, adamw_bnb_8bit, paged_adamw_32bit, paged_adamw_8bit, rmsprop; "
        "others become adamw",
        optim="adamw_torch_fused",
    ),
    *becomes("optim.betas", adam_beta1=0.9, adam_beta2=0.999),
    *becomes("optim.eps", adam_epsilon=1e-8),
    *becomes("optim.weight_decay", "never on biases and norms, as there", weight_decay=0.0),
    *becomes("optim.max_grad_norm", "0 becomes null", max_grad_norm=1.0),
    *becomes(
        "optim.schedule",
        "linear, cosine, constant, constant_with_warmup, inverse_sqrt, cosine_with_min_lr; others become linear",
        lr_scheduler_type="linear",
    ),
    *becomes("optim.min_lr_ratio", "min_lr or min_lr_rate; nothing else", lr_scheduler_kwargs=None),
    *becomes("optim.warmup_ratio, optim.warmup_steps", "under 1 it is a share of the run", warmup_steps=0),
    *lost("optimisers take no other settings", optim_args=None),
    *lost("all weights are trained, by one optimiser", optim_target_modules=None),
    *lost("no noise is added to embeddings", neftune_noise_alpha=None),
]
_PRECISION = [
    *becomes("train.precision", "weights are float32 in either case", bf16=False),
    *lost("float16 is not supported: bfloat16 stands in its place", fp16=False),
    *harmless("evaluation runs in train.precision", bf16_full_eval=False, fp16_full_eval=False),
    *harmless(SPEED, tf32=None, torch_compile=False, torch_compile_backend=None, torch_compile_mode=None),
    *harmless(
        "memory is bounded by train.tokens_per_micro_batch",
        gradient_checkpointing=None,
        gradient_checkpointing_kwargs=None,
        activation_checkpointing=None,
        activation_checkpointing_kwargs=None,
        torch_empty_cache_steps=None,
    ),
    *harmless(SPEED, use_liger_kernel=False, liger_kernel_config=None, use_cache=False),
    *harmless("the device is the machine's", use_cpu=False),
    *harmless("a run is always repeatable on the same machine", full_determinism=False),
]
_EVALUATION = [
    *becomes("data.eval, train.eval_every", "no and steps; every epoch can't be given", eval_strategy="no"),
    *becomes("train.eval_every", "whole updates", eval_steps=None),
    *becomes("train.keep_best", "final/ is the last model in any case", load_best_model_at_end=False),
    *becomes("train.keep_best", metric_for_best_model=None),
    *harmless("the loss is best at its lowest, other metrics at their highest", greater_is_better=None),
    *harmless("every run is evaluated before the first update and after the last", eval_on_start=False, eval_delay=0),
    *harmless(
        BY_TOKENS,
        per_device_eval_batch_size=8,
        prediction_loss_only=False,
        eval_do_concat_batches=True,
        eval_use_gather_object=False,
        eval_accumulation_steps=None,
        include_for_metrics=[],
        batch_eval_metrics=False,
    ),
    *harmless("the command says what is done", do_train=False, do_eval=False, do_predict=False),
]
_CHECKPOINTS = [
    *becomes("train.save_every", "no and steps", save_strategy="steps"),
    *becomes("train.save_every", "whole updates", save_steps=500),
    *becomes("train.keep_last", "2 or more", save_total_limit=None),
    *harmless("checkpoints are always whole, so that a run can go on", save_only_model=False),
    *harmless("there is one machine", save_on_each_node=False),
    *harmless("SIGTERM and SIGINT always save", enable_jit_checkpoint=False),
    *harmless(
        "checkpoints of other tools can't be gone on from; of ours: resume=auto",
        resume_from_checkpoint=None,
        ignore_data_skip=False,
        restore_callback_states_from_checkpoint=False,
    ),
]
_LOGS = [
    *becomes("run_dir", output_dir=None),
    *becomes("train.log_every", "whole updates", logging_steps=500),
    *becomes("tracker.mode", "without wandb it becomes disabled", report_to="none"),
    *becomes("tracker.run_name", run_name=None),
    *harmless(
        LOGS,
        logging_strategy="steps",
        logging_first_step=False,
        log_on_each_node=True,
        include_num_input_tokens_seen="no",
        log_level="passive",
        log_level_replica="warning",
        disable_tqdm=None,
        skip_memory_metrics=True,
        debug="",
    ),
    *harmless("a loss that is not finite is no update (train.nonfinite_limit)", logging_nan_inf_filter=True),
    *harmless(
        "there is no trackio; tracker=wandb, tensorboard or mlflow, and tracker.project names the project",
        project="huggingface",
        trackio_space_id=None,
        trackio_bucket_id=None,
        trackio_static_space_id=None,
    ),
    *harmless(
        HUB,
        push_to_hub=False,
        hub_token=None,
        hub_private_repo=None,
        hub_model_id=None,
        hub_strategy="every_save",
        hub_always_push=False,
        hub_revision=None,
    ),
]
_MACHINE = [
    *becomes("engine.zero_stage", "the stage, from keys or from the file's name", deepspeed=None),
    *becomes("engine.zero_stage", "ZeRO 3 in place of FSDP", fsdp=None),
    *harmless("ZeRO 3 in place of FSDP has no settings of it", fsdp_config=None),
    *harmless(
        "DeepSpeed shares out the work: engine.zero_stage, launch.num_processes",
        accelerator_config=None,
        parallelism_config=None,
        average_tokens_across_devices=True,
        local_rank=-1,
        ddp_find_unused_parameters=None,
        ddp_bucket_cap_mb=None,
        ddp_broadcast_buffers=None,
        ddp_static_graph=None,
        ddp_backend=None,
        ddp_timeout=1800,
    ),
    *harmless(
        "rows are tokenised before the run and kept in memory",
        dataloader_num_workers=0,
        dataloader_pin_memory=True,
        dataloader_persistent_workers=False,
        dataloader_prefetch_factor=None,
        dataloader_multiprocessing_context=None,
        dataloader_in_order=True,
        remove_unused_columns=True,
        label_names=None,
        length_column_name="length",
    ),
    *harmless(UNUSED, label_smoothing_factor=0.0),
]

TRAINING = table(_LENGTH, _OPTIMISER, _PRECISION, _EVALUATION, _CHECKPOINTS, _LOGS, _MACHINE)
"""transformers' TrainingArguments, with its defaults."""

_BASE = with_defaults(TRAINING, learning_rate=1e-6, logging_steps=10, gradient_checkpointing=True, bf16=None)
_MODEL = [
    *becomes("model.revision", "revision, and dtype for train.precision; nothing else", model_init_kwargs=None),
    *lost("code from a hub is never run: the model must be one that transformers knows", trust_remote_code=False),
    *harmless("dropout is always off", disable_dropout=True),
    *becomes("data.workers", "processes that tokenise", dataset_num_proc=None),
    *becomes(
        "data.max_length, data.max_prompt_length",
        "null becomes 1000000; for CPO and ORPO 512, as there",
        max_length=1024,
    ),
]
_AUX_LOSS = lost("there is no load-balancing loss for mixtures of experts", router_aux_loss_coef=None)
_PADDING = harmless("there is no padding", pad_to_multiple_of="auto")
_REFERENCE = [
    *harmless(
        "always done, once for all runs with the same reference and rows; reference.mode=live does without",
        precompute_ref_log_probs=False,
        precompute_ref_batch_size=None,
    ),
    *becomes("reference.mode", "live, with the two below", sync_ref_model=False),
    *becomes("reference.update_mix", ref_model_mixup_alpha=0.6),
    *becomes("reference.update_every", ref_model_sync_steps=512),
    *harmless("memory is bounded by train.tokens_per_micro_batch", activation_offloading=False),
]
_OF_BOTH = [
    *lost("eval.samples=64 writes answers to held-out prompts, before and after", generate_during_eval=False),
    *lost("encoder-decoder models are not supported", is_encoder_decoder=None, max_completion_length=None),
]

DPO = _BASE | table(
    _MODEL,
    _AUX_LOSS,
    _PADDING,
    _REFERENCE,
    becomes("loss", "a name, or several with loss_weights (loss=sum)", loss_type=["sigmoid"]),
    becomes("loss.weights", "a second loss sft of a first with weight 1 becomes loss.sft_weight", loss_weights=None),
    becomes("loss.beta", beta=0.1),
    becomes(
        "loss.label_smoothing",
        "with robust, exo_pair, aot, aot_unpaired; TRL ignores it elsewhere, sigmoid included",
        label_smoothing=0.0,
    ),
    becomes("loss.ld_alpha", ld_alpha=None),
    becomes("loss.divergence", f_divergence_type="reverse_kl"),
    becomes("loss.divergence_alpha", f_alpha_divergence_coef=0.5),
    becomes("loss.wpo", use_weighting=False),
    becomes("loss.tau", "with discopop", discopop_tau=0.05),
    becomes(
        "data.max_prompt_length, data.truncate_prompt", "keep_start; keep_end nearly", truncation_mode="keep_start"
    ),
    harmless("there is no padding (TRL 1.16 pads whatever it says)", padding_free=False),
    harmless("there is no padding", pad_token=None),
)
"""DPOConfig."""

KTO = with_defaults(_BASE, train_sampling_strategy="sequential") | table(
    _MODEL,
    _AUX_LOSS,
    _PADDING,
    _REFERENCE,
    becomes("loss", "kto or apo_zero_unpaired", loss_type="kto"),
    becomes("loss.beta", beta=0.1),
    becomes("loss.desirable_weight", "with kto", desirable_weight=1.0),
    becomes("loss.undesirable_weight", "with kto", undesirable_weight=1.0),
)
"""KTOConfig."""

CPO = _BASE | table(
    _MODEL,
    _OF_BOTH,
    becomes("loss", "cpo, hinge, ipo, simpo, alphapo", loss_type="sigmoid"),
    becomes("loss.beta", beta=0.1),
    becomes("loss.label_smoothing", "with cpo, simpo and alphapo", label_smoothing=0.0),
    becomes("loss.sft_weight", "stays on for simpo unless it is 0, but not for alphapo", cpo_alpha=1.0),
    becomes("loss.gamma_ratio", "divided by beta", simpo_gamma=0.5),
    becomes("loss.alpha", "with simpo and alphapo", alpha=0.0),
)
"""CPOConfig: CPO, SimPO, AlphaPO."""

ORPO = _BASE | table(
    _MODEL,
    _OF_BOTH,
    becomes("loss.beta", "the paper's lambda", beta=0.1),
    harmless("there is no padding", padding_value=None),
)
"""ORPOConfig."""

_ADAPTERS = lost(
    NO_ADAPTERS,
    use_peft=False,
    lora_r=16,
    lora_alpha=32,
    lora_dropout=0.05,
    lora_target_modules=None,
    lora_target_parameters=None,
    lora_modules_to_save=None,
    lora_task_type="CAUSAL_LM",
    use_rslora=False,
    use_dora=False,
    load_in_8bit=False,
    load_in_4bit=False,
    bnb_4bit_quant_type="nf4",
    use_bnb_nested_quant=False,
    bnb_4bit_quant_storage=None,
)
SCRIPT = table(
    becomes("model.path", model_name_or_path=None),
    becomes("model.revision", model_revision="main"),
    becomes("train.precision", "bfloat16 weights become float32 weights with bfloat16 products", dtype="float32"),
    harmless(ATTENTION, attn_implementation=None),
    _ADAPTERS,
    becomes("data.path", dataset_name=None),
    becomes("data.subset", dataset_config=None),
    becomes("data.split", dataset_train_split="train"),
    becomes("data.eval", "where it is evaluated", dataset_test_split="test"),
    becomes(
        "data.path, data.split, data.subset, data.mix",
        "several become data.mix, fraction its weight; columns are found by their names",
        datasets=[],
    ),
    becomes("data.eval", "a share of the prompts; a number of rows can't be given", test_split_size=None),
    becomes("data.streaming", "rows are shuffled all the same", dataset_streaming=False),
    becomes("data.streaming", "of datasets", streaming=False),
    harmless(SPEED, ignore_bias_buffers=False),
)
"""The arguments of `trl dpo` beside the trainer's: ModelConfig, ScriptArguments, DatasetMixtureConfig."""

OLD_TRAINING = table(
    becomes("optim.warmup_ratio", warmup_ratio=None),
    becomes("data.eval, train.eval_every", "now eval_strategy", evaluation_strategy=None),
    lost(ONE_ORDER, group_by_length=None),
    lost("adamw stands in its place", adafactor=None),
    harmless(LOGS, logging_dir=None, _n_gpu=None, include_tokens_per_second=None, include_inputs_for_metrics=None),
    harmless("run_dir must be new or empty, or resume=auto", overwrite_output_dir=None),
    harmless("the device is the machine's", no_cuda=None, use_mps_device=None, use_ipex=None, jit_mode_eval=None),
    harmless("train.precision decides", half_precision_backend=None, fp16_backend=None, fp16_opt_level=None),
    harmless(HUB, hub_model_revision=None, push_to_hub_model_id=None, push_to_hub_organization=None),
    harmless(HUB, push_to_hub_token=None),
    harmless("checkpoints are always safetensors", save_safetensors=None),
    harmless(
        "DeepSpeed shares out the work: engine.zero_stage, launch.num_processes",
        dispatch_batches=None,
        split_batches=None,
        fsdp_min_num_params=None,
        fsdp_transformer_layer_cls_to_wrap=None,
        tpu_num_cores=None,
        ray_scope=None,
    ),
)
"""What transformers' TrainingArguments no longer have."""

OLD_TRL = table(
    becomes("data.max_prompt_length", max_prompt_length=None),
    becomes("train.precision", "now dtype", torch_dtype=None),
    becomes("loss.sft_weight", "now the loss sft", rpo_alpha=None),
    becomes("loss.reference_free", reference_free=None),
    becomes(
        "data.path, data.split, data.mix",
        "alignment-handbook; a share becomes a slice, such as train[:50%]",
        dataset_mixer=None,
        dataset_mixture=None,
    ),
    becomes("data.split, data.eval", "alignment-handbook; one of train and one of test", dataset_splits=None),
    becomes("data.subset", "alignment-handbook", dataset_configs=None),
    becomes("model.chat_template", "alignment-handbook; a name or a .jinja file", chat_template=None),
    becomes("loss.gamma_ratio", "SimPO's repository", gamma_beta_ratio=None),
    becomes("loss.sft_weight", "SimPO's repository", sft_weight=None),
    lost("the reference is model.path, or reference.path", ref_model_init_kwargs=None, force_use_ref_model=None),
    lost(NO_ADAPTERS, model_adapter_name=None, ref_adapter_name=None),
    lost("eval.samples=64 writes answers to held-out prompts, before and after", generate_during_eval=None),
    lost("encoder-decoder models are not supported", is_encoder_decoder=None, max_completion_length=None),
    becomes("data.template_args", "as tools, for rows that have none of their own", tools=None),
    lost(
        "rows say themselves what they are; empty system messages are not added",
        dataset_kwargs=None,
        auto_insert_empty_system_msg=None,
    ),
    harmless("there is no padding", label_pad_token_id=None, padding_value=None),
    becomes("data.workers", "alignment-handbook", preprocessing_num_workers=None),
    harmless(SPEED, use_logits_to_keep=None, use_num_logits_to_keep=None, use_liger_loss=None),
    harmless(SPEED, base_model_attribute_name=None),
    harmless("set them in the shell", env=None),
    harmless("dropout is always off, memory is bounded", no_disable_dropout=None, no_gradient_checkpointing=None),
    harmless("rows are tokenised before the run and kept in memory", no_remove_unused_columns=None),
)
"""What older TRL, the alignment handbook and SimPO's repository have."""

TRAINERS = {"dpo": DPO, "kto": KTO, "cpo": CPO, "orpo": ORPO}


def known(trainer: str) -> Table:
    """All options that a file for this trainer may have."""
    return OLD_TRAINING | OLD_TRL | SCRIPT | TRAINERS[trainer]


def known_to_any() -> Table:
    """All options of all four trainers."""
    return {name: option for trainer in TRAINERS for name, option in known(trainer).items()}
