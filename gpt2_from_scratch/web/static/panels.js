// The panels Words, Attention, Layers and Parts, and the table of many messages.

import { allTokens, open, select, state } from "./app.js";
import { ask, byId, count, h, largest, percent, shown, signed, stack, visible } from "./dom.js";

const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
const about = (extra = {}) => ({ model: state.model.name, text: state.text, ...extra });
const quoted = (token) => `“${visible(token)}”`;

/** Give what speaks for a label its colour, and what speaks against it that of the other label, if there is one. */
function colour(place, label) {
  const { labels } = state.model;
  const k = labels.indexOf(label);
  place.style.setProperty("--plus", `var(--k${k % 7})`);
  place.style.setProperty("--minus", labels.length === 2 ? `var(--k${1 - k})` : "var(--soft)");
}

// --- words ---

export async function showWords(place) {
  const method = byId("words-method").value;
  const body = about({ label: byId("words-label").value, method, unit: chosen("unit") });
  const found = await ask("panel", "api/importance", body);
  colour(place, found.label);
  const most = Math.max(...found.parts.map((part) => Math.abs(part.value)), 1e-9);
  const isValue = found.probability === null;
  const unit = isValue ? "" : " log odds";
  const marked = found.parts.map((part) => {
    const size = Math.abs(part.value) / most;
    const side = part.value >= 0 ? "plus" : "minus";
    return h("span", { class: `part ${side}`, "--w": size.toFixed(3), title: `${signed(part.value)}${unit}` },
      part.text, size > 0.15 ? h("sup", { "aria-hidden": "true" }, part.value >= 0 ? "+" : "−") : null);
  });
  const ranked = [...found.parts].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, 12);
  const rows = ranked.map((part) => h("tr", {},
    h("th", { scope: "row", class: "mono" }, visible(part.text.trim() || part.text)),
    h("td", {}, diverging(part.value / most)),
    h("td", { class: "number" }, signed(part.value)),
    isValue || part.probability === null ? null : h("td", { class: "number" }, signed(100 * part.probability, 1))));
  place.replaceChildren(
    h("p", { class: "marked" }, marked),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Values of the parts" },
      h("table", { class: "bars" },
        h("caption", {}, `What speaks for (+) or against (−) ${found.label}`),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "part"), h("td", {}), h("th", { scope: "col", class: "number" }, isValue ? "value" : "log odds"),
          ranked.some((part) => part.probability !== null) && !isValue ? h("th", { scope: "col", class: "number" }, "change of P, points") : null)),
        h("tbody", {}, rows))),
    h("p", { class: "note" }, `Evidence for ${found.label}: ${signed(found.evidence)}${unit}${isValue ? "" : ` (${percent(found.probability)})`}. ` +
      `Compared with ${found.baseline}: ${signed(found.total)}. Error of their sum: ${signed(found.error)}. ${found.limit}`));
}

/** A bar to the right for what is positive, and to the left for what is negative. */
function diverging(x) {
  return h("span", { class: `diverging ${x >= 0 ? "plus" : "minus"}`, "--w": Math.abs(x).toFixed(3), "aria-hidden": "true" }, h("span", {}));
}

// --- attention ---

export function clearMatrix() {
  byId("matrix").replaceChildren();
}

export async function showAttention(place) {
  const weights = chosen("weights");
  const direction = chosen("direction");
  const asked = (which) => ask(`panel ${which}`, "api/attention", about({ weights: which, token: state.token }));
  const sides = weights === "change" ? ["finetuned", "pretrained"] : [weights];
  const [found, before] = await Promise.all(sides.map(asked));
  const rows = found[direction][state.block].map((row, head) => (before ? row.map((p, n) => p - before[direction][state.block][head][n]) : row));
  const token = found.tokens[state.token];
  // a token cannot attend to later ones, nor be attended by earlier ones
  const range = direction === "attends_to" ? [0, state.token + 1] : [state.token, found.tokens.length];
  const tokens = found.tokens.slice(...range);
  const what = direction === "attends_to" ? `What ${quoted(token)} attends to` : `What attends to ${quoted(token)}`;
  const caption = `${what} in block ${state.block}${weights === "finetuned" ? "" : weights === "change" ? ", change by finetuning in points" : ", before finetuning"}`;
  const header = tokens.map((name, n) => h("th", { scope: "col" }, h("button", { class: "name", title: name, "aria-label": `choose token ${visible(name)}`, click: () => select(range[0] + n), disabled: range[0] + n >= allTokens().length }, visible(name))));
  const body = rows.map((row, head) => {
    const part = row.slice(...range);
    return h("tr", {},
      h("th", { scope: "row" }, h("button", { class: "link", click: () => showMatrix(head) }, `head ${head}`)),
      part.map((p) => cell(p, weights === "change")));
  });
  const frozen = lastFrozen();
  const note = state.block <= frozen
    ? `Blocks 0 to ${frozen} were not trained, so the attention in them is still that of the pretrained GPT-2.`
    : "Attention says where a head reads, not whether the answer depends on it. Choose a head to see all its tokens.";
  place.replaceChildren(scrolled(caption, h("table", { class: "heat" },
    h("caption", {}, caption),
    h("thead", {}, h("tr", {}, h("td", {}), header)), h("tbody", {}, body))),
  h("p", { class: "note" }, note));
}

