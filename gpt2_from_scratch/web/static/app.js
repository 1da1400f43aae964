// The message, its answer, and its tokens. The panels are in panels.js and network.js.

import { ask, byId, cancel, h, largest, percent, shown, stack, visible } from "./dom.js";
import { showNetwork } from "./network.js";
import { clearMatrix, showAttention, showLayers, showParts, showWords } from "./panels.js";

const EXAMPLES = [
  "WINNER!! You have been selected to receive a $1000 prize. Call 09061701461 to claim now.",
  "Hey, are we still on for dinner tonight? Let me know!",
  "Free entry to the gym on Sunday, do you want to come with me?",
];
const PAUSE = 80; // milliseconds after a keystroke
const SILENCE = 1200; // milliseconds before the answer is announced

export const state = {
  models: [],
  limits: {},
  model: null, // facts of the classifier
  other: null, // facts of the one it is compared with
  text: "",
  answer: null, // what /api/tokens found
  token: 0, // the selected one
  follows: true, // whether the selection stays at the position that the head reads
  block: 0,
  layer: 0,
  panel: "words",
};

const PANELS = {
  words: showWords,
  attention: showAttention,
  layers: showLayers,
  parts: showParts,
  network: showNetwork,
};

// --- the message ---

let pause;
let silence;

function changed() {
  cancel();
  clearTimeout(pause);
  pause = setTimeout(update, PAUSE);
}

async function update() {
  state.text = byId("message").value;
  const place = byId("verdict");
  if (!state.text.trim()) {
    place.replaceChildren(h("p", { class: "empty" }, "There is no message yet."));
    place.removeAttribute("aria-busy");
    forget();
    return;
  }
  await shown(place, async () => {
    const both = [answerOf(state.model, "tokens")];
    if (state.other) both.push(answerOf(state.other, "other"));
    const [answer, other] = await Promise.all(both).catch((error) => {
      if (error.name !== "AbortError") forget(); // what is shown would belong to an earlier message
      throw error;
    });
    state.answer = answer;
    state.otherAnswer = other;
    const last = allTokens().length - 1;
    if (state.follows || state.token > last) {
      state.token = last;
      state.follows = true;
    }
    showVerdict(place);
    showRibbon();
    refresh();
  });
}

/** Show no answer. */
function forget() {
  state.answer = null;
  byId("ribbon").replaceChildren();
  announce("");
  refresh();
}

/** The answer after each token. Where there is none, the answer alone, and the reason. */
async function answerOf(model, channel) {
  const body = { model: model.name, text: state.text };
  let reason = "This classifier does not answer token by token.";
  let isLong = false;
  if (["classification", "multi-label", "regression"].includes(model.task) && !model.has_ngrams) {
    try {
      return await ask(channel, "api/tokens", body);
    } catch (error) {
      if (error.status !== 422) throw error;
      [reason, isLong] = [error.message, true];
    }
  }
  const found = await ask(channel, "api/predict", { model: model.name, texts: [state.text] });
  return { model: model.name, prediction: found.predictions[0], tokens: [], reason, isLong };
}

function showVerdict(place) {
  const rows = [verdict(state.answer, state.model)];
  if (state.otherAnswer && state.other) rows.push(verdict(state.otherAnswer, state.other));
  place.replaceChildren(...rows.map((row) => row.element));
  announce(rows.map((row) => row.words).join("; "));
}

function verdict(answer, model) {
  const { prediction } = answer;
  const head = Object.values(prediction.answers)[0];
  const marks = [
    prediction.truncated && "only the beginning is read",
    prediction.replaced && "contains broken characters",
    prediction.empty && "nothing to read",
  ].filter(Boolean);
  const name = state.other ? h("p", { class: "which" }, model.name) : null;
  let line;
  let words;
  if (head.probabilities) {
    const values = Object.values(head.probabilities);
    const label = head.label ?? (head.labels.join(", ") || "none");
    const p = head.label === undefined ? null : head.probabilities[label];
    words = p === null ? label : `${label}, ${percent(p)}`;
    line = [
      h("p", { class: "label" }, h("span", { class: `dot k${Object.keys(head.probabilities).indexOf(label) % 7}` }),
        h("strong", {}, label), p === null ? null : h("span", { class: "p" }, percent(p))),
      head.label === undefined ? null : stack(values, Object.entries(head.probabilities).map(([k, v]) => `${k} ${percent(v)}`).join(", ")),
    ];
  } else {
    words = otherAnswer(head);
    line = [h("p", { class: "label" }, h("strong", {}, words))];
  }
  const note = `${prediction.n_tokens} tokens${marks.length ? ` · ${marks.join(" · ")}` : ""}`;
  return { words: state.other ? `${model.name}: ${words}` : words, element: h("div", { class: "row" }, name, line, h("p", { class: "note" }, note)) };
}

