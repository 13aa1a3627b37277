// The playground: wires form, jobs under way and gallery together.

import { ApiError, apiKey, follow, getJob, getModels, imageUrl, isReady, submit } from "./api.js";
import * as form from "./form.js";
import { JobCard } from "./job.js";
import * as store from "./store.js";
import * as viewer from "./viewer.js";

const $ = (id) => document.getElementById(id);
const cards = new Map();
const SMALL = 256;

function announce(text) {
  $("announcer").textContent = text;
}

// The service

async function connect() {
  try {
    const [served] = await getModels();
    form.offer(served);
    const ready = served.ready || (await isReady());
    $("service").textContent = ready ? `Draws with ${served.id}` : `${served.id}: no worker is ready yet`;
    if (!ready) setTimeout(connect, 2000);
    store.running().forEach(resume);
  } catch (error) {
    $("service").textContent = error.message;
    if (error.status === 401) askForKey(error.message);
    else setTimeout(connect, 3000);
  }
}

// Jobs

async function generate(request) {
  form.clearErrors();
  try {
    const job = await submit(form.watched(request));
    store.begin(job.id);
    announce("Your request is in the queue");
    watch(job);
  } catch (error) {
    form.complain(error);
    if (error.status === 401) askForKey(error.message);
  }
}

// Goes on with a job that was under way when the page was left.
async function resume(id) {
  if (cards.has(id)) return;
  try {
    const job = await getJob(id);
    if (["queued", "in_progress"].includes(job.status)) watch(job);
    else finish(job);
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) store.end(id);
  }
}

async function watch(job) {
  const card = new JobCard(job);
  cards.set(job.id, card);
  $("running").prepend(card.root);
  $("running-section").hidden = false;
  try {
    await follow(
      job.id,
      (event) => {
        card.tell(event);
        if (event.job) finish(event.job);
      },
      new AbortController().signal,
    );
  } catch (error) {
    card.say(error.message);
    store.end(job.id);
  }
}

function finish(job) {
  store.end(job.id);
  const card = cards.get(job.id);
  if (job.status === "failed") {
    if (card) card.say(job.error.message);
    card?.cancel.remove();
    card?.bar.remove();
    announce(job.error.message);
    return;
  }
  card?.root.remove();
  cards.delete(job.id);
  $("running-section").hidden = !$("running").children.length;
  if (job.status === "cancelled") {
    announce("Cancelled");
    return;
  }
  store.add(job);
  draw();
  announce(job.n === 1 ? "Your image is ready" : `Your ${job.n} images are ready`);
}

// The gallery

function draw() {
  const images = store.images();
  $("empty").hidden = images.length > 0;
  $("clear").hidden = images.length === 0;
  const present = new Map([...$("gallery").children].map((item) => [item.dataset.name, item]));
  $("gallery").replaceChildren(...images.map((image) => present.get(image.name) ?? thumbnail(image)));
}

function thumbnail(image) {
  const item = document.createElement("li");
  item.dataset.name = image.name;
  const button = document.createElement("button");
  button.type = "button";
  const picture = document.createElement("img");
  picture.alt = image.prompt;
  picture.loading = "lazy";
  picture.classList.toggle("small", Number(image.size.split("x")[0]) <= SMALL);
  imageUrl(image.url).then((url) => (picture.src = url), () => (picture.alt = `${image.prompt} (gone)`));
  button.append(picture);
  button.addEventListener("click", () => viewer.open(store.images(), image.name));
  item.append(button);
  return item;
}

async function copy(text, said) {
  try {
    await navigator.clipboard.writeText(text);
    announce(said);
  } catch {
    announce("The browser does not allow copying here");
  }
}

// The key

function askForKey(reason) {
  if (reason) $("key-reason").textContent = reason;
  $("key-input").value = apiKey.get();
  $("key").showModal();
}

// All together

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate(form.body());
});
$("form").addEventListener("input", () => {
  store.keepForm(form.values());
  form.showCode();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
document.querySelectorAll("[data-copy]").forEach((button) => {
  button.addEventListener("click", () => copy($(button.dataset.copy).textContent, "Copied"));
});
$("open-key").addEventListener("click", () => askForKey());
$("key").addEventListener("close", () => {
  if ($("key").returnValue !== "save") return;
  apiKey.set($("key-input").value.trim());
  form.showCode();
  connect();
});
$("clear").addEventListener("click", () => {
  if (!confirm("Forget all images of this browser?")) return;
  store.clear();
  draw();
});
viewer.setUp({
  copy,
  reuse: (image) => {
    form.fill({ ...image, scheduler: image.scheduler ?? "", negative_prompt: image.negative_prompt ?? "", n: 1 });
    $("prompt").focus();
  },
  vary: (image) => {
    form.fill({ ...image, scheduler: image.scheduler ?? "", negative_prompt: image.negative_prompt ?? "", seed: image.seed + 1, n: 4 });
    generate(form.body());
  },
  remove: (image) => {
    store.remove(image.name);
    draw();
  },
});
store.prune();
draw();
connect();
