"""What a user of the single box relies on, one function each; each says what it saw."""

import io
import json
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx
from PIL import Image

from deploy.verify_compose.checkout import LONG, Site, eventually
from deploy.verify_compose.engine import Failed

PARTS: Final = ("gateway", "worker")
SERVICES: Final = ("redis", "gateway", "worker", "prometheus")
# Each is not the default, so that its arrival can be told.
VALUES: Final = {
    "REDIS_PASSWORD": 'a/b@c#d?e%f:g"h\\i$j k',
    "KOALA_ALLOW_ANONYMOUS": "0",
    "KOALA_API_KEYS_FILE": "/keys/keys.json",
    "KOALA_LORA_DIR": "./loras",
    "KOALA_MAX_QUEUED": "77",
    "KOALA_MAX_QUEUED_PER_KEY": "66",
    "KOALA_MAX_BATCH_ROWS": "4",
    "KOALA_TORCH_THREADS": "1",
    "KOALA_SYNC_TIMEOUT": "170",
    "KOALA_LOG_LEVEL": "debug",
}

CHECKS: list[Callable[[Site], str]] = []


def check(function: Callable[[Site], str]) -> Callable[[Site], str]:
    """Add a check; they run in the order in which they stand here."""
    CHECKS.append(function)
    return function


def expect(condition: object, message: str) -> None:
    """Fail with a message unless a condition holds."""
    if not condition:
        raise Failed(message)


def secret_in(printed: str) -> str:
    """The key that ``koala keys add`` printed."""
    [secret] = re.findall(r"\b[\w-]{40,}\b", printed)
    return str(secret)


@check
def the_images_hold_what_they_need(site: Site) -> str:
    """No torch in the gateway, no CUDA in the worker, the demo model drawn by what is inside."""
    seen = []
    for part in PARTS:
        image = json.loads(site.compose("config", "--format", "json").stdout)["services"][part][
            "image"
        ]
        size = int(site.engine.inspect(image, "{{.Size}}")) // 1_000_000
        listed = site.engine.run(
            "run", "--rm", "--entrypoint", "sh", image, "-c",
            "ls /opt/koala/lib/python3*/site-packages",
        ).stdout.split()  # fmt: skip
        has_torch = "torch" in listed
        expect(has_torch == (part == "worker"), f"{part}: torch is {has_torch}")
        expect(not [name for name in listed if re.match("nvidia_c|cuda", name)], f"{part}: CUDA")
        seen.append(f"{part} {size} MB")
    return ", ".join(seen)


@check
def a_key_is_made_before_the_first_start(site: Site) -> str:
    """``docker compose run --rm gateway koala keys add``, as the guide has it."""
    made = site.compose("run", "--rm", "--no-deps", "-T", "gateway", "koala", "keys", "add", "me")
    site.key = secret_in(made.stdout)
    return "printed once"


@check
def it_comes_up(site: Site) -> str:
    """``docker compose up`` with the settings of the CPU; every health check passes."""
    began = time.monotonic()
    site.compose("up", "--detach", timeout=600)
    site.until_ready()
    ready = time.monotonic() - began
    eventually(lambda: all(map(site.is_healthy, ("redis", *PARTS))), "healthy")
    return f"ready after {ready:.0f} s, healthy after {time.monotonic() - began:.0f} s"


@check
def it_draws_over_the_published_port(site: Site) -> str:
    """A picture by POST, fetched by its URL, and kept in the volume."""
    picture = site.draw(seed=7)
    with Image.open(io.BytesIO(picture)) as one, Image.open(io.BytesIO(site.draw(seed=7))) as two:
        expect(one.size == (64, 64), str(one.size))
        expect(one.tobytes() == two.tobytes(), "the same seed gave another picture")
    return f"a PNG of {len(picture)} bytes, the same twice"


@check
def the_worker_says_where_it_draws(site: Site) -> str:
    """The line ``ready`` names the device."""
    logs = site.compose("logs", "--no-log-prefix", "worker").stdout
    [ready] = [line for line in logs.splitlines() if '"event": "ready"' in line][-1:]
    expect('"device": "cpu"' in ready, ready)
    return "device cpu"


@check
def a_worker_without_its_gpu_does_not_start(site: Site) -> str:
    """What the file for a GPU says of the device: no drawing on the CPU in silence."""
    command = ("run", "--rm", "-T", "--env", "KOALA_DEVICE=cuda", "worker")
    refused = site.compose(*command, check=False)
    said = (refused.stdout + refused.stderr).strip().splitlines()[-1]
    expect(refused.returncode == 1 and "cuda" in said, f"{refused.returncode}: {said}")
    return said


