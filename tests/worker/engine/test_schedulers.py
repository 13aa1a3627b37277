"""Schedulers by name: each draws what diffusers draws with it, and all of them share a batch."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from koala.schedulers import SCHEDULERS
from tests.worker.engine.support import draw, images, largest_difference, run, sample
from worker.engine import Engine, Failed, Finished, ResidentPipeline, SampleRequest
from worker.engine.schedulers import Schedulers

# As a user of diffusers exchanges the scheduler of a pipeline.
BY_HAND: dict[str, tuple[Any, dict[str, Any]]] = {
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "dpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "dpm++_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpm++_2m_karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "dpm++_2m_sde": (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    "dpm++_2m_sde_karras": (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "lcm": (diffusers.LCMScheduler, {}),
}

# Those that draw fresh noise in every step.
STOCHASTIC = ["euler_a", "dpm++_2m_sde", "dpm++_2m_sde_karras", "lcm"]

REQUESTS = [
    request_
    for i, name in enumerate(SCHEDULERS)
    for request_ in (
        sample(f"{name} guided", scheduler=name, num_inference_steps=4 + i % 3, seed=i),
        sample(
            f"{name} plain",
            scheduler=name,
            num_inference_steps=7 - i % 3,
            guidance_scale=1.0,
            seed=50 + i,
        ),
        sample(f"{name} in one step", scheduler=name, num_inference_steps=1, seed=100 + i),
    )
]


@pytest.fixture
def exchanged(reference: StableDiffusionXLPipeline) -> Iterator[StableDiffusionXLPipeline]:
    """diffusers' own pipeline, whose scheduler a test may exchange."""
    own = reference.scheduler
    yield reference
    reference.scheduler = own


@pytest.fixture(scope="module")
def together(pipeline: ResidentPipeline) -> dict[str, Image.Image]:
    """All requests at once, in one batch."""
    engine = Engine(pipeline, max_rows=sum(request_.rows for request_ in REQUESTS))
    for request_ in REQUESTS:
        engine.add(request_)
    events = engine.step()
    assert engine.last_tick.samples == len(REQUESTS)
    return images([*events, *run(engine)])


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.key)
def test_every_scheduler_draws_in_company_what_diffusers_draws_with_it_alone(
    request_: SampleRequest,
    together: dict[str, Image.Image],
    exchanged: StableDiffusionXLPipeline,
) -> None:
    scheduler_class, changes = BY_HAND[str(request_.scheduler)]
    exchanged.scheduler = scheduler_class.from_config(exchanged.scheduler.config, **changes)
    (expected,) = draw(exchanged, request_)
    assert largest_difference(together[request_.key], expected) <= 1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_draws_in_company_what_it_draws_alone(
    name: str, together: dict[str, Image.Image], engine: Engine
) -> None:
    mine = [request_ for request_ in REQUESTS if request_.scheduler == name]
    for key, alone in images(run(engine, mine)).items():
        assert largest_difference(together[key], alone) <= 1


def test_schedulers_do_draw_differently(together: dict[str, Image.Image], engine: Engine) -> None:
    drawn = images(
        run(engine, [sample(name, scheduler=name, num_inference_steps=6) for name in SCHEDULERS])
    )
    same = {
        (one, other)
        for one in drawn
        for other in drawn
        if one < other and largest_difference(drawn[one], drawn[other]) <= 1
    }
    assert same == set()


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> dict[int | None, list[torch.Tensor]]:
    """All that is drawn from now on, by the seed of the generator; ``None`` for torch's own."""
    drawn: dict[int | None, list[torch.Tensor]] = defaultdict(list)
    randn = torch.randn

    def recorded(*size: Any, generator: torch.Generator | None = None, **options: Any) -> Any:
        found = randn(*size, generator=generator, **options)
        drawn[None if generator is None else generator.initial_seed()].append(found)
        return found

    monkeypatch.setattr(torch, "randn", recorded)
    return drawn


