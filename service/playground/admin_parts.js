// A worker and a job as the operator sees them.

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

const gib = (bytes) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

const speed = (rate) => (rate < 1 ? `${(60 * rate).toFixed(1)} a minute` : `${rate.toFixed(1)} a second`);

// A label, and a bar of parts of a whole.
class Gauge {
  constructor(name) {
    this.text = element("p");
    this.parts = [element("span"), element("span")];
    this.bar = element("div", { className: "bar" }, ...this.parts);
    this.bar.setAttribute("role", "img");
    this.name = name;
    this.root = element("div", { className: "gauge" }, this.text, this.bar);
  }

  tell(text, ...shares) {
    this.text.textContent = `${this.name}: ${text}`;
    this.bar.setAttribute("aria-label", this.text.textContent);
    this.parts.forEach((part, i) => (part.style.width = `${100 * Math.min(1, shares[i] ?? 0)}%`));
  }
}

export class WorkerCard {
  constructor(worker) {
    this.pace = element("p");
    this.batch = new Gauge("Batch");
    this.vram = worker.vram ? new Gauge("VRAM") : null;
    this.root = element(
      "li",
      {},
      element("h3", { textContent: worker.name }),
      element("p", { textContent: `${worker.model} on ${worker.device}, ${worker.dtype}` }),
      this.batch.root,
      ...(this.vram ? [this.vram.root] : []),
      this.pace,
    );
  }

  tell(worker) {
    const { rows, max_rows: most, vram } = worker;
    this.batch.tell(`${rows} of ${most} rows, ${worker.jobs_in_flight} in flight`, rows / most);
    if (vram) {
      const others = vram.total_bytes - vram.free_bytes - vram.held_bytes;
      const text = `${gib(vram.held_bytes)} of ${gib(vram.total_bytes)}, ${gib(vram.free_bytes)} free`;
      this.vram.tell(text, vram.held_bytes / vram.total_bytes, Math.max(0, others) / vram.total_bytes);
    }
    const rate = worker.images_per_second;
    const pace = rate === null ? "" : `; while busy ${speed(rate)}`;
    this.pace.textContent = `${worker.images_last_minute} images in the last minute${pace}`;
  }
}

export class JobRow {
  constructor(job, onCancel) {
    this.job = job;
    this.place = job.status === "queued" ? element("span", { className: "place" }) : null;
    this.facts = element("p", { className: "facts" });
    this.bar = job.status === "queued" ? null : element("progress", { max: job.progress.steps });
    this.bar?.setAttribute("aria-label", "Progress");
    const cancel = element("button", { type: "button", className: "quiet", textContent: "Cancel" });
    cancel.setAttribute("aria-label", `Cancel ${job.prompt}`);
    cancel.addEventListener("click", () => onCancel(this.job));
    this.root = element(
      "li",
      {},
      ...(this.place ? [this.place] : []),
      element(
        "div",
        { className: "what" },
        element("p", { className: "prompt", textContent: job.prompt, title: job.prompt }),
        this.facts,
        ...(this.bar ? [this.bar] : []),
      ),
      cancel,
    );
  }

  tell(job) {
    this.job = job;
    if (this.place) this.place.textContent = `${job.position + 1}.`;
    if (this.bar) this.bar.value = job.progress.step;
    const { step, steps } = job.progress;
    this.facts.textContent = [
      job.owner ?? "no key",
      ...(job.priority === "normal" ? [] : [`${job.priority} priority`]),
      `${job.n > 1 ? `${job.n} × ` : ""}${job.size.replace("x", " × ")}`,
      this.bar ? `step ${step} of ${steps}` : `${steps} steps`,
      `${span(job.age_seconds)} old`,
      ...(job.eta_seconds === null ? [] : [`done in ${span(Math.max(1, job.eta_seconds))}`]),
      ...(job.attempts ? [`attempt ${job.attempts + 1}`] : []),
    ].join(" · ");
  }
}