@check
def strangers_need_a_key(site: Site) -> str:
    """401 without and with a wrong one."""
    key, seen = site.key, []
    for tried in (None, "wrong"):
        site.key = tried
        seen.append(site.request("GET", "/v1/models", timeout=10).status_code)
    site.key = key
    expect(seen == [401, 401], str(seen))
    expect(site.request("GET", "/v1/models", timeout=10).status_code == 200, "the key is refused")
    return "401, 401; 200 with the key"


@check
def the_playground_is_whole(site: Site) -> str:
    """The page and every file that it names."""
    page = site.request("GET", "/", timeout=10)
    expect(page.status_code == 200 and "<html" in page.text, page.text[:100])
    files = set(re.findall(r'(?:src|href)="(/?[\w./-]+)"', page.text))
    expect(files, "the page names no files")
    for file in files:
        answer = site.request("GET", f"/{file.lstrip('/')}", timeout=10)
        expect(answer.status_code == 200, f"{file}: {answer.status_code}")
    return f"the page and {len(files)} files"


@check
def values_of_the_env_file_arrive(site: Site) -> str:
    """Every KOALA_* in it is in the containers, folders where they are mounted."""
    for part in PARTS:
        listed = site.inspect(part, "{{range .Config.Env}}{{println .}}{{end}}")
        found = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
        expect(found["KOALA_REDIS_PASSWORD"] == VALUES["REDIS_PASSWORD"], f"{part}: password")
        for name, value in VALUES.items():
            if name == "KOALA_LORA_DIR":
                expect(found[name] == "/loras", f"{part}: {name}={found[name]}")
            elif name.startswith("KOALA_") and value and "API_KEYS" not in name:
                expect(found.get(name) == value, f"{part}: {name}={found.get(name)}")
    (site.folder / "loras" / "style.safetensors").write_bytes(b"")
    for part in PARTS:
        expect("style" in site.run_in(part, "ls", "/loras"), f"{part} does not see the LoRAs")
    return f"{len(VALUES)} values, and a file in the folder of LoRAs"


@check
def a_folder_that_is_missing_is_told(site: Site) -> str:
    """Not an empty folder in its place."""
    site.set(KOALA_LORA_DIR="./no-such-folder")
    refused = site.compose("up", "--detach", check=False, timeout=600)
    site.set(KOALA_LORA_DIR=VALUES["KOALA_LORA_DIR"])
    expect(refused.returncode and "no-such-folder" in refused.stderr, refused.stderr[-300:])
    site.compose("up", "--detach", timeout=600)
    site.until_ready()
    return refused.stderr.strip().splitlines()[-1]


@check
def prometheus_scrapes_each_worker(site: Site) -> str:
    """Two workers are two targets, and all are up."""

    def targets() -> dict[str, str]:
        return {
            f"{each['labels']['job']} {each['labels']['instance']}": each["health"]
            for each in site.ask_prometheus("/targets?state=active")["activeTargets"]
        }

    def are_up(workers: int) -> bool:
        found = targets()
        count = sum(name.startswith("koala-worker") for name in found)
        return count == workers and set(found.values()) == {"up"}

    eventually(lambda: are_up(1), "one worker's target up")
    site.compose("up", "--detach", "--no-recreate", "--scale", "worker=2", timeout=600)
    eventually(lambda: are_up(2), "two workers' targets up")
    seen = targets()
    site.compose("up", "--detach", "--no-recreate", "--scale", "worker=1", timeout=600)
    alerts = site.ask_prometheus("/rules")["groups"]
    bad = [rule["name"] for group in alerts for rule in group["rules"] if rule["health"] == "err"]
    expect(not bad, f"rules that fail: {bad}")
    return ", ".join(sorted(seen))


@check
def containers_have_no_rights_to_spare(site: Site) -> str:
    """No root process, no capability, a root file system that cannot be written."""
    for service in SERVICES:
        shown = site.engine.run("top", site.container(service), "-o", "pid,uid,cmd").stdout
        uids = {line.split()[1] for line in shown.splitlines()[1:]}
        expect(uids and "0" not in uids, f"{service}: {shown}")
        status = site.run_in(service, "cat", "/proc/1/status")
        expect(re.search(r"CapEff:\s+0{16}$", status, re.M), f"{service} has capabilities")
        expect(re.search(r"NoNewPrivs:\s+1$", status, re.M), f"{service} may get new ones")
        touched = site.run_in(service, "sh", "-c", "echo x > /written", check=False)
        expect("read-only" in touched.lower(), f"{service}: {touched}")
    return f"of {len(SERVICES)} containers"


