// What this browser remembers: jobs under way and finished images, newest first.

const NAME = "koala-playground";
const MOST = 200;

let state = read();

function read() {
  try {
    const stored = JSON.parse(localStorage.getItem(NAME)) ?? {};
    return { running: stored.running ?? [], images: stored.images ?? [], form: stored.form ?? null };
  } catch {
    return { running: [], images: [], form: null };
  }
}

function write() {
  try {
    localStorage.setItem(NAME, JSON.stringify(state));
  } catch {
    // Full or forbidden: the page works without a memory.
  }
}

export const running = () => state.running;
export const images = () => state.images;
export const form = () => state.form;

export function keepForm(values) {
  state.form = values;
  write();
}

export function begin(id) {
  state.running = [id, ...state.running.filter((other) => other !== id)];
  write();
}

export function end(id) {
  state.running = state.running.filter((other) => other !== id);
  write();
}

// Adds the images of a finished job, the first one first.
export function add(job) {
  // By the clock of this browser, which may show another time than the server's.
  const expiresAt = Date.now() / 1000 + (job.expires_at - job.completed_at);
  const known = new Set(state.images.map((image) => image.name));
  const fresh = job.result.data
    .map((image) => ({
      name: image.url.split("/").pop(),
      url: image.url,
      seed: image.seed,
      prompt: job.prompt,
      negative_prompt: job.negative_prompt,
      size: job.size,
      num_inference_steps: job.num_inference_steps,
      guidance_scale: job.guidance_scale,
      scheduler: job.scheduler,
      model: job.model,
      seconds: job.result.timings.total_seconds,
      expires_at: expiresAt,
    }))
    .filter((image) => !known.has(image.name));
  state.images = [...fresh, ...state.images].slice(0, MOST);
  write();
  return fresh;
}

export function remove(name) {
  state.images = state.images.filter((image) => image.name !== name);
  write();
}

export function clear() {
  state.images = [];
  write();
}

// Forgets what the server has forgotten by now.
export function prune() {
  const now = Date.now() / 1000;
  state.images = state.images.filter((image) => !image.expires_at || image.expires_at > now);
  write();
}
