// Elements, numbers and requests. Text only ever becomes text: nothing here writes HTML.

export const byId = (id) => document.getElementById(id);

/** Make an element. `props` are attributes; functions become event listeners. */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** Make an element of an SVG picture. */
export function s(tag, props = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined));
  return element;
}

/** A token with its white space visible. */
export function visible(token) {
  return token.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\r", "↵").replaceAll("\t", "⇥") || "∅";
}

export function percent(p) {
  if (p > 0.999 && p < 1) return "> 99.9%";
  if (p < 0.001 && p > 0) return "< 0.1%";
  return `${(100 * p).toFixed(1)}%`;
}

export const count = (n) => n.toLocaleString("en");

export function signed(x, digits = 2) {
  const shown = Math.abs(x).toFixed(digits);
  return Number(shown) === 0 ? shown : `${x < 0 ? "−" : "+"}${shown}`;
}

const running = new Map(); // {channel: its AbortController}

/** Ask the API. A newer request of the same channel, or `cancel`, makes this one stale: it throws AbortError. */
export async function ask(channel, path, body) {
  running.get(channel)?.abort();
  const controller = new AbortController();
  running.set(channel, controller);
  const request = { signal: controller.signal };
  if (body) {
    request.method = "POST";
    request.headers = { "Content-Type": "application/json" };
    request.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const isJson = response.headers.get("content-type")?.startsWith("application/json");
  const found = isJson ? await response.json() : await response.text();
  if (!response.ok) {
    const error = new Error(found.error ?? `The server answered ${response.status}.`);
    throw Object.assign(error, { status: response.status });
  }
  return found;
}

/** Cancel all running requests. */
export function cancel() {
  for (const controller of running.values()) controller.abort();
}

/** Run something that may ask the API; show its error in `place`. Stale requests are not errors. */
export async function shown(place, task) {
  place.setAttribute("aria-busy", "true");
  try {
    await task();
  } catch (error) {
    if (error.name === "AbortError") return;
    place.replaceChildren(h("p", { class: "error" }, error.message));
  }
  place.removeAttribute("aria-busy");
}

/** A bar divided among the labels. */
export function stack(probabilities, label) {
  const parts = probabilities.map((p, k) => h("span", { class: `k${k % 7}`, "--p": p.toFixed(4) }));
  return h("span", { class: "stack", role: "img", "aria-label": label }, parts);
}

/** The index of the largest number. */
export const largest = (numbers) => numbers.indexOf(Math.max(...numbers));
