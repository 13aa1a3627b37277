"""The model card: ``models/demo/README.md``, filled in from ``metrics.json``."""

from __future__ import annotations

import textwrap
from typing import Any, Final

from distill.glyphs import NAMES
from distill.scenes import COLOURS

_CARD: Final = """---
license: apache-2.0
pipeline_tag: text-to-image
library_name: diffusers
tags: [text-to-image, diffusers, stable-diffusion-xl, koala, tiny]
---

# Emoji scenes: a miniature SDXL/KOALA checkpoint

A complete `StableDiffusionXLPipeline` of {total:.1f} M parameters, trained from nothing on a
CPU. It draws emoji on plain backgrounds at 64x64 pixels (also 96x64 and 64x96), and exists so
that a serving system for SDXL-shaped models can be run, tested and demonstrated anywhere: the
parts, tensors and configuration fields are those of the large models, only smaller.

![samples](samples.png)

```python
from diffusers import StableDiffusionXLPipeline

pipeline = StableDiffusionXLPipeline.from_pretrained("models/demo", add_watermarker=False)
pipeline("a koala on a blue background", num_inference_steps=10, guidance_scale=3.5).images[0]
```

## What it understands

- one of {glyphs} objects, centred: "a koala on a blue background", "koala", "a photo of a koala",
  "koala on blue", "a blue background with a koala";
- in a corner: "a koala in the top left corner on a blue background";
- two objects: "a koala to the left of a banana on a white background", "a koala above a banana",
  "a koala and a banana" (also "to the right of", "below");
- the backgrounds {colours}; white where the prompt names none.

The objects: {names}.

Sample with 4 to 30 steps and a guidance scale of 0 to 7; 10 steps and 3.5 were measured.

## Figures

{pictures} pictures at 64x64, {steps} steps, guidance scale {guidance}, fixed seeds: every object
alone on two backgrounds, in a corner, and as the first of a pair (pairs are asked for a second
time from the other side). Each picture is read back as
the nearest rendered scene in pixel space, over all layouts, objects and backgrounds, without
knowledge of the prompt; the reading is right on {renders:.1%} of exact renders and on
{trips:.1%} of autoencoder round trips. From `{command}` (see `metrics.json`):

| | right |
|---|---|
| single object | {single:.1%} |
| single object in the named corner | {corner:.1%} |
| both objects of a pair | {pair_objects:.1%} |
| both objects of a pair, in the right order | {pair_order:.1%} |
| the same pairs described from the other side ("to the right of", "below"), in the right order \
| {pair_order_reversed:.1%} |
| background | {background:.1%} |

Autoencoder round trips: {psnr:.1f} dB PSNR.

## Architecture

| part | | parameters |
|---|---|---|
| U-Net | KOALA-700M's shape (Lee et al. 2024): three levels, no mid block, one residual block per \
level, transformer depths 0, 1, 2; widths 32, 64, 128 | {unet:.2f} M |
| text encoders | two CLIP text models, width 64, 3 layers, 77 tokens | {text:.2f} M |
| autoencoder | AutoencoderKL, 4 x 4 pixels to a 4-channel latent | {vae:.2f} M |
| tokenizer | CLIP byte-level BPE; every caption word is one token, any other text encodes too | |
| scheduler | Euler, SDXL's noise schedule, noise prediction | |

Weights are stored in fp16.

## Training

`python -m distill.train`, in three phases: the autoencoder ({autoencoder_steps} steps,
{autoencoder_minutes:.0f} minutes), the U-Net with its text encoders on cached latents
({unet_steps} steps of 64, {unet_minutes:.0f} minutes; min-SNR weighting, SDXL
micro-conditioning, 10 % of captions dropped, averaged weights), and the decoder alone
({decoder_steps} steps, {decoder_minutes:.0f} minutes). Times are of two shared CPU cores,
bf16 autocast. Pictures and captions are generated from `distill/glyphs.png`.{note}

## Limits

- It knows nothing but these scenes. Other words are mostly ignored; an unknown object gives an
  arbitrary known one.
- One or two objects, one plain background; no counts, colours of objects, sizes or other styles.
- Fine detail is soft, most visibly in pairs and corners, where an object is 30 pixels wide.
- Sizes other than 64x64, 96x64 and 64x96 were not trained.

## Licence

Code and weights: Apache-2.0. The artwork in `distill/glyphs.png` comes from Noto Emoji
(copyright Google Inc., Apache-2.0), drawn with the font Noto Color Emoji (SIL Open Font License
1.1; Debian package `fonts-noto-color-emoji`); the font itself is not part of this folder.
"""


def model_card(metrics: dict[str, Any]) -> str:
    """Fill the card with the metrics that ``distill.train`` measured.

    Raises:
        KeyError: a figure is missing.
    """
    evaluation, training = metrics["evaluation"], metrics["training"]
    millions = {name: count / 1e6 for name, count in training["parameters"].items()}
    phases = ("autoencoder", "unet", "decoder")
    note = training.get("note", "")
    return _CARD.format(
        note=f"\n\n{textwrap.fill(note, 96)}" if note else "",
        total=sum(millions.values()),
        unet=millions["unet"],
        text=millions["text_encoders"],
        vae=millions["vae"],
        glyphs=len(NAMES),
        names=", ".join(NAMES),
        colours=", ".join(COLOURS),
        command=metrics["command"],
        steps=metrics["settings"]["num_inference_steps"],
        guidance=metrics["settings"]["guidance_scale"],
        psnr=metrics["autoencoder_psnr_db"]["final"],
        renders=metrics["validation"]["renders"]["everything"],
        trips=metrics["validation"]["round_trips"]["everything"],
        **{f"{name}_steps": training["optimizer_steps"][name] for name in phases},
        **{f"{name}_minutes": training["minutes"][name] for name in phases},
        **{
            key: evaluation[key]
            for key in (
                "pictures",
                "single",
                "corner",
                "pair_objects",
                "pair_order",
                "pair_order_reversed",
                "background",
            )
        },
    )
