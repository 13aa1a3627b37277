// One image, large, with what it was made from and what can be done with it.

import { imageUrl } from "./api.js";

const $ = (id) => document.getElementById(id);
const SMALL = 256;

let list = [];
let index = -1;
let act = {};

export function setUp(actions) {
  act = actions;
  $("close").addEventListener("click", () => $("viewer").close());
  $("copy-prompt").addEventListener("click", () => act.copy(shown().prompt, "Prompt copied"));
  $("copy-seed").addEventListener("click", () => act.copy(String(shown().seed), "Seed copied"));
  $("reuse").addEventListener("click", () => leave(() => act.reuse(shown())));
  $("variations").addEventListener("click", () => leave(() => act.vary(shown())));
  $("remove").addEventListener("click", () => leave(() => act.remove(shown())));
  $("viewer").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && list[index + step]) show(index + step);
  });
  $("viewer").addEventListener("click", (event) => {
    if (event.target === $("viewer")) $("viewer").close();
  });
}

const shown = () => list[index];

function leave(then) {
  $("viewer").close();
  then();
}

export function open(images, name) {
  list = images;
  show(images.findIndex((image) => image.name === name));
  $("viewer").showModal();
}

async function show(position) {
  index = position;
  const image = shown();
  $("viewer-prompt").textContent = image.prompt;
  $("viewer-facts").replaceChildren(
    ...facts(image).map(([name, value]) => {
      const row = document.createElement("div");
      const term = document.createElement("dt");
      const text = document.createElement("dd");
      term.textContent = name;
      text.textContent = value;
      row.append(term, text);
      return row;
    }),
  );
  const picture = $("viewer-image");
  picture.alt = image.prompt;
  picture.classList.toggle("small", Number(image.size.split("x")[0]) <= SMALL);
  const url = await imageUrl(image.url);
  if (shown() !== image) return;
  picture.src = url;
  $("download").href = url;
  $("download").download = image.name;
}

function facts(image) {
  return [
    ["Seed", image.seed],
    ["Size", image.size.replace("x", " × ")],
    ["Steps", image.num_inference_steps],
    ["Guidance", image.guidance_scale],
    ["Scheduler", image.scheduler ?? "the model’s own"],
    ["Model", image.model],
    ...(image.negative_prompt ? [["Without", image.negative_prompt]] : []),
    ["Took", `${image.seconds.toFixed(1)} s`],
  ];
}
