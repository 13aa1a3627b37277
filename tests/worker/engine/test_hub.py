"""A worker that is given a hub id: downloaded once, found on the disk from then on."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.koala.test_download import demo_files
from tests.koala.tiny_hub import TinyHub

LOAD = """
from koala.catalogue import HubSource
from worker.engine import ResidentPipeline

for _ in range(2):
    pipeline = ResidentPipeline.load(
        "someone/koala", device="cpu", dtype="float16", fp16_vae=HubSource(repo="someone/vae")
    )
    print("half:", pipeline.vae_is_half, flush=True)
    input()
"""


def answer(loading: subprocess.Popen[str]) -> str:
    """What it prints beside its log."""
    assert loading.stdout is not None
    return next(line for line in loading.stdout if line.startswith("half"))


def test_a_worker_downloads_a_model_once_with_the_vae_that_fp16_can_hold(tmp_path: Path) -> None:
    files = demo_files()
    config = json.loads(files["vae/config.json"])
    weights = files["vae/diffusion_pytorch_model.fp16.safetensors"]
    hub = TinyHub(
        {
            "someone/koala": files
            | {"vae/config.json": json.dumps(config | {"force_upcast": True}).encode()},
            "someone/vae": {
                "config.json": json.dumps(config).encode(),
                "diffusion_pytorch_model.safetensors": weights,
            },
        }
    )
    with subprocess.Popen(
        [sys.executable, "-c", LOAD],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as loading:
        assert loading.stdin is not None
        assert answer(loading) == "half: True\n"
        hub.close()
        asked = len(hub.requests)
        loading.stdin.write("\n\n")
        loading.stdin.flush()
        assert answer(loading) == "half: True\n"
    assert loading.returncode == 0
    assert asked
    assert len(hub.requests) == asked
