"""The served OpenAPI document and the gateway keep to each other, says schemathesis.

It reads the document from a running gateway and makes up requests that keep to it and requests
that break it, in chains too (submit, follow the job, fetch the image), with every check on.
"""

import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from koala.settings import Settings
from tests.service.fakes import FakeWorker, serving

EXAMPLES = 100
SEED = 1
OPERATIONS = 14
# What schemathesis takes for an answer to a valid request, and the 422 of an `Idempotency-Key`
# that it made up twice.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "422", "429", "5xx"]
"""


def test_no_request_shows_that_the_document_and_the_gateway_disagree(
    settings: Settings, worker: FakeWorker, tmp_path: Path
) -> None:
    # Waiting longer than this would end in a 504, which is an answer but none to learn from.
    for name in ("watercolour", "slider"):
        save_file({"layer.lora_down.weight": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    settings = settings.model_copy(update={"sync_timeout": 20.0, "lora_dir": tmp_path})
    worker.advertise(expires_at="2100-01-01T00:00:00Z")
    with serving(settings) as served, worker.working():
        # So that there is something to list before the first request is made up.
        assert served.http.post("/v1/images/generations", json={"prompt": "a"}).is_success
        (tmp_path / "schemathesis.toml").write_text(CONFIG)
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", f"{served.base_url}/openapi.json"),
            *("--checks", "all", "--mode", "all", "--phases", "examples,coverage,fuzzing,stateful"),
            *("--max-examples", str(EXAMPLES), "--seed", str(SEED), "--no-color"),
        ]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(rf"Tested:\s+{OPERATIONS}\b", done.stdout), done.stdout
        assert served.http.get("/healthz").is_success