@check
def bounds_are_kept(site: Site) -> str:
    """Memory, processes and temporary files of a container end at their bounds; the rest lives."""
    seen = []
    for service in SERVICES:
        memory, pids = site.inspect(
            service, "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}"
        ).split()
        expect(int(memory) and int(pids), f"{service} is not bounded")
    hog = site.compose("exec", "-T", "gateway", "python", "-c", "x = b'x' * (2 << 30)", check=False)
    expect(hog.returncode == 137, f"2 GiB in the gateway: {hog.returncode} {hog.stderr}")
    seen.append("2 GiB in the gateway: killed")
    forks = site.run_in(
        "gateway", "python", "-c",
        "import os, signal, time\n"
        "children = []\n"
        "try:\n"
        "    while len(children) < 2000:\n"
        "        children.append(os.fork())\n"
        "        if not children[-1]: time.sleep(60); os._exit(0)\n"
        "except BlockingIOError: pass\n"
        "for child in children: os.kill(child, signal.SIGKILL); os.waitpid(child, 0)\n"
        "print(len(children))",
    )  # fmt: skip
    expect(100 < int(forks) < 256, f"forks in the gateway: {forks}")
    seen.append(f"forks: {forks}")
    full = site.run_in("gateway", "sh", "-c", "head -c 100M /dev/zero > /tmp/x", check=False)
    expect("no space" in full.lower(), f"100 MB in /tmp: {full}")
    site.run_in("gateway", "rm", "/tmp/x")
    seen.append("100 MB in /tmp: no space")
    site.until_ready()
    expect(site.inspect("gateway", "{{.RestartCount}}") == "0", "the gateway died of it")
    return ", ".join(seen)


@check
def each_container_can_be_restarted(site: Site) -> str:
    """And a picture is drawn afterwards."""
    seen = []
    for service in SERVICES:
        began = time.monotonic()
        site.compose("restart", service)
        site.until_ready()
        site.draw()
        seen.append(f"{service} {time.monotonic() - began:.0f} s")
    return ", ".join(seen)


@check
def a_killed_worker_loses_no_job(site: Site) -> str:
    """SIGKILL in the middle of a job: the engine starts it again, and the job is drawn."""
    job = site.submit(n=4, num_inference_steps=LONG)
    site.until(job, "in_progress")
    pid = site.inspect("worker", "{{.State.Pid}}")
    os.kill(int(pid), signal.SIGKILL)
    ended = site.until(job, "completed", "failed")
    expect(ended["status"] == "completed", str(ended.get("error")))
    expect(site.inspect("worker", "{{.RestartCount}}") != "0", "it was not restarted")
    return "restarted, job completed"


@check
def redis_may_restart_in_the_middle(site: Site) -> str:
    """The job goes on."""
    job = site.submit(n=2, num_inference_steps=LONG)
    site.until(job, "in_progress")
    site.compose("restart", "redis")
    ended = site.until(job, "completed", "failed")
    expect(ended["status"] == "completed", str(ended.get("error")))
    return "job completed"


@check
def a_stopping_worker_hands_back_what_it_cannot_finish(site: Site) -> str:
    """Exit code 0 within the drain, and the next worker finishes."""
    site.set(KOALA_DRAIN_SECONDS="3")
    site.compose("up", "--detach", timeout=600)
    site.until_ready()
    job = site.submit(n=4, num_inference_steps=LONG)
    site.until(job, "in_progress")
    began = time.monotonic()
    site.compose("stop", "worker")
    took = time.monotonic() - began
    code = site.inspect("worker", "{{.State.ExitCode}}")
    expect(code == "0", f"exit code {code}")
    expect(site.job(job)["status"] == "queued", str(site.job(job)["status"]))
    site.compose("start", "worker")
    site.until(job, "completed")
    return f"stopped after {took:.1f} s with a drain of 3 s, exit code 0, job completed later"


@check
def a_restarting_gateway_says_when_to_come_back(site: Site) -> str:
    """A waiting client gets a 503 with Retry-After, and its job goes on."""
    body = {"prompt": "a koala", "n": 4, "num_inference_steps": 150}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(site.request, "POST", "/v1/images/generations", body=body)
        eventually(site.is_busy, "a job in progress")
        site.compose("restart", "gateway")
        answer = waiting.result(60)
    expect(answer.status_code == 503, f"{answer.status_code} {answer.text[:200]}")
    expect("Retry-After" in answer.headers, str(answer.headers))
    site.until_ready()
    site.until(answer.headers["x-koala-job-id"], "completed")
    return f"503, Retry-After {answer.headers['Retry-After']}, job completed"