/** The last block that neither it nor a part before it was trained; -1 if there is none. */
function lastFrozen() {
  const states = Object.fromEntries(state.model.parts.map((part) => [part.part, part.trained > 0]));
  if (states.wte || states.wpe) return -1;
  let n = 0;
  while (`blocks.${n}` in states && !states[`blocks.${n}`]) n += 1;
  return n - 1;
}

function cell(p, isChange) {
  const points = Math.round(100 * p);
  const text = points === 0 ? "" : isChange ? `${points > 0 ? "+" : "−"}${Math.abs(points)}` : String(points);
  return h("td", { class: isChange && p < 0 ? "minus" : isChange ? "plus" : "one", "--w": Math.min(1, Math.abs(p)).toFixed(3) }, text);
}

async function showMatrix(head) {
  const place = byId("matrix");
  await shown(place, async () => {
    const weights = chosen("weights") === "pretrained" ? "pretrained" : "finetuned";
    const found = await ask("matrix", "api/attention-head", about({ weights, block: state.block, head }));
    const caption = `Block ${state.block}, head ${head}, ${weights}: each row is a token that attends`;
    const rows = found.matrix.map((row, n) => h("tr", {},
      h("th", { scope: "row" }, visible(found.tokens[n])),
      row.map((p, k) => (k > n ? h("td", { class: "later" }) : cell(p, false)))));
    place.replaceChildren(scrolled(caption, h("table", { class: "heat" }, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, h("td", {}), found.tokens.map((name) => h("th", { scope: "col" }, h("span", { class: "name" }, visible(name)))))),
      h("tbody", {}, rows))));
    place.scrollIntoView({ block: "nearest" });
  });
}

function scrolled(name, child) {
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, child);
}

// --- layers ---

export async function showLayers(place) {
  const token = Math.min(state.token, state.answer.tokens.length - 1); // GPT-2 was not trained with the end token
  const next = (weights) => ask(`panel ${weights}`, "api/next", about({ weights, token: Math.max(token, 0) }));
  const [found, after, before] = await Promise.all([
    ask("panel", "api/layers", about()), next("finetuned"), next("pretrained"),
  ]);
  const rows = found.probabilities.map((row, n) => {
    const best = largest(row);
    const name = n === 0 ? "embeddings" : `block ${n - 1}`;
    return h("tr", { class: n === state.layer ? "current" : "" },
      h("th", { scope: "row" }, name),
      h("td", {}, stack(row, found.labels.map((label, k) => `${label} ${percent(row[k])}`).join(", "))),
      h("td", { class: "number" }, `${found.labels[best]} ${percent(row[best])}`));
  });
  const layer = Math.min(state.layer, after.layers.length - 1);
  const columns = [["pretrained", before], ["finetuned", after]].map(([name, side]) => h("div", {},
    h("h4", {}, name),
    h("ol", { class: "next" }, side.layers[layer].map((one) => h("li", {},
      h("span", { class: "mono" }, visible(one.token)),
      h("span", { class: "gauge", "--p": one.probability.toFixed(4), "aria-hidden": "true" }, h("span", {})),
      h("span", { class: "number" }, percent(one.probability)))))));
  place.replaceChildren(h("div", { class: "two" },
    h("div", {},
      scrolled("The answer at each layer", h("table", { class: "bars layers" }, h("caption", {}, "The answer if the head read after each block"), h("tbody", {}, rows))),
      h("p", { class: "note" }, "The head was trained for the last row. An earlier layer may know the answer in a form that this head does not read.")),
    h("div", {},
      h("h3", {}, `Next token after ${quoted(after.tokens[Math.max(token, 0)])}, layer ${layer}`),
      h("div", { class: "two tight" }, columns),
      h("p", { class: "note" }, "Read with GPT-2's own head (its token embeddings). Early layers use other coordinates, so they may show nonsense."))));
}

// --- parts ---

