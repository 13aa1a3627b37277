"""The parts of the KOALA models and of SDXL as data: the public configs, without weights.

The U-Nets are diffusers' ``UNet2DConditionModel``, the VAE its ``AutoencoderKL``; the text encoders
are transformers' CLIP, of which SDXL reads the last but one layer. Nothing here imports either.
"""

from collections.abc import Mapping
from typing import Any, Final

_SHARED: Final[Mapping[str, Any]] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    # In this class, and in SDXL's own config, this is the number of heads.
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

UNETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "koala-700m": {
        **_SHARED,
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2, 5),
        "mid_block_type": None,
    },
    "koala-1b": {
        **_SHARED,
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2, 6),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
    },
    "sdxl": {
        **_SHARED,
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
    },
}

# CLIP ViT-L/14 and OpenCLIP ViT-bigG/14, the text halves.
TEXT_ENCODER: Final[Mapping[str, Any]] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
TEXT_ENCODER_2: Final[Mapping[str, Any]] = {
    **TEXT_ENCODER,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}

VAE: Final[Mapping[str, Any]] = {
    "sample_size": 1024,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.13025,
    # Its activations exceed what fp16 can hold.
    "force_upcast": True,
}

SCHEDULER: Final[Mapping[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
