"""The numbers that training computes in."""

import torch


def half(device: str) -> torch.autocast:
    """Where it runs, computing in bfloat16 if the device does that itself; a processor that only imitates it takes five
    times as long as in float32, which it then stays with."""
    if device == "cpu":
        able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.autocast(device, torch.bfloat16, enabled=able)
    return torch.autocast(device, torch.bfloat16)
