// The picture of the network with the shape of everything it computes, and the source of its parts.

import { state } from "./app.js";
import { ask, byId, count, h, s, shown, visible } from "./dom.js";

const WIDTH = 340;
const BOX = 208; // width of a box
const LEFT = 14;

let source = ""; // the part whose source is shown

export async function showNetwork(place) {
  const found = await ask("panel", "api/network", { model: state.model.name, text: state.text });
  const { arrows } = found;
  byId("network-legend").replaceChildren(
    ...["frozen", "trainable", "partly"].filter((kind) => state.model.parts.some((part) => part.state === kind))
      .map((kind) => h("span", {}, h("span", { class: `swatch ${kind}` }), { frozen: "frozen", trainable: "trained", partly: "partly trained" }[kind])));
  const focused = document.activeElement?.dataset?.key;
  place.replaceChildren(overview(arrows), block(arrows));
  if (focused) place.querySelector(`[data-key="${focused}"]`)?.focus();
}

const shape = (numbers) => `(${numbers.map(count).join(", ")})`;

const partOf = (name) => state.model.parts.find((part) => part.part === name);

/** A part that shows its source when it is chosen. */
function box(y, height, name, detail, kind, part, key, onChoose) {
  const choose = () => {
    onChoose?.();
    showSource(part);
  };
  const word = { frozen: "frozen", trainable: "trained", partly: "partly trained" }[kind] ?? "";
  const current = key === `block ${state.block}`;
  return s("g", { role: "button", tabindex: 0, class: `box ${kind}${current ? " current" : ""}`, "data-key": key,
    "aria-label": `${name}, ${[detail, word].filter(Boolean).join(", ")}; show its code`,
    click: choose,
    keydown: (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose();
    } },
  s("rect", { x: LEFT, y, width: BOX, height, rx: 7 }),
  s("text", { x: LEFT + 12, y: y + height / 2 + 4.5, class: "title" }, name),
  s("text", { x: LEFT + BOX - 10, y: y + height / 2 + 4, class: "detail", "text-anchor": "end" }, detail));
}

function arrow(y, height, text) {
  const x = LEFT + BOX / 2;
  return s("g", { class: "arrow" },
    s("path", { d: `M${x} ${y} V${y + height - 5}` }),
    s("path", { d: `M${x - 4} ${y + height - 7} L${x} ${y + height} L${x + 4} ${y + height - 7} Z`, class: "tip" }),
    text ? s("text", { x: x + 10, y: y + height / 2 + 4 }, text) : null);
}

function words(y, text, className = "") {
  return s("text", { x: LEFT + BOX / 2, y, "text-anchor": "middle", class: className }, text);
}

