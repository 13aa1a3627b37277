// Requests to the gateway, and the events of a job as the server tells them.

const KEY = "koala-api-key";

export class ApiError extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.param = error.param;
    this.code = error.code;
  }
}

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

function headers(more = {}) {
  const key = apiKey.get();
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch {
    throw new ApiError(0, { message: "The server cannot be reached. Is it running?", code: "offline" });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ApiError(response.status, body.error ?? { message: `The server answered ${response.status}.` });
}

export const getModels = async () => (await (await call("v1/models")).json()).data;

export const getJob = async (id) => (await call(`v1/jobs/${id}`)).json();

export const cancelJob = async (id) =>
  (await call(`v1/jobs/${id}/cancel`, { method: "POST" })).json();

export const getAdmin = async (what) => (await call(`v1/admin/${what}`)).json();

export const isReady = async () => (await fetch("readyz").catch(() => null))?.ok ?? false;

export async function submit(body) {
  const response = await call("v1/images/generations", {
    method: "POST",
    headers: { "Content-Type": "application/json", Prefer: "respond-async" },
    body: JSON.stringify(body),
  });
  return response.json();
}

// An image's address for <img>: its own, or a local copy where only a key opens it.
export async function imageUrl(url) {
  const path = new URL(url, location.href);
  // Behind a proxy the server may not know its own name: the page knows better.
  const own = new URL(`v1/images/${path.pathname.split("/").pop()}`, document.baseURI).href;
  if (!apiKey.get()) return own;
  return URL.createObjectURL(await (await call(own)).blob());
}

// Calls `tell(event)` for every event of a job until its end. Comes back after interruptions.
export async function follow(id, tell, signal) {
  let last = null;
  for (let pause = 500; !signal.aborted; pause = Math.min(2 * pause, 8000)) {
    try {
      const more = last ? { "Last-Event-ID": last } : {};
      const response = await call(`v1/jobs/${id}/events`, { headers: more, signal });
      for await (const event of frames(response.body)) {
        pause = 500;
        if (event.id) last = event.id;
        if (event.type === "shutdown") break;
        tell(event);
        if (["completed", "failed", "cancelled"].includes(event.type)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && error.status >= 400 && error.status < 500) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const fields = Object.fromEntries(
        part.split("\n").map((line) => {
          const colon = line.indexOf(":");
          return [line.slice(0, colon), line.slice(colon + 1).trimStart()];
        }),
      );
      if (fields.data) yield { ...JSON.parse(fields.data), type: fields.event, id: fields.id };
    }
  }
}