/** The answer of a head without probabilities of labels: values, tags of words, or a piece of the text. */
function otherAnswer(head) {
  if (head.words) return head.words.filter((word) => word.label !== "O").map((word) => `${word.text} (${word.label} ${percent(word.probability)})`).join(", ") || "no tags";
  if (head.text !== undefined) return head.text ? `“${head.text}” (${percent(head.probability)})` : "no answer";
  return Object.entries(head.values ?? head).map(([name, value]) => `${name}: ${typeof value === "number" ? value.toPrecision(4) : String(value).slice(0, 200)}`).join(", ");
}

/** Say the answer to a screen reader, but only after the typing has stopped. */
function announce(words) {
  clearTimeout(silence);
  silence = setTimeout(() => {
    if (byId("announcement").textContent !== words) byId("announcement").textContent = words;
  }, SILENCE);
}

// --- the tokens ---

/** The tokens of the message, and the end token at which the head reads. */
export function allTokens() {
  const tokens = state.answer?.tokens.map((each) => each.token) ?? [];
  return tokens.length && state.model.pooling === "end_token" ? [...tokens, "\n"] : tokens;
}

function showRibbon() {
  const { tokens } = state.answer;
  const others = state.otherAnswer?.tokens ?? [];
  // another vocabulary gives other tokens, whose answers do not belong under these
  const sameTokens = others.length === tokens.length && others.every((each, n) => each.token === tokens[n].token);
  const chips = allTokens().map((token, n) => {
    const isEnd = n === tokens.length;
    const answers = [tokens[Math.min(n, tokens.length - 1)].answer];
    if (state.other && sameTokens) answers.push(others[Math.min(n, tokens.length - 1)].answer);
    const button = h("button", { class: "token", "aria-pressed": String(n === state.token), click: () => select(n) },
      h("span", { class: "text" }, visible(token)),
      h("span", { class: "bars" }, answers.map((answer) => bar(answer))),
      answers.map((answer) => h("span", { class: "p" }, short(answer))),
      isEnd ? h("span", { class: "end" }, "end") : null);
    return h("li", {}, button);
  });
  byId("ribbon").replaceChildren(...chips);
  showSelected();
  byId("legend").replaceChildren(...(state.model.labels.length && tokens.length && tokens[0].answer.probabilities
    ? state.model.labels.map((label, k) => h("span", {}, h("span", { class: `dot k${k % 7}` }), label)) : []));
  byId("tokens-note").textContent = tokens.length
    ? `The bar under each token is the answer to the message up to there${state.other ? (sameTokens ? `: ${state.model.name} on the left, ${state.other.name} on the right` : `. ${state.other.name} cuts the message into other tokens`) : ""}. Choose a token to look inside.`
    : state.answer.reason;
}

function bar(answer) {
  if (!answer.probabilities) return null;
  const values = Object.values(answer.probabilities);
  return h("span", { class: "bar", "aria-hidden": "true" }, values.map((p, k) => h("span", { class: `k${k % 7}`, "--p": p.toFixed(4) })));
}

function short(answer) {
  if (!answer.probabilities) return Object.values(answer.values ?? {}).map((value) => value.toFixed(2)).join(" ");
  const values = Object.values(answer.probabilities);
  const best = largest(values);
  return `${Object.keys(answer.probabilities)[best].slice(0, 10)} ${Math.round(100 * values[best])}%`;
}

/** Where the tokens are one row that scrolls, scroll it to the selected one. */
function showSelected() {
  const ribbon = byId("ribbon");
  const chip = ribbon.children[state.token];
  if (chip) ribbon.scrollLeft = chip.offsetLeft - ribbon.offsetLeft - (ribbon.clientWidth - chip.clientWidth) / 2;
}

export function select(n) {
  state.token = n;
  state.follows = n === allTokens().length - 1;
  [...byId("ribbon").querySelectorAll("button")].forEach((button, k) => button.setAttribute("aria-pressed", String(k === n)));
  showSelected();
  clearMatrix();
  refresh();
}

