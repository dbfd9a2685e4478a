"""What is not run of the suites of others, and why. Names are theirs."""

from __future__ import annotations

LEFT_OUT = {
    "torch.optim": {
        "complex, complex_2d": "LNB takes real parameters; others are refused by name",
        "rosenbrock_sparse": "LNB takes dense gradients; sparse ones are refused",
        "foreach_matches_forloop, fused_matches_forloop, set_default_dtype_works_with_foreach, defaults_changed_to_foreach, "
        "foreach_large_tensor, fused_large_tensor, peak_memory_foreach": "LNB has one implementation",
        "fused_does_not_step_if_foundinf, grad_scaling_autocast_fused_optimizers": "as above; the scaler's own skipping is run",
        "capturable, maximize, differentiable inputs": "refused by name: see `lnb/groups.py`",
        "state_dict_with_cuda_params, fused_cpu_matches_cuda, mixed_device_dtype, forloop_goes_right_direction_multigpu": "they "
        "need a GPU; dtypes of one group are mixed on the CPU",
        "can_load_older_state_dict, load_nontensor_step": "states have a format number of their own (`lnb_format`), and no older "
        "ones without it",
        "test_lrscheduler, test_swa_utils": "schedulers have their tests in `tests/optimizer/test_optimizer_contract.py`",
    },
    "accelerate": {
        "test_distributed_sync, test_distributed_sync_multiple_fwd (1 rank); test_noop_sync (2 ranks)": "the script runs "
        "them with that number of processes only",
        "test_gradient_accumulation": "the script runs it on accelerators only; accumulation with an optimizer is run",
        "check_seedable_sampler_in_batch_sampler_shard (1 rank)": "the script runs it on several ranks only",
        "test_split_between_processes_dataset": "needs `datasets`; no optimizer in it",
        "test_ops, test_merge_weights, test_notebook, test_ddp_comm_hook, test_distributed_data_loop": "no optimizer, or a GPU",
    },
    "Lightning": {
        "BoringDataModuleNoLen, IterableBoringDataModule": "data of other shapes for the same loops",
        "Net": "a network without a module of its own; any other model does as well",
    },
    "torch.distributed.checkpoint": {
        "FSDP, FSDP2, tensor parallel, several ranks": "parameters are whole on every rank",
        "_optim_in_backward": "a step for every parameter alone; LNB's steps are of whole layers",
    },
}