def test_a_seed_draws_bitwise_the_same_noise_alone_and_in_company(
    engine: Engine, noise: dict[int | None, list[torch.Tensor]]
) -> None:
    requests = [
        sample(name, scheduler=name, num_inference_steps=3 + i, guidance_scale=1.0, seed=10 + i)
        for i, name in enumerate(STOCHASTIC)
    ]
    run(engine, requests)
    company = dict(noise)
    assert set(company) == {request_.seed for request_ in requests}
    for request_ in requests:
        noise.clear()
        run(engine, [request_])
        alone, among = noise[request_.seed], company[request_.seed]
        # The initial noise, and that of every step but perhaps the last.
        assert len(alone) in (request_.num_inference_steps, request_.num_inference_steps + 1)
        assert len(alone) == len(among)
        assert all(torch.equal(one, other) for one, other in zip(alone, among, strict=True))


def test_the_checkpoints_settings_stay_where_a_scheduler_has_them(
    pipeline: ResidentPipeline,
) -> None:
    for name in SCHEDULERS:
        config = pipeline.new_scheduler(4, name).config
        assert config["timestep_spacing"] == "trailing"
        assert (config["beta_start"], config["beta_end"]) == (0.00085, 0.012)
    assert pipeline.new_scheduler(4, "ddim").timesteps.tolist() == [999, 749, 499, 249]


def test_a_checkpoints_own_noise_spacing_does_not_shine_through() -> None:
    own = diffusers.DPMSolverMultistepScheduler(
        use_karras_sigmas=True, algorithm_type="sde-dpmsolver++", solver_order=3
    )
    schedulers = Schedulers(own, torch.device("cpu"))
    config = schedulers.new(4, "dpm++_2m").config
    assert not config["use_karras_sigmas"]
    assert (config["algorithm_type"], config["solver_order"]) == ("dpmsolver++", 2)
    assert not schedulers.new(4, "euler").config["use_karras_sigmas"]
    assert schedulers.new(4).config["use_karras_sigmas"]


@pytest.mark.parametrize(
    ("own", "label"),
    [
        (diffusers.EulerDiscreteScheduler(), "Euler"),
        (diffusers.EulerDiscreteScheduler(use_karras_sigmas=True), "EulerDiscreteScheduler"),
        (diffusers.DPMSolverMultistepScheduler(), "DPM++ 2M"),
        (diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True), "DPM++ 2M Karras"),
        (diffusers.TCDScheduler(), "TCDScheduler"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_label_tells_what_really_draws(own: Any, label: str) -> None:
    schedulers = Schedulers(own, torch.device("cpu"))
    assert schedulers.label(None) == label
    assert schedulers.label("euler_a") == "Euler a"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scheduler": "best"}, "there is no scheduler 'best'"),
        (
            {"scheduler": "lcm", "num_inference_steps": 51},
            "the scheduler lcm draws in at most 50 steps, not 51",
        ),
    ],
)
def test_what_a_scheduler_cannot_do_fails_its_sample_only(
    changes: dict[str, Any], reason: str, engine: Engine
) -> None:
    events = run(engine, [sample("bad", **changes), sample("mate", scheduler="euler_a")])
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert (failed.key, str(failed.error)) == ("bad", reason)
    assert [event.key for event in events if isinstance(event, Finished)] == ["mate"]


def test_a_checkpoint_with_other_noise_levels_keeps_to_its_own_scheduler() -> None:
    schedulers = Schedulers(diffusers.EDMEulerScheduler(), torch.device("cpu"))
    assert len(schedulers.new(4).timesteps) == 4
    with pytest.raises(ValueError, match="made for EDMEulerScheduler and does not go with ddim"):
        schedulers.new(4, "ddim")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_name_knows_how_often_it_calls_the_model_in_a_step(
    pipeline: ResidentPipeline, name: str
) -> None:
    calls = len(pipeline.new_scheduler(20, name).timesteps)
    # The last step of those that call twice needs but one call.
    assert 20 * SCHEDULERS[name].calls_per_step - calls in (0, 1)
