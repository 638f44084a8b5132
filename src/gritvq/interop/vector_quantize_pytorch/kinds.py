"""Their classes and arguments, as of version 1.32."""

from __future__ import annotations

from typing import Any

from gritvq.interop.vector_quantize_pytorch.grids import fsq, lfq, residual_fsq, residual_lfq
from gritvq.interop.vector_quantize_pytorch.settings import Kind
from gritvq.interop.vector_quantize_pytorch.tables import (
    grouped_residual_vq,
    residual_sim_vq,
    residual_vq,
    sim_vq,
    vector_quantize,
)

__all__ = ["KINDS"]

_OF_TABLES: dict[str, Any] = {
    "codebook_size": None,
    "codebook_dim": None,
    "dim": None,
    "decay": 0.8,
    "eps": 1e-5,
    "freeze_codebook": False,
    "use_cosine_sim": False,
    "threshold_ema_dead_code": 0,
    "channel_last": True,
    "accept_image_fmap": False,
    "accept_3d_fmap": False,
    "commitment_weight": 1.0,
    "orthogonal_reg_weight": 0.0,
    "rotation_trick": None,
    "directional_reparam": False,
    "directional_reparam_variance": 5e-3,
    "ema_update": None,
    "learnable_codebook": None,
}
_OF_TABLES_UNUSED = (
    "kmeans_init",
    "kmeans_iters",
    "sync_kmeans",
    "sync_codebook",
    "sync_affine_param",
    "affine_param_batch_decay",
    "affine_param_codebook_decay",
    "codebook_diversity_temperature",
    "sample_codebook_temp",
    "manual_in_place_optimizer_update",
)
_OF_TABLES_TRAINING: dict[str, Any] = {
    "commitment_use_cross_entropy_loss": False,
    "orthogonal_reg_active_codes_only": False,
    "orthogonal_reg_max_codes": None,
    "codebook_diversity_loss_weight": 0.0,
    "stochastic_sample_codes": False,
    "straight_through": False,
    "manual_ema_update": False,
    "in_place_codebook_optimizer": None,
    "sync_update_v": 0.0,
    "route_gradients_to_input": True,
}
_OF_TABLES_FIXED: dict[str, Any] = {
    "layernorm_after_project_in": False,
    "vq_bridge": None,
    "affine_param": False,
    "return_zeros_for_masked_padding": True,
}
_DROPOUT = {"quantize_dropout": False, "quantize_dropout_cutoff_index": 0, "quantize_dropout_multiple_of": 1}
_OF_LEVELS = {
    **_OF_TABLES,
    **_DROPOUT,
    **{"num_quantizers": None, "shared_codebook": False, "diveq": False, "beam_size": None, "eval_beam_size": None},
}
_OF_LEVELS_UNUSED = (*_OF_TABLES_UNUSED, "mlp_kwargs", "beam_score_quantizer_weights")
_OF_LEVELS_TRAINING = {**_OF_TABLES_TRAINING, "quant_grad_frac": 0.0}
_OF_LEVELS_FIXED = {**_OF_TABLES_FIXED, "heads": 1, "implicit_neural_codebook": False}
_OF_SIMVQ: dict[str, Any] = {
    "dim": None,
    "codebook_size": None,
    "channel_first": False,
    "rotation_trick": True,
    "input_to_quantize_commit_loss_weight": 0.25,
    "commitment_weight": 1.0,
    "frozen_codebook_dim": None,
}
_OF_FSQ_UNUSED = (
    "keep_num_codebooks_dim",
    "scale",
    "allowed_dtypes",
    "projection_has_bias",
    "return_indices",
    "force_quantization_f32",
)
_OF_LFQ: dict[str, Any] = {
    "dim": None,
    "codebook_size": None,
    "entropy_loss_weight": 0.1,
    "commitment_loss_weight": 0.0,
    "diversity_gamma": 1.0,
    "soft_clamp_input_value": None,
    "channel_first": None,
    "spherical": False,
}
_OF_LFQ_UNUSED = (
    "keep_num_codebooks_dim",
    "has_projections",
    "projection_has_bias",
    "cosine_sim_project_in_scale",
    "entropy_loss_offset",
    "force_quantization_f32",
)
_OF_LFQ_TRAINING: dict[str, Any] = {
    "frac_per_sample_entropy": 1.0,
    "experimental_softplus_entropy_loss": False,
    "straight_through_activation": None,
}
_FSQ = {"levels": None, "dim": None}

KINDS = {
    "VectorQuantize": Kind(
        vector_quantize,
        {**_OF_TABLES, "heads": 1, "separate_codebook_per_head": False},
        _OF_TABLES_UNUSED,
        _OF_TABLES_TRAINING,
        _OF_TABLES_FIXED,
    ),
    "ResidualVQ": Kind(residual_vq, _OF_LEVELS, _OF_LEVELS_UNUSED, _OF_LEVELS_TRAINING, _OF_LEVELS_FIXED),
    "GroupedResidualVQ": Kind(
        grouped_residual_vq, {**_OF_LEVELS, "groups": None}, _OF_LEVELS_UNUSED, _OF_LEVELS_TRAINING, _OF_LEVELS_FIXED
    ),
    "SimVQ": Kind(sim_vq, _OF_SIMVQ, ("codebook_transform", "init_fn"), {}, {}),
    "ResidualSimVQ": Kind(
        residual_sim_vq,
        {**_OF_SIMVQ, **_DROPOUT, "num_quantizers": None},
        ("codebook_transform", "init_fn"),
        {},
        {"heads": 1},
    ),
    "FSQ": Kind(
        fsq,
        {
            **_FSQ,
            "num_codebooks": 1,
            "channel_first": False,
            "preserve_symmetry": False,
            "bound_hard_clamp": False,
            "orthogonal_rotation": False,
        },
        _OF_FSQ_UNUSED,
        {"noise_dropout": 0.0},
        {},
        holds_tensors=False,
    ),
    "ResidualFSQ": Kind(
        residual_fsq,
        {
            **_FSQ,
            **_DROPOUT,
            "num_quantizers": None,
            "is_channel_first": False,
            "soft_clamp_input_value": None,
            "bound_hard_clamp": True,
        },
        _OF_FSQ_UNUSED,
        {"noise_dropout": 0.0},
        {"num_codebooks": 1, "orthogonal_rotation": False},
        holds_tensors=False,
    ),
    "LFQ": Kind(
        lfq,
        {**_OF_LFQ, "num_codebooks": 1, "codebook_scale": 1.0, "orthogonal_rotation": False},
        _OF_LFQ_UNUSED,
        _OF_LFQ_TRAINING,
        {"cosine_sim_project_in": False},
    ),
    "ResidualLFQ": Kind(
        residual_lfq,
        {**_OF_LFQ, **_DROPOUT, "num_quantizers": None},
        _OF_LFQ_UNUSED,
        _OF_LFQ_TRAINING,
        {"num_codebooks": 1, "orthogonal_rotation": False, "cosine_sim_project_in": False},
    ),
}
