"""From 0.1.0 to this version with jobs waiting, and back."""

from pathlib import Path
from typing import Final

from deploy.verify_compose.checkout import LONG, Site, eventually
from deploy.verify_compose.checks import expect
from deploy.verify_compose.engine import Engine

RELEASED: Final = "08fecc6"


def upgrade_and_back(engine: Engine, old: Path, new: Path, override: str) -> str:
    """Jobs that wait, jobs that ended and images outlive both directions."""
    (old / "override.yml").write_text(override)
    # That version's CPU settings replace .env: what it is to know stands there or in the command.
    files = ("--file", "docker-compose.yml", "--file", "override.yml")
    before = Site(engine, old, "", (*files, "--env-file", "deploy/cpu.env"))
    with (old / "deploy" / "cpu.env").open("a") as file:
        file.write(f"KOALA_PORT={before.port}\nKOALA_MAX_BATCH_ROWS=4\nKOALA_TORCH_THREADS=1\n")
    after = Site(engine, new, "docker-compose.yml:deploy/compose.cpu.yml:override.yml")
    after.set(KOALA_MAX_BATCH_ROWS="4", KOALA_TORCH_THREADS="1")

    before.compose("up", "--detach", "--no-build", "redis", "gateway", "worker-cpu", timeout=600)
    before.until_ready()
    done = before.submit()
    picture = before.until(done, "completed")["result"]["data"][0]["url"]
    running = before.submit(n=4, num_inference_steps=LONG)
    before.until(running, "in_progress")
    waiting = [before.submit() for _ in range(3)]

    # As the guide has it: workers first.
    after.compose("up", "--detach", "--no-deps", "--remove-orphans", "worker", timeout=600)
    after.compose("up", "--detach", timeout=600)
    after.until_ready()
    for job in (running, *waiting):
        ended = after.until(job, "completed", "failed")
        expect(ended["status"] == "completed", f"after the upgrade: {ended.get('error')}")
    expect(after.job(done)["status"] == "completed", "a job of before is gone")
    after.image(f"/v1/images/{picture.rsplit('/', 1)[1]}")
    after.draw()

    done = after.submit()
    after.until(done, "completed")
    after.compose("stop", "worker")
    waiting = [after.submit() for _ in range(3)]
    before.compose(
        "up", "--detach", "--no-build", "--remove-orphans", "redis", "gateway", "worker-cpu",
        timeout=600,
    )  # fmt: skip
    before.until_ready()
    for job in waiting:
        ended = before.until(job, "completed", "failed")
        expect(ended["status"] == "completed", f"after the roll-back: {ended.get('error')}")
    eventually(lambda: before.job(done)["status"] == "completed", "the newer version's job")
    before.draw()
    before.compose("down", "--volumes", "--remove-orphans")
    return "1 in flight, 3 waiting and 1 ended outlived the upgrade; 3 and 1 the roll-back"
