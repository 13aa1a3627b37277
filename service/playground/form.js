// The form: what it asks for, what is wrong with it, and the same request as code.

import { apiKey } from "./api.js";
import * as store from "./store.js";

const $ = (id) => document.getElementById(id);
const FIELDS = [
  "prompt", "negative_prompt", "size", "n", "num_inference_steps", "guidance_scale", "seed", "scheduler",
];
const NUMBERS = new Set(["n", "num_inference_steps", "guidance_scale", "seed"]);
const PREVIEWS = 8;

let model = null;

// Fills in what the model can do; keeps what the user chose before.
export function offer(served) {
  model = served;
  const can = served.capabilities;
  $("size").replaceChildren(...sizes(can).map((size) => new Option(size.replace("x", " × "), size)));
  $("size").value = can.default_size;
  $("scheduler").append(...can.schedulers.map((name) => new Option(name, name)));
  $("n").max = can.max_images;
  $("num_inference_steps").max = can.max_steps;
  $("num_inference_steps").placeholder = can.default_steps;
  $("guidance_scale").max = can.max_guidance_scale;
  $("guidance_scale").placeholder = can.default_guidance_scale;
  fill(store.form() ?? {});
}

// The native square, and upright and wide ones of about as many pixels.
function sizes(can) {
  const [native] = can.default_size.split("x").map(Number);
  const fit = (side) =>
    Math.min(can.max_side, Math.max(can.min_side, Math.round(side / can.side_multiple) * can.side_multiple));
  const shapes = [[1, 1], [3, 4], [4, 3], [9, 16], [16, 9]].map(([w, h]) => {
    const scale = native / Math.sqrt(w * h);
    return [fit(w * scale), fit(h * scale)];
  });
  const half = fit(native / 2);
  const found = [...shapes, [half, half]].filter(([w, h]) => w * h <= can.max_pixels);
  return [...new Set(found.map(([w, h]) => `${w}x${h}`))];
}

export function values() {
  return Object.fromEntries(FIELDS.map((name) => [name, $(name).value.trim()]));
}

export function fill(given) {
  for (const name of FIELDS) {
    if (given[name] === undefined || given[name] === null) continue;
    const input = $(name);
    const text = String(given[name]);
    if (input.tagName === "SELECT" && text && ![...input.options].some((o) => o.value === text)) {
      input.append(new Option(text.replace("x", " × "), text));
    }
    input.value = text;
  }
  showCode();
}

// The body of the request; empty fields are left to the server's defaults.
export function body() {
  const request = {};
  for (const [name, text] of Object.entries(values())) {
    if (text !== "") request[name] = NUMBERS.has(name) ? Number(text) : text;
  }
  return request;
}

export const watched = (request) => ({ ...request, previews: PREVIEWS });

// Says what is wrong, by the field that the server names.
export function complain(error) {
  clearErrors();
  const field = FIELDS.includes(error.param) ? error.param : null;
  const place = $(field ? `${field}-error` : "form-error");
  place.textContent = error.message.replaceAll("`", "");
  place.hidden = false;
  if (field) {
    $(field).setAttribute("aria-invalid", "true");
    $(field).setAttribute("aria-describedby", `${field}-error`);
    $(field).focus();
  }
}

export function clearErrors() {
  for (const name of [...FIELDS, "form"]) $(`${name}-error`).hidden = true;
  for (const name of FIELDS) {
    $(name).removeAttribute("aria-invalid");
    $(name).removeAttribute("aria-describedby");
  }
}

export function showCode() {
  const request = body();
  $("curl").textContent = curl(request);
  $("python").textContent = python(request);
}

function curl(request) {
  const url = new URL("v1/images/generations", document.baseURI).href;
  const json = JSON.stringify(request, null, 2).replaceAll("'", "'\\''");
  const key = apiKey.get() ? ' \\\n  -H "Authorization: Bearer $KOALA_API_KEY"' : "";
  return `curl ${url} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${json}'`;
}

function python(request) {
  const own = new Set(["prompt", "size", "n"]);
  const lines = [];
  const extra = [];
  for (const [name, value] of Object.entries(request)) {
    (own.has(name) ? lines : extra).push(`${own.has(name) ? `${name}=` : `"${name}": `}${literal(value)}`);
  }
  if (extra.length) lines.push(`extra_body={${extra.join(", ")}}`);
  const url = new URL("v1", document.baseURI).href;
  const key = apiKey.get() ? 'os.environ["KOALA_API_KEY"]' : '"none"';
  return [
    ...(apiKey.get() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${url}", api_key=${key})`,
    "response = client.images.generate(",
    `    model="${model?.id ?? ""}",`,
    ...lines.map((line) => `    ${line},`),
    ")",
    "print(response.data[0].url)",
  ].join("\n");
}

// JSON's strings and numbers are Python's too.
const literal = (value) => JSON.stringify(value);
