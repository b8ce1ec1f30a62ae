"""The exhibits of notebook 18 by group: the line that each bug changes, where it was found, its check and its test."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Exhibit:
    """A bug. `shows` is the curve that it is seen in; `base` is the run without it."""

    right: str
    wrong: str
    found: str
    check: str
    test: str
    shows: str = "true"
    base: str = "right"


EXHIBITS = {
    # loss and targets
    "targets not shifted": Exhibit(
        "x, y = rows[:, :-1], rows[:, 1:]",
        "x, y = rows[:, :-1], rows[:, :-1]",
        "huggingface/transformers/issues/27517",
        "assert (x[:, 1:] == y[:, :-1]).all()",
        "tests/test_loader.py::test_targets_are_the_inputs_moved_on_by_one",
    ),
    "targets shifted twice": Exhibit(
        "loss = cross_entropy(logits, y)",
        "loss = cross_entropy(logits[:, :-1], y[:, 1:])",
        "huggingface/transformers/pull/37830",
        "assert (x[:, 1:] == y[:, :-1]).all()  # where the loss is computed",
        "tests/test_model.py::test_logits_and_loss_equal_transformers",
    ),
    "no mask": Exhibit(
        "y = F.scaled_dot_product_attention(q, k, v, is_causal=True)",
        "y = F.scaled_dot_product_attention(q, k, v)",
        "huggingface/transformers/issues/48745",
        "assert torch.allclose(model(x)[:, :t], model(changed_at_t)[:, :t], atol=1e-5)",
        "tests/test_model.py::test_a_position_does_not_see_the_future",
    ),
    "mask of floats": Exhibit(
        "mask = torch.ones(T, T, dtype=torch.bool).tril()",
        "mask = torch.ones(T, T).tril()",
        "QwenAudio/CosyVoice/issues/628",
        "assert mask.dtype == torch.bool  # and the test for leaks",
        "tests/test_model.py::test_a_position_does_not_see_the_future",
    ),
    "softmax twice": Exhibit(
        "loss = cross_entropy(logits, y)",
        "loss = cross_entropy(logits.softmax(-1), y)",
        "Lightning-Universe/lightning-bolts/issues/654",
        "assert cross_entropy(100 * one_hot(y).float(), y) < 1e-3  # certain and right costs nothing",
        "tests/test_model.py::test_logits_and_loss_equal_transformers",
    ),
    "padding counted": Exhibit(
        "y[padding] = -100",
        "y[padding] = pad_id",
        "EleutherAI/gpt-neo/pull/45",
        "assert (y == -100).sum() == padding.sum()",
        "tests/test_hellaswag.py::test_every_ending_is_scored_as_transformers_scores_it_alone",
        base="padded",
    ),
    # gradients
    "not divided": Exhibit(
        "(loss / micro_steps).backward()",
        "loss.backward()",
        "Lightning-AI/lit-llama/pull/357",
        "assert isclose(norm(micro_steps=1), norm(micro_steps=4), rel_tol=1e-3)",
        "tests/test_train.py::test_one_process_of_eight_micro_steps_equals_two_of_four",
        shows="norm",
    ),
    "mean of means": Exhibit(
        "(loss * count / all_counts).backward()",
        "(loss / micro_steps).backward()",
        "huggingface/transformers/pull/34191",
        "the same, with micro-batches of unequal counts",
        "tests/test_evaluate.py::test_the_loss_is_the_mean_over_all_tokens_whatever_the_micro_batch",
        base="padded",
    ),
    "gradients not cleared": Exhibit(
        "optimizer.step(); optimizer.zero_grad()",
        "optimizer.step()",
        "wenet-e2e/wekws/pull/73",
        "assert all(p.grad is None for p in model.parameters())  # before every step",
        "tests/test_resume.py::test_killed_twenty_times_a_run_is_the_same_to_the_last_bit",
    ),
    "clipped before unscaling": Exhibit(
        "scaler.unscale_(optimizer); clip_grad_norm_(parameters, 1.0)",
        "clip_grad_norm_(parameters, 1.0); scaler.unscale_(optimizer)",
        "Lightning-AI/pytorch-lightning/issues/9599",
        "assert norm < 1000  # a norm of thousands is a scaled one",
        "tests/test_train.py::test_lower_precision_follows_fp32",
    ),
    "schedule per micro batch": Exhibit(
        "if last_micro_step: scheduler.step()",
        "scheduler.step()",
        "Lightning-AI/pytorch-lightning/issues/1476",
        "assert scheduler.last_epoch == optimizer_steps",
        "tests/test_train.py::test_one_process_of_eight_micro_steps_equals_two_of_four",
    ),
    "no bias correction": Exhibit(
        "w -= lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)",
        "w -= lr * m / (v.sqrt() + eps)",
        "dmlc/gluon-nlp/pull/1468",
        "assert isclose(abs(first_update), lr, rel_tol=1e-3)",
        "tests/test_schedule_and_optim.py::test_adamw_is_bit_identical_to_torchs",
    ),
    "everything decays": Exhibit(
        "decayed = [p for p in parameters if p.dim() >= 2]",
        "decayed = list(parameters)",
        "ServiceNow/Fast-LLM/issues/542",
        "assert (len(decayed), len(kept)) == (50, 98)  # GPT-2 124M",
        "tests/test_model.py::test_fifty_tensors_decay_and_ninety_eight_do_not",
    ),
    # several processes
    "sync too late": Exhibit(
        "with contextlib.nullcontext() if last else model.no_sync(): loss = model(x, y); loss.backward()",
        "loss = model(x, y); model.require_backward_grad_sync = last; loss.backward()",
        "karpathy/build-nanogpt/pull/30",
        "assert all(torch.equal(w, weights_of_rank_0) for w in weights_of_ranks)  # after step 1",
        "tests/test_train.py::test_one_process_of_eight_micro_steps_equals_two_of_four",
    ),
    "salted seed": Exhibit(
        "torch.manual_seed(1337)",
        'torch.manual_seed(hash("run 7") % 2**32)',
        "nv-legate/cupynumeric/pull/825",
        "assert all(torch.equal(w, weights_of_rank_0) for w in weights_of_ranks)  # before step 1",
        "tests/test_train.py::test_a_run_is_the_same_to_the_last_digit_when_repeated",
    ),
    "same text on every rank": Exhibit(
        "rows = batch[rank * own : (rank + 1) * own]",
        "rows = batch[:own]",
        "karpathy/llama2.c/issues/522",
        "assert len(set(losses_of_ranks)) == world_size  # in step 1, before they are averaged",
        "tests/test_loader.py::test_a_step_has_the_same_tokens_for_any_processes_and_micro_batch",
    ),
    # data
    "file order": Exhibit(
        "order = rng.permutation(len(sequences))",
        "order = np.arange(len(sequences))",
        "karpathy/build-nanogpt/pull/52",
        "assert abs(np.corrcoef(order[:1000], np.arange(1000))[0, 1]) < 0.2",
        "tests/test_loader.py::test_the_shuffle_is_a_bijection_that_mixes",
    ),
    "shard ends lost": Exhibit(
        "if position + B * T + 1 > len(shard): next_shard()",
        "if position + B * T * world_size + 1 > len(shard): next_shard()",
        "karpathy/build-nanogpt/issues/105",
        "assert tokens_read_in_an_epoch > 0.999 * tokens_on_disk",
        "tests/test_loader.py::test_sequences_are_the_line_of_all_shards_cut_every_t_tokens",
    ),
    "ids wrapped": Exhibit(
        "np.array(ids, dtype=np.uint32)",
        "np.array(ids).astype(np.uint16)  # of 119,547 tokens",
        "huggingface/transformers/issues/2825",
        "assert encoding.decode(shard[:1000]) == text[: len(encoding.decode(shard[:1000]))]",
        "tests/test_shards.py::test_tokens_come_back_unchanged",
        shows="printed",
    ),
    # evaluation
    "validated in training mode": Exhibit(
        "model.eval(); val_loss = evaluate(model)",
        "val_loss = evaluate(model)",
        "ipolharvard/ethos-ares/issues/20",
        "assert evaluate(model) == evaluate(model)",
        "tests/test_evaluate.py::test_it_measures_in_evaluation_mode_and_restores_the_mode",
        shows="printed",
        base="dropout",
    ),
    "validation text moves on": Exhibit(
        "val_loader.reset(); val_loss = evaluate(model, val_loader)",
        "val_loss = evaluate(model, val_loader)",
        "pytorch/torchtitan/pull/2791",
        "assert evaluate(model) == evaluate(model)",
        "tests/test_evaluate.py::test_successive_evaluations_are_of_the_same_text",
        shows="printed",
    ),
    "validated on training text": Exhibit(
        "val_loader = DataLoader(db_val)",
        "val_loader = DataLoader(db_train)",
        "HuCaoFighting/Swin-Unet/issues/135",
        "assert not {*val_files} & {*train_files}",
        "tests/test_train.py::test_validation_on_training_text_is_refused",
        shows="printed",
        base="",
    ),
    "positions begin again": Exhibit(
        "positions = torch.arange(cached, cached + T)",
        "positions = torch.arange(T)",
        "ml-explore/mlx-lm/pull/93",
        "assert torch.allclose(model(x[:, 16:], cache=model_cache(x[:, :16])), model(x)[:, 16:], atol=1e-5)",
        "tests/test_model.py::test_cached_logits_equal_uncached_ones",
        shows="printed",
    ),
    # resuming
    "resumed without optimizer": Exhibit(
        "model.load_state_dict(saved['model']); optimizer.load_state_dict(saved['optimizer'])",
        "model.load_state_dict(saved['model'])",
        "EvolvingLMMs-Lab/OneVision-Encoder/pull/65",
        "assert losses_of_20_steps == losses_of_10_steps + losses_of_10_resumed_steps",
        "tests/test_checkpoint.py::test_what_is_saved_is_the_moment_of_saving_though_training_goes_on",
    ),
    "resumed at the first text": Exhibit(
        "loader.load_state_dict(saved['loader'])",
        "loader = Loader(shards)",
        "huggingface/accelerate/issues/2016",
        "the same",
        "tests/test_loader.py::test_a_resumed_loader_goes_on_where_the_first_stopped_with_other_processes",
    ),
    "resumed at the first rate": Exhibit(
        "for step in range(saved['step'], steps): lr = schedule(step)",
        "for step in range(steps - saved['step']): lr = schedule(step)",
        "starVLA/starVLA/pull/210",
        "the same",
        "tests/test_resume.py::test_killed_twenty_times_a_run_is_the_same_to_the_last_bit",
    ),
    # numbers
    "residuals grown": Exhibit(
        "std = 0.02 * (2 * n_layer) ** -0.5",
        "std = 0.02 * (2 * n_layer) ** 0.5",
        "stanford-crfm/mistral/issues/30",
        "assert isclose(c_proj.weight.std(), 0.02 / sqrt(2 * n_layer), rel_tol=0.05)",
        "tests/test_model.py::test_initial_weights_have_the_scale_of_the_paper",
    ),
    "no loss scaling": Exhibit(
        "scaler.scale(loss).backward()  # fp16",
        "loss.backward()  # fp16",
        "karpathy/nanoGPT/issues/167",
        "assert (logits_gradient == 0).float().mean() < 0.01",
        "tests/test_outliers.py::test_fp16_skips_steps_that_overflow_and_continues",
    ),
    "weights in bf16": Exhibit(
        "with torch.autocast('cuda', torch.bfloat16): loss = model(x, y)",
        "model.to(torch.bfloat16); loss = model(x, y)",
        "meta-pytorch/torchtune/issues/2254",
        "assert next(model.parameters()).dtype == torch.float32",
        "tests/test_schedule_and_optim.py::test_fp32_copies_of_bf16_weights_learn_from_small_updates",
    ),
    "last micro batch logged": Exhibit(
        "total += loss.detach() / micro_steps",
        "total = loss.detach()",
        "karpathy/nanochat/pull/515",
        "assert isclose(logged, loss_of_the_whole_batch, rel_tol=1e-3)",
        "tests/test_telemetry.py::test_the_logged_loss_is_of_the_whole_batch",
        shows="train",
    ),
    "tokens of one rank": Exhibit(
        "tokens += B * T * micro_steps * world_size",
        "tokens += B * T * micro_steps",
        "karpathy/nanoGPT/pull/619",
        "assert tokens_logged == steps * batch_tokens",
        "tests/test_telemetry.py::test_speed_and_mfu_are_over_all_processes_and_against_the_named_peak",
        shows="tokens",
    ),
    "one lucky seed": Exhibit(
        "gain = mean(new) - mean(old)  # of several seeds each",
        "gain = new[0] - old[0]",
        "wandb/senpai/pull/992",
        "assert abs(gain) > 2 * sqrt(var(new) / len(new) + var(old) / len(old))",
        "",
        shows="seeds",
    ),
}

# part of a training run → the bugs that stand there
PLACES = {
    "text": ("ids wrapped", "shard ends lost"),
    "batch": (
        "file order",
        "same text on every rank",
        "targets not shifted",
        "padding counted",
        "resumed at the first text",
    ),
    "model": ("no mask", "mask of floats", "residuals grown", "salted seed"),
    "loss": ("targets shifted twice", "softmax twice", "mean of means"),
    "backward": ("not divided", "gradients not cleared", "sync too late", "no loss scaling"),
    "clip": ("clipped before unscaling",),
    "update": (
        *("no bias correction", "everything decays", "weights in bf16", "schedule per micro batch"),
        *("resumed without optimizer", "resumed at the first rate"),
    ),
    "evaluation": (
        *("validated in training mode", "validation text moves on", "validated on training text"),
        "positions begin again",
    ),
    "log": ("last micro batch logged", "tokens of one rank", "one lucky seed"),
}