// arrow keys move between tokens
byId("ribbon").addEventListener("keydown", (event) => {
  const buttons = [...byId("ribbon").querySelectorAll("button")];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const next = buttons[buttons.indexOf(document.activeElement) + step];
  if (!step || !next) return;
  event.preventDefault();
  next.focus();
});

// --- the panels ---

export function refresh() {
  const place = byId(state.panel).querySelector(".result");
  if (!state.answer || state.answer.isLong) {
    place.replaceChildren(h("p", { class: "empty" }, state.answer ? "This message is too long to look inside." : "There is no answer to look into."));
    place.removeAttribute("aria-busy");
    clearMatrix();
    return;
  }
  shown(place, () => PANELS[state.panel](place));
}

export function open(panel, focus = false) {
  state.panel = panel;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const isOpen = tab.getAttribute("aria-controls") === panel;
    tab.setAttribute("aria-selected", String(isOpen));
    tab.tabIndex = isOpen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !isOpen;
    if (isOpen && focus) tab.focus();
  }
  history.replaceState(null, "", `#${panel}`);
  refresh();
}

const tabs = [...document.querySelectorAll("[role=tab]")];
tabs.forEach((tab, n) => {
  tab.addEventListener("click", () => open(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: n + 1, ArrowLeft: n - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    open(tabs[(to + tabs.length) % tabs.length].getAttribute("aria-controls"), true);
  });
});

function slider(id, show) {
  byId(id).addEventListener("input", () => {
    state[id] = Number(byId(id).value);
    show();
    refresh();
  });
}
export function showSliders() {
  byId("block").max = state.model.config.n_layer - 1;
  byId("layer").max = state.model.layer;
  byId("block").value = state.block;
  byId("layer").value = state.layer;
  byId("block-shown").textContent = state.block;
  byId("layer-shown").textContent = state.layer === 0 ? "0: the embeddings" : `${state.layer}: after block ${state.layer - 1}`;
}
slider("block", () => { clearMatrix(); showSliders(); });
slider("layer", showSliders);

for (const control of document.querySelectorAll("#words select, #words input, #attention input[type=radio]")) {
  control.addEventListener("change", () => { clearMatrix(); refresh(); });
}

// --- the classifiers ---

function choose() {
  state.model = state.models[byId("model").selectedIndex];
  const name = byId("other").value;
  state.other = state.models.find((model) => model.name === name && model !== state.model) ?? null;
  const { config, labels, base, task, parts } = state.model;
  const total = parts.reduce((sum, part) => sum + part.parameters, 0);
  const trained = parts.reduce((sum, part) => sum + part.trained, 0);
  byId("facts").textContent =
    `GPT-2 ${base}: ${config.n_layer} blocks of ${config.n_head} heads, ${millions(total)} parameters, ${millions(trained)} of them trained for ${task}${labels.length ? ` into ${labels.join(", ")}` : ""}`;
  state.block = config.n_layer - 1;
  state.layer = state.model.layer;
  state.follows = true;
  byId("words-label").replaceChildren(h("option", { value: "" }, "the answer"), ...labels.map((label) => h("option", { value: label }, label)));
  showSliders();
}

function millions(n) {
  return n >= 1e6 ? `${(n / 1e6).toFixed(1)} million` : n.toLocaleString("en");
}

async function start() {
  await shown(byId("verdict"), async () => {
    const found = await ask("models", "api/models");
    Object.assign(state, found);
    byId("model").replaceChildren(...state.models.map((model) => h("option", {}, model.name)));
    byId("other").replaceChildren(h("option", { value: "" }, "nothing"), ...state.models.map((model) => h("option", {}, model.name)));
    byId("other-field").hidden = state.models.length < 2;
    for (const id of ["model", "other"]) byId(id).addEventListener("change", () => { cancel(); choose(); clearMatrix(); update(); });
    choose();
    byId("examples").replaceChildren(...EXAMPLES.map((text) => h("button", { click: () => { byId("message").value = text; changed(); } }, text)));
    byId("message").addEventListener("input", changed);
    if (!byId("message").value) byId("message").value = EXAMPLES[0];
    const panel = location.hash.slice(1);
    open(panel in PANELS ? panel : "words");
    await update();
  });
}

start();