@check
def down_and_up_keep_jobs_and_images(site: Site) -> str:
    """``docker compose down`` removes the containers; the volumes stay."""
    done, waiting = site.submit(), None
    url = site.until(done, "completed")["result"]["data"][0]["url"]
    picture = site.image(url)
    site.compose("stop", "worker")
    waiting = site.submit()
    site.compose("down")
    expect(site.compose("ps", "--all", "--quiet").stdout == "", "containers are left")
    site.compose("up", "--detach", timeout=600)
    site.until_ready()
    expect(site.job(done)["status"] == "completed", "the job is gone")
    expect(site.image(url) == picture, "another picture")
    site.until(waiting, "completed")
    return "a job, its picture, and one that waited"


@check
def a_restarted_engine_brings_all_back(site: Site) -> str:
    """dockerd is stopped and started, as with a reboot."""
    done = site.submit()
    url = site.until(done, "completed")["result"]["data"][0]["url"]
    site.engine.stop()
    site.engine.start()
    took = site.until_ready()
    site.image(url)
    site.draw()
    return f"ready {took:.0f} s after the engine"


@check
def a_volume_of_another_user_is_told(site: Site) -> str:
    """Root owns the volume of images, as after a careless copy: an error, not a hang."""
    volume = Path(site.engine.inspect("koala_images", "{{.Mountpoint}}"))
    owner = volume.stat()
    for path in _folders(volume):
        os.chown(path, 0, 0)
    try:
        body = {"prompt": "a koala"}
        answer = site.request("POST", "/v1/images/generations", body=body, timeout=60)
    finally:
        for path in _folders(volume):
            os.chown(path, owner.st_uid, owner.st_gid)
    expect(answer.status_code >= 500, f"{answer.status_code} {answer.text[:200]}")
    error = answer.json()["error"]
    site.until_ready()
    site.draw()
    return f"{answer.status_code} {error['code']}: {error['message']}; drawn after chown"


@check
def a_job_that_does_not_complete_leaves_no_image(site: Site) -> str:
    """A disk that has room for the first of two images, and a job that is cancelled."""
    site.shrink("images", "1m", 10001)
    site.until_ready()
    folder = Path(site.engine.inspect("koala_images", "{{.Mountpoint}}")) / "images"

    def pictures() -> set[str]:
        return {path.name for path in folder.iterdir() if path.suffix == ".png"}

    site.draw()
    before = pictures()
    # A page of 4 KiB is left for each of two pictures, and the second of them needs more than one.
    filler = folder.parent / "filler"
    filler.write_bytes(bytes((1 << 20) - sum(_pages(path) for path in _files(folder)) - 3 * 4096))
    answer = site.request("POST", "/v1/images/generations", body={"prompt": "a koala", "n": 2})
    filler.unlink()
    expect(answer.status_code >= 500, f"{answer.status_code} {answer.text[:200]}")
    eventually(lambda: pictures() == before, "no image of the failed job is left", 90)
    job = site.submit(n=10, num_inference_steps=LONG)
    site.until(job, "in_progress")
    site.request("POST", f"/v1/jobs/{job}/cancel", timeout=20).raise_for_status()
    eventually(lambda: pictures() == before, "no image of the cancelled job is left", 90)
    return f"{answer.json()['error']['code']}, then a cancelled one; none of their images is left"


@check
def a_full_disk_of_redis_is_an_error_at_once(site: Site) -> str:
    """Neither the first request nor later ones hang, and it works again with room."""
    site.shrink("redis", "64m", 999)
    site.until_ready()
    site.draw()
    site.run_in("redis", "sh", "-c", "head -c 100M /dev/zero > /data/filler", check=False)
    seen: list[str] = []
    for _ in range(3):
        began = time.monotonic()
        try:
            answer = site.request(
                "POST", "/v1/images/generations", body={"prompt": "a koala"}, timeout=60
            )
        except httpx.TimeoutException:
            raise Failed(f"no answer within 60 s; before it {seen}") from None
        seen.append(f"{answer.status_code} after {time.monotonic() - began:.1f} s")
    expect(all(each.startswith("503") for each in seen), str(seen))
    site.run_in("redis", "rm", "/data/filler")
    site.until_ready()
    site.draw()
    return ", ".join(seen)


def _folders(volume: Path) -> list[Path]:
    return [volume, *(path for path in volume.rglob("*") if path.is_dir())]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _pages(path: Path) -> int:
    return -(-path.stat().st_size // 4096) * 4096