function picture(name, height, children) {
  return s("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "group", "aria-label": name, class: "picture" }, children);
}

const parameters = (n) => (n ? count(n) : "");

/** The whole network, from the message down to the answer. */
function overview(arrows) {
  const { model } = state;
  const children = [];
  let y = 8;
  const put = (element, height) => {
    children.push(element);
    y += height;
  };
  const boxed = (name, detail, kind, part, key, onChoose) => put(box(y, 36, name, detail, kind, part, key, onChoose), 36);
  const down = (text, height = 30) => put(arrow(y, height, text), height);
  const ledger = (name) => partOf(name) ?? { parameters: 0, state: "none" };
  const text = state.text.length > 34 ? `${state.text.slice(0, 33)}…` : state.text;
  put(words(y + 10, `“${visible(text).replaceAll("·", " ")}”`, "message"), 18);
  down("");
  boxed("tokenizer", "", "none", "tokenizer", "tokenizer");
  down(`ids ${shape(arrows.ids)}`);
  boxed("wte + wpe", parameters(ledger("wte").parameters + ledger("wpe").parameters), ledger("wte").state, "embeddings", "embeddings");
  down(shape(arrows.embedded));
  for (let n = 0; n < model.config.n_layer; n += 1) {
    const part = ledger(`blocks.${n}`);
    if (n >= model.blocks) {
      boxed(`block ${n}`, "not read", "none", "block", `block ${n}`);
    } else {
      boxed(`block ${n}`, parameters(part.parameters), part.state, "block", `block ${n}`, () => chooseBlock(n));
    }
    down(shape(arrows.block), 26);
  }
  if (model.final_norm) {
    boxed("ln_f", parameters(ledger("ln_f").parameters), ledger("ln_f").state, "final_norm", "ln_f");
    down(shape(arrows.ln_f));
  }
  boxed(`read: ${model.pooling.replaceAll("_", " ")}`, "", "none", "pooling", "pooling");
  down(shape(arrows.read));
  boxed("head", parameters(ledger("head").parameters), ledger("head").state, "head", "head");
  down(`logits ${shape(arrows.logits)}`);
  boxed("answer", "", "none", "answer", "answer");
  return picture("The network", y + 10, children);
}

function chooseBlock(n) {
  state.block = n;
  byId("block").value = n;
  byId("block-shown").textContent = n;
  showNetwork(byId("network").querySelector(".result"));
}

/** One block in detail: the residual stream on the left, and what is added to it. */
function block(arrows) {
  const { config, counts } = state.model;
  const kind = partOf(`blocks.${state.block}`)?.state ?? "none";
  const children = [];
  let y = 24;
  const put = (element, height) => {
    children.push(element);
    y += height;
  };
  const stream = 6;
  const steps = [
    [["ln_1", counts.ln_1, "norm"], arrows.ln_1],
    [["attn.c_attn", counts["attn.c_attn"], "attention"], arrows.qkv, "q, k, v "],
    [[`${config.n_head} heads: softmax(q kᵀ/√D)`, 0, "attention"], arrows.scores, "weights "],
    [["weights × v", 0, "attention"], arrows.mixed],
    [["attn.c_proj", counts["attn.c_proj"], "attention"], arrows.attn],
    "+",
    [["ln_2", counts.ln_2, "norm"], arrows.ln_2],
    [["mlp.c_fc", counts["mlp.c_fc"], "mlp"], arrows.c_fc],
    [["GELU", 0, "mlp"], arrows.gelu],
    [["mlp.c_proj", counts["mlp.c_proj"], "mlp"], arrows.mlp],
    "+",
  ];
  const middle = LEFT + BOX / 2;
  put(words(12, `block ${state.block} in detail`, "heading"), 0);
  const top = y;
  put(arrow(y, 30, shape(arrows.embedded)), 30);
  let from = top + 8;
  for (const step of steps) {
    if (step === "+") {
      // the stream goes around the branch and is added to it
      children.push(s("path", { class: "stream", d: `M${middle} ${from} H${stream} V${y + 9} H${middle - 9}` }));
      put(s("g", { class: "plus-sign" }, s("circle", { cx: middle, cy: y + 9, r: 9 }), s("text", { x: middle, y: y + 13.5, "text-anchor": "middle" }, "+")), 18);
      from = y + 8;
      put(arrow(y, 30, shape(arrows.block)), 30);
      continue;
    }
    const [[name, n, part], out, before = ""] = step;
    put(box(y, 34, name, parameters(n), n ? kind : "none", part, `detail ${name}`), 34);
    put(arrow(y, 28, `${before}${shape(out)}`), 28);
  }
  return picture(`Block ${state.block} in detail`, y + 8, children);
}

// --- source code and chapters ---

async function showSource(part) {
  const place = byId("source");
  source = part;
  await shown(place, async () => {
    const found = await ask("source", "api/part", { part });
    if (source !== part) return;
    const chapter = h("details", { toggle: (event) => event.target.open && showChapter(found.chapter, body) },
      h("summary", {}, `Chapter ${Number(found.chapter.slice(0, 2))} explains it: ${found.chapter.slice(3).replaceAll("_", " ")}`));
    const body = h("div", { class: "chapter" });
    chapter.append(body);
    const heading = h("h3", { tabindex: -1 }, found.title);
    place.replaceChildren(heading, h("p", {}, found.what),
      ...found.source.map((one) => h("figure", {},
        h("figcaption", {}, h("strong", {}, one.name), ` ${one.file}, line ${one.line}`),
        h("pre", { tabindex: 0 }, h("code", {}, python(one.code))))), chapter);
    heading.focus({ preventScroll: true });
    place.scrollIntoView({ block: "nearest" });
  });
}

const PYTHON = /("""[\s\S]*?"""|#[^\n]*|"[^"\n]*"|\b(?:def|class|return|if|else|elif|for|in|not|and|or|is|None|True|False|import|from|with|raise|self|yield|lambda|while|assert)\b)/;

/** Python code with its comments, strings and keywords marked. */
function python(code) {
  return code.split(PYTHON).map((piece, n) => {
    if (n % 2 === 0) return piece;
    const kind = piece.startsWith("#") || piece.startsWith('"""') ? "comment" : piece.startsWith('"') ? "string" : "keyword";
    return h("span", { class: kind }, piece);
  });
}

async function showChapter(name, place) {
  if (place.childElementCount) return;
  await shown(place, async () => {
    const found = await ask("chapter", "api/chapter", { name });
    if (!found.cells.length) {
      place.replaceChildren(h("p", { class: "note" }, `The chapter is in the repository: ${found.file}`));
      return;
    }
    place.replaceChildren(h("p", { class: "note" }, `${found.file}, without its pictures and outputs`),
      ...found.cells.map((cell) => (cell.kind === "code" ? h("pre", { tabindex: 0 }, h("code", {}, python(cell.text))) : markdown(cell.text))));
  });
}

/** Headings, paragraphs, lists and code of Markdown; everything else stays as it is written. */
function markdown(text) {
  const inline = (line) => line.split(/(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]+\]\([^)]+\)|\*[^*\s][^*]*\*)/).map((piece, n) => {
    if (n % 2 === 0) return piece;
    if (piece.startsWith("`")) return h("code", {}, piece.slice(1, -1));
    if (piece.startsWith("**")) return h("strong", {}, piece.slice(2, -2));
    if (piece.startsWith("*")) return h("em", {}, piece.slice(1, -1).replaceAll("`", ""));
    return piece.slice(1, piece.indexOf("]"));
  });
  return text.split(/\n{2,}/).map((paragraph) => {
    if (/^(```|\||    )/.test(paragraph)) return h("pre", { tabindex: 0 }, paragraph.replace(/^```\w*\n|\n```$/g, ""));
    if (/^#+ /.test(paragraph)) return h("h4", {}, inline(paragraph.replace(/^#+ /, "")));
    if (/^[-*] /.test(paragraph)) return h("ul", {}, paragraph.split(/\n(?=[-*] )/).map((item) => h("li", {}, inline(item.slice(2)))));
    if (/^<\/?\w+/.test(paragraph)) return null;
    return h("p", {}, inline(paragraph));
  }).reduce((all, element) => { if (element) all.append(element); return all; }, document.createElement("div"));
}
