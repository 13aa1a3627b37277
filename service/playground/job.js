// A job under way: its place in the queue, its steps, and previews that sharpen into the picture.

import { cancelJob } from "./api.js";

const SMALL = 192;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export class JobCard {
  constructor(job) {
    this.id = job.id;
    this.steps = job.progress.steps;
    const [width, height] = job.size.split("x").map(Number);
    this.state = element("p", { className: "job-state" });
    this.bar = element("progress", { max: job.progress.steps, value: job.progress.step });
    this.bar.setAttribute("aria-label", "Progress");
    this.cancel = element("button", { type: "button", textContent: "Cancel", className: "quiet" });
    this.cancel.addEventListener("click", () => this.stop());
    this.tiles = Array.from({ length: job.n }, () => {
      const tile = element("div", { className: "tile" });
      tile.style.aspectRatio = `${width} / ${height}`;
      return tile;
    });
    this.small = width <= SMALL;
    this.root = element(
      "li",
      {},
      element(
        "div",
        { className: "job-head" },
        element("div", {}, element("p", { textContent: job.prompt }), this.state),
        this.cancel,
      ),
      this.bar,
      element("div", { className: "tiles" }, ...this.tiles),
    );
    this.say(job.status === "queued" ? "Waiting" : "Drawing");
  }

  say(text) {
    this.state.textContent = text;
  }

  async stop() {
    this.cancel.disabled = true;
    this.say("Cancelling …");
    try {
      await cancelJob(this.id);
    } catch (error) {
      this.cancel.disabled = false;
      this.say(error.message);
    }
  }

  // Shows what an event says.
  tell(event) {
    switch (event.type) {
      case "position":
        this.say(place(event));
        break;
      case "admitted":
        this.say("Drawing");
        break;
      case "requeued":
        this.say("Back in the queue: its worker stopped");
        this.bar.value = 0;
        break;
      case "step":
        this.bar.value = event.step;
        this.say(progress(event));
        break;
      case "preview":
        this.show(event);
        break;
    }
  }

  show(event) {
    const tile = this.tiles[event.image];
    const image = tile.querySelector("img") ?? tile.appendChild(element("img", { alt: "" }));
    image.src = `data:${event.media_type};base64,${event.b64_json}`;
    image.alt = `Preview after ${event.step} of ${event.steps} steps`;
    image.classList.toggle("small", this.small);
    const left = 1 - event.step / event.steps;
    image.style.filter = this.small ? "" : `blur(${(left * 6).toFixed(1)}px)`;
  }
}

function place(event) {
  const ahead = event.position;
  const where = ahead === 0 ? "Next in line" : ahead === 1 ? "1 job ahead" : `${ahead} jobs ahead`;
  return where + eta(event);
}

const progress = (event) => `Step ${event.step} of ${event.steps}${eta(event)}`;

function eta(event) {
  const seconds = event.eta_seconds;
  if (seconds === undefined || seconds === null) return "";
  return seconds < 90 ? `, about ${Math.max(1, Math.round(seconds))} s` : `, about ${Math.round(seconds / 60)} min`;
}