export async function showParts(place) {
  const { labels } = state.model;
  const head = Object.values(state.answer.prediction.answers)[0];
  const label = head.label ?? labels[0];
  const other = labels.length === 2 && head.label !== undefined ? labels.find((each) => each !== label) : "";
  const found = await ask("panel", "api/contributions", about({ label, other }));
  colour(place, found.label);
  const all = [...found.heads.flat(), ...found.mlps, found.token, found.position, found.biases];
  const most = Math.max(...all.map(Math.abs), 1e-9);
  const value = (x) => ({ class: x < 0 ? "minus" : "plus", "--w": (Math.abs(x) / most).toFixed(3) });
  const rows = found.heads.map((row, block) => h("tr", {},
    h("th", { scope: "row" }, `block ${block}`),
    row.map((x, n) => h("td", value(x), h("button", { class: "plain", "aria-label": `block ${block}, head ${n}: ${signed(x)}; show its attention`, click: () => { state.block = block; byId("block").value = block; byId("block").dispatchEvent(new Event("input")); open("attention", true); } }, signed(x)))),
    h("td", value(found.mlps[block]), signed(found.mlps[block]))));
  const what = other ? `the logit of ${label} minus that of ${other}` : `the logit of ${label}`;
  const rest = [["token embedding", found.token], ["position embedding", found.position], ["biases", found.biases]];
  place.replaceChildren(
    scrolled("Contributions", h("table", { class: "heat values" },
      h("caption", {}, `What each part adds to ${what}`),
      h("thead", {}, h("tr", {}, h("td", {}), found.heads[0].map((_, n) => h("th", { scope: "col" }, `head ${n}`)), h("th", { scope: "col" }, "MLP"))),
      h("tbody", {}, rows))),
    h("dl", { class: "sum" }, rest.map(([name, x]) => [h("dt", {}, name), h("dd", {}, signed(x))]),
      h("dt", {}, "all together"), h("dd", {}, h("strong", {}, signed(found.logit)))),
    h("p", { class: "note" }, "The sum is what the head computes, before its temperature. These are direct effects: what a part prepares for a later part counts as the later part's."));
}

// --- many messages ---

const SHOWN = 200; // rows of the table
const CHUNK = 100; // messages per request, so that progress is visible

const lines = () => byId("lines").value.split(/\r?\n/).filter((line) => line.trim());

byId("classify").addEventListener("click", () => {
  const place = byId("many");
  byId("download").hidden = true;
  byId("progress").textContent = "";
  shown(place, async () => {
    const texts = lines();
    if (!texts.length) throw new Error("Paste some messages first, one per line.");
    if (texts.length > state.limits.texts) throw new Error(`${count(texts.length)} lines are too many; at most ${count(state.limits.texts)} are classified at once.`);
    const found = [];
    for (let start = 0; start < texts.length; start += CHUNK) {
      const some = texts.slice(start, start + CHUNK);
      found.push(...(await ask("many", "api/predict", { model: state.model.name, texts: some })).predictions);
      byId("progress").textContent = `${count(found.length)} of ${count(texts.length)} classified`;
    }
    showTable(place, texts, found);
    byId("download").hidden = false;
  });
});

function showTable(place, texts, found) {
  const answers = found.map((one) => Object.values(one.answers)[0]);
  const counts = new Map();
  for (const answer of answers) if (answer.label) counts.set(answer.label, (counts.get(answer.label) ?? 0) + 1);
  const rows = texts.slice(0, SHOWN).map((text, n) => {
    const answer = answers[n];
    const numbers = answer.probabilities ?? answer.values ?? {};
    return h("tr", {}, h("td", { class: "number" }, n + 1),
      h("td", {}, answer.label === undefined ? JSON.stringify(answer).slice(0, 200) : [h("span", { class: `dot k${Object.keys(numbers).indexOf(answer.label) % 7}` }), answer.label]),
      h("td", { class: "number" }, answer.label === undefined ? "" : percent(numbers[answer.label])),
      h("td", { class: "words" }, text));
  });
  place.replaceChildren(
    h("p", {}, [...counts].map(([label, n]) => `${label}: ${count(n)}`).join(" · ")),
    scrolled("Classified messages", h("table", { class: "many" },
      h("caption", { class: "hidden-text" }, "Classified messages"),
      h("thead", {}, h("tr", {}, ["no.", "label", "probability", "message"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows))),
    texts.length > SHOWN ? h("p", { class: "note" }, `The first ${SHOWN} of ${count(texts.length)} are shown. The CSV file has all.`) : "");
}

byId("download").addEventListener("click", () => {
  shown(byId("many"), async () => {
    const table = await ask("table", "api/table", { model: state.model.name, texts: lines(), with_text: true });
    const address = URL.createObjectURL(new Blob([table], { type: "text/csv" }));
    h("a", { href: address, download: `${state.model.name}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
});
