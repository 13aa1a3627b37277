// The operator's view: asks every two seconds, and shows what has changed.

import { apiKey, cancelJob, getAdmin } from "./api.js";
import { JobRow, WorkerCard, element, span } from "./admin_parts.js";

const $ = (id) => document.getElementById(id);
const PACE = 2000;
const MOST = 100;

const parts = new Map();

let timer = null;
let asked = null;

async function refresh() {
  clearTimeout(timer);
  try {
    const [summary, workers, running, queue] = await Promise.all([
      getAdmin("summary"),
      getAdmin("workers"),
      getAdmin(`jobs?state=in_progress&limit=${MOST}`),
      getAdmin(`jobs?state=queued&limit=${MOST}`),
    ]);
    show(summary, workers.data, running.data, queue.data);
    $("service").textContent = "Live";
  } catch (error) {
    $("service").textContent = error.message.replaceAll("`", "");
    if (error.status === 401 || error.status === 403) {
      // Who may not see this need not ask again until there is another key.
      $("view").hidden = true;
      askForKey(error.message);
      return;
    }
  }
  if (!document.hidden) timer = setTimeout(refresh, PACE);
}

function show(summary, workers, running, queue) {
  $("view").hidden = false;
  figures(summary);
  list($("workers"), workers, (worker) => worker.name, WorkerCard);
  list($("running"), running, (job) => job.id, JobRow);
  list($("queue"), queue, (job) => job.id, JobRow);
  const more = summary.queued - queue.length;
  $("queue-more").hidden = queue.length < MOST || more <= 0;
  $("queue-more").textContent = `and ${more} more`;
}

function figures(summary) {
  const told = [
    ["Waiting", summary.queued],
    ["Oldest waits", summary.oldest_queued_seconds === null ? "–" : span(summary.oldest_queued_seconds)],
    ["In flight", summary.in_flight],
    ["Images, last minute", summary.images_last_minute],
    ["Workers", summary.workers],
  ];
  const rows = told.map(([name, value]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value })),
  );
  $("summary").replaceChildren(...rows);
}

// Keeps the elements of what stays, so that the keyboard's focus stays too.
function list(root, items, name, Part) {
  $(`${root.id}-empty`).hidden = items.length > 0;
  const before = parts.get(root) ?? new Map();
  const now = new Map(items.map((item) => [name(item), before.get(name(item)) ?? new Part(item, confirmCancel)]));
  parts.set(root, now);
  items.forEach((item) => now.get(name(item)).tell(item));
  const wanted = [...now.values()].map((part) => part.root);
  if (wanted.some((child, i) => root.children[i] !== child) || wanted.length !== root.children.length) {
    root.replaceChildren(...wanted);
  }
}

function confirmCancel(job) {
  asked = job;
  $("confirm-prompt").textContent = job.prompt;
  // Else Escape would repeat the answer of the last time.
  $("confirm").returnValue = "";
  $("confirm").showModal();
}

async function cancel(job) {
  try {
    const ended = await cancelJob(job.id);
    $("announcer").textContent = ended.status === "cancelled" ? "Cancelled" : `The job is ${ended.status}`;
  } catch (error) {
    $("announcer").textContent = error.message;
  }
  refresh();
}

function askForKey(reason) {
  if (reason) $("key-reason").textContent = reason.replaceAll("`", "");
  $("key-input").value = apiKey.get();
  $("key").returnValue = "";
  if (!$("key").open) $("key").showModal();
}

$("confirm").addEventListener("close", () => {
  if ($("confirm").returnValue === "cancel-job") cancel(asked);
});
$("open-key").addEventListener("click", () => askForKey());
$("key").addEventListener("close", () => {
  if ($("key").returnValue !== "save") return;
  apiKey.set($("key-input").value.trim());
  refresh();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
refresh();
