"""Names of schedulers: ours, and those of the tools that people come from."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from koala.schedulers import SCHEDULERS, canonical_name
from koala.spec import JobSpec
from tests.support import spec

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_name_a_label_and_any_case_of_them_mean_the_same(name: str) -> None:
    label = SCHEDULERS[name].label
    assert {canonical_name(text) for text in (name, name.upper(), label, f" {label} ")} == {name}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("euler_ancestral", "euler_a"),
        ("dpm_2", "dpm2"),
        ("uni_pc", "unipc"),
        ("dpm++", "dpm++_2m"),
        ("DPM++", "dpm++_2m"),
        ("dpmpp_2m", "dpm++_2m"),
        ("dpmpp_2m_sde", "dpm++_2m_sde"),
        ("dpmpp-2m-karras", "dpm++_2m_karras"),
        ("EulerDiscreteScheduler", "euler"),
        ("EulerAncestralDiscreteScheduler", "euler_a"),
        ("DPMSolverMultistepScheduler", "dpm++_2m"),
        ("LCMScheduler", "lcm"),
    ],
)
def test_what_other_tools_call_a_scheduler_is_understood(text: str, name: str) -> None:
    assert canonical_name(text) == name


@pytest.mark.parametrize("text", ["", " ", "lms", "PNDM", "euler a karras", "DPM++ 2S a", "None"])
def test_what_is_not_offered_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be one of euler, euler_a, .*, lcm$"):
        canonical_name(text)


def test_only_lcm_limits_the_steps() -> None:
    refused = {name for name, s in SCHEDULERS.items() if s.steps_error(150)}
    assert refused == {"lcm"}
    assert SCHEDULERS["lcm"].steps_error(50) is None
    assert SCHEDULERS["lcm"].steps_error(51) == "lcm draws in at most 50 steps, not 51"


def test_a_job_of_a_gateway_that_knew_no_schedulers_still_parses() -> None:
    old = spec().model_dump(mode="json")
    del old["scheduler"]
    assert JobSpec.model_validate(old).scheduler is None


def test_a_job_names_a_scheduler_in_one_spelling_only() -> None:
    assert spec(scheduler="DPM++ 2M Karras").scheduler == "dpm++_2m_karras"
    with pytest.raises(ValidationError, match="scheduler"):
        spec(scheduler="best")


def test_the_readme_names_every_scheduler_and_no_other() -> None:
    [row] = [line for line in README.read_text().splitlines() if line.startswith("| `scheduler` |")]
    listed = row.split("|")[2].split(";")[0]
    assert [word.strip(" `") for word in listed.split(",")] == list(SCHEDULERS)
